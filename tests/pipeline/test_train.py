from __future__ import annotations

import numpy as np
import pytest
import tifffile

torch = pytest.importorskip("torch")

from clemreg.cli.app import run_app  # noqa: E402
from clemreg.errors import ConfigError, MissingError  # noqa: E402
from clemreg.pipeline.train import (  # noqa: E402
    held_out_volumes,
    load_train_config,
    training_volumes,
)
from clemreg.segment.models import load_model  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("torch")]
CONFIG = """
name = "ball"
out = "ball.safetensors"
[options]
spacing_nm = 16.0
classes = ["mito"]
steps = 4
batch = 1
output = 8
margin = 4
widths = [2, 3]
down = [1, 1]
up = [2]
checkpoint_every = 2
threads = 1
[[real]]
name = "mine"
em = "em.tif"
labels = "mito.tif"
voxel_size = "15, 16, 17 nm"
held_out = [0, 10]
[simulated]
blocks = 1
shape = [24, 28, 32]
spacing_nm = [15.0, 17.0]
"""


@pytest.fixture
def config(tmp_path):
    rng = np.random.default_rng(0)
    em = rng.integers(0, 255, (40, 24, 28)).astype(np.uint8)
    labels = np.zeros(em.shape, np.uint8)
    labels[5:30, 6:16, 8:20] = 1
    (tmp_path / "data").mkdir()
    tifffile.imwrite(tmp_path / "data" / "em.tif", em)
    tifffile.imwrite(tmp_path / "data" / "mito.tif", labels)
    path = tmp_path / "ball.toml"
    path.write_text(CONFIG)
    return path, em, labels


def test_held_out_slices_are_never_trained_on(config):
    path, em, labels = config
    loaded = load_train_config(path, (f"mine={path.parent / 'data'}",))
    real, simulated = training_volumes(loaded)
    (held_out,) = held_out_volumes(loaded.real[0])
    np.testing.assert_array_equal(real.em, em[10:])
    np.testing.assert_array_equal(held_out.em, em[:10])
    np.testing.assert_array_equal(held_out.distances_nm["mito"] > 0, labels[:10] > 0)
    assert real.spacing_nm == held_out.spacing_nm == (17.0, 16.0, 15.0)
    assert set(real.distances_nm) == {"mito"}
    assert set(simulated.distances_nm) == {"mito", "er"}


def test_train_makes_a_network_and_goes_on_from_its_checkpoint(config, capsys):
    pytest.importorskip("tensorboard")
    path, _, _ = config
    command = ["train", str(path), "--data", f"mine={path.parent / 'data'}"]
    assert run_app([*command, "--journal", str(path.parent / "runs")]) == 0
    out = path.parent / "ball.safetensors"
    assert str(out) in capsys.readouterr().out
    assert list((path.parent / "runs").iterdir())
    first = load_model(out)
    assert (first.card.name, first.card.steps) == ("ball", 4)
    assert first.card.trained_on == ("mine", "simulated")
    out.unlink()
    assert run_app(command) == 0  # nothing is left to do
    again = load_model(out).network.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in first.network.state_dict().items())


def test_a_wrong_configuration_is_refused(config):
    path, _, _ = config
    with pytest.raises(MissingError, match=r"no training configuration"):
        load_train_config(path.parent / "none.toml")
    path.write_text(CONFIG.replace("steps = 4", "step = 4"))
    with pytest.raises(ConfigError, match=r"unknown training options \['step'\]"):
        load_train_config(path)
    path.write_text(CONFIG.replace('name = "ball"', "nam = 1"))
    with pytest.raises(ConfigError, match="invalid training configuration"):
        load_train_config(path)
