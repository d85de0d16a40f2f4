from __future__ import annotations

import hashlib
import json
import logging
import re
import shlex
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from clemreg.cli.app import run_app
from clemreg.errors import ConfigError, DependencyError, FormatError, GridError, VoxelSizeError
from clemreg.io.volumes import open_volume
from clemreg.segment.blockwise import PredictOptions
from clemreg.segment.checkpoints import CosemModel
from clemreg.segment.contract import BlockNetwork, as_block_network, load_script
from clemreg.segment.cosem import CosemOptions, CosemUNet
from clemreg.segment.exchange import (
    block_network,
    export_network,
    import_network,
    network_info,
    open_network,
    write_safetensors,
)
from clemreg.segment.external import output_grid, predict_with
from clemreg.segment.models import ModelCard, load_model, save_model
from clemreg.segment.network import NetworkOptions, UNet
from clemreg.segment.setups import Setup
from clemreg.space.grid import Grid
from clemreg.volume import Volume

pytestmark = pytest.mark.torch
REPO = Path(__file__).parents[2]
CLASSES = ("mito", "er")
EM = Grid((9, 14, 21), (8.0, 8.0, 8.0), (300.0, -200.0, 70.0), "em")


@pytest.fixture
def own(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "own.safetensors"
    options = NetworkOptions(CLASSES, widths=(2, 3, 4))
    save_model(UNet(options).eval(), ModelCard("own", (5.24, 4.0, 4.0), ("x",), 7), path)
    return path


def cosem(input_nm=8.0) -> CosemModel:
    torch.manual_seed(1)
    options = CosemOptions(CLASSES, input_nm, widths=(2, 3, 4, 5), up_widths=(3, 2, 4))
    return CosemModel(Setup("setup46", input_nm, CLASSES, 1), CosemUNet(options).eval(), "x")


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:DeprecationWarning")
def test_torchscript_runs_without_clemreg(own, tmp_path):
    out = export_network(own, tmp_path / "own.ts")
    extra = {"clemreg.json": ""}
    script = torch.jit.load(out, _extra_files=extra)
    meta = json.loads(extra["clemreg.json"])
    assert meta["classes"] == list(CLASSES)
    assert meta["input_voxel_size_nm"] == [5.24, 4.0, 4.0]
    assert meta["input"].endswith("clipped at -1.5 and 1.5")
    network = open_network(own).network
    x = torch.rand((2, 1, 52, 44, 48))  # another size than it was traced with
    with torch.inference_mode():
        torch.testing.assert_close(script(x), network(x), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_onnx_gives_the_same_numbers(own, tmp_path):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    out = export_network(own, tmp_path / "own.onnx", block=48)
    onnx.checker.check_model(str(out), full_check=True)
    assert [p.name for p in tmp_path.glob("*.onnx*")] == ["own.onnx"]  # weights inside
    session = onnxruntime.InferenceSession(str(out))
    x = np.random.default_rng(0).uniform(-1, 1, (1, 1, 48, 48, 48)).astype(np.float32)
    assert session.get_inputs()[0].shape == list(x.shape)
    meta = json.loads(session.get_modelmeta().custom_metadata_map["clemreg.json"])
    assert meta["name"] == "own"
    with torch.inference_mode():
        expected = open_network(own).network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(None, {"em": x})[0], expected, atol=1e-5)


def test_onnx_says_what_it_needs(own, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(DependencyError, match="needs onnx and onnxscript") as error:
        export_network(own, tmp_path / "own.onnx")
    assert "clemreg-toolkit[onnx]" in error.value.hint
    with pytest.raises(GridError, match="cannot take 45 voxels"):
        monkeypatch.undo()
        export_network(own, tmp_path / "own.onnx", block=45)
    with pytest.raises(ConfigError, match=r"\.safetensors, \.ts, \.onnx"):
        export_network(own, tmp_path / "own.pt")


def test_safetensors_there_and_back(own, tmp_path):
    copy = tmp_path / "copy.safetensors"
    import_network(own, copy)
    for name, value in open_network(own).network.state_dict().items():
        assert torch.equal(open_network(copy).network.state_dict()[name], value)
    assert network_info(copy)["card"]["steps"] == 7
    model, kept = cosem(), tmp_path / "cosem.safetensors"
    write_safetensors(model, kept)
    loaded = open_network(kept)
    assert isinstance(loaded, CosemModel)
    assert (loaded.setup.name, loaded.classes) == ("setup46", CLASSES)
    for name, value in model.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], value)
    info = network_info(kept)
    assert info["input_voxel_size_nm"] == [8.0] * 3
    assert info["output_voxel_size_nm"] == [4.0] * 3


def test_the_same_network_is_the_same_file(own, tmp_path):
    """Also when another process writes it: what a resumed training gives can be compared."""
    network = open_network(own)
    written = set()
    for i in range(12):  # three texts have six orders
        write_safetensors(network, tmp_path / f"{i}.safetensors")
        written.add(hashlib.sha256((tmp_path / f"{i}.safetensors").read_bytes()).hexdigest())
    assert len(written) == 1
    again = open_network(tmp_path / "0.safetensors")
    state = network.network.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in again.network.state_dict().items())


def test_command_line(own, tmp_path, capsys):
    copy = tmp_path / "copy.safetensors"
    report = str(tmp_path / "i.json")
    assert run_app(["model", "import", str(own), "--out", str(copy), "--json", report]) == 0
    assert json.loads((tmp_path / "i.json").read_text())["classes"] == list(CLASSES)
    assert run_app(["model", "export", str(copy), "--out", str(tmp_path / "x.ts")]) == 0
    assert run_app(["model", "export", str(own), "--out", str(tmp_path / "x.h5")]) == 1
    assert "endings: .safetensors, .ts, .onnx" in capsys.readouterr().err
    (tmp_path / "setup04").mkdir()
    torch.save({"model": {"backbone.a": torch.zeros(1)}}, tmp_path / "setup04" / "625000")
    bad = [
        "model",
        "import",
        str(tmp_path / "setup04" / "625000"),
        "--overwrite",
        "--out",
        str(copy),
    ]
    assert run_app(bad) == 1
    assert "setup04 takes 8 nm" in capsys.readouterr().err
    assert run_app([*bad, "--setup", "01"]) == 1
    assert "does not hold the COSEM network" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["own", "own.pt", "own.model"])
def test_safetensors_of_another_name_are_known_by_their_first_bytes(own, tmp_path, name):
    other = own.rename(tmp_path / name)
    assert open_network(other).card.name == "own"
    assert block_network(other) is None  # clemreg's own way to predict, not that of a script
    write_safetensors(cosem(), tmp_path / "cosem.safetensors")
    other = (tmp_path / "cosem.safetensors").rename(tmp_path / f"cosem-{name}")
    assert open_network(other).setup.name == "setup46"
    assert block_network(other).classes == CLASSES


@pytest.mark.parametrize("ending", ["", ".safetensor", ".tif", ".pt"])
def test_what_is_no_network_is_called_what_it_is(tmp_path, ending, capsys):
    import tifffile

    tifffile.imwrite(tmp_path / "em.tif", np.zeros((6, 8, 9), np.uint8))
    image = (tmp_path / "em.tif").rename(tmp_path / f"em{ending}")
    command = ["model", "import", "--setup", "04", "--out", str(tmp_path / "o.safetensors")]
    assert run_app([*command, str(image)]) == 1
    assert "is not a PyTorch checkpoint: it is a TIFF" in capsys.readouterr().err
    other = tmp_path / f"other{ending}"
    for content, words in ((b"", "it is empty"), (b"root:x:0:0", "it is neither safetensors nor")):
        other.write_bytes(content)
        assert run_app([*command, str(other)]) == 1
        assert words in capsys.readouterr().err


def test_what_is_no_network(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"not safetensors")
    with pytest.raises(FormatError, match="not a safetensors file"):
        open_network(path)
    write_safetensors(cosem(), path)
    from safetensors.torch import load_file, save_file

    header = {"format": "clemreg-cosem-1", "setup": "{}", "network": "{}"}
    save_file(load_file(path), path, metadata=header)
    with pytest.raises(FormatError, match="broken header"):
        open_network(path)


SCRIPT = """
import torch
from torch.nn.functional import interpolate

input_size = (7, 8, 10)
output_size = (5, 8, 4)
input_voxel_size = (8.0, 8.0, 8.0)
output_voxel_size = (8.0, 4.0, 8.0)
output_channels = ("sum", "left")

def model(x):
    x = interpolate(x, scale_factor=(1, 2, 1), mode="nearest")
    mean = torch.nn.functional.avg_pool3d(x, (3, 9, 7), stride=1)
    return torch.cat([mean, x[:, :, 1:-1, 4:-4, :4]], dim=1)
"""


def test_any_script_that_keeps_the_contract(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SCRIPT)
    network = load_script(path)
    assert (network.scale, network.halo) == ((1, 2, 1), (1, 2, 3))
    values = np.random.default_rng(0).integers(0, 255, EM.shape).astype(np.uint8)
    em = Volume(values, EM)
    out = predict_with(em, network, tmp_path / "o.zarr", options=PredictOptions(limits=(0, 255)))
    assert out.channels == ("sum", "left")
    assert out.grid.shape == (9, 28, 21)
    assert out.grid.spacing_nm == (8, 4, 8)
    assert out.grid.origin_nm == (300, -202, 70)
    padded = np.pad(values * (2 / 255) - 1, ((1, 1), (2, 2), (3, 3)), mode="edge")
    fine = np.repeat(padded, 2, axis=1).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(fine, (3, 9, 7))[:, :28]
    expected = np.stack([windows.mean(axis=(3, 4, 5)), fine[1:-1, 4:-4, :-6]])
    stored = np.clip(np.rint(expected * 128 + 127), 0, 255)
    assert np.abs(out.read().astype(int) - stored).max() <= 1
    assert (out.read() == stored).mean() > 0.99
    assert network_info(path)["classes"] == ["sum", "left"]


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:DeprecationWarning")
def test_the_script_of_the_guide_runs_the_network_that_the_guide_exports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    guide = (REPO / "docs" / "how-to" / "own-network.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (text,) = [block for block in blocks if "torch.jit.load" in block]
    assert run_app(shlex.split(re.findall(r"clemreg (model export .*\.ts)", guide)[0])) == 0
    (tmp_path / "network.py").write_text(text)
    script, bundled = load_script("network.py"), load_model("mito-16nm")
    em = np.random.default_rng(0).uniform(-1, 1, script.input_size).astype(np.float32)
    found = script(em)  # of the shape that the script says, or it is refused
    with torch.inference_mode():
        corner = bundled.network(torch.from_numpy(em[:44, :44, :44])[None, None])[0].numpy()
    np.testing.assert_allclose(found[:, :4, :4, :4], corner, atol=1e-4)
    assert (script.classes, script.input_nm) == (bundled.classes, bundled.card.spacing_nm)


def test_an_interrupted_prediction_goes_on(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SCRIPT)
    network = load_script(path)
    em = Volume(np.random.default_rng(0).integers(0, 255, EM.shape).astype(np.uint8), EM)
    whole = predict_with(em, network, tmp_path / "whole.zarr").read()
    calls = []
    ledger = tmp_path / ".o.zarr.blocks"

    def noted():
        return ledger.read_text().count("\n") - 1

    def stops(block):
        calls.append(1)
        if len(calls) == 5:
            deadline = time.monotonic() + 60
            while noted() < 3 and time.monotonic() < deadline:  # others write what they have
                time.sleep(0.005)
            raise KeyboardInterrupt
        return network.run(block)

    parts = {k: getattr(network, k) for k in network.__dataclass_fields__}
    with pytest.raises(KeyboardInterrupt):
        predict_with(em, BlockNetwork(**parts | {"run": stops}), tmp_path / "o.zarr")
    assert not (tmp_path / "o.zarr").exists()
    before, done = len(calls), noted()
    out = predict_with(em, BlockNetwork(**parts | {"run": stops}), tmp_path / "o.zarr")
    np.testing.assert_array_equal(out.read(), whole)
    assert done >= 3
    assert len(calls) - before == 2 * 4 * 6 - done


def test_a_block_is_computed_while_others_are_read_and_written(tmp_path):
    """The network sees one block at a time; meanwhile another one is read."""
    path = tmp_path / "mine.py"
    path.write_text(SCRIPT)
    network = load_script(path)
    inside, together, read_meanwhile = [], [], threading.Event()

    class Watched:
        shape, dtype = EM.shape, np.dtype(np.uint8)

        def __getitem__(self, key):
            if inside:
                read_meanwhile.set()
            return np.full([k.stop - k.start for k in key], 7, np.uint8)

    def watched(block):
        inside.append(1)
        together.append(len(inside))
        if len(together) == 1:
            read_meanwhile.wait(60)
        inside.pop()
        return network.run(block)

    parts = {k: getattr(network, k) for k in network.__dataclass_fields__}
    predict_with(
        Volume(Watched(), EM), BlockNetwork(**parts | {"run": watched}), tmp_path / "o.zarr",
        options=PredictOptions(limits=(0, 9)),
    )  # fmt: skip
    assert read_meanwhile.is_set()
    assert max(together) == 1


def test_a_script_that_gives_no_numbers_is_stopped(tmp_path):
    """Written as bytes, NaN would read far outside."""
    path = tmp_path / "mine.py"
    path.write_text(SCRIPT + "\nnet = model\nmodel = lambda x: net(x) * float('nan')\n")
    em = Volume(np.arange(EM.size, dtype=np.float32).reshape(EM.shape), EM, name="em")
    with pytest.raises(FormatError, match=r"mine.*gave values that are not finite"):
        predict_with(em, load_script(path), tmp_path / "o.zarr")
    assert not (tmp_path / "o.zarr").exists()


def test_another_script_or_other_weights_do_not_go_on(tmp_path):
    """What is unfinished is gone on with by the network that began it, or by none."""
    path, em = tmp_path / "mine.py", np.random.default_rng(0).integers(0, 255, EM.shape)
    volume = Volume(em.astype(np.uint8), EM, name="em")
    path.write_text(SCRIPT)
    network = load_script(path)

    def stop(done, _total, _message):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_with(volume, network, tmp_path / "o.zarr", progress=stop)
    path.write_text(SCRIPT.replace("(3, 9, 7)", "(3, 9, 7,)"))
    with pytest.raises(FormatError, match=r"\.o\.zarr\.partial is an unfinished output of another"):
        predict_with(volume, load_script(path), tmp_path / "o.zarr")
    one, other = (as_block_network(cosem(), most=40) for _ in range(2))
    assert one.job == other.job
    changed = cosem()
    changed.network.prediction_head.bias.data += 1
    assert as_block_network(changed, most=40).job != one.job
    path.write_text(SCRIPT)
    assert load_script(path).job == network.job
    predict_with(volume, load_script(path), tmp_path / "o.zarr")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("del model", "does not define model"),
        ("input_size = 7", "are not three numbers"),
        ("input_size = (7, 8, 0)", "not three positive"),
        ("output_size = (5, 8, 5)", "middle"),
        ("output_size = (5, 7, 4)", "middle|no multiple"),
        ("output_voxel_size = (8.0, 3.0, 8.0)", "whole multiple"),
        ("output_channels = ('a', 'a')", "distinct names"),
    ],
)
def test_scripts_that_do_not_keep_it(tmp_path, line, text):
    path = tmp_path / "mine.py"
    path.write_text(f"{SCRIPT}\n{line}\n")
    with pytest.raises(ConfigError, match=text):
        load_script(path)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "raise RuntimeError('no weights\\nhere')",
            r"py stopped in line 16: RuntimeError: no",
        ),
        ("def (:", r"stopped in line 16: SyntaxError"),
        ("import no_such_module", r"stopped in line 16: ModuleNotFoundError: No module"),
        ("raise SystemExit(3)", r"stopped in line 16: SystemExit: 3"),
    ],
)
def test_scripts_that_stop(tmp_path, line, text):
    path = tmp_path / "mine.py"
    path.write_text(f"{SCRIPT}\n{line}\n")
    with pytest.raises(ConfigError, match=text) as error:
        load_script(path)
    assert "\n" not in error.value.message


def test_a_model_that_stops_is_told(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"{SCRIPT}\n\ndef model(x):\n    return x[7]\n")
    em = Volume(np.ones(EM.shape, np.uint8), EM)
    with pytest.raises(FormatError, match=r"mine stopped at a block of \(7, 8, 10\) .*IndexError"):
        predict_with(
            em, load_script(path), tmp_path / "o.zarr", options=PredictOptions(limits=(0, 9))
        )


def test_a_model_that_gives_something_else_is_stopped(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SCRIPT.replace('("sum", "left")', '("sum",)'))
    em = Volume(np.ones(EM.shape, np.uint8), EM)
    with pytest.raises(FormatError, match=r"gave an array of shape \(2, 5, 8, 4\)"):
        predict_with(
            em, load_script(path), tmp_path / "o.zarr", options=PredictOptions(limits=(0, 9))
        )
    wrong = Volume(np.ones(EM.shape, np.uint8), Grid(EM.shape, (40.0, 40.0, 16.0)))
    with pytest.raises(VoxelSizeError, match=r"too coarse for a network made for \(8\.0, 8\.0, 8"):
        predict_with(wrong, load_script(path), tmp_path / "o.zarr")


IDENTITY = """
input_size = output_size = (4, 5, 6)
input_voxel_size = output_voxel_size = (8.0, 8.0, 8.0)
output_channels = ("same",)

def model(x):
    return x
"""


def test_other_voxels_are_resampled_for_a_script_too(tmp_path, caplog):
    """What is linear in nm stays so: each voxel has the value of its place."""
    (tmp_path / "mine.py").write_text(IDENTITY)
    grid = Grid((9, 14, 40), (13.0, 12.0, 3.0), (300.0, -200.0, 70.0), "em")
    slope = np.array([0.6, -0.5, 0.7])
    start = 100 - grid.centre_nm @ slope
    values = (grid.points_nm() @ slope + start).astype(np.float32)
    options = PredictOptions(limits=(0, 200))
    out = predict_with(
        Volume(values, grid), load_script(tmp_path / "mine.py"), tmp_path / "o.zarr",
        options=options,
    )  # fmt: skip
    assert "resampled to (8.0, 8.0, 8.0) nm" in caplog.text
    assert out.grid.spacing_nm == (8.0, 8.0, 8.0)
    inner = (slice(2, -2),) * 3
    expected = 128 * (((out.grid.points_nm() @ slope + start) / 100) - 1)[inner] + 127
    assert expected.std() > 10
    # Rounded; and means over 8/3 voxels are a little off the middle.
    np.testing.assert_allclose(out.read()[0][inner], expected, atol=0.6)


def test_a_nearby_voxel_size_is_taken_with_a_note(tmp_path, caplog):
    path = tmp_path / "mine.py"
    path.write_text(SCRIPT)
    grid = Grid(EM.shape, (10.48, 8.0, 8.0), (1.0, 2.0, 3.0), "em")
    with caplog.at_level(logging.WARNING):
        out = predict_with(
            Volume(np.ones(EM.shape, np.uint8), grid), load_script(path), tmp_path / "o.zarr",
            options=PredictOptions(limits=(0, 2)),
        )  # fmt: skip
    assert "are taken as the network's" in caplog.text
    assert out.grid.spacing_nm == (10.48, 4.0, 8.0)


@pytest.mark.slow
def test_cosem_blocks_of_any_size_give_the_same_voxels(tmp_path):
    model = cosem(8.0)
    grid = Grid((10, 12, 30), (8.0,) * 3, (1.0, 2.0, 3.0), "em")
    em = Volume(np.random.default_rng(0).integers(0, 255, grid.shape).astype(np.uint8), grid)
    scale = model.network.options.scale
    results = []
    for most in (40, 80):
        network = as_block_network(model, most=most, classes=("er", "mito"))
        assert network.classes == ("er", "mito")
        results.append(
            predict_with(
                em, network, tmp_path / f"{most}.zarr", options=PredictOptions(limits=(0, 255))
            )
        )
    small, large = (r.read() for r in results)
    assert small.shape == (2, 10 * scale, 12 * scale, 30 * scale)
    assert results[0].grid == output_grid(grid, network)
    np.testing.assert_array_equal(small, large)
    assert small.std() > 0
    kept = tmp_path / "cosem.safetensors"
    write_safetensors(model, kept)
    assert block_network(kept).classes == CLASSES


def test_segment_takes_a_script(tmp_path):
    from clemreg.io.volumes import open_volume, write_volume

    (tmp_path / "mine.py").write_text(SCRIPT)
    values = np.random.default_rng(0).integers(0, 255, EM.shape).astype(np.uint8)
    write_volume(tmp_path / "em.zarr", Volume(values, EM))
    out = tmp_path / "o.zarr"
    arguments = ["segment", str(tmp_path / "em.zarr"), "--out", str(out)]
    assert run_app([*arguments, "--model", str(tmp_path / "mine.py")]) == 0
    assert open_volume(out).channels == ("sum", "left")
    assert run_app([*arguments, "--overwrite", "--model", str(tmp_path / "absent.py")]) == 1


@pytest.mark.parametrize("changed", ["em", "mask"])
def test_a_changed_file_of_the_same_name_is_not_gone_on_with(tmp_path, changed):
    """No output is half of one mask, or EM, and half of another."""
    from clemreg.io.volumes import write_volume
    from clemreg.pipeline.segment import SegmentSettings, segment_file

    (tmp_path / "mine.py").write_text(SCRIPT)
    values = np.random.default_rng(0).integers(0, 255, EM.shape).astype(np.uint8)
    files = {name: tmp_path / f"{name}.zarr" for name in ("em", "mask")}
    write_volume(files["em"], Volume(values, EM))
    write_volume(files["mask"], Volume((values > 99).astype(np.uint8), EM))
    settings = SegmentSettings(contrast=(0, 255), mask=str(files["mask"]))
    script, out = str(tmp_path / "mine.py"), tmp_path / "o.zarr"

    def stop(done, _total, _message):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment_file(str(files["em"]), out, model=script, settings=settings, progress=stop)
    before = open_volume(files[changed])
    write_volume(files[changed], Volume(255 - before.read(), EM))
    with pytest.raises(FormatError, match=r"inputs, options or blocks, or a file was changed"):
        segment_file(str(files["em"]), out, model=script, settings=settings)
    assert not out.exists()


def test_a_script_takes_the_options_of_the_command_line(tmp_path, capsys):
    """Contrast, mirrored views and mask; voxel by voxel against the whole, done independently."""
    from clemreg.io.volumes import write_volume

    (tmp_path / "mine.py").write_text(SCRIPT)
    values = np.random.default_rng(0).integers(0, 255, EM.shape).astype(np.uint8)
    write_volume(tmp_path / "em.zarr", Volume(values, EM))
    inside = np.zeros(EM.shape, np.uint8)
    inside[2:, 3:9, 6:] = 7
    write_volume(tmp_path / "mask.zarr", Volume(inside, EM))
    arguments = ["segment", str(tmp_path / "em.zarr"), "--model", str(tmp_path / "mine.py")]
    options = ["--contrast", "40", "200", "--tta", "4", "--mask", str(tmp_path / "mask.zarr")]
    assert run_app([*arguments, *options, "--out", str(tmp_path / "o.zarr")]) == 0
    network = torch.from_numpy(np.clip((values - 40.0) / 80 - 1, -1, 1).astype(np.float32))
    padded = np.pad(network.numpy(), ((1, 1), (2, 2), (3, 3)), mode="edge")
    views = [_sum_and_left(np.flip(padded, axes)) for axes in ((), (2,), (1,), (1, 2))]
    backs = [(), (3,), (2,), (2, 3)]
    mean = np.mean([np.flip(v, b) for v, b in zip(views, backs, strict=True)], axis=0)
    stored = np.clip(np.rint(mean * 128 + 127), 0, 255) * np.repeat(inside > 0, 2, axis=1)
    found = open_volume(tmp_path / "o.zarr").read().astype(int)
    assert np.abs(found - stored).max() <= 1
    assert (found == stored).mean() > 0.99
    assert (found > 0).any()
    assert run_app([*arguments, "--block", "64", "--out", str(tmp_path / "p.zarr")]) == 1
    assert "gives blocks of (5, 8, 4) voxels" in capsys.readouterr().err


def _sum_and_left(padded):
    """What the script computes, on the whole; "left" is three voxels farther along x."""
    fine = np.repeat(padded, 2, axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(fine, (3, 9, 7))
    return np.stack([windows.mean(axis=(3, 4, 5)), fine[1:-1, 4:-4, :-6]])


def test_cosem_takes_the_block_of_the_command_line(tmp_path):
    from clemreg.io.volumes import open_volume, write_volume

    write_safetensors(cosem(8.0), tmp_path / "cosem.safetensors")
    assert block_network(tmp_path / "cosem.safetensors", 40).output_size == (36,) * 3
    assert block_network(tmp_path / "cosem.safetensors").output_size == (180,) * 3
    grid = Grid((3, 4, 5), (8.0,) * 3, (0.0,) * 3, "em")
    values = np.random.default_rng(0).integers(0, 255, grid.shape).astype(np.uint8)
    write_volume(tmp_path / "em.zarr", Volume(values, grid))
    arguments = [
        "segment",
        str(tmp_path / "em.zarr"),
        "--model",
        str(tmp_path / "cosem.safetensors"),
    ]
    assert run_app([*arguments, "--block", "40", "--out", str(tmp_path / "o.zarr")]) == 0
    assert open_volume(tmp_path / "o.zarr").shape == (6, 8, 10)


def test_info_of_any_network(own, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(SCRIPT)
    write_safetensors(cosem(8.0), tmp_path / "cosem.safetensors")
    for name, voxel, text in (
        (own, [5.24, 4, 4], "trained_on"),
        (tmp_path / "mine.py", [8, 8, 8], "sum, left"),
        (tmp_path / "cosem.safetensors", [8, 8, 8], "setup46"),
        ("mito-16nm", [16, 16, 16], "mito-16nm"),
    ):
        assert run_app(["model", "info", str(name), "--json", str(tmp_path / "i.json")]) == 0
        assert json.loads((tmp_path / "i.json").read_text())["input_voxel_size_nm"] == voxel
        assert text in capsys.readouterr().out
    assert run_app(["model", "info", str(tmp_path / "absent")]) == 1


def test_a_bundled_network_shows_its_model_card(tmp_path, capsys):
    """Data, licence, recipe, scores and known failures."""
    assert run_app(["model", "info", "mito-8nm", "--json", str(tmp_path / "i.json")]) == 0
    shown = capsys.readouterr().out
    for part in ("trained on", "licence of the data", "recipe", "IoU", "Known failures"):
        assert part in shown
    assert "Known failures" in json.loads((tmp_path / "i.json").read_text())["model_card"]
