"""Which channel of a light volume is meant, and its chromatic shift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from clemreg.errors import ConfigError
from clemreg.register.structure import shows_mitochondria
from clemreg.space.grid import Triple
from clemreg.volume import Volume


def mito_channel(lm: Volume) -> str | None:
    """Return the first channel whose name says that it shows mitochondria, or None."""
    return next((name for name in lm.channels if shows_mitochondria(name)), None)


def chosen_channel(lm: Volume, name: str | None, usual: str | None = None) -> str:
    """Return the channel that was named, or the only one, or the `usual` one.

    Raises
    ------
    ConfigError
        None was named, and there are several.
    """
    if name is not None:
        return name
    if len(lm.channels) <= 1:
        return "0"
    if usual is None:
        raise ConfigError(
            f"{lm.name or 'the light volume'} has channels {', '.join(lm.channels)}: which one?",
            hint="name it: --channel NAME",
        )
    return usual


def light_channel(lm: Volume, name: str | int, shifts_nm: Mapping[str, Triple]) -> Volume:
    """One channel of a light volume, moved by its chromatic shift (offset zyx).

    Raises
    ------
    MissingError
        There is no such channel.
    """
    text = str(name)
    by_number = text not in lm.channels and text.isdigit()
    channel = lm.channel(int(text) if by_number else text)
    offset = _offset(lm, channel, shifts_nm)
    return channel if offset is None else _moved(channel, offset)


def _offset(lm: Volume, channel: Volume, shifts_nm: Mapping[str, Triple]) -> Triple | None:
    number = lm.channels.index(channel.name) if lm.channels else 0
    return shifts_nm.get(channel.name, shifts_nm.get(str(number)))


def channel_shifts(lm: Volume, shifts_nm: Mapping[str, Triple]) -> tuple[Triple, ...]:
    """Return the chromatic shift zyx of every channel, in their order; zero where none is given."""
    parts = [lm.channel(i) for i in range(len(lm.channels) or 1)]
    return tuple(_offset(lm, part, shifts_nm) or (0.0, 0.0, 0.0) for part in parts)


def _moved(volume: Volume, offset_nm: Triple) -> Volume:
    z, y, x = np.asarray(volume.grid.origin_nm) + np.asarray(offset_nm)
    grid = replace(volume.grid, origin_nm=(float(z), float(y), float(x)))
    return replace(volume, grid=grid, coarser=tuple(_moved(v, offset_nm) for v in volume.coarser))


def check_shifts(shifts_nm: Mapping[str, Triple], lm: Volume) -> None:
    """Refuse a shift for a channel that is not there.

    Raises
    ------
    ConfigError
        A name is not that of a channel.
    """
    names = [*lm.channels, *map(str, range(max(1, len(lm.channels))))]
    for name in shifts_nm:
        if name not in names:
            raise ConfigError(
                f"a shift is given for {name!r}, the channels are {list(lm.channels) or ['0']}"
            )
