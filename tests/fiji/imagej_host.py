"""Real ImageJ in a process of its own, told what to do by JSON lines on stdin.

Started by `imagej_process.ImageJ`; never imported. Answers go to the file descriptor that stdout
was, so that what ImageJ and macros print cannot disturb them.
"""

import json
import os
import sys
import traceback
from pathlib import Path

import numpy as np
import scyjava

from clemreg.errors import ClemregError
from clemreg.fiji.bridge import JvmOptions, open_imagej
from clemreg.fiji.dialogs import closing_dialogs
from clemreg.fiji.macros import run_macro_code

HERE = Path(__file__).parent


def main():
    home, ij_jar, *more = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    scyjava.config.add_classpath(*more)
    # A temporary folder of its own: two workers that unpack one native library spoil it.
    folders = (f"-Duser.home={home}", f"-Dplugins.dir={home}", f"-Djava.io.tmpdir={home}")
    options = (*folders, "-Dfile.encoding=UTF-8")
    imagej = open_imagej(JvmOptions(ij_jar=Path(ij_jar), mode="hidden", options=options))
    runner = groovy_runner() if any("groovy" in jar for jar in more) else None
    tell(answers, {"ready": imagej.version})
    for line in sys.stdin:
        request = json.loads(line)
        if "macro" in request:
            answer = run_macro(request)
        elif "python" in request:
            answer = run_python(request["python"], imagej)
        else:
            answer = run_script(runner, line)
        tell(answers, answer)


def tell(stream, answer):
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


def groovy_runner():
    import jpype

    shell = jpype.JClass("groovy.lang.GroovyShell")()
    return shell.evaluate(jpype.JClass("java.io.File")(str(HERE / "runner.groovy")))


def run_macro(request):
    """Run a macro; its error with the line, what it printed and what it returned."""
    import jpype

    ij = jpype.JClass("ij.IJ")
    ij.log("\\Clear")
    answer = {"value": None, "error": None, "line": None}
    try:
        answer["value"] = run_macro_code(request["macro"], request.get("argument"))
    except ClemregError as error:
        answer |= {"error": str(error), "line": error.line}
    return answer | {"log": str(ij.getLog() or "")}


def run_python(code, imagej):
    """Run Python with `ij` and `np`; the answer is what it calls `answer`."""
    names = {"ij": imagej, "np": np, "answer": None}
    try:
        exec(code, names)
    except ClemregError as error:
        return {"answer": None, "error": str(error), "kind": type(error).__name__}
    except Exception:  # noqa: BLE001 (the test gets it)
        return {"answer": None, "error": traceback.format_exc(), "kind": "Exception"}
    return {"answer": names["answer"], "error": None}


def run_script(runner, line):
    """Run a Groovy script; dialogs of ImageJ itself are failures."""
    with closing_dialogs() as dialogs:
        answer = json.loads(str(runner.run(line)))
    return answer | {"imagej_dialogs": dialogs}


main()
