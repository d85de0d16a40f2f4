"""Train a network: steps, moving average of weights, checkpoints; resumable to the bit."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError, ConvergenceError, FormatError
from clemreg.io.atomic import atomic_path
from clemreg.segment.balance import balance_weights, weighted_loss
from clemreg.segment.checkpoints import CosemModel, read_pickle
from clemreg.segment.cosem import CosemUNet
from clemreg.segment.data import PatchOptions, PatchSampler, TrainingVolume
from clemreg.segment.exchange import open_network
from clemreg.segment.feed import Arrays, Batches, Feed, feed
from clemreg.segment.journal import Journal
from clemreg.segment.loss import balanced_loss
from clemreg.segment.models import Model
from clemreg.segment.network import UNet
from clemreg.segment.options import TrainOptions
from clemreg.segment.parallel import Team, bfloat16_is_fast, team, training_device
from clemreg.segment.sampling import Bent, Sampler, VolumePatches
from clemreg.segment.trainee import CosemTrainee, Trainee, start_cosem_from, start_from
from clemreg.segment.validation import Examiner, Score

log = logging.getLogger(__name__)

_DEVICE_HINT = 'leave device away, or choose "cpu", or "cuda" or "cuda:1" on NVIDIA\'s GPUs'


@dataclass(frozen=True, eq=False)
class Trained:
    """Result of a training.

    Attributes
    ----------
    network
        With averaged weights, `UNet` or `CosemUNet`.
    losses
        Loss of every step since the last resume.
    steps
        Steps done in all.
    history
        Step and scores by class, of every validation.
    """

    network: UNet | CosemUNet
    losses: tuple[float, ...]
    steps: int
    history: tuple[tuple[int, dict[str, Score]], ...] = ()


@dataclass(frozen=True, eq=False)
class Outlets:
    """Where a training tells how it goes.

    Attributes
    ----------
    journal, progress
        Losses and scores for TensorBoard; steps done.
    keep, keep_every
        Called with the steps done and the network with averaged weights, every so many steps; 0:
        never. A training that goes on from a checkpoint may call it again with the same.
    """

    journal: Journal | None = None
    progress: Progress | None = None
    keep: Callable[[int, UNet | CosemUNet], None] | None = None
    keep_every: int = 0


def train(
    source: Sequence[TrainingVolume] | Sampler,
    options: TrainOptions,
    *,
    validation: Examiner | None = None,
    checkpoint: Path | None = None,
    outlets: Outlets | None = None,
    data: Mapping[str, str] | None = None,
) -> Trained:
    """Train from random weights, or go on from `checkpoint` if it exists.

    Every ``options.checkpoint_every`` steps the averaged network is scored on `validation`, and
    the checkpoint written. A run that was stopped and one that was not give the same network.
    Processes that ``torchrun`` started share each batch; the first of them writes.

    Parameters
    ----------
    source
        Volumes, or any source of patches.
    data
        What tells the source from another, by a name for each part: a checkpoint of another one is
        not gone on with.

    Raises
    ------
    FormatError
        The checkpoint belongs to other options, or to other data.
    ConfigError
        The batch cannot be shared by the processes, or there is no such device.
    ConvergenceError
        The loss, or a weight, is no longer finite; the checkpoint is that of before.
    """
    torch.set_num_threads(options.threads)
    sampler = source if isinstance(source, Sampler) else volume_patches(source, options)
    if options.elastic_nm:
        sampler = Bent(sampler, options.patch(), options.elastic_nm, options.elastic_every_nm)
    with team(device_of(options)) as members:
        state = _state(options, members, dict(data or {}), checkpoint)
        watch = _Watch(options.steps, outlets or Outlets()) if members.rank == 0 else None
        batches = Batches(sampler, options.seed, members.share(options.batch))
        with feed(batches, options, state.device) as fed:
            losses = _steps(state, fed, watch, validation, checkpoint)
        if checkpoint is not None and members.rank == 0:
            state.save(checkpoint)
        return Trained(state.averaged(), tuple(losses), state.step, tuple(state.history))


def device_of(options: TrainOptions) -> torch.device:
    """Return where to compute.

    Raises
    ------
    ConfigError
        torch does not know such a device, or does not see it on this machine.
    """
    try:
        device = training_device(options.device)
        count = torch.get_device_module(device).device_count()
    except RuntimeError as error:
        raise ConfigError(
            f"device = {options.device!r} is none that torch computes on", hint=_DEVICE_HINT
        ) from error
    if (device.index or 0) >= count:
        raise ConfigError(
            f"device = {options.device!r}: torch sees {count or 'no'} {device.type} device"
            f"{'' if count == 1 else 's'} here",
            hint=_DEVICE_HINT,
        )
    return device


def volume_patches(volumes: Sequence[TrainingVolume], options: TrainOptions) -> VolumePatches:
    """Patches of volumes at the voxel size of the network.

    Raises
    ------
    ConfigError
        The network's output has other voxels than its EM.
    """
    shape = options.patch()
    if shape.input_nm != shape.output_nm:
        raise ConfigError(
            "volumes cannot teach a COSEM network for 8 nm EM, whose output has 4 nm",
            hint="train it on crops: [[cosem]] or [[cellmap]]",
        )
    patches = PatchOptions(
        options.spacing_nm,
        options.output,
        shape.halo,
        options.scale,
        options.slabs,
        options.plain,
    )
    return VolumePatches(PatchSampler(volumes, patches), options.classes)


def _steps(
    state: _State,
    fed: Feed,
    watch: _Watch | None,
    validation: Examiner | None,
    checkpoint: Path | None,
) -> list[float]:
    options, losses = state.options, []
    while state.step < options.steps and not state.done:
        losses.append(state.advance(fed.take(state.step, state.patches_of)))
        if watch is not None:
            watch.keep(state)  # before the checkpoint: what is kept is never left out
        if state.step % options.checkpoint_every == 0:
            state.pause(validation if watch else None, watch.outlets.journal if watch else None)
            if checkpoint is not None and watch is not None:
                state.save(checkpoint)
        if watch is not None:
            watch.look(state.step, losses)
    return losses


class _Watch:
    """Tells how the loss goes, and hands out the network."""

    def __init__(self, steps: int, outlets: Outlets) -> None:
        self.steps, self.outlets = steps, outlets
        self.begin = time.monotonic()

    def keep(self, state: _State) -> None:
        """Hand out the network, if this is a step to do so."""
        outlets = self.outlets
        if outlets.keep is not None and outlets.keep_every and state.step % outlets.keep_every == 0:
            outlets.keep(state.step, state.averaged())

    def look(self, step: int, losses: Sequence[float]) -> None:
        """Note the mean of the last losses, at every tenth step."""
        outlets = self.outlets
        if step % 10:
            return
        rate = len(losses) / max(time.monotonic() - self.begin, 1e-6)
        recent = float(np.mean(losses[-100:]))
        if outlets.journal is not None:
            outlets.journal.loss(step, recent, rate)
        if outlets.progress is not None:
            outlets.progress(step, self.steps, f"loss {recent:.4f}, {rate:.2f} steps/s")


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


class _State:
    """Network, optimiser, averaged weights and step: what a checkpoint holds."""

    def __init__(
        self,
        trainee: Trainee | CosemTrainee,
        options: TrainOptions,
        members: Team,
        data: dict[str, str],
    ) -> None:
        self.trainee = trainee
        self.options, self.members, self.data = options, members, data
        self.device = device_of(options)
        self.freeze_at = round(options.freeze * options.steps)
        self.trainee.to(self.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.model = members.joined(self.trainee, self.device)
        self.optimiser = _optimiser(self.trainee, options)
        self.mean = {k: v.clone() for k, v in self.trainee.state_dict().items()}
        self.step = 0
        self.history: list[tuple[int, dict[str, Score]]] = []
        self.done = False
        # Patches to see again, and the losses since the last checkpoint, by number of patches.
        self.hard: list[int] = []
        self.seen: dict[int, float] = {}

    def patches_of(self, step: int) -> int:
        """Which patches a step sees: its own, or at times hard ones of before."""
        if not self.hard:
            return step
        rng = np.random.default_rng((self.options.seed, step))
        return int(rng.choice(self.hard)) if rng.random() < self.options.revisit else step

    def advance(self, arrays: Arrays) -> float:
        """Take one step and return its loss."""
        options = self.options
        x, target, known = (a.to(self.device, non_blocking=True) for a in arrays)
        for group in self.optimiser.param_groups:
            group["lr"] = _pace(self.step, options) * options.learning_rate
        if self.step == 0 and options.start:
            self.trainee.settle(x)
            self.members.spread(self.trainee)
            self.mean = {k: v.clone() for k, v in self.trainee.state_dict().items()}
        if self.step == self.freeze_at:
            self._freeze()
        self.trainee.norms.train(self.step < self.freeze_at)
        loss = self._loss(x, target, known)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trainee.parameters(), 1.0)
        self.optimiser.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _diverged(f"the loss of step {self.step + 1} is {value}")
        self.seen[self.patches_of(self.step)] = value
        self.step += 1
        self._average()
        return value

    def _loss(self, x: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        options, total = self.options, self.members.total
        half = options.precision == "bfloat16" or (
            options.precision == "auto" and bfloat16_is_fast(self.device)
        )
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            answer = self.model(x)
        if options.architecture == "compact":
            core = slice(options.margin, options.margin + options.output)
            answer = answer[:, :, core, core, core]
        if options.loss == "entropy":
            return balanced_loss(answer, target, known, options.classes, options.balance, total)
        if options.architecture == "compact":
            answer = torch.tanh(answer.float())
        weights = balance_weights(target, known, options.classes, total)
        return weighted_loss(answer, target, weights, total)

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

    def pause(self, validation: Examiner | None, journal: Journal | None) -> None:
        """Score the averaged network, see whether to go on, and what was hard."""
        if self.options.revisit:
            worst = sorted(self.seen, key=lambda number: (-self.seen[number], number))
            self.hard = worst[: max(1, len(worst) // 10)]
        self.seen = {}
        if validation is not None:
            self._examine(validation, journal)
        self.done = self.members.agreed(self.done, self.device)

    def _examine(self, validation: Examiner, journal: Journal | None) -> None:
        if not validation.cases:
            return
        scores, example = validation.examine(self.averaged().to(self.device))
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

    def averaged(self) -> UNet | CosemUNet:
        """Return the network with averaged weights, on the processor."""
        self._require_finite()
        trainee = _bare(self.options)
        trainee.load_state_dict(self.mean)
        return trainee.folded()

    def _require_finite(self) -> None:
        # The last step may spoil the weights after a loss that was fine.
        if not all(bool(torch.isfinite(value).all()) for value in self.mean.values()):
            raise _diverged(f"the weights after step {self.step} are not finite")

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on."""
        self._require_finite()
        content = {
            "options": asdict(self.options),
            "data": self.data,
            "step": self.step,
            "trainee": self.trainee.state_dict(),
            "mean": self.mean,
            "optimiser": self.optimiser.state_dict(),
            "history": [(n, {k: asdict(v) for k, v in s.items()}) for n, s in self.history],
            "done": self.done,
            "hard": self.hard,
        }
        with atomic_path(path) as partial:
            torch.save(content, partial)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        content = read_pickle(path, self.device)
        if not isinstance(content, dict) or not content.keys() >= {"options", "step", "trainee"}:
            raise FormatError(
                f"{path} is no checkpoint of a training",
                hint="choose another output, or remove it",
            )
        # What an older checkpoint does not say was as it is now by default.
        ours, theirs = asdict(self.options), asdict(TrainOptions()) | content["options"]
        free = {"threads", "workers", "checkpoint_every", "device"}
        changed = [k for k in ours if k not in free and ours[k] != theirs.get(k)]
        if changed:
            raise FormatError(
                f"{path} was trained with other options: {', '.join(changed)} differ",
                hint="choose another output, or remove the checkpoint",
            )
        others = content.get("data", self.data)
        changed = [k for k in self.data if self.data[k] != others.get(k)]
        if changed:
            raise FormatError(
                f"{path} was trained with other data: {', '.join(changed)} differ",
                hint="choose another output and start from that network, or remove the checkpoint",
            )
        self.trainee.load_state_dict(content["trainee"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.mean, self.step, self.done = content["mean"], content["step"], content["done"]
        self.hard = content.get("hard", [])
        self.history = [(n, {k: Score(**v) for k, v in s.items()}) for n, s in content["history"]]
        log.info("going on from step %d of %s", self.step, path)


def _diverged(what: str) -> ConvergenceError:
    return ConvergenceError(
        f"the training has diverged: {what}",
        hint="choose a smaller learning_rate and another out; the last checkpoint stays as it is",
    )


def _state(
    options: TrainOptions, members: Team, data: dict[str, str], checkpoint: Path | None
) -> _State:
    """Go on from a checkpoint, which holds all weights, or begin."""
    torch.manual_seed(options.seed)
    if checkpoint is None or not checkpoint.exists():
        return _State(_trainee(options), options, members, data)
    state = _State(_bare(options), options, members, data)
    state.load(checkpoint)
    return state


def _bare(options: TrainOptions) -> Trainee | CosemTrainee:
    compact = options.architecture == "compact"
    return Trainee(options.network()) if compact else CosemTrainee(options.cosem())


def _trainee(options: TrainOptions) -> Trainee | CosemTrainee:
    """Network to train: random, or with the weights of another one."""
    trainee = _bare(options)
    if not options.start:
        return trainee
    other = open_network(options.start)
    if isinstance(trainee, Trainee) and isinstance(other, Model):
        start_from(trainee.network, other.network)
    elif isinstance(trainee, CosemTrainee) and isinstance(other, CosemModel):
        start_cosem_from(trainee.network, other.network)
    else:
        raise FormatError(
            f"{options.start} is no {options.architecture} network to start from",
            hint='architecture = "cosem" starts from a COSEM network, "compact" from a bundled one',
        )
    return trainee


def _optimiser(trainee: torch.nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    if options.optimiser == "adam":
        return torch.optim.Adam(trainee.parameters(), lr=options.learning_rate, betas=options.betas)
    return torch.optim.AdamW(
        trainee.parameters(), lr=options.learning_rate, betas=options.betas, weight_decay=1e-4
    )


def _pace(step: int, options: TrainOptions) -> float:
    """Share of the learning rate at a step."""
    return 1.0 if options.schedule == "constant" else _one_cycle(step, options.steps)


def _one_cycle(step: int, total: int, warm: float = 0.05) -> float:
    """Rise linearly, then fall as a cosine to one hundredth."""
    position = step / max(total, 1)
    if position < warm:
        return max(0.02, position / warm)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (position - warm) / (1 - warm)))
