"""What can be seen to be wrong before anything is computed: installation, units, overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from clemreg.config import RunConfig, load_run_config
from clemreg.errors import ClemregError, DataError
from clemreg.pipeline.context import RunContext
from clemreg.pipeline.features import open_prediction
from clemreg.pipeline.light import check_shifts, light_channel
from clemreg.pipeline.voxels import (
    EM_VOXEL_NM,
    LM_VOXEL_NM,
    SEGMENTATION_VOXEL_NM,
    Finding,
    check_fields,
    check_prediction,
    check_roles,
    check_voxels,
)
from clemreg.volume import Volume


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
    openers = {"EM": context.open_em, "LM": context.open_lm}
    if config.em.prediction is not None:
        openers["EM prediction"] = lambda: open_prediction(context)
    for name, opener in openers.items():
        try:
            volumes[name] = opener()
        except ClemregError as error:
            yield Finding("error", name, error.message, error.hint)
    if "EM" in volumes:
        yield check_voxels("EM", volumes["EM"], EM_VOXEL_NM)
    if "LM" in volumes:
        yield check_voxels("LM", volumes["LM"], LM_VOXEL_NM)
        yield from _check_light(context, volumes["LM"])
    if {"EM", "EM prediction"} <= set(volumes):
        yield check_voxels("EM prediction", volumes["EM prediction"], SEGMENTATION_VOXEL_NM)
        yield check_prediction(volumes["EM"], volumes["EM prediction"])
    if {"EM", "LM"} <= set(volumes):
        yield check_fields(volumes["EM"], volumes["LM"])
        yield check_roles(volumes["EM"], volumes["LM"])


def _check_light(context: RunContext, lm: Volume) -> Iterator[Finding]:
    channel, shifts = context.config.lm.channel, context.shifts_nm()

    def open_channel() -> str:
        light_channel(lm, channel, {})
        return f"{channel!r} of {list(lm.channels) or 'one'}"

    def match_shifts() -> str:
        check_shifts(shifts, lm)
        return f"given for {', '.join(shifts)}"

    yield _tried("LM channel", open_channel)
    if shifts:
        yield _tried("LM shifts", match_shifts)


def _tried(subject: str, look: Callable[[], str]) -> Finding:
    """Look at what a step of the run will need; what stops it there is said now."""
    try:
        return Finding("ok", subject, look())
    except ClemregError as error:
        return Finding("error", subject, error.message, error.hint)
