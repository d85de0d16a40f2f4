from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label

from clemreg.errors import ConfigError, DataError, GridError
from clemreg.evaluate import instances
from clemreg.evaluate.instances import THRESHOLDS, score_instances

SHAPE = (11, 17, 23)
FAR = 2**40  # ids above 2^32, with gaps


def objects(seed: int, share: float = 0.25) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).random(SHAPE), 1.2)
    ids = label(noise > np.quantile(noise, 1 - share))[0].astype(np.uint64)
    return np.where(ids > 0, ids * 7 + FAR, 0)


def noisy(ids: np.ndarray, seed: int) -> np.ndarray:
    """Move, drop, split: related to `ids`, not equal."""
    moved = np.roll(ids, 1, axis=2)
    moved[:, : SHAPE[1] // 2] *= 3
    moved[np.random.default_rng(seed).random(SHAPE) < 0.1] = 0
    return moved


def best_matching(p: np.ndarray, t: np.ndarray, threshold: float) -> int:
    """Most pairs that can match, by linear assignment on the pairs allowed."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = (np.unique(a[a > 0]) for a in (p, t))
    allowed = np.zeros((len(rows), len(columns)))
    for (i, a), (j, b) in itertools.product(enumerate(rows), enumerate(columns)):
        allowed[i, j] = ((p == a) & (t == b)).sum() / ((p == a) | (t == b)).sum() >= threshold
    return int(allowed[linear_sum_assignment(-allowed)].sum())


@pytest.mark.parametrize("seed", range(4))
def test_against_scikit_image_and_linear_assignment(seed):
    from skimage.metrics import variation_of_information

    t = objects(seed)
    p = noisy(t, seed)
    found = score_instances(p, t)
    n, m = (len(np.unique(a[a > 0])) for a in (p, t))
    assert (found.predicted_objects, found.true_objects) == (n, m)
    dense = [np.unique(a, return_inverse=True)[1] for a in (t, p)]
    split, merge = variation_of_information(*dense)  # H(p | t), H(t | p)
    assert found.voi_split == pytest.approx(split, abs=1e-12)
    assert found.voi_merge == pytest.approx(merge, abs=1e-12)
    assert split != pytest.approx(merge)
    matches = [best_matching(p, t, threshold) for threshold in THRESHOLDS]
    assert found.matched_objects == matches[0] > 0
    assert found.instance_precision == pytest.approx(matches[0] / n)
    assert found.instance_recall == pytest.approx(matches[0] / m)
    assert found.instance_f1 == pytest.approx(2 * matches[0] / (n + m))
    expected = np.mean([k / (n + m - k) for k in matches])
    assert found.average_precision == pytest.approx(expected)


def test_two_objects_by_hand():
    t = np.zeros(SHAPE, dtype=np.uint16)
    t[2:6, 3:9, 4:10] = 60_000
    t[8:, :4, :4] = 5
    p = np.zeros(SHAPE, dtype=np.int64)
    p[2:6, 3:9, 5:11] = 1  # 120 of 168 voxels shared
    p[8:, :2, :4] = 2  # half of the second
    found = score_instances(p, t, threshold=0.6)
    assert found.matched_objects == 1
    assert found.mean_matched_iou == pytest.approx(120 / 168)
    assert found.instance_f1 == 0.5
    # Both match at 0.5, one up to 0.7, none above.
    assert found.average_precision == pytest.approx((1 + 4 / 3) / 10)


def test_a_match_is_one_to_one_even_at_exactly_one_half():
    t = np.zeros(SHAPE, dtype=np.uint8)
    t[2:6, 3:9, 4:10] = 1
    p = t.copy()
    p[2:4, 3:9, 4:10] = 2
    assert score_instances(p, t).matched_objects == 1
    assert score_instances(t, p).matched_objects == 1
    assert score_instances(p, t, threshold=0.2).matched_objects == 1


def test_degenerate_volumes():
    t, nothing = objects(1), np.zeros(SHAPE, dtype=np.uint8)
    empty = score_instances(nothing, nothing)
    assert (empty.predicted_objects, empty.voi_split, empty.voi_merge) == (0, 0, 0)
    assert math.isnan(empty.instance_f1)
    assert math.isnan(empty.average_precision)
    assert empty.to_json()["instance_f1"] is None
    missed = score_instances(nothing, t)
    assert (missed.instance_recall, missed.instance_f1, missed.average_precision) == (0, 0, 0)
    assert math.isnan(missed.instance_precision)
    same = score_instances(t, t)
    assert (same.instance_f1, same.average_precision, same.voi_split) == (1, 1, 0)


def test_unannotated_voxels_are_left_out():
    t = objects(2)
    p = noisy(t, 2)
    annotated = np.zeros(SHAPE, dtype=bool)
    annotated[:, 4:, :15] = True
    cut = score_instances(p[:, 4:, :15], t[:, 4:, :15])
    assert score_instances(p, t, annotated=annotated) == cut
    with pytest.raises(DataError, match="no voxel is annotated"):
        score_instances(p, t, annotated=np.zeros(SHAPE))


@pytest.mark.parametrize("block", [(3, 4, 5), (11, 1, 23)])
def test_blocks_do_not_matter(monkeypatch, block):
    t = objects(3)
    p = noisy(t, 3)
    whole = score_instances(p, t).to_json()
    monkeypatch.setattr(instances, "_BLOCK", block)
    assert score_instances(p, t).to_json() == pytest.approx(whole, rel=1e-12)


def test_bad_input():
    t = objects(1)
    with pytest.raises(GridError, match="shapes"):
        score_instances(t[1:], t)
    with pytest.raises(DataError, match="float64 values"):
        score_instances(t * 0.5, t)
    with pytest.raises(DataError, match="int64 values"):
        score_instances(t.astype(np.int64) - 1, t)
    with pytest.raises(ConfigError, match="threshold"):
        score_instances(t, t, threshold=0)
