"""What goes wrong, in words a user can act on.

Every error that clemreg raises on purpose is a `ClemregError`; most are also the builtin that a
Python programmer would expect, so ``except FileNotFoundError`` keeps working.
"""

from __future__ import annotations


class ClemregError(Exception):
    """An expected failure: what, where, found, expected; and in `hint`, what to do.

    Parameters
    ----------
    message
        What is wrong, naming the file or option, what was found and what was expected.
    hint
        One sentence that says how to fix it.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class FrameError(ClemregError, ValueError):
    """Two transforms, or a transform and an image, do not meet in the same frame."""


class GridError(ClemregError, ValueError):
    """A voxel grid, box or spacing makes no sense."""


class VoxelSizeError(GridError):
    """A voxel size is missing, zero, or implausible for the kind of microscope."""


class FormatError(ClemregError, ValueError):
    """A file is not what its name or metadata says, is truncated, or is corrupt."""


class DataError(ClemregError, ValueError):
    """Pixel values or points cannot be used: NaN, empty mask, too few landmarks."""


class MissingError(ClemregError, FileNotFoundError):
    """A file, dataset, channel or model is not there."""


class StorageError(ClemregError, OSError):
    """Writing failed: disk full, no permission, or the target exists already."""


class ConfigError(ClemregError, ValueError):
    """A configuration has unknown keys or impossible values."""


class ConvergenceError(ClemregError, RuntimeError):
    """An iterative method stopped without an answer that can be trusted."""


class RegistrationError(ClemregError, RuntimeError):
    """The registration could not be done; the text holds the engine's own reason."""


class DependencyError(ClemregError, ImportError):
    """An optional part is not installed; the hint says which extra brings it."""
