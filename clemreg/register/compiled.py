"""Compile loops over voxels, for which numpy would need many passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(function: Loop) -> Loop:
    """Compile when first called; threads do not wait for each other in it.

    The machine code is kept beside the module, or in the user's cache folder where that is
    read-only; where neither can be written to it is made anew by every process.
    """
    try:
        made = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        made = numba.njit(nogil=True)(function)
    return cast("Loop", made)
