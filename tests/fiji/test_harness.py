"""The harness itself: it must report errors and end what hangs, or nothing that uses it counts."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.xdist_group("imagej")


def test_a_macro_answers_with_value_log_and_argument(imagej):
    answer = imagej.macro('print("said " + getArgument()); return "" + 6 * 7;', "ünï")
    assert answer == {"value": "42", "error": None, "line": None, "log": "said ünï\n"}


def test_a_macro_error_comes_with_its_line(imagej):
    answer = imagej.macro('print("a");\n\nb = undefinedThing + a;\nprint("never");\n')
    assert answer["line"] == 3
    assert "Undefined variable" in answer["error"]
    assert answer["log"] == "a\n"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ('showMessage("Nobody", "clicks here");', "Nobody: clicks here"),
        ('waitForUser("Nobody", "clicks");', "Nobody: clicks"),
        ('x = getNumber("How many", 3);', "How many"),
        ('open("/none/there.tif");', "there.tif"),
        ('run("Gaussian Blur...", "sigma=2");', "no images open"),
    ],
)
def test_a_dialog_is_closed_named_and_an_error(imagej, code, text):
    error = imagej.macro(code)["error"]
    assert text in error
    assert imagej.alive


def test_a_dialog_is_closed_even_before_anybody_waits_for_it(imagej, tmp_path):
    """On a busy machine Java tells of a dialog long before the thread that shows it waits."""
    script = tmp_path / "busy.groovy"
    script.write_text(
        "class Busy extends java.awt.EventQueue {\n"
        "    boolean busy = true\n"
        "    void postEvent(java.awt.AWTEvent event) {\n"
        "        super.postEvent(event)\n"
        "        boolean opened = event.getID() == java.awt.event.WindowEvent.WINDOW_OPENED\n"
        "        if (busy && opened && !isDispatchThread()) Thread.sleep(400)\n"
        "    }\n"
        "}\n"
        "def events = new Busy()\n"
        "java.awt.Toolkit.getDefaultToolkit().getSystemEventQueue().push(events)\n"
        "try {\n"
        '    ij.IJ.showMessage("Modal", "one")\n'
        '    new ij.gui.WaitForUserDialog("Not modal", "two").show()\n'
        "} finally { events.busy = false }\n"
    )
    answer = imagej.script(script, {})
    assert answer["error"] is None
    assert answer["imagej_dialogs"] == ["Modal: one", "Not modal: two"]


def test_what_does_not_end_is_ended(imagej):
    with pytest.raises(AssertionError, match="did not answer within 2 s"):
        imagej.macro("while (true) wait(10);", seconds=2)
    assert not imagej.alive


def test_after_a_hang_there_is_a_new_imagej(imagej):
    assert imagej.macro("return getVersion();")["value"].startswith(imagej.version[:4])


def test_parameters_are_checked_as_fiji_checks_them(imagej, tmp_path):
    script = tmp_path / "try.groovy"
    script.write_text(
        '#@ String (label="What, and how", choices={"a", "b"}, value="a") what\n'
        "#@ File (style=open) file\n#@ Integer (min=1, value=4) n\n#@ UIService ui\n"
        "#@output String answer\n"
        'answer = what + n + file.name\nui.showDialog("hello", "there")\n1 / 0\n'
    )
    good = imagej.script(script, {"file": "/x/ü y.tif"})
    assert good["error"] == "Division by zero"
    assert good["trace"][0] == "try.run(try.groovy:8)"
    assert good["events"] == [["dialog", "hello", "there"]]
    assert imagej.script(script, {"file": "/x", "what": "c"})["error"].startswith("c is not one of")
    assert "not given: file" in imagej.script(script, {})["error"]
    assert "no parameter" in imagej.script(script, {"file": "/x", "other": 1})["error"]


def test_outputs_come_back(imagej, tmp_path):
    script = tmp_path / "out.groovy"
    script.write_text("#@ Integer n\n#@output String answer\nanswer = n * 2\n")
    assert imagej.script(script, {"n": 21})["outputs"] == {"answer": "42"}
