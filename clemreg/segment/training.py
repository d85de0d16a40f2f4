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
from clemreg.segment.journal import Journal
from clemreg.segment.loss import balanced_loss
from clemreg.segment.models import load_model
from clemreg.segment.network import NetworkOptions, UNet
from clemreg.segment.targets import class_targets
from clemreg.segment.trainee import Trainee, start_from
from clemreg.segment.validation import Score, Validation

log = logging.getLogger(__name__)


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
    widths, down, up, fold
        Shape of the network, as in `NetworkOptions`.
    balance
        How far positives and negatives are made to count alike: 1 fully (the paper), 0 not at all.
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
        Share of the steps after which the normalisation is frozen.
    least_steps
        Steps after which `converged` may end the training before `steps`; 0: it never does.
    device
        Where to compute; empty: on the first GPU, or the processor if there is none.
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
    average: float = 0.998
    seed: int = 0
    threads: int = 2
    checkpoint_every: int = 250
    start: str = ""
    freeze: float = 0.65
    least_steps: int = 0
    device: str = ""

    def network(self) -> NetworkOptions:
        """Return the shape of the network."""
        return NetworkOptions(self.classes, self.widths, self.down, self.up, self.fold)


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
    history
        Step and scores by class, of every validation.
    """

    network: UNet
    losses: tuple[float, ...]
    steps: int
    history: tuple[tuple[int, dict[str, Score]], ...] = ()


def train(
    volumes: Sequence[TrainingVolume],
    options: TrainOptions,
    *,
    validation: Validation | None = None,
    checkpoint: Path | None = None,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train from random weights, or go on from `checkpoint` if it exists.

    Every ``options.checkpoint_every`` steps the averaged network is scored on `validation`, and
    the checkpoint written. A run that was stopped and one that was not give the same network.

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
        while state.step < options.steps and not state.done:
            arrays, upcoming = upcoming.result(), _ahead(pool, sampler, options, state.step + 1)
            losses.append(state.advance(arrays))
            if state.step % options.checkpoint_every == 0:
                state.pause(validation, journal)
                if checkpoint is not None:
                    state.save(checkpoint)
            if state.step % 10 == 0:
                rate = len(losses) / (time.monotonic() - begin)
                recent = float(np.mean(losses[-100:]))
                if journal is not None:
                    journal.loss(state.step, recent, rate)
                if progress is not None:
                    progress(state.step, options.steps, f"loss {recent:.4f}, {rate:.2f} steps/s")
        upcoming.cancel()
    if checkpoint is not None:
        state.save(checkpoint)
    return Trained(state.averaged(), tuple(losses), state.step, tuple(state.history))


def converged(values: Sequence[Score]) -> bool:
    """Whether the last scores end the training, by the rule of the paper.

    They do at the first score that is no better than the one before, if that was worse than the
    one before it, both in Dice and in mean false distance (Heinrich et al. 2021, Methods).
    """
    if len(values) < 3:
        return False
    first, second, third = values[-3:]
    return (
        third.dice <= second.dice < first.dice
        and third.mean_false_distance_nm
        >= second.mean_false_distance_nm
        > first.mean_false_distance_nm
    )


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
    arrays = (x, target, known)
    if torch.cuda.is_available():
        return x.pin_memory(), target.pin_memory(), known.pin_memory()
    return arrays


class _State:
    """Network, optimiser, averaged weights and step: what a checkpoint holds."""

    def __init__(self, options: TrainOptions) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.device = torch.device(
            options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        )
        self.trainee = Trainee(options.network())
        self.freeze_at = round(options.freeze * options.steps)
        if options.start:
            start_from(self.trainee.network, load_model(options.start).network)
        self.trainee.to(self.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.optimiser = torch.optim.AdamW(
            self.trainee.parameters(), lr=options.learning_rate, weight_decay=1e-4
        )
        self.mean = {k: v.clone() for k, v in self.trainee.state_dict().items()}
        self.step = 0
        self.history: list[tuple[int, dict[str, Score]]] = []
        self.done = False

    def advance(self, arrays: Arrays) -> float:
        """Take one step and return its loss."""
        options = self.options
        x, target, known = (a.to(self.device, non_blocking=True) for a in arrays)
        for group in self.optimiser.param_groups:
            group["lr"] = _one_cycle(self.step, options.steps) * options.learning_rate
        if self.step == 0 and options.start:
            self.trainee.settle(x)
            self.mean = {k: v.clone() for k, v in self.trainee.state_dict().items()}
        if self.step == self.freeze_at:
            self._freeze()
        self.trainee.norms.train(self.step < self.freeze_at)
        half = self.device.type == "cuda" or bfloat16_is_fast()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            logits = self.trainee(x)
        core = slice(options.margin, options.margin + options.output)
        loss = balanced_loss(
            logits[:, :, core, core, core], target, known, options.classes, options.balance
        )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trainee.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        self._average()
        return float(loss.detach())

    def _average(self) -> None:
        """Move the averaged weights; faster at first, when they are all but random."""
        decay = min(self.options.average, (1 + self.step) / (10 + self.step))
        for key, value in self.trainee.state_dict().items():
            if value.is_floating_point():
                self.mean[key].lerp_(value, 1 - decay)

    def _freeze(self) -> None:
        """Statistics of many patches, not of the last few."""
        mine = self.trainee.state_dict()
        self.trainee.load_state_dict(
            {k: self.mean[k] if "running" in k else v for k, v in mine.items()}
        )

    def pause(self, validation: Validation | None, journal: Journal | None) -> None:
        """Score the averaged network, and see whether to go on."""
        if validation is None or not validation.cases:
            return
        scores, example = validation.examine(self.averaged())
        self.history.append((self.step, scores))
        if journal is not None:
            journal.scores(self.step, scores, example)
        for name, score in scores.items():
            log.info(
                "step %d: %s IoU %.3f, mean false distance %.0f nm",
                self.step,
                name,
                score.iou,
                score.mean_false_distance_nm,
            )
        first = [
            s[self.options.classes[0]] for _, s in self.history if self.options.classes[0] in s
        ]
        if self.options.least_steps and self.step >= self.options.least_steps:
            self.done = converged(first)

    def averaged(self) -> UNet:
        """Return the network with averaged weights, on the processor."""
        trainee = Trainee(self.options.network())
        trainee.load_state_dict(self.mean)
        return trainee.folded()

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on."""
        content = {
            "options": asdict(self.options),
            "step": self.step,
            "trainee": self.trainee.state_dict(),
            "mean": self.mean,
            "optimiser": self.optimiser.state_dict(),
            "history": [(n, {k: asdict(v) for k, v in s.items()}) for n, s in self.history],
            "done": self.done,
        }
        with atomic_path(path) as partial:
            torch.save(content, partial)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        content: dict[str, Any] = torch.load(path, weights_only=True, map_location=self.device)
        ours, theirs = asdict(self.options), content["options"]
        free = {"threads", "checkpoint_every", "device"}
        changed = [k for k in ours if k not in free and ours[k] != theirs.get(k)]
        if changed:
            raise FormatError(
                f"{path} was trained with other options: {', '.join(changed)} differ",
                hint="choose another output, or remove the checkpoint",
            )
        self.trainee.load_state_dict(content["trainee"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.mean, self.step, self.done = content["mean"], content["step"], content["done"]
        self.history = [(n, {k: Score(**v) for k, v in s.items()}) for n, s in content["history"]]
        log.info("going on from step %d of %s", self.step, path)


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
