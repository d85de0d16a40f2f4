"""Register volume electron microscopy to light microscopy, and prove how well it worked."""

from __future__ import annotations

__version__ = "0.1.0"
