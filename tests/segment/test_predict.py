from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from clemreg.errors import DataError, FormatError, MissingError, VoxelSizeError  # noqa: E402
from clemreg.io.quantise import quantise  # noqa: E402
from clemreg.segment.data import contrast_limits, normalise  # noqa: E402
from clemreg.segment.models import Model, ModelCard, load_model, model_info, save_model  # noqa: E402
from clemreg.segment.network import NetworkOptions, UNet  # noqa: E402
from clemreg.segment.predict import PredictOptions, predict  # noqa: E402
from clemreg.space import Grid  # noqa: E402
from clemreg.volume import Volume  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("torch")]
SPACING = (16.0, 16.0, 16.0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = UNet(NetworkOptions(widths=(4, 6, 8))).eval()
    with torch.no_grad():
        network.head.weight *= 6  # so that outputs spread over many grey levels
    return Model(ModelCard("tiny", SPACING), network)


@pytest.fixture
def em():
    rng = np.random.default_rng(2)
    return Volume(rng.integers(0, 255, (21, 34, 45)).astype(np.uint8), Grid((21, 34, 45), SPACING))


def whole(em, model):
    """The network on the whole mirrored volume at once, written independently."""
    x = normalise(em.read(), contrast_limits(em.read()))
    halo, step = model.network.halo, model.network.step
    up = [-n % step for n in x.shape]
    padded = np.pad(x, [(halo, halo + u) for u in up], mode="reflect")
    with torch.inference_mode():
        out = model.network(torch.from_numpy(padded)[None, None])[0].numpy()
    z, y, x_ = em.shape
    return quantise(out[:, :z, :y, :x_])


@pytest.mark.parametrize("block", [8, 20, 24, 64])
def test_blocks_give_the_whole(tmp_path, em, model, block):
    limits = contrast_limits(em.read())
    options = PredictOptions(block=block, precise=True, limits=limits)
    found = predict(em, model, tmp_path / "p.zarr", options=options).read()
    assert len(np.unique(found)) > 20
    np.testing.assert_array_equal(found, whole(em, model))


def test_a_stopped_prediction_goes_on_and_gives_the_same(tmp_path, em, model):
    options = PredictOptions(block=16, precise=True)
    straight = predict(em, model, tmp_path / "a.zarr", options=options).read()
    calls = []

    def stop(done, _total, _message):
        calls.append(done)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(em, model, tmp_path / "b.zarr", options=options, progress=stop)
    assert not (tmp_path / "b.zarr").exists()
    seen = []
    again = predict(
        em, model, tmp_path / "b.zarr", options=options, progress=lambda d, _t, _m: seen.append(d)
    )
    assert seen[0] == 6
    np.testing.assert_array_equal(again.read(), straight)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "b.zarr"]


def test_other_voxel_sizes_are_resampled_in_place(tmp_path, model, caplog):
    """A step edge stays where it is in nm."""
    fine = Grid((60, 64, 68), (8.0, 8.0, 8.0), (100.0, -50.0, 30.0), "em")
    pixels = np.full(fine.shape, 40, np.uint8)
    pixels[:, :, 34:] = 200
    volume = Volume(pixels, fine)
    found = predict(volume, model, tmp_path / "p.zarr", options=PredictOptions(precise=True))
    assert "resampled" in caplog.text
    assert found.grid.spacing_nm == SPACING
    edge = np.asarray(fine.origin_nm) - 4
    np.testing.assert_allclose(np.asarray(found.grid.origin_nm) - 8, edge)
    rows = found.read()[0, 15, 16].astype(float)
    change = np.abs(np.diff(rows[6:-6])).argmax() + 6
    edge_nm = fine.origin_nm[2] + 33.5 * 8
    assert abs(found.grid.to_world([0, 0, change + 0.5])[2] - edge_nm) < 3 * 16


def test_inputs_that_cannot_be_segmented(tmp_path, model):
    def run(pixels):
        volume = Volume(pixels, Grid(pixels.shape, SPACING))
        predict(volume, model, tmp_path / "p.zarr")

    with pytest.raises(DataError, match="volume is needed"):
        run(np.zeros((1, 40, 40), np.uint8))
    with pytest.raises(DataError, match="same grey value"):
        run(np.full((12, 12, 12), 9, np.uint8))
    with pytest.raises(DataError, match="NaN"):
        run(np.full((12, 12, 12), np.nan, np.float32))
    coarse = Volume(
        np.arange(64000, dtype=np.uint16).reshape(40, 40, 40), Grid((40,) * 3, (26e3,) * 3)
    )
    with pytest.raises(VoxelSizeError, match="too coarse"):
        predict(coarse, model, tmp_path / "p.zarr")
    assert not (tmp_path / "p.zarr").exists()


def test_model_files_round_trip_and_foreign_ones_are_refused(tmp_path, model):
    from safetensors.torch import save_file

    save_model(model.network, model.card, tmp_path / "m.safetensors")
    back = load_model(tmp_path / "m.safetensors")
    assert (back.card, back.classes) == (model.card, ("mito", "mito_mem"))
    for key, value in model.network.state_dict().items():
        torch.testing.assert_close(back.network.state_dict()[key], value)
    save_file({"x": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(FormatError, match="not a clemreg network"):
        load_model(tmp_path / "foreign.safetensors")
    torch.save({"x": 1}, tmp_path / "pickle.pt")
    with pytest.raises(FormatError, match="not a safetensors"):
        load_model(tmp_path / "pickle.pt")
    with pytest.raises(MissingError, match="bundled"):
        model_info("no-such-network")
