"""Train on several GPUs or machines: the processes that ``torchrun`` starts share each batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn

from clemreg.errors import ConfigError

PATIENCE = timedelta(hours=2)
"""How long the others wait while the first process scores."""
Total = Callable[[torch.Tensor], torch.Tensor]
"""Sum of a tensor over the processes that share a batch; gradients go through."""


def alone(part: torch.Tensor) -> torch.Tensor:
    """Return the total of one process: what it has."""
    return part


class _Sum(torch.autograd.Function):
    """Sum over the processes; each of them hears how the sums of all count."""

    @staticmethod
    def forward(_ctx: Any, part: torch.Tensor) -> torch.Tensor:
        result = part.clone()
        distributed.all_reduce(result)
        return result

    @staticmethod
    def backward(_ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        result = gradients[0].clone()
        distributed.all_reduce(result)
        return result


def _over_all(part: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _Sum.apply(part)
    return result


@dataclass(frozen=True)
class Team:
    """The processes of a training.

    Attributes
    ----------
    rank
        Which of them this is; 0 writes checkpoints, scores and the journal.
    size
        How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def total(self) -> Total:
        """Sum over the processes."""
        return alone if self.size == 1 else _over_all

    def share(self, batch: int) -> range:
        """Return which patches of a batch are this process's.

        Raises
        ------
        ConfigError
            The batch cannot be shared equally.
        """
        if batch % self.size:
            raise ConfigError(
                f"a batch of {batch} cannot be shared by {self.size} processes",
                hint="make batch a multiple of the processes",
            )
        each = batch // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def joined(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Let a module average its gradients over the processes."""
        if self.size == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(module, [device] if device.type == "cuda" else None)

    def spread(self, module: nn.Module) -> None:
        """Give all processes the values of process 0."""
        if self.size > 1:
            for value in module.state_dict().values():
                distributed.broadcast(value, 0)

    def agreed(self, flag: bool, device: torch.device) -> bool:
        """Return what process 0 says."""
        if self.size == 1:
            return flag
        answer = torch.tensor(float(flag), device=device)
        distributed.broadcast(answer, 0)
        return bool(answer)


@contextmanager
def team(device: torch.device) -> Iterator[Team]:
    """Join the processes that ``torchrun`` started, by its environment; one process otherwise.

    Inside another such block its processes are used.
    """
    if distributed.is_initialized():
        yield Team(distributed.get_rank(), distributed.get_world_size())
        return
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Team()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Team(distributed.get_rank(), size)
    finally:
        distributed.destroy_process_group()


def writes() -> bool:
    """Whether this process is the one that writes the result."""
    return os.environ.get("RANK", "0") == "0"


def training_device(wanted: str) -> torch.device:
    """Return the device asked for; else a GPU, or the processor if there is none.

    Where a GPU is asked for without a number, it is this process's own.
    """
    name = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(name)


def work_on(device: torch.device) -> None:
    """Let this thread use a GPU: threads begin on the first, whatever the others use."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware.

    Processors do with AMX or AVX512-BF16, NVIDIA's GPUs from Ampere on.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001
    except AttributeError:
        return False
