from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from clemreg.errors import ConfigError, DataError, FrameError, RegistrationError
from clemreg.io.volumes import open_volume
from clemreg.register.apply import apply_to_image, covering_box, warp_block
from clemreg.register.elastix import ElastixJob, run_elastix
from clemreg.register.elastix_keys import check_parameters
from clemreg.register.engines import Task
from clemreg.register.features import MovingOptions, prepare_fixed, prepare_moving
from clemreg.register.matching import Channel, Masks
from clemreg.register.newton import AffineFit, fit_affine
from clemreg.register.orientation import OrientationOptions, search_orientation
from clemreg.register.registration import (
    RegisterOptions,
    _Finder,
    _score_warnings,
    affine_of,
    correlation,
    drift_warnings,
    register,
    scale_warnings,
)
from clemreg.register.stages import AffineStage, affine_parameters
from clemreg.simulate.tubes import TubeOptions, simulate_tubes
from clemreg.space import Affine, BSpline, Grid
from clemreg.space.resample import sample_array
from clemreg.testing import hostile_grid, random_affine, random_bspline
from clemreg.volume import Labels, Volume

pytestmark = [pytest.mark.elastix, pytest.mark.xdist_group("elastix")]


def prepared(pair):
    moving = prepare_moving(pair.prediction, pair.lm.grid.spacing_nm, MovingOptions())
    return prepare_fixed(pair.lm), moving


# -- apply ----------------------------------------------------------------------------------------


def test_blocks_of_any_size_give_whole_volume_resampling(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    em = hostile_grid("em")
    onto = Grid((9, 14, 16), (6.0, 5.0, 5.5), (290.0, -190.0, 75.0), "lm")
    back = random_bspline(rng, onto, amplitude_nm=3, target="em")
    pixels = rng.integers(0, 4000, em.shape).astype(np.uint16)
    points = back(onto.points_nm().reshape(-1, 3))
    expected = sample_array(pixels, em, points).reshape(onto.shape)
    assert (expected > 0).mean() > 0.3
    found = []
    for block in ((64, 128, 128), (4, 5, 7)):
        monkeypatch.setattr("clemreg.register.apply.BLOCK", block)
        out = apply_to_image(back, Volume(pixels, em), onto, tmp_path / f"{block[0]}.zarr")
        assert out.grid == onto
        found.append(out.read().astype(float))
    np.testing.assert_array_equal(found[1], found[0])
    # Places are right to 0.001 voxel along each axis, where neighbours differ by up to 4000.
    assert np.abs(found[0] - expected).max() < 0.5 + 3 * 0.001 * 4000
    assert (found[0] != np.rint(expected)).mean() < 0.005


def test_labels_keep_their_ids_and_scipy_agrees():
    from scipy.ndimage import map_coordinates

    rng = np.random.default_rng(1)
    em = hostile_grid("em")
    ids = (rng.integers(0, 9, em.shape) * 70_001).astype(np.uint64)
    onto = replace(em, frame="lm")
    move = Affine.translation([7.0, -3.0, 2.5], "lm", "em")
    found = warp_block(move, Labels(ids, em), onto)
    assert set(np.unique(found)) <= set(np.unique(ids))
    index = em.to_index(move(onto.points_nm().reshape(-1, 3))).T
    nearest = map_coordinates(ids // 70_001, np.floor(index + 0.5), order=0, cval=0)
    np.testing.assert_array_equal(found.ravel() // 70_001, nearest)


def test_the_wrong_direction_is_refused():
    em = Volume(np.ones(hostile_grid("em").shape, np.uint8), hostile_grid("em"))
    with pytest.raises(FrameError, match="inverse"):
        warp_block(Affine.identity("em", "lm"), em, hostile_grid("lm"))


def test_the_covered_box_holds_the_em_and_little_more():
    move = random_affine(np.random.default_rng(2), "lm", "em")
    em = hostile_grid("em")
    lm = Grid(
        (60, 60, 60), (20.0, 20.0, 20.0), tuple(move.inverse()(em.centre_nm[None])[0] - 590), "lm"
    )
    box = covering_box(move, em, lm)
    covered = em.contains(move(lm.points_nm().reshape(-1, 3))).reshape(lm.shape)
    where = np.argwhere(covered)
    assert (where.min(axis=0) >= box.start).all()
    assert (where.max(axis=0) < box.stop).all()
    assert box.size < 40 * covered.sum()


# -- parts of the registration --------------------------------------------------------------------


def test_a_scale_that_hides_a_voxel_size_error_is_named():
    assert scale_warnings(Affine.from_linear(np.diag([1.1, 0.95, 1]), [0] * 3, "lm", "em")) == []
    warning = scale_warnings(Affine.from_linear(np.diag([1.5, 1, 1]), [0] * 3, "lm", "em"))[0]
    assert "stretches z" in warning
    # em = 1.5 lm: the LM is really 1.5 times longer than its file says.
    assert "LM z voxel size 1.50 times too small" in warning
    assert "EM z voxel size is probably 1.50 times too large" in warning
    # The EM's milling axis (y here) lies along the LM's optical axis.
    turned = np.array([[0.0, 1.0, 0.0], [1 / 1.5, 0.0, 0.0], [0.0, 0.0, 1.0]])
    (warning,) = scale_warnings(Affine.from_linear(turned, [0] * 3, "lm", "em"))
    assert "EM y voxel size is probably 1.50 times too small" in warning


def test_an_axis_that_is_off_against_the_others_is_named():
    """A z spacing 1.5 times too small, where preparation has swollen z by 11 %."""
    published = np.diag([1.114, 1.016, 0.963])  # COS-7, PALM
    assert scale_warnings(Affine.from_linear(published, [0] * 3, "lm", "em")) == []
    wrong = np.diag([1.114 / 1.5, 1.016, 0.963])
    (warning,) = scale_warnings(Affine.from_linear(wrong, [0] * 3, "lm", "em"))
    assert "0.75 times as much as the other axes" in warning
    assert "EM z voxel size is probably 1.33 times too small" in warning
    # All alike: a swollen sample, or one wrong unit; no axis stands out.
    assert scale_warnings(Affine.from_linear(1.3 * np.eye(3), [0] * 3, "lm", "em")) == []


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.5, 1 / 1.5])
def test_a_wrong_z_spacing_is_absorbed_by_the_affine_and_named(factor):
    rng = np.random.default_rng(3)
    lm = Grid((44, 130, 130), (104.0, 52.0, 52.0), (2000.0, -700.0, 5000.0), "lm")
    c, s = np.cos(0.35), np.sin(0.35)
    linear = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.diag([0.98, 1.05, 1.02])
    offset = np.array([700.0, -300.0, 900.0]) - linear @ lm.centre_nm
    truth = Affine.from_linear(linear, offset, "lm", "em")
    pair = simulate_tubes(rng, truth, lm, (2.6, 4.6, 4.6), TubeOptions(spacing_um=1.1))
    said = pair.prediction.grid
    z, y, x = said.spacing_nm
    said = replace(said, spacing_nm=(z / factor, y, x))
    wrong = Volume(pair.prediction.read(), said, channels=("mito", "mito_mem"))
    fixed, moving = prepare_fixed(pair.lm), prepare_moving(wrong, lm.spacing_nm)
    pose = search_orientation(fixed, moving)
    affine = fit_affine([Channel(fixed, moving)], Masks(), pose.affine, AffineFit(), 0)
    scales = np.linalg.norm(affine.linear, axis=0)
    np.testing.assert_allclose(scales, [0.98 / factor, 1.05, 1.02], rtol=0.03)
    (warning,) = scale_warnings(affine)
    word = "too small" if factor > 1 else "too large"
    assert "EM z voxel size is probably 1." in warning
    assert f"{word}, or the LM z" in warning


def test_a_deformation_that_scales_the_whole_em_is_named():
    assert drift_warnings(0.82) == drift_warnings(1.2) == []
    (warning,) = drift_warnings(0.61)
    assert "volume of the whole EM by 0.61" in warning
    assert "mirrored" in warning


class Squeezed:
    """An engine that always finds one transform."""

    def __init__(self, transform):
        self.transform = transform

    def find(self, _stages, _seed):
        return self.transform


@pytest.mark.parametrize(("factor", "count"), [(0.85, 1), (0.97, 0), (1.12, 1)])
def test_what_the_affine_scales_is_no_drift_and_what_the_spline_scales_is(factor, count, tmp_path):
    """A B-spline with linear coefficients scales by `factor` along each axis, exactly."""
    grid = Grid((20, 24, 28), (104.0, 52.0, 52.0), (300.0, -200.0, 900.0), "lm")
    em = Grid((40, 40, 44), (30.0, 20.0, 25.0), (0.0, 100.0, -500.0), "em")
    pixels = np.random.default_rng(0).random
    channel = Channel(Volume(pixels(grid.shape), grid), Volume(pixels(em.shape), em))
    affine = Affine.from_linear(0.8 * np.eye(3), em.centre_nm - 0.8 * grid.centre_nm, "lm", "em")
    control, origin = np.full(3, 500.0), em.centre_nm - 3500.0
    nodes = origin[:, None] + control[:, None] * np.arange(15)
    shift = (factor - 1) * (nodes - em.centre_nm[:, None])
    spline = BSpline(np.stack(np.meshgrid(*shift, indexing="ij")), origin, control, "em", "em")
    finder = _Finder(Task((channel,), Masks(), affine, None, tmp_path), RegisterOptions())
    finder._engine = Squeezed(affine.then(spline))
    finder.find()
    assert finder.attempts == [pytest.approx((factor**3, factor**3))]
    assert sum("whole EM" in text for text in finder.warnings) == count


def test_a_correlation_that_falls_is_named_but_not_a_hair():
    assert _score_warnings({"start": 0.832, "affine": 0.835, "final": 0.830}) == []
    (warning,) = _score_warnings({"start": 0.6, "affine": 0.5, "final": 0.45})
    assert "fell from 0.60 in the start pose to 0.45" in warning


def test_the_affine_part_of_a_chain():
    rng = np.random.default_rng(3)
    first, second = random_affine(rng, "lm", "lm"), random_affine(rng, "lm", "em")
    chain = first.then(second).then(random_bspline(rng, hostile_grid("em")))
    np.testing.assert_allclose(affine_of(chain).matrix, second.matrix @ first.matrix)


def test_empty_and_flat_inputs_are_refused():
    grid = Grid((20, 40, 40), (16.0, 16.0, 16.0), frame="em")
    with pytest.raises(DataError, match="nothing is left"):
        prepare_moving(Volume(np.zeros(grid.shape, np.uint8), grid), (104.0, 52.0, 52.0))
    lm = Grid((20, 40, 40), (104.0, 52.0, 52.0), frame="lm")
    broken = np.ones(lm.shape, np.float32)
    with pytest.raises(DataError):
        prepare_fixed(Volume(broken, lm))
    broken[3, 4, 5] = np.nan
    with pytest.raises(DataError, match="NaN"):
        prepare_fixed(Volume(broken, lm))
    thin = Volume(np.random.default_rng(0).random((1, 40, 40)), Grid((1, 40, 40), (104, 52, 52)))
    with pytest.raises(DataError):
        prepare_fixed(thin)


def noise_job(**changes):
    rng = np.random.default_rng(0)
    lm = Grid((12, 20, 20), (104.0, 52.0, 52.0), frame="lm")
    em = Grid((12, 20, 20), (104.0, 52.0, 52.0), frame="em")
    values = {
        "fixed": Volume(rng.random(lm.shape).astype("f4"), lm),
        "moving": Volume(rng.random(em.shape).astype("f4"), em),
        "parameters": (affine_parameters(AffineStage(), lm.spacing_nm, 0),),
    }
    return ElastixJob(**{**values, **changes})


def test_misspelt_keys_are_refused_before_anything_runs(tmp_path):
    parameters = {**noise_job().parameters[0], "NumberOfResolution": ("3",)}
    with pytest.raises(ConfigError, match="NumberOfResolution"):
        run_elastix(noise_job(parameters=(parameters,)), tmp_path)


@pytest.mark.slow
def test_a_transform_is_told_from_parameters_and_rare_keys_are_known():
    check_parameters({"ComputePyramidImagesPerResolution": ("true",), "StackOrigin": ("0",)})
    with pytest.raises(ConfigError, match="a transform that elastix has found"):
        check_parameters({"Transform": ("AffineTransform",), "TransformParameters": ("1", "0")})


def test_elastix_own_reason_reaches_the_user(tmp_path):
    far = Affine.translation([0.0, 9e6, 0.0], "lm", "em")
    with pytest.raises(RegistrationError) as error:
        run_elastix(noise_job(initial=far), tmp_path)
    assert "outside" in str(error.value).lower() or "overlap" in str(error.value).lower()


# -- the whole ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("angle", [130.0])
def test_any_rotation_is_found(pair_of, angle):
    pair = pair_of(angle_deg=angle, seed=int(angle))
    found = search_orientation(*prepared(pair))
    assert pair.tre(found.affine).mean() < 600
    assert found.margin > 0.1
    assert not found.mirrored


@pytest.mark.slow
def test_a_mirrored_pair_is_flagged_only_when_it_may_be(pair_of):
    fixed, moving = prepared(pair_of(mirror=True, seed=4))
    level = OrientationOptions(tilt_deg=0.0, scale=1.0)
    allowed = search_orientation(fixed, moving, replace(level, allow_mirror=True))
    assert allowed.mirrored
    forbidden = search_orientation(fixed, moving, level)
    assert not forbidden.mirrored
    assert forbidden.score < allowed.score - 0.1


@pytest.mark.slow
def test_the_registration_finds_affine_and_deformation(pair_of, tmp_path):
    # As many mitochondria as the sample pair has; between sparse ones a deformation is a guess.
    pair = pair_of(seed=1, tubes=60)
    fixed, moving = prepared(pair)
    result = register(fixed, moving, RegisterOptions(stability_seeds=1, threads=2))
    error = pair.tre(result.transform)
    assert np.median(error) < pair.lm.grid.spacing_nm[2]  # within one light pixel
    assert np.median(error) < 0.6 * np.median(pair.tre(result.affine))
    assert result.scores["final"] > result.scores["start"]
    assert result.scores["final"] == pytest.approx(
        correlation(fixed, moving, result.transform), abs=1e-9
    )
    assert pair.tre(result.repeats[0]).mean() < 60
    result.save(tmp_path / "r", fixed.grid)
    from clemreg.io.transforms import read_transform

    for name in ("transform.json", "elastix/TransformParameters.1.txt"):
        again = read_transform(tmp_path / "r" / name)
        np.testing.assert_allclose(
            again(pair.points_lm_nm), result.transform(pair.points_lm_nm), atol=1e-3
        )


@pytest.mark.slow
def test_the_same_seed_gives_the_same_result_and_another_another(pair, tmp_path):
    fixed, moving = prepared(pair)
    start = affine_of(pair.truth)
    points = pair.points_lm_nm

    def found(seed, folder):
        stage = AffineStage(iterations=(60, 60, 60))
        parameters = (affine_parameters(stage, fixed.grid.spacing_nm, seed),)
        job = ElastixJob(fixed, moving, parameters, initial=start)
        return run_elastix(job, tmp_path / folder, threads=1).transform(points)

    first = found(1, "a")
    np.testing.assert_array_equal(first, found(1, "b"))
    assert np.abs(first - found(2, "c")).max() > 1e-3


def test_opening_what_apply_wrote_keeps_the_frame(tmp_path):
    em = hostile_grid("em")
    onto = replace(em, frame="lm")
    image = Volume(np.ones(em.shape, np.uint8), em)
    apply_to_image(Affine.identity("lm", "em"), image, onto, tmp_path / "o.zarr")
    assert open_volume(tmp_path / "o.zarr", frame="lm").grid == onto


def test_of_itk_only_what_elastix_uses_is_loaded():
    """The modules that elastix merely names are most of the start-up: over ten seconds."""
    pytest.importorskip("itk")
    code = (
        "import sys; from clemreg.register.elastix import _load_itk; _load_itk(); "
        "print(*(m for m in sys.modules if m == 'torch' or m.startswith('itk.')))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "itk.itkElastixRegistrationMethodPython" in loaded
    wrapped = {name for name in loaded if name.endswith("Python")}
    for named in ("ITKSmoothing", "ITKConvolution", "ITKImageIntensity"):
        assert f"itk._{named}Python" not in wrapped
    assert len(wrapped) < 200
    assert "torch" not in loaded
