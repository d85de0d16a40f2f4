"""Tools of the Fiji tests: a virtual display, real ImageJ, scripts run as Fiji would run them.

Every request has a time limit: a dialog that waits for a click is a failed test, not a hung one.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from pathlib import Path

HERE = Path(__file__).parent
REPO = HERE.parents[1]
JAVA_JARS = Path("/usr/share/java")
IJ_JAR = Path(os.environ.get("CLEMREG_IJ_JAR", JAVA_JARS / "ij.jar"))
GROOVY_JAR = JAVA_JARS / "groovy-all.jar"
SCRIPTS = REPO / "macros" / "scripts" / "Plugins" / "CLEMReg"
# Hangs end here; a machine that is ten times too busy must not.
SECONDS = 180
SCRIPT_SECONDS = 300  # a script may start clemreg several times
RUN_SECONDS = 1800  # from raw EM to an export
START_SECONDS = 300


def missing_tools():
    """Name the Debian packages that these tests need and do not find."""
    there = {
        "imagej": IJ_JAR.is_file(),
        "groovy": GROOVY_JAR.is_file(),
        "xvfb": shutil.which("Xvfb"),
        "default-jre": shutil.which("java"),
    }
    return [name for name, found in there.items() if not found]


def clemreg_program(folder):
    """Make an executable that runs the clemreg of this repository, in a folder with a space."""
    program = folder / "a place" / "clemreg"
    program.parent.mkdir(exist_ok=True)
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH="{REPO}" exec "{sys.executable}" -W ignore -m clemreg "$@"\n'
    )
    program.chmod(0o755)
    return program


class Display:
    """An X server without a screen."""

    def __init__(self):
        read, write = os.pipe()
        words = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x900x24"]
        self.process = subprocess.Popen(
            [*words, "-nolisten", "tcp", "-noreset"],
            pass_fds=[write],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(write)
        with os.fdopen(read) as stream:
            self.name = f":{stream.readline().strip()}"

    def close(self):
        self.process.kill()
        self.process.wait()


def environment(display, **more):
    """Environment for a Java program: UTF-8 file names, the display, this clemreg."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("CLEMREG_")}
    env |= {"LC_ALL": "C.UTF-8", "DISPLAY": display, "PYTHONPATH": str(REPO), **more}
    return env | {"CLEMREG_SHARED_DATA": os.environ.get("CLEMREG_SHARED_DATA", "")}


class ImageJ:
    """ImageJ and Groovy in a child process."""

    def __init__(self, display, home, *jars):
        self.log = home / "imagej.log"
        self.answers = queue.Queue()
        words = [sys.executable, HERE / "imagej_host.py", home, *(jars or (IJ_JAR, GROOVY_JAR))]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                list(map(str, words)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(display),
                encoding="utf-8",
            )
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
        self.version = self._answer(START_SECONDS)["ready"]

    def _listen(self):
        for line in self.process.stdout:
            self.answers.put(json.loads(line))
        self.answers.put(None)

    def _answer(self, seconds):
        try:
            answer = self.answers.get(timeout=seconds)
        except queue.Empty:
            answer = None
        if answer is None:
            self.close()
            raise AssertionError(
                f"ImageJ did not answer within {seconds} s; its last words:\n"
                + self.log.read_text(errors="replace")[-2000:]
            )
        return answer

    @property
    def alive(self):
        return self.process.poll() is None

    def _ask(self, request, seconds):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer(seconds)

    def macro(self, code, argument="", seconds=SECONDS):
        """Run an ImageJ macro: `value`, `log`, and `error` with `line`."""
        return self._ask({"macro": code, "argument": str(argument)}, seconds)

    def script(self, path, parameters, seconds=SCRIPT_SECONDS, **behaviour):
        """Run a Groovy script with its ``#@`` parameters; see runner.groovy for the answer."""
        request = {"script": str(path), "parameters": parameters, **behaviour}
        return self._ask(request, seconds)

    def python(self, code, seconds=SECONDS):
        """Run Python beside ImageJ (`ij` is the bridge): what it calls `answer`, or its error."""
        return self._ask({"python": code}, seconds)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.listener.join()
        self.process.stdin.close()
        self.process.stdout.close()
