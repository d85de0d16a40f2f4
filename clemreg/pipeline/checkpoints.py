"""``clemreg validate-training``: score the networks that a training kept on its held-out crops."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.run import Progress
from clemreg.errors import MissingError
from clemreg.evaluate.results import Result, ResultStore, metric_params
from clemreg.evaluate.scores import ScoreOptions, Unannotated
from clemreg.pipeline.train import TrainConfig, kept_networks, load_train_config
from clemreg.pipeline.train_crops import CellMapData, CosemData, open_crops
from clemreg.pipeline.validation import Prediction, validate
from clemreg.segment.blockwise import PredictOptions
from clemreg.segment.checkpoints import CosemModel
from clemreg.segment.classes import Annotation, category
from clemreg.segment.contract import COSEM_BLOCK, as_block_network
from clemreg.segment.cosem import HALO, STEP
from clemreg.segment.crops import TrainingCrop
from clemreg.segment.exchange import NetworkHeader, network_header, open_network
from clemreg.segment.external import predict_with
from clemreg.segment.models import Model
from clemreg.segment.predict import predict
from clemreg.segment.reading import misfit
from clemreg.space.grid import Box, Grid, Shape
from clemreg.volume import LazyArray, Volume

log = logging.getLogger(__name__)

Network = Model | CosemModel


@dataclass(frozen=True)
class CheckpointRequest:
    """How the networks of a training are scored.

    Attributes
    ----------
    store
        SQLite file for the scores. What is there already is not computed again.
    labels
        Classes; empty: all that the networks predict.
    again
        Compute and replace what is there already, after a training with other options.
    unannotated, options
        As in `clemreg.pipeline.validation.validate`.
    """

    store: Path
    labels: tuple[str, ...] = ()
    again: bool = False
    unannotated: Unannotated = "leave-out"
    options: ScoreOptions = field(default_factory=ScoreOptions)

    def params(self, metric: str) -> str:
        """Return what a metric depends on, as the store has it."""
        lengths = self.options.tolerance_nm, self.options.clip_nm
        return metric_params(metric, *lengths, self.unannotated)


def score_checkpoints(
    config: Path,
    data: Sequence[str],
    request: CheckpointRequest,
    *,
    progress: Progress | None = None,
) -> int:
    """Score every kept network on every held-out crop; return how many scores are new.

    Parameters
    ----------
    config, data
        The training, as for `clemreg.pipeline.train.train_from_config`.

    Raises
    ------
    MissingError
        The training kept no networks, or held out no crops. Networks of an earlier training that
        lie among its own are left out, with a note in the log.
    """
    loaded = load_train_config(config, data)
    networks = _kept(config.parent / loaded.out, loaded)
    crops = _held_out((*loaded.cosem, *loaded.cellmap), config)
    store, new = ResultStore(request.store), 0
    for done, (path, (entry, crop)) in enumerate((n, c) for n in networks for c in crops):
        if progress is not None:
            progress(done, len(networks) * len(crops), f"{path.stem}, {crop.name}")
        asked = _Question(loaded.name, path, entry, crop)
        labels = asked.labels(request.labels or loaded.train_options().classes)
        if not request.again and asked.is_answered(store, labels, request):
            continue
        results = asked.scores(labels, request)
        if request.again:
            store.replace(results)
            new += len(results)
        else:
            new += store.add(results)
    return new


def _kept(out: Path, training: TrainConfig) -> list[Path]:
    """Find the networks of a training; what else lies among them is told, and left out."""
    folder = kept_networks(out)
    found = sorted(folder.glob("*.safetensors"))
    misfits = {path: _misfit(path, training) for path in found}
    for path, reason in misfits.items():
        if reason:
            log.warning("%s is left out: %s", path, reason)
    mine = [path for path, reason in misfits.items() if not reason]
    if not mine:
        others = ", but others" if found else ""
        raise MissingError(
            f"{folder} holds no networks of the training {training.name}{others}",
            hint="set keep_every in the training, and train",
        )
    return sorted(mine, key=lambda path: int(path.stem))


def _misfit(path: Path, training: TrainConfig) -> str:
    """Say why a network is not one that a training kept; empty: it is."""
    if not path.stem.isdecimal():
        return "its name is no number of steps"
    options = training.train_options()
    shape = options.network() if options.architecture == "compact" else options.cosem()
    expected = _aspects(NetworkHeader(training.name, (float(options.spacing_nm),) * 3, shape))
    header, steps = network_header(path), int(path.stem)
    found = _aspects(header)
    for name in expected | found:
        if found.get(name) != expected.get(name):
            return f"{name} = {found.get(name)!r}, in the training {expected.get(name)!r}"
    if header.steps not in (0, steps):
        return f"it was trained for {header.steps} steps"
    if steps > options.steps:
        return f"the training ends at {options.steps} steps"
    return ""


def _aspects(header: NetworkHeader) -> dict[str, Any]:
    """Return by name what all networks of a training share."""
    return {"name": header.name, "spacing_nm": header.spacing_nm} | asdict(header.shape)


def _held_out(
    entries: Sequence[CosemData | CellMapData], config: Path
) -> list[tuple[CosemData | CellMapData, TrainingCrop]]:
    found = [(e, crop) for e in entries for crop in e.kept_out(open_crops(e))]
    if not found:
        raise MissingError(
            f"{config} holds out no crops to score on",
            hint="name some under held_out in [[cosem]] or [[cellmap]]",
        )
    return found


@dataclass(frozen=True)
class _Question:
    """How good a kept network is on a crop."""

    setup: str
    path: Path
    entry: CosemData | CellMapData
    crop: TrainingCrop

    @property
    def sample(self) -> str:
        return self.crop.name.split("/")[0]

    @property
    def iteration(self) -> int:
        return int(self.path.stem)

    def labels(self, classes: Sequence[str]) -> list[str]:
        """Return the classes that somebody looked for in the crop."""
        names = [category(name).name for name in classes]
        return [n for n in names if self.crop.annotations.of(n) is not Annotation.UNKNOWN]

    def is_answered(
        self, store: ResultStore, labels: Sequence[str], request: CheckpointRequest
    ) -> bool:
        """Tell whether the store has all of its scores."""
        found = store.find(
            setup=self.setup,
            iteration=self.iteration,
            crop=self.crop.annotations.crop.name.removeprefix("crop"),
            parent_dataset_id=self.sample,
        )
        have = {(r.label, r.metric, r.metric_params) for r in found}
        return have >= {(n, m, request.params(m)) for n in labels for m in request.options.metrics}

    def scores(self, labels: Sequence[str], request: CheckpointRequest) -> list[Result]:
        """Predict the crop, and score it."""
        with tempfile.TemporaryDirectory() as folder:
            found = predict_around(
                open_network(self.path), self.crop, Path(folder) / "prediction.zarr"
            )
            channels = {category(name).name: name for name in found.channels}
            results: list[Result] = []
            for label in labels:
                prediction = Prediction(
                    found.channel(channels[label]),
                    str(self.path),
                    label,
                    label,
                    self.setup,
                    self.iteration,
                    self.entry.raw_dataset,
                    self.entry.container,
                    self.sample,
                )
                results += validate(
                    prediction,
                    [self.crop.annotations.crop],
                    request.options,
                    unannotated=request.unannotated,
                )
        return results


def predict_around(network: Network, crop: TrainingCrop, out: Path) -> Volume:
    """Predict a crop, with as much EM around as the network sees, and some beyond.

    The part of the EM begins at a multiple of the network's step, so that voxels are those of a
    prediction of all of it.
    """
    if isinstance(network, CosemModel):
        input_nm, halo, step = network.network.options.input_nm, HALO, STEP
    else:
        unet = network.network
        input_nm, halo, step = network.card.spacing_nm[0], unet.halo, unet.step
    em = min(crop.em, key=lambda v: misfit(v.grid.spacing_nm, input_nm))
    part = _part(em, _around(em.grid, crop.annotations.grid, (halo + step) * input_nm, step))
    options = PredictOptions(limits=crop.limits)
    if isinstance(network, Model):
        return predict(part, network, out, options=options)
    most = min(COSEM_BLOCK, max(part.shape) * network.network.options.scale)
    return predict_with(part, as_block_network(network, most=most), out, options=options)


def _around(em: Grid, labels: Grid, margin_nm: float, step: int) -> Box:
    index = em.to_index(labels.corners_nm())
    margin = margin_nm / np.asarray(em.spacing_nm)
    low = np.floor((index.min(axis=0) - margin) / step).astype(int) * step
    high = np.ceil(index.max(axis=0) + margin).astype(int) + 1
    return Box(tuple(low), tuple(high)).clip(em.shape)


def _part(volume: Volume, box: Box) -> Volume:
    data = _Window(volume.data, box)
    return replace(volume, data=data, grid=volume.grid.crop(box), coarser=())


@dataclass(frozen=True)
class _Window:
    """A box of an array, read when asked for."""

    data: LazyArray
    box: Box

    @property
    def shape(self) -> Shape:
        return self.box.shape

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    def __getitem__(self, key: tuple[slice, slice, slice], /) -> NDArray[Any]:
        moved = (slice(a + k.start, a + k.stop) for a, k in zip(self.box.start, key, strict=True))
        return np.asarray(self.data[tuple(moved)])
