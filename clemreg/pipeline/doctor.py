"""What can be seen to be wrong before anything is computed: installation, units, overlap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clemreg.config import RunConfig, load_run_config
from clemreg.errors import ClemregError, DataError
from clemreg.pipeline.context import RunContext
from clemreg.units import format_length
from clemreg.volume import Volume

# What people have when the numbers are right; outside of it a unit is probably wrong.
EM_VOXEL_NM = (1.0, 100.0)
LM_VOXEL_NM = (10.0, 2000.0)
# Slices are thicker than pixels are wide, by at most this.
ANISOTROPY = (0.5, 20.0)
SQUARE = 1.05
# Tissue shrinks by a few per cent and the fields may differ; more than this is a unit error.
FIELD_RATIO = (1 / 20, 20.0)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    status
        ``"ok"``, ``"warning"`` or ``"error"``.
    subject, text, hint
        What was looked at, what was found, what to do.
    """

    status: Literal["ok", "warning", "error"]
    subject: str
    text: str
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def check_installation() -> tuple[Finding, ...]:
    """Look for the engines that the verbs need."""
    return tuple(
        _engine(module, verb, extra)
        for module, verb, extra in (
            ("torch", "segment", "segment"),
            ("safetensors", "segment", "segment"),
            ("itk", "register", "register"),
        )
    )


def _engine(module: str, verb: str, extra: str) -> Finding:
    if find_spec(module) is not None:
        return Finding("ok", module, f"installed, `clemreg {verb}` can run")
    return Finding(
        "warning",
        module,
        f"not installed, `clemreg {verb}` cannot run",
        f"pip install 'clemreg-toolkit[{extra}]'",
    )


def check_config(path: Path) -> tuple[Finding, ...]:
    """Open both volumes of a configuration and compare voxel sizes and fields.

    Raises
    ------
    ConfigError, MissingError
        The configuration itself cannot be read.
    """
    config = load_run_config(path)
    return tuple(_check_inputs(config, path.resolve().parent))


def refuse_impossible(config: RunConfig, base: Path) -> None:
    """Stop before anything is computed if a voxel size, channel or field cannot be right.

    Raises
    ------
    ClemregError
        The first thing that is wrong.
    """
    for finding in _check_inputs(config, base):
        if finding.status == "error":
            raise DataError(f"{finding.subject}: {finding.text}", hint=finding.hint)


def _check_inputs(config: RunConfig, base: Path) -> Iterator[Finding]:
    from contextlib import nullcontext

    context = RunContext(config, base, lambda _title: nullcontext(lambda _d, _t, _m: None))
    volumes: dict[str, Volume] = {}
    for name, opener in (("EM", context.open_em), ("LM", context.open_lm)):
        try:
            volumes[name] = opener()
        except ClemregError as error:
            yield Finding("error", name, error.message, error.hint)
    if "EM" in volumes:
        yield check_voxels("EM", volumes["EM"], EM_VOXEL_NM)
    if "LM" in volumes:
        yield check_voxels("LM", volumes["LM"], LM_VOXEL_NM)
        yield _check_channel(volumes["LM"], config.lm.channel)
    if len(volumes) == 2:
        yield check_fields(volumes["EM"], volumes["LM"])


def check_voxels(name: str, volume: Volume, usual_nm: tuple[float, float]) -> Finding:
    """Compare a voxel size with what such microscopes have."""
    spacing = volume.grid.spacing_nm
    text = "voxel x, y, z = " + ", ".join(format_length(s) for s in spacing[::-1])
    low, high = usual_nm
    if min(spacing) < low or max(spacing) > high:
        factor = low / min(spacing) if min(spacing) < low else max(spacing) / high
        return Finding(
            "error" if factor > 30 else "warning",
            name,
            f"{text}; usual for {name} is {format_length(low)} to {format_length(high)}",
            'the unit may be wrong (nm against um); override with voxel_size = "x, y, z nm"',
        )
    return _check_shape(name, text, spacing)


def _check_shape(name: str, text: str, spacing_nm: tuple[float, float, float]) -> Finding:
    """Compare the axes of a voxel with each other."""
    z, y, x = spacing_nm
    ratio = z / np.sqrt(y * x)
    hint = 'were the axes read in the right order? override with voxel_size = "x, y, z nm"'
    if max(x / y, y / x) > SQUARE:
        return Finding("warning", name, f"{text}; pixels are usually square", hint)
    if not ANISOTROPY[0] <= ratio <= ANISOTROPY[1]:
        return Finding(
            "warning",
            name,
            f"{text}; slices are {ratio:.2g} times as thick as pixels are wide",
            hint,
        )
    return Finding("ok", name, text)


def _check_channel(lm: Volume, channel: str | int) -> Finding:
    try:
        lm.channel(channel)
    except ClemregError as error:
        return Finding("error", "LM channel", error.message, error.hint)
    return Finding("ok", "LM channel", f"{channel!r} of {list(lm.channels) or 'one'}")


def check_fields(em: Volume, lm: Volume) -> Finding:
    """Compare the sizes of both fields: a thousandfold difference is a unit error."""
    sizes = [np.sort(v.grid.extent_nm)[1:] for v in (em, lm)]
    ratio = float(np.sqrt(np.prod(sizes[0] / sizes[1])))
    text = "field EM " + _size(em) + ", LM " + _size(lm)
    if not FIELD_RATIO[0] < ratio < FIELD_RATIO[1]:
        return Finding(
            "error",
            "fields",
            f"{text}: they differ {max(ratio, 1 / ratio):.0f} times",
            "one voxel size has the wrong unit, or these volumes do not show the same cell",
        )
    return Finding("ok", "fields", text)


def _size(volume: Volume) -> str:
    return " x ".join(format_length(s) for s in volume.grid.extent_nm[::-1])
