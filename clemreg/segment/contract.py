"""What clemreg asks of any network: sizes, voxel sizes, channel names, and a function."""

from __future__ import annotations

import hashlib
import runpy
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import ConfigError, FormatError, MissingError

if TYPE_CHECKING:
    from clemreg.segment.checkpoints import CosemModel

FloatArray = NDArray[np.float32]
Shape = tuple[int, int, int]
Triple = tuple[float, float, float]
Run = Callable[[FloatArray], FloatArray]

COSEM_BLOCK = 216
"""Output voxels along an axis, as the paper computed its largest blocks."""
NAMES = (
    "model", "input_size", "output_size", "input_voxel_size", "output_voxel_size",
    "output_channels",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class BlockNetwork:
    """A network as a function of blocks.

    Attributes
    ----------
    name
        What it is called.
    classes
        Names of its channels in order.
    input_size, output_size
        Voxels zyx of the block it reads and of the block it gives, which lies in the middle.
    input_nm, output_nm
        Voxel sizes zyx; the input's is a whole multiple of the output's.
    run
        From EM (z, y, x), float32 in [-1, 1], to tanh signed distances (class, z, y, x).
    identity
        What tells it from another network of the same name and sizes, as far as is known.

    Raises
    ------
    ConfigError
        The sizes do not fit together; the text says which.
    """

    name: str
    classes: tuple[str, ...]
    input_size: Shape
    output_size: Shape
    input_nm: Triple
    output_nm: Triple
    run: Run
    identity: str = ""

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ConfigError(f"{self.name}: output_channels {self.classes} are not distinct names")
        ratio = np.asarray(self.input_nm) / np.asarray(self.output_nm)
        scale = np.rint(ratio)
        if (scale < 1).any() or not np.allclose(ratio, scale, rtol=1e-3):
            raise ConfigError(
                f"{self.name}: input voxels of {self.input_nm} nm are no whole multiple of output "
                f"voxels of {self.output_nm} nm (z, y, x)"
            )
        left = np.asarray(self.input_size) * self.scale - np.asarray(self.output_size)
        if (left < 0).any() or (left % (2 * np.asarray(self.scale))).any():
            raise ConfigError(
                f"{self.name}: an output of {self.output_size} voxels does not lie in the middle "
                f"of an input of {self.input_size} voxels",
                hint="the same number of whole input voxels must be left on both sides",
            )
        if (np.asarray(self.output_size) % self.scale).any():
            raise ConfigError(
                f"{self.name}: output_size {self.output_size} is no multiple of {self.scale}, the "
                "output voxels in an input voxel"
            )

    @property
    def job(self) -> str:
        """What of a network the content of a block depends on."""
        return f"{self.name} {self.identity} {self.classes} {self.output_size}"

    @property
    def scale(self) -> Shape:
        """Output voxels per input voxel zyx."""
        z, y, x = (round(a / b) for a, b in zip(self.input_nm, self.output_nm, strict=True))
        return z, y, x

    @property
    def halo(self) -> Shape:
        """Input voxels on each side that the output lacks, zyx."""
        z, y, x = (
            (n - m // s) // 2
            for n, m, s in zip(self.input_size, self.output_size, self.scale, strict=True)
        )
        return z, y, x

    def __call__(self, em: FloatArray) -> FloatArray:
        """Predict one block.

        Raises
        ------
        FormatError
            The function failed, or gave something else than it promises.
        """
        try:
            values = np.asarray(self.run(np.ascontiguousarray(em, dtype=np.float32)))
        except Exception as error:
            raise FormatError(
                f"{self.name} stopped at a block of {em.shape} voxels: {_told(error)}",
                hint="input_size must be what the model takes; --debug shows where it stopped",
            ) from error
        expected = (len(self.classes), *self.output_size)
        if values.shape != expected:
            raise FormatError(
                f"{self.name} gave an array of shape {values.shape} for a block of {em.shape}, "
                f"expected {expected}",
                hint="output_size and output_channels must be what the model gives",
            )
        if not np.isfinite(values).all():
            raise FormatError(
                f"{self.name} gave values that are not finite (NaN or infinite) for a block of "
                f"{em.shape}",
                hint="the function must give a finite number for every voxel",
            )
        return values.astype(np.float32, copy=False)


def load_script(path: str | Path) -> BlockNetwork:
    """Run a Python file of the user's own that defines a network, and take it from there.

    The file defines ``model`` (a ``torch.nn.Module``, or a function, of a float32 tensor
    (1, 1, z, y, x) in [-1, 1]; it gives (1, channel, z, y, x)), ``input_size``, ``output_size``
    (voxels zyx), ``input_voxel_size``, ``output_voxel_size`` (nm zyx) and ``output_channels``
    (names). This executes the file: run only what you trust.

    Raises
    ------
    MissingError
        There is no such file.
    ConfigError
        The script stopped, a name is missing, or a value does not fit; the text says which.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"there is no script {path}")
    try:
        names = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path} stopped{_where(error, path)}: {_told(error)}") from error
    missing = [name for name in NAMES if name not in names]
    if missing:
        raise ConfigError(
            f"{path} does not define {', '.join(missing)}",
            hint=f"a network script defines: {', '.join(NAMES)}",
        )
    return BlockNetwork(
        path.stem,
        tuple(str(c) for c in names["output_channels"]),
        _three(names, "input_size", int, path),
        _three(names, "output_size", int, path),
        _three(names, "input_voxel_size", float, path),
        _three(names, "output_voxel_size", float, path),
        _as_function(names["model"]),
        _identity(path, names["model"]),
    )


def _where(error: BaseException, path: Path) -> str:
    """Line of the script that an error comes from, in words."""
    if isinstance(error, SyntaxError):
        return f" in line {error.lineno}"
    lines = [n for f, n in traceback.walk_tb(error.__traceback__) if _is(path, f)]
    return f" in line {lines[-1]}" if lines else ""


def _is(path: Path, frame: FrameType) -> bool:
    return frame.f_code.co_filename == str(path)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n", maxsplit=1)[0]


def _identity(path: Path, model: Any) -> str:
    """Tell a script, and the weights that it loads, from others."""
    import torch

    from clemreg.segment.network import digest

    text = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return f"{text} {digest(model)}" if isinstance(model, torch.nn.Module) else text


def _three(names: Mapping[str, Any], name: str, kind: type[Any], path: Path) -> Any:
    value = names[name]
    try:
        triple = tuple(kind(v) for v in value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {name} = {value!r} are not three numbers (z, y, x)") from error
    if len(triple) != 3 or min(triple) <= 0:
        raise ConfigError(f"{path}: {name} = {value!r} are not three positive numbers (z, y, x)")
    return triple


def _as_function(model: Any) -> Run:
    """Turn a module of torch into a function of numpy arrays; it computes where the module is."""
    import torch

    device = torch.device("cpu")
    if isinstance(model, torch.nn.Module):
        model.eval()
        device = next((p.device for p in model.parameters()), device)

    def run(em: FloatArray) -> FloatArray:
        x = torch.from_numpy(em)[None, None]
        if device.type == "cuda":
            x = x.pin_memory()
        with torch.inference_mode():
            result = model(x.to(device, non_blocking=True))
        return np.asarray(torch.as_tensor(result)[0].float().cpu().numpy(), dtype=np.float32)

    return run


def as_block_network(
    model: CosemModel, *, most: int = COSEM_BLOCK, classes: Sequence[str] = ()
) -> BlockNetwork:
    """Use a COSEM network block by block, on a GPU if there is one.

    Only as much of each output is used as moves with the input (multiples of 18 input voxels), so
    that blocks of any size give the same voxels.

    Parameters
    ----------
    most
        Output voxels that the network computes along an axis, at most; more is faster and
        takes more memory.
    classes
        What to keep, in this order; empty: all.
    """
    from clemreg.segment.checkpoints import channel_order
    from clemreg.segment.cosem import STEP
    from clemreg.segment.network import digest
    from clemreg.segment.parallel import training_device

    options = model.network.options
    channels = list(channel_order(model.classes, classes or model.classes))
    size = options.input_size(most)
    given = options.output_size(size)
    step = STEP * options.scale
    kept = given // step * step
    # 198 voxels of 8 nm give 32 of 4 nm, less than one step: the next size is needed.
    if kept == 0:
        size += STEP
        given = options.output_size(size)
        kept = given // step * step
    margin = (given - kept) // 2
    inner = (slice(None), *(slice(margin, margin + kept),) * 3)
    compute = _as_function(model.network.to(training_device("")))
    return BlockNetwork(
        model.setup.name,
        tuple(model.classes[i] for i in channels),
        (size,) * 3,
        (kept,) * 3,
        (options.input_nm,) * 3,
        (options.input_nm / options.scale,) * 3,
        lambda em: compute(em)[channels][inner],
        digest(model.network),
    )
