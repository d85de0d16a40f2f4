from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from clemreg.errors import DataError, GridError
from clemreg.evaluate import overlap as overlap_module
from clemreg.evaluate.overlap import evaluate_overlap, normalised_cross_correlation
from clemreg.space.grid import Grid
from clemreg.volume import Volume

GRID = Grid((11, 17, 23), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "lm")


def volume(array, grid=GRID) -> Volume:
    return Volume(np.asarray(array), grid)


def blob(seed, threshold=0.55) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).random(GRID.shape), 2)
    return (noise - noise.min()) / np.ptp(noise) * 0.55 / threshold


def test_two_boxes_by_hand():
    a, b = np.zeros(GRID.shape), np.zeros(GRID.shape)
    a[2:8, 3:13, 4:14] = 1
    b[2:8, 3:13, 7:17] = 1  # three voxels of 4 nm further along x
    found = evaluate_overlap(volume(a), volume(b))
    assert found.dice == pytest.approx(2 * 420 / 1200)
    assert found.jaccard == pytest.approx(420 / 780)
    assert found.warped_um3 == pytest.approx(600 * 5.24 * 16 * 1e-9)
    assert found.surface.max_nm == pytest.approx(12.0)
    assert 0 < found.surface.mean_nm < 12
    assert found.ncc == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    same = evaluate_overlap(volume(a), volume(a))
    assert (same.dice, same.jaccard, same.surface.max_nm) == (1, 1, 0)


def test_against_simpleitk():
    a, b = blob(1), blob(2)
    found = evaluate_overlap(volume(a), volume(b), warped_threshold=0.5, fixed_threshold=0.6)
    images = []
    for array in (a >= 0.5, b >= 0.6):
        image = sitk.GetImageFromArray(array.astype(np.uint8))
        image.SetSpacing(GRID.spacing_nm[::-1])
        images.append(image)
    measures = sitk.LabelOverlapMeasuresImageFilter()
    measures.Execute(*images)
    assert found.dice == pytest.approx(measures.GetDiceCoefficient())
    assert found.jaccard == pytest.approx(measures.GetJaccardCoefficient())
    contours = [sitk.BinaryContour(image, fullyConnected=False) for image in images]
    maps = [
        sitk.GetArrayFromImage(
            sitk.Abs(sitk.SignedMaurerDistanceMap(c, squaredDistance=False, useImageSpacing=True))
        )
        for c in contours
    ]
    first, second = (sitk.GetArrayFromImage(c) > 0 for c in contours)
    distances = np.concatenate([maps[1][first], maps[0][second]])
    assert found.surface.mean_nm == pytest.approx(distances.mean(), rel=1e-5)
    assert found.surface.p95_nm == pytest.approx(np.percentile(distances, 95), rel=1e-5)
    assert found.surface.max_nm == pytest.approx(distances.max(), rel=1e-5)


@pytest.mark.parametrize("block", [(3, 4, 5), (11, 1, 23), (1, 1, 7)])
def test_blocks_do_not_matter(monkeypatch, block):
    whole = evaluate_overlap(volume(blob(1)), volume(blob(2)))
    monkeypatch.setattr(overlap_module, "BLOCK", block)
    parts = evaluate_overlap(volume(blob(1)), volume(blob(2)))
    assert parts.dice == whole.dice
    assert parts.ncc == pytest.approx(whole.ncc, rel=1e-12)
    assert parts.surface.p95_nm == pytest.approx(whole.surface.p95_nm, rel=1e-12)
    assert parts.surface.mean_nm == pytest.approx(whole.surface.mean_nm, rel=1e-12)


def test_correlation_survives_a_large_offset():
    a, b = blob(1), blob(2)
    expected = np.corrcoef(a.ravel(), b.ravel())[0, 1]
    found = normalised_cross_correlation(volume(a * 3 + 1e6), volume(-b))
    assert found == pytest.approx(-expected, rel=1e-6)
    assert np.isnan(normalised_cross_correlation(volume(a * 0), volume(b)))
    assert evaluate_overlap(volume(a), volume(b * 0 + 1)).to_json()["ncc"] is None


def test_one_empty_structure():
    found = evaluate_overlap(volume(blob(1)), volume(np.zeros(GRID.shape)))
    assert found.dice == 0
    assert found.surface is None
    assert found.to_json()["surface"] is None


def test_bad_input():
    with pytest.raises(DataError, match="threshold"):
        evaluate_overlap(volume(np.zeros(GRID.shape)), volume(np.zeros(GRID.shape)))
    with pytest.raises(DataError, match="NaN"):
        evaluate_overlap(volume(np.full(GRID.shape, np.nan)), volume(blob(1)))
    shifted = Grid(GRID.shape, GRID.spacing_nm, (300.0, -200.0, 74.0), "lm")
    with pytest.raises(GridError, match="different grids"):
        evaluate_overlap(volume(blob(1), shifted), volume(blob(1)))
    with pytest.raises(GridError, match="channels"):
        evaluate_overlap(Volume(np.zeros((1, *GRID.shape)), GRID, ("mito",)), volume(blob(1)))
