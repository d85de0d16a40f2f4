"""Contrast that is fitted place by place."""

from __future__ import annotations

import numpy as np
import pytest

from clemreg.errors import ConfigError
from clemreg.register.contrast import local_contrast
from clemreg.register.features import prepare_fixed, prepare_moving
from clemreg.register.matching import Channel, Masks
from clemreg.register.newton import DeformableFit, fit_deformation
from clemreg.simulate.deformation import DeformationOptions, random_transform
from clemreg.simulate.tubes import TubeOptions, simulate_tubes
from clemreg.space.fits import best_affine
from clemreg.space.grid import Grid


def half_labelled(rng, count=40_000, size=(2000.0, 6000.0, 5000.0)):
    """Samples whose true contrast is 0 at low y and 2 at high y; places, EM, noisy light, truth."""
    places = np.array([-900.0, 3000.0, 12000.0]) + rng.uniform(0, size, (count, 3))
    dark = rng.gamma(0.5, 1.0, count).astype("f4")
    truth = np.where(places[:, 1] < 6000.0, 0.0, 2.0)
    light = (truth * dark + rng.normal(0, 0.5, count)).astype("f4")
    return places, dark, light, truth


def test_the_contrast_of_each_place_is_found():
    places, dark, light, truth = half_labelled(np.random.default_rng(0))
    found = local_contrast(places, dark, light, 1.5, 300.0)
    away = np.abs(places[:, 1] - 6000.0) > 1000.0
    # The prior draws towards the overall contrast by its share, 0.3 / 1.3.
    expected = (truth + 0.3 * 1.5) / 1.3
    assert found.dtype == np.float32
    assert np.median(np.abs(found - expected)[away]) < 0.05
    assert np.abs(found - expected)[away].max() < 0.6


def test_contrast_stays_between_none_and_one_and_a_half_times_the_overall_one():
    rng = np.random.default_rng(1)
    places, dark, _, truth = half_labelled(rng)
    for overall in (0.8, -0.8):
        light = (np.where(truth > 0, 9.0, -9.0) * dark).astype("f4")
        found = local_contrast(places, dark, light, overall, 250.0)
        assert found.min() == pytest.approx(min(0.0, 1.5 * overall))
        assert found.max() == pytest.approx(max(0.0, 1.5 * overall))


def test_few_samples_are_not_fitted_one_by_one():
    rng = np.random.default_rng(2)
    places = rng.uniform(0, [3000.0, 30_000.0, 30_000.0], (3000, 3))
    dark = rng.gamma(0.5, 1.0, 3000).astype("f4")
    light = (dark + rng.normal(0, 1.0, 3000)).astype("f4")
    found = local_contrast(places, dark, light, 1.0, 100.0)
    assert np.abs(found - 1.0).mean() < 0.15


def test_without_em_signal_there_is_no_contrast():
    places = np.random.default_rng(3).uniform(0, 2000.0, (1000, 3))
    nothing = np.zeros(1000, "f4")
    found = local_contrast(places, nothing, nothing + 1, 0.0, 300.0)
    np.testing.assert_array_equal(found, 0.0)


def test_a_neighbourhood_of_no_size_is_refused():
    with pytest.raises(ConfigError, match="contrast_um must be positive or None, got 0"):
        DeformableFit(contrast_um=0.0)


@pytest.mark.slow
def test_mitochondria_without_label_bias_the_deformation_less():
    rng = np.random.default_rng(31)
    lm = Grid((38, 130, 130), (104.0, 52.0, 52.0), (0.0, 800.0, -300.0), "lm")
    region = Grid((50, 90, 90), (100.0,) * 3, (500.0, -2000.0, 900.0), "em")
    truth = random_transform(rng, lm.centre_nm, region, DeformationOptions(displacement_nm=350.0))
    options = TubeOptions(missing=0.3, spurious=0.2)
    pair = simulate_tubes(rng, truth, lm, (2.0, 5.0, 5.0), options)
    fixed, moving = prepare_fixed(pair.lm), prepare_moving(pair.prediction, lm.spacing_nm)
    affine = best_affine(pair.truth, pair.points_nm)

    def error(contrast_um):
        fit = DeformableFit(samples=20_000, contrast_um=contrast_um)
        found = fit_deformation([Channel(fixed, moving)], Masks(), affine, fit, 0)
        return pair.errors_nm(found).mean()

    assert error(0.3) < 0.92 * error(None)
