from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import zarr

torch = pytest.importorskip("torch")

from clemreg.cli.app import run_app  # noqa: E402
from clemreg.evaluate.results import ResultStore  # noqa: E402
from clemreg.io.volumes import open_volume, write_volume  # noqa: E402
from clemreg.pipeline.checkpoints import predict_around  # noqa: E402
from clemreg.pipeline.train import train_from_config  # noqa: E402
from clemreg.pipeline.train_crops import CellMapData, open_crops  # noqa: E402
from clemreg.segment.blockwise import PredictOptions  # noqa: E402
from clemreg.segment.checkpoints import CosemModel  # noqa: E402
from clemreg.segment.cosem import CosemOptions, CosemUNet  # noqa: E402
from clemreg.segment.exchange import NetworkHeader, network_header, write_safetensors  # noqa: E402
from clemreg.segment.models import Model, ModelCard, load_model, save_model  # noqa: E402
from clemreg.segment.network import NetworkOptions, UNet  # noqa: E402
from clemreg.segment.predict import predict  # noqa: E402
from clemreg.segment.setups import Setup  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("torch")]
CONFIG = """
name = "threshold"
out = "threshold.safetensors"
keep_every = 1
[options]
spacing_nm = 4.0
classes = ["mito", "er"]
steps = 100
batch = 1
output = 8
margin = 4
widths = [2, 2]
down = [1, 1]
up = [2]
scale = [1.0, 1.0]
average = 0.0
learning_rate = 0.2
checkpoint_every = 1
threads = 1
[augment]
control_voxels = 20
[[cellmap]]
name = "ball"
em = "em.zarr"
groundtruth = "groundtruth"
contrast = [20, 220]
held_out = ["crop21", "crop110"]
crops = ["crop21", "crop110", "crop7"]
"""


def seeing(threshold: float) -> UNet:
    """A network that calls dark what is below a grey value; ER is nowhere."""
    network = UNet(NetworkOptions(("mito", "er"), (2, 2), (1, 1), (2,)))
    for parameter in network.parameters():
        parameter.data.zero_()
    # The voxel itself goes through the skip: relu(t - x), then the head.
    network.down[0][0].weight.data[0, 0, 1, 1, 1] = -1
    network.down[0][0].bias.data[0] = threshold + 2
    network.up[0][0].weight.data[0, 0, 1, 1, 1] = 1
    network.up[0][2].weight.data[0, 0, 1, 1, 1] = 1
    network.head.weight.data[0, 0] = 1
    network.head.bias.data[:] = torch.tensor([-2.0, -3.0])
    return network.eval()


@pytest.fixture
def training(cellmap_sample, tmp_path):
    """Three networks, of which the second sees best, kept by a training."""
    path = tmp_path / "t.toml"
    path.write_text(CONFIG)
    for steps, threshold in ((25, -0.95), (50, 0.0), (100, 0.45)):
        card = ModelCard("threshold", (4.0, 4.0, 4.0), (), steps)
        save_model(seeing(threshold), card, tmp_path / f"threshold.kept/{steps:08d}.safetensors")
    sample = tmp_path / "sample"
    shutil.copytree(cellmap_sample, sample)
    shutil.copytree(sample / "groundtruth" / "crop21", sample / "groundtruth" / "crop7")
    return path, sample


def test_the_best_of_the_kept_networks_is_found(training, tmp_path, capsys):
    path, sample = training
    store, out = tmp_path / "scores.db", tmp_path / "best.json"
    command = ["validate-training", str(path), "--data", f"ball={sample}", "--store", str(store)]
    assert run_app([*command, "--json", str(out)]) == 0
    assert f"{3 * 2 * 2 * 21} scores kept" in capsys.readouterr().out
    rows = {r["label"]: r for r in json.loads(out.read_text())["rows"]}
    assert rows["mito"]["iteration"] == 50
    assert (rows["mito"]["sample"], rows["mito"]["crops"]) == ("ball", 2)
    assert rows["mito"]["value"] > 0.95
    assert "er" not in rows  # nowhere, and not found: no network is the best at it
    found = ResultStore(store).find(label="mito", metric="dice", iteration=25)
    assert {r.crop for r in found} == {"21", "110"}  # crop 7 is for training
    assert max(r.value for r in found) < 0.2
    assert run_app(["results", "best", str(store), "--mode", "test", "--json", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["setup"], row["iteration"], row["crops"]) == ("threshold", 50, 2)
    (tmp_path / "threshold.kept/00000100.safetensors").unlink()
    capsys.readouterr()
    assert run_app(command) == 0  # nothing is computed again
    assert "0 scores kept" in capsys.readouterr().out
    fewer = [*command, "--label", "mito", "--metric", "recall_with_tolerance"]
    assert run_app([*fewer, "--tolerance", "8 nm", "--clip", "90 nm"]) == 0
    assert "4 scores kept" in capsys.readouterr().out
    assert run_app([*fewer, "--replace", "--unannotated", "background"]) == 0
    assert "4 scores kept" in capsys.readouterr().out


def leave_half_unknown(crop):
    for part in ("mito_mem", "mito_lum", "mito_ribo"):
        pixels = zarr.open_array(str(crop / part / "s0"))
        pixels[:, : pixels.shape[1] // 2] = 0


def test_scores_by_another_rule_are_kept_beside(training, tmp_path, capsys):
    """Only half of a crop is annotated: what is found in the other is wrong, or left out."""
    path, sample = training
    leave_half_unknown(sample / "groundtruth" / "crop21")
    store, out = tmp_path / "scores.db", tmp_path / "best.json"
    command = ["validate-training", str(path), "--data", f"ball={sample}", "--store", str(store)]
    command += ["--label", "mito", "--metric", "dice"]
    assert run_app(command) == 0
    capsys.readouterr()
    background = [*command, "--unannotated", "background", "--json", str(out)]
    assert run_app(background) == 0
    assert "6 scores kept" in capsys.readouterr().out
    assert run_app(background) == 0
    assert "0 scores kept" in capsys.readouterr().out
    kinds = {"{}": [], '{"unannotated": "background"}': []}
    for found in ResultStore(store).find(metric="dice", iteration=50, crop="21"):
        kinds[found.metric_params].append(found.value)
    (known,), (all_,) = kinds.values()
    assert all_ < known - 0.05
    (row,) = json.loads(out.read_text())["rows"]
    whole = ResultStore(store).find(iteration=50, metric_params='{"unannotated": "background"}')
    assert row["value"] == pytest.approx(np.mean([r.value for r in whole]))
    assert run_app(["results", "best", str(store)]) == 1  # never averaged together
    assert "keep the others in another store" in capsys.readouterr().err


def test_networks_of_an_earlier_training_are_left_out(training, tmp_path, capsys, caplog):
    """Trained again with fewer steps, another name or other layers: the old ones lie there yet."""
    path, sample = training
    kept = tmp_path / "threshold.kept"
    other = UNet(NetworkOptions(("mito", "er"), (3, 2), (1, 1), (2,)))
    save_model(
        other, ModelCard("threshold", (4.0, 4.0, 4.0), (), 75), kept / "00000075.safetensors"
    )
    card = ModelCard("before", (4.0, 4.0, 4.0), (), 80)
    save_model(seeing(0.0), card, kept / "00000080.safetensors")
    shutil.copy(kept / "00000050.safetensors", kept / "best.safetensors")
    shutil.copy(kept / "00000050.safetensors", kept / "00000060.safetensors")
    path.write_text(CONFIG.replace("steps = 100", "steps = 99"))
    store = tmp_path / "scores.db"
    command = ["validate-training", str(path), "--data", f"ball={sample}", "--store", str(store)]
    command += ["--label", "mito", "--metric", "dice"]
    assert run_app(command) == 0
    assert {r.iteration for r in ResultStore(store).find()} == {25, 50}
    for words in (
        "75.safetensors is left out: widths = (3, 2), in the training (2, 2)",
        "80.safetensors is left out: name = 'before', in the training 'threshold'",
        "60.safetensors is left out: it was trained for 50 steps",
        "100.safetensors is left out: the training ends at 99 steps",
        "best.safetensors is left out: its name is no number of steps",
    ):
        assert words in caplog.text
    for name in ("00000025", "00000050"):
        (kept / f"{name}.safetensors").unlink()
    assert run_app(command) == 1
    assert "holds no networks of the training threshold, but others" in capsys.readouterr().err


@pytest.mark.parametrize("input_nm", [4.0, 8.0])
def test_networks_of_the_paper_are_known_by_their_header(tmp_path, input_nm):
    torch.manual_seed(0)
    shape = CosemOptions(("mito", "er"), input_nm, (2, 3, 4, 5), (3, 2, 4))
    made = Setup("mine", input_nm, shape.classes, 7)
    write_safetensors(CosemModel(made, CosemUNet(shape), tmp_path), tmp_path / "7.safetensors")
    header = network_header(tmp_path / "7.safetensors")
    assert header == NetworkHeader("mine", (input_nm,) * 3, shape)


def test_what_cannot_be_scored_is_explained(training, tmp_path, capsys):
    path, sample = training
    command = ["validate-training", str(path), "--data", f"ball={sample}", "--store", "s.db"]
    path.write_text(CONFIG.replace('held_out = ["crop21", "crop110"]\n', ""))
    assert run_app(command) == 1
    assert "holds out no crops" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "threshold.kept")
    assert run_app(command) == 1
    assert "set keep_every in the training" in capsys.readouterr().err


def test_a_crop_is_predicted_as_in_the_whole(cellmap_sample, tmp_path, monkeypatch):
    """With as much EM around as the network sees, voxels are the same; in bfloat16 nearly."""
    monkeypatch.setattr("clemreg.segment.predict.bfloat16_is_fast", lambda _device: False)
    em = open_volume(cellmap_sample / "em.zarr", frame="em")
    wide = np.tile(em.read(), (2, 2, 2))[:70, :90, :100]
    grid = type(em.grid)(wide.shape, (4.0, 4.0, 4.0), em.grid.origin_nm, "em")
    write_volume(tmp_path / "em.zarr", type(em)(wide, grid))
    torch.manual_seed(0)
    network = UNet(NetworkOptions(("mito",), (3, 4), (2, 1), (2,))).eval()
    model = Model(ModelCard("random", (4.0, 4.0, 4.0)), network)
    entry = CellMapData(
        name="ball", em=str(tmp_path / "em.zarr"), contrast=(20, 220), crops=("crop110",),
        groundtruth=str(cellmap_sample / "groundtruth"),
    )  # fmt: skip
    (crop,) = open_crops(entry)
    options = PredictOptions(limits=(20, 220), precise=True)
    whole = predict(crop.em[0], model, tmp_path / "whole.zarr", options=options)
    part = predict_around(model, crop, tmp_path / "part.zarr")
    assert part.shape < whole.shape
    labels = crop.annotations.grid
    first = np.ceil(grid.to_index(labels.origin_nm)).astype(int)
    last = np.floor(grid.to_index(labels.corners_nm().max(axis=0))).astype(int)
    moved = np.rint(grid.to_index(part.grid.origin_nm)).astype(int)
    inside = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    there = tuple(slice(a - m, b - m) for a, b, m in zip(first, last, moved, strict=True))
    a, b = whole.read()[0][inside], part.read()[0][there]
    assert a.size > 10_000
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_training_keeps_its_networks(cellmap_sample, tmp_path):
    """Each is the network of its step: the last one is what the training gives."""
    path = tmp_path / "t.toml"
    path.write_text(CONFIG.replace('["crop21", "crop110", "crop7"]', '["crop21", "crop110"]'))
    path.write_text(path.read_text().replace("steps = 100", "steps = 2"))
    path.write_text(path.read_text().replace('held_out = ["crop21", "crop110"]\n', ""))
    out = train_from_config(path, (f"ball={cellmap_sample}",))
    kept = sorted((tmp_path / "threshold.kept").iterdir())
    assert [p.name for p in kept] == ["00000001.safetensors", "00000002.safetensors"]
    first, last, end = (load_model(p) for p in (*kept, out))
    assert (first.card.steps, last.card) == (1, end.card)
    states = [m.network.state_dict() for m in (first, last, end)]
    assert all(torch.equal(states[1][k], v) for k, v in states[2].items())
    assert any(not torch.equal(states[0][k], v) for k, v in states[2].items())
