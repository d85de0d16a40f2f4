"""Choose checkpoints by their scores: validation, leave one crop out, convergence, comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clemreg.errors import ConfigError
from clemreg.evaluate.results import Result, require
from clemreg.evaluate.scores import higher_is_better

EVERY, EARLIEST, EMPTY_BY, LATEST = 25_000, 700_000, 500_000, 2_000_000
CONVERGENCE_METRICS = ("dice", "mean_false_distance")
Mode = Literal["validation", "test"]
Arm = Callable[[Result], bool]


@dataclass(frozen=True)
class Choice:
    """A checkpoint that was chosen by its scores.

    Attributes
    ----------
    label, setup, iteration, raw_dataset
        Class, network, checkpoint, and the EM it reads.
    metric
        What it was chosen by.
    value
        Mean over the crops it was chosen on.
    crops
        Those crops.
    """

    label: str
    setup: str
    iteration: int
    raw_dataset: str
    metric: str
    value: float
    crops: tuple[str, ...]

    @property
    def configuration(self) -> tuple[str, int, str]:
        """What tells checkpoints apart."""
        return self.setup, self.iteration, self.raw_dataset


def best(results: Sequence[Result], metric: str) -> Choice | None:
    """Best checkpoint for one class: the best mean over crops, NaN left out; None if all are NaN.

    Of equal ones the earlier wins.

    Raises
    ------
    ConfigError
        The results are of several classes, or those of a checkpoint were not measured in one way:
        raw predictions and refined ones, several thresholds or tolerances; or two predictions of
        it have different scores on a crop.
    """
    chosen = [r for r in results if r.metric == metric]
    labels = {r.label for r in chosen}
    if len(labels) > 1:
        raise ConfigError(f"a checkpoint is chosen for one class, not for {sorted(labels)}")
    groups: dict[tuple[str, int, str], list[Result]] = {}
    for result in chosen:
        if not math.isnan(result.value):
            key = (result.setup, result.iteration, result.raw_dataset)
            groups.setdefault(key, []).append(result)
    sign = -1 if higher_is_better(metric) else 1
    ranked = sorted(
        (sign * _mean(group), iteration, setup, raw)
        for (setup, iteration, raw), group in groups.items()
    )
    if not ranked:
        return None
    value, iteration, setup, raw = ranked[0]
    crops = tuple(sorted(crop for _, crop in by_crop(groups[setup, iteration, raw])))
    return Choice(labels.pop(), setup, iteration, raw, metric, sign * value, crops)


def _place(result: Result) -> tuple[str, str]:
    """Sample and crop: crops of two samples may have one name."""
    return result.parent_dataset_id, result.crop


def by_crop(results: Sequence[Result]) -> dict[tuple[str, str], float]:
    """Score of a checkpoint by sample and crop; the same score of two files counts once.

    Raises
    ------
    ConfigError
        They were not measured in one way, or two predictions have different scores on a crop.
    """
    _check_alike(results)
    scores: dict[tuple[str, str], Result] = {}
    for r in results:
        other = scores.setdefault(_place(r), r)
        if r.value != other.value and not (math.isnan(r.value) and math.isnan(other.value)):
            raise ConfigError(
                f"{r.label} of {r.setup} at {r.iteration} has two scores on crop {r.crop}: "
                f"{other.value:.6g} of {other.path} {other.dataset}, {r.value:.6g} of {r.path} "
                f"{r.dataset}",
                hint="keep the scores of one of the predictions, the others in another store",
            )
    return {place: r.value for place, r in scores.items()}


def _check_alike(results: Sequence[Result]) -> None:
    """Refuse to average scores that were not measured in one way."""
    for column in ("refined", "threshold", "metric_params"):
        found = sorted({str(getattr(r, column)) for r in results})
        if len(found) > 1:
            raise ConfigError(
                f"{results[0].label}: scores with {column} {' and '.join(found)} are not averaged",
                hint="choose among scores of one kind; keep the others in another store",
            )


def _mean(results: Sequence[Result]) -> float:
    values = by_crop(results).values()
    return math.fsum(values) / len(values)


def choose(results: Sequence[Result], metric: str) -> dict[tuple[str, str], Choice]:
    """Best checkpoint for every class and sample, by (label, parent_dataset_id).

    Raises
    ------
    MissingError
        There is no score by that metric.
    """
    require([r for r in results if r.metric == metric], metric)
    pairs = sorted({(r.label, r.parent_dataset_id) for r in results})
    choices = {}
    for label, sample in pairs:
        some = [r for r in results if (r.label, r.parent_dataset_id) == (label, sample)]
        choice = best(some, metric)
        if choice is not None:
            choices[label, sample] = choice
    return choices


@dataclass(frozen=True)
class CropScore:
    """Score on one crop of the checkpoint that was chosen for it.

    Attributes
    ----------
    sample, crop, choice
        The crop and its sample, and the checkpoint with the crops it was chosen on.
    value
        Its score on `crop`; NaN if it was not scored there.
    """

    sample: str
    crop: str
    choice: Choice
    value: float


def crop_scores(results: Sequence[Result], metric: str, mode: Mode) -> list[CropScore]:
    """Scores of one class on every crop.

    Parameters
    ----------
    mode
        ``validation``: one checkpoint, chosen on all crops. ``test``: for each crop the one
        chosen on the others, so that no score was used to choose; a class in one crop only has
        no such score.
    """
    chosen = [r for r in results if r.metric == metric]
    scores = []
    for place in sorted({_place(r) for r in chosen}):
        seen = chosen if mode == "validation" else [r for r in chosen if _place(r) != place]
        choice = best(seen, metric)
        if choice is not None:
            scores.append(CropScore(*place, choice, _value_on(chosen, choice, place)))
    return scores


def _value_on(results: Iterable[Result], choice: Choice, place: tuple[str, str]) -> float:
    own = [
        r
        for r in results
        if _place(r) == place and (r.setup, r.iteration, r.raw_dataset) == choice.configuration
    ]
    return by_crop([r for r in own if not math.isnan(r.value)]).get(place, math.nan)


@dataclass(frozen=True)
class Convergence:
    """Whether training of a class can stop.

    Attributes
    ----------
    state
        ``converged``; ``empty``: still nothing is predicted; ``limit``: trained as long as is
        allowed; ``running``: go on.
    iteration
        The checkpoint at which that was found.
    """

    state: Literal["converged", "empty", "limit", "running"]
    iteration: int


def convergence(curves: Mapping[str, Mapping[int, float]]) -> Convergence:
    """Apply the paper's rule for ending a training.

    Checkpoints are scored every 25 000 iterations. Training has converged at the first one, from
    700 000 on, that is no better than the one before, which is worse than the one before it, by
    every metric. It ends at 500 000 if nothing was predicted until then (every score is NaN, or,
    of overlap with a truth that is not empty, 0), and at 2 000 000 in any case.

    Parameters
    ----------
    curves
        Mean score by iteration, for each metric (`CONVERGENCE_METRICS` in the paper).

    Raises
    ------
    ConfigError
        The metrics were scored at different iterations, or never.
    """
    iterations = sorted(next(iter(curves.values()), {}))
    if not iterations or any(sorted(curve) != iterations for curve in curves.values()):
        raise ConfigError(
            f"{', '.join(curves) or 'no metric'}: scores of the same checkpoints are needed",
            hint="score every checkpoint by every metric",
        )
    early = [
        _of_nothing(metric, curve[k])
        for metric, curve in curves.items()
        for k in iterations
        if k <= EMPTY_BY
    ]
    if iterations[-1] >= EMPTY_BY and early and all(early):
        return Convergence("empty", next(k for k in iterations if k >= EMPTY_BY))
    for before, last, now in zip(iterations, iterations[1:], iterations[2:], strict=False):
        if now >= EARLIEST and all(
            _stalls(metric, curve[before], curve[last], curve[now])
            for metric, curve in curves.items()
        ):
            return Convergence("converged", now)
    if iterations[-1] >= LATEST:
        return Convergence("limit", LATEST)
    return Convergence("running", iterations[-1])


def _of_nothing(metric: str, value: float) -> bool:
    """Tell whether a score may be that of an empty prediction."""
    return math.isnan(value) or (value == 0 and higher_is_better(metric))


def _stalls(metric: str, before: float, last: float, now: float) -> bool:
    """Tell whether a metric got worse and did not recover; NaN tells nothing."""
    if any(math.isnan(v) for v in (before, last, now)):
        return False
    sign = 1 if higher_is_better(metric) else -1
    return sign * now <= sign * last and sign * last < sign * before


def curves(results: Sequence[Result], setup: str, label: str) -> dict[str, dict[int, float]]:
    """Mean score over crops by iteration, for the metrics of the convergence rule."""
    out: dict[str, dict[int, float]] = {}
    for metric in CONVERGENCE_METRICS:
        by_iteration: dict[int, list[Result]] = {}
        for r in results:
            if (r.setup, r.label, r.metric) == (setup, label, metric):
                by_iteration.setdefault(r.iteration, []).append(r)
        out[metric] = {
            k: _mean(real) if (real := [r for r in rs if not math.isnan(r.value)]) else math.nan
            for k, rs in sorted(by_iteration.items())
        }
    return out


def incomplete(results: Sequence[Result]) -> dict[tuple[str, str], tuple[int, ...]]:
    """Find iterations that some crop or metric of a class and setup lacks, by (setup, label)."""
    out = {}
    for pair in sorted({(r.setup, r.label) for r in results}):
        mine = [r for r in results if (r.setup, r.label) == pair]
        wanted = {r.iteration for r in mine}
        groups: dict[tuple[str, ...], set[int]] = {}
        for r in mine:
            groups.setdefault((*_place(r), r.metric, r.raw_dataset), set()).add(r.iteration)
        lacking = sorted(set().union(*(wanted - found for found in groups.values())))
        if lacking:
            out[pair] = tuple(lacking)
    return out


def compare(
    results: Sequence[Result], arms: Mapping[str, Arm], metric: str, mode: Mode
) -> list[dict[str, Any]]:
    """Put arms side by side, a row for every class and crop that all of them have.

    Parameters
    ----------
    arms
        Which results belong to each arm, by name; the best checkpoint is chosen within each.

    Returns
    -------
    list
        Rows with ``label``, ``sample`` and ``crop``, and for each arm ``setup``, ``iteration``,
        ``raw_dataset``, ``metric_params``, ``value`` with ``_<arm>`` behind.
    """
    rows = []
    for label in sorted({r.label for r in results}):
        mine = [r for r in results if r.label == label and r.metric == metric]
        found = {name: _arm_scores(mine, arm, metric, mode) for name, arm in arms.items()}
        shared = set.intersection(*(set(scores) for scores in found.values())) if found else set()
        for sample, crop in sorted(shared):
            row: dict[str, Any] = {"label": label, "sample": sample, "crop": crop, "metric": metric}
            for name in arms:
                row |= {f"{k}_{name}": v for k, v in found[name][sample, crop].items()}
            rows.append(row)
    return rows


def _arm_scores(
    results: Sequence[Result], arm: Arm, metric: str, mode: Mode
) -> dict[tuple[str, str], dict[str, Any]]:
    mine = [r for r in results if arm(r)]
    params = mine[0].metric_params if mine else "{}"
    return {
        (score.sample, score.crop): {
            "setup": score.choice.setup,
            "iteration": score.choice.iteration,
            "raw_dataset": score.choice.raw_dataset,
            "metric_params": params,
            "value": score.value,
        }
        for score in crop_scores(mine, metric, mode)
    }


def compare_same(
    results: Sequence[Result], arms: Mapping[str, Arm], metric: str
) -> list[dict[str, Any]]:
    """Put arms side by side checkpoint by checkpoint: nothing is chosen.

    Returns
    -------
    list
        As `compare`, a row for every class, crop and checkpoint that all arms have.
    """
    groups: dict[tuple[Any, ...], dict[str, list[Result]]] = {}
    for r in results:
        key = (r.label, *_place(r), r.setup, r.iteration, r.raw_dataset)
        for name in (n for n, arm in arms.items() if r.metric == metric and arm(r)):
            groups.setdefault(key, {}).setdefault(name, []).append(r)
    rows = []
    for key in sorted(key for key, group in groups.items() if len(group) == len(arms)):
        label, sample, crop, setup, iteration, raw_dataset = key
        row: dict[str, Any] = {"label": label, "sample": sample, "crop": crop, "metric": metric}
        for name in arms:
            mine = groups[key][name]
            row |= {
                f"setup_{name}": setup,
                f"iteration_{name}": iteration,
                f"raw_dataset_{name}": raw_dataset,
                f"metric_params_{name}": mine[0].metric_params,
                f"value_{name}": by_crop(mine)[sample, crop],
            }
        rows.append(row)
    return rows
