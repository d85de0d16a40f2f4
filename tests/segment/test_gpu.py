"""On a GPU the same comes out as on a processor: ``python -m pytest -m gpu``."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from clemreg.io.quantise import quantise  # noqa: E402
from clemreg.segment.blockwise import PredictOptions, find_limits  # noqa: E402
from clemreg.segment.cosem import CosemOptions, CosemUNet  # noqa: E402
from clemreg.segment.data import normalise  # noqa: E402
from clemreg.segment.models import load_model  # noqa: E402
from clemreg.segment.predict import float32_as_it_is, predict  # noqa: E402
from clemreg.segment.training import Outlets, TrainOptions, train  # noqa: E402
from clemreg.simulate.em import random_training_block  # noqa: E402
from clemreg.space.grid import Grid  # noqa: E402
from clemreg.volume import Volume  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.torch,
    pytest.mark.xdist_group("torch"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
]
OPTIONS = TrainOptions(
    spacing_nm=8.0, steps=12, batch=4, output=24, margin=8, classes=("mito",), widths=(8, 16),
    down=(2, 2), up=(2,), fold=2, threads=1, checkpoint_every=6, precision="float32",
)  # fmt: skip


class Balls:
    """Dark balls in noise."""

    def draw(self, rng):
        place = np.stack(np.meshgrid(*[np.arange(40.0)] * 3, indexing="ij"))
        centre = rng.uniform(14, 26, 3)[:, None, None, None]
        inside = 8 * (8 - np.linalg.norm(place - centre, axis=0))
        em = np.where(inside > 0, -0.6, 0.4) + 0.2 * rng.standard_normal(inside.shape)
        target = np.tanh(inside[None, 8:-8, 8:-8, 8:-8] / 50).astype(np.float32)
        return em.astype(np.float32), target, np.ones(target.shape, bool)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_on_a_gpu_is_training_on_a_processor(workers):
    options = dataclasses.replace(OPTIONS, workers=workers)
    here, there = (
        train(Balls(), dataclasses.replace(options, device=device)).losses
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(there, here, rtol=5e-3)
    assert np.ptp(here) > 0.05  # ten times the tolerance


def test_a_training_on_a_gpu_goes_on(tmp_path):
    """Close to the one that was not stopped: sums on GPUs are not in a fixed order."""
    options = dataclasses.replace(OPTIONS, device="cuda")

    def stop(step, _network):
        raise KeyboardInterrupt(step)

    straight = train(Balls(), options)
    with pytest.raises(KeyboardInterrupt):
        train(Balls(), options, checkpoint=tmp_path / "c", outlets=Outlets(keep=stop, keep_every=8))
    resumed = train(Balls(), options, checkpoint=tmp_path / "c")
    np.testing.assert_allclose(resumed.losses, straight.losses[6:], rtol=1e-3)
    assert next(straight.network.parameters()).device.type == "cpu"


def test_bfloat16_learns_as_float32_does():
    exact, rough = (
        train(Balls(), dataclasses.replace(OPTIONS, device="cuda", precision=precision)).losses
        for precision in ("float32", "bfloat16")
    )
    assert rough != exact
    np.testing.assert_allclose(rough, exact, rtol=0.05)


@pytest.fixture(scope="module")
def em():
    shape, spacing = (75, 91, 110), (8.0, 8.0, 8.0)
    pixels, _ = random_training_block(np.random.default_rng(7001), shape, spacing)
    return Volume(pixels, Grid(shape, spacing, frame="em"))


@pytest.fixture(scope="module")
def expected(em):
    """The plain network on the processor, the whole volume in one pass; outer voxels go on."""
    network = load_model("mito-8nm").network
    up = [-n % network.step for n in em.shape]
    ends = [(network.halo, network.halo + u) for u in up]
    x = np.pad(normalise(em.read(), find_limits(em)), ends, mode="edge")
    with torch.inference_mode():
        found = network(torch.from_numpy(x)[None, None])[0].numpy()
    z, y, x = em.shape
    return quantise(found)[:, :z, :y, :x].astype(int)


@pytest.mark.parametrize("block", [0, 40])
def test_a_gpu_predicts_what_a_processor_predicts(em, expected, block, tmp_path):
    """In float32 to one level of the stored 256, in blocks of any size."""
    options = PredictOptions(block=block, precise=True)
    found = predict(em, load_model("mito-8nm"), tmp_path / "p.zarr", options=options).read()
    assert np.abs(found - expected).max() <= 1
    assert (found == expected).mean() > 0.999
    assert np.ptp(expected[0]) > 150


def test_bfloat16_predicts_nearly_that_and_the_same_in_blocks(em, expected, tmp_path):
    whole, blocks = (
        predict(
            em, load_model("mito-8nm"), tmp_path / f"{block}.zarr",
            options=PredictOptions(block=block),
        ).read().astype(int)
        for block in (0, 40)
    )  # fmt: skip
    assert np.abs(whole - blocks).max() <= 1
    assert np.abs(whole - expected).mean() < 1
    assert ((whole[0] > 127) == (expected[0] > 127)).mean() > 0.998


def test_a_cosem_network_on_a_gpu():
    torch.manual_seed(3)
    network = CosemUNet(CosemOptions(("mito", "er"), 8.0, (2, 3, 4, 5), (3, 2, 4))).eval()
    x = torch.rand(1, 1, 198, 198, 198) * 2 - 1
    with torch.inference_mode(), float32_as_it_is(exact=True):
        torch.testing.assert_close(network.cuda()(x.cuda()).cpu(), network.cpu()(x))
