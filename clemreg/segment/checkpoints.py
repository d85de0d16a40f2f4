"""Published COSEM checkpoints: read the weights, check them, never run what is in the file."""

from __future__ import annotations

import logging
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clemreg.errors import ConfigError, FormatError, MissingError
from clemreg.segment.classes import category
from clemreg.segment.cosem import CosemOptions, CosemUNet
from clemreg.segment.setups import OUTPUT_NM, Setup, setup

log = logging.getLogger(__name__)

State = dict[str, torch.Tensor]
_TF_CONV = re.compile(r"unet_layer_([0-3])_(left|right)_([01])/(kernel|bias)")
_TF_FINAL = re.compile(r"final_conv_([01])/(kernel|bias)")
_TF_UP = re.compile(r"unet_up_([1-3])_to_([0-2])_kernel_variables")
_TF_HEAD = re.compile(r"conv_pass_0/(kernel|bias)")
_FINAL_PREFIX = "backbone.1."
# Of the variables of a network with all that its optimiser keeps there are 3 GB.
_MOST_BYTES = 8_000_000_000
# What files of `torch.save` begin with, since 2020 and before.
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
# What other files that are easily taken for a network begin with.
_OTHERS = {
    b"II*\0": "a TIFF", b"MM\0*": "a TIFF", b"II+\0": "a TIFF", b"MM\0+": "a TIFF",
    b"\x89HDF": "an HDF5 file", b"NRRD": "an NRRD file", b"\x89PNG": "a PNG",
}  # fmt: skip
# What reading bytes that are no pickle may end in.
_NO_PICKLE = (
    RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
    AssertionError, MemoryError, ImportError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class CosemModel:
    """A COSEM network with its weights.

    Attributes
    ----------
    setup
        Which of the paper's setups it is.
    network
        In evaluation mode.
    path
        Where its weights were read.
    """

    setup: Setup
    network: CosemUNet
    path: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs in channel order."""
        return self.network.options.classes


def load_cosem(path: str | Path, setup_name: str = "") -> CosemModel:
    """Load a published checkpoint of the paper's networks.

    Parameters
    ----------
    path
        ``<setup>/<iteration>`` as published in PyTorch form, or an ``.npz`` of the variables of
        the TensorFlow checkpoint by name.
    setup_name
        Which setup it is; by default the name of the folder that the file lies in. The published
        folder ``setup45`` holds an 8 nm network, which is setup46, and is called so.

    Raises
    ------
    MissingError
        There is no such file, or no such setup.
    FormatError
        The file is not a checkpoint of that setup: it holds other objects than weights (nothing
        in it was executed), or weights whose names or shapes do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(
            f"there is no checkpoint {path}",
            hint="download it first: the published files are called <setup>/<iteration>",
        )
    state = read_npz(path) if path.suffix == ".npz" else read_checkpoint(path)
    chosen = _relabelled(_named_setup(path, setup_name), state, path)
    options = CosemOptions(chosen.classes, chosen.input_nm)
    return CosemModel(chosen, build(options, state, path), path)


def build(options: CosemOptions, state: State, path: Path) -> CosemUNet:
    """Make the network and give it the weights.

    Raises
    ------
    FormatError
        Names or shapes do not fit; the text names the first ones.
    """
    try:
        with torch.device("meta"):
            network = CosemUNet(options)
    except RuntimeError as error:
        raise FormatError(
            f"{path} does not hold the COSEM network: widths {options.widths} are impossible"
        ) from error
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    _check_names(expected, state, path)
    for name, shape in expected.items():
        found = tuple(state[name].shape)
        if found != shape:
            raise FormatError(
                f"{path}: {name} has shape {found}, expected {shape}{_channels_hint(name, options)}"
            )
    require_numbers(state, path)
    network.load_state_dict(state, assign=True)
    return network.float().eval().requires_grad_(False)


def require_numbers(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse weights that are NaN or infinite.

    Raises
    ------
    FormatError
        Some are; the text names the first.
    """
    broken = [key for key, value in weights.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise FormatError(f"{path}: {broken[0]} holds weights that are no numbers")


def _check_names(expected: Mapping[str, Any], state: State, path: Path) -> None:
    missing = [name for name in expected if name not in state]
    foreign = [name for name in state if name not in expected]
    if missing or foreign:
        parts = [
            f"{kind} {', '.join(names[:3])}{' and more' if len(names) > 3 else ''}"
            for kind, names in (("lacks", missing), ("has foreign weights", foreign))
            if names
        ]
        raise FormatError(
            f"{path} does not hold the COSEM network: it {'; it '.join(parts)}",
            hint="is it another network, or another setup?",
        )


def _channels_hint(name: str, options: CosemOptions) -> str:
    if not name.startswith("prediction_head"):
        return ""
    return f": this setup predicts {len(options.classes)} classes ({', '.join(options.classes)})"


def _named_setup(path: Path, name: str) -> Setup:
    if name:
        return setup(name)
    try:
        return setup(path.parent.name)
    except MissingError as error:
        raise MissingError(
            f"{path} does not say which setup of the paper it is",
            hint="give the setup, or keep the published folder name: setup04/1820500",
        ) from error


def _relabelled(chosen: Setup, state: State, path: Path) -> Setup:
    """Trust the weights, not the folder, on the voxel size of the EM."""
    if not any(k.startswith("backbone.") for k in state):
        return chosen  # no such network at all: its names will be refused
    input_nm = OUTPUT_NM * (2 if any(k.startswith(_FINAL_PREFIX) for k in state) else 1)
    if input_nm == chosen.input_nm:
        return chosen
    if chosen.name == "setup45":
        log.warning(
            "%s is published as setup45 (4 nm EM), but its weights are those of an 8 nm network: "
            "it is used as setup46",
            path,
        )
        return setup("setup46")
    raise FormatError(
        f"{path} holds a network for {input_nm:g} nm EM, but {chosen.name} takes "
        f"{chosen.input_nm:g} nm",
        hint="give the setup that it belongs to",
    )


def read_checkpoint(path: Path) -> State:
    """Weights of a PyTorch checkpoint of the published layout, under this module's names.

    Only tensors and plain containers are read; anything else in the pickle is refused unread.

    Raises
    ------
    FormatError
        It is not such a file.
    """
    content = read_pickle(path)
    weights = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping) or not weights:
        raise FormatError(f"{path} holds no state dict under the key 'model'")
    odd = [k for k, v in weights.items() if not isinstance(v, torch.Tensor)]
    if odd:
        raise FormatError(f"{path}: {odd[0]!r} is not a weight")
    return _renamed({str(k): v for k, v in weights.items()}, path)


def read_pickle(path: Path, device: torch.device | str = "cpu") -> Any:
    """Read a file of `torch.save` that holds tensors and plain containers.

    Raises
    ------
    FormatError
        It is none, or holds anything else: nothing in it was executed.
    """
    if path.suffix == ".onnx" or _is_torchscript(path):
        raise FormatError(
            f"{path} is a program (ONNX or TorchScript), not weights, and was not run",
            hint="run it in a script of your own: clemreg segment --model SCRIPT.py",
        )
    _require_torch_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on foreign pickles, which are refused below
            return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise FormatError(
            f"{path} holds more than weights and was not opened; nothing in it was executed",
            hint="use the published checkpoint, or convert it to safetensors where it is trusted",
        ) from error
    except _NO_PICKLE as error:
        raise FormatError(f"{path} is not a PyTorch checkpoint: {_first_line(error)}") from error


def _require_torch_file(path: Path) -> None:
    """Refuse by its first bytes what no version of `torch.save` wrote."""
    with path.open("rb") as stream:
        begin = stream.read(4)
    if begin.startswith((_ZIP, _PICKLE)):
        return
    kind = "empty" if not begin else _OTHERS.get(begin, "neither safetensors nor of torch.save")
    raise FormatError(
        f"{path} is not a PyTorch checkpoint: it is {kind}",
        hint="networks are safetensors of clemreg, published checkpoints of COSEM, and scripts",
    )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _first_line(error: Exception) -> str:
    if isinstance(error, LookupError):  # says no more than what was looked up
        return "its content makes no sense"
    return str(error).split("\n", maxsplit=1)[0] or type(error).__name__


def _renamed(weights: Mapping[str, torch.Tensor], path: Path) -> State:
    """Drop the wrappers' prefixes; the same weight under two names must be the same."""
    state: State = {}
    for name, value in weights.items():
        own = _own_name(name)
        if own in state and not torch.equal(state[own], value):
            raise FormatError(f"{path}: {name} differs from its copy under another name")
        state[own] = value
    return state


def _own_name(name: str) -> str:
    for prefix, ours in (
        ("chain.0.", ""), ("chain.1.", "prediction_head."), ("architecture.", ""),
    ):  # fmt: skip
        if name.startswith(prefix):
            name = ours + name.removeprefix(prefix)
    if name.startswith("unet."):
        name = "backbone." + name.removeprefix("unet.")
    # Without upsampling at the end, the U-Net is not part of a sequence.
    if re.match(r"backbone\.[lr]_", name):
        name = name.replace("backbone.", "backbone.0.", 1)
    return name


def read_npz(path: Path) -> State:
    """Weights of a TensorFlow checkpoint whose variables were saved as ``.npz``.

    Raises
    ------
    FormatError
        It is not such a file, or holds pickled objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _MOST_BYTES:
            raise FormatError(f"{path} would unpack to {size / 1e9:.0f} GB: no COSEM network")
        with np.load(path, allow_pickle=False) as stored:
            variables = {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path} is not a readable .npz: {_first_line(error)}") from error
    return from_tensorflow(variables, path)


def from_tensorflow(variables: Mapping[str, np.ndarray[Any, Any]], path: Path) -> State:
    """Translate the variables of the original TensorFlow networks.

    Kernels of convolutions are (z, y, x, in, out); those of the upsampling are one (out, in)
    matrix, and have no bias. What an optimiser keeps beside the weights is left out.

    Raises
    ------
    FormatError
        A weight has another number of axes.
    """
    state: State = {}
    for full, array in variables.items():
        name = full.removesuffix(":0")
        target = _tf_target(name)
        if target is None:
            continue
        if target.endswith(".bias"):
            state[target] = torch.from_numpy(np.array(array, dtype=np.float32))
            continue
        if array.ndim != 5:
            raise FormatError(f"{path}: {full} has shape {array.shape}, expected five axes")
        axes = (3, 4, 0, 1, 2) if ".up." in target else (4, 3, 0, 1, 2)
        weight = np.ascontiguousarray(array.transpose(axes), dtype=np.float32)
        state[target] = torch.from_numpy(weight)
        if ".up." in target:
            state[target.replace("weight", "bias")] = torch.zeros(len(weight))
    if not state:
        raise FormatError(
            f"{path} holds none of the variables of a COSEM network, but "
            f"{', '.join(list(variables)[:3])}"
        )
    return state


def _tf_target(name: str) -> str | None:
    """Name of the weight that a TensorFlow variable becomes; None for anything else."""
    kinds = {"kernel": "weight", "bias": "bias"}
    if found := _TF_CONV.fullmatch(name):
        level, side, i, kind = found.groups()
        where = f"l_conv.{level}" if side == "left" else f"r_conv.0.{level}"
        return f"backbone.0.{where}.conv_pass.{2 * int(i)}.{kinds[kind]}"
    if found := _TF_UP.fullmatch(name):
        return f"backbone.0.r_up.0.{found.group(2)}.up.1.weight"
    if name == "up_final_kernel_variables":
        return "backbone.1.up.1.weight"
    if found := _TF_FINAL.fullmatch(name):
        return f"backbone.2.conv_pass.{2 * int(found.group(1))}.{kinds[found.group(2)]}"
    if found := _TF_HEAD.fullmatch(name):
        return f"prediction_head.{kinds[found.group(1)]}"
    return None


def channel_order(have: Sequence[str], want: Sequence[str]) -> tuple[int, ...]:
    """Channels of a network for classes in another order or vocabulary.

    Examples
    --------
    >>> channel_order(("mito", "mito_membrane", "mito_DNA"), ("mito-ribo", "mito"))
    (2, 0)

    Raises
    ------
    ConfigError
        The network does not predict one of them.
    """
    names = [category(name).name for name in have]
    lacking = [name for name in want if category(name).name not in names]
    if lacking:
        raise ConfigError(
            f"the network does not predict {', '.join(lacking)}",
            hint=f"it predicts: {', '.join(names)}",
        )
    return tuple(names.index(category(name).name) for name in want)
