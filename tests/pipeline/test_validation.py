from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from clemreg.errors import ConfigError
from clemreg.evaluate.results import Result
from clemreg.evaluate.scores import ScoreOptions, score_masks
from clemreg.pipeline.validation import (
    Prediction,
    compare_as_published,
    validate,
)
from clemreg.segment.classes import AnnotatedIds
from clemreg.segment.groundtruth import CosemCrop
from clemreg.space.grid import Grid
from clemreg.volume import Labels, Volume

EM = Grid((11, 17, 23), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")
FINE = Grid((12, 18, 22), (2.62, 2.0, 2.0), (310.48, -192.0, 82.0), "em")
PLACE = (slice(2, 8), slice(2, 11), slice(3, 14))


def crop(name="crop7", present=(3, 4, 35), absent=(5, 14, 15), seed=0) -> CosemCrop:
    ids = np.random.default_rng(seed).choice([3, 4, 35], FINE.shape).astype(np.uint64)
    ids[:, :5] = 0
    looked = AnnotatedIds(frozenset(present), frozenset(absent))
    return CosemCrop(name, {"all": Labels(ids, FINE)}, {}, looked)


def prediction(label="mito", **more) -> Prediction:
    values = np.random.default_rng(1).integers(0, 255, EM.shape).astype(np.uint8)
    return Prediction(
        Volume(values, EM), "p.n5", label, label, "setup03", 625_000,
        parent_dataset_id="jrc_hela-2", **more,
    )  # fmt: skip


def test_scores_on_the_crops_where_someone_looked():
    crops = [crop(), crop("crop8", present=(3, 35), absent=())]
    pred = prediction()
    results = validate(pred, crops)
    assert {r.crop for r in results} == {"7"}  # in crop 8 nobody looked for ids 4 and 5
    assert len(results) == 21
    ids = crops[0].sets["all"].read()[::2, ::2, ::2]
    p = pred.volume.read()[PLACE] >= 127
    expected = score_masks(p, np.isin(ids, (3, 4)), EM.spacing_nm, annotated=ids > 0)
    assert {r.metric: r.value for r in results} == pytest.approx(expected, nan_ok=True)
    paper = validate(pred, crops, ScoreOptions(("dice",)), unannotated="background")
    whole = score_masks(p, np.isin(ids, (3, 4)), EM.spacing_nm, options=ScoreOptions(("dice",)))
    assert paper[0].value == pytest.approx(whole["dice"])
    assert paper[0].value < expected["dice"]
    assert json.loads(paper[0].metric_params) == {"unannotated": "background"}
    assert {r.metric_params for r in results if r.metric == "dice"} == {"{}"}
    refined = validate(replace(pred, refined=True), crops, ScoreOptions(("recall",)))
    assert refined[0].value > 0.98  # everything but 0


def test_absent_is_known_to_be_empty():
    results = {r.metric: r.value for r in validate(prediction("LD"), [crop()])}
    assert results["dice"] == 0
    assert math.isnan(results["recall"])
    said_absent = crop(present=(35,), absent=(3, 4, 5))  # though its voxels hold ids
    assert {r.metric: r.value for r in validate(prediction(), [said_absent])}["dice"] == 0


BASE = Result(
    "p", "d", "setup03", 1, "mito", "1", "volumes/raw/s0", "n5", "x", 127.0, False, "dice",
    "{}", 0.5,
)  # fmt: skip


def scored(setup: str, value: float, **more) -> list[Result]:
    name = more.pop("named", f"setup{setup}")
    return [replace(BASE, setup=name, value=value, crop=c, **more) for c in ("1", "2")]


def test_comparisons_of_the_paper():
    coarse = {"raw_dataset": "volumes/subsampled/raw/0"}
    results = [
        *scored("03", 0.6), *scored("25", 0.7), *scored("01", 0.65), *scored("63", 0.99),
        *scored("04", 0.5, **coarse), *scored("26.1", 0.55, **coarse), *scored("04", 0.98),
        *scored("25", 0.8, refined=True),
    ]  # fmt: skip
    fine = compare_as_published(results, "4nm-vs-8nm", "dice")
    assert [(r["crop"], r["setup_4nm"], r["value_8nm"]) for r in fine] == [
        ("1", "setup25", 0.55), ("2", "setup25", 0.55),
    ]  # fmt: skip
    older = [
        replace(r, raw_dataset="volumes/raw") if r.raw_dataset == "volumes/raw/s0" else r
        for r in results
    ]
    assert [r["value_4nm"] for r in compare_as_published(older, "4nm-vs-8nm", "dice")] == [
        r["value_4nm"] for r in fine
    ]
    # Each with what was made of it, though there are better raw ones, and others in the sample y.
    more = [*results, *(replace(r, parent_dataset_id="y", value=0.3) for r in results[:2])]
    refined = compare_as_published(more, "raw-vs-refined", "dice")
    assert [(r["sample"], r["crop"], r["setup_raw"], r["value_raw"]) for r in refined] == [
        ("x", "1", "setup25", 0.7), ("x", "2", "setup25", 0.7),
    ]  # fmt: skip
    assert [(r["setup_refined"], r["value_refined"]) for r in refined] == [("setup25", 0.8)] * 2
    unscored = [replace(r, value=math.nan) for r in results if r.refined or r.setup == "setup25"]
    assert all(math.isnan(r["value_raw"]) for r in compare_as_published(
        [*unscored, *unscored], "raw-vs-refined", "dice"
    ))  # fmt: skip
    groups = compare_as_published(results, "all-vs-many-vs-few", "dice")[0]
    assert [groups[f"value_{g}"] for g in ("all", "many", "few")] == [0.65, 0.6, 0.7]
    with pytest.raises(ConfigError, match="no comparison 'best'"):
        compare_as_published(results, "best", "dice")
