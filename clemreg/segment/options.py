"""How to train: every option, and which of them fit together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from clemreg.errors import ConfigError
from clemreg.segment.classes import category
from clemreg.segment.cosem import SMALLEST, STEP, CosemOptions
from clemreg.segment.network import NetworkOptions
from clemreg.segment.sampling import PatchShape
from clemreg.segment.setups import OUTPUT_NM

CHOICES = {
    "architecture": ("compact", "cosem"),
    "loss": ("entropy", "paper"),
    "optimiser": ("adamw", "adam"),
    "schedule": ("cosine", "constant"),
    "precision": ("auto", "float32", "bfloat16"),
}


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` on, up to `high`; or only those `above` and `below` them."""

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return over and under and math.isfinite(value)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.above else f"from {self.low:g}"
        if self.high == math.inf:
            return low if self.above else f"{low} on"
        return f"{low} to below {self.high:g}" if self.below else f"{low} to {self.high:g}"


_COUNT, _FROM_ZERO, _POSITIVE = Range(1), Range(0), Range(0, above=True)
_SHARE, _DECAY = Range(0, 1), Range(0, 1, below=True)
RANGES = {
    "spacing_nm": _POSITIVE,
    "steps": _COUNT,
    "batch": _COUNT,
    "output": _COUNT,
    "margin": _FROM_ZERO,
    "learning_rate": _POSITIVE,
    "balance": _SHARE,
    "scale": _POSITIVE,
    "slabs": _SHARE,
    "plain": _SHARE,
    "average": _DECAY,
    "seed": _FROM_ZERO,
    "threads": _COUNT,
    "workers": _FROM_ZERO,
    "checkpoint_every": _COUNT,
    "freeze": _SHARE,
    "least_steps": _FROM_ZERO,
    "betas": _DECAY,
    "elastic_nm": _FROM_ZERO,
    "elastic_every_nm": _POSITIVE,
    "revisit": _DECAY,
}
"""What the numbers among the options may be; of a pair, both."""


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes
    ----------
    spacing_nm
        Voxel size that the network is made for (isotropic).
    steps, batch
        Optimiser steps and patches per step.
    output, margin
        Voxels of a patch along each axis that the loss looks at, and those around them that it
        leaves out. With both margins they are a multiple of the compact network's `step`.
    classes
        What to predict, of `clemreg.segment.targets.CLASSES`.
    learning_rate
        Peak of the one-cycle cosine schedule.
    widths, down, up, fold
        Shape of the network, as in `NetworkOptions`.
    balance
        How far positives and negatives are made to count alike: 1 fully (the paper), 0 not at all.
    scale
        Range of random magnification.
    slabs
        Share of patches of which only a part is seen, as if the volume ended at its faces.
    plain
        Share of the patches of volumes at `spacing_nm` that are taken as they are, neither
        magnified nor changed in appearance.
    average
        Decay of the moving average of the weights.
    seed
        Seed of weights and patches.
    threads
        Threads of torch.
    workers
        Processes that draw patches; 0: a thread of this one, enough where a processor trains.
    checkpoint_every
        Steps between checkpoints.
    start
        Bundled name or file of a network whose weights to start from; empty: random weights.
    freeze
        Share of the steps after which the normalisation is frozen.
    least_steps
        Steps after which `converged` may end the training before `steps`; 0: it never does.
    device
        Where to compute; empty: on the first GPU, or the processor if there is none.
    architecture
        ``compact``, or ``cosem``: the network of the paper, with `widths` at its four levels
        down and `up_widths` up (as in the paper, unless given).
    loss
        ``entropy``: cross entropy and Dice. ``paper``: balanced squared error of the tanh
        distances.
    optimiser
        ``adamw``, or ``adam`` as in the paper.
    betas
        Decays of its averages.
    schedule
        ``cosine``: one cycle. ``constant``: `learning_rate` throughout.
    precision
        ``auto``: bfloat16 where it is fast. ``float32`` or ``bfloat16``: always.
    elastic_nm, elastic_every_nm
        Patches are bent: standard deviation of the displacement of control points along each
        axis (0: not at all), and the distance between them.
    revisit
        Share of the steps that see the patches again which had the largest losses before the
        last checkpoint: the hard negatives.
    """

    spacing_nm: float = 16.0
    steps: int = 3000
    batch: int = 2
    output: int = 48
    margin: int = 16
    classes: tuple[str, ...] = ("mito", "mito_mem")
    learning_rate: float = 2e-3
    widths: tuple[int, ...] = (16, 32, 64)
    down: tuple[int, ...] = (2, 2, 2)
    up: tuple[int, ...] = (2, 2)
    fold: int = 1
    balance: float = 1.0
    scale: tuple[float, float] = (0.8, 1.25)
    slabs: float = 0.0
    plain: float = 0.0
    average: float = 0.998
    seed: int = 0
    threads: int = 2
    workers: int = 0
    checkpoint_every: int = 250
    start: str = ""
    freeze: float = 0.65
    least_steps: int = 0
    device: str = ""
    architecture: str = "compact"
    up_widths: tuple[int, ...] = ()
    loss: str = "entropy"
    optimiser: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "cosine"
    precision: str = "auto"
    elastic_nm: float = 0.0
    elastic_every_nm: float = 400.0
    revisit: float = 0.0

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{name} = {getattr(self, name)!r}", hint=f"choose one of {', '.join(known)}"
                )
        if self.architecture == "cosem" and self.loss != "paper":
            raise ConfigError(
                "a COSEM network predicts tanh distances as they are",
                hint='set loss = "paper"',
            )
        for name, allowed in RANGES.items():
            value = getattr(self, name)
            each = value if isinstance(value, tuple) else (value,)
            if not all(number in allowed for number in each):
                raise ConfigError(f"{name} = {value}: expected {allowed}")
        if self.scale[0] > self.scale[1]:
            raise ConfigError(f"scale = {self.scale}: expected the smaller number first")
        self._require_classes()
        self.patch()

    def _require_classes(self) -> None:
        if not self.classes:
            raise ConfigError("classes = []: there is none to learn", hint='as in ["mito", "er"]')
        names: dict[str, str] = {}
        for name in self.classes:
            meant = category(name).name
            if meant in names:
                raise ConfigError(
                    f"classes has {names[meant]!r} and {name!r}, which are the same",
                    hint="leave one of them out",
                )
            names[meant] = name

    def network(self) -> NetworkOptions:
        """Return the shape of the compact network."""
        return NetworkOptions(self.classes, self.widths, self.down, self.up, self.fold)

    def cosem(self) -> CosemOptions:
        """Return the shape of the network of the paper."""
        plain = CosemOptions(self.classes, self.spacing_nm)
        widths = self.widths if len(self.widths) == len(plain.widths) else plain.widths
        up_widths = self.up_widths if self.up_widths else plain.up_widths
        return CosemOptions(self.classes, self.spacing_nm, widths, up_widths)  # type: ignore[arg-type]

    def patch(self) -> PatchShape:
        """Return the size of the patches.

        Raises
        ------
        ConfigError
            The network cannot take, or does not give, patches of that size.
        """
        return self._compact_patch() if self.architecture == "compact" else self._cosem_patch()

    def _compact_patch(self) -> PatchShape:
        # Pooling drops the last voxel of an odd size: features from before and after would then
        # be joined half a voxel apart. One voxel at the deepest level has no statistics.
        inputs, step = self.output + 2 * self.margin, self.network().step
        if inputs % step or inputs < 2 * step:
            below = max(inputs // step, 2) * step
            fits = [size - 2 * self.margin for size in (below, below + step)]
            raise ConfigError(
                f"output = {self.output} and margin = {self.margin} make patches of {inputs} "
                f"voxels, which are no multiple of {step} from {2 * step} on",
                hint=f"with this margin, output may be "
                f"{' or '.join(str(size) for size in fits if size > 0)}",
            )
        return PatchShape(inputs, self.output, self.spacing_nm, self.spacing_nm)

    def _cosem_patch(self) -> PatchShape:
        options = self.cosem()
        size = options.input_size(self.output)
        if options.output_size(size) != self.output:
            fits = [options.output_size(SMALLEST + STEP * k) for k in range(4)]
            raise ConfigError(
                f"a COSEM network for {self.spacing_nm:g} nm has no output of {self.output} voxels",
                hint=f"output may be {', '.join(map(str, fits))} and so on",
            )
        return PatchShape(size, self.output, self.spacing_nm, OUTPUT_NM)
