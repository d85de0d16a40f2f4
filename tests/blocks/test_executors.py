from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from clemreg.blocks.dask import Dask
from clemreg.blocks.executors import Processes, Serial, Threads, executor_named
from clemreg.blocks.plan import plan_blocks
from clemreg.blocks.run import Ledger, run
from clemreg.blocks.stages import Blockwise, collect, map_volume
from clemreg.errors import ClemregError, ConfigError, DataError, StorageError
from clemreg.testing import hostile_grid
from clemreg.volume import Volume

BLOCKS = plan_blocks((4, 4, 4), (2, 2, 2))


@dataclass(frozen=True)
class Note:
    """Leave a file for each block; misbehave the first times in block 3."""

    folder: Path
    trouble: str = ""
    times: int = 1

    def __call__(self, block):
        path = self.folder / f"{block.number}"
        with path.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        if block.number == 3 and len(path.read_text().split()) <= self.times:
            if self.trouble == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.trouble == "storage":
                raise OSError("stale file handle")
            if self.trouble == "full":
                raise StorageError("disk full", hint="free some space")
            if self.trouble == "data":
                raise DataError("NaN in block 3", hint="replace them")

    def calls(self):
        return {
            int(p.name): len(p.read_text().split())
            for p in self.folder.iterdir()
            if p.name.isdigit()
        }


@pytest.mark.parametrize("executor", [Serial(), Threads(2), Processes(2)], ids=lambda e: type(e))
def test_every_block_once_and_none_when_all_is_done(tmp_path, executor):
    note = Note(tmp_path)
    run(note, BLOCKS, executor=executor, ledger=Ledger(tmp_path / "l", "j"))
    run(note, BLOCKS, executor=executor, ledger=Ledger(tmp_path / "l", "j"))
    assert note.calls() == dict.fromkeys(range(8), 1)


def test_a_killed_process_is_replaced_and_its_block_done_again(tmp_path):
    note = Note(tmp_path, "kill")
    ledger = Ledger(tmp_path / "l", "j")
    run(note, BLOCKS, executor=Processes(2), ledger=ledger)
    assert ledger.done == set(range(8))
    calls = note.calls()
    assert set(calls) == set(range(8))
    assert calls[3] == 2


def test_a_block_that_always_kills_its_worker_ends_the_run(tmp_path):
    note = Note(tmp_path, "kill", times=99)
    with pytest.raises(ClemregError, match="died each time") as caught:
        run(note, BLOCKS, executor=Processes(1, retries=1), ledger=Ledger(tmp_path / "l", "j"))
    assert "smaller blocks" in str(caught.value)
    assert 3 not in Ledger(tmp_path / "l", "j").done


@pytest.mark.parametrize("executor", [Threads(2, retries=1), Processes(1)], ids=lambda e: type(e))
def test_a_storage_hiccup_is_tried_again(tmp_path, executor):
    note = Note(tmp_path, "storage")
    run(note, BLOCKS, executor=executor)
    assert note.calls() == {**dict.fromkeys(range(8), 1), 3: 2}


@pytest.mark.parametrize(("trouble", "error"), [("full", StorageError), ("data", DataError)])
def test_what_cannot_get_better_is_not_tried_again(tmp_path, trouble, error):
    note = Note(tmp_path, trouble, times=99)
    with pytest.raises(error) as caught:
        run(note, BLOCKS, executor=Processes(1))
    assert caught.value.hint
    assert note.calls()[3] == 1


def test_processes_end_when_their_parent_is_killed(tmp_path):
    code = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_executors import BLOCKS, Slow
        from clemreg.blocks.executors import Processes
        from clemreg.blocks.run import run
        if __name__ == "__main__":
            run(Slow(Path({str(tmp_path)!r})), BLOCKS, executor=Processes(1))
    """)
    script = tmp_path / "script.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script)])
    pid = _wait_for(lambda: [p.name for p in tmp_path.glob("pid-*")])[0].removeprefix("pid-")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert _wait_for(lambda: not psutil.pid_exists(int(pid)) or _zombie(int(pid)))


def test_processes_that_are_kept_serve_several_runs(tmp_path):
    with Processes(1).started() as running:
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            run(Note(tmp_path / name), BLOCKS, executor=running)
    notes = [Note(tmp_path / name) for name in ("first", "second")]
    assert [note.calls() for note in notes] == [dict.fromkeys(range(8), 1)] * 2
    pids = {path.read_text().strip() for note in notes for path in note.folder.iterdir()}
    assert len(pids) == 1
    assert not psutil.pid_exists(int(*pids))


def test_kept_processes_outlive_an_error_and_a_killed_one_is_replaced(tmp_path):
    with Processes(2).started() as running:
        for name, trouble in (("a", "data"), ("b", "kill"), ("c", "")):
            (tmp_path / name).mkdir()
            note = Note(tmp_path / name, trouble)
            if trouble == "data":
                with pytest.raises(DataError, match="NaN"):
                    run(note, BLOCKS, executor=running)
            else:
                run(note, BLOCKS, executor=running)
                assert set(note.calls()) == set(range(8))
    assert Note(tmp_path / "c").calls() == dict.fromkeys(range(8), 1)


@dataclass(frozen=True)
class Slow:
    folder: Path

    def __call__(self, _block):
        (self.folder / f"pid-{os.getpid()}").touch()
        time.sleep(30)


def _zombie(pid):
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def _wait_for(condition):
    for _ in range(9000):
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def minus(box):
    return -np.indices(hostile_grid().shape).sum(0)[box.slices]


def corner(block):
    return {"corner": np.array(block.core.start), "one": np.ones(2)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_dask_does_the_same_and_survives_a_killed_worker(tmp_path):
    pytest.importorskip("distributed")
    grid = hostile_grid()
    note = Note(tmp_path, "kill")
    dask = Dask("local", 2)
    run(note, BLOCKS, executor=dask, ledger=Ledger(tmp_path / "l", "j"))
    calls = note.calls()
    assert set(calls) == set(range(8))
    assert calls[3] == 2
    how = Blockwise((4, 5, 6), dask)
    out = map_volume(Volume(minus(grid.box), grid).read, tmp_path / "o.zarr", grid, "i4", how)
    assert (out.read() == minus(grid.box)).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_scheduler_that_runs_already_is_used(tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
    ) as cluster:
        run(Note(tmp_path), BLOCKS, executor=executor_named(cluster.scheduler_address, 1))
    assert Note(tmp_path).calls() == dict.fromkeys(range(8), 1)


def test_batch_clusters_are_built_from_the_configuration_of_jobqueue():
    dask_jobqueue = pytest.importorskip("dask_jobqueue")
    import dask.config

    from clemreg.blocks.dask import _jobqueue_class

    assert _jobqueue_class("slurm") is dask_jobqueue.SLURMCluster
    assert _jobqueue_class("lsf") is dask_jobqueue.LSFCluster
    settings = {"cores": 4, "memory": "8GB", "queue": "long", "interface": None}
    with (
        dask.config.set({f"jobqueue.slurm.{key}": value for key, value in settings.items()}),
        _jobqueue_class("slurm")() as cluster,
    ):
        script = cluster.job_script()
    assert "#SBATCH -p long" in script
    assert "distributed.cli.dask_worker" in script


@pytest.mark.parametrize(("name", "submit"), [("slurm", "sbatch"), ("lsf", "bsub")])
def test_a_batch_system_that_cannot_be_used_is_named(name, submit, tmp_path, monkeypatch):
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=f"there is no {submit} on this machine"):
        run(Note(tmp_path), BLOCKS, executor=Dask(name, 1))
    (tmp_path / submit).write_text("#!/bin/sh\n")
    (tmp_path / submit).chmod(0o755)
    with pytest.raises(ConfigError, match=f"cores and memory of a job of {name} are not") as error:
        run(Note(tmp_path), BLOCKS, executor=Dask(name, 1))
    assert "jobqueue.yaml" in error.value.hint


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("serial", Serial()),
        ("threads", Threads(3)),
        ("processes", Processes(3)),
        ("local", Dask("local", 3)),
        ("slurm", Dask("slurm", 3)),
        ("tcp://host:8786", Dask("tcp://host:8786", 3)),
    ],
)
def test_executors_by_name(name, expected):
    assert executor_named(name, 3) == expected


def test_unknown_executors_are_refused():
    with pytest.raises(ConfigError, match="no executor 'gpu'") as caught:
        executor_named("gpu", 1)
    assert "serial, threads, processes" in str(caught.value)
    with pytest.raises(ConfigError, match="0 workers"):
        executor_named("threads", 0)


@pytest.mark.parametrize("executor", [Serial(), Processes(2)], ids=lambda e: type(e))
def test_collect_keeps_parts_in_order_and_does_not_repeat(tmp_path, executor):
    grid = hostile_grid()
    how = Blockwise((4, 5, 6), executor)
    blocks = how.blocks(grid)
    parts = collect(corner, tmp_path, blocks, how)
    assert [tuple(p["corner"]) for p in parts] == [b.core.start for b in blocks]

    def never(_block):
        raise AssertionError

    again = collect(never, tmp_path, blocks, Blockwise((4, 5, 6)))
    assert again[3]["one"].tolist() == [1, 1]
    assert list(again.some(3, "one")) == ["one"]


@pytest.mark.parametrize("block", [(4, 5, 6), (128, 128, 128)])
def test_map_volume_writes_the_same_for_any_block_and_is_not_done_twice(tmp_path, block):
    grid = hostile_grid()
    messages = []
    how = Blockwise(block, progress=lambda *a: messages.append(a)).named("minus")
    out = map_volume(minus, tmp_path / "o.zarr", grid, np.int16, how)
    assert (out.read() == minus(grid.box)).all()
    assert out.grid.spacing_nm == grid.spacing_nm
    n = len(how.blocks(grid))
    assert messages[-1] == (n, n, "minus")

    def never(_box):
        raise AssertionError

    map_volume(never, tmp_path / "o.zarr", grid, np.int16, how)
