"""Processes in which elastix registers: one for each job, forked from one that has loaded ITK."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from clemreg.errors import RegistrationError

log = logging.getLogger(__name__)


class ElastixWorker:
    """Runs jobs of `clemreg.register.elastix`; a context manager.

    The first job starts a process that loads ITK, which takes about a second, and forks itself for
    that job and for those that follow. So each job starts from the same state, returns its memory,
    and takes only itself along when it crashes. Where a fork is not safe (see
    `clemreg.register.elastix.main`) every job has a process that loads ITK itself.

    The processes end with the ``with`` block, and with the thread that asked for the first job.
    """

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None
        self._errors: IO[bytes] | None = None

    def __enter__(self) -> ElastixWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, folder: Path, threads: int, timeout_s: float) -> tuple[int, str]:
        """Do the job in `folder`.

        Returns
        -------
        tuple
            Exit code, or minus the signal that ended the job; and what it wrote to stderr.

        Raises
        ------
        RegistrationError
            It took longer than `timeout_s`; it is gone then.
        """
        server, errors = self._started()
        errors.seek(0)  # the processes write where this one is
        errors.truncate()
        began = time.monotonic()
        timer = threading.Timer(timeout_s, server.kill)
        timer.start()
        try:
            answer = _ask(server, json.dumps([str(folder), threads]))
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()
        if time.monotonic() - began >= timeout_s:
            self.close()
            raise RegistrationError(
                f"elastix was still running after {timeout_s:.0f} s and was ended",
                hint="use fewer iterations or samples, or a larger voxel size",
            )
        code = int(answer) if answer else server.wait()
        errors.seek(0)
        text = errors.read().decode("utf-8", errors="replace")
        if not answer:
            self.close()
        return code, text

    def close(self) -> None:
        """End all processes; they are gone when this returns."""
        if self._server is not None and self._errors is not None:
            self._server.kill()  # a job that it has forked dies with it
            self._server.communicate()  # until both have let go of the pipe
            self._errors.close()
        self._server = self._errors = None

    def _started(self) -> tuple[subprocess.Popen[str], IO[bytes]]:
        if self._server is not None and self._server.poll() is not None:
            self.close()
        if self._server is None or self._errors is None:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115
            self._server = _start(self._errors)
        return self._server, self._errors


def _ask(server: subprocess.Popen[str], job: str) -> str:
    """Send a line and wait for one; empty if the process ends without an answer."""
    assert server.stdin is not None
    assert server.stdout is not None
    with suppress(BrokenPipeError):
        server.stdin.write(job + "\n")
        server.stdin.flush()
    return server.stdout.readline()


def _start(errors: IO[bytes]) -> subprocess.Popen[str]:
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OPENBLAS_NUM_THREADS": "1",  # elastix does not use it, and a fork copies no threads
    }
    command = [sys.executable, "-m", "clemreg.register.elastix", str(os.getpid())]
    log.debug("starting %s", command)
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment,
        text=True,
        start_new_session=True,  # Ctrl-C reaches the parent only, which ends the others
    )
