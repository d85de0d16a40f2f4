"""The two XML files of a BigDataViewer dataset: where volumes stand, and how they are shown."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Characters that XML 1.0 cannot hold, escaped or not.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# BigDataViewer always has this many groups, and drops settings that list more or fewer of them
# (XmlIoViewerState and ViewerOptions of bigdataviewer-core 1 to 10).
GROUPS = 10
# Image loader of bigdataviewer-core by the suffix of the data: format, element, attributes.
_LOADERS = {
    ".h5": ("hdf5", {"format": "bdv.hdf5"}),
    ".n5": ("n5", {"format": "bdv.n5", "version": "1.0"}),
}


@dataclass(frozen=True, eq=False)
class SetupXml:
    """One volume in the XML; x, y, z order.

    Attributes
    ----------
    name
        Shown in the viewer.
    size
        Voxels.
    voxel_size
        In the unit of the file.
    transforms
        Registration and calibration, 4 x 4; the last is applied first.
    colour, window, visible
        Display.
    """

    name: str
    size: tuple[int, ...]
    voxel_size: tuple[float, ...]
    transforms: tuple[NDArray[np.float64], NDArray[np.float64]]
    colour: tuple[int, int, int]
    window: tuple[float, float]
    visible: bool = True


def dataset_xml(setups: Sequence[SetupXml], data_name: str, unit: str) -> str:
    """Return the text of ``NAME.xml`` (SpimData 0.2); the suffix of the data says the loader."""
    root = ET.Element("SpimData", version="0.2")
    add(root, "BasePath", ".", type="relative")
    sequence = add(root, "SequenceDescription")
    element, attributes = _LOADERS[data_name[-3:]]
    add(add(sequence, "ImageLoader", **attributes), element, data_name, type="relative")
    views = add(sequence, "ViewSetups")
    add_views(views, add(root, "ViewRegistrations"), setups, (0, unit))
    channels = add(views, "Attributes", name="channel")
    add_channels(channels, setups, 0)
    times = add(sequence, "Timepoints", type="range")
    add(times, "first", "0")
    add(times, "last", "0")
    return to_text(root)


def add_views(
    views: Any, registrations: Any, setups: Sequence[SetupXml], first: tuple[int, str]
) -> None:
    """Add a ``ViewSetup`` and a ``ViewRegistration`` for each setup.

    Parameters
    ----------
    first
        Number of the first setup, and the unit of the world.
    """
    start, unit = first
    for number, setup in enumerate(setups, start):
        _view_setup(views, number, setup, unit)
        _registration(registrations, number, setup)


def add_channels(channels: Any, setups: Sequence[SetupXml], start: int) -> None:
    """Add a ``Channel`` for each setup: its number and its name."""
    for number, setup in enumerate(setups, start):
        channel = add(channels, "Channel")
        add(channel, "id", str(number))
        add(channel, "name", setup.name)


def _view_setup(parent: Any, number: int, setup: SetupXml, unit: str) -> None:
    view = add(parent, "ViewSetup")
    add(view, "id", str(number))
    add(view, "name", setup.name)
    add(view, "size", _row(setup.size))
    voxel = add(view, "voxelSize")
    add(voxel, "unit", "µm" if unit == "um" else unit)
    add(voxel, "size", _row(setup.voxel_size))
    attributes = add(view, "attributes")
    add(attributes, "channel", str(number))


def _registration(parent: Any, number: int, setup: SetupXml) -> None:
    view = add(parent, "ViewRegistration", timepoint="0", setup=str(number))
    names = ("registration", "calibration")
    for name, matrix in zip(names, setup.transforms, strict=True):
        transform = add(view, "ViewTransform", type="affine")
        add(transform, "Name", name)
        add(transform, "affine", _row(matrix[:3].ravel()))


def settings_xml(setups: Sequence[SetupXml]) -> str:
    """Return the text of ``NAME.settings.xml``, which the viewer loads by itself."""
    root = ET.Element("Settings")
    state = add(root, "ViewerState")
    add(state, "Sources")
    add(state, "SourceGroups")
    for tag, text in (
        ("DisplayMode", "fs"),
        ("Interpolation", "nlinear"),
        ("CurrentSource", "0"),
        ("CurrentGroup", "0"),
        ("CurrentTimePoint", "0"),
    ):
        add(state, tag, text)
    assignments = add(root, "SetupAssignments")
    add(assignments, "ConverterSetups")
    add(assignments, "MinMaxGroups")
    add(root, "ManualSourceTransforms")
    add(root, "Bookmarks")
    add_settings(root, setups, 0)
    return to_text(root)


def add_settings(root: Any, setups: Sequence[SetupXml], start: int) -> None:
    """Add source, group, colour, range and (identity) manual transform of each setup.

    A source has its own group as long as there are empty ones. Groups know their sources by
    position, colours theirs by number.

    Parameters
    ----------
    start
        Number of the first of these setups.
    """
    sources, groups = root.find("ViewerState/Sources"), root.find("ViewerState/SourceGroups")
    for position in range(len(groups), GROUPS):
        groups.append(_group(f"group {position + 1}", "true"))
    for group in list(groups)[GROUPS:]:
        groups.remove(group)
    for number, setup in enumerate(setups, start):
        position = len(sources)
        active = "true" if setup.visible else "false"
        add(add(sources, "Source"), "active", active)
        if position < GROUPS and groups[position].find("id") is None:
            groups[position] = _group(setup.name, active, position)
        _display(root.find("SetupAssignments"), number, setup)
        transform = add(root.find("ManualSourceTransforms"), "SourceTransform", type="affine")
        add(transform, "affine", _row(np.eye(4)[:3].ravel()))


def _group(name: str, active: str, *sources: int) -> Any:
    group = ET.Element("SourceGroup")
    add(group, "active", active)
    add(group, "name", name)
    for position in sources:
        add(group, "id", str(position))
    return group


def _display(assignments: Any, number: int, setup: SetupXml) -> None:
    low, high = (repr(float(v)) for v in setup.window)
    minmax = assignments.find("MinMaxGroups")
    group_id = str(len(minmax))
    converter = add(assignments.find("ConverterSetups"), "ConverterSetup")
    for tag, text in (
        ("id", str(number)),
        ("min", low),
        ("max", high),
        ("color", str(_argb(setup.colour))),
        ("groupId", group_id),
    ):
        add(converter, tag, text)
    group = add(minmax, "MinMaxGroup")
    for tag, text in (
        ("id", group_id),
        ("fullRangeMin", "-2.147483648E9"),
        ("fullRangeMax", "2.147483647E9"),
        ("rangeMin", repr(min(float(setup.window[0]), 0.0))),
        ("rangeMax", repr(max(float(setup.window[1]), 255.0))),
        ("currentMin", low),
        ("currentMax", high),
    ):
        add(group, tag, text)


def _argb(colour: tuple[int, int, int]) -> int:
    """Opaque colour as the signed 32-bit number that Java writes."""
    red, green, blue = colour
    value = 0xFF000000 | red << 16 | green << 8 | blue
    return value - 2**32


def _row(values: Any) -> str:
    """Write numbers with all their digits, separated by blanks."""
    return " ".join(repr(float(v)) if isinstance(v, float) else str(v) for v in values)


def add(parent: Any, tag: str, text: str | None = None, **attributes: str) -> Any:
    """Add an element; characters that XML cannot hold become a replacement character."""
    element = ET.SubElement(parent, tag, attributes)
    element.text = None if text is None else _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
    return element


def to_text(root: Any) -> str:
    """Return an indented XML document."""
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"
