"""``python -m clemreg`` is the command ``clemreg``."""

from __future__ import annotations

from clemreg.cli import main

if __name__ == "__main__":
    main()
