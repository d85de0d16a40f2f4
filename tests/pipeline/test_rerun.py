"""What a run does again, and what it refuses, with steps that only say that they ran."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pytest

from clemreg.config import RunConfig
from clemreg.errors import DataError
from clemreg.io.volumes import write_volume
from clemreg.pipeline import evaluation, features, registration, reporting
from clemreg.pipeline import run as whole
from clemreg.pipeline.context import RunContext
from clemreg.pipeline.export import open_scene, scene_files
from clemreg.pipeline.run import rewrite_report, run_pipeline
from clemreg.space import Grid
from clemreg.volume import Volume

EM = Grid((60, 70, 80), (10.0, 8.0, 8.0), (900.0, 5000.0, -70.0), "em")
LM = Grid((10, 12, 14), (104.0, 60.0, 60.0), frame="lm")
AFFINE = '(Transform "AffineTransform")\n'
STEPS = {
    "segment": (whole, "_segment", ["prediction.zarr"]),
    "prepare": (features, "prepare", ["prepared"]),
    "register": (registration, "register_run", ["registration"]),
    "apply": (registration, "apply_run", ["warped_em.zarr"]),
    "evaluate": (evaluation, "evaluate_run", ["evaluation.json"]),
    "report": (reporting, "report_run", ["report.html", "report.json"]),
    "export": (whole, "export_run", ["export"]),
}


@dataclass
class Job:
    """A run in `folder`, which steps it did, and which one is to be killed."""

    folder: Path
    did: list[str] = field(default_factory=list)
    killed_in: str = ""

    def step(self, name, outputs):
        def action(context):
            if name == self.killed_in:
                raise KeyboardInterrupt
            self.did.append(name)
            for output in outputs:
                path = context.path(output)
                path.write_text(json.dumps({"verdict": {"status": "pass", "reasons": []}}))

        return action

    def run(self, **sections):
        self.did.clear()
        volumes = {"em": {"path": "em.zarr"}, "lm": {"path": "lm.zarr", "channel": "mito"}}
        volumes["lm"] |= sections.pop("lm", {})
        config = {**volumes, "output": {"dir": "run"}, **sections}
        run_pipeline(RunConfig.model_validate(config), self.folder)
        return self.did

    def report(self):
        self.did.clear()
        rewrite_report(self.folder / "run")
        return self.did


@pytest.fixture
def job(tmp_path, monkeypatch):
    write_volume(tmp_path / "em.zarr", Volume(np.zeros(EM.shape, np.uint8), EM))
    light = np.zeros((2, *LM.shape), np.uint8)
    write_volume(tmp_path / "lm.zarr", Volume(light, LM, channels=("mito", "er")))
    found = Job(tmp_path)
    for name, (module, function, outputs) in STEPS.items():
        monkeypatch.setattr(module, function, found.step(name, outputs))
    return found


def test_writing_the_report_again_does_nothing_else(job):
    assert job.run() == list(STEPS)
    assert job.report() == ["report"]
    assert job.run() == []


def test_no_report_is_written_of_a_run_that_was_killed_after_a_change(job):
    job.run()
    job.killed_in = "prepare"
    with pytest.raises(KeyboardInterrupt):
        job.run(register={"psf": "confocal"})
    job.killed_in = ""
    with pytest.raises(DataError, match="prepare, register, apply, evaluate not done") as caught:
        job.report()
    assert "clemreg run" in caught.value.hint
    assert job.did == []
    assert job.run() == ["prepare"]
    assert job.report() == ["report"]


def test_a_check_channel_that_is_not_there_is_refused(job):
    with pytest.raises(DataError, match=r"LM check channel: .*no channel 'golgi'"):
        job.run(lm={"check_channel": "golgi"})
    assert job.did == []
    assert job.run(lm={"check_channel": "er"}) == list(STEPS)
    assert job.run(lm={"check_channel": 0}) == ["report", "export"]  # warned of: it is fitted


def test_a_channel_that_is_fitted_too_is_no_proof(job, caplog):
    further = {"channels": ["er=em.zarr@0.5"]}
    with pytest.raises(DataError, match=r"proof.overlap: channel 'er' is registered"):
        job.run(register=further, proof={"overlap": ["er=em.zarr"]})
    with pytest.raises(DataError, match=r"proof.overlap: channel 'mito' is registered"):
        job.run(proof={"overlap": ["mito=em.zarr"]})
    assert job.did == []
    assert job.run(register=further, lm={"check_channel": "er"}) == list(STEPS)
    assert "LM check channel: 'er' is registered" in caplog.text


def test_a_shift_of_no_channel_is_refused_before_anything_is_written(job):
    job.run()
    before = (job.folder / "run" / "run.json").read_bytes()
    with pytest.raises(DataError, match=r"LM shifts: .*'nope'.*mito"):
        job.run(lm={"shifts": {"nope": "1, 2, 3 nm"}})
    assert (job.folder / "run" / "run.json").read_bytes() == before
    assert job.report() == ["report"]


def test_no_export_of_a_run_that_was_stopped_after_a_change(job):
    """The transform of before beside the configuration of after."""
    job.run()
    assert scene_files(job.folder / "run", None).transform.endswith("transform.json")
    job.killed_in = "register"
    with pytest.raises(KeyboardInterrupt):
        job.run(register={"seed": 5})
    for opened in (open_scene, scene_files):
        with pytest.raises(DataError, match="was stopped: register not done") as caught:
            opened(job.folder / "run", None)
        assert "clemreg run" in caught.value.hint


def test_a_single_slice_is_refused_before_anything_is_computed(job):
    thin = Grid((1, 12, 14), LM.spacing_nm, frame="lm")
    write_volume(job.folder / "thin.zarr", Volume(np.zeros(thin.shape, np.uint8), thin))
    with pytest.raises(DataError, match=r"LM depth: .*thin.zarr has 1 x 12 x 14 voxels"):
        job.run(lm={"path": "thin.zarr", "channel": 0})
    assert job.did == []


def test_the_channel_of_an_em_that_has_several(job, caplog):
    backscattered = np.arange(np.prod(EM.shape)).reshape(EM.shape) % 251
    two = np.stack([np.zeros_like(backscattered), backscattered]).astype("u1")
    write_volume(job.folder / "two.zarr", Volume(two, EM, channels=("SE", "BSE")))

    def opened(**em):
        config = RunConfig.model_validate({"em": em, "lm": {"path": "lm.zarr"}})
        return RunContext(config, job.folder, lambda _title: None).open_em()

    np.testing.assert_array_equal(opened(path="two.zarr", channel="BSE").read(), backscattered)
    np.testing.assert_array_equal(opened(path="two.zarr", channel=1).read(), backscattered)
    assert not opened(path="two.zarr").read().any()
    assert opened(path="em.zarr").grid == EM

    job.run(em={"path": "two.zarr"})
    assert "the first of SE, BSE is taken; name the one that is meant in em.channel" in caplog.text
    assert job.run(em={"path": "two.zarr", "channel": "BSE"}) == list(STEPS)
    with pytest.raises(DataError, match=r"EM: .*no channel 'nope'"):
        job.run(em={"path": "two.zarr", "channel": "nope"})


@pytest.mark.parametrize(
    ("file", "section", "first"),
    [
        ("own.safetensors", {"segment": {"model": "own.safetensors"}}, "segment"),
        ("own.py", {"segment": {"model": "own.py"}}, "segment"),
        ("affine.txt", {"register": {"params": ["affine.txt"]}}, "register"),
    ],
)
def test_a_step_is_done_again_when_a_file_that_it_reads_has_changed(job, file, section, first):
    (job.folder / file).write_text(AFFINE + "(MaximumNumberOfIterations 500)")
    assert job.run(**section) == list(STEPS)
    assert job.run(**section) == []
    (job.folder / file).write_text(AFFINE + "(MaximumNumberOfIterations 2000)")
    assert job.run(**section) == list(STEPS)[list(STEPS).index(first) :]


def test_another_dataset_of_the_same_file_is_another_input(job):
    with h5py.File(job.folder / "lm.h5", "w") as file:
        file["a"] = file["b"] = np.zeros(LM.shape, np.uint8)
    light = {"voxel_size": "60, 60, 104 nm", "channel": 0}
    assert job.run(lm={"path": "lm.h5::a", **light}) == list(STEPS)
    assert job.run(lm={"path": "lm.h5::a", **light}) == []
    assert job.run(lm={"path": "lm.h5::b", **light}) == list(STEPS)[1:]


def test_the_network_is_a_file_beside_the_configuration_or_a_bundled_one(tmp_path):
    def model(name):
        config = {"em": {"path": "e"}, "lm": {"path": "l"}, "segment": {"model": name}}
        return RunContext(RunConfig.model_validate(config), tmp_path, lambda _title: None).model()

    for name in ("own.safetensors", "own.py", "auto"):
        (tmp_path / name).touch()
    assert model("own.safetensors") == str(tmp_path / "own.safetensors")
    assert model("own.py") == str(tmp_path / "own.py")
    assert model("auto") == "auto"
    assert model("absent.safetensors") == "absent.safetensors"


HEAD = "Pt-index,Rater ID,em-x,em-y,em-z,lm-x,lm-y,lm-z,Role\n"
ROWS = "".join(f"{i},AW,{i},{i * i},{i % 3},{i},{i % 4},{i % 3},held_out\n" for i in range(9))
TABLES = {
    "good.csv": HEAD + ROWS,
    "comma.csv": HEAD.replace(",", ";") + ROWS.replace(",", ";").replace(";1;", ";1,5;"),
    "fitted.csv": HEAD + ROWS.replace("held_out", "fit"),
}


@pytest.mark.parametrize(
    ("proof", "words"),
    [
        ({"landmarks": "absent.csv"}, "absent.csv is not there"),
        ({"landmarks": "comma.csv"}, "'1,5' is not a number"),
        ({"landmarks": "fitted.csv"}, "no usable held-out landmark"),
        ({"landmarks": "good.csv", "raters": ["JB"]}, "rater 'JB'"),
        ({"overlap": ["er=absent.zarr"]}, "absent.zarr"),
        ({"overlap": ["golgi=em.zarr"]}, "no channel 'golgi'"),
        ({"overlap": ["er"]}, "not of the form"),
        ({"truth": "absent.json"}, "absent.json is not there"),
    ],
)
def test_what_the_result_is_checked_with_is_opened_first(job, proof, words):
    """The evaluation, after hours of segmentation, was the first to look."""
    for name, text in TABLES.items():
        (job.folder / name).write_text(text)
    with pytest.raises(DataError, match=f"proof.{next(iter(proof))}: .*{words}"):
        job.run(proof=proof)
    assert job.did == []
    assert not (job.folder / "run").exists()
    good = {"landmarks": "good.csv", "raters": ["AW"], "overlap": ["er=em.zarr"]}
    assert job.run(proof=good) == list(STEPS)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"params": ["absent.txt"]}, "register: .*absent.txt"),
        ({"params": ["misspelt.txt"]}, "register: .*MaximumNumberOfIteration"),
        ({"params": ["misspelt.txt"], "preset": "heinrich2021"}, "register: .*not both"),
        ({"channels": ["er=absent.zarr"]}, "register.channels: .*absent.zarr"),
        ({"channels": ["er=em.zarr"], "engine": "elastix"}, "register: several channels"),
        ({"landmarks": "good.csv", "engine": "elastix"}, "register: .* landmarks in the metric"),
        ({"params": ["added.txt"]}, "register: HowToCombineTransforms is Add"),
        ({"channels": ["golgi=em.zarr"]}, "register.channels: .*no channel 'golgi'"),
        ({"fixed_mask": "absent.zarr"}, "register.fixed_mask: .*absent.zarr"),
        ({"moving_mask": "absent.zarr"}, "register.moving_mask: .*absent.zarr"),
        ({"ecs": "absent.zarr"}, "register.ecs: .*absent.zarr"),
        ({"landmarks": "absent.csv"}, "register.landmarks: .*absent.csv"),
        ({"use_landmarks": ["start"]}, "register.landmarks: .*needs"),
    ],
)
def test_what_steers_the_registration_is_opened_first(job, section, words):
    (job.folder / "misspelt.txt").write_text(AFFINE + "(MaximumNumberOfIteration 500)")
    (job.folder / "added.txt").write_text(AFFINE + '(HowToCombineTransforms "Add")')
    (job.folder / "good.csv").write_text(TABLES["good.csv"])
    with pytest.raises(DataError, match=words):
        job.run(register=section)
    assert job.did == []
    assert not (job.folder / "run").exists()
