"""One process that has loaded ITK forks a child for every job of elastix."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from clemreg.errors import DependencyError, RegistrationError
from clemreg.register.elastix import ElastixJob, run_elastix
from clemreg.register.stages import AffineStage, affine_parameters
from clemreg.register.worker import ElastixWorker
from clemreg.space import Grid
from clemreg.volume import Volume

pytestmark = [pytest.mark.elastix, pytest.mark.slow, pytest.mark.xdist_group("elastix")]
forked = pytest.mark.skipif(sys.platform != "linux", reason="no fork of a process with ITK")
ENDLESS = 200_000


def noise_job(seed=0, iterations=20):
    rng = np.random.default_rng(0)
    volumes = [
        Volume(rng.random((12, 20, 20)).astype("f4"), Grid((12, 20, 20), (104, 52, 52), frame=f))
        for f in ("lm", "em")
    ]
    stage = AffineStage(iterations=(iterations,) * 3)
    return ElastixJob(*volumes, (affine_parameters(stage, (104, 52, 52), seed),))


def children(parent=None):
    return psutil.Process(parent).children(recursive=True)


def wait_for_a_job(parent=None):
    """Return the processes below `parent` once there is one at work: server, child."""
    for _ in range(600):
        found = children(parent)
        if len(found) > 1:
            return found
        time.sleep(0.05)
    raise AssertionError("no job was started")


def matrix(tmp_path, name, job, worker=None):
    return run_elastix(job, tmp_path / name, threads=1, worker=worker).transform.matrix


@forked
def test_jobs_of_one_process_give_the_bits_that_each_gives_alone(tmp_path):
    before = children()
    with ElastixWorker() as worker:
        first = matrix(tmp_path, "a", noise_job(), worker)
        servers = children()
        assert len(servers) == len(before) + 1
        other = matrix(tmp_path, "b", noise_job(seed=1), worker)
        again = matrix(tmp_path, "c", noise_job(), worker)
        assert children() == servers
    assert children() == before
    np.testing.assert_array_equal(first, matrix(tmp_path, "d", noise_job()))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-6


@forked
@pytest.mark.parametrize("whom", [0, 1])
def test_a_kill_is_reported_and_the_next_job_is_done(tmp_path, whom):
    """Of the server, whose child goes with it, or of the child alone."""

    def kill():
        wait_for_a_job()[whom].kill()

    killer = threading.Thread(target=kill)
    with ElastixWorker() as worker:
        killer.start()
        with pytest.raises(RegistrationError, match="ended by SIGKILL"):
            run_elastix(noise_job(iterations=ENDLESS), tmp_path / "a", threads=1, worker=worker)
        killer.join()
        assert len(children()) == whom
        assert np.isfinite(matrix(tmp_path, "b", noise_job(), worker)).all()


def test_a_job_that_takes_too_long_is_ended(tmp_path):
    with ElastixWorker() as worker:
        job = noise_job(iterations=ENDLESS)
        with pytest.raises(RegistrationError, match="still running after 3 s and was ended"):
            run_elastix(job, tmp_path / "a", threads=1, timeout_s=3, worker=worker)
        assert children() == []


@forked
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_the_end_of_the_program_is_the_end_of_all_processes(tmp_path, name):
    code = (
        "import sys, signal; sys.path[:0] = sys.argv[2:]\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path; from test_worker import *\n"
        "with ElastixWorker() as worker:\n"
        "    run_elastix(noise_job(), Path(sys.argv[1]) / 'a', threads=1, worker=worker)\n"
        "    job = noise_job(iterations=ENDLESS)\n"
        "    run_elastix(job, Path(sys.argv[1]) / 'b', threads=1, worker=worker)\n"
    )
    here = str(Path(__file__).parent)
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), here], stderr=subprocess.PIPE, text=True
    )
    for _ in range(600):
        if (tmp_path / "b" / "elastix.log").exists():
            break
        time.sleep(0.05)
    running = wait_for_a_job(parent.pid)
    parent.send_signal(getattr(signal, name))
    assert "KeyboardInterrupt" in parent.communicate()[1] or name == "SIGKILL"
    gone, alive = psutil.wait_procs(running, timeout=20)
    assert len(gone) == 2
    assert not alive


def test_missing_itk_is_said_by_the_process_that_needs_it(tmp_path, monkeypatch):
    (tmp_path / "itk.py").write_text("raise ImportError('no such library')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(DependencyError, match="needs elastix, which is not installed"):
        run_elastix(noise_job(), tmp_path / "a")


def test_a_process_with_a_second_thread_is_not_forked(tmp_path, monkeypatch):
    """Every job then has a process that loads ITK itself, as where there is no fork."""
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with ElastixWorker() as worker:
        for name in "ab":
            assert np.isfinite(matrix(tmp_path, name, noise_job(), worker)).all()
            assert children() == []
