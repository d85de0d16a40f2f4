"""Files that are no network, or one that cannot be: refused in words, nothing run, no memory."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from clemreg.cli.app import run_app  # noqa: E402
from clemreg.errors import FormatError, MissingError  # noqa: E402
from clemreg.segment.checkpoints import build  # noqa: E402
from clemreg.segment.cosem import CosemOptions, CosemUNet  # noqa: E402
from clemreg.segment.exchange import open_network  # noqa: E402
from clemreg.segment.network import NetworkOptions, UNet  # noqa: E402
from clemreg.segment.training import TrainOptions, train  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("torch")]
OPTIONS = NetworkOptions(("mito",), (2, 2), (1, 1), (2,))
CARD = {"name": "x", "spacing_nm": [8.0, 8.0, 8.0], "trained_on": [], "steps": 1}


def write(path, card=None, network=None, weights=None):
    state = weights or {k: v.contiguous() for k, v in UNet(OPTIONS).state_dict().items()}
    header = {
        "format": "clemreg-unet-1",
        "card": json.dumps(card if isinstance(card, list) else CARD | (card or {})),
        "network": json.dumps(OPTIONS.to_json() | (network or {})),
    }
    save_file(state, path, metadata=header)
    return path


@pytest.mark.parametrize(
    ("card", "network", "text"),
    [
        ([1], {}, "broken header"),
        ({"name": 7}, {}, "name = 7"),
        ({"steps": "many"}, {}, "steps = 'many'"),
        ({"trained_on": "lucchi"}, {}, "trained_on = 'lucchi'"),
        ({"spacing_nm": [8, 8]}, {}, "broken header"),
        ({"spacing_nm": [8, None, 8]}, {}, "broken header"),
        ({"spacing_nm": [8, float("nan"), 8]}, {}, "spacing_nm"),
        ({"spacing_nm": [8, -8, 8]}, {}, "spacing_nm"),
        ({}, {"classes": "mito"}, "classes = 'mito'"),
        ({}, {"classes": []}, "classes = "),
        ({}, {"classes": ["mito", "mito"]}, "classes = "),
        ({}, {"widths": "ab"}, "not whole numbers"),
        ({}, {"widths": [2, -1]}, "not whole numbers"),
        ({}, {"widths": [2.0, 2.0]}, "not whole numbers"),
        ({}, {"fold": 0}, "not whole numbers"),
        ({}, {"widths": [2, 100_000_000]}, "not hold the network its header describes"),
        ({}, {"fold": 5000}, "not hold the network its header describes"),
    ],
)
def test_headers_that_cannot_be(tmp_path, card, network, text):
    assert open_network(write(tmp_path / "good.safetensors")).classes == ("mito",)
    with pytest.raises(FormatError, match=text):
        open_network(write(tmp_path / "x.safetensors", card, network))


def test_weights_that_are_no_numbers(tmp_path):
    state = {k: v.contiguous() for k, v in UNet(OPTIONS).state_dict().items()}
    state["head.bias"] = torch.full_like(state["head.bias"], float("nan"))
    with pytest.raises(FormatError, match=r"head\.bias holds weights that are no numbers"):
        open_network(write(tmp_path / "x.safetensors", weights=state))


def test_what_does_not_fit_is_named(tmp_path):
    state = {k: v.contiguous() for k, v in UNet(OPTIONS).state_dict().items()}
    for change, text in (
        ({"foreign": torch.zeros(1)}, "foreign"),
        ({"head.bias": torch.zeros(9)}, "head.bias"),
    ):
        with pytest.raises(FormatError, match=f"its header describes: .*{text}"):
            open_network(write(tmp_path / "x.safetensors", weights=state | change))
    folder = tmp_path / "setup04"
    folder.mkdir()
    torch.save({"model": {"fc.weight": torch.zeros(3)}}, folder / "resnet")
    with pytest.raises(FormatError, match=r"not hold the COSEM network.* foreign weights fc"):
        open_network(folder / "resnet")
    (folder / "words").write_text("hello")
    with pytest.raises(FormatError, match="it is neither safetensors nor of torch"):
        open_network(folder / "words")
    with pytest.raises(MissingError, match="is a folder, not a network"):
        open_network(folder)


def test_cosem_weights_that_are_no_numbers(tmp_path):
    options = CosemOptions(("mito", "mito_membrane", "mito_DNA"), 8.0, (1, 2, 3, 4), (2, 3, 4))
    state = CosemUNet(options).state_dict()
    state["prediction_head.bias"] = torch.full((3,), float("inf"))
    with pytest.raises(FormatError, match=r"prediction_head\.bias holds weights that are no numb"):
        build(options, state, tmp_path / "x")


@pytest.mark.parametrize("widths", [[1, 2, 3], [1, -2, 3, 4], [10**9] * 4])
def test_cosem_headers_that_cannot_be(tmp_path, widths):
    header = {
        "format": "clemreg-cosem-1",
        "setup": json.dumps({"name": "x", "input_nm": 8.0, "classes": ["mito"]}),
        "network": json.dumps({"widths": widths, "up_widths": [1, 2, 3]}),
    }
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", metadata=header)
    with pytest.raises(FormatError, match=r"four and three numbers|not hold the COSEM network"):
        open_network(tmp_path / "x.safetensors")


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def huge_header() -> bytes:
    text = json.dumps(
        {"a": {"dtype": "F32", "shape": [10**6] * 2, "data_offsets": [0, 4 * 10**12]}}
    )
    return struct.pack("<Q", len(text)) + text.encode() + bytes(64)


def bomb(path):
    """An .npz of some bytes that claims an array of terabytes."""
    stream = io.BytesIO()
    claim = {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(stream, claim)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("unet_layer_0_left_0/kernel.npy", stream.getvalue() + bytes(1000))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_every_command_refuses_in_one_block(tmp_path, capsys):
    """No traceback, exit code 1, nothing executed, whatever the file is called."""
    folder = tmp_path / "setup04"
    folder.mkdir()
    evil = Evil(tmp_path / "executed")
    files = {
        "evil.safetensors": lambda p: p.write_bytes(pickle.dumps(evil)),
        "evil.pt": lambda p: torch.save({"model": evil}, p),
        "evil.npz": lambda p: np.savez(p, a=np.array([evil], dtype=object)),
        "bomb.npz": bomb,
        "module.pt": lambda p: torch.save(UNet(OPTIONS), p),
        "program.ts": lambda p: torch.jit.save(torch.jit.trace(torch.relu, torch.zeros(1)), str(p)),
        "1820500": lambda p: torch.jit.save(torch.jit.trace(torch.relu, torch.zeros(1)), str(p)),
        "program.onnx": lambda p: p.write_bytes(b"\x08\x07\x12\x07pytorch"),
        "huge.safetensors": lambda p: p.write_bytes(struct.pack("<Q", 2**60) + b"{}"),
        "claims.safetensors": lambda p: p.write_bytes(huge_header()),
        "text.txt": lambda p: p.write_text("root:x:0:0:root:/root:/bin/sh\n"),
        "empty": lambda p: p.write_bytes(b""),
        "absent": lambda _p: None,
    }
    for name, make in files.items():
        make(folder / name)
        for command in (["info", str(folder / name)], ["import", str(folder / name), "--out"]):
            more = [str(tmp_path / "out.safetensors")] if command[-1] == "--out" else []
            assert run_app(["model", *command, *more]) == 1, name
            assert capsys.readouterr().err.startswith("error: "), name
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "out.safetensors").exists()
    with pytest.raises(FormatError, match="is a program"):
        open_network(folder / "1820500")


def test_a_training_goes_on_from_checkpoints_only(tmp_path):
    class Never:
        def draw(self, _rng):
            raise AssertionError

    options = TrainOptions(steps=1, threads=1, widths=(2, 2), down=(1, 1), up=(2,))
    torch.save({"model": Evil(tmp_path / "executed")}, tmp_path / "a.checkpoint")
    with pytest.raises(FormatError, match="nothing in it was executed"):
        train(Never(), options, checkpoint=tmp_path / "a.checkpoint")
    torch.save({"model": torch.zeros(1)}, tmp_path / "a.checkpoint")
    with pytest.raises(FormatError, match="is no checkpoint of a training"):
        train(Never(), options, checkpoint=tmp_path / "a.checkpoint")
    assert not (tmp_path / "executed").exists()
