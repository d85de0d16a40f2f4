from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from clemreg.segment.inference import FastUNet, joined, mirrored  # noqa: E402
from clemreg.segment.network import NetworkOptions, UNet  # noqa: E402
from clemreg.segment.predict import MOST_FEATURES, automatic_block  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("torch")]


SHAPES = [
    NetworkOptions(widths=(4, 6, 5), down=(1, 2, 1), up=(2, 2)),
    NetworkOptions(("mito",), (5,), (2,), ()),
    NetworkOptions(("a", "b", "c"), (4, 6, 8, 9), (1, 1, 1, 1), (2, 1, 2), 2),
    NetworkOptions(("a", "b"), (4, 6), (1, 1), (2,), 3),
]


def network(options):
    torch.manual_seed(3)
    unet = UNet(options).eval()
    with torch.no_grad():
        unet.head.weight *= 5
    return unet


@pytest.mark.parametrize("options", SHAPES)
def test_the_fast_network_computes_the_same(options):
    unet = network(options)
    shape = [unet.input_size(unet.step * k) for k in (1, 3, 2)]
    x = torch.rand(1, 1, *shape) * 2 - 1
    with torch.inference_mode():
        found, expected = joined(FastUNet(unet)(x)), unet(x)[0]
    assert expected.std() > 0.02
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("options", SHAPES)
def test_where_the_em_ends_less_of_it_gives_the_same_bits(options):
    """At any ends: beyond the second voxel all are the same, so nothing new is seen there."""
    unet = network(options)
    fast, halo = FastUNet(unet), options.halo
    cores = [options.step * k for k in (2, 1, 3)]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x = torch.from_numpy(rng.uniform(-1, 1, [1, 1, *(c + 2 * halo for c in cores)])).float()
        ends = rng.random((3, 2)) < 0.5 if seed else np.ones((3, 2), bool)
        for axis, (low, high) in enumerate(ends, start=2):
            n = x.shape[axis]
            if low:
                x.narrow(axis, 0, halo - 1).copy_(x.narrow(axis, halo - 2, 1).clone())
            if high:
                x.narrow(axis, n - halo + 1, halo - 1).copy_(
                    x.narrow(axis, n - halo + 1, 1).clone()
                )
        given = tuple(tuple(fast.margin if e else halo for e in pair) for pair in ends.tolist())
        part = x
        for axis, (low, high) in enumerate(given, start=2):
            part = part.narrow(axis, halo - low, x.shape[axis] - 2 * halo + low + high)
        with torch.inference_mode():
            assert torch.equal(joined(fast(part, given)), joined(fast(x)))


def test_small_blocks_have_the_bits_of_large_ones():
    """Torch by itself takes another algorithm below 20480 values; so the last bits would differ."""
    unet = network(NetworkOptions(widths=(8, 16), down=(1, 1), up=(2,), fold=2))
    fast = FastUNet(unet)
    x = torch.rand(1, 1, *[unet.input_size(n) for n in (88, 96, 16)]) * 2 - 1
    size = [unet.input_size(n) for n in (4, 12, 8)]
    with torch.inference_mode():
        large = joined(fast(x))
        for start in ((0, 0, 0), (84, 84, 8), (8, 20, 4)):
            core = [slice(a, a + n) for a, n in zip(start, size, strict=True)]
            small = joined(fast(x[:, :, core[0], core[1], core[2]]))
            z, y, x_ = (slice(a, a + n) for a, n in zip(start, (4, 12, 8), strict=True))
            assert torch.equal(small, large[:, z, y, x_])


def test_cubes_are_mirrored_as_their_voxels():
    cubes = torch.rand(2, 3, 2, 4, 2, 5, 2)
    torch.testing.assert_close(joined(mirrored(cubes, (0, 2))), joined(cubes).flip((1, 3)))
    assert torch.equal(mirrored(cubes, ()), cubes)


@pytest.mark.parametrize("options", [NetworkOptions(), NetworkOptions(fold=2)])
@pytest.mark.parametrize(
    "shape", [(230, 230, 230), (103, 480, 640), (16, 3000, 3000), (1000, 1100, 90)]
)
def test_blocks_suit_the_volume(options, shape):
    block = automatic_block(shape, options)
    assert all(b % options.step == 0 for b in block)
    widest = []
    for n, b in zip(shape, block, strict=True):
        inner = [(a > 0) + (a + b < n) for a in range(0, n, b)]  # ends inside the volume
        widest.append(b + max(inner) * options.halo)
    assert math.prod(widest) * options.widths[0] / options.fold**3 <= MOST_FEATURES

    def work(b):
        pieces = [-(-n // k) for n, k in zip(shape, b, strict=True)]
        return math.prod(p * k + (p - 1) * options.halo for p, k in zip(pieces, b, strict=True))

    cube = int((MOST_FEATURES / options.widths[0]) ** (1 / 3) * options.fold) - 2 * options.halo
    assert work(block) <= work((cube // 32 * 32,) * 3)
    thin = min(range(3), key=lambda axis: shape[axis])
    assert shape[thin] > 100 or block[thin] >= shape[thin]
