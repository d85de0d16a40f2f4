"""Judge two predictions by eye without knowing which is which, and how sure the answer is."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clemreg.errors import ConfigError, DataError, FormatError, MissingError
from clemreg.io.atomic import atomic_write_json
from clemreg.io.tables import check_widths, read_rows
from clemreg.space.grid import Box

Side = Literal["a", "b"]
CHOICES = ("left", "right", "neither")
SCHEMA = 1
_TRIES = 100


@dataclass(frozen=True)
class Pair:
    """One place at which both predictions are shown.

    Attributes
    ----------
    number
        From 1 on, in the order of showing.
    box
        Voxels zyx.
    left
        Which prediction is shown on the left.
    """

    number: int
    box: Box
    left: Side


@dataclass(frozen=True)
class Key:
    """What the page does not say: names of the predictions, and which is on the left.

    Attributes
    ----------
    a, b
        Names of the predictions.
    pairs
        Places and sides.
    page
        Which page it belongs to; empty: not known.
    """

    a: str
    b: str
    pairs: tuple[Pair, ...]
    page: str = ""

    def write(self, path: Path) -> None:
        """Write the key; whoever judges should not open it."""
        pairs = [
            {"number": p.number, "start": p.box.start, "stop": p.box.stop, "left": p.left}
            for p in self.pairs
        ]
        names = {"a": self.a, "b": self.b, "page": self.page}
        atomic_write_json(path, {"schema": SCHEMA, **names, "pairs": pairs})


def read_key(path: Path) -> Key:
    """Read what `Key.write` wrote.

    Raises
    ------
    MissingError
        There is no such file.
    FormatError
        It is no key.
    """
    if not path.is_file():
        raise MissingError(f"there is no key {path}", hint="it lies beside the page, key.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise FormatError(f"{path} has schema {content['schema']}, expected {SCHEMA}")
        pairs = tuple(
            Pair(int(p["number"]), Box(tuple(p["start"]), tuple(p["stop"])), p["left"])
            for p in content["pairs"]
        )
        return Key(str(content["a"]), str(content["b"]), pairs, str(content.get("page", "")))
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path} is no key of a blinded comparison: {error!r}") from error


def draw_pairs(
    shape: Sequence[int],
    *,
    count: int = 100,
    edge: int = 150,
    seed: int,
    worth: Callable[[Box], bool] = lambda _box: True,
) -> tuple[Pair, ...]:
    """Draw places at random, and sides so that each prediction is on the left equally often.

    No place is drawn twice. There are fewer than `count` where the volume has no more, or where
    100 times as many places were looked at.

    Parameters
    ----------
    shape
        Voxels of the volume zyx.
    count
        Number of places, at most.
    edge
        Voxels of a place along each axis, fewer where the volume is thinner.
    worth
        Whether there is anything to judge in a place; else it is left out.

    Raises
    ------
    ConfigError
        Count or edge is not positive.
    DataError
        There is nothing to judge in any place.
    """
    if count < 1 or edge < 1:
        raise ConfigError(f"{count} places of {edge} voxels cannot be drawn")
    rng = np.random.default_rng(seed)
    size = np.minimum(edge, shape)
    free = tuple(int(n) for n in np.asarray(shape) - size + 1)
    # Of the numbers of all places, so that none comes twice.
    drawn = rng.choice(math.prod(free), min(math.prod(free), count * _TRIES), replace=False)
    starts = (np.array(np.unravel_index(number, free)) for number in drawn)
    boxes = (Box(tuple(start), tuple(start + size)) for start in starts)
    found = tuple(itertools.islice(filter(worth, boxes), count))
    if not found:
        raise DataError(
            f"none of {len(drawn)} places of {edge} voxels shows anything of either prediction",
            hint="are these the right files, and is it the right channel?",
        )
    sides = rng.permutation(np.arange(len(found)) % 2)
    return tuple(
        Pair(i + 1, box, "b" if side else "a")
        for i, (box, side) in enumerate(zip(found, sides, strict=True))
    )


@dataclass(frozen=True)
class Preference:
    """Outcome of a blinded comparison.

    Attributes
    ----------
    a, b
        Names of the predictions.
    prefer_a, prefer_b, neither
        Number of places.
    p_value
        Exact two-sided binomial test that both are preferred equally often, places without
        preference left out; NaN if there are only such places.
    """

    a: str
    b: str
    prefer_a: int
    prefer_b: int
    neither: int
    p_value: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        p = None if math.isnan(self.p_value) else self.p_value
        return dict(vars(self)) | {"p_value": p}


def decode(key: Key, choices: Mapping[int, str]) -> dict[int, str]:
    """Turn ``left`` and ``right`` into ``a`` and ``b``.

    Raises
    ------
    FormatError
        There is a choice for a place that is not in the key.
    """
    sides = {p.number: p.left for p in key.pairs}
    foreign = [number for number in choices if number not in sides]
    if foreign:
        raise FormatError(
            f"the choices name pair {foreign[0]}, the key has {len(sides)} pairs",
            hint="do key and choices belong together?",
        )
    return {number: _chosen(sides[number], choice) for number, choice in choices.items()}


def _chosen(left: Side, choice: str) -> str:
    if choice == "neither":
        return choice
    right = "b" if left == "a" else "a"
    return left if choice == "left" else right


def preference(key: Key, choices: Mapping[int, str]) -> Preference:
    """Count the choices and test them.

    Raises
    ------
    FormatError
        Choices and key do not belong together.
    """
    from scipy.stats import binomtest

    decoded = list(decode(key, choices).values())
    a, b, neither = (decoded.count(side) for side in ("a", "b", "neither"))
    p = float(binomtest(a, a + b, 0.5).pvalue) if a + b else math.nan
    return Preference(key.a, key.b, a, b, neither, p)


def read_choices(path: Path, page: str = "") -> dict[int, str]:
    """Read the table that a page gave: ``pair,choice,page``, or without its last column.

    Parameters
    ----------
    page
        That of the key; empty: any.

    Raises
    ------
    FormatError
        A line is not a pair with left, right or neither; a pair occurs twice; or the choices were
        made on another page.
    """
    rows = read_rows(path, "table of choices")
    if rows[0].fields not in (("pair", "choice"), ("pair", "choice", "page")):
        raise FormatError(f"{path} has columns {', '.join(rows[0].fields)}, expected pair, choice")
    check_widths(rows, len(rows[0].fields))
    choices: dict[int, str] = {}
    for row in rows[1:]:
        if page and row.fields[2:] not in ((), (page,)):
            raise FormatError(
                f"{path}, line {row.line}: a choice of another page than that of the key",
                hint="read it with the key.json that was written with its page",
            )
        value = row.number(0, "pair")
        if value != round(value):
            raise FormatError(f"{path}, line {row.line}: {row.fields[0]} is no number of a pair")
        number = round(value)
        if row.fields[1] not in CHOICES:
            raise FormatError(
                f"{path}, line {row.line}: {row.fields[1]!r} is none of {', '.join(CHOICES)}"
            )
        if number in choices:
            raise FormatError(f"{path}, line {row.line}: pair {number} was judged before")
        choices[number] = row.fields[1]
    return choices
