"""Train a network: balanced masked loss, moving average of weights, resumable."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from clemreg.blocks.run import Progress
from clemreg.errors import FormatError
from clemreg.io.atomic import atomic_path
from clemreg.segment.data import PatchOptions, PatchSampler, TrainingVolume
from clemreg.segment.models import load_model
from clemreg.segment.network import NetworkOptions, UNet
from clemreg.segment.targets import CLASSES, class_targets

log = logging.getLogger(__name__)

BALANCE = (0.05, 0.95)


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
        leaves out.
    classes
        What to predict, of `clemreg.segment.targets.CLASSES`.
    learning_rate
        Peak of the one-cycle cosine schedule.
    widths, down, up
        Shape of the network, as in `NetworkOptions`.
    scale
        Range of random magnification.
    average
        Decay of the moving average of the weights.
    seed
        Seed of weights and patches.
    threads
        Threads of torch.
    checkpoint_every
        Steps between checkpoints.
    start
        Bundled name or file of a network whose weights to start from; empty: random weights.
    freeze
        Share of the steps after which the normalisation is frozen; from the first step on if
        `start` is given.
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
    scale: tuple[float, float] = (0.8, 1.25)
    average: float = 0.998
    seed: int = 0
    threads: int = 2
    checkpoint_every: int = 250
    start: str = ""
    freeze: float = 0.65

    def network(self) -> NetworkOptions:
        """Return the shape of the network."""
        return NetworkOptions(self.classes, self.widths, self.down, self.up)


@dataclass(frozen=True, eq=False)
class Trained:
    """Result of a training.

    Attributes
    ----------
    network
        With averaged weights.
    losses
        Loss of every step since the last resume.
    steps
        Steps done in all.
    """

    network: UNet
    losses: tuple[float, ...]
    steps: int


def train(
    volumes: Sequence[TrainingVolume],
    options: TrainOptions,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train from random weights, or go on from `checkpoint` if it exists.

    Raises
    ------
    FormatError
        The checkpoint belongs to other options.
    """
    torch.set_num_threads(options.threads)
    state = _State(options)
    if checkpoint is not None and checkpoint.exists():
        state.load(checkpoint)
    sampler = PatchSampler(
        volumes,
        PatchOptions(options.spacing_nm, options.output, options.margin, options.scale),
    )
    losses: list[float] = []
    begin = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(_batch, sampler, options, state.step)
        while state.step < options.steps:
            arrays, upcoming = upcoming.result(), _ahead(pool, sampler, options, state.step + 1)
            losses.append(state.advance(arrays))
            if state.step % options.checkpoint_every == 0 and checkpoint is not None:
                state.save(checkpoint)
            if progress is not None and state.step % 10 == 0:
                rate = len(losses) / (time.monotonic() - begin)
                recent = float(np.mean(losses[-100:]))
                progress(state.step, options.steps, f"loss {recent:.4f}, {rate:.1f} steps/s")
    if checkpoint is not None:
        state.save(checkpoint)
    return Trained(state.averaged(), tuple(losses), state.step)


Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _ahead(
    pool: ThreadPoolExecutor, sampler: PatchSampler, options: TrainOptions, step: int
) -> Future[Arrays]:
    return pool.submit(_batch, sampler, options, step)


def _batch(sampler: PatchSampler, options: TrainOptions, step: int) -> Arrays:
    """Patches of one step; they depend on seed and step only, so a resumed run sees the same."""
    drawn = [
        sampler.draw(np.random.default_rng((options.seed, step, i))) for i in range(options.batch)
    ]
    x = torch.from_numpy(np.stack([d[0] for d in drawn])[:, None])
    truth = [class_targets(d[1], d[2], options.classes) for d in drawn]
    target = torch.from_numpy(np.stack([t[0] for t in truth]))
    known = torch.from_numpy(np.stack([t[1] for t in truth]))
    return x.to(memory_format=torch.channels_last_3d), target, known


def balanced_loss(
    logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor, classes: Sequence[str]
) -> torch.Tensor:
    """Cross entropy of every class, plus half of one minus Dice of every organelle.

    With ``tanh(logit)`` the prediction, ``(1 + tanh) / 2`` is a logistic function of twice the
    logit, so cross entropy against ``(1 + target) / 2`` is least where prediction and target are
    equal, and unlike the squared error it does not level off where the prediction is far out.
    Positives and negatives are weighted to count alike (share of positives at least 0.05, as in
    the paper); a membrane shares the weights of its organelle (Heinrich et al. 2021, training
    code: ``scale_loss=False, scale_key=parent``). The unknown is left out.

    Parameters
    ----------
    logits, target, known
        (n, class, z, y, x); targets are tanh signed distances, `known` is boolean.
    classes
        Names of the classes.
    """
    loss = logits.new_zeros((), dtype=torch.float32)
    for i, name in enumerate(classes):
        here = known[:, i]
        if not here.any():
            continue
        parent = classes.index(CLASSES[name]) if CLASSES[name] in classes else i
        weight = _balance(target[:, parent] > 0, here)
        entropy = nn.functional.binary_cross_entropy_with_logits(
            2 * logits[:, i].float(), (target[:, i] + 1) / 2, reduction="none"
        )
        loss = loss + (entropy * weight).sum() / here.sum()
        if name == CLASSES[name]:
            loss = loss + 0.5 * _one_minus_dice(logits[:, i].float(), target[:, i] > 0, here)
    return loss / len(classes)


def _balance(positive: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    fraction = ((positive & known).sum() / known.sum()).clamp(*BALANCE)
    return (positive & known) / (2 * fraction) + (~positive & known) / (2 * (1 - fraction))


def _one_minus_dice(
    logits: torch.Tensor, inside: torch.Tensor, known: torch.Tensor
) -> torch.Tensor:
    """Soft Dice of what is inside; steep, so that it looks at the boundary only."""
    probability = torch.sigmoid(4 * logits) * known
    inside = inside & known
    both = (probability * inside).sum()
    return 1 - (2 * both + 50) / (probability.sum() + inside.sum() + 50)


class Trainee(nn.Module):
    """A network with batch normalisation after each convolution, to be folded into it at the end.

    Normalisation makes training several times faster; but statistics of a patch would make a voxel
    depend on all of it. So in the last part of the training they are frozen, and are then just a
    scale and a shift of the convolution's output.
    """

    def __init__(self, options: NetworkOptions) -> None:
        super().__init__()
        self.network = UNet(options)
        for conv in self.network.convolutions:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.network.head.weight, std=0.01)
        self.norms = nn.ModuleList(
            nn.BatchNorm3d(conv.out_channels, momentum=0.05) for conv in self.network.convolutions
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (n, class, z, y, x) of every voxel of the input."""
        norms = iter(self.norms)
        return self.network.padded_logits(x, lambda features: next(norms)(features))

    @torch.no_grad()
    def folded(self) -> UNet:
        """Return the plain network that does the same with frozen statistics."""
        plain = UNet(self.network.options)
        plain.load_state_dict(self.network.state_dict())
        for conv, norm in zip(plain.convolutions, self.norms.children(), strict=True):
            _fold(conv, cast("nn.BatchNorm3d", norm))
        return plain.eval()


def _fold(conv: nn.Conv3d, norm: nn.BatchNorm3d) -> None:
    """Let a convolution do what a frozen normalisation after it does."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None or conv.bias is None:
        raise ValueError("only convolutions with bias and norms with statistics can be folded")
    scale = norm.weight / torch.sqrt(variance + norm.eps)
    conv.weight.mul_(scale[:, None, None, None, None])
    conv.bias.sub_(mean).mul_(scale).add_(norm.bias)


class _State:
    """Network, optimiser, averaged weights and step: what a checkpoint holds."""

    def __init__(self, options: TrainOptions) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.trainee = Trainee(options.network())
        self.freeze_at = round(options.freeze * options.steps)
        if options.start:
            start_from(self.trainee.network, load_model(options.start).network)
            self.freeze_at = 0  # untouched statistics leave the features as they are
        self.trainee.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.optimiser = torch.optim.AdamW(
            self.trainee.parameters(), lr=options.learning_rate, weight_decay=1e-4
        )
        self.mean = {k: v.clone() for k, v in self.trainee.state_dict().items()}
        self.step = 0

    def advance(self, arrays: Arrays) -> float:
        x, target, known = arrays
        rate = _one_cycle(self.step, self.options.steps) * self.options.learning_rate
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        if self.step == self.freeze_at:
            self._freeze()
        self.trainee.norms.train(self.step < self.freeze_at)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16_is_fast()):
            logits = self.trainee(x)
        core = slice(self.options.margin, self.options.margin + self.options.output)
        loss = balanced_loss(logits[:, :, core, core, core], target, known, self.options.classes)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trainee.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(self.options.average, (1 + self.step) / (10 + self.step))
        for key, value in self.trainee.state_dict().items():
            if value.is_floating_point():
                self.mean[key].lerp_(value, 1 - decay)
        return float(loss.detach())

    def _freeze(self) -> None:
        """Statistics of many patches, not of the last few."""
        mine = self.trainee.state_dict()
        self.trainee.load_state_dict(
            {k: self.mean[k] if "running" in k else v for k, v in mine.items()}
        )

    def averaged(self) -> UNet:
        trainee = Trainee(self.options.network())
        trainee.load_state_dict(self.mean)
        return trainee.folded()

    def save(self, path: Path) -> None:
        content = {
            "options": asdict(self.options),
            "step": self.step,
            "trainee": self.trainee.state_dict(),
            "mean": self.mean,
            "optimiser": self.optimiser.state_dict(),
        }
        with atomic_path(path) as partial:
            torch.save(content, partial)

    def load(self, path: Path) -> None:
        content: dict[str, Any] = torch.load(path, weights_only=True)
        ours, theirs = asdict(self.options), content["options"]
        changed = [
            k for k in ours if k not in {"threads", "checkpoint_every"} and ours[k] != theirs.get(k)
        ]
        if changed:
            raise FormatError(
                f"{path} was trained with other options: {', '.join(changed)} differ",
                hint="choose another output, or remove the checkpoint",
            )
        self.trainee.load_state_dict(content["trainee"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.mean, self.step = content["mean"], content["step"]
        log.info("going on from step %d of %s", self.step, path)


def start_from(network: UNet, other: UNet) -> None:
    """Take over another network's weights; rows of the head go by class name.

    Raises
    ------
    FormatError
        The bodies of the networks differ in shape.
    """
    state, theirs = network.state_dict(), other.state_dict()
    body = {k: v for k, v in theirs.items() if not k.startswith("head.")}
    wrong = [k for k in state if not k.startswith("head.") and k not in body]
    wrong += [k for k, v in body.items() if k not in state or state[k].shape != v.shape]
    if wrong:
        raise FormatError(
            f"the network to start from has another shape: {', '.join(wrong[:3])} "
            f"({len(wrong)} tensors)",
            hint=f"use its widths {other.options.widths}, down {other.options.down} and up "
            f"{other.options.up}",
        )
    state.update(body)
    for i, name in enumerate(network.options.classes):
        if name in other.options.classes:
            j = other.options.classes.index(name)
            for key in ("head.weight", "head.bias"):
                state[key][i] = theirs[key][j]
    network.load_state_dict(state)


def bfloat16_is_fast() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware (AMX or AVX512-BF16)."""
    try:
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001
    except AttributeError:
        return False


def _one_cycle(step: int, total: int, warm: float = 0.05) -> float:
    """Rise linearly, then fall as a cosine to one hundredth."""
    position = step / max(total, 1)
    if position < warm:
        return max(0.02, position / warm)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (position - warm) / (1 - warm)))
