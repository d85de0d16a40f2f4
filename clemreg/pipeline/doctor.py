"""What can be seen to be wrong before anything is computed: installation, units, files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from clemreg.config import RunConfig, load_run_config
from clemreg.errors import ClemregError, DataError
from clemreg.io.transforms import read_transform
from clemreg.pipeline.context import RunContext
from clemreg.pipeline.evaluation import landmark_report, open_held_out
from clemreg.pipeline.features import open_prediction
from clemreg.pipeline.light import check_shifts, light_channel
from clemreg.pipeline.register import guide_landmarks, open_placed, split_channel
from clemreg.pipeline.registration import register_options
from clemreg.pipeline.voxels import (
    EM_VOXEL_NM,
    LM_VOXEL_NM,
    SEGMENTATION_VOXEL_NM,
    Finding,
    check_depth,
    check_em_channel,
    check_fields,
    check_prediction,
    check_roles,
    check_voxels,
)
from clemreg.register.engines import check_stages
from clemreg.register.structure import structure
from clemreg.space.transform import Affine
from clemreg.volume import Volume

log = logging.getLogger(__name__)


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
    """Open everything that a configuration names, and compare voxel sizes and fields.

    Raises
    ------
    ConfigError, MissingError
        The configuration itself cannot be read.
    """
    config = load_run_config(path)
    return tuple(_check_inputs(config, path.resolve().parent))


def refuse_impossible(config: RunConfig, base: Path) -> None:
    """Stop before anything is computed if a later step of the run cannot succeed.

    What is only unusual is logged: it is known before hours of computing, not after.

    Raises
    ------
    ClemregError
        The first thing that is wrong.
    """
    for finding in _check_inputs(config, base):
        if finding.status == "error":
            raise DataError(f"{finding.subject}: {finding.text}", hint=finding.hint)
        if finding.status == "warning":
            log.warning("%s: %s; %s", finding.subject, finding.text, finding.hint)


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
        yield check_depth("EM depth", volumes["EM"])
        yield check_em_channel(context.open_whole_em(), config.em.channel)
    if "LM" in volumes:
        yield check_voxels("LM", volumes["LM"], LM_VOXEL_NM)
        yield check_depth("LM depth", volumes["LM"])
        yield from _check_light(context, volumes["LM"])
        yield from _check_further(context, volumes["LM"])
    if {"EM", "EM prediction"} <= set(volumes):
        yield check_voxels("EM prediction", volumes["EM prediction"], SEGMENTATION_VOXEL_NM)
        yield check_prediction(volumes["EM"], volumes["EM prediction"])
    if {"EM", "LM"} <= set(volumes):
        yield check_fields(volumes["EM"], volumes["LM"])
        yield check_roles(volumes["EM"], volumes["LM"])
    yield from _check_steering(context)
    yield from _check_proof(context)


def _check_light(context: RunContext, lm: Volume) -> Iterator[Finding]:
    channel, shifts = context.config.lm.channel, context.shifts_nm()

    def open_channel() -> str:
        light_channel(lm, channel, {})
        return f"{channel!r} of {list(lm.channels) or 'one'}"

    def match_shifts() -> str:
        check_shifts(shifts, lm)
        return f"given for {', '.join(shifts)}"

    yield _tried("LM channel", open_channel)
    if context.config.lm.check_channel is not None:
        yield _check_unused(context, lm, context.config.lm.check_channel)
    if shifts:
        yield _tried("LM shifts", match_shifts)


def _check_unused(context: RunContext, lm: Volume, check: str | int) -> Finding:
    subject = "LM check channel"
    try:
        name, fitted = light_channel(lm, check, {}).name, context.fitted_channels(lm)
    except ClemregError as error:
        return Finding("error", subject, error.message, error.hint)
    if name in fitted:
        hint = "name another channel in lm.check_channel; the report leaves out its figure"
        return Finding("warning", subject, f"{name!r} is registered", hint)
    return Finding("ok", subject, f"{name!r}, for a figure of the report")


def _check_further(context: RunContext, lm: Volume) -> Iterator[Finding]:
    """Open the further channels that are registered with the first."""

    def open_pair(text: str) -> str:
        name, path, _ = split_channel(text)
        light = light_channel(lm, name, {})
        em, _ = structure(open_placed(path, "em"), light.name if lm.channels else None)
        return f"{light.name or 'the light volume'} with {em.name or path}"

    for text in context.guides().also:
        yield _tried("register.channels", partial(open_pair, text))


def _check_steering(context: RunContext) -> Iterator[Finding]:
    """Open what steers the registration, which the run reads after the segmentation."""
    files, config = context.guides(), context.config.register_

    def read_options() -> str:
        stages = register_options(config, context.base).stages
        in_metric = files.landmarks is not None and "metric" in (files.uses or ("metric",))
        check_stages(stages, 1 + len(files.also), landmarks=in_metric)
        return ", ".join(config.params) or config.preset or config.engine

    def read_landmarks() -> str:
        table, uses = guide_landmarks(files)
        return "none" if table is None else f"{len(table.usable)} as {', '.join(uses)}"

    yield _tried("register", read_options)
    if files.landmarks is not None or files.uses:
        yield _tried("register.landmarks", read_landmarks)
    masks = {"fixed_mask": (files.fixed_mask, "lm"), "moving_mask": (files.moving_mask, "em")}
    for name, (path, frame) in (masks | {"ecs": (context.input(config.ecs), "em")}).items():
        if path is not None:
            yield _tried(f"register.{name}", partial(_open_named, path, frame))


def _open_named(path: str, frame: str) -> str:
    z, y, x = open_placed(path, frame).shape[-3:]
    return f"{z} x {y} x {x} voxels (z, y, x)"


def _check_proof(context: RunContext) -> Iterator[Finding]:
    """Open what the result is checked with, which the run reads after the registration."""
    proof = context.config.proof

    def read_table() -> str:
        # Any transform will do: what is looked at is which landmarks there are.
        found = landmark_report(context, Affine.identity("lm", "em"))
        assert found is not None
        people = f", marked by {', '.join(found.by_rater)}" if found.by_rater else ""
        return f"{found.tre.n} held out{people}"

    def read_truth() -> str:
        read_transform(context.input(proof.truth) or "")
        return "a transform"

    if proof.landmarks is not None:
        yield _tried("proof.landmarks", read_table)
    for text in proof.overlap:
        yield _tried("proof.overlap", partial(_open_overlap, context, text))
    if proof.truth is not None:
        yield _tried("proof.truth", read_truth)


def _open_overlap(context: RunContext, text: str) -> str:
    lm, em, _ = open_held_out(context, text)
    return f"{lm.name or 'the light volume'} against {em.name or text}"


def _tried(subject: str, look: Callable[[], str]) -> Finding:
    """Look at what a step of the run will need; what stops it there is said now."""
    try:
        return Finding("ok", subject, look())
    except ClemregError as error:
        return Finding("error", subject, error.message, error.hint)
