"""Pairs of points that people or programs say are the same place in LM and EM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import DataError, MissingError
from clemreg.space.transform import FloatArray


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Named LM-EM point pairs; one row a point and rater.

    Parameters
    ----------
    names
        Name of each landmark; the same name under two raters is the same landmark.
    lm_nm, em_nm
        (N, 3) zyx nm; NaN where a point is not set.
    rater
        Who placed the point; one a row.
    role
        ``"held_out"`` (for checking) or ``"fit"``; one a row. Default: all held out.
    active
        Whether the row is to be used; default: all.

    Raises
    ------
    DataError
        The columns differ in length or shape.
    """

    names: tuple[str, ...]
    lm_nm: FloatArray
    em_nm: FloatArray
    rater: tuple[str, ...] = ()
    role: tuple[str, ...] = ()
    active: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        n = len(self.names)
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        for key in ("lm_nm", "em_nm"):
            points = np.array(getattr(self, key), dtype=np.float64).reshape(-1, 3)
            points.flags.writeable = False
            object.__setattr__(self, key, points)
        object.__setattr__(self, "rater", tuple(self.rater) or ("",) * n)
        object.__setattr__(self, "role", tuple(self.role) or ("held_out",) * n)
        active = np.ones(n, dtype=bool) if self.active is None else np.array(self.active, bool)
        active.flags.writeable = False
        object.__setattr__(self, "active", active)
        columns = (self.lm_nm, self.em_nm, self.rater, self.role, active)
        lengths = {len(column) for column in columns}
        if lengths - {n}:
            raise DataError(f"landmark columns differ in length: {n} names, {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def raters(self) -> tuple[str, ...]:
        """Raters in order of appearance."""
        return tuple(dict.fromkeys(self.rater))

    @property
    def usable(self) -> Landmarks:
        """Rows that are active and have both points."""
        finite = np.isfinite(self.lm_nm).all(axis=1) & np.isfinite(self.em_nm).all(axis=1)
        return self.take(finite & np.asarray(self.active))

    def take(self, rows: NDArray[np.bool_] | Sequence[int]) -> Landmarks:
        """Rows by mask or by number."""
        index = np.arange(len(self))[np.asarray(rows)]
        return Landmarks(
            tuple(self.names[i] for i in index),
            self.lm_nm[index],
            self.em_nm[index],
            tuple(self.rater[i] for i in index),
            tuple(self.role[i] for i in index),
            np.asarray(self.active)[index],
        )

    def select(self, *, rater: str | None = None, role: str | None = None) -> Landmarks:
        """Rows of one rater and/or one role.

        Raises
        ------
        MissingError
            There is no such rater; the text lists those there are.
        """
        if rater is not None and rater not in self.rater:
            raise MissingError(
                f"no landmarks by rater {rater!r}", hint=f"raters: {', '.join(self.raters)}"
            )
        keep = [
            (rater is None or r == rater) and (role is None or o == role)
            for r, o in zip(self.rater, self.role, strict=True)
        ]
        return self.take(np.array(keep, dtype=bool))

    @classmethod
    def concat(cls, parts: Sequence[Landmarks]) -> Landmarks:
        """Join tables, rows in order."""
        return cls(
            sum((p.names for p in parts), ()),
            np.concatenate([p.lm_nm for p in parts]),
            np.concatenate([p.em_nm for p in parts]),
            sum((p.rater for p in parts), ()),
            sum((p.role for p in parts), ()),
            np.concatenate([np.asarray(p.active) for p in parts]),
        )
