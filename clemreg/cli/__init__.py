"""The command ``clemreg``: parse, log, exit codes; the work is done by the library."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 ok, 1 expected failure, 2 usage, 130 interrupted.

    Parameters
    ----------
    arguments
        Command-line arguments; default: those of the process.
    """
    from clemreg.cli.interrupt import listen

    listen()
    from clemreg.cli.app import EXIT_INTERRUPTED, run_app

    code = run_app(list(sys.argv[1:] if arguments is None else arguments))
    if code == EXIT_INTERRUPTED:
        # Libraries' exit handlers wait for threads in the middle of a block and complain of what
        # the interruption left them; everything on disk is already whole.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
