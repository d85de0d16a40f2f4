"""Blocks on a Dask cluster: this machine's cores, a batch system, or a scheduler that runs."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from clemreg.blocks.executors import Pool, Work
from clemreg.blocks.plan import Block
from clemreg.errors import ConfigError, DependencyError

SUBMIT = {"slurm": "sbatch", "lsf": "bsub"}
CLUSTERS = ("local", *SUBMIT)


@dataclass(frozen=True)
class Dask:
    """Workers of a Dask cluster; the function and its arguments must be picklable.

    Parameters
    ----------
    cluster
        ``local``: processes of this machine. ``slurm``, ``lsf``: jobs of a batch system, with
        queue, memory and time as dask-jobqueue's own configuration file (``jobqueue.yaml``) says.
        Else the address of a scheduler that runs already; all its workers must see the files.
    workers
        Processes or jobs to start.
    retries
        How often a block is done again after Dask itself has given up on its workers.
    """

    cluster: str = "local"
    workers: int = 2
    retries: int = 1

    @contextmanager
    def open(self, function: Work) -> Iterator[Pool]:
        """Start the cluster, or connect to it.

        Raises
        ------
        DependencyError
            Dask is not installed.
        """
        distributed = _import_distributed()
        with (
            self.started() as running,
            distributed.Client(running.cluster, set_as_default=False) as client,
            client.as_current(),  # distributed.wait asks for it
        ):
            yield _DaskPool(client, function)

    @contextmanager
    def started(self) -> Iterator[Dask]:
        """Keep one cluster for several runs: start it, and return an executor that uses it."""
        if self.cluster not in CLUSTERS:
            yield self
            return
        with self._start() as cluster:
            yield replace(self, cluster=cluster.scheduler_address)

    def _start(self) -> Any:
        distributed = _import_distributed()
        if self.cluster == "local":
            return distributed.LocalCluster(
                n_workers=self.workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
            )
        cluster = _batch_cluster(self.cluster)
        cluster.scale(jobs=self.workers)
        return cluster


class _DaskPool:
    def __init__(self, client: Any, function: Work) -> None:
        self.client = client
        self.function = function

    @property
    def width(self) -> int:
        # Jobs of a batch system come and go, so this is asked each time.
        threads: int = sum(self.client.nthreads().values())
        return 2 * max(1, threads)

    @property
    def lost(self) -> tuple[type[Exception], ...]:
        from distributed import CancelledError, KilledWorker

        return KilledWorker, CancelledError

    def submit(self, block: Block) -> Any:
        return self.client.submit(self.function, block, pure=False)

    def first_done(self, tasks: Collection[Any]) -> Collection[Any]:
        from distributed import wait

        done: Collection[Any] = wait(list(tasks), return_when="FIRST_COMPLETED").done
        return done


def _import_distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise DependencyError(
            "running on a Dask cluster needs distributed",
            hint="pip install 'clemreg-toolkit[dask]'",
        ) from error
    return distributed


def _batch_cluster(name: str) -> Any:
    """Prepare jobs of a batch system.

    Raises
    ------
    ConfigError
        The system is not here, or it is not said what a job is.
    """
    kind = _jobqueue_class(name)
    submit = SUBMIT[name]
    if shutil.which(submit) is None:
        raise ConfigError(
            f"there is no {submit} on this machine, so no job can be given to {name}",
            hint="start it where jobs are submitted, or take --executor local",
        )
    from dask import config

    missing = [key for key in ("cores", "memory") if not config.get(f"jobqueue.{name}.{key}", None)]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} of a job of {name} are not known",
            hint="~/.config/dask/jobqueue.yaml says what a job is; docs/concepts/whole-cell.md "
            "shows one",
        )
    return kind()


def _jobqueue_class(name: str) -> Any:
    try:
        import dask_jobqueue
    except ImportError as error:
        raise DependencyError(
            f"running on {name} needs dask-jobqueue", hint="pip install 'clemreg-toolkit[dask]'"
        ) from error
    return {"slurm": dask_jobqueue.SLURMCluster, "lsf": dask_jobqueue.LSFCluster}[name]
