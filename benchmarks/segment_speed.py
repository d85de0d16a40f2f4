"""Time the bundled network: clemreg's way against a plain loop over overlapping patches.

    python benchmarks/segment_speed.py --threads 2

Both run the same network in float32 on the same simulated EM in the same process, in turn. The
plain loop is what one would write first: patches of 128 voxels that overlap by half (the default of
the common sliding-window tools), contiguous layout, zero-padded convolutions, averaged in one
array. Its rate is that of the inside of a large volume: a patch yields 64^3 new voxels. clemreg's
rate includes reading from and writing to disk.

The share of the peak counts the multiplications and additions of the convolutions, halo included,
against the fastest large matrix product of the same run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clemreg.io.volumes import open_volume, write_volume
from clemreg.segment.models import Model, load_model
from clemreg.segment.network import UNet
from clemreg.segment.predict import PredictOptions, automatic_block, predict
from clemreg.space.grid import Grid
from clemreg.volume import Volume

PATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="mito-8nm")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--blocks", type=int, default=2, help="blocks of the volume")
    parser.add_argument("--rounds", type=int, default=2, help="measure this often, in turn")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rounds = [once(arguments.model, arguments.blocks) for _ in range(arguments.rounds)]
    best = {k: max(r[k] for r in rounds) for k in rounds[0]}
    best["ratio"] = float(np.median([r["clemreg Mvoxel/s"] / r["plain Mvoxel/s"] for r in rounds]))
    best["share of peak"] = best["clemreg GFLOP/s"] / best["peak GFLOP/s"]
    best["threads"] = arguments.threads
    for name, value in best.items():
        print(f"{name:20} {value:.3f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(best, indent=1) + "\n")


def once(name: str, blocks: int) -> dict[str, float]:
    model = load_model(name)
    size = automatic_block(model.network)
    shape = (size, size, size * blocks)
    em = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    plain = plain_rate(model, em)
    fast, flops = clemreg_rate(model, em)
    return {
        "clemreg Mvoxel/s": fast / 1e6,
        "plain Mvoxel/s": plain / 1e6,
        "clemreg GFLOP/s": flops / 1e9,
        "peak GFLOP/s": peak() / 1e9,
    }


def clemreg_rate(model: Model, em: np.ndarray) -> tuple[float, float]:
    """Voxels, and operations, a second."""
    with tempfile.TemporaryDirectory() as folder:
        grid = Grid(em.shape, model.card.spacing_nm)
        write_volume(Path(folder) / "em.zarr", Volume(em, grid))
        volume = open_volume(Path(folder) / "em.zarr")
        options = PredictOptions(precise=True, limits=(0, 255))
        seconds = clock(lambda: predict(volume, model, Path(folder) / "p.zarr", options=options))
    return em.size / seconds, operations(model, em.shape[0]) * em.shape[2] / em.shape[0] / seconds


def operations(model: Model, block: int) -> float:
    """Multiplications and additions that a block of output costs, counted without computing."""
    from torch.utils.flop_counter import FlopCounterMode

    network = UNet(model.network.options).to("meta")
    size = network.input_size(block)
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 1, size, size, size, device="meta"))
    return float(counter.get_total_flops())


def plain_rate(model: Model, em: np.ndarray, patches: int = 4) -> float:
    """Voxels a second of a plain loop inside a large volume."""
    network = model.network.to(memory_format=torch.contiguous_format)
    total = np.zeros((len(model.classes), *em.shape), np.float32)
    weight = np.zeros(em.shape, np.float32)

    def loop() -> None:
        for i in range(patches):
            x = i * PATCH // 2 % (em.shape[2] - PATCH + 1)
            here = np.s_[:PATCH, :PATCH, x : x + PATCH]
            patch = torch.from_numpy(em[here].astype(np.float32) / 127.5 - 1)[None, None]
            total[(slice(None), *here)] += torch.tanh(network.padded_logits(patch))[0].numpy()
            weight[here] += 1

    with torch.no_grad():
        seconds = clock(loop)
    return float(patches * (PATCH // 2) ** 3 / seconds)


def peak(size: int = 2048) -> float:
    """Operations a second of a large matrix product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2.0 * size**3 / min(clock(lambda: a @ b) for _ in range(4))


def clock(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
