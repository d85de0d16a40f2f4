"""Checkpoints written as published, against a network written here from its description.

Nothing of clemreg's own network is used to make the files or the expected numbers: variables are
those of the TensorFlow originals (kernels z, y, x, in, out), and the network is a function of
them.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from clemreg.segment.checkpoints import (  # noqa: E402
    CosemModel,
    build,
    load_cosem,
    read_checkpoint,
    read_npz,
)
from clemreg.segment.classes import category  # noqa: E402
from clemreg.segment.contract import as_block_network  # noqa: E402
from clemreg.segment.cosem import CosemOptions  # noqa: E402
from clemreg.segment.setups import setup  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("torch")]

POOLED = (2, 3, 3)
# Features at each level on the way down, and on the way up: published, and few.
PUBLISHED = (12, 72, 432, 2592), (72, 72, 432)
FEW = (3, 4, 5, 6), (4, 3, 5)
# Channels of the published networks, as their publisher names them.
CHANNELS = {
    "setup04": "ecs pm mito mito_mem ves ves_mem endo endo_mem er er_mem eres nuc mt mt_out",
    "setup26.1": "mito mito_mem mito_ribo",
    "setup28": "er er_mem",
    "setup36": "nuc nucleo",
    "setup45": "ecs pm",
}


def kernels(widths, classes: int, coarse: bool) -> dict[str, tuple[int, int, int, bool]]:
    """Every convolution: edge of its kernel, channels in and out, whether it has a bias."""
    down, up = widths
    found = {}
    for level, (into, out) in enumerate(zip((1, *down), down, strict=False)):
        found[f"unet_layer_{level}_left_0"] = 3, into, out, True
        found[f"unet_layer_{level}_left_1"] = 3, out, out, True
    for level, (below, raised) in enumerate(zip((up[1], up[2], down[3]), up, strict=True)):
        found[f"unet_up_{level + 1}_to_{level}"] = 1, below, raised, False
        found[f"unet_layer_{level}_right_0"] = 3, down[level] + raised, up[level], True
        found[f"unet_layer_{level}_right_1"] = 3, up[level], up[level], True
    if coarse:
        found["up_final"] = 1, up[0], up[0], False
        found |= {f"final_conv_{i}": (3, up[0], up[0], True) for i in (0, 1)}
    return found | {"conv_pass_0": (1, up[0], classes, True)}


def drawn(widths, classes: int, coarse: bool, *, up_biases: bool) -> dict[str, np.ndarray]:
    """Random variables, such that features neither vanish nor grow; of both signs."""
    rng = np.random.default_rng(7)
    out = {}
    for name, (edge, into, outputs, biased) in kernels(widths, classes, coarse).items():
        scale = 0.8 * np.sqrt(2 / (into * edge**3))
        kernel = rng.normal(scale=scale, size=(edge,) * 3 + (into, outputs))
        out[f"{name}/kernel"] = kernel - 0.9 * kernel.mean(axis=(0, 1, 2, 3)) + 0.02
        if biased or up_biases:
            out[f"{name}/bias"] = rng.normal(scale=0.1, size=outputs) + 0.1
    return {name: values.astype(np.float32) for name, values in out.items()}


def convolve(name: str, variables: dict[str, np.ndarray], x: torch.Tensor) -> torch.Tensor:
    kernel = torch.einsum("zyxio->oizyx", torch.from_numpy(variables[f"{name}/kernel"]))
    return functional.conv3d(x, kernel.contiguous(), torch.from_numpy(variables[f"{name}/bias"]))


def convolve_twice(name: str, variables: dict[str, np.ndarray], x: torch.Tensor) -> torch.Tensor:
    for i in (0, 1):
        x = convolve(f"{name}_{i}", variables, x).clamp(min=0)
    return x


def upsample(name, variables: dict[str, np.ndarray], x: torch.Tensor, factor: int) -> torch.Tensor:
    """Transposed convolution whose kernel is one matrix, repeated over the window; then ReLU."""
    matrix = torch.from_numpy(variables[f"{name}/kernel"][0, 0, 0])
    window = matrix[:, :, None, None, None].repeat(1, 1, factor, factor, factor)
    bias = torch.from_numpy(variables.get(f"{name}/bias", np.zeros(len(matrix.T), np.float32)))
    return functional.conv_transpose3d(x, window, bias, stride=factor).clamp(min=0)


def middle(x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    for axis, m in enumerate(sizes, start=2):
        spare = x.shape[axis] - m
        x = x.narrow(axis, spare // 2, m)
    return x


@torch.inference_mode()
def by_description(variables: dict[str, np.ndarray], em: np.ndarray) -> np.ndarray:
    """EM (z, y, x) to (class, z, y, x)."""
    x, skips = torch.from_numpy(em)[None, None], []
    for level in range(4):
        x = convolve_twice(f"unet_layer_{level}_left", variables, x)
        if level < 3:
            skips.append(x)
            x = functional.max_pool3d(x, POOLED[level])
    for level, remaining in ((2, 3), (1, 9), (0, 18)):
        x = upsample(f"unet_up_{level + 1}_to_{level}", variables, x, POOLED[level])
        # The largest size from which two kernels leave a multiple of what was pooled from here on.
        fits = [max(m for m in range(n + 1) if (m - 4) % remaining == 0) for n in x.shape[2:]]
        x = torch.cat([middle(skips[level], fits), middle(x, fits)], dim=1)
        x = convolve_twice(f"unet_layer_{level}_right", variables, x)
    if "up_final/kernel" in variables:
        x = convolve_twice("final_conv", variables, upsample("up_final", variables, x, 2))
    return convolve("conv_pass_0", variables, x)[0].numpy()


def published_name(name: str, coarse: bool) -> str:
    """Name of a convolution in the published PyTorch files, without their wrappers."""
    kind, *rest = name.split("_")
    if name == "conv_pass_0":
        return "prediction_head"
    if kind != "unet":
        return "unet.1.up.1" if name == "up_final" else f"unet.2.conv_pass.{2 * int(rest[-1])}"
    body = "unet.0" if coarse else "unet"
    if rest[0] == "up":
        return f"{body}.r_up.0.{rest[-1]}.up.1"
    side = "l_conv" if rest[2] == "left" else "r_conv.0"
    return f"{body}.{side}.{rest[1]}.conv_pass.{2 * int(rest[3])}"


def write_pickle(path, variables: dict[str, np.ndarray]) -> None:
    """Write as CellMap publishes: every weight twice, under the names of two wrappers."""
    coarse = "up_final/kernel" in variables
    model = {}
    for full, values in variables.items():
        name, kind = full.split("/")
        own = published_name(name, coarse)
        suffix = "weight" if kind == "kernel" else "bias"
        value = torch.from_numpy(values.transpose(4, 3, 0, 1, 2).copy() if "k" in kind else values)
        if own == "prediction_head":
            model[f"prediction_head.{suffix}"] = model[f"chain.1.{suffix}"] = value
        else:
            model[f"architecture.{own}.{suffix}"] = model[f"chain.0.{own}.{suffix}"] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model, "iteration": 1}, path)


def write_tensorflow(path, variables: dict[str, np.ndarray]) -> None:
    """Write the variables by name, with what the optimiser keeps; up kernels are (out, in)."""
    named = {"beta1_power": np.float32(0.95), "global_step": np.int64(5)}
    for full, values in variables.items():
        name, array = full, values
        if "up_" in full:
            name = f"{full.removesuffix('/kernel')}_kernel_variables"
            array = values.swapaxes(3, 4)
        named |= {f"{name}:0": array, f"{name}/Adam:0": array + 1, f"{name}/Adam_1:0": array + 2}
    np.savez(path, **named)


def pieces(shape, seed: int) -> np.ndarray:
    """EM in cubes of six voxels, so that there is something to see after all the pooling."""
    em = np.random.default_rng(seed).uniform(-1, 1, [n // 6 for n in shape]).astype(np.float32)
    return em.repeat(6, 0).repeat(6, 1).repeat(6, 2)


@pytest.mark.parametrize(("nm", "size"), [(4.0, 198), (8.0, 216)])
@pytest.mark.parametrize("layout", ["pickle", "tensorflow"])
def test_it_computes_what_the_description_says(tmp_path, nm, size, layout):
    classes = CHANNELS["setup26.1"].split()
    variables = drawn(FEW, len(classes), nm == 8, up_biases=layout == "pickle")
    path = tmp_path / "checkpoint.npz"
    (write_pickle if layout == "pickle" else write_tensorflow)(path, variables)
    state = (read_checkpoint if layout == "pickle" else read_npz)(path)
    chosen = setup("26.1" if nm == 8 else "25")
    network = build(CosemOptions(chosen.classes, nm, *FEW), state, path)
    em = pieces((size, 198, 198), seed=0)
    expected = by_description(variables, em)
    with torch.inference_mode():
        found = network(torch.from_numpy(em)[None, None])[0].numpy()
    assert found.shape == expected.shape
    assert found.shape[1] == {198: 18, 216: 68}[size]
    assert expected.std(axis=(1, 2, 3)).min() > 0.02  # every channel says something
    np.testing.assert_allclose(found, expected, atol=5e-5 * np.abs(expected).max())


def test_channels_go_by_name_and_lie_in_place(tmp_path):
    """As `clemreg segment` runs it: in another order, and only what moves with the input."""
    classes = CHANNELS["setup26.1"].split()
    variables = drawn(FEW, len(classes), True, up_biases=True)
    write_pickle(tmp_path / "x", variables)
    options = CosemOptions(setup("26.1").classes, 8.0, *FEW)
    network = build(options, read_checkpoint(tmp_path / "x"), tmp_path / "x")
    model = CosemModel(setup("26.1"), network, tmp_path / "x")
    block = as_block_network(model, most=68, classes=("mito-ribo", "mito"))
    em = pieces(block.input_size, seed=1)
    expected = by_description(variables, em)[[classes.index("mito_ribo"), classes.index("mito")]]
    assert (block.input_size, block.output_size) == ((216,) * 3, (36,) * 3)
    inner = expected[:, 16:52, 16:52, 16:52]
    np.testing.assert_allclose(block(em), inner, atol=5e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", CHANNELS)
def test_published_files_load_whole(tmp_path, name, caplog):
    """All names and shapes at full width; each weight is one number that says which it is."""
    published = CHANNELS[name].split()
    path = tmp_path / name / "625000"
    model, numbers = {}, {}
    for full, (edge, into, out, _) in kernels(PUBLISHED, len(published), True).items():
        own = published_name(full, True)
        for kind, shape in (("weight", (out, into, *(edge,) * 3)), ("bias", (out,))):
            numbers[own, kind] = float(len(numbers))
            value = torch.tensor(numbers[own, kind]).expand(shape)  # takes no memory
            if own == "prediction_head":
                model[f"{own}.{kind}"] = model[f"chain.1.{kind}"] = value
            else:
                model[f"architecture.{own}.{kind}"] = model[f"chain.0.{own}.{kind}"] = value
    path.parent.mkdir()
    torch.save({"model": model}, path)
    assert path.stat().st_size < 1e6
    loaded = load_cosem(path)
    own_name = "setup46" if name == "setup45" else name
    assert (loaded.setup.name, loaded.setup.input_nm) == (own_name, 8.0)
    assert ("used as setup46" in caplog.text) == (name == "setup45")
    assert [setup_class.cellmap for setup_class in map(category, loaded.classes)] == published
    state = loaded.network.state_dict()
    assert len(state) == len(numbers) == 42
    for (own, kind), value in numbers.items():
        found = state[f"{own.replace('unet.', 'backbone.', 1)}.{kind}"]
        assert found.flatten()[[0, -1]].tolist() == [value, value]
    biases = {"setup04": 14, "setup26.1": 3}.get(name, 2)
    assert sum(v.numel() for v in state.values()) == 234_966_804 + 73 * biases
