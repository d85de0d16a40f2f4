from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import torch
from torch.nn import functional

from clemreg.errors import ConfigError, FormatError, GridError, MissingError
from clemreg.segment.checkpoints import (
    _relabelled,
    build,
    channel_order,
    load_cosem,
    read_checkpoint,
    read_npz,
)
from clemreg.segment.classes import MANY, category
from clemreg.segment.cosem import HALO, STEP, CosemOptions, CosemUNet
from clemreg.segment.setups import setup

pytestmark = pytest.mark.torch
NARROW = {"widths": (2, 3, 4, 5), "up_widths": (3, 2, 4)}


def on_meta(classes, input_nm) -> CosemUNet:
    with torch.device("meta"):
        return CosemUNet(CosemOptions(tuple(classes), input_nm))


def narrow(input_nm: float, seed: int = 0) -> CosemUNet:
    torch.manual_seed(seed)
    return CosemUNet(CosemOptions(("mito", "er"), input_nm, **NARROW)).eval()


def published_keys(count: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an 8 nm checkpoint, written out from the published description."""
    shapes = {}

    def conv(name, out, into, size):
        shapes[f"{name}.weight"] = (out, into, size, size, size)
        shapes[f"{name}.bias"] = (out,)

    for level, (into, out) in enumerate([(1, 12), (12, 72), (72, 432), (432, 2592)]):
        conv(f"backbone.0.l_conv.{level}.conv_pass.0", out, into, 3)
        conv(f"backbone.0.l_conv.{level}.conv_pass.2", out, out, 3)
    for level, (into, out) in enumerate([(84, 72), (144, 72), (864, 432)]):
        conv(f"backbone.0.r_conv.0.{level}.conv_pass.0", out, into, 3)
        conv(f"backbone.0.r_conv.0.{level}.conv_pass.2", out, out, 3)
    for level, (into, out) in enumerate([(72, 72), (432, 72), (2592, 432)]):
        conv(f"backbone.0.r_up.0.{level}.up.1", out, into, 1)
    conv("backbone.1.up.1", 72, 72, 1)
    for i in (0, 2):
        conv(f"backbone.2.conv_pass.{i}", 72, 72, 3)
    conv("prediction_head", count, 72, 1)
    return shapes


@pytest.mark.parametrize(("name", "parameters"), [("04", 234_967_826), ("46", 234_966_950)])
def test_names_shapes_and_size_of_the_published_networks(name, parameters):
    network = on_meta(setup(name).classes, 8.0)
    found = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    assert found == published_keys(len(setup(name).classes))
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_the_fine_network_has_no_last_upsampling():
    network = on_meta(setup("01").classes, 4.0)
    found = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    assert found == {
        k: v for k, v in published_keys(34).items() if not re.match(r"backbone\.[12]", k)
    }


@pytest.mark.parametrize(
    ("input_nm", "sizes"),
    [
        (4.0, {198: 18, 216: 36, 360: 180, 396: 216}),
        (8.0, {198: 32, 216: 68, 270: 176, 288: 212}),
    ],
)
def test_sizes_of_the_published_networks(input_nm, sizes):
    network = on_meta(MANY, input_nm)
    for size, output in sizes.items():
        assert network.options.output_size(size) == output
        x = torch.empty((1, 1, size, 198, 216), device="meta")
        expected = [network.options.output_size(n) for n in (size, 198, 216)]
        assert list(network(x).shape) == [1, 14, *expected]
        assert network.options.input_size(output) == size
        assert network.options.input_size(output + 17) == size
    for wrong in (180, 217, 200, 0):
        with pytest.raises(GridError, match="multiples of 18 from 198"):
            network.options.output_size(wrong)
    with pytest.raises(GridError, match="217 voxels"):
        network(torch.empty((1, 1, 216, 216, 217), device="meta"))
    with pytest.raises(GridError, match="4 or 8 nm, not 5"):
        CosemOptions(("mito",), 5.0)


def sees(size: int, scale: int) -> np.ndarray:
    """First and last input voxel that each output voxel can see: (output, 2), one axis.

    The published geometry written out in one dimension: every feature carries an interval.
    """

    def convolve(x):  # two kernels of 3
        return np.stack([x[:-4, 0], x[4:, 1]], axis=1)

    def pool(x, k):
        x = x.reshape(-1, k, 2)
        return np.stack([x[:, 0, 0], x[:, -1, 1]], axis=1)

    def middle(x, n):
        first = (len(x) - n) // 2
        return x[first : first + n]

    x = np.stack([np.arange(size)] * 2, axis=1)
    skips = []
    for k in (2, 3, 3):
        x = convolve(x)
        skips.append(x)
        x = pool(x, k)
    x = convolve(x)
    for k, factor in ((3, 3), (3, 9), (2, 18)):
        x = np.repeat(x, k, axis=0)
        x = middle(x, (len(x) - 4) // factor * factor + 4)
        skip = middle(skips.pop(), len(x))
        both = np.minimum(x[:, 0], skip[:, 0]), np.maximum(x[:, 1], skip[:, 1])
        x = convolve(np.stack(both, axis=1))
    return x if scale == 1 else convolve(np.repeat(x, scale, axis=0))


@pytest.mark.parametrize("input_nm", [4.0, 8.0])
def test_receptive_field(input_nm):
    """An unknown value (NaN) in one plane reaches exactly the outputs that can see the plane."""
    options = CosemOptions(("mito",), input_nm, widths=(1, 1, 1, 1), up_widths=(1, 1, 1))
    network = CosemUNet(options)
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    interval = sees(198, options.scale)
    assert len(interval) == options.output_size(198)
    for axis, planes in ((0, [5, *range(180, 198)]), (2, [17])):
        x = torch.zeros((198, 198, 198))
        x.index_fill_(axis, torch.tensor(planes), torch.nan)
        with torch.inference_mode():
            unknown = network(x[None, None])[0, 0].isnan().movedim(axis, 0)
        expected = ((interval[:, :1] <= planes) & (planes <= interval[:, 1:])).any(axis=1)
        assert expected.sum() == options.scale  # only the first voxels of the output
        assert unknown[:, 3, 5].numpy().tolist() == expected.tolist()


def test_halo_is_the_receptive_field_rounded_up_to_the_step():
    interval = sees(216, 1)
    reach = np.abs(interval - (np.arange(36)[:, None] + HALO))
    assert reach.max() <= HALO
    assert reach.max() > HALO - STEP


@pytest.mark.slow
@pytest.mark.parametrize("input_nm", [4.0, 8.0])
def test_moving_the_input_by_eighteen_voxels_moves_the_output(input_nm):
    network = narrow(input_nm)
    x = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (216,) * 3).astype(np.float32))
    with torch.inference_mode():
        whole = network(x[None, None])[0]
        moved = network(x[18:, :198, 18:][None, None])[0]
    step, n = 18 * network.options.scale, moved.shape[1]
    assert whole.std() > 0.001
    torch.testing.assert_close(whole[:, step:, :n, step:], moved, rtol=0, atol=1e-6)


def test_upsampling_is_the_trained_one():
    """TensorFlow: a transposed convolution with one matrix repeated over the window, then ReLU."""
    network = narrow(8.0)
    rng = torch.Generator().manual_seed(1)
    for up, factor in ((network.backbone[0].r_up[0][2], 3), (network.backbone[1], 2)):
        mix = up.up[1]
        torch.nn.init.zeros_(mix.bias)
        x = torch.randn((1, mix.in_channels, 4, 5, 6), generator=rng)
        kernel = mix.weight.transpose(0, 1).expand(-1, -1, factor, factor, factor)
        expected = functional.conv_transpose3d(x, kernel, stride=factor).relu()
        torch.testing.assert_close(up(x), expected)
        assert (expected == 0).any()
        torch.testing.assert_close(up(x), up.up(x))  # as the layers are listed


def as_published(network: CosemUNet) -> dict[str, torch.Tensor]:
    """State dict with the names in the published files, every weight twice."""
    out = {}
    for name, value in network.state_dict().items():
        bare = name.replace("backbone.", "unet.")
        if network.options.scale == 1:
            bare = bare.replace("unet.0.", "unet.")
        if bare.startswith("prediction_head"):
            out[bare] = out[bare.replace("prediction_head", "chain.1")] = value
        else:
            out[f"architecture.{bare}"] = out[f"chain.0.{bare}"] = value
    return out


@pytest.mark.parametrize("input_nm", [4.0, 8.0])
def test_published_layout_loads(tmp_path, input_nm):
    network = narrow(input_nm)
    torch.save({"model": as_published(network)}, tmp_path / "1820500")
    state = read_checkpoint(tmp_path / "1820500")
    loaded = build(network.options, state, tmp_path / "1820500")
    assert not loaded.training
    for name, value in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)


def test_tensorflow_variables_load(tmp_path):
    network = narrow(8.0)
    variables = {"beta1_power": np.float32(0.95)}
    for name, value in network.state_dict().items():
        array = value.numpy()
        own = re.sub(r"backbone\.0\.l_conv\.(\d)\.conv_pass\.", r"unet_layer_\1_left_", name)
        own = re.sub(r"backbone\.0\.r_conv\.0\.(\d)\.conv_pass\.", r"unet_layer_\1_right_", own)
        own = own.replace("backbone.2.conv_pass.", "final_conv_")
        own = own.replace("prediction_head", "conv_pass_0")
        if up := re.search(r"r_up\.0\.(\d)\.up\.1\.|backbone\.1\.up\.1\.", name):
            if name.endswith("bias"):
                network.state_dict()[name].zero_()
                continue
            level = up.group(1)
            own = f"unet_up_{int(level) + 1}_to_{level}" if level else "up_final"
            variables[f"{own}_kernel_variables:0"] = array.transpose(2, 3, 4, 0, 1)
            continue
        own = own.replace("_2.weight", "_1.weight").replace("_2.bias", "_1.bias")
        own = own.replace(".weight", "/kernel").replace(".bias", "/bias")
        kernel = array.transpose(2, 3, 4, 1, 0) if array.ndim == 5 else array
        variables[own] = kernel
        variables[f"{own}/Adam"] = kernel * 0
    path = tmp_path / "setup46.npz"
    np.savez(path, **variables)
    loaded = build(network.options, read_npz(path), path)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)


def meta_state(classes, input_nm):
    return on_meta(classes, input_nm).state_dict()


def test_published_setup45_is_the_8_nm_network(tmp_path, caplog):
    coarse = meta_state(setup("45").classes, 8.0)
    assert _relabelled(setup("45"), coarse, tmp_path).name == "setup46"
    assert "used as setup46" in caplog.text
    fine = meta_state(setup("45").classes, 4.0)
    assert _relabelled(setup("45"), fine, tmp_path).name == "setup45"
    with pytest.raises(FormatError, match=r"for 8 nm EM, but setup25 takes 4 nm"):
        _relabelled(setup("25"), coarse, tmp_path)
    with pytest.raises(FormatError, match=r"for 4 nm EM, but setup04 takes 8 nm"):
        _relabelled(setup("04"), fine, tmp_path)


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("save", [torch.save, lambda x, p: p.write_bytes(pickle.dumps(x))])
def test_executable_content_is_refused_unread(tmp_path, save):
    path = tmp_path / "setup04" / "1820500"
    path.parent.mkdir()
    save({"model": Malicious(tmp_path / "executed")}, path)
    with pytest.raises(FormatError, match=r"nothing in it was executed|not a PyTorch checkpoint"):
        load_cosem(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not a PyTorch checkpoint|more than weights"),
        (b"P5 7 7 255 not a checkpoint", "not a PyTorch checkpoint|more than weights"),
        ({"model": {}}, "no state dict"),
        ({"model": {"prediction_head.weight": 3.0}}, "is not a weight"),
        ([1, 2], "no state dict"),
        ({"model": {"fc.weight": torch.zeros(2, 2)}}, "foreign weights fc.weight"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content, text):
    path = tmp_path / "setup04" / "975000"
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(FormatError, match=text):
        load_cosem(path)


def test_foreign_keys_and_wrong_channels_are_named(tmp_path):
    network = narrow(8.0)
    state = dict(network.state_dict())
    with pytest.raises(FormatError, match=r"lacks prediction_head.bias; it has foreign weights fc"):
        build(
            network.options,
            {k: v for k, v in state.items() if k != "prediction_head.bias"}
            | {"fc": torch.zeros(1)},
            tmp_path,
        )
    three = CosemOptions(("mito", "mito_membrane", "mito_DNA"), 8.0, **NARROW)
    with pytest.raises(FormatError, match=r"shape \(2, 3, 1, 1, 1\), expected \(3, .*3 classes"):
        build(three, state, tmp_path)


def test_copies_that_differ_are_refused(tmp_path):
    weights = as_published(narrow(8.0))
    weights["chain.1.bias"] = weights["chain.1.bias"] + 1
    torch.save({"model": weights}, tmp_path / "x")
    with pytest.raises(FormatError, match="differs from its copy"):
        read_checkpoint(tmp_path / "x")


def test_a_setup_must_be_known(tmp_path):
    with pytest.raises(MissingError, match="no checkpoint"):
        load_cosem(tmp_path / "setup04" / "1")
    torch.save({"model": as_published(narrow(8.0))}, tmp_path / "1")
    with pytest.raises(MissingError, match="which setup"):
        load_cosem(tmp_path / "1")
    with pytest.raises(MissingError, match="no setup 'setup5'"):
        load_cosem(tmp_path / "1", "setup5")


def test_pickled_npz_is_refused(tmp_path):
    np.savez(tmp_path / "setup04.npz", conv_pass_0=np.array([{}], dtype=object))
    with pytest.raises(FormatError, match=r"not a readable \.npz"):
        load_cosem(tmp_path / "setup04.npz", "setup04")
    np.savez(tmp_path / "setup04.npz", other=np.zeros(3))
    with pytest.raises(FormatError, match="none of the variables"):
        load_cosem(tmp_path / "setup04.npz", "setup04")


def test_channels_by_name_in_any_vocabulary():
    order = channel_order(setup("04").classes, ("mt_out", "endo", "ecs"))
    assert [MANY[i] for i in order] == ["microtubules_out", "MVB", "ecs"]
    published = ("ecs", "pm", "mito", "mito_mem", "ves", "ves_mem", "endo", "endo_mem", "er",
                 "er_mem", "eres", "nuc", "mt", "mt_out")  # fmt: skip
    assert channel_order(setup("04").classes, published) == tuple(range(14))
    assert [category(n).name for n in ("nuc", "nucleo")] == list(setup("36").classes)
    with pytest.raises(ConfigError, match="does not predict golgi"):
        channel_order(MANY, ("golgi", "mito"))
