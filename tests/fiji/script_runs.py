"""Scripts of the menu, run to their end, and what they said."""

from __future__ import annotations

from imagej_process import SCRIPT_SECONDS, SCRIPTS

from clemreg.space import Grid

LM = Grid((9, 30, 34), (104.0, 52.0, 52.0), (0.0, 0.0, 0.0), "lm")


def dialogs(answer):
    return [event[1] for event in answer["events"] if event[0] == "dialog"]


def texts(parameters):
    return {name: str(value) for name, value in parameters.items()}


def applying(folder, clemreg, subject, out, **more):
    """Parameters of Apply Transform, for files of the fixture `files`."""
    files = {"transform": folder / "t.json", "subject": folder / subject, "out": folder / out}
    return files | {"python": clemreg, **more}


def run(imagej, name, parameters, seconds=SCRIPT_SECONDS):
    """Run a script that must succeed."""
    answer = imagej.script(SCRIPTS / f"{name}.groovy", texts(parameters), seconds)
    assert answer["error"] is None, answer
    assert answer["imagej_dialogs"] == []
    assert not [text for text in dialogs(answer) if text.startswith("error")], answer["events"]
    return answer
