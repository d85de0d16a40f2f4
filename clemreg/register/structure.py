"""Which channel of an EM segmentation is meant, where it holds several structures."""

from __future__ import annotations

from typing import Literal

import numpy as np

from clemreg.errors import DataError
from clemreg.volume import Volume

MITO = ("mito_mem", "mito")
"""Names of mitochondria, the better first: the light microscope shows their membrane."""
_LIGHT_WORDS = ("mito", "tom20", "tomm20", "halo", "jf525", "cox8")


def shows_mitochondria(channel: str) -> bool:
    """Tell by its name whether a light channel shows mitochondria."""
    return any(word in channel.lower() for word in _LIGHT_WORDS)


def mitochondria(em: Volume) -> Volume:
    """Return the channel that shows the membrane of mitochondria, or the only one.

    Raises
    ------
    DataError
        There are several, and none has such a name.
    """
    if not em.channels:
        return em
    named = [name for name in MITO if name in em.channels]
    if not named and len(em.channels) > 1:
        raise _ambiguous(em, " or ".join(MITO))
    return em.channel(named[0] if named else 0)


def structure(em: Volume, name: str | None) -> tuple[Volume, Literal["auto", "prediction"]]:
    """Return what a light channel of that name shows, and its kind as `prepare_moving` takes it.

    Parameters
    ----------
    em
        Mask, probability or prediction. Of a single structure, that is taken.
    name
        Of the light channel; mitochondria if it is theirs (`shows_mitochondria`), or None.

    Raises
    ------
    DataError
        It has several structures, and none of that name.
    """
    has_mito = not {*MITO}.isdisjoint(em.channels)
    of_mito = name is None or name in MITO or (name not in em.channels and shows_mitochondria(name))
    if len(em.channels) <= 1 or (has_mito and of_mito):
        return em, "auto"
    if name is None or name not in em.channels:
        raise _ambiguous(em, repr(name) if name else " or ".join(MITO))
    is_prediction = has_mito and em.dtype == np.uint8
    return em.channel(name), "prediction" if is_prediction else "auto"


def _ambiguous(em: Volume, wanted: str) -> DataError:
    return DataError(
        f"{em.name or 'EM segmentation'} has channels {list(em.channels)}: none is called {wanted}",
        hint="save the one that the light channel shows as a volume of its own",
    )
