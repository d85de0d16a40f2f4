from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from clemreg.blocks.plan import plan_blocks
from clemreg.blocks.run import Ledger, run
from clemreg.errors import FormatError


@pytest.mark.parametrize("block", [(4, 5, 6), (11, 17, 23), (1, 17, 8), (100, 100, 100)])
def test_cores_cover_the_volume_once_and_reads_add_the_halo(block):
    count = np.zeros((11, 17, 23), int)
    for piece in plan_blocks((11, 17, 23), block, (1, 2, 3)):
        count[piece.core.slices] += 1
        assert piece.read == piece.core.grow((1, 2, 3))
    assert (count == 1).all()


@pytest.mark.parametrize("workers", [1, 3])
def test_every_block_runs_once_and_the_ledger_spares_the_finished(tmp_path, workers):
    blocks = plan_blocks((4, 4, 4), (2, 2, 2))
    seen, lock = [], threading.Lock()

    def work(block):
        with lock:
            seen.append(block.number)

    run(work, blocks, ledger=Ledger(tmp_path / "l", "job"), workers=workers)
    assert sorted(seen) == list(range(8))
    run(work, blocks, ledger=Ledger(tmp_path / "l", "job"), workers=workers)
    assert len(seen) == 8


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_block_stops_the_run_and_is_not_noted(tmp_path, workers):
    def work(block):
        if block.number == 5:
            raise ValueError("block 5")

    with pytest.raises(ValueError, match="block 5"):
        run(
            work,
            plan_blocks((4, 4, 4), (2, 2, 2)),
            ledger=Ledger(tmp_path / "l", "j"),
            workers=workers,
        )
    assert 5 not in Ledger(tmp_path / "l", "j").done
    assert Ledger(tmp_path / "l", "j").done >= {0, 1, 2}


def test_no_more_than_a_few_blocks_are_under_way():
    under_way, peak, lock = 0, 0, threading.Lock()

    def work(_block):
        nonlocal under_way, peak
        with lock:
            under_way += 1
            peak = max(peak, under_way)
        time.sleep(0.002)
        with lock:
            under_way -= 1

    run(work, plan_blocks((8, 8, 8), (2, 2, 2)), workers=3)
    assert peak <= 3


def test_a_torn_line_and_another_job(tmp_path):
    path = tmp_path / "l"
    path.write_text("job a\n0\n1\n2")
    assert Ledger(path, "a").done == {0, 1}
    with pytest.raises(FormatError, match="another job"):
        Ledger(path, "b")


def test_kill_and_go_on(tmp_path):
    code = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from clemreg.blocks.plan import plan_blocks
        from clemreg.blocks.run import Ledger, run
        out = Path({str(tmp_path)!r})
        def work(block):
            time.sleep(0.05)
            with (out / "calls").open("a") as f:
                f.write(f"{{block.number}}\\n")
        run(work, plan_blocks((4, 4, 8), (2, 2, 2)), ledger=Ledger(out / "ledger", "j"))
    """)
    child = subprocess.Popen([sys.executable, "-c", code])
    for _ in range(400):
        if (tmp_path / "calls").exists() and len((tmp_path / "calls").read_text().split()) >= 4:
            break
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    subprocess.run([sys.executable, "-c", code], check=True)
    calls = [int(n) for n in (tmp_path / "calls").read_text().split()]
    assert set(calls) == set(range(16))
    assert len(calls) <= 17  # at most the block under way was done twice
