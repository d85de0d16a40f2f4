"""Ctrl-C that nothing swallows: heard at once, or at the latest when progress is next told."""

from __future__ import annotations

import signal
from types import FrameType


class Listener:
    """Handler of SIGINT: raises `KeyboardInterrupt`, and remembers.

    Python drops what is raised in a destructor or in a callback of a weak reference, as they run
    during imports: the work would go on as if nobody had pressed Ctrl-C.
    """

    def __init__(self) -> None:
        self.heard = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        """Interrupt what is being done."""
        self.heard = True
        raise KeyboardInterrupt


def listen() -> None:
    """Listen to SIGINT from now on, unless it is ignored (as in the background of a shell)."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, Listener())


def stop_if_interrupted() -> None:
    """Raise `KeyboardInterrupt` if one was raised before, and lost."""
    listener = signal.getsignal(signal.SIGINT)
    if isinstance(listener, Listener) and listener.heard:
        raise KeyboardInterrupt
