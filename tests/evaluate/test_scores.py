from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import distance_transform_edt, gaussian_filter

from clemreg.blocks import nearest
from clemreg.errors import ConfigError, DataError, GridError
from clemreg.evaluate import scores
from clemreg.evaluate.scores import METRICS, ScoreOptions, higher_is_better, score_masks

SHAPE, SPACING = (11, 17, 23), (5.24, 4.0, 4.0)
OF_ONE = ("dice", "jaccard", "false_discovery_rate")


def blob(seed: int, share: float = 0.3) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).random(SHAPE), 1.5)
    return noise > np.quantile(noise, 1 - share)


def one_voxel(where: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[where] = True
    return mask


def speckle(seed: int, share: float) -> np.ndarray:
    return np.random.default_rng(seed).random(SHAPE) < share


FULL, EMPTY = np.ones(SHAPE, dtype=bool), np.zeros(SHAPE, dtype=bool)
PAIRS = {
    "blobs": (blob(1), blob(2)),
    "speckle": (speckle(3, 0.02), blob(4)),
    "same": (blob(5), blob(5)),
    "inside": (blob(6, 0.1), blob(6, 0.4)),
    "far corners": (one_voxel((0, 0, 0)), one_voxel((10, 16, 22))),
    "one voxel in full": (one_voxel((3, 9, 11)), FULL),
    "full on one voxel": (FULL, one_voxel((3, 9, 11))),
    "complement": (blob(7), ~blob(7)),
    "both full": (FULL, FULL),
}


def itk(mask: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(SPACING[::-1])
    return image


@pytest.mark.parametrize("name", PAIRS)
def test_overlap_and_hausdorff_agree_with_simpleitk(name):
    p, t = PAIRS[name]
    found = score_masks(p, t, SPACING)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(itk(p), itk(t))
    assert found["dice"] == pytest.approx(overlap.GetDiceCoefficient())
    assert found["jaccard"] == pytest.approx(overlap.GetJaccardCoefficient())
    assert found["false_negative_rate"] == pytest.approx(overlap.GetFalseNegativeError())
    discoveries = overlap.GetFalseDiscoveryRate()
    assert found["false_discovery_rate"] == pytest.approx(discoveries)
    if not t.all():
        assert found["false_positive_rate"] == pytest.approx(overlap.GetFalsePositiveError())
    hausdorff = sitk.HausdorffDistanceImageFilter()
    hausdorff.Execute(itk(p), itk(t))
    assert found["hausdorff"] == pytest.approx(hausdorff.GetHausdorffDistance(), rel=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_distances_agree_with_scipy(name):
    p, t = PAIRS[name]
    found = score_masks(p, t, SPACING, options=ScoreOptions(tolerance_nm=9.0, clip_nm=20.0))
    positive = distance_transform_edt(~t, sampling=SPACING)[p]
    negative = distance_transform_edt(~p, sampling=SPACING)[t]
    for suffix, top in (("", np.inf), ("_clipped", 20.0)):
        a, b = positive.clip(max=top).mean(), negative.clip(max=top).mean()
        assert found[f"mean_false_positive_distance{suffix}"] == pytest.approx(a, rel=1e-6)
        assert found[f"mean_false_negative_distance{suffix}"] == pytest.approx(b, rel=1e-6)
        assert found[f"mean_false_distance{suffix}"] == pytest.approx((a + b) / 2, rel=1e-6)
    fp, fn = (positive > 9).sum(), (negative > 9).sum()
    tp = (p | t).sum() - fp - fn
    assert found["precision_with_tolerance"] == pytest.approx(tp / (tp + fp))
    assert found["recall_with_tolerance"] == pytest.approx(tp / (tp + fn))
    assert found["f1_score_with_tolerance"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert found["false_negative_rate_with_tolerance"] == pytest.approx(fn / t.sum())
    if not t.all():
        assert found["false_positive_rate_with_tolerance"] == pytest.approx(fp / (~t).sum())


@pytest.mark.parametrize("name", PAIRS)
def test_information_agrees_with_scikit_image(name):
    from skimage.metrics import variation_of_information

    p, t = PAIRS[name]
    expected = sum(variation_of_information(t.astype(int), p.astype(int)))
    assert score_masks(p, t, SPACING)["voi"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_rates_follow_from_the_confusion_matrix(name):
    from scipy.stats import hmean

    p, t = PAIRS[name]
    found = score_masks(p, t, SPACING)
    tp, fp, fn, tn = (p & t).sum(), (p & ~t).sum(), (~p & t).sum(), (~p & ~t).sum()
    assert found["precision"] == pytest.approx(tp / (tp + fp))
    assert found["recall"] == pytest.approx(tp / (tp + fn))
    assert found["f1_score"] == pytest.approx(hmean([tp / (tp + fp), tp / (tp + fn)]))
    assert found["f1_score"] == pytest.approx(found["dice"])
    assert found["false_discovery_rate"] == pytest.approx(1 - found["precision"])
    if t.all():
        assert math.isnan(found["false_positive_rate"])
        assert math.isnan(found["false_positive_rate_with_tolerance"])
    else:
        assert found["false_positive_rate"] == pytest.approx(fp / (fp + tn))


@pytest.mark.parametrize(
    ("p", "t", "known"),
    [
        (EMPTY, EMPTY, {"hausdorff": 0.0}),
        (blob(1), EMPTY, {"dice": 0.0, "jaccard": 0.0, "false_discovery_rate": 1.0}),
        (EMPTY, blob(1), {"dice": 0.0, "jaccard": 0.0, "false_discovery_rate": 0.0}),
    ],
)
def test_empty_masks_have_few_scores(p, t, known):
    found = score_masks(p, t, SPACING)
    assert tuple(found) == METRICS
    assert {name: value for name, value in found.items() if not math.isnan(value)} == known
    assert scores.to_json(found)["voi"] is None


def test_masks_without_common_voxel_have_no_f1_but_a_tolerant_one():
    p, t = one_voxel((3, 9, 11)), one_voxel((4, 9, 11))
    found = score_masks(p, t, SPACING, options=ScoreOptions(tolerance_nm=5.24))
    assert found["f1_score"] == 0
    assert found["f1_score_with_tolerance"] == 1  # one z step away, the longest side of a voxel
    strict = score_masks(p, t, SPACING, options=ScoreOptions(tolerance_nm=5.2))
    assert strict["f1_score_with_tolerance"] == 0


def test_unannotated_voxels_are_left_out_or_count_as_background():
    p, t = blob(1), blob(2)
    annotated = np.zeros(SHAPE, dtype=np.uint8)
    annotated[2:9, 3:15, 4:] = 7
    cut = (slice(2, 9), slice(3, 15), slice(4, None))
    without = score_masks(p, t, SPACING, annotated=annotated)
    assert without == pytest.approx(score_masks(p[cut], t[cut], SPACING), rel=1e-9)
    paper = score_masks(p, t & (annotated > 0), SPACING)
    assert paper["precision"] < without["precision"]
    with pytest.raises(DataError, match="no voxel is annotated"):
        score_masks(p, t, SPACING, annotated=np.zeros(SHAPE))


@pytest.mark.parametrize(("block", "halo"), [((3, 4, 5), 1), ((1, 17, 2), 2), ((11, 17, 23), 64)])
@pytest.mark.parametrize("name", ["blobs", "far corners", "speckle"])
def test_blocks_do_not_matter(monkeypatch, name, block, halo):
    whole = score_masks(*PAIRS[name], SPACING)
    monkeypatch.setattr(nearest, "BLOCK", block)
    monkeypatch.setattr(nearest, "FIRST_HALO", halo)
    monkeypatch.setattr(scores, "_BLOCK", block)
    assert score_masks(*PAIRS[name], SPACING) == pytest.approx(whole, rel=1e-12)


def test_only_the_metrics_asked_for(monkeypatch):
    monkeypatch.setattr(scores, "nearest_distances", None)  # none of these needs distances
    assert tuple(score_masks(blob(1), blob(2), SPACING, options=ScoreOptions(OF_ONE))) == OF_ONE


def test_which_way_is_better():
    better = {name for name in METRICS if higher_is_better(name)}
    tolerant = {f"{name}_with_tolerance" for name in ("precision", "recall", "f1_score")}
    assert better == {"dice", "jaccard", "precision", "recall", "f1_score"} | tolerant
    assert len(METRICS) == len(set(METRICS)) == 21


def test_bad_input():
    with pytest.raises(GridError, match=r"prediction has shape \(11, 17, 22\)"):
        score_masks(EMPTY[:, :, 1:], EMPTY, SPACING)
    with pytest.raises(GridError, match=r"\(z, y, x\)"):
        score_masks(EMPTY[0], EMPTY[0], SPACING)
    with pytest.raises(GridError, match="positive"):
        score_masks(EMPTY, EMPTY, (4, 0, 4))
    with pytest.raises(DataError, match="NaN"):
        score_masks(np.full(SHAPE, np.nan), EMPTY, SPACING)
    with pytest.raises(ConfigError, match="no metric 'Dice'"):
        ScoreOptions(("Dice",))
    with pytest.raises(ConfigError, match="tolerance"):
        ScoreOptions(tolerance_nm=math.nan)
