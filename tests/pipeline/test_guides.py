"""Channels, masks and landmarks of the configuration: read, fingerprinted, used."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from clemreg.config import RunConfig
from clemreg.errors import ConfigError
from clemreg.io.points import write_landmarks
from clemreg.io.transforms import read_transform, write_transform
from clemreg.io.volumes import write_volume
from clemreg.pipeline.context import RunContext
from clemreg.pipeline.export import export_run
from clemreg.pipeline.features import open_prepared, prepare
from clemreg.pipeline.register import split_channel
from clemreg.pipeline.registration import register_run, run_guides
from clemreg.pipeline.run import plan
from clemreg.register.matching import Channel
from clemreg.simulate.tubes import TubeOptions, simulate_tubes
from clemreg.space import Affine, Grid, Landmarks
from clemreg.space.tps import ThinPlateSpline
from clemreg.volume import Volume

LM = Grid((12, 30, 34), (104.0, 60.0, 52.0), (300.0, -200.0, 70.0), "lm")
EM = Grid((40, 50, 54), (32.0, 30.0, 28.0), (900.0, 5000.0, -70.0), "em")


def blobs(grid, seed):
    image = gaussian_filter(np.random.default_rng(seed).random(grid.shape), 2.0)
    return (255 * (image - image.min()) / np.ptp(image)).astype(np.uint8)


def context_of(folder, proof=None, **register):
    config = {
        "em": {"path": "em.zarr", "prediction": "em.zarr"},
        "lm": {"path": "lm.zarr"},
        "register": {"psf": "palm", "halves": 0, "stability_seeds": 0, **register},
        "proof": {"landmarks": proof},
    }
    quiet = nullcontext(lambda _done, _total, _message: None)
    return RunContext(RunConfig.model_validate(config), folder, lambda _title: quiet)


@pytest.fixture
def folder(tmp_path):
    both = Volume(np.stack([blobs(LM, 1), blobs(LM, 2)]), LM, channels=("mito", "er"))
    write_volume(tmp_path / "lm.zarr", both)
    write_volume(tmp_path / "em.zarr", Volume(blobs(EM, 3), EM))
    er = blobs(EM, 4)
    er[er < np.quantile(er, 0.7)] = 0  # a probability: 0 at most places
    write_volume(tmp_path / "er.zarr", Volume(er, EM))
    mask = np.zeros(LM.shape, np.uint8)
    mask[:, 11:] = 1
    write_volume(tmp_path / "trusted.zarr", Volume(mask, LM))
    places = LM.points_nm()[::5, ::9, ::11].reshape(-1, 3)
    names = tuple(map(str, range(len(places))))
    write_landmarks(Landmarks(names, places, places + 100.0), tmp_path / "marks.csv")
    return tmp_path


def images(grid_lm=LM, grid_em=EM):
    return Channel(Volume(blobs(grid_lm, 1), grid_lm), Volume(blobs(grid_em, 3), grid_em))


def test_guides_are_read_from_files_beside_the_configuration(folder):
    write_landmarks(
        Landmarks(("a", "b"), np.eye(3)[:2], np.eye(3)[1:], role=("fit", "held_out")),
        folder / "marks.csv",
    )
    context = context_of(
        folder,
        proof="marks.csv",
        channels=["er=er.zarr@0.5"],
        fixed_mask="trusted.zarr",
        landmarks="marks.csv",
    )
    moving = EM.downsample((3, 2, 1))
    guides = run_guides(context, images(grid_em=moving))
    (er,) = guides.channels
    assert er.weight == 0.5
    assert er.fixed.grid == LM
    assert er.moving.grid.frame == "em"
    np.testing.assert_array_equal(guides.masks.fixed[:, :11], False)
    np.testing.assert_array_equal(guides.masks.fixed[:, 11:], True)
    assert guides.masks.moving is None
    assert guides.landmarks.names == ("a",)
    assert guides.uses == ("metric",)


def test_without_such_keys_nothing_guides(folder):
    guides = run_guides(context_of(folder), images())
    assert guides.channels == guides.uses == ()
    assert guides.masks.fixed is guides.masks.moving is guides.landmarks is None
    assert set(context_of(folder).inputs()) == {"em", "prediction", "lm", "landmarks", "truth"}


def test_a_structure_for_the_proof_is_fingerprinted_and_changes_evaluate_alone(folder):
    context = context_of(folder)
    proof = context.config.proof.model_copy(update={"overlap": ("er=er.zarr",)})
    context = replace(context, config=context.config.model_copy(update={"proof": proof}))
    before = {step.name: dict(step.inputs) for step in plan(context)}
    shutil.rmtree(folder / "er.zarr")
    after = {step.name: dict(step.inputs) for step in plan(context)}
    assert [name for name in before if before[name] != after[name]] == ["evaluate"]


def test_a_chromatic_shift_of_the_configuration_reaches_the_images(folder):
    context = context_of(folder, channels=["er=er.zarr"])
    light = context.config.lm.model_copy(update={"shifts": {"er": "12, -5, 30 nm"}})
    context = replace(context, config=context.config.model_copy(update={"lm": light}))
    (er,) = run_guides(context, images()).channels
    assert er.fixed.grid.origin_nm == (330.0, -205.0, 82.0)
    changed = register_inputs(context)["prepare"]
    assert changed != register_inputs(context_of(folder))["prepare"]


def test_a_correction_by_landmarks_is_exported_but_to_elastix(folder, caplog):
    context = context_of(folder)
    export = context.config.export.model_copy(update={"bdv": False})
    context = replace(context, config=context.config.model_copy(update={"export": export}))
    places = LM.corners_nm()
    there = places + EM.centre_nm - LM.centre_nm + np.eye(8)[:, :3] * 40
    spline = ThinPlateSpline(places, there, "lm", "em")
    write_transform(spline, context.path("registration", "transform.json"))
    export_run(context)
    written = {path.name for path in context.path("export").iterdir()}
    assert written == {"bigwarp-landmarks.csv", "bigwarp-landmarks.json"}
    assert "no elastix files" in caplog.text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("er=er.zarr", ("er", "er.zarr", 1.0)),
        ("er=er.zarr@0.5", ("er", "er.zarr", 0.5)),
        ("er=er@4nm.zarr", ("er", "er@4nm.zarr", 1.0)),
        ("er=me@lab/er.zarr", ("er", "me@lab/er.zarr", 1.0)),
        ("er=er@4nm.zarr@1e-1", ("er", "er@4nm.zarr", 0.1)),
    ],
)
def test_an_at_sign_may_belong_to_the_path(text, found):
    assert split_channel(text) == found


def test_a_weight_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match="the weight 'half' is not a number"):
        split_channel("er=er.zarr@half")


def register_inputs(context):
    return {step.name: dict(step.inputs) for step in plan(context)}


@pytest.mark.parametrize("name", ["er.zarr", "trusted.zarr", "marks.csv"])
def test_a_changed_file_changes_the_fingerprint_of_register_alone(folder, name):
    keys = {
        "channels": ["er=er.zarr@2"], "fixed_mask": "trusted.zarr", "landmarks": "marks.csv",
    }  # fmt: skip
    context = context_of(folder, **keys)
    before = register_inputs(context)
    if name == "marks.csv":
        (folder / name).write_text((folder / name).read_text() + "\n")
    else:
        write_volume(folder / name, Volume(blobs(LM, 9), LM))
    after = register_inputs(context)
    assert [step for step in before if before[step] != after[step]] == ["register"]


def test_landmarks_that_are_fitted_cannot_prove_anything(folder):
    context = context_of(folder, proof="marks.csv", landmarks="marks.csv")
    with pytest.raises(ConfigError, match="what is fitted proves nothing"):
        run_guides(context, images())


def test_a_mask_of_the_em_needs_one_grid(folder):
    write_volume(folder / "em_mask.zarr", Volume(np.ones(EM.shape, np.uint8), EM))
    context = context_of(folder, channels=["er=er.zarr"], moving_mask="em_mask.zarr")
    with pytest.raises(ConfigError, match="needs all channels on one grid"):
        run_guides(context, images(grid_em=replace(EM, origin_nm=(0.0, 0.0, 0.0))))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"channels": ["er"]}, "CHANNEL=EM_VOLUME"),
        ({"channels": ["er=er.zarr@-1"]}, "must be positive"),
        ({"use_landmarks": ["start"]}, "register.landmarks"),
    ],
)
def test_keys_that_say_too_little_are_refused(folder, keys, words):
    with pytest.raises(ConfigError, match=words):
        run_guides(context_of(folder, **keys), images())


@pytest.mark.slow
def test_landmarks_start_and_a_mask_keeps_what_is_broken_out(tmp_path):
    """The light volume is a moved copy of itself on one side, which the mask leaves out."""
    rng = np.random.default_rng(4)
    lm = Grid((26, 80, 80), (104.0, 52.0, 52.0), (500.0, -300.0, 90.0), "lm")
    linear = np.diag([0.98, 1.05, 1.02])
    linear[1, 2], linear[2, 1] = -0.1, 0.1
    truth = Affine.from_linear(linear, [800.0, 4000.0, -700.0], "lm", "em")
    whole = TubeOptions(spacing_um=0.9, missing=0.0, spurious=0.0)
    pair = simulate_tubes(rng, truth, lm, (1.8, 3.2, 3.2), whole)
    broken = pair.lm.read().copy()
    broken[..., :45] = np.roll(broken, 9, axis=1)[..., :45]
    mask = np.ones(lm.shape, np.uint8)
    mask[..., :45] = 0
    stack = np.stack([broken, broken])
    write_volume(tmp_path / "lm.zarr", Volume(stack, lm, channels=("mito", "er")))
    write_volume(tmp_path / "em.zarr", pair.prediction)
    write_volume(tmp_path / "trusted.zarr", Volume(mask, lm))
    marks = pair.points_nm[:12] + rng.normal(size=(12, 3)) * 40
    names = tuple(map(str, range(12)))
    write_landmarks(Landmarks(names, marks, truth(marks)), tmp_path / "fit.csv")
    error = {}
    good = pair.points_nm[lm.to_index(pair.points_nm)[:, 2] > 48]
    for name, more in (("all", {}), ("masked", {"fixed_mask": "trusted.zarr"})):
        context = context_of(tmp_path, use_landmarks=["start"], landmarks="fit.csv", **more)
        prepare(context)
        register_run(context)
        found = read_transform(context.path("registration", "transform.json"))
        error[name] = np.median(np.linalg.norm(found(good) - truth(good), axis=1))
        record = json.loads(context.path("registration", "registration.json").read_text())
        assert record["orientation"]["score"] is None  # nothing was searched
    assert error["masked"] < 60 < error["all"]


def test_the_extracellular_space_of_the_configuration_is_prepared_and_fingerprinted(folder):
    marked = np.zeros(EM.shape, np.uint8)
    marked[..., :20] = 1
    write_volume(folder / "ecs.zarr", Volume(marked, EM))
    written = {}
    for name, options in {"plain": {}, "cut": {"ecs": "ecs.zarr"}}.items():
        context = context_of(folder, kind="probability", **options)
        (context.folder).mkdir(exist_ok=True)
        prepare(context)
        written[name] = open_prepared(context)[1].read()
        shutil.rmtree(context.path("prepared"))
    assert written["cut"][..., :11].max() < 0.1
    assert written["plain"][..., :11].mean() > 0.3
    assert written["cut"][..., 16:].mean() > 0.3
    before = plan(context)
    write_volume(folder / "other.zarr", Volume(np.roll(marked, 3, axis=2), EM))
    shutil.rmtree(folder / "ecs.zarr")
    (folder / "other.zarr").rename(folder / "ecs.zarr")
    changed = [
        step.name for step, old in zip(plan(context), before, strict=True)
        if step.inputs != old.inputs
    ]  # fmt: skip
    assert changed == ["prepare", "register"]
    unset = plan(context_of(folder))
    assert "register.ecs" not in unset[1].inputs
