from __future__ import annotations

import math
from dataclasses import replace

import pytest

from clemreg.errors import ConfigError, MissingError
from clemreg.evaluate.results import Result
from clemreg.evaluate.selection import (
    best,
    choose,
    compare,
    convergence,
    crop_scores,
    curves,
    incomplete,
)

BASE = Result(
    "p", "d", "setup03", 500_000, "mito", "1", "volumes/raw/s0", "n5", "jrc_hela-2", 127.0,
    False, "dice", "{}", 0.5,
)  # fmt: skip


def table(scores: dict[tuple[str, int], dict[str, float]], **more) -> list[Result]:
    """From (setup, iteration) to score by crop."""
    return [
        replace(BASE, setup=s, iteration=i, crop=c, value=v, **more)
        for (s, i), by_crop in scores.items()
        for c, v in by_crop.items()
    ]


# The best on crop 1 and 2 together is b; without crop 1 it is c, without crop 2 it is a.
SCORES = {
    ("a", 500_000): {"1": 0.9, "2": 0.1},
    ("b", 525_000): {"1": 0.7, "2": 0.7},
    ("c", 550_000): {"1": 0.2, "2": 0.9},
}


def test_best_mean_over_crops():
    choice = best(table(SCORES), "dice")
    assert choice.configuration == ("b", 525_000, "volumes/raw/s0")
    assert choice.value == pytest.approx(0.7)
    assert choice.crops == ("1", "2")
    low = best(table(SCORES, metric="voi"), "voi")  # here less is better
    assert low.setup == "a"
    assert low.value == pytest.approx(0.5)


def test_ties_go_to_the_earlier_and_nan_is_left_out():
    scores = {("x", 600_000): {"1": 0.8, "2": 0.8}, ("z", 575_000): {"1": 0.8, "2": math.nan}}
    assert best(table(scores), "dice").iteration == 575_000
    assert best(table({("x", 1): {"1": math.nan}}), "dice") is None
    with pytest.raises(ConfigError, match="one class"):
        best([BASE, replace(BASE, label="er")], "dice")


def test_test_mode_never_sees_the_crop_it_scores():
    validation = crop_scores(table(SCORES), "dice", "validation")
    assert [(s.crop, s.choice.setup, s.value) for s in validation] == [
        ("1", "b", 0.7), ("2", "b", 0.7),
    ]  # fmt: skip
    test = crop_scores(table(SCORES), "dice", "test")
    assert [(s.crop, s.choice.setup, s.value) for s in test] == [("1", "c", 0.2), ("2", "a", 0.1)]
    assert test[0].choice.crops == ("2",)
    # Whatever happens to the score on crop 1, the choice for crop 1 stays.
    changed = [replace(r, value=0.99) if r.crop == "1" else r for r in table(SCORES)]
    assert crop_scores(changed, "dice", "test")[0].choice == test[0].choice
    assert crop_scores(table({("a", 1): {"1": 0.5}}), "dice", "test") == []


def test_crops_of_one_name_in_two_samples_are_two():
    results = [
        *table({("a", 1): {"1": 0.9}, ("b", 2): {"1": 0.5}}),
        *table({("a", 1): {"1": 0.2}, ("b", 2): {"1": 0.7}}, parent_dataset_id="other"),
    ]
    assert best(results, "dice").crops == ("1", "1")
    validation = crop_scores(results, "dice", "validation")
    assert [(s.sample, s.crop, s.value) for s in validation] == [
        ("jrc_hela-2", "1", 0.5), ("other", "1", 0.7),
    ]  # fmt: skip
    test = crop_scores(results, "dice", "test")
    assert [(s.sample, s.choice.setup, s.value) for s in test] == [
        ("jrc_hela-2", "b", 0.5), ("other", "a", 0.2),
    ]  # fmt: skip
    arms = {"a": lambda r: r.setup == "a", "b": lambda r: r.setup == "b"}
    rows = compare(results, arms, "dice", "validation")
    assert [(r["sample"], r["value_a"], r["value_b"]) for r in rows] == [
        ("jrc_hela-2", 0.9, 0.5), ("other", 0.2, 0.7),
    ]  # fmt: skip


def test_two_predictions_of_one_checkpoint_are_not_averaged():
    results = table({("a", 1): {"1": 0.9, "2": 0.5}})
    again = [replace(r, path="elsewhere") for r in results]
    assert best([*results, again[0]], "dice").value == pytest.approx(0.7)  # the same score once
    again[0] = replace(again[0], value=0.1)
    with pytest.raises(ConfigError, match=r"two scores on crop 1: 0\.9 of p d, 0\.1 of e"):
        best([*results, *again], "dice")
    with pytest.raises(ConfigError, match="threshold"):
        curves([*results, replace(results[0], threshold=140.0)], "a", "mito")


def test_a_choice_for_each_class_and_sample():
    results = [
        *table(SCORES),
        *table({("a", 1): {"3": 0.2}, ("b", 1): {"3": 0.1}}, parent_dataset_id="jrc_jurkat-1"),
        *table({("c", 1): {"1": math.nan}}, label="er"),
    ]
    found = choose(results, "dice")
    assert {k: c.setup for k, c in found.items()} == {
        ("mito", "jrc_hela-2"): "b", ("mito", "jrc_jurkat-1"): "a",
    }  # fmt: skip
    with pytest.raises(MissingError, match="no score of jaccard"):
        choose(results, "jaccard")


def curve(values, start=600_000):
    return {start + 25_000 * i: v for i, v in enumerate(values)}


def test_convergence_needs_both_metrics():
    dice = curve([0.1, 0.2, 0.3, 0.4, 0.5, 0.45, 0.45, 0.6])
    falling = curve([9, 8, 7, 6, 5, 6, 6, 4])
    # The first checkpoint no better than a worse one: the seventh, at 750 000.
    found = convergence({"dice": dice, "mean_false_distance": falling})
    assert (found.state, found.iteration) == ("converged", 750_000)
    other = convergence({"dice": dice, "mean_false_distance": curve([9, 8, 7, 6, 5, 4, 3, 2])})
    assert (other.state, other.iteration) == ("running", 775_000)
    early = {k - 400_000: v for k, v in dice.items()}
    assert convergence({"dice": early, "mean_false_distance": early}).state == "running"
    with_nan = {**falling, 725_000: math.nan}
    assert convergence({"dice": dice, "mean_false_distance": with_nan}).state == "running"


def test_training_ends_when_nothing_comes_or_at_the_limit():
    nothing = curve([math.nan] * 21, start=0)
    found = convergence({"dice": nothing, "mean_false_distance": nothing})
    assert (found.state, found.iteration) == ("empty", 500_000)
    missed = curve([0.0] * 21, start=0)  # Dice of nothing with something
    found = convergence({"dice": missed, "mean_false_distance": nothing})
    assert (found.state, found.iteration) == ("empty", 500_000)
    beside = curve([900.0] * 21, start=0)
    assert convergence({"dice": missed, "mean_false_distance": beside}).state == "running"
    short = curve([math.nan] * 5, start=0)
    assert convergence({"dice": short, "mean_false_distance": short}).state == "running"
    rising = curve([i / 100 for i in range(81)], start=0)
    falling = {k: -v for k, v in rising.items()}
    found = convergence({"dice": rising, "mean_false_distance": falling})
    assert (found.state, found.iteration) == ("limit", 2_000_000)
    for bad in ({}, {"dice": {}}, {"dice": rising, "mean_false_distance": short}):
        with pytest.raises(ConfigError, match="same checkpoints"):
            convergence(bad)


def test_curves_are_means_over_crops():
    results = [
        *table({("a", 25_000): {"1": 0.2, "2": 0.4}, ("a", 50_000): {"1": math.nan}}),
        *table({("a", 25_000): {"1": 7.0}}, metric="mean_false_distance"),
        *table({("b", 25_000): {"1": 0.9}}),
    ]
    found = curves(results, "a", "mito")
    assert found["dice"][25_000] == pytest.approx(0.3)
    assert math.isnan(found["dice"][50_000])
    assert found["mean_false_distance"] == {25_000: 7.0}
    assert incomplete(results) == {("a", "mito"): (50_000,)}
    assert incomplete(table({("a", 1): {"1": 0.5, "2": 0.5}})) == {}


def test_a_crop_of_one_sample_does_not_stand_in_for_that_of_another():
    """Sample b has crop 1 at every checkpoint, sample a lacks it at the middle one."""
    first = table({("s", k): {"1": 0.5} for k in (25_000, 75_000)}, parent_dataset_id="a")
    second = table({("s", k): {"1": 0.7} for k in (25_000, 50_000, 75_000)}, parent_dataset_id="b")
    assert incomplete([*first, *second]) == {("s", "mito"): (50_000,)}


def test_arms_side_by_side():
    results = [
        *table({("a", 1): {"1": 0.5, "2": 0.6}, ("b", 2): {"1": 0.7, "2": 0.8}}),
        *table({("a", 1): {"1": 0.9, "2": 0.1, "3": 1.0}}, refined=True),
        *table({("a", 1): {"1": 0.9}}, label="er"),
    ]
    arms = {"raw": lambda r: not r.refined, "refined": lambda r: r.refined}
    rows = compare(results, arms, "dice", "validation")
    assert [(r["label"], r["crop"], r["value_raw"], r["value_refined"]) for r in rows] == [
        ("mito", "1", 0.7, 0.9), ("mito", "2", 0.8, 0.1),
    ]  # fmt: skip
    assert (rows[0]["setup_raw"], rows[0]["iteration_refined"]) == ("b", 1)
