"""``clemreg results``: the store of scores as tables and as a page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clemreg.errors import MissingError
from clemreg.evaluate.results import Result, ResultStore, read_csv, require, write_csv
from clemreg.evaluate.scores import METRICS
from clemreg.evaluate.selection import (
    Choice,
    Mode,
    best,
    by_crop,
    choose,
    convergence,
    crop_scores,
    curves,
    incomplete,
)
from clemreg.export.replace import require_free
from clemreg.io.atomic import atomic_write_text, plain
from clemreg.pipeline.validation import compare_as_published
from clemreg.report.scores import LabelScores, write_score_report


def open_store(path: Path) -> ResultStore:
    """Open a store that exists.

    Raises
    ------
    MissingError
        There is no such file.
    """
    if not path.is_file():
        raise MissingError(f"there is no store {path}", hint="make one: clemreg results import")
    return ResultStore(path)


def import_tables(store: Path, tables: Sequence[Path], *, replace: bool = False) -> int:
    """Add the rows of CSV tables, all or none; return how many are new or were replaced."""
    rows = [row for path in tables for row in read_csv(path)]
    if replace:
        ResultStore(store).replace(rows)
        return len(rows)
    return ResultStore(store).add(rows)


def export_tables(store: Path, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write one CSV a class with the paper's columns.

    Raises
    ------
    StorageError
        A file of that name is there and must not be replaced.
    """
    found = require(open_store(store).find(), "anything")
    labels = {result.label for result in found}
    require_free(*(folder / f"{label}.csv" for label in sorted(labels)), overwrite=overwrite)
    return write_csv(found, folder)


def best_checkpoints(
    store: Path, metric: str, mode: Mode, params: str = ""
) -> list[dict[str, Any]]:
    """Find the best checkpoint for each class and sample by its raw predictions, with its score.

    In test mode the score is the mean over crops, each scored with the checkpoint that was
    chosen on the others; the checkpoint shown is still the one chosen on all. A sample with one
    crop only is scored with the checkpoint chosen on the crops of the other samples, as the
    paper's were.

    Parameters
    ----------
    params
        What the metric depends on, as in the store; empty: there is one kind only.
    """
    lengths = {"metric_params": params} if params else {}
    results = open_store(store).find(metric=metric, refined=False, **lengths)
    rows = []
    for (label, sample), choice in choose(results, metric).items():
        mine = [r for r in results if (r.label, r.parent_dataset_id) == (label, sample)]
        row = {"label": label, "sample": sample} | _described(choice)
        if mode == "test":
            of_label = [r for r in results if r.label == label]
            tested = crop_scores(mine, metric, "test") or [
                s for s in crop_scores(of_label, metric, "test") if s.sample == sample
            ]
            held_out = [s.value for s in tested if s.value == s.value]
            row["value"] = sum(held_out) / len(held_out) if held_out else None
            row["crops"] = len(held_out)
        rows.append(row)
    return rows


def require_best(rows: Sequence[dict[str, Any]], metric: str) -> Sequence[dict[str, Any]]:
    """Return what `best_checkpoints` found, if it found anything.

    Raises
    ------
    MissingError
        Every score is NaN.
    """
    if not rows:
        raise MissingError(
            f"every score of {metric} of a raw prediction is NaN, so none is the best",
            hint="choose by another metric: --metric NAME",
        )
    return rows


def _described(choice: Choice) -> dict[str, Any]:
    return {
        "setup": choice.setup,
        "iteration": choice.iteration,
        "raw_dataset": choice.raw_dataset,
        "metric": choice.metric,
        "value": choice.value,
        "crops": len(choice.crops),
    }


def convergences(store: Path) -> list[dict[str, Any]]:
    """Apply the rule for ending a training to every setup, class and EM in the store.

    Where the two metrics were not scored at the same checkpoints the state is ``incomplete``.
    """
    results = require(open_store(store).find(refined=False), "anything")
    rows = []
    for setup, label, raw in sorted({(r.setup, r.label, r.raw_dataset) for r in results}):
        mine = [r for r in results if (r.setup, r.label, r.raw_dataset) == (setup, label, raw)]
        scored = curves(mine, setup, label)
        apart = set.symmetric_difference(*map(set, scored.values()))
        missing = sorted(apart.union(incomplete(mine).get((setup, label), ())))
        found = None if apart or not any(scored.values()) else convergence(scored)
        rows.append({
            "setup": setup, "label": label, "raw_dataset": raw,
            "state": found.state if found else "incomplete",
            "iteration": found.iteration if found else None, "incomplete": missing,
        })  # fmt: skip
    return rows


def comparison(store: Path, kind: str, metric: str, mode: Mode) -> list[dict[str, Any]]:
    """Compare as the paper did, see `clemreg.pipeline.validation.compare_as_published`."""
    rows = compare_as_published(open_store(store).find(), kind, metric, mode)
    if not rows:
        raise MissingError(
            f"no class and crop has a score in every arm of {kind}",
            hint="test mode needs at least two crops a class; try --mode validation",
        )
    return rows


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of one kind as CSV."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in plain(row).items()} for row in rows)
    atomic_write_text(path, stream.getvalue())


def report_store(store: Path, page: Path, metric: str) -> None:
    """Write a page with the best checkpoint of every class: bars, and every score.

    Raises
    ------
    ConfigError
        Scores of it were not measured in one way: several thresholds or tolerances.
    """
    results = open_store(store).find()
    rows = []
    for label in sorted({r.label for r in require(results, "anything")}):
        mine = [r for r in results if r.label == label and not r.refined]
        choice = best(mine, metric)
        if choice is not None:
            rows.append(_label_scores(mine, choice))
    summary = f"For every class the checkpoint with the best {metric}, averaged over its crops."
    write_score_report(page, "Scores of a training", rows, summary=summary)


def _label_scores(results: Sequence[Result], choice: Choice) -> LabelScores:
    mine = [r for r in results if (r.setup, r.iteration, r.raw_dataset) == choice.configuration]
    means: dict[str, float | None] = {}
    for metric in METRICS:
        values = _on_crops(mine, metric)
        if values:
            means[metric] = math.fsum(values) / len(values)
    note = f"{choice.setup} at {choice.iteration}"
    return LabelScores(choice.label, means, note, _on_crops(mine, "dice"))


def _on_crops(results: Sequence[Result], metric: str) -> tuple[float, ...]:
    scored = [r for r in results if r.metric == metric and not math.isnan(r.value)]
    return tuple(by_crop(scored).values())
