"""What every command shares: progress on stderr, JSON files, tables, options typed by a person."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from clemreg.cli.interrupt import stop_if_interrupted

Progress = Callable[[int, int, str], None]
_OF_A_RUN = ("run.json", "steps", "prepared", "registration", "evaluation.json", "report.json")


def _free_for_figures(path: Path | None) -> Path | None:
    """Refuse at once, not after the work, a file that is no earlier report of figures."""
    from clemreg.errors import StorageError

    if path is not None and path.exists() and not _holds_figures(path):
        raise StorageError(
            f"{path} exists already, and clemreg did not write it as a report",
            hint="choose another name for --json, or remove it",
        )
    if path is not None:
        _refuse_file_of_a_run(path.resolve())
    return path


def _refuse_file_of_a_run(path: Path) -> None:
    """Keep what a run goes on from and makes its report of: JSON, too, but not of this command."""
    from clemreg.errors import StorageError

    for folder in path.parents:
        is_run = (folder / "run.json").is_file() and (folder / "steps").is_dir()
        if is_run and path.relative_to(folder).parts[0] in _OF_A_RUN:
            raise StorageError(
                f"{path} belongs to the run in {folder}, which makes its report of it",
                hint="choose another name for --json",
            )


def _holds_figures(path: Path) -> bool:
    """Tell whether a file is JSON exactly as `write_json` writes it, and no transform."""
    from clemreg.io.atomic import json_text

    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(found, dict) or str(found.get("format")).startswith("clemreg"):
        return False
    return json_text(found) == text


JsonOption = Annotated[
    Path | None,
    typer.Option(
        "--json",
        callback=_free_for_figures,
        help="Also write the figures to this JSON file; an earlier report is replaced.",
    ),
]
TransformUnitOption = Annotated[
    str,
    typer.Option(
        "--transform-unit",
        help="Unit of a transform that does not say it (elastix, ITK, BigWarp, N5).",
    ),
]
LandmarkUnitOption = Annotated[
    str, typer.Option("--unit", help="Unit of landmarks that do not say it.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is there under that name.")
]
PsfOption = Annotated[
    str, typer.Option(help='Point spread: palm, sim, confocal, or full widths "x, y, z unit".')
]
FixedSpacingOption = Annotated[
    str | None, typer.Option(help='Voxel size of the light volume, "x, y, z unit".')
]
MovingSpacingOption = Annotated[
    str | None, typer.Option(help='Voxel size of the EM, "x, y, z unit".')
]


def require_free(*outputs: Path | None, overwrite: bool) -> None:
    """Refuse at once, not after the work, to write over what is there unasked."""
    from clemreg.export.replace import require_free_output

    require_free_output(*outputs, overwrite=overwrite)


def say(text: str) -> None:
    """Write a line for people on stderr; stdout stays free for results."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def result(text: str) -> None:
    """Write a line of the answer on stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """Show progress with rate and time left on stderr.

    On a terminal this is a live bar. Elsewhere (a log, or Fiji) it is a line where the count starts
    anew, and else at most one every two seconds: ``PROGRESS done/total message``. A Ctrl-C that
    went unheard stops the work here.
    """
    with _live_bar(title) if _is_live() else _plain_lines(title) as show:

        def report(done: int, total: int, message: str) -> None:
            stop_if_interrupted()
            show(done, total, message)

        yield report


def _is_live() -> bool:
    return sys.stderr.isatty() and os.environ.get("CLEMREG_PROGRESS") != "lines"


@contextmanager
def _live_bar(title: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.fields[title]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("", total=None, title=title)

        def report(done: int, total: int, message: str) -> None:
            bars.update(task, completed=done, total=total, description=message)

        yield report


@contextmanager
def _plain_lines(title: str) -> Iterator[Progress]:
    start = last = time.monotonic()
    before = 0

    def report(done: int, total: int, message: str) -> None:
        nonlocal start, last, before
        now = time.monotonic()
        anew, before = done < before, done
        if anew:
            start = last
        elif now - last < 2 and done < total:
            return
        last = now
        left = (now - start) / max(done, 1) * (total - done)
        remaining = f", {left:.0f} s left" if 0 < done < total else ""
        say(f"PROGRESS {done}/{total} {title}: {message}{remaining}")

    yield report


def write_json(path: Path | None, report: Mapping[str, Any]) -> None:
    """Write a report for scripts, if a path was given."""
    if path is not None:
        from clemreg.io.atomic import atomic_write_json

        _refuse_file_of_a_run(path.resolve())  # of the run that has just ended, too
        atomic_write_json(path, report)
        say_written(path)


def say_written(path: Path | None) -> None:
    """Say that a report for scripts has been written, if a path was given."""
    if path is not None:
        say(f"wrote {path}")


def print_verdict(status: str, reasons: Iterable[str]) -> None:
    """Print a verdict and what speaks for and against."""
    result(f"verdict: {status}")
    for reason in reasons:
        result(f"  - {reason}")


def table(rows: Mapping[str, Any]) -> None:
    """Print names and values, aligned; nested mappings are indented."""
    result("\n".join(_table_lines(rows, 0)))


def rows_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of one kind under the names of their columns, aligned."""
    names = list(rows[0]) if rows else []
    lines = [names, *([format_value(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    for line in lines:
        cells = (f"{c:<{w}}" for c, w in zip(line, widths, strict=True))
        result("  ".join(cells).rstrip())


def _table_lines(rows: Mapping[str, Any], depth: int) -> Iterator[str]:
    width = max((len(str(key)) for key in rows), default=0)
    for key, value in rows.items():
        if isinstance(value, Mapping):
            yield "  " * depth + f"{key}"
            yield from _table_lines(value, depth + 1)
        else:
            yield "  " * depth + f"{key!s:<{width}}  {format_value(value)}"


def format_value(value: Any) -> str:
    """Write a number with four digits, a list of numbers likewise."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.1f}"
    if isinstance(value, (list, tuple)) and value and not isinstance(value[0], (list, tuple)):
        return ", ".join(format_value(v) for v in value)
    return str(value)


def offset_nm(text: str | None) -> tuple[float, float, float]:
    """Read ``"x, y, z"`` as zyx in nm; um unless a unit is given; nothing is no offset."""
    from clemreg.units import parse_xyz_nm

    if text is None:
        return (0.0, 0.0, 0.0)
    return parse_xyz_nm(text if text.strip()[-1].isalpha() else f"{text} um")


def named_values(what: str, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Collect ``NAME=VALUE`` of an option that may be repeated; a name must not be.

    Raises
    ------
    ConfigError
        A name is given twice, of which one value would be lost.
    """
    from clemreg.errors import ConfigError

    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise ConfigError(
                f"{what} {name!r} is given twice: {found[name]!r} and {value!r}",
                hint="give every one a name of its own: NAME=...",
            )
        found[name] = value
    return found
