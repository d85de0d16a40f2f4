"""Train a network: balanced masked loss, moving average of weights, resumable."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clemreg.blocks.run import Progress
from clemreg.errors import FormatError
from clemreg.io.atomic import atomic_path
from clemreg.segment.data import PatchOptions, PatchSampler, TrainingVolume
from clemreg.segment.models import load_model
from clemreg.segment.network import NetworkOptions, UNet
from clemreg.segment.targets import CLASSES, class_targets

log = logging.getLogger(__name__)

BALANCE = (0.2, 0.95)


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
    prediction: torch.Tensor, target: torch.Tensor, known: torch.Tensor, classes: Sequence[str]
) -> torch.Tensor:
    """Mean squared error, positives and negatives weighted to count alike, unknown left out.

    The share of positives counts as at least a fifth (0.05 in the paper): mitochondria fill some
    per cent of tissue, and full balancing makes a small network see too many.

    A membrane shares the weights of its organelle, as in the paper (Heinrich et al. 2021, training
    code: ``scale_loss=False, scale_key=parent``).

    Parameters
    ----------
    prediction, target, known
        (n, class, z, y, x); `known` is boolean.
    classes
        Names of the classes.
    """
    squared = (prediction.float() - target) ** 2
    loss = squared.new_zeros(())
    for i, name in enumerate(classes):
        parent = classes.index(CLASSES[name]) if CLASSES[name] in classes else i
        total = known[:, i].sum().clamp(min=1)
        positive = (target[:, parent] > 0) & known[:, i]
        negative = (target[:, parent] <= 0) & known[:, i]
        fraction = (positive.sum() / total).clamp(*BALANCE)
        weight = positive / (2 * fraction) + negative / (2 * (1 - fraction))
        loss = loss + (squared[:, i] * weight).sum() / total
    return loss / len(classes)


class _State:
    """Network, optimiser, averaged weights and step: what a checkpoint holds."""

    def __init__(self, options: TrainOptions) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.network = UNet(options.network())
        for module in self.network.modules():
            if isinstance(module, torch.nn.Conv3d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                torch.nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        torch.nn.init.normal_(self.network.head.weight, std=0.01)
        if options.start:
            start_from(self.network, load_model(options.start).network)
        self.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=options.learning_rate, weight_decay=1e-4
        )
        self.mean = {k: v.clone() for k, v in self.network.state_dict().items()}
        self.step = 0

    def advance(self, arrays: Arrays) -> float:
        x, target, known = arrays
        rate = _one_cycle(self.step, self.options.steps) * self.options.learning_rate
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16_is_fast()):
            prediction = self.network.forward_padded(x)
        core = slice(self.options.margin, self.options.margin + self.options.output)
        prediction = prediction[:, :, core, core, core]
        loss = balanced_loss(prediction, target, known, self.options.classes)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(self.options.average, (1 + self.step) / (10 + self.step))
        for key, value in self.network.state_dict().items():
            self.mean[key].lerp_(value, 1 - decay)
        return float(loss.detach())

    def averaged(self) -> UNet:
        network = UNet(self.network.options)
        network.load_state_dict(self.mean)
        return network.eval()

    def save(self, path: Path) -> None:
        content = {
            "options": asdict(self.options),
            "step": self.step,
            "network": self.network.state_dict(),
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
        self.network.load_state_dict(content["network"])
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
