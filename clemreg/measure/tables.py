"""Tables of measurements: named columns with their units, as CSV, Parquet or JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clemreg.errors import ConfigError, DataError, DependencyError, FormatError
from clemreg.io.atomic import atomic_path, atomic_write_text
from clemreg.io.tables import check_widths, read_rows

# Columns of names: one that looks like a number is still a name.
_NAMES = frozenset({"organelle", "organelle_a", "organelle_b", "touches"})


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of equal length; a name ends in its unit: ``volume_nm3``, ``centre_x_nm``.

    Attributes
    ----------
    columns
        Arrays (N,) of numbers or texts, by name.

    Raises
    ------
    DataError
        The columns are not of one length.
    """

    columns: Mapping[str, NDArray[Any]]

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"columns of different lengths: {lengths}")

    @classmethod
    def of(cls, **columns: ArrayLike) -> Table:
        """Make a table of arrays or lists."""
        return cls({name: np.asarray(column) for name, column in columns.items()})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self.columns:
            raise DataError(
                f"the table has no column {name!r}", hint=f"it has {', '.join(self.columns)}"
            )
        return self.columns[name]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each row as plain values."""
        lists = [column.tolist() for column in self.columns.values()]
        for values in zip(*lists, strict=True):
            yield dict(zip(self.columns, values, strict=True))

    def where(self, keep: NDArray[np.bool_]) -> Table:
        """Keep the rows where `keep` (N,) is true."""
        return Table({name: column[keep] for name, column in self.columns.items()})

    def with_columns(self, **columns: ArrayLike) -> Table:
        """Add columns at the end."""
        return Table({**self.columns, **Table.of(**columns).columns})


def write_table(path: str | Path, table: Table) -> None:
    """Write ``.csv`` or ``.parquet``, whole or not at all.

    Numbers in CSV have as many digits as it takes to read them back unchanged; NaN is empty.

    Raises
    ------
    ConfigError
        The suffix is neither.
    DependencyError
        Parquet needs pyarrow, which is not installed.
    """
    if check_table(path) == ".csv":
        atomic_write_text(path, _csv_text(table))
    else:
        _write_parquet(Path(path), table)


def check_table(path: str | Path) -> str:
    """Return the suffix of a table, if one of this name can be written.

    Raises
    ------
    ConfigError, DependencyError
        As for `write_table`.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        require_parquet()
    elif suffix != ".csv":
        raise ConfigError(
            f"{path}: tables are written as .csv or .parquet, not {suffix or 'without suffix'}"
        )
    return suffix


def _csv_text(table: Table) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.rows():
        writer.writerow("" if value != value else value for value in row.values())  # NaN
    return stream.getvalue()


def require_parquet() -> None:
    """Check that Parquet can be written.

    Raises
    ------
    DependencyError
        It needs pyarrow, which is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401 - only to see that it is there
    except ImportError as error:
        raise DependencyError(
            f"writing Parquet needs pyarrow: {error}",
            hint="pip install 'clemreg-toolkit[measure]', or write a .csv",
        ) from error


def _write_parquet(path: Path, table: Table) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    with atomic_path(path) as partial:
        parquet.write_table(arrow.table(dict(table.columns)), str(partial))


def read_table(path: str | Path) -> Table:
    """Read a CSV that `write_table` wrote: whole numbers, numbers (empty is NaN) or texts.

    Names of organelles are texts, whatever they look like.

    Raises
    ------
    MissingError
        There is no such file.
    FormatError
        It is not a table, a row has too few fields, or two columns have one name.
    """
    header, *rows = read_rows(path, "table of measurements")
    check_widths(rows, len(header.fields))
    if len(set(header.fields)) < len(header.fields):
        raise FormatError(f"{path}: two columns have one name")
    texts = [row.fields for row in rows]
    return Table(
        {name: _column(name, [t[i] for t in texts]) for i, name in enumerate(header.fields)}
    )


def _column(name: str, texts: list[str]) -> NDArray[Any]:
    if name in _NAMES:
        return np.array(texts, np.str_)
    if texts and all(text.isdigit() for text in texts):
        return np.array([int(text) for text in texts], dtype=np.uint64)
    try:
        return np.array([float(text) if text else np.nan for text in texts])
    except ValueError:
        return np.array(texts)
