"""Delimited text tables, with errors that name the file, the line and the column."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clemreg.errors import FormatError, MissingError, StorageError

_DELIMITERS = (",", ";", "\t")
_MAX_BYTES = 1 << 30
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_UNSET = re.compile(r"|[-+]?(?:inf|infinity|nan)", re.IGNORECASE)


def read_text(path: str | Path, what: str) -> str:
    """Return the text of a regular file; a byte-order mark is dropped.

    Parameters
    ----------
    path
        The file.
    what
        What it should be, for the messages: ``"landmark table"``.

    Raises
    ------
    MissingError
        There is no such file, or it is a folder or a device.
    FormatError
        It is not text, or larger than 1 GiB.
    StorageError
        It may not be read.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingError(f"{what} {file} is not there", hint="check the path")
    if file.stat().st_size > _MAX_BYTES:
        raise FormatError(f"{file} is larger than 1 GiB, which is no {what}")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{file} is not UTF-8 text (byte {error.start}), expected a {what}",
            hint="save it as UTF-8 text",
        ) from error
    except OSError as error:
        raise StorageError(f"cannot read {what} {file}: {error.strerror}") from error


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes
    ----------
    path, line
        Where it stands; the first line is 1.
    fields
        The texts between the delimiters, without surrounding white space.
    """

    path: Path
    line: int
    fields: tuple[str, ...]

    def number(self, column: int, name: str) -> float:
        """Return the finite number in `column` (0-based); `name` is for the message.

        Raises
        ------
        FormatError
            It is not a finite number.
        """
        text = self.fields[column]
        if not _NUMBER.fullmatch(text):
            raise FormatError(
                f"{self.path}, line {self.line}, column {column + 1} ({name}): "
                f"{text!r} is not a number",
                hint="use a decimal point, no thousands separator and no unit",
            )
        return float(text)

    def number_or_nan(self, column: int, name: str) -> float:
        """Like `number`, but empty, ``Infinity`` and ``NaN`` mean "not set" and give NaN."""
        text = self.fields[column]
        return float("nan") if _UNSET.fullmatch(text) else self.number(column, name)


def read_rows(path: str | Path, what: str) -> list[Row]:
    """Rows of a comma, semicolon or tab separated file; empty lines are left out.

    The delimiter is the one that occurs most in the first line that is not empty.

    Raises
    ------
    FormatError
        The file is empty or its quoting is broken.
    """
    text = read_text(path, what)
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(_DELIMITERS, key=first.count)
    rows = list(_parse(Path(path), text, delimiter))
    if not rows:
        raise FormatError(f"{path} is empty, expected a {what}")
    return rows


def _parse(path: Path, text: str, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        for fields in reader:
            stripped = tuple(field.strip() for field in fields)
            if any(stripped):
                yield Row(path, reader.line_num, stripped)
    except csv.Error as error:
        raise FormatError(f"{path}, line {reader.line_num}: {error}") from error


def check_widths(rows: Sequence[Row], width: int) -> None:
    """Raise FormatError, naming the line, if a row does not have `width` fields."""
    for row in rows:
        if len(row.fields) != width:
            raise FormatError(
                f"{row.path}, line {row.line}: {len(row.fields)} fields, expected {width}"
            )
