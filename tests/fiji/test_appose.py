"""The Appose tasks: by the raw protocol, and through Appose's own service with shared memory."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import appose
import numpy as np
import pytest
from appose.service import Service
from imagej_process import environment
from scipy.ndimage import gaussian_filter

from clemreg.cli.app import run_app
from clemreg.evaluate.landmarks import evaluate_landmarks
from clemreg.fiji.appose import NO_COMPLETION, SCRIPT, WholeLines, perform
from clemreg.io.points import read_landmarks, write_landmarks
from clemreg.io.transform_json import transform_from_json, transform_to_json
from clemreg.io.transforms import read_transform, write_transform
from clemreg.io.volumes import open_volume
from clemreg.register.apply import warped_volume
from clemreg.simulate.phantom import CLASSES, MITO_CLASSES
from clemreg.space import Grid
from clemreg.space.landmarks import Landmarks
from clemreg.testing import hostile_grid, random_affine
from clemreg.volume import Volume

EM = hostile_grid("em")
WORKER = ["-W", "ignore", "-m", "clemreg.fiji.appose"]


@pytest.fixture
def service():
    env = environment("")
    with Service(".", env, sys.executable, *WORKER) as running:
        yield running
    # Appose leaves the pipes of its worker to the garbage collector.
    for pipe in (running._process.stdout, running._process.stderr):
        pipe.close()


def shared(data):
    array = appose.NDArray(str(data.dtype), list(data.shape))
    array.ndarray()[:] = data
    return array


def near(transform, em):
    """A light grid that lies over the EM."""
    middle = transform.inverse()(em.centre_nm[None])[0]
    return Grid((8, 9, 10), (9.0, 7.0, 6.0), tuple(middle - [30, 30, 30]), "lm")


def described(grid):
    z, y, x = grid.spacing_nm
    oz, oy, ox = grid.origin_nm
    return {"voxel_size": f"{x!r}, {y!r}, {z!r} nm", "origin": f"{ox!r}, {oy!r}, {oz!r} nm"}


def test_apply_in_shared_memory(service):
    rng = np.random.default_rng(0)
    transform = random_affine(rng)
    onto = near(transform, EM)
    pixels = rng.integers(1, 60000, EM.shape).astype("uint16")
    truth = warped_volume(transform, Volume(pixels, EM), onto).read()
    assert truth.any()
    assert not truth.all()
    options = {
        "transform": transform_to_json(transform),
        "image": described(EM),
        "onto": described(onto) | {"shape": list(onto.shape[::-1])},
    }
    with shared(pixels) as image:
        task = service.task(
            SCRIPT, {"verb": "apply", "images": {"image": image}, "options": options}
        )
        seen = []
        task.listen(lambda event: seen.append((event.message, event.current, event.maximum)))
        task.wait_for()
        assert task.status.name == "COMPLETE", task.error
        with task.outputs["image"] as warped:
            np.testing.assert_array_equal(warped.ndarray(), truth)
            warped.shm.unlink_on_dispose(True)
    assert any(maximum for _, _, maximum in seen)


def test_evaluate_and_its_errors(service, tmp_path):
    rng = np.random.default_rng(1)
    transform = random_affine(rng)
    lm = rng.uniform(0, 9000, (7, 3))
    landmarks = Landmarks(tuple("abcdefg"), lm, transform(lm) + rng.normal(0, 30, lm.shape))
    write_landmarks(landmarks, tmp_path / "l.csv")
    write_transform(transform, tmp_path / "t.json")
    options = {"transform": str(tmp_path / "t.json"), "landmarks": str(tmp_path / "l.csv")}
    task = service.task(SCRIPT, {"verb": "evaluate", "images": {}, "options": options})
    task.wait_for()
    figures = task.outputs["landmarks"]
    truth = evaluate_landmarks(transform, landmarks).to_json()
    assert figures["mean_nm"] == pytest.approx(truth["mean_nm"])
    for wrong, text in (
        ({"verb": "dance", "images": {}, "options": {}}, "no task 'dance'"),
        ({"verb": "evaluate", "images": {}, "options": {}}, "needs the option 'transform'"),
        (
            {"verb": "evaluate", "images": {}, "options": options | {"landmarks": "/none.csv"}},
            "/none.csv",
        ),
        ({"verb": "segment", "images": {}, "options": {}}, "needs the image 'em'"),
    ):
        task = service.task(SCRIPT, wrong)
        with pytest.raises(appose.TaskException):
            task.wait_for()
        assert text in task.error
        assert "Traceback" not in task.error


class FakeTask:
    """What the functions need of a task, cancelled after the first progress."""

    def __init__(self, cancel_after):
        self.outputs, self.cancelled, self.failed = {}, False, None
        self.updates = []
        self.cancel_after = cancel_after

    @property
    def cancel_requested(self):
        return len(self.updates) >= self.cancel_after

    def update(self, message, current, maximum):
        self.updates.append((message, current, maximum))

    def cancel(self):
        self.cancelled = True

    def fail(self, error):
        self.failed = error


def test_cancelling_stops_between_two_steps(tmp_path):
    rng = np.random.default_rng(1)
    transform = random_affine(rng)
    lm = rng.uniform(0, 9000, (7, 3))
    write_landmarks(Landmarks(tuple("abcdefg"), lm, transform(lm)), tmp_path / "l.csv")
    options = {"transform": transform_to_json(transform), "landmarks": str(tmp_path / "l.csv")}
    task = FakeTask(cancel_after=1)
    perform(task, "evaluate", {}, options)
    assert task.cancelled
    assert task.outputs == NO_COMPLETION
    assert task.updates == [("landmarks", 0, 1)]


def test_the_raw_protocol():
    """JSON lines in and out, as a program without Appose's library would speak."""
    words = [sys.executable, *WORKER]
    worker = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment("")
    )
    timer = threading.Timer(60, worker.kill)
    timer.start()
    hostile = "../../etc/passwd\"; ${x} ]]> '\n"
    request = {
        "task": "1",
        "requestType": "EXECUTE",
        "script": SCRIPT,
        "inputs": {"verb": "evaluate", "images": {}, "options": {"transform": hostile}},
    }
    out, _ = worker.communicate(json.dumps(request) + "\n")
    timer.cancel()
    assert worker.returncode == 0
    answers = [json.loads(line) for line in out.splitlines() if '"UPDATE"' not in line]
    assert [a["responseType"] for a in answers] == ["LAUNCH", "FAILURE"]
    assert "passwd" in answers[1]["error"]


class Slow(io.StringIO):
    """A stream in which another thread always gets between two writes."""

    def write(self, text):
        written = super().write(text)
        time.sleep(0.001)
        return written


def test_lines_of_several_threads_stay_whole():
    stream = Slow()
    whole = WholeLines(stream)

    def say(name):
        for n in range(30):
            print(f"{name} {n}", file=whole, flush=True)

    threads = [threading.Thread(target=say, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = stream.getvalue().splitlines()
    assert sorted(lines) == sorted(f"{name} {n}" for name in "abcd" for n in range(30))


def test_the_documented_script_is_the_one_that_runs():
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "fiji-appose.md").read_text()
    assert SCRIPT.strip() in text


@pytest.mark.slow
@pytest.mark.elastix
def test_register_comes_back_as_a_transform(service, tmp_path):
    """A mask moved by a known shift and turn; the answer is used without any file."""
    words = ["simulate", "clem", "--out", str(tmp_path), "--seed", "3"]
    assert run_app([*words, "--em-shape", "160,150,72", "--em-spacing", "26,26,26 nm"]) == 0
    fixed = open_volume(tmp_path / "lm.zarr", channel="mito")
    moving = open_volume(tmp_path / "em_labels.zarr")
    options = {"fixed": described(fixed.grid), "moving": described(moving.grid)}
    options |= {"seed": 1, "search": "in-plane", "allow_mirror": False}
    mask = np.isin(moving.read(), [CLASSES[name] for name in MITO_CLASSES]).astype("uint8")
    with shared(fixed.read()) as light, shared(mask) as em:
        images = {"fixed": light, "moving": em}
        task = service.task(SCRIPT, {"verb": "register", "images": images, "options": options})
        task.wait_for()
    found = transform_from_json(task.outputs["transform"])
    truth = read_transform(tmp_path / "truth.json")
    points = read_landmarks(tmp_path / "landmarks.csv").select(rater="truth").lm_nm
    assert np.median(np.linalg.norm(found(points) - truth(points), axis=1)) < 150


@pytest.mark.slow
@pytest.mark.torch
def test_segment_in_shared_memory(service):
    rng = np.random.default_rng(0)
    em = gaussian_filter(rng.normal(size=(24, 40, 48)), 2)
    pixels = np.interp(em, (em.min(), em.max()), (0, 255)).astype("uint8")
    options = {"em": {"voxel_size": "16, 16, 16 nm"}}
    with shared(pixels) as image:
        task = service.task(
            SCRIPT, {"verb": "segment", "images": {"em": image}, "options": options}
        )
        task.wait_for()
        with task.outputs["prediction"] as prediction:
            shape, dtype = prediction.ndarray().shape, prediction.ndarray().dtype
            prediction.shm.unlink_on_dispose(True)
    assert shape == (len(task.outputs["channels"]), *pixels.shape)
    assert dtype == np.uint8
