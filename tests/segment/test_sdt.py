from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from clemreg.errors import DataError, GridError
from clemreg.segment.balance import balance_weights, weighted_loss
from clemreg.segment.classes import AnnotatedIds
from clemreg.segment.sdt import (
    LIMIT_NM,
    Target,
    combine,
    context_voxels,
    crop_targets,
    label_target,
    signed_distance_nm,
    unknown_target,
)

SHAPE = (9, 11, 13)
SPACINGS = [(2.62, 2.0, 2.0), (137.5, 60.0, 59.0)]  # the second reaches the limits


def blob(seed, share=0.3, shape=SHAPE) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).random(shape), 1.5)
    return noise > np.quantile(noise, 1 - share)


def distances_to(where: np.ndarray, shape, spacing) -> np.ndarray:
    """Of every voxel to the nearest of the listed (N, 3) ones, by looking at all of them."""
    points = np.stack(np.indices(shape), -1).reshape(-1, 3) * np.asarray(spacing)
    best = np.full(len(points), np.inf)
    for voxel in where * np.asarray(spacing):
        best = np.minimum(best, np.linalg.norm(points - voxel, axis=1))
    return best.reshape(shape)


def surrounded(mask: np.ndarray, beyond: bool) -> np.ndarray:
    """Voxels all of whose 26 neighbours are in the mask; voxel by voxel."""
    padded = np.pad(mask, 1, constant_values=beyond)
    out = mask.copy()
    for z, y, x in itertools.product(*map(range, mask.shape)):
        out[z, y, x] = padded[z : z + 3, y : y + 3, x : x + 3].all()
    return out


def brute_force(mask, annotated, spacing, grown):
    """The published recipe, step by step, without any distance transform."""
    border_voxels = np.argwhere(~surrounded(annotated, beyond=False))
    border = distances_to(border_voxels, SHAPE, spacing)
    edge = distances_to(np.argwhere(~surrounded(np.ones(SHAPE, bool), False)), SHAPE, spacing)
    if mask.all() or not mask.any():
        sdt, grown_by = (edge if mask.all() else -(edge + 1)), 0.0
    else:
        inner = distances_to(np.argwhere(~surrounded(mask, beyond=True)), SHAPE, spacing)
        sdt = inner - distances_to(np.argwhere(mask), SHAPE, spacing)
        grown_by = grown
    low, high = -138 - grown, 138 - grown
    sdt, border = sdt.clip(low, high), border.clip(low, high)
    off = (sdt >= 0) & (np.abs(sdt) >= border) & (border < high)
    off |= (sdt < 0) & (np.abs(sdt) >= border + 1) & (border + 1 < high)
    every_second = (slice(None, None, 2),) * 3
    return (sdt + grown_by)[every_second], (annotated & ~off)[every_second]


PARTLY = np.ones(SHAPE, dtype=bool)
PARTLY[:, :3] = False
PARTLY[4:6, 9, 11] = False
BOX = np.zeros(SHAPE, dtype=bool)
BOX[2:8, 1:, :9] = True
MASKS = {
    "blob": blob(1),
    "sheet": np.indices(SHAPE)[2] == 11,
    "one voxel": np.indices(SHAPE).sum(axis=0) == 0,
    "full": np.ones(SHAPE, bool),
    "empty": np.zeros(SHAPE, bool),
    "all but one voxel": np.indices(SHAPE).sum(axis=0) > 0,
}


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("grown", [0.0, 8.0])
@pytest.mark.parametrize("name", MASKS)
def test_against_brute_force(name, grown, spacing):
    for annotated in (np.ones(SHAPE, bool), PARTLY, BOX, np.zeros(SHAPE, bool)):
        found = label_target(MASKS[name], annotated, spacing, grown_nm=grown)
        distance, known = brute_force(MASKS[name], annotated, spacing, grown)
        np.testing.assert_allclose(found.distance_nm, distance, atol=1e-3, rtol=1e-6)
        np.testing.assert_array_equal(found.known, known)
        np.testing.assert_allclose(found.tanh, np.tanh(distance / 50), atol=1e-4)


def test_where_the_zero_lies():
    mask = np.zeros((9, 9, 40), dtype=bool)
    mask[:, :, 10:30] = True
    line = signed_distance_nm(mask, (2, 2, 2))[4, 4]
    assert line[8:13].tolist() == [-4, -2, 0, 2, 4]
    assert line[27:32].tolist() == [4, 2, 0, -2, -4]


def test_a_window_tells_no_more_than_the_whole():
    """What is known of a crop is what the uncut annotation would have said."""
    whole = blob(3, 0.15, (40, 44, 48))
    full = label_target(whole, np.ones(whole.shape, bool), (2, 2, 2))
    crop = (slice(8, 30), slice(10, 36), slice(12, 34))
    part = label_target(whole[crop], np.ones((22, 26, 22), bool), (2, 2, 2))
    thin = full.distance_nm[4:15, 5:18, 6:17]
    assert 0.2 < part.known.mean() < 1
    np.testing.assert_allclose(part.distance_nm[part.known], thin[part.known], atol=1e-4)
    assert np.abs(part.distance_nm - thin)[~part.known].max() > 2


def test_long_distances_are_clipped_and_known():
    mask = np.zeros((24, 24, 40), dtype=bool)
    mask[:, :, :4] = True
    found = label_target(mask, np.ones(mask.shape, bool), (20, 20, 20))
    assert found.distance_nm.min() == pytest.approx(-138)
    assert found.distance_nm[6, 6, :6].tolist() == [60, 20, -20, -60, -100, -138]
    assert found.known[6, 6, 4:17].all()  # 138 nm from mask and border
    assert not found.known[6, 6, -3:].any()
    assert pytest.approx(138) == LIMIT_NM
    assert context_voxels((4, 4, 4)) == (35, 35, 35)
    assert context_voxels((5.24, 4, 4)) == (27, 35, 35)


def test_classes_of_a_crop():
    rng = np.random.default_rng(0)
    ids = rng.choice([3, 4, 30, 36, 35], SHAPE, p=[0.2, 0.2, 0.1, 0.1, 0.4])
    ids[:, :2] = 0
    ribosomes = np.where(blob(5, 0.1), 34, 0)
    centrosome = np.where(blob(6, 0.1), 31, 0)
    sets = {"all": ids, "ribosomes": ribosomes, "centrosome": centrosome}
    looked = AnnotatedIds(frozenset({3, 4, 30, 36, 35, 34, 31}), frozenset({5, 14, 15}))
    classes = ("mito", "ribo", "ld", "golgi", "mt", "mito_mem", "cent", "cent_dapp")
    target, known = crop_targets(sets, looked, (2.62, 2, 2), classes)
    assert target.shape == known.shape == (8, 5, 6, 7)
    expected = [
        label_target(np.isin(ids, (3, 4, 5)), ids > 0, (2.62, 2, 2)),
        label_target(ribosomes > 0, ids > 0, (2.62, 2, 2), grown_nm=8),
        label_target(np.zeros(SHAPE, bool), ids > 0, (2.62, 2, 2)),  # absent: all outside
    ]
    for i, each in enumerate(expected):
        np.testing.assert_array_equal(target[i], each.tanh)
        np.testing.assert_array_equal(known[i], each.known)
    assert not known[3].any()  # nobody looked for Golgi
    assert not known[7].any()
    microtubule = label_target(np.isin(ids, (30, 36)), ids > 0, (2.62, 2, 2))
    cent = label_target(centrosome > 0, ids > 0, (2.62, 2, 2), grown_nm=2)
    both = np.maximum(microtubule.tanh, cent.tanh)
    assert (microtubule.known & cent.known).any()
    np.testing.assert_array_equal(target[4], both)
    np.testing.assert_array_equal(known[4], microtubule.known | cent.known)
    np.testing.assert_array_equal(known[6], cent.known)  # appendages unknown: centrosome alone
    with pytest.raises(DataError, match="not 'all'"):
        crop_targets({"ribosomes": ribosomes}, looked, (2, 2, 2), ("ribo",))


def test_combining_takes_the_largest_and_is_known_where_any_is():
    a = Target(np.float32([[[3, -2, -9, 4]]]), np.array([[[True, True, False, False]]]))
    b = Target(np.float32([[[-1, 5, -7, 8]]]), np.array([[[True, False, True, False]]]))
    found = combine([a, b])
    assert found.distance_nm.tolist() == [[[3, 5, -7, 8]]]
    assert found.known.tolist() == [[[True, True, True, False]]]
    with_unknown = combine([a, unknown_target((1, 1, 7))])
    np.testing.assert_array_equal(with_unknown.distance_nm, a.distance_nm)
    np.testing.assert_array_equal(with_unknown.known, a.known)
    with pytest.raises(GridError, match="not one"):
        label_target(np.zeros(SHAPE, bool), np.zeros((1, 2, 3), bool), (2, 2, 2))


def weights_by_loops(target, known, parent=None):
    """Weights of one class, voxel by voxel."""
    base, base_known = (target, known) if parent is None else parent
    total = positive = 0
    for t, k in zip(base.ravel(), base_known.ravel(), strict=True):
        total += k
        positive += k and t > 0
    share = min(max(positive / total, 0.05), 0.95) if total else 0.5
    out = np.zeros(target.shape)
    for where in np.ndindex(target.shape):
        if known[where] and base_known[where]:
            out[where] = 1 / (2 * share) if base[where] > 0 else 1 / (2 * (1 - share))
    return out


def test_weights_and_loss_against_loops():
    import torch

    rng = np.random.default_rng(0)
    classes = ("mito", "mito_mem", "golgi", "golgi_mem", "ribo", "ld")
    target = rng.uniform(-1, 1, (2, 6, 3, 4, 5)).astype(np.float32)
    target[:, 2] -= 0.97  # rarer than 0.05
    target[0, 0, 0, 0] = 0  # the outermost layer: outside
    known = rng.random(target.shape) < 0.7
    known[:, 5] = False
    pair = torch.from_numpy(target), torch.from_numpy(known)
    found = balance_weights(*pair, classes).numpy()
    parents = [None, 0, None, None, None, None]
    for i, p in enumerate(parents):
        parent = None if p is None else (target[:, p], known[:, p])
        expected = weights_by_loops(target[:, i], known[:, i], parent)
        np.testing.assert_allclose(found[:, i], expected, rtol=1e-6)
    assert found[:, 2].max() == pytest.approx(10)
    prediction = rng.normal(size=target.shape).astype(np.float32)
    loss = sum(
        (found[:, i] * (prediction[:, i] - target[:, i]) ** 2).sum() / (found[:, i] > 0).sum()
        for i in range(5)
    )
    tensors = (torch.from_numpy(a) for a in (prediction, target, found))
    assert float(weighted_loss(*tensors)) == pytest.approx(float(loss), rel=1e-5)
    with pytest.raises(GridError, match=r"not \(n, 6, z, y, x\)"):
        balance_weights(pair[0][0], pair[1][0], classes)


def test_unknown_voxels_have_no_gradient():
    import torch

    target = np.full((1, 1, 2, 2, 2), 0.5, dtype=np.float32)
    known = np.zeros(target.shape, dtype=bool)
    known[0, 0, 0] = True
    prediction = torch.zeros(target.shape, requires_grad=True)
    weights = balance_weights(torch.from_numpy(target), torch.from_numpy(known), ("er",))
    weighted_loss(prediction, torch.from_numpy(target), weights).backward()
    assert ((prediction.grad != 0).numpy() == known).all()
