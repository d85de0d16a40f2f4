"""Sections of a training configuration that name annotated crops."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from clemreg.config import Section
from clemreg.errors import ConfigError, DataError, FormatError, MissingError
from clemreg.io.volumes import open_volume
from clemreg.segment.blockwise import find_limits
from clemreg.segment.cellmap import find_cellmap_crops, open_cellmap_crop
from clemreg.segment.classes import AnnotatedIds
from clemreg.segment.crops import CellMapAnnotations, CosemAnnotations, TrainingCrop
from clemreg.segment.groundtruth import (
    COARSE_RAW,
    FINE_RAW,
    PHASES,
    annotated_ids,
    contrast_limits,
    find_cosem_crops,
    open_cosem_crop,
    open_cosem_raw,
)
from clemreg.volume import Volume

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Grey = Annotated[float, Field(allow_inf_nan=False)]


def _require_contrast(limits: tuple[float, float] | None) -> tuple[float, float] | None:
    if limits is not None and limits[0] == limits[1]:
        raise ValueError("expected two grey values, that of black and that of white")
    return limits


class CropData(Section):
    """Crops of one sample; those in `held_out` are never trained on, but scored."""

    crops: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    contrast: Annotated[tuple[Grey, Grey] | None, AfterValidator(_require_contrast)] = None
    weight: Weight = 1.0

    def learnt(self, crops: Sequence[TrainingCrop]) -> list[TrainingCrop]:
        """Return those to train on."""
        return [crop for crop in crops if not self._is_held_out(crop)]

    def kept_out(self, crops: Sequence[TrainingCrop]) -> list[TrainingCrop]:
        """Return those to score on."""
        return [crop for crop in crops if self._is_held_out(crop)]

    def _is_held_out(self, crop: TrainingCrop) -> bool:
        return crop.name.split("/")[-1] in self.held_out


class CosemData(CropData):
    """Crops in a container as COSEM publishes them, ``<sample>.n5``; no `crops`: all.

    `em` is the EM at 4 nm (``fine``), averaged to 8 nm (``averaged``), or its eight sub-samplings
    (``phases``). `ids` is a JSON file with the documents of the crop database, beside the container
    or the configuration.
    """

    n5: str
    name: str = ""
    em: Literal["fine", "averaged", "phases"] = "fine"
    ids: str = ""

    @property
    def sample(self) -> str:
        """Name of the sample."""
        return self.name or Path(self.n5).stem

    @property
    def container(self) -> str:
        """Where the EM lies."""
        return self.n5

    @property
    def raw_dataset(self) -> str:
        """EM that is predicted from to score: of the sub-samplings, the first."""
        return {"fine": FINE_RAW, "averaged": COARSE_RAW, "phases": f"{PHASES}/0"}[self.em]

    def located(self, base: Path, folders: dict[str, str]) -> CosemData:
        """Return it with paths from where the configuration, or a folder by name, lies."""
        folder = Path(folders.get(self.sample, base))
        # One list may serve several samples, each in a folder of its own.
        near = folder / self.ids if (folder / self.ids).is_file() else base / self.ids
        ids = str(near) if self.ids else ""
        return self.model_copy(update={"n5": str(folder / self.n5), "ids": ids})


class CellMapData(CropData):
    """Crop groups of a CellMap Zarr, relative to `groundtruth`; no `crops`: all.

    `classes` are those to read of each crop; none: all that it has of clemreg's classes.
    """

    em: str
    groundtruth: str
    name: str
    classes: tuple[str, ...] = ()

    @property
    def container(self) -> str:
        """Where the EM lies."""
        return str(Path(self.em).parent)

    @property
    def raw_dataset(self) -> str:
        """EM that is predicted from."""
        return Path(self.em).name

    def located(self, base: Path, folders: dict[str, str]) -> CellMapData:
        """Return it with paths from where the configuration, or a folder by name, lies."""
        folder = Path(folders.get(self.name, base))
        paths = {"em": str(folder / self.em), "groundtruth": str(folder / self.groundtruth)}
        return self.model_copy(update=paths)


def one_channel(volume: Volume, path: str) -> Volume:
    """Return the only channel of a volume as (z, y, x).

    Raises
    ------
    DataError
        There are several.
    """
    if len(volume.channels) > 1:
        raise DataError(
            f"{path} has {len(volume.channels)} channels ({', '.join(volume.channels)}), expected "
            "one",
            hint="write the one to learn from to a file of its own",
        )
    return volume.channel(0)


def open_crops(entry: CosemData | CellMapData) -> tuple[TrainingCrop, ...]:
    """Open the crops of an entry.

    Raises
    ------
    ConfigError
        A crop that is held out is none of them.
    """
    crops = _open_cosem(entry) if isinstance(entry, CosemData) else _open_cellmap(entry)
    names = {crop.name.split("/")[-1] for crop in crops}
    absent = sorted(set(entry.held_out) - names)
    if absent:
        raise ConfigError(
            f"held_out names {', '.join(absent)}", hint=f"crops are: {', '.join(sorted(names))}"
        )
    return crops


def _open_cosem(entry: CosemData) -> tuple[TrainingCrop, ...]:
    ids = read_ids(Path(entry.ids)) if entry.ids else {}
    em: tuple[Volume, ...]
    if entry.em == "phases":
        em = tuple(open_cosem_raw(entry.n5, phase) for phase in range(8))
    else:
        em = (open_cosem_raw(entry.n5, level=("fine", "averaged").index(entry.em)),)
    limits = entry.contrast or contrast_limits(entry.n5)
    return tuple(
        TrainingCrop(
            f"{entry.sample}/{name}",
            em,
            limits,
            CosemAnnotations(open_cosem_crop(entry.n5, name, ids.get(name))),
        )
        for name in entry.crops or find_cosem_crops(entry.n5)
    )


def read_ids(path: Path) -> dict[str, AnnotatedIds]:
    """Read which ids were looked for, by name of the crop.

    Parameters
    ----------
    path
        JSON: a list of documents of the crop database, each with ``number`` and ``labels``.

    Raises
    ------
    MissingError, FormatError
        There is no such file, or it is something else.
    """
    if not path.is_file():
        raise MissingError(f"there is no file {path} with documents of the crop database")
    try:
        documents: Any = json.loads(path.read_text(encoding="utf-8"))
        return {f"crop{d['number']}": annotated_ids(d) for d in documents}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise FormatError(
            f"{path} is no list of documents of the crop database: {error}",
            hint='each has "number" and "labels"',
        ) from error


def _open_cellmap(entry: CellMapData) -> tuple[TrainingCrop, ...]:
    root = Path(entry.groundtruth)
    em = one_channel(open_volume(entry.em, frame="em"), entry.em)
    limits = entry.contrast or find_limits(em)
    return tuple(
        TrainingCrop(
            f"{entry.name}/{name}",
            em.levels,
            limits,
            CellMapAnnotations(open_cellmap_crop(root / name, entry.classes)),
        )
        for name in entry.crops or find_cellmap_crops(root)
    )
