"""``python -m clemreg.cli.merged ARGUMENTS``: clemreg for ImageJ macros.

A macro's ``exec()`` returns standard output and drops both standard error and the exit code. Here
all that clemreg says goes to standard output, and the last line is ``EXIT code``.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run clemreg with the arguments of this process."""
    os.environ["CLEMREG_PROGRESS"] = "lines"
    sys.stderr = sys.stdout
    os.dup2(1, 2)  # what libraries and child processes write goes there too
    from clemreg.cli.app import run_app

    code = run_app(sys.argv[1:])
    sys.stdout.write(f"EXIT {code}\n")
    sys.stdout.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()
