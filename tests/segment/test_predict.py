from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from clemreg.errors import DataError, FormatError, GridError, MissingError, VoxelSizeError  # noqa: E402
from clemreg.io.quantise import quantise  # noqa: E402
from clemreg.segment.data import (  # noqa: E402
    PatchOptions,
    PatchSampler,
    TrainingVolume,
    contrast_limits,
    normalise,
)
from clemreg.segment.models import Model, ModelCard, load_model, model_info, save_model  # noqa: E402
from clemreg.segment.network import NetworkOptions, UNet  # noqa: E402
from clemreg.segment.predict import PredictOptions, predict  # noqa: E402
from clemreg.segment.targets import class_targets, signed_distance_nm  # noqa: E402
from clemreg.segment.training import (  # noqa: E402
    Trainee,
    TrainOptions,
    balanced_loss,
    start_from,
    train,
)
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


def test_moving_the_input_moves_the_output(model):
    network = model.network
    x = torch.randn(1, 1, *[network.input_size(16)] * 3)
    shifted = torch.roll(x, network.step, dims=4)
    with torch.inference_mode():
        a, b = network(x), network(shifted)
    torch.testing.assert_close(a[..., : -network.step], b[..., network.step :])


def test_halo_is_the_receptive_field(model):
    network = model.network
    x = torch.randn(1, 1, *[network.input_size(4)] * 3, requires_grad=True)
    network(x)[0, 0, 0, 0, 0].backward()
    touched = (x.grad[0, 0] != 0).nonzero()
    assert int(touched.min()) >= 0
    assert int(touched.max()) <= 2 * network.halo + network.step - 1


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


# -- targets and training -------------------------------------------------------------------------


def test_signed_distance_is_brute_force():
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(0)
    spacing = np.array([5.24, 4.0, 4.0])
    mask = rng.random((7, 8, 9)) < 0.4
    found = signed_distance_nm(mask, spacing)
    points = np.argwhere(np.ones_like(mask)) * spacing
    inside, outside = points[mask.ravel()], points[~mask.ravel()]
    expected = np.where(
        mask.ravel(), cKDTree(outside).query(points)[0] - 2, 2 - cKDTree(inside).query(points)[0]
    )
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-5)


def test_class_targets_follow_the_organelle_and_membrane_peaks_inside_the_surface():
    distances = np.stack([[-30.0, 0.0, 12.0, 24.0, 60.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    distances = distances.astype(np.float32)[:, None, None]
    known = np.zeros(distances.shape, bool)
    known[0] = True
    (er, membrane, mito), seen = class_targets(distances, known, ("er", "mito_mem", "mito"))
    assert np.argmax(membrane) == 2
    np.testing.assert_allclose(membrane[0, 0, [1, 3]], 0, atol=1e-7)
    np.testing.assert_allclose(mito, np.tanh(distances[0] / 50), rtol=1e-6)
    np.testing.assert_allclose(er, np.tanh(distances[1] / 50), rtol=1e-6)
    assert seen.all(axis=(1, 2, 3)).tolist() == [False, True, True]
    np.testing.assert_array_equal(distances[0, 0, 0], [-30, 0, 12, 24, 60])  # left as it was


def logit(prediction):
    """What gives this prediction after the tanh."""
    return torch.atanh(prediction)


def test_loss_is_least_at_the_truth():
    """The gradient vanishes where prediction and target are equal, up to the Dice term."""
    target = torch.tanh(torch.linspace(-3, 3, 64).reshape(1, 1, 4, 4, 4))
    target = torch.cat([target, target * 0.5], dim=1)
    known = torch.ones_like(target, dtype=torch.bool)
    logits = logit(target).requires_grad_()
    balanced_loss(logits, target, known, ("mito", "mito_mem")).backward()
    assert float(logits.grad[:, 1].abs().max()) < 1e-7  # a membrane has no Dice term
    far = logits.grad[:, 0][target[:, 0].abs() > 0.9]
    assert float(far.abs().max()) < 1e-4


def test_loss_counts_both_sides_alike():
    """Without the Dice term: one wrong positive weighs as much as all negatives wrong alike."""
    target = torch.full((1, 2, 1, 1, 10), -0.5)
    target[..., :2] = 0.5
    known = torch.ones_like(target, dtype=torch.bool)
    right = logit(target)
    losses = []
    for side in (target[0, 1] > 0, target[0, 1] < 0):
        wrong = right.clone()
        wrong[0, 1][side] *= -1
        difference = balanced_loss(wrong, target, known, ("mito", "mito_mem"))
        losses.append(float(difference - balanced_loss(right, target, known, ("mito", "mito_mem"))))
    assert losses[0] == pytest.approx(losses[1])
    assert losses[0] > 0.05


def test_loss_leaves_out_the_unknown():
    classes = ("mito", "er")
    generator = torch.Generator().manual_seed(4)
    target = torch.tanh(torch.randn(1, 2, 4, 4, 4, generator=generator))
    logits = torch.randn(1, 2, 4, 4, 4, generator=generator)
    known = torch.rand(1, 2, 4, 4, 4, generator=generator) < 0.5
    known[:, 1] = False
    loss = balanced_loss(logits, target, known, classes)
    changed, other = logits.clone(), target.clone()
    changed[~known] = 50.0
    other[~known] = 0.99
    torch.testing.assert_close(balanced_loss(changed, other, known, classes), loss)
    changed[known] += 1.0
    assert float((balanced_loss(changed, other, known, classes) - loss).abs()) > 0.01


def test_folded_network_does_what_the_trainee_does():
    torch.manual_seed(5)
    trainee = Trainee(NetworkOptions(("mito", "er"), (4, 6, 8, 8), (1, 2, 2, 2), (2, 1, 2)))
    for norm in trainee.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        torch.nn.init.normal_(norm.weight, 1.0, 0.2)
        torch.nn.init.normal_(norm.bias)
    x = torch.randn(1, 1, 16, 24, 32)
    trainee.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            trainee.folded().padded_logits(x), trainee(x), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("widths", "down", "up", "halo"),
    [
        ((4, 6, 8), (2, 2, 2), (2, 2), 20),
        ((4, 6, 8, 8), (2, 2, 2, 2), (2, 1, 2), 42),
        ((4, 6), (1, 3), (3,), 10),
    ],
)
def test_halo_is_the_receptive_field_and_shifts_go_through(widths, down, up, halo):
    torch.manual_seed(1)
    network = UNet(NetworkOptions(("mito",), widths, down, up)).double().eval()
    assert network.halo == halo
    size = network.input_size(2 * network.step)
    x = torch.randn(1, 1, size, size, size, dtype=torch.double, requires_grad=True)
    y = network(x)
    assert y.shape[2:] == (2 * network.step,) * 3
    y[0, 0, -1, -1, -1].backward()
    reached = torch.nonzero(x.grad[0, 0])
    corner = size - 1 - halo  # the input voxel below this output
    # Pooling pairs voxels, so the field of one output voxel is up to step - 1 longer on one side.
    assert (reached.min(dim=0).values >= corner - halo - (network.step - 1)).all()
    assert (reached.min(dim=0).values < corner - halo + network.step).all()
    assert (reached.max(dim=0).values <= corner + halo).all()
    larger = torch.randn(1, 1, *(size + network.step,) * 3, dtype=torch.double)
    here = network(larger)[..., network.step :, network.step :, network.step :]
    there = network(larger[..., network.step :, network.step :, network.step :])
    torch.testing.assert_close(here, there)


def test_padded_pass_equals_the_valid_one_far_from_the_edge():
    torch.manual_seed(2)
    down = (1, 2, 2, 1)
    network = UNet(NetworkOptions(("mito",), (4, 6, 8, 8), down, (2, 1, 2))).double()
    n = network.input_size(8)
    # The padded pass pools from voxel 0, the valid one after its convolutions: start the valid
    # one where both pool the same voxels.
    start = -sum(count * 2**level for level, count in enumerate(down[:-1])) % network.step
    x = torch.randn(1, 1, *(-(-(n + start) // 8) * 8,) * 3, dtype=torch.double)
    padded = torch.tanh(network.padded_logits(x))
    assert padded.shape[2:] == x.shape[2:]
    valid = network(x[..., start : start + n, start : start + n, start : start + n])
    core = slice(start + network.halo, start + network.halo + 8)
    torch.testing.assert_close(padded[..., core, core, core], valid)


@pytest.mark.parametrize(
    ("down", "up"), [((2, 2, 2, 2), (2, 2, 2)), ((2, 2, 2), (2, 1, 2)), ((2, 0, 2, 2), (2, 1, 2))]
)
def test_impossible_shapes_are_refused(down, up):
    with pytest.raises(GridError):
        NetworkOptions(("mito",), (4, 6, 8, 8), down, up)


def test_starting_from_another_network_moves_heads_by_name():
    torch.manual_seed(3)
    old = UNet(NetworkOptions(("mito", "mito_mem"), (4, 6), (2, 2), (2,)))
    new = UNet(NetworkOptions(("er", "mito_mem", "mito"), (4, 6), (2, 2), (2,)))
    er = new.head.weight[0].clone()
    start_from(new, old)
    torch.testing.assert_close(new.head.weight[1], old.head.weight[1])
    torch.testing.assert_close(new.head.weight[2], old.head.weight[0])
    torch.testing.assert_close(new.head.weight[0], er)
    torch.testing.assert_close(new.down[0][0].weight, old.down[0][0].weight)
    with pytest.raises(FormatError, match=r"widths \(4, 6\)"):
        start_from(UNet(NetworkOptions(("mito",), (4, 8), (2, 2), (2,))), old)


def ball_volume(rng):
    grid = np.stack(np.meshgrid(*[np.arange(48) * 16.0] * 3, indexing="ij"), -1)
    distance = 150 - np.linalg.norm(grid - 376, axis=-1)
    em = np.where(distance > 0, 90, 170) + rng.normal(scale=8, size=distance.shape)
    distances = {"mito": distance.astype(np.float32)}
    return TrainingVolume(em.clip(0, 255).astype(np.uint8), distances, SPACING)


def test_patches_keep_image_and_distance_together():
    """After any turn and magnification the dark ball is where the distance is positive."""
    volume = ball_volume(np.random.default_rng(0))
    sampler = PatchSampler([volume], PatchOptions(16.0, 24, 6, scale=(0.8, 1.25)))
    agree = []
    for seed in range(12):
        x, distances, known = sampler.draw(np.random.default_rng(seed))
        assert x.shape == (36, 36, 36)
        assert distances.shape == known.shape == (2, 24, 24, 24)
        assert not known[1].any()  # nobody annotated the ER here
        distance = distances[0]
        core = x[6:-6, 6:-6, 6:-6]
        inside, outside = distance > 25, distance < -25
        if inside.sum() > 50 and outside.sum() > 50:
            agree.append(abs(core[inside].mean() - core[outside].mean()) > 3 * core[outside].std())
    assert len(agree) >= 6
    assert np.mean(agree) > 0.8


@pytest.mark.slow
def test_training_learns_a_ball_and_resumes_alike(tmp_path):
    volume = ball_volume(np.random.default_rng(0))
    small = {"batch": 1, "output": 24, "widths": (4, 8), "down": (2, 2), "up": (2,)}
    small |= {"margin": 8, "learning_rate": 3e-3}
    options = TrainOptions(**small, steps=60, checkpoint_every=20)
    straight = train([volume], options, checkpoint=tmp_path / "a.ckpt")
    assert np.mean(straight.losses[-15:]) < 0.75 * np.mean(straight.losses[:10])

    class Stop(Exception):
        pass

    def stop(step, _total, _message):
        if step == 50:
            raise Stop

    with pytest.raises(Stop):
        train([volume], options, checkpoint=tmp_path / "b.ckpt", progress=stop)
    resumed = train([volume], options, checkpoint=tmp_path / "b.ckpt")
    assert len(resumed.losses) == 20
    for key, value in straight.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[key], value)
    other = TrainOptions(**small, steps=61)
    with pytest.raises(FormatError, match="steps"):
        train([volume], other, checkpoint=tmp_path / "b.ckpt")
