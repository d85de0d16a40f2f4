"""Add volumes to a BigDataViewer dataset that exists, without touching its pixels."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from clemreg.blocks.run import Progress
from clemreg.errors import FormatError, MissingError
from clemreg.export.bdv import BdvSetup, check_setups, data_path, legacy_setup, setup_xml
from clemreg.export.bdv_pixels import N5Store, create_hdf5_store, write_pyramids
from clemreg.export.bdv_xml import SetupXml, add, add_channels, add_settings, add_views, to_text
from clemreg.io.atomic import (
    atomic_path,
    atomic_write_text,
    discard,
    hidden_sibling,
    partial_path,
    put_in_place,
    remove,
    storage_errors,
)
from clemreg.units import nm_per


def append_bdv(
    path: str | Path, setups: Sequence[BdvSetup], *, progress: Progress | None = None
) -> Path:
    """Add volumes to a dataset; unit and storage are those it has.

    HDF5 pixels go to a file of their own, ``NAME-s02.h5``, and ``NAME-links.h5`` leads to both (as
    BigDataViewer's own partitioned export does), so nothing that exists is changed until the XML
    names the new volumes, and then only the settings. N5 pixels become new setups of the container.

    Parameters
    ----------
    path
        The dataset's XML file. If ``NAME.settings.xml`` is there, the volumes are added to it too.
    setups
        Volumes, all placed in the world of the dataset.
    progress
        Told of every block.

    Raises
    ------
    FormatError
        The XML is none of a dataset with one time point whose HDF5 or N5 lies beside it.
    MissingError
        The XML or its data are not there.
    DataError, FrameError
        As in `write_bdv`.
    """
    path = Path(path)
    check_setups(path, setups)
    dataset = _read(path)
    if dataset.is_legacy:
        setups = [legacy_setup(setup) for setup in setups]
    entries = [setup_xml(setup, dataset.unit) for setup in setups]
    volumes = [(dataset.first_free + i, s.name, s.volume) for i, s in enumerate(setups)]
    settings = _grown_settings(path.with_suffix(".settings.xml"), entries, dataset)
    if dataset.data.suffix == ".n5":
        _append_n5(dataset.data, volumes, progress)
        data = dataset.data
    else:
        data = _append_hdf5(path, dataset, volumes, progress)
    # BigDataViewer refuses settings for another number of volumes, so none are there in between.
    place = path.with_suffix(".settings.xml")
    if place.is_file():
        place.replace(_aside(place))
    atomic_write_text(path, _grown_xml(dataset, entries, data.name))
    if settings:
        atomic_write_text(place, settings)
    remove(_aside(place))
    return path


def _aside(settings: Path) -> Path:
    """Where settings wait while they do not fit the XML; a killed run leaves them there."""
    return hidden_sibling(settings, ".aside")


@dataclass(frozen=True, eq=False)
class _Dataset:
    """A dataset as its XML tells it, and the number that the next setup gets."""

    root: Any
    data: Path
    numbers: tuple[int, ...]
    unit: str
    is_legacy: bool
    first_free: int


def _parse(path: Path) -> Any:
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    if not path.is_file():
        raise MissingError(f"{path} is not there", hint="check the path")
    try:
        return fromstring(path.read_bytes())
    except (ET.ParseError, DefusedXmlException, ValueError) as error:
        raise FormatError(f"{path} is not XML that can be trusted: {error}") from error


def _read(path: Path) -> _Dataset:
    root = _parse(path)
    ids = [view.findtext("id", "") for view in root.findall(".//ViewSetups/ViewSetup")]
    if not ids or not all(number.isdigit() for number in ids):
        raise FormatError(f"{path} is no BigDataViewer dataset: it has no numbered ViewSetup")
    _require_one_time(path, root)
    data = _data_path(path, root)
    unit = root.findtext(".//ViewSetup/voxelSize/unit", "um")
    nm_per(unit)
    numbers = tuple(map(int, ids))
    return _Dataset(
        root, data, numbers, unit, _is_legacy(data, numbers[0]), _first_free(root, data, numbers)
    )


def _first_free(root: Any, data: Path, numbers: Sequence[int]) -> int:
    """Return the number above those of all setups and channels, listed in this XML or stored."""
    channels = root.findall(".//Attributes[@name='channel']/Channel/id")
    stored = (path.name.removeprefix("setup") for path in data.glob("setup*"))
    taken = [int(number) for number in stored if number.isdigit()]
    return 1 + max([*numbers, *(int(c.text) for c in channels), *taken])


def _require_one_time(path: Path, root: Any) -> None:
    times = {view.get("timepoint") for view in root.findall(".//ViewRegistration")}
    if times != {"0"}:
        raise FormatError(
            f"{path} has time points {', '.join(sorted(map(str, times)))}, expected only 0",
            hint="volumes can be added to datasets with one time point",
        )


def _data_path(path: Path, root: Any) -> Path:
    """Return the HDF5 file or N5 folder, which must lie beside the XML."""
    loader = root.find(".//ImageLoader")
    kind = "" if loader is None else loader.get("format", "")
    element = {"bdv.hdf5": "hdf5", "bdv.n5": "n5"}.get(kind)
    if element is None:
        raise FormatError(f"{path}: cannot add to image loader {kind!r}, only bdv.hdf5 and bdv.n5")
    name = str(loader.findtext(element, ""))
    base = root.findtext("BasePath", ".")
    if base != "." or loader.find(element).get("type") != "relative" or not _is_plain(name):
        raise FormatError(
            f"{path}: its pixels are in {name!r}, expected a file beside the XML",
            hint="volumes are only added to datasets that lie in one folder",
        )
    data = path.parent / name
    if not data.exists():
        raise MissingError(f"{path} names {name!r}, which is not there")
    return data


def _is_plain(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return len(parts) == 1 and parts[0] not in ("", ".", "..")


def _is_legacy(data: Path, number: int) -> bool:
    """Tell whether an HDF5 file says no ``dataType``; then it is signed 16 bit throughout."""
    if data.suffix == ".n5":
        return False
    import h5py

    try:
        with h5py.File(data, "r") as file:
            return "dataType" not in file[f"s{number:02d}"].attrs
    except (OSError, KeyError) as error:
        raise FormatError(f"{data} is no BigDataViewer HDF5: {error}") from error


def _append_hdf5(
    path: Path, dataset: _Dataset, volumes: Sequence[Any], progress: Progress | None
) -> Path:
    """Write a new file with the new setups, and one that links to all; return the latter."""
    own = _unused(path, f"-s{volumes[0][0]:02d}")
    with (
        atomic_path(own, overwrite=False) as partial,
        create_hdf5_store(partial, legacy=dataset.is_legacy) as store,
    ):
        write_pyramids(store, volumes, progress)
    ours = dataset.data.stem.startswith(f"{_stem(path)}-links")
    links = dataset.data if ours else _unused(path, "-links")
    with atomic_path(links) as partial:
        _write_links(
            partial,
            [
                *((dataset.data, number) for number in dataset.numbers),
                *((own, number) for number, *_ in volumes),
            ],
        )
    return links


def _unused(path: Path, ending: str) -> Path:
    """Return a name beside the XML that no file has yet."""
    candidate, count = path.with_name(f"{_stem(path)}{ending}.h5"), 1
    while candidate.exists():
        count += 1
        candidate = path.with_name(f"{_stem(path)}{ending}-{count}.h5")
    return candidate


def _stem(xml: Path) -> str:
    return data_path(xml, "hdf5").stem


def _write_links(path: Path, sources: Sequence[tuple[Path, int]]) -> None:
    """Write each setup's tables, and a link to its pixels; links to links are followed here."""
    import h5py

    with h5py.File(path, "w", libver=("earliest", "v110")) as file:
        times = file.create_group("t00000")
        for data, number in sources:
            setup = f"s{number:02d}"
            with h5py.File(data, "r") as source:
                source.copy(setup, file)
                link = source["t00000"].get(setup, getlink=True)
            target = link.filename if isinstance(link, h5py.ExternalLink) else data.name
            times[setup] = h5py.ExternalLink(target, f"/t00000/{setup}")


def _append_n5(root: Path, volumes: Sequence[Any], progress: Progress | None) -> None:
    partial = partial_path(root / "setups")
    remove(partial)
    try:
        with storage_errors(root):
            write_pyramids(N5Store(partial), volumes, progress)
            for number, *_ in volumes:
                put_in_place(partial / f"setup{number}", root / f"setup{number}")
    finally:
        discard(partial)


def _grown_xml(dataset: _Dataset, entries: Sequence[SetupXml], data_name: str) -> str:
    root, start = dataset.root, dataset.first_free
    views = root.find(".//ViewSetups")
    channels = views.find("Attributes[@name='channel']")
    if channels is None:
        channels = add(views, "Attributes", name="channel")
    element = "n5" if data_name.endswith(".n5") else "hdf5"
    root.find(f".//ImageLoader/{element}").text = data_name
    fresh = ET.Element("ViewSetups")
    add_views(fresh, root.find("ViewRegistrations"), entries, (start, dataset.unit))
    place = len(views.findall("ViewSetup"))
    for offset, view in enumerate(list(fresh)):
        views.insert(place + offset, view)
    add_channels(channels, entries, start)
    return to_text(root)


def _grown_settings(path: Path, entries: Sequence[SetupXml], dataset: _Dataset) -> str:
    """Return the settings with the new volumes; empty if there are none to add to."""
    left = not path.is_file() and _aside(path).is_file()
    if not (left or path.is_file()):
        return ""
    root = _parse(_aside(path) if left else path)
    wanted = ("ViewerState/Sources", "SetupAssignments/ConverterSetups", "ManualSourceTransforms")
    found = [root.find(name) for name in wanted]
    counts = [-1 if element is None else len(element) for element in found]
    whole = all(root.find(f"{a}/{b}") is not None for a, b in _GROUPS)
    if not whole or counts != [len(dataset.numbers)] * 3:
        if left:  # the run was killed after the XML had grown
            return ""
        raise FormatError(
            f"{path} is not made for the {len(dataset.numbers)} volumes of the dataset",
            hint="remove it; BigDataViewer then shows its defaults",
        )
    add_settings(root, entries, dataset.first_free)
    return to_text(root)


_GROUPS = (("ViewerState", "SourceGroups"), ("SetupAssignments", "MinMaxGroups"))
