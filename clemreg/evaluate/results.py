"""Scores of many predictions in one SQLite file, with the paper's CSV in and out."""

from __future__ import annotations

import csv
import io
import json
import math
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from clemreg.errors import ConfigError, FormatError, MissingError, StorageError
from clemreg.evaluate.scores import METRICS, Unannotated
from clemreg.io.atomic import atomic_write_text
from clemreg.io.tables import check_widths, read_rows

SCHEMA = 1


@dataclass(frozen=True)
class Result:
    """One score of one prediction on one crop.

    Attributes
    ----------
    path, dataset
        Container of the prediction, and the dataset in it.
    setup, iteration
        Network and checkpoint that made it.
    label
        Class.
    crop
        Annotated crop that it was scored on.
    raw_dataset
        EM that it was made from, inside its container.
    parent_path, parent_dataset_id
        Container of that EM, and the name of the sample.
    threshold
        Foreground from this value on.
    refined
        Whether it is a segmentation that was cleaned up, not a raw prediction.
    metric, metric_params
        What was measured, and what it depends on, as JSON.
    value
        The score; NaN where it makes no sense.
    """

    path: str
    dataset: str
    setup: str
    iteration: int
    label: str
    crop: str
    raw_dataset: str
    parent_path: str
    parent_dataset_id: str
    threshold: float
    refined: bool
    metric: str
    metric_params: str
    value: float

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ConfigError(f"there is no metric {self.metric!r}")


COLUMNS = tuple(field.name for field in fields(Result))
_KEY = COLUMNS[:-1]
_TYPES = {"iteration": "INTEGER", "threshold": "REAL", "refined": "INTEGER", "value": "REAL"}


def metric_params(
    metric: str, tolerance_nm: float, clip_nm: float, unannotated: Unannotated = "leave-out"
) -> str:
    """Lengths that a metric depends on, as the paper names them, and what is not the usual rule.

    Parameters
    ----------
    unannotated
        What became of voxels that nobody annotated; said where they were not left out.

    Examples
    --------
    >>> metric_params("mean_false_distance_clipped", 40, 200), metric_params("dice", 40, 200)
    ('{"clip_distance": 200}', '{}')
    >>> metric_params("dice", 40, 200, "background")
    '{"unannotated": "background"}'
    """
    params: dict[str, Any] = {}
    if metric.endswith("_clipped"):
        params["clip_distance"] = _whole(clip_nm)
    if metric.endswith("_with_tolerance"):
        params["tol_distance"] = _whole(tolerance_nm)
    if unannotated != "leave-out":
        params["unannotated"] = unannotated
    return json.dumps(params)


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value


class ResultStore:
    """Scores in an SQLite file; each question about a prediction has at most one answer.

    Parameters
    ----------
    path
        The file; it is made if it is not there.

    Raises
    ------
    FormatError
        The file is not such a store.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._connection() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master")}
            if version not in (0, SCHEMA) or (version == 0 and tables):
                raise FormatError(
                    f"{self.path} is an SQLite file, but no store of scores",
                    hint="choose another file",
                )
            columns = ", ".join(f"{c} {_TYPES.get(c, 'TEXT')}" for c in COLUMNS)
            db.execute(
                f"CREATE TABLE IF NOT EXISTS results ({columns}, UNIQUE ({', '.join(_KEY)}))"
            )
            db.execute(f"PRAGMA user_version = {SCHEMA}")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.path)
        try:
            with db:  # commits, or rolls back on an exception
                yield db
        except sqlite3.DatabaseError as error:
            if isinstance(error, (sqlite3.OperationalError, sqlite3.IntegrityError)):
                raise StorageError(f"cannot use {self.path}: {error}") from error
            raise FormatError(f"{self.path} is not an SQLite file") from error
        finally:
            db.close()

    def add(self, results: Iterable[Result]) -> int:
        """Add scores, all or none; return how many are new. The same score twice is one.

        Raises
        ------
        StorageError
            Another value is stored for one of them; use `replace` where that is meant.
        """
        new = 0
        with self._connection() as db:
            for result in results:
                stored = self._stored(db, result)
                if stored is None:
                    self._insert(db, result)
                    new += 1
                elif not _same(stored, result.value):
                    raise StorageError(
                        f"{self.path} has {result.metric} = {stored:.6g} for {result.label} of "
                        f"{result.setup} at {result.iteration} on crop {result.crop}, not "
                        f"{result.value:.6g}",
                        hint="replace the stored score if the prediction was made again",
                    )
        return new

    def replace(self, results: Iterable[Result]) -> None:
        """Add scores, all or none, in place of those that are stored."""
        with self._connection() as db:
            for result in results:
                where = " AND ".join(f"{c} IS ?" for c in _KEY)
                db.execute(f"DELETE FROM results WHERE {where}", astuple(result)[:-1])
                self._insert(db, result)

    def find(self, **where: Any) -> list[Result]:
        """Scores whose columns have these values, in the order of their columns.

        Raises
        ------
        ConfigError
            There is no such column.
        """
        unknown = sorted(set(where) - set(COLUMNS))
        if unknown:
            raise ConfigError(f"results have no column {unknown[0]!r}", hint=", ".join(COLUMNS))
        condition = " AND ".join(f"{c} IS ?" for c in where) or "1"
        order = ", ".join(_KEY)
        with self._connection() as db:
            rows = db.execute(
                f"SELECT {', '.join(COLUMNS)} FROM results WHERE {condition} ORDER BY {order}",
                tuple(where.values()),
            ).fetchall()
        return [_from_row(row) for row in rows]

    @staticmethod
    def _stored(db: sqlite3.Connection, result: Result) -> float | None:
        where = " AND ".join(f"{c} IS ?" for c in _KEY)
        row = db.execute(
            f"SELECT value FROM results WHERE {where}", astuple(result)[:-1]
        ).fetchone()
        if row is None:
            return None
        return math.nan if row[0] is None else float(row[0])

    @staticmethod
    def _insert(db: sqlite3.Connection, result: Result) -> None:
        marks = ", ".join("?" * len(COLUMNS))
        db.execute(f"INSERT INTO results VALUES ({marks})", astuple(result))


def _same(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or a == b


def _from_row(row: tuple[Any, ...]) -> Result:
    values = dict(zip(COLUMNS, row, strict=True))
    # SQLite stores NaN as NULL.
    values["value"] = math.nan if values["value"] is None else values["value"]
    values["refined"] = bool(values["refined"])
    return Result(**values)


def write_csv(results: Iterable[Result], folder: str | Path) -> list[Path]:
    """Write one ``<label>.csv`` a class with the paper's columns; return the files."""
    by_label: dict[str, list[Result]] = {}
    for result in results:
        by_label.setdefault(result.label, []).append(result)
    paths = []
    for label, rows in sorted(by_label.items()):
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_csv_row(row) for row in rows)
        paths.append(Path(folder) / f"{label}.csv")
        atomic_write_text(paths[-1], stream.getvalue())
    return paths


def _csv_row(result: Result) -> list[Any]:
    row = dict(zip(COLUMNS, astuple(result), strict=True))
    # As Python prints a dictionary: that is how the paper's files have it.
    row["metric_params"] = str(json.loads(result.metric_params))
    row["threshold"] = _whole(result.threshold)
    return list(row.values())


def read_csv(path: str | Path) -> list[Result]:
    """Read a table with the paper's columns, in any order.

    Raises
    ------
    FormatError
        A column is missing, or a value is not what its column holds; the text names the line.
    """
    rows = read_rows(path, "table of scores")
    header = rows[0].fields
    missing = [c for c in COLUMNS if c not in header]
    if missing:
        raise FormatError(
            f"{path} has no column {', '.join(missing)}", hint=f"columns: {', '.join(COLUMNS)}"
        )
    check_widths(rows, len(header))
    results = []
    for row in rows[1:]:
        values: dict[str, Any] = dict(zip(header, row.fields, strict=True))
        try:
            results.append(_parsed({c: values[c] for c in COLUMNS}))
        except (ValueError, TypeError) as error:
            raise FormatError(f"{path}, line {row.line}: {error}") from error
    return results


def _parsed(text: dict[str, str]) -> Result:
    refined = {"true": True, "1": True, "false": False, "0": False, "": False}
    if text["refined"].lower() not in refined:
        raise ValueError(f"refined is True or False, not {text['refined']!r}")
    params = json.loads((text["metric_params"] or "{}").replace("'", '"'))
    if not isinstance(params, dict):
        raise TypeError(f"metric_params {text['metric_params']!r} are not named values")
    values: dict[str, Any] = dict(text)
    values |= {
        "iteration": _number(text, "iteration", int),
        "threshold": _number(text, "threshold", float),
        "value": _number(text, "value", float) if text["value"] else math.nan,
        "refined": refined[text["refined"].lower()],
        "metric_params": json.dumps(params),
    }
    return Result(**values)


def _number(text: dict[str, str], column: str, kind: type[Any]) -> Any:
    try:
        return kind(text[column])
    except ValueError as error:
        raise ValueError(f"{column} is a number, not {text[column]!r}") from error


def require(results: list[Result], what: str) -> list[Result]:
    """Return the results, if there are any.

    Raises
    ------
    MissingError
        There are none.
    """
    if not results:
        raise MissingError(f"there is no score of {what}", hint="score some predictions first")
    return results
