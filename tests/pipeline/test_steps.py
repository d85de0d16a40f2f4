from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from clemreg.blocks.unfinished import open_ledger
from clemreg.errors import ConfigError, StorageError
from clemreg.io.atomic import partial_path
from clemreg.pipeline.steps import Step, input_fingerprint, one_run_at_a_time, run_steps


def _steps(tmp_path: Path, calls: list[str], **changed: object) -> list[Step]:
    def write(name: str):
        def action() -> None:
            calls.append(name)
            (tmp_path / name).write_text(name)

        return action

    return [
        Step("a", write("a"), {"x": changed.get("x", 1)}, outputs=(tmp_path / "a",)),
        Step("b", write("b"), {"y": changed.get("y", 1)}, after=("a",), outputs=(tmp_path / "b",)),
        Step("c", write("c"), {}, outputs=(tmp_path / "c",)),
    ]


def test_a_second_run_does_nothing(tmp_path):
    calls: list[str] = []
    run_steps(_steps(tmp_path, calls), tmp_path)
    run_steps(_steps(tmp_path, calls), tmp_path)
    assert calls == ["a", "b", "c"]


def test_a_change_redoes_the_step_and_what_reads_it_but_nothing_else(tmp_path):
    calls: list[str] = []
    run_steps(_steps(tmp_path, calls), tmp_path)
    run_steps(_steps(tmp_path, calls, x=2), tmp_path)
    assert calls == ["a", "b", "c", "a", "b"]
    run_steps(_steps(tmp_path, calls, x=2, y=2), tmp_path)
    assert calls[5:] == ["b"]


def test_a_missing_output_is_made_again(tmp_path):
    calls: list[str] = []
    run_steps(_steps(tmp_path, calls), tmp_path)
    (tmp_path / "b").unlink()
    run_steps(_steps(tmp_path, calls), tmp_path)
    assert calls[3:] == ["b"]


def test_start_forces_the_step_and_the_later_ones(tmp_path):
    calls: list[str] = []
    run_steps(_steps(tmp_path, calls), tmp_path)
    run_steps(_steps(tmp_path, calls), tmp_path, start="b")
    assert calls[3:] == ["b", "c"]


def test_an_unknown_start_lists_the_steps(tmp_path):
    with pytest.raises(ConfigError, match="a, b, c"):
        run_steps(_steps(tmp_path, []), tmp_path, start="z")


def test_a_step_that_fails_is_not_finished_and_the_one_before_is(tmp_path):
    calls: list[str] = []
    steps = _steps(tmp_path, calls)

    def fail() -> None:
        raise ValueError("no")

    broken = [steps[0], Step("b", fail, {"y": 1}, after=("a",))]
    with pytest.raises(ValueError, match="no"):
        run_steps(broken, tmp_path)
    assert not (tmp_path / "steps" / "b.json").exists()
    run_steps(steps, tmp_path)
    assert calls == ["a", "b", "c"]


def test_a_torn_marker_counts_for_nothing(tmp_path):
    calls: list[str] = []
    run_steps(_steps(tmp_path, calls), tmp_path)
    marker = tmp_path / "steps" / "a.json"
    marker.write_text(marker.read_text()[:10])
    run_steps(_steps(tmp_path, calls), tmp_path)
    assert calls[3:] == ["a"]


@pytest.mark.parametrize(("changed", "goes_on"), [(False, True), (True, False)])
def test_blocks_of_a_killed_step_count_for_the_same_inputs_only(tmp_path, changed, goes_on):
    out = tmp_path / "a.zarr"
    found = []

    def work(*, killed=False):
        found.append((partial_path(out).exists(), sorted(open_ledger(out, "the job").done)))
        partial_path(out).mkdir(exist_ok=True)
        open_ledger(out, "the job").add(7)
        if killed:
            raise KeyboardInterrupt
        partial_path(out).rename(out)

    def step(**how):
        inputs = {"x": 2 if changed and not how else 1}
        return [Step("a", lambda: work(**how), inputs, outputs=(out,))]

    with pytest.raises(KeyboardInterrupt):
        run_steps(step(killed=True), tmp_path)
    run_steps(step(), tmp_path)
    assert found == [(False, []), (True, [7]) if goes_on else (False, [])]
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["a.json"]


def test_markers_say_how_long_a_step_took(tmp_path):
    seconds = run_steps([Step("nap", lambda: time.sleep(0.05), {})], tmp_path)
    assert 0.05 <= seconds["nap"] < 5
    assert json.loads((tmp_path / "steps" / "nap.json").read_text())["seconds"] >= 0.05


def test_kill_leaves_no_marker_and_no_lock(tmp_path):
    code = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from clemreg.pipeline.steps import Step, one_run_at_a_time, run_steps
        folder = Path({str(tmp_path)!r})
        def slow():
            (folder / "started").touch()
            time.sleep(60)
        with one_run_at_a_time(folder):
            run_steps([Step("slow", slow, {{}})], folder)
    """)
    child = subprocess.Popen([sys.executable, "-c", code])
    for _ in range(400):
        if (tmp_path / "started").exists():
            break
        time.sleep(0.05)
    with pytest.raises(StorageError, match="another clemreg run"), one_run_at_a_time(tmp_path):
        pass
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "steps" / "slow.json").exists()
    with one_run_at_a_time(tmp_path):
        pass


def test_input_fingerprints_follow_content(tmp_path):
    file = tmp_path / "a.tif"
    file.write_bytes(b"1")
    before = input_fingerprint(file)
    assert input_fingerprint(file) == before
    file.write_bytes(b"22")
    assert input_fingerprint(file) != before
    folder = tmp_path / "a.zarr"
    (folder / "0").mkdir(parents=True)
    empty, inner = input_fingerprint(folder), input_fingerprint(f"{folder}::0")
    (folder / "0" / "zarr.json").write_text("{}")
    assert input_fingerprint(folder) != empty
    assert input_fingerprint(f"{folder}::0") != inner
    assert input_fingerprint(f"{folder}::0") != input_fingerprint(f"{folder}::1")
    assert input_fingerprint(None) is None


def test_a_chunk_that_is_written_over_changes_the_fingerprint(tmp_path, monkeypatch):
    """In place, as when labels are proofread: no folder changes."""
    chunk = tmp_path / "labels.zarr" / "0" / "c" / "0" / "0" / "0"
    chunk.parent.mkdir(parents=True)
    chunk.write_bytes(b"before")
    before = input_fingerprint(tmp_path / "labels.zarr")
    os.utime(chunk, ns=(0, 0))
    changed = input_fingerprint(tmp_path / "labels.zarr")
    assert changed != before
    monkeypatch.setattr("clemreg.pipeline.steps.MANY_FILES", 3)
    many = input_fingerprint(tmp_path / "labels.zarr")
    os.utime(chunk, ns=(1, 1))
    assert input_fingerprint(tmp_path / "labels.zarr") == many != changed
