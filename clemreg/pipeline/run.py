"""``clemreg run``: segment, prepare, register, apply, evaluate, report, export."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clemreg.blocks.run import Progress
from clemreg.config import RunConfig
from clemreg.errors import DataError, MissingError
from clemreg.io.atomic import atomic_path, atomic_write_json
from clemreg.pipeline import evaluation, features, registration, reporting
from clemreg.pipeline.context import RunContext, this_command
from clemreg.pipeline.doctor import refuse_impossible
from clemreg.pipeline.export import export_run
from clemreg.pipeline.segment import SegmentSettings, segment_volume
from clemreg.pipeline.steps import (
    Step,
    claim_folder,
    is_marked,
    one_run_at_a_time,
    run_steps,
    unfinished,
)

STEPS = ("segment", "prepare", "register", "apply", "evaluate", "report", "export")


@dataclass(frozen=True)
class Outcome:
    """What a run ends with.

    Attributes
    ----------
    status, reasons
        The verdict.
    report
        Path of ``report.html``.
    folder
        Run folder.
    """

    status: str
    reasons: tuple[str, ...]
    report: Path
    folder: Path

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "verdict": {"status": self.status, "reasons": list(self.reasons)},
            "report": str(self.report),
            "folder": str(self.folder),
        }


def run_pipeline(
    config: RunConfig,
    base: Path,
    *,
    start: str | None = None,
    progress: Callable[[str], AbstractContextManager[Progress]] | None = None,
    announce: Callable[[str, str], None] | None = None,
) -> Outcome:
    """Do every step that is not finished.

    Parameters
    ----------
    config
        What to do.
    base
        Folder that relative paths start from.
    start
        Do this step and all later ones again.
    progress
        Opens a progress display with a title.
    announce
        Told ``(step, state)``.
    """
    context = RunContext(config, base, progress or _silent)
    refuse_impossible(config, base)
    with one_run_at_a_time(context.folder):
        record = {"base": str(base), "command": this_command(), **_record(config)}
        steps = plan(context)
        outputs = [path for step in steps for path in step.outputs]
        claim_folder(context.folder, [context.path("run.json"), *outputs])
        atomic_write_json(context.path("run.json"), record)
        seconds = run_steps(steps, context.folder, start=start, announce=announce)
        # Times of all steps are known only now; the JSON is what scripts read.
        _add_timings(context.path("report.json"), seconds)
    return read_outcome(context.folder)


def plan(context: RunContext) -> list[Step]:
    """Return the steps with what each depends on."""
    config = context.config
    inputs = context.inputs()
    em = {"em": inputs["em"], "size": config.em.voxel_size, "channel": config.em.channel}
    light = {k: getattr(config.lm, k) for k in ("voxel_size", "channel", "shifts")}
    lm = {"lm": inputs["lm"]} | light
    given = [k for k in inputs if k in ("landmarks", "truth") or k.startswith("proof.")]
    proof = config.proof.model_dump() | {f"input {k}": inputs[k] for k in given}
    prediction = () if config.em.prediction else (context.path("prediction.zarr"),)

    def step(
        name: str,
        action: Callable[[RunContext], None],
        depends: Mapping[str, Any],
        outputs: tuple[Path, ...] = (),
    ) -> Step:
        after = STEPS[: STEPS.index(name)]
        return Step(name, lambda: action(context), depends, after, outputs)

    register = config.register_.model_dump()
    return [
        step(
            "segment",
            _segment,
            em
            | config.segment.model_dump()
            | {"from": inputs["prediction"]}
            | context.model_input(),
            prediction,
        ),
        step(
            "prepare",
            features.prepare,
            lm
            | {k: register[k] for k in ("psf", "psf_fwhm", "kind", "ramp")}
            | {k: v for k, v in inputs.items() if k == "register.ecs"},
            (context.path("prepared"),),
        ),
        step(
            "register",
            registration.register_run,
            register | context.guide_inputs(),
            (context.path("registration"),),
        ),
        step("apply", registration.apply_run, {}, (context.path("warped_em.zarr"),)),
        step("evaluate", evaluation.evaluate_run, proof, (context.path("evaluation.json"),)),
        step(
            "report",
            reporting.report_run,
            {"title": config.output.title, "check": config.lm.check_channel},
            (context.path("report.html"), context.path("report.json")),
        ),
        step("export", export_run, config.export.model_dump(), (context.path("export"),)),
    ]


def open_finished(folder: Path) -> RunContext:
    """Return the context of a run whose images and transform belong together.

    Raises
    ------
    MissingError
        The folder is not that of a run.
    DataError
        The run was stopped before the EM was registered and resampled.
    """
    context = open_run(folder)
    missing = [name for name in STEPS[: STEPS.index("evaluate")] if not is_marked(folder, name)]
    if missing:
        # After a change of the configuration, files of before lie beside those of after.
        raise DataError(
            f"the run in {folder} was stopped: {', '.join(missing)} not done",
            hint="`clemreg run CONFIG` does what is missing",
        )
    return context


def rewrite_report(folder: Path) -> Path:
    """Write the report of a finished run again, and nothing else.

    Raises
    ------
    MissingError
        The folder is not that of a run.
    DataError
        A step before the report was not done, or with other settings or input files.
    """
    context = open_run(folder)
    with one_run_at_a_time(context.folder):
        steps = plan(context)[: STEPS.index("report") + 1]
        stale = unfinished(steps[:-1], context.folder)
        if stale:
            # Done now, they would replace the results that somebody wants to look at again.
            raise DataError(
                f"{folder} holds no finished run: {', '.join(stale)} not done, or not with the "
                "configuration and the input files that its run.json names",
                hint="`clemreg run CONFIG` does what is missing and writes the report",
            )
        run_steps(steps, context.folder, start="report")
    return context.path("report.html")


def open_run(folder: Path) -> RunContext:
    """Return the context of a run from its folder.

    Raises
    ------
    MissingError
        There is no ``run.json``.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise MissingError(
            f"{folder} is not the folder of a clemreg run", hint="it has no run.json"
        )
    record = json.loads(path.read_text(encoding="utf-8"))
    config = RunConfig.model_validate(record["config"])
    output = config.output.model_copy(update={"dir": str(folder.resolve())})
    return RunContext(config.model_copy(update={"output": output}), Path(record["base"]), _silent)


def read_outcome(folder: Path) -> Outcome:
    """Read the verdict of a finished run."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    verdict = report["verdict"]
    return Outcome(verdict["status"], tuple(verdict["reasons"]), folder / "report.html", folder)


def _record(config: RunConfig) -> dict[str, Any]:
    return {"config": config.model_dump(mode="json", by_alias=True)}


def _silent(_title: str) -> AbstractContextManager[Progress]:
    return nullcontext(lambda _done, _total, _message: None)


def _segment(context: RunContext) -> None:
    config = context.config
    if config.em.prediction is not None:
        return
    with context.progress("segment") as progress:
        segment_volume(
            context.open_em(),
            context.path("prediction.zarr"),
            model=context.model(),
            settings=SegmentSettings(block=config.segment.block),
            source=context.input(config.em.path),
            progress=progress,
        )


def _add_timings(path: Path, seconds: Mapping[str, float]) -> None:
    report = json.loads(path.read_text(encoding="utf-8"))
    report["timings_s"] = {**(report.get("timings_s") or {}), **seconds}
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
