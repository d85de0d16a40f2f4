"""The patches of each step, drawn while the network computes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from clemreg.segment.options import TrainOptions
from clemreg.segment.parallel import work_on
from clemreg.segment.sampling import Sampler

Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""EM (n, 1, z, y, x); targets and where they are known (n, class, z, y, x)."""
Numbers = Callable[[int], int]
"""Number of the patches that a step sees."""
# Batches that each process has ready or is drawing.
AHEAD = 2


class Feed(Protocol):
    """Gives the patches of a step."""

    def take(self, step: int, numbers: Numbers) -> Arrays:
        """Return the patches of `step`, and have the next ones drawn."""


@dataclass(frozen=True, eq=False)
class Batches(Dataset[Arrays]):
    """The share of the patches of any number that this process sees.

    They depend on seed and number only, so a resumed run sees the same, and so does one with
    another number of workers.
    """

    sampler: Sampler
    seed: int
    share: range

    def __getitem__(self, number: int) -> Arrays:
        """Draw them."""
        drawn = [
            self.sampler.draw(np.random.default_rng((self.seed, number, i))) for i in self.share
        ]
        x = torch.from_numpy(np.stack([d[0] for d in drawn])[:, None])
        target, known = (torch.from_numpy(np.stack([d[k] for d in drawn])) for k in (1, 2))
        return x, target, known


@contextmanager
def feed(batches: Batches, options: TrainOptions, device: torch.device) -> Iterator[Feed]:
    """Draw ahead: in ``options.workers`` processes, or in a thread of this one if that is 0."""
    if options.workers:
        yield _Processes(batches, options, device)
        return
    with ThreadPoolExecutor(1, initializer=work_on, initargs=(device,)) as pool:
        yield _Thread(pool, batches, options, device)


def _end(step: int, options: TrainOptions) -> int:
    """First step that is not drawn before `step` is done: what is hard changes at checkpoints."""
    every = options.checkpoint_every
    return min(options.steps, step - step % every + every) if options.revisit else options.steps


class _Thread:
    """Draws the patches of one step while the network computes the one before."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        batches: Batches,
        options: TrainOptions,
        device: torch.device,
    ) -> None:
        self.pool, self.batches, self.options = pool, batches, options
        self.pinned = device.type == "cuda"
        self.upcoming: tuple[int, Future[Arrays]] | None = None

    def take(self, step: int, numbers: Numbers) -> Arrays:
        """Return the patches of `step`, and have the next ones drawn."""
        if self.upcoming is None or self.upcoming[0] != step:
            self.upcoming = self._ahead(step, numbers)
        arrays = self.upcoming[1].result()
        more = step + 1 < _end(step, self.options)
        self.upcoming = self._ahead(step + 1, numbers) if more else None
        return arrays

    def _ahead(self, step: int, numbers: Numbers) -> tuple[int, Future[Arrays]]:
        return step, self.pool.submit(self._draw, numbers(step))

    def _draw(self, number: int) -> Arrays:
        x, target, known = self.batches[number]
        if self.pinned:
            return x.pin_memory(), target.pin_memory(), known.pin_memory()
        return x, target, known


class _Processes:
    """Draws the patches of many steps at once, each step in a process of its own."""

    def __init__(self, batches: Batches, options: TrainOptions, device: torch.device) -> None:
        self.batches, self.options, self.device = batches, options, device
        self.upcoming: Iterator[Arrays] | None = None
        self.next = 0

    def take(self, step: int, numbers: Numbers) -> Arrays:
        """Return the patches of `step`, and have the next ones drawn."""
        if self.upcoming is None or self.next != step:
            self.upcoming = iter(self._loader(range(step, _end(step, self.options)), numbers))
        arrays = next(self.upcoming)
        self.next = step + 1
        if self.next == _end(step, self.options):
            self.upcoming = None
        return arrays

    def _loader(self, steps: range, numbers: Numbers) -> DataLoader[Arrays]:
        # Forked processes see the volumes where they are; others would get a copy each.
        forks = "fork" in multiprocessing.get_all_start_methods()
        return DataLoader(
            self.batches,
            batch_size=None,
            sampler=[numbers(step) for step in steps],
            num_workers=self.options.workers,
            prefetch_factor=AHEAD,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context="fork" if forks else None,
            worker_init_fn=_alone,
        )


def _alone(_worker: int) -> None:
    """Compute in one thread: there are as many processes as are to be busy."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
