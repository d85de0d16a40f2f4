"""Dialogs that nobody can answer: close them, and say what they said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_OPENED = 200  # WindowEvent.WINDOW_OPENED
_WINDOW_EVENTS = 64  # AWTEvent.WINDOW_EVENT_MASK
_AGAIN_MS = 100
MACRO_ERROR = "Macro Error"


@contextmanager
def closing_dialogs(*, only: str = "") -> Iterator[list[str]]:
    """Close every dialog that opens while this is active, and collect the texts.

    A modal dialog would stop a macro for ever when nobody sees the screen. One is closed again and
    again, because the first time may be too early: Java tells of a dialog before the thread that
    shows it begins to wait, and then waits for ever for what has already happened.

    Parameters
    ----------
    only
        Close only dialogs with this title, where a person is there to answer the others.

    Yields
    ------
    list of str
        ``"title: text"`` of each dialog so far.
    """
    import jpype

    seen: list[str] = []
    opened: list[Any] = []
    dialog_class = jpype.JClass("java.awt.Dialog")

    def dispatched(event: Any) -> None:
        window = event.getSource()
        if event.getID() != _OPENED or not isinstance(window, dialog_class):
            return
        title = str(window.getTitle() or "")
        if only and title != only:
            return
        seen.append(": ".join(filter(None, [title, _text_of(window)])))
        opened.append(window)
        _close(window)

    def again(_event: Any) -> None:
        for window in opened:
            _close(window)

    listener = jpype.JProxy("java.awt.event.AWTEventListener", dict={"eventDispatched": dispatched})
    closer = jpype.JProxy("java.awt.event.ActionListener", dict={"actionPerformed": again})
    timer = jpype.JClass("javax.swing.Timer")(_AGAIN_MS, closer)
    toolkit = jpype.JClass("java.awt.Toolkit").getDefaultToolkit()
    toolkit.addAWTEventListener(listener, _WINDOW_EVENTS)
    timer.start()
    try:
        yield seen
    finally:
        timer.stop()
        toolkit.removeAWTEventListener(listener)


def _close(dialog: Any) -> None:
    if hasattr(dialog, "close"):  # waitForUser waits for this one
        dialog.close()
    dialog.dispose()


def _text_of(container: Any) -> str:
    """Text of the labels of a dialog, without its buttons."""
    import jpype

    nested = jpype.JClass("java.awt.Container")
    found = []
    for part in container.getComponents():
        kind = str(part.getClass().getSimpleName())
        if kind == "MultiLineLabel":
            found.append(_lines(part))
        elif kind in ("Label", "JLabel"):
            found.append(str(part.getText() or ""))
        elif isinstance(part, nested):
            found.append(_text_of(part))
    return " ".join(" ".join(found).split())


def _lines(label: Any) -> str:
    """Text of an ImageJ label: it has no method that returns it."""
    import jpype

    try:
        field = label.getClass().getDeclaredField("lines")
        field.setAccessible(True)
        return " ".join(str(line) for line in field.get(label) if line is not None)
    except (jpype.JException, TypeError):
        return ""
