"""Every way to train: paper's loss, COSEM network, crops, bending, hard patches, processes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from clemreg.errors import ConfigError, ConvergenceError, FormatError, MissingError  # noqa: E402
from clemreg.segment.checkpoints import CosemModel  # noqa: E402
from clemreg.segment.cosem import CosemOptions, CosemUNet  # noqa: E402
from clemreg.segment.exchange import open_network, write_safetensors  # noqa: E402
from clemreg.segment.models import ModelCard, save_model  # noqa: E402
from clemreg.segment.parallel import Team  # noqa: E402
from clemreg.segment.setups import Setup  # noqa: E402
from clemreg.segment.trainee import CosemTrainee, start_cosem_from  # noqa: E402
from clemreg.segment.training import Outlets, TrainOptions, device_of, train  # noqa: E402
from clemreg.segment.validation import PatchValidation  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("torch")]
COMPACT = TrainOptions(
    spacing_nm=8.0, steps=8, batch=2, output=8, margin=4, classes=("mito", "ld"), widths=(3, 4),
    down=(1, 1), up=(2,), threads=1, checkpoint_every=4, loss="paper", optimiser="adam",
    betas=(0.95, 0.999), schedule="constant", learning_rate=1e-2, precision="float32",
)  # fmt: skip
TINY = {"widths": (2, 3, 4, 5), "up_widths": (3, 2, 4)}


class Balls:
    """Patches with a dark ball, at a place that the seed says; the second class is unknown."""

    def __init__(self, shape, stop_after=10**9):
        self.shape, self.left = shape, stop_after

    def draw(self, rng):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        outer, inner = self.shape.grids()
        centre = outer.centre_nm + rng.uniform(-10, 10, 3)
        radius = 0.3 * self.shape.outputs * self.shape.output_nm
        fine, coarse = (
            radius - np.linalg.norm(grid.points_nm() - centre, axis=-1) for grid in (inner, outer)
        )
        em = np.where(coarse > 0, -0.6, 0.5) + 0.1 * rng.standard_normal(coarse.shape)
        target = np.stack([np.tanh(fine / 50), np.zeros_like(fine)]).astype(np.float32)
        known = np.stack([np.ones(fine.shape, bool), np.zeros(fine.shape, bool)])
        return em.astype(np.float32), target, known


def test_the_loss_of_the_paper_is_learnt_and_resumed_to_the_bit(tmp_path):
    """With bent patches and hard ones seen again; stopped in the middle of an interval."""
    options = dataclasses.replace(
        COMPACT, steps=24, freeze=1.0, elastic_nm=6.0, elastic_every_nm=40.0, revisit=0.5
    )
    straight = train(Balls(options.patch()), options, checkpoint=tmp_path / "a")
    assert np.mean(straight.losses[-4:]) < 0.7 * straight.losses[0]
    with pytest.raises(KeyboardInterrupt):
        train(Balls(options.patch(), stop_after=30), options, checkpoint=tmp_path / "b")
    kept = torch.load(tmp_path / "b", weights_only=True)
    assert kept["step"] == 12
    assert kept["hard"]
    resumed = train(Balls(options.patch()), options, checkpoint=tmp_path / "b")
    assert resumed.losses == straight.losses[12:]
    for key, value in straight.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[key])
    plain = train(Balls(options.patch()), dataclasses.replace(options, revisit=0.0))
    assert plain.losses[:4] == straight.losses[:4]
    assert plain.losses[4:] != straight.losses[4:]  # hard patches came again


def test_an_old_checkpoint_means_what_is_default_now(tmp_path):
    options = TrainOptions(
        spacing_nm=8.0, steps=4, batch=1, output=8, margin=4, classes=("mito",), widths=(3, 4),
        down=(1, 1), up=(2,), threads=1, checkpoint_every=2,
    )  # fmt: skip

    class One(Balls):
        def draw(self, rng):
            em, target, known = super().draw(rng)
            return em, target[:1], known[:1]

    train(One(options.patch()), options, checkpoint=tmp_path / "c")
    content = torch.load(tmp_path / "c", weights_only=True)
    for key in ("architecture", "loss", "optimiser", "revisit", "elastic_nm"):
        del content["options"][key]
    del content["hard"]
    torch.save(content, tmp_path / "c")
    assert train(One(options.patch()), options, checkpoint=tmp_path / "c").losses == ()
    other = dataclasses.replace(options, loss="paper")
    with pytest.raises(FormatError, match="loss differ"):
        train(One(options.patch()), other, checkpoint=tmp_path / "c")


@pytest.mark.slow
def test_a_cosem_network_learns_and_goes_on(tmp_path):
    """8 nm in, 4 nm out, from a checkpoint; resumed to the bit; scored on patches."""
    body = CosemOptions(("er", "mito_mem", "mito"), 8.0, TINY["widths"], TINY["up_widths"])
    torch.manual_seed(5)
    start = CosemModel(Setup("mine", 8.0, body.classes, 1), CosemUNet(body).eval(), tmp_path)
    write_safetensors(start, tmp_path / "start.safetensors")
    options = TrainOptions(
        architecture="cosem", spacing_nm=8.0, steps=2, batch=1, output=32, classes=("mito", "ld"),
        threads=1, checkpoint_every=1, loss="paper", optimiser="adam", schedule="constant",
        learning_rate=1e-3, average=0.0, start=str(tmp_path / "start.safetensors"), **TINY,
    )  # fmt: skip
    shape = options.patch()
    assert (shape.inputs, shape.outputs, shape.halo) == (198, 32, 91)
    validation = PatchValidation([Balls(shape)], shape, options.classes)
    assert len(validation.cases) == 4
    validation.cases = validation.cases[:1]
    straight = train(Balls(shape), options, validation=validation, checkpoint=tmp_path / "a")
    assert [step for step, _ in straight.history] == [1, 2]
    assert set(straight.history[0][1]) == {"mito"}  # nobody looked for droplets
    with pytest.raises(KeyboardInterrupt):
        train(Balls(shape, stop_after=1), options, checkpoint=tmp_path / "b")
    resumed = train(Balls(shape), options, checkpoint=tmp_path / "b")
    assert resumed.losses == straight.losses[1:]
    for key, value in straight.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[key])
    made = CosemModel(Setup("new", 8.0, options.classes, 2), straight.network, tmp_path)
    write_safetensors(made, tmp_path / "new.safetensors")
    assert open_network(tmp_path / "new.safetensors").classes == ("mito", "ld")
    scores, example = validation.examine(straight.network)
    assert 0 <= scores["mito"].iou <= 1
    assert example.shape == (32, 96)


def test_heads_are_matched_by_name_in_any_vocabulary():
    theirs = CosemUNet(CosemOptions(("endo", "mito-mem", "mito"), 4.0, **TINY))
    mine = CosemTrainee(CosemOptions(("mito", "MVB", "ld", "mito_mem"), 8.0, **TINY)).network
    before = mine.prediction_head.weight.clone()
    start_cosem_from(mine, theirs)
    for row, other in ((0, 2), (1, 0), (3, 1)):
        assert torch.equal(mine.prediction_head.weight[row], theirs.prediction_head.weight[other])
    assert torch.equal(mine.prediction_head.weight[2], before[2])
    key = "backbone.0.l_conv.2.conv_pass.0.weight"
    assert torch.equal(mine.state_dict()[key], theirs.state_dict()[key])
    wide = CosemUNet(CosemOptions(("mito",), 4.0, (2, 3, 4, 6), (3, 2, 4)))
    with pytest.raises(FormatError, match="another shape"):
        start_cosem_from(mine, wide)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"loss": "mse"}, "loss = 'mse'"),
        ({"architecture": "cosem", "loss": "entropy"}, "tanh distances as they are"),
        ({"precision": "float8"}, "precision"),
        ({"classes": ()}, r"classes = \[\]"),
        ({"classes": ("mito", "er", "mito")}, "'mito' and 'mito', which are the same"),
        ({"classes": ("mito-mem", "mito_membrane")}, "'mito-mem' and 'mito_membrane'"),
    ],
)
def test_options_that_do_not_fit(changed, text):
    with pytest.raises(ConfigError, match=text):
        dataclasses.replace(COMPACT, **changed)


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("spacing_nm", (0.0, -8.0, math.nan, math.inf), "above 0"),
        ("learning_rate", (0.0, -1e-3, math.nan, math.inf), "above 0"),
        ("elastic_every_nm", (0.0, -1.0, math.inf), "above 0"),
        ("scale", ((0.0, 0.0), (-1.0, 1.0), (1.0, math.inf)), "above 0"),
        ("scale", ((1.2, 0.8),), "the smaller number first"),
        ("steps", (0, -4), "from 1 on"),
        ("batch", (0, -1), "from 1 on"),
        ("output", (0, -8), "from 1 on"),
        ("threads", (0, -1), "from 1 on"),
        ("checkpoint_every", (0, -1), "from 1 on"),
        ("margin", (-4,), "from 0 on"),
        ("seed", (-1,), "from 0 on"),
        ("workers", (-1,), "from 0 on"),
        ("least_steps", (-1,), "from 0 on"),
        ("elastic_nm", (-3.0, math.nan), "from 0 on"),
        ("balance", (5.0, -0.1, math.nan), "from 0 to 1"),
        ("slabs", (2.0, -0.5), "from 0 to 1"),
        ("plain", (1.5, -0.1), "from 0 to 1"),
        ("freeze", (2.0, -0.5), "from 0 to 1"),
        ("average", (1.0, 2.0, -2.0), "from 0 to below 1"),
        ("revisit", (1.0, 1.5, -0.1), "from 0 to below 1"),
        ("betas", ((0.9, 1.5), (-0.1, 0.9), (0.9, 1.0), (math.nan, 0.9)), "from 0 to below 1"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(name, values, text):
    for value in values:
        with pytest.raises(ConfigError, match=rf"{name} = {re.escape(str(value))}: .*{text}$"):
            dataclasses.replace(COMPACT, **{name: value})


def test_the_ends_of_the_ranges_are_allowed():
    ends = {"balance": 1.0, "slabs": 1.0, "freeze": 0.0, "average": 0.0, "betas": (0.0, 0.0)}
    options = dataclasses.replace(COMPACT, **ends, scale=(1.0, 1.0), seed=0, steps=1, batch=1)
    assert options.freeze == 0


def test_a_cosem_output_must_fit():
    with pytest.raises(ConfigError, match="no output of 30") as error:
        dataclasses.replace(COMPACT, architecture="cosem", output=30, **TINY)
    assert "32, 68, 104" in error.value.hint


@pytest.mark.parametrize(
    ("changed", "text", "fits"),
    [
        ({"output": 9}, "patches of 17 voxels, which are no multiple of 2 from 4 on", "8 or 10"),
        ({"margin": 5, "fold": 2}, "patches of 18 voxels, .* multiple of 4", "6 or 10"),
        ({"output": 60, "margin": 8, "widths": (3, 4, 5), "down": (2, 2, 2), "up": (2, 2),
          "fold": 2}, "patches of 76 voxels, .* multiple of 8", "56 or 64"),
        ({"output": 2, "margin": 0}, "patches of 2 voxels", "4 or 6"),
        ({"output": 1, "margin": 4}, "patches of 9 voxels", "2"),
    ],
)  # fmt: skip
def test_patches_that_the_levels_do_not_halve_are_refused(changed, text, fits):
    """They would train a network whose levels lie beside one another."""
    with pytest.raises(ConfigError, match=text) as error:
        dataclasses.replace(COMPACT, **changed)
    assert error.value.hint == f"with this margin, output may be {fits}"
    for size in fits.split(" or "):
        options = dataclasses.replace(COMPACT, **changed | {"output": int(size)})
        assert options.patch().inputs == options.output + 2 * options.margin


TOGETHER = dataclasses.replace(COMPACT, steps=4, freeze=0.0, checkpoint_every=2)
PROCESS = """
import dataclasses, json, sys
sys.path.insert(0, {folder!r})
from test_train_paths import TOGETHER, Balls, sums
from clemreg.segment.parallel import team, training_device, writes
from clemreg.segment.training import train
results = []
with team(training_device("cpu")):
    for loss in ("paper", "entropy"):
        options = dataclasses.replace(TOGETHER, loss=loss)
        done = train(Balls(options.patch()), options)
        results.append([done.losses, sums(done.network)])
if writes():
    print(json.dumps(results))
"""


def sums(network):
    return [float(v.double().sum()) for v in network.state_dict().values()]


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_whole_batch():
    """As ``torchrun`` starts them, over gloo: the loss of every step, to a part in 100 000."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS.format(folder=str(Path(__file__).parent))],
            env=os.environ
            | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0]
    assert not printed[1]
    for loss, (losses, weights) in zip(("paper", "entropy"), json.loads(printed[0]), strict=True):
        options = dataclasses.replace(TOGETHER, loss=loss)
        alone = train(Balls(options.patch()), options)
        np.testing.assert_allclose(losses, alone.losses, rtol=1e-5)
        np.testing.assert_allclose(weights, sums(alone.network), rtol=1e-4, atol=1e-4)
        assert losses[-1] != pytest.approx(losses[0], rel=1e-3)


def test_a_batch_must_be_shared_equally():
    assert list(Team(1, 2).share(4)) == [2, 3]
    with pytest.raises(ConfigError, match="cannot be shared by 2"):
        Team(0, 2).share(3)


def test_a_training_goes_on_without_the_network_that_it_started_from(tmp_path):
    """Its weights are in the checkpoint. Stopped in the middle, to the bit; and when it is done."""
    begun = train(Balls(COMPACT.patch()), dataclasses.replace(COMPACT, steps=1)).network
    start = tmp_path / "start.safetensors"
    save_model(begun, ModelCard("start", (8.0, 8.0, 8.0), (), 1), start)
    options = dataclasses.replace(COMPACT, start=str(start))
    straight = train(Balls(options.patch()), options, checkpoint=tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train(Balls(options.patch(), stop_after=11), options, checkpoint=tmp_path / "b")
    start.unlink()
    for name, losses in (("b", straight.losses[4:]), ("a", ())):
        resumed = train(Balls(options.patch()), options, checkpoint=tmp_path / name)
        assert resumed.losses == losses
        for key, value in straight.network.state_dict().items():
            assert torch.equal(value, resumed.network.state_dict()[key])
    with pytest.raises(MissingError):
        train(Balls(options.patch()), options, checkpoint=tmp_path / "c")


class Spoilt(Balls):
    """From a patch on, the EM is no number."""

    def __init__(self, shape, first):
        super().__init__(shape)
        self.first, self.drawn = first, 0

    def draw(self, rng):
        em, target, known = super().draw(rng)
        self.drawn += 1
        return em * (np.nan if self.drawn > self.first else 1), target, known


@pytest.mark.parametrize("loss", ["paper", "entropy"])
def test_a_training_that_diverges_stops_before_its_checkpoint_is_lost(tmp_path, loss):
    """Two patches a step: the seventh step is spoilt, and the checkpoint that of the fourth."""
    options = dataclasses.replace(COMPACT, loss=loss)
    with pytest.raises(ConvergenceError, match="diverged: the loss of step 7 is nan") as error:
        train(Spoilt(options.patch(), 12), options, checkpoint=tmp_path / "c")
    assert "smaller learning_rate" in error.value.hint
    kept = torch.load(tmp_path / "c", weights_only=True)
    assert kept["step"] == 4
    assert all(torch.isfinite(value).all() for value in kept["mean"].values())


def test_weights_that_a_last_step_spoils_are_not_written(tmp_path, monkeypatch):
    """The loss was fine; the gradient was not."""

    def spoil(parameters, _most):
        for parameter in parameters:
            parameter.grad.fill_(math.inf)

    kept = []
    outlets = Outlets(keep=lambda step, _network: kept.append(step), keep_every=1)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spoil)
    for options in (COMPACT, dataclasses.replace(COMPACT, steps=1)):
        with pytest.raises(ConvergenceError, match="diverged: the weights after step 1"):
            train(Balls(options.patch()), options, checkpoint=tmp_path / "c", outlets=outlets)
        with pytest.raises(ConvergenceError, match="diverged"):
            train(Balls(options.patch()), options, checkpoint=tmp_path / "c")
    assert not (tmp_path / "c").exists()
    assert not kept


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ("gpu", "device = 'gpu' is none that torch computes on"),
        ("meta", "device = 'meta' is none that torch computes on"),
        ("cuda:99", "device = 'cuda:99': torch sees .* cuda device"),
        ("cpu:3", "device = 'cpu:3': torch sees 1 cpu device here"),
    ],
)
def test_a_device_that_is_not_there_is_refused(device, text):
    with pytest.raises(ConfigError, match=text) as error:
        train(Balls(COMPACT.patch(), stop_after=0), dataclasses.replace(COMPACT, device=device))
    assert "leave device away" in error.value.hint


def test_devices_are_counted_where_they_are_asked_for(monkeypatch):
    """As on a machine without an NVIDIA GPU, and on one with two."""
    options = dataclasses.replace(COMPACT, device="cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="torch sees no cuda devices here"):
        device_of(options)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_of(options) == torch.device("cuda", 1)
    assert device_of(dataclasses.replace(COMPACT, device="cpu")) == torch.device("cpu")


def test_bfloat16_is_close_to_float32():
    exact, rough = (
        train(
            Balls(COMPACT.patch()),
            dataclasses.replace(COMPACT, steps=2, precision=precision),
        ).losses
        for precision in ("float32", "bfloat16")
    )
    assert rough != exact
    np.testing.assert_allclose(rough, exact, rtol=0.05)
