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
    """Return the text of ``NAME.xml`` (SpimData 0.2, ``bdv.hdf5``)."""
    root = ET.Element("SpimData", version="0.2")
    _add(root, "BasePath", ".", type="relative")
    sequence = _add(root, "SequenceDescription")
    loader = _add(sequence, "ImageLoader", format="bdv.hdf5")
    _add(loader, "hdf5", data_name, type="relative")
    views = _add(sequence, "ViewSetups")
    for number, setup in enumerate(setups):
        _view_setup(views, number, setup, unit)
    channels = _add(views, "Attributes", name="channel")
    for number, setup in enumerate(setups):
        channel = _add(channels, "Channel")
        _add(channel, "id", str(number))
        _add(channel, "name", setup.name)
    times = _add(sequence, "Timepoints", type="range")
    _add(times, "first", "0")
    _add(times, "last", "0")
    registrations = _add(root, "ViewRegistrations")
    for number, setup in enumerate(setups):
        _registration(registrations, number, setup)
    return _text(root)


def _view_setup(parent: Any, number: int, setup: SetupXml, unit: str) -> None:
    view = _add(parent, "ViewSetup")
    _add(view, "id", str(number))
    _add(view, "name", setup.name)
    _add(view, "size", _row(setup.size))
    voxel = _add(view, "voxelSize")
    _add(voxel, "unit", "µm" if unit == "um" else unit)
    _add(voxel, "size", _row(setup.voxel_size))
    attributes = _add(view, "attributes")
    _add(attributes, "channel", str(number))


def _registration(parent: Any, number: int, setup: SetupXml) -> None:
    view = _add(parent, "ViewRegistration", timepoint="0", setup=str(number))
    names = ("registration", "calibration")
    for name, matrix in zip(names, setup.transforms, strict=True):
        transform = _add(view, "ViewTransform", type="affine")
        _add(transform, "Name", name)
        _add(transform, "affine", _row(matrix[:3].ravel()))


def settings_xml(setups: Sequence[SetupXml]) -> str:
    """Return the text of ``NAME.settings.xml``, which the viewer loads by itself."""
    root = ET.Element("Settings")
    state = _add(root, "ViewerState")
    sources = _add(state, "Sources")
    groups = _add(state, "SourceGroups")
    for number, setup in enumerate(setups):
        active = "true" if setup.visible else "false"
        _add(_add(sources, "Source"), "active", active)
        group = _add(groups, "SourceGroup")
        for tag, text in (("active", active), ("name", setup.name), ("id", str(number))):
            _add(group, tag, text)
    for tag, text in (
        ("DisplayMode", "fs"),
        ("Interpolation", "nlinear"),
        ("CurrentSource", "0"),
        ("CurrentGroup", "0"),
        ("CurrentTimePoint", "0"),
    ):
        _add(state, tag, text)
    assignments = _add(root, "SetupAssignments")
    converters = _add(assignments, "ConverterSetups")
    minmax = _add(assignments, "MinMaxGroups")
    for number, setup in enumerate(setups):
        _display(converters, minmax, number, setup)
    manual = _add(root, "ManualSourceTransforms")
    for _ in setups:
        transform = _add(manual, "SourceTransform", type="affine")
        _add(transform, "affine", _row(np.eye(4)[:3].ravel()))
    _add(root, "Bookmarks")
    return _text(root)


def _display(converters: Any, minmax: Any, number: int, setup: SetupXml) -> None:
    low, high = (repr(float(v)) for v in setup.window)
    converter = _add(converters, "ConverterSetup")
    for tag, text in (
        ("id", str(number)),
        ("min", low),
        ("max", high),
        ("color", str(_argb(setup.colour))),
        ("groupId", str(number)),
    ):
        _add(converter, tag, text)
    group = _add(minmax, "MinMaxGroup")
    for tag, text in (
        ("id", str(number)),
        ("fullRangeMin", "-2.147483648E9"),
        ("fullRangeMax", "2.147483647E9"),
        ("rangeMin", repr(min(float(setup.window[0]), 0.0))),
        ("rangeMax", repr(max(float(setup.window[1]), 255.0))),
        ("currentMin", low),
        ("currentMax", high),
    ):
        _add(group, tag, text)


def _argb(colour: tuple[int, int, int]) -> int:
    """Opaque colour as the signed 32-bit number that Java writes."""
    red, green, blue = colour
    value = 0xFF000000 | red << 16 | green << 8 | blue
    return value - 2**32


def _row(values: Any) -> str:
    """Write numbers with all their digits, separated by blanks."""
    return " ".join(repr(float(v)) if isinstance(v, float) else str(v) for v in values)


def _add(parent: Any, tag: str, text: str | None = None, **attributes: str) -> Any:
    element = ET.SubElement(parent, tag, attributes)
    element.text = None if text is None else _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
    return element


def _text(root: Any) -> str:
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"
