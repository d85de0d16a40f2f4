"""Networks on disk: safetensors with a header that says what they are."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clemreg.errors import FormatError, GridError, MissingError
from clemreg.io.atomic import atomic_path
from clemreg.segment.checkpoints import require_numbers
from clemreg.segment.network import NetworkOptions, UNet, digest

if TYPE_CHECKING:
    from torch import nn

FORMAT = "clemreg-unet-1"


@dataclass(frozen=True)
class ModelCard:
    """What a user must know of a network.

    Attributes
    ----------
    name
        What it is called.
    spacing_nm
        Voxel size zyx that it was made for.
    trained_on
        Names of the data sets.
    steps
        Training steps.
    """

    name: str
    spacing_nm: tuple[float, float, float]
    trained_on: tuple[str, ...] = ()
    steps: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Model:
    """A network ready to predict.

    Attributes
    ----------
    card
        Name, voxel size, data.
    network
        In evaluation mode.
    path
        Where it was read.
    """

    card: ModelCard
    network: UNet
    path: Path = field(default=Path())

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self.network.options.classes

    @property
    def identity(self) -> str:
        """Name, and what tells its weights from others."""
        return f"{self.card.name} {digest(self.network)}"


def save_model(network: UNet, card: ModelCard, path: Path) -> None:
    """Write weights and header, whole or not at all."""
    header = {
        "format": FORMAT,
        "card": json.dumps(card.to_json()),
        "network": json.dumps(network.options.to_json()),
    }
    write_tensors(path, network, header)


def write_tensors(path: Path, network: nn.Module, header: Mapping[str, str]) -> None:
    """Write the weights of a network as safetensors, readable by whom the umask says."""
    from safetensors.torch import save_file

    tensors = {k: v.detach().contiguous() for k, v in network.state_dict().items()}
    with atomic_path(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        save_file(tensors, partial, metadata=dict(header))
        partial.chmod(mode)  # safetensors makes a file for its owner only
        _put_in_order(partial)


def _put_in_order(path: Path) -> None:
    """Sort the texts in a header, which safetensors writes in another order every time.

    So the same network is the same file, to the byte.
    """
    with path.open("r+b") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # what follows stays where it is
            stream.seek(8)
            stream.write(text.ljust(length))


def load_model(name: str | Path) -> Model:
    """Load a bundled network by name, or any file that `save_model` wrote.

    Raises
    ------
    MissingError
        There is no such model; the text lists the bundled ones.
    FormatError
        The file is not a clemreg network; nothing in it was executed.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _find(name)
    card, options = _header(path)
    try:
        with torch.device("meta"):  # whatever size the header claims, it takes no memory
            network = UNet(options)
        weights = {key: value.float() for key, value in load_file(path).items()}
        network.load_state_dict(weights, assign=True)
    except (SafetensorError, RuntimeError) as error:
        first = str(error).strip().split("\n")[:2][-1].strip()
        raise FormatError(
            f"{path} does not hold the network its header describes: {first}"
        ) from error
    require_numbers(weights, path)
    return Model(card, network.eval(), path)


def model_info(name: str | Path) -> ModelCard:
    """Read only the header of a network."""
    return _header(_find(name))[0]


def model_shape(name: str | Path) -> NetworkOptions:
    """Read only the shape of a network."""
    return _header(_find(name))[1]


def bundled_models() -> tuple[ModelCard, ...]:
    """Cards of the networks that come with clemreg."""
    return tuple(_header(path)[0] for path in _bundled_files().values())


def choose_model(spacing_nm: tuple[float, float, float]) -> str:
    """Name of the bundled network whose voxel size is nearest (in ratio) to a volume's.

    Raises
    ------
    MissingError
        No network is bundled.
    """
    import numpy as np

    cards = bundled_models()
    if not cards:
        raise MissingError("no network is bundled", hint="reinstall clemreg, or give --model FILE")
    wanted = np.log(np.prod(spacing_nm)) / 3
    return min(cards, key=lambda c: abs(np.log(np.prod(c.spacing_nm)) / 3 - wanted)).name


def _bundled_files() -> dict[str, Path]:
    folder = Path(str(files("clemreg"))) / "segment" / "models"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def _find(name: str | Path) -> Path:
    bundled = _bundled_files()
    if str(name) in bundled:
        return bundled[str(name)]
    path = Path(name)
    if path.is_dir():
        raise MissingError(f"{path} is a folder, not a network", hint="name the file in it")
    if not path.is_file():
        raise MissingError(
            f"no network {str(name)!r}", hint=f"bundled networks: {', '.join(bundled) or 'none'}"
        )
    return path


def _header(path: Path) -> tuple[ModelCard, NetworkOptions]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as stream:
            header = stream.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise FormatError(
            f"{path} is not a safetensors file",
            hint="clemreg networks are written by `clemreg train`; pickles are not opened",
        ) from error
    if header.get("format") != FORMAT:
        raise FormatError(
            f"{path} is not a clemreg network (format {header.get('format')!r}, wanted {FORMAT!r})"
        )
    try:
        card, network = json.loads(header["card"]), json.loads(header["network"])
        return _card(card), _options(network)
    except (KeyError, TypeError, ValueError, GridError) as error:
        raise FormatError(f"{path} has a broken header: {error}") from error


def _card(card: dict[str, Any]) -> ModelCard:
    z, y, x = (float(s) for s in card["spacing_nm"])
    if not all(math.isfinite(s) and s > 0 for s in (z, y, x)):
        raise ValueError(f"spacing_nm = {card['spacing_nm']}")
    data, steps = _names(card, "trained_on"), card["steps"]
    if not isinstance(card["name"], str) or not isinstance(steps, int):
        raise TypeError(f"name = {card['name']!r}, steps = {steps!r}")
    return ModelCard(card["name"], (z, y, x), data, steps)


def _names(entries: dict[str, Any], key: str) -> tuple[str, ...]:
    names = entries[key]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{key} = {names!r}")
    return tuple(names)


def _options(network: dict[str, Any]) -> NetworkOptions:
    """Shape of the network; what an older file does not say was fixed then."""
    plain = NetworkOptions()
    classes = _names(network, "classes")
    if not classes or len(set(classes)) != len(classes):
        raise ValueError(f"classes = {list(classes)}")
    return NetworkOptions(
        classes,
        tuple(network["widths"]),
        tuple(network.get("down", plain.down)),
        tuple(network.get("up", plain.up)),
        network.get("fold", plain.fold),
    )
