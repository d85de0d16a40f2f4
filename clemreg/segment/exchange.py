"""Networks in and out: safetensors, published checkpoints, TorchScript, ONNX, scripts."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clemreg.errors import ConfigError, DependencyError, FormatError, GridError
from clemreg.io.atomic import atomic_path
from clemreg.segment.checkpoints import CosemModel, build, load_cosem
from clemreg.segment.contract import COSEM_BLOCK, BlockNetwork, as_block_network, load_script
from clemreg.segment.cosem import SMALLEST, STEP, CosemOptions
from clemreg.segment.data import CLIP
from clemreg.segment.models import (
    Model,
    load_model,
    model_info,
    model_shape,
    save_model,
    write_tensors,
)
from clemreg.segment.network import NetworkOptions
from clemreg.segment.setups import Setup

COSEM_FORMAT = "clemreg-cosem-1"
EXPORTS = (".safetensors", ".ts", ".onnx")
METADATA = "clemreg.json"


def open_network(name: str | Path, setup_name: str = "") -> Model | CosemModel:
    """Open a bundled network, a safetensors file of clemreg, or a published COSEM checkpoint.

    What a file is, its first bytes tell, whatever it is called.

    Parameters
    ----------
    setup_name
        Setup of the paper, for a checkpoint whose folder does not say.

    Raises
    ------
    MissingError
        There is no such network.
    FormatError
        The file is none of these; nothing in it was executed.
    """
    path = Path(name)
    if path.is_file() and not _is_safetensors(path):
        return load_cosem(path, setup_name)
    header = _safetensors_header(path)
    return load_model(name) if header is None else _load_cosem_safetensors(path, header)


def block_network(name: str | Path, block: int = 0) -> BlockNetwork | None:
    """Open a script (``.py``) or a COSEM network for `clemreg.segment.external.predict_with`.

    None for a network of clemreg's own, which `clemreg.segment.predict` runs.

    Parameters
    ----------
    block
        Output voxels that a COSEM network computes along an axis, at most; 0: as published. A
        script says itself.
    """
    path = Path(name)
    if path.suffix == ".py":
        return load_script(path)
    if not path.is_file() or (_is_safetensors(path) and _safetensors_header(path) is None):
        return None
    network = open_network(path)
    if not isinstance(network, CosemModel):
        return None
    return as_block_network(network, most=block or COSEM_BLOCK)


def import_network(source: str | Path, out: Path, setup_name: str = "") -> Model | CosemModel:
    """Check a network and write it as safetensors, which hold weights and nothing else.

    Raises
    ------
    FormatError
        The source is no network that clemreg knows; nothing in it was executed.
    """
    _require_suffix(out, (".safetensors",))
    network = open_network(source, setup_name)
    write_safetensors(network, out)
    return network


def export_network(name: str | Path, out: Path, *, block: int = 0) -> Path:
    """Write a network for other programs; the ending says how.

    Parameters
    ----------
    name
        As for `open_network`.
    out
        ``.ts``: TorchScript, for inputs of any size that fits. ``.onnx``: ONNX for one size.
        ``.safetensors``: clemreg's own.
    block
        Input voxels along each axis for ONNX; 0: a small size that fits.

    Raises
    ------
    ConfigError
        The ending is none of these.
    GridError
        The network does not take blocks of that size.
    DependencyError
        ONNX is not installed.
    """
    _require_suffix(out, EXPORTS)
    network = open_network(name)
    if out.suffix == ".safetensors":
        write_safetensors(network, out)
    elif out.suffix == ".ts":
        write_torchscript(network, out)
    else:
        write_onnx(network, out, block=block)
    return out


def _require_suffix(out: Path, suffixes: tuple[str, ...]) -> None:
    if out.suffix not in suffixes:
        raise ConfigError(
            f"cannot write a network as {out.name}", hint=f"endings: {', '.join(suffixes)}"
        )


@dataclass(frozen=True, eq=False)
class _Geometry:
    """What a program must know to run the network."""

    sizes: tuple[int, int]
    metadata: dict[str, Any]


def _geometry(network: Model | CosemModel, block: int = 0) -> _Geometry:
    """Input sizes along an axis (the one asked for, and another that fits), and metadata."""
    if isinstance(network, CosemModel):
        options = network.network.options
        size = block or SMALLEST
        options.output_size(size)
        return _Geometry(
            (size, size + STEP),
            _metadata(network.setup.name, network.classes, options.input_nm, options.scale, 1),
        )
    unet = network.network
    size = block or unet.input_size(unet.step)
    if (size - 2 * unet.halo) % unet.step or size <= 2 * unet.halo:
        raise GridError(
            f"{network.card.name} cannot take {size} voxels along an axis",
            hint=f"{2 * unet.halo} and a multiple of {unet.step} fit",
        )
    card = network.card
    meta = _metadata(card.name, network.classes, card.spacing_nm, 1, CLIP)
    meta["card"] = card.to_json()
    return _Geometry((size, size + unet.step), meta)


def _metadata(
    name: str, classes: tuple[str, ...], spacing: Any, scale: int, clip: float
) -> dict[str, Any]:
    triple = [float(spacing)] * 3 if isinstance(spacing, float) else [float(s) for s in spacing]
    return {
        "name": name,
        "classes": list(classes),
        "input_voxel_size_nm": triple,
        "output_voxel_size_nm": [s / scale for s in triple],
        "axes": "n, channel, z, y, x",
        "input": f"grey values, black -1 and white 1, clipped at -{clip:g} and {clip:g}",
        "output": "tanh(signed distance / 50 nm), positive inside",
    }


def write_torchscript(network: Model | CosemModel, out: Path) -> None:
    """Write TorchScript, checked on a second size; the metadata are an extra file in it."""
    geometry = _geometry(network)
    module = network.network
    small, large = (_example(size) for size in geometry.sizes)
    with torch.inference_mode(), _quiet():
        script = torch.jit.trace(module, small, check_trace=False)
        _check_same(script(large), module(large), "TorchScript")
    extra = {METADATA: json.dumps(geometry.metadata)}
    with atomic_path(out) as partial, _quiet():
        torch.jit.save(script, str(partial), _extra_files=extra)


def write_onnx(network: Model | CosemModel, out: Path, *, block: int = 0) -> None:
    """Write ONNX for one input size, checked by ONNX's own checker."""
    onnx = _import_onnx()
    geometry = _geometry(network, block)
    with _quiet():
        program = torch.onnx.export(
            network.network,
            (_example(geometry.sizes[0]),),
            dynamo=True,
            input_names=["em"],
            output_names=["prediction"],
            verbose=False,
        )
    if program is None:
        raise FormatError(f"torch gave no ONNX program for {out}")
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {METADATA: json.dumps(geometry.metadata)})
    onnx.checker.check_model(proto)
    with atomic_path(out) as partial:
        onnx.save_model(proto, str(partial))


def _import_onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise DependencyError(
            f"writing ONNX needs onnx and onnxscript: {error}",
            hint="pip install 'clemreg-toolkit[onnx]', or export TorchScript: --out NETWORK.ts",
        ) from error
    return onnx


def _example(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand((1, 1, size, size, size), generator=generator) * 2 - 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch warns of what it will drop and logs what it lacks; neither is the user's business."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check_same(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    if found.shape != expected.shape or not torch.allclose(found, expected, atol=1e-5):
        raise FormatError(f"the exported {what} gives other numbers than the network")


def write_safetensors(network: Model | CosemModel, out: Path) -> None:
    """Write weights and a header that says what they are."""
    if isinstance(network, Model):
        save_model(network.network, network.card, out)
        return
    s = network.setup
    described = {"name": s.name, "input_nm": s.input_nm, "classes": list(s.classes)}
    shape = {
        "widths": network.network.options.widths, "up_widths": network.network.options.up_widths,
    }  # fmt: skip
    header = {
        "format": COSEM_FORMAT, "setup": json.dumps(described), "network": json.dumps(shape),
    }  # fmt: skip
    write_tensors(out, network.network, header)


def _is_safetensors(path: Path) -> bool:
    """Tell by its name, or by its first bytes: the length of a header, and the header, JSON."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as stream:
        begin = stream.read(9)
    length = int.from_bytes(begin[:8], "little")
    return begin[8:] == b"{" and length <= path.stat().st_size - 8


def _safetensors_header(path: Path) -> dict[str, str] | None:
    """Header of a COSEM network in safetensors; None for anything else."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as stream:
            header: dict[str, str] = stream.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is not a safetensors file") from error
    return header if header.get("format") == COSEM_FORMAT else None


def _load_cosem_safetensors(path: Path, header: dict[str, str]) -> CosemModel:
    from safetensors.torch import load_file

    chosen, options = _cosem_header(path, header)
    return CosemModel(chosen, build(options, load_file(path), path), path)


def _cosem_header(path: Path, header: dict[str, str]) -> tuple[Setup, CosemOptions]:
    try:
        described, shape = json.loads(header["setup"]), json.loads(header["network"])
        chosen = Setup(
            described["name"], float(described["input_nm"]), tuple(described["classes"]), 0
        )
        options = CosemOptions(
            chosen.classes, chosen.input_nm, tuple(shape["widths"]), tuple(shape["up_widths"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} has a broken header: {error}") from error
    return chosen, options


@dataclass(frozen=True)
class NetworkHeader:
    """What a safetensors file says of its network.

    Attributes
    ----------
    name
        What it is called.
    spacing_nm
        Voxel size zyx that it was made for.
    shape
        Classes and layers.
    steps
        Training steps; 0: it does not say.
    """

    name: str
    spacing_nm: tuple[float, float, float]
    shape: NetworkOptions | CosemOptions
    steps: int = 0


def network_header(path: Path) -> NetworkHeader:
    """Read what a safetensors file of clemreg says of its network, and none of its weights.

    Raises
    ------
    MissingError
        There is no such file.
    FormatError
        It is none.
    """
    header = _safetensors_header(path)
    if header is None:
        card = model_info(path)
        return NetworkHeader(card.name, card.spacing_nm, model_shape(path), card.steps)
    made, shape = _cosem_header(path, header)
    return NetworkHeader(made.name, (shape.input_nm,) * 3, shape)


def network_info(name: str | Path) -> dict[str, Any]:
    """Describe a network: what it predicts, from which voxels; its model card, if it has one.

    Raises
    ------
    MissingError
        There is no such network.
    """
    if Path(name).suffix == ".py":
        script = load_script(name)
        return {
            "name": script.name, "classes": list(script.classes),
            "input_voxel_size_nm": list(script.input_nm),
            "output_voxel_size_nm": list(script.output_nm),
        }  # fmt: skip
    network = open_network(name)
    described = _geometry(network).metadata
    card = network.path.with_suffix(".md")
    if isinstance(network, Model) and card.is_file():
        described["model_card"] = card.read_text(encoding="utf-8")
    return described
