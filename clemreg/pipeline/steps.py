"""Resumable steps: what is finished, with which inputs, is on disk; nothing else is trusted.

A step's marker ``steps/<name>.json`` is removed before the step starts and written, whole, after
its outputs are in place. It holds a fingerprint of everything the step depended on. So after
Ctrl-C, `kill -9` or a full disk, the same command does again just what is not finished, and after
a change of configuration just what that change touches. While a step works, ``steps/<name>.begun``
holds the fingerprint, too: blocks that a killed one has done count for that fingerprint only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from clemreg.blocks.unfinished import drop
from clemreg.errors import ConfigError, StorageError
from clemreg.io.atomic import atomic_write_json, atomic_write_text, is_free, make_folder

log = logging.getLogger(__name__)

MANY_FILES = 20_000
"""Up to this many files of an input are looked at one by one."""


@dataclass(frozen=True)
class Step:
    """One verb of a run.

    Attributes
    ----------
    name
        As in ``--from NAME`` and in the marker file.
    action
        Does the work; called without arguments; its outputs appear whole or not at all.
    inputs
        Plain values and fingerprints that the outcome depends on, besides the steps before it.
    after
        Names of the steps whose outputs it reads.
    outputs
        Paths that must exist for the step to count as finished.
    """

    name: str
    action: Callable[[], None]
    inputs: Mapping[str, Any]
    after: tuple[str, ...] = ()
    outputs: tuple[Path, ...] = ()


def run_steps(
    steps: Sequence[Step],
    folder: Path,
    *,
    start: str | None = None,
    announce: Callable[[str, str], None] | None = None,
) -> dict[str, float]:
    """Run what is not finished, in order.

    Parameters
    ----------
    steps
        All steps, each after the ones it reads from.
    folder
        Where markers are kept (``folder/steps``).
    start
        Do this step and all later ones again even if finished.
    announce
        Told ``(step name, "running" | "finished" | "up to date")``.

    Returns
    -------
    dict
        Seconds that each step took when it last ran.

    Raises
    ------
    ConfigError
        `start` names no step.
    StorageError
        No run has worked in `folder`, and an output is there.
    """
    names = [step.name for step in steps]
    if start is not None and start not in names:
        raise ConfigError(f"there is no step {start!r}", hint=f"steps: {', '.join(names)}")
    claim_folder(folder, [path for step in steps for path in step.outputs])
    forced = set(names[names.index(start) :]) if start else set()
    tell = announce or (lambda _name, _state: None)
    fingerprints = _fingerprints(steps)
    seconds: dict[str, float] = {}
    for step in steps:
        fingerprint = fingerprints[step.name]
        done = None if step.name in forced else finished(folder, step, fingerprint)
        if done is None:
            _marker(folder, step.name).unlink(missing_ok=True)
            tell(step.name, "running")
            done = _do(folder, step, fingerprint)
            tell(step.name, "finished")
        else:
            tell(step.name, "up to date")
        seconds[step.name] = done
    return seconds


def unfinished(steps: Sequence[Step], folder: Path) -> tuple[str, ...]:
    """Names of the steps that `run_steps` would do, in order."""
    fingerprints = _fingerprints(steps)
    return tuple(
        step.name for step in steps if finished(folder, step, fingerprints[step.name]) is None
    )


def claim_folder(folder: Path, outputs: Sequence[Path]) -> None:
    """Make ``folder/steps``, the sign that what a run finds there is its own to replace.

    Raises
    ------
    StorageError
        There is no such sign, but an output: somebody else's.
    """
    if (folder / "steps").is_dir():
        return
    taken = [path for path in outputs if not is_free(path)]
    if taken:
        raise StorageError(
            f"{taken[0]} exists already, and no run wrote it",
            hint="choose another output folder, or move it away",
        )
    (folder / "steps").mkdir(parents=True, exist_ok=True)


def finished(folder: Path, step: Step, fingerprint: str) -> float | None:
    """Seconds that `step` took, if it is finished with just this fingerprint; else None."""
    marker = _marker(folder, step.name)
    try:
        record = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if record.get("fingerprint") != fingerprint or not all(p.exists() for p in step.outputs):
        return None
    return float(record["seconds"])


def is_marked(folder: Path, name: str) -> bool:
    """Whether a step has been finished, with whatever inputs."""
    return _marker(folder, name).is_file()


def _do(folder: Path, step: Step, fingerprint: str) -> float:
    begin = time.monotonic()
    begun = _marker(folder, step.name).with_suffix(".begun")
    if _text_of(begun) not in (None, fingerprint):
        for output in step.outputs:  # killed, and something has changed since
            drop(output)
    atomic_write_text(begun, fingerprint)
    step.action()
    seconds = time.monotonic() - begin
    atomic_write_json(
        _marker(folder, step.name), {"fingerprint": fingerprint, "seconds": round(seconds, 3)}
    )
    begun.unlink(missing_ok=True)
    log.info("step %s took %.1f s", step.name, seconds)
    return seconds


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _marker(folder: Path, name: str) -> Path:
    return folder / "steps" / f"{name}.json"


def _fingerprints(steps: Sequence[Step]) -> dict[str, str]:
    """Fingerprint of each step, by name."""
    found: dict[str, str] = {}
    for step in steps:
        found[step.name] = _fingerprint(step, found)
    return found


def _fingerprint(step: Step, earlier: Mapping[str, str]) -> str:
    record = {"step": step.name, "inputs": step.inputs, "after": [earlier[n] for n in step.after]}
    text = json.dumps(record, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def input_fingerprint(path: str | Path | None) -> str | None:
    """Identify the content of an input cheaply: size and time of a file, metadata of a container.

    A zarr or N5 folder is known by sizes and times of all that is in it; one of more than
    `MANY_FILES` by its metadata files and the times of its upper two folders, so that a million
    chunks need not be listed. Of a path with ``::inner``, the inner name counts as well.
    """
    if path is None:
        return None
    file, separator, inner = str(path).partition("::")
    target = Path(file)
    if separator:
        return f"{input_fingerprint(target)}::{inner}"
    if target.is_file():
        stat = target.stat()
        return f"{target}:{stat.st_size}:{stat.st_mtime_ns}"
    if not target.is_dir():
        return f"{target}:absent"
    found = list(islice(target.rglob("*"), MANY_FILES + 1))
    if len(found) > MANY_FILES:
        found = [*target.glob("*"), *target.glob("*/*")]
    parts = [str(target)]
    for child in sorted(found):
        stat = child.stat()
        name = child.relative_to(target).as_posix()
        parts.append(f"{name}:{stat.st_mtime_ns}:{stat.st_size if child.is_file() else ''}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@contextmanager
def one_run_at_a_time(folder: Path) -> Iterator[None]:
    """Hold ``folder/.lock`` so that two runs do not write the same outputs.

    The operating system frees the lock when its process ends, however it ends.

    Raises
    ------
    StorageError
        Another live process holds it.
    """
    import filelock

    make_folder(folder)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise StorageError(
            f"{folder} is being written by another clemreg run",
            hint="wait for it, or choose another output folder",
        ) from error
    try:
        yield
    finally:
        lock.release()
