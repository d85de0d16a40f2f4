"""``clemreg register``: find a transform."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clemreg.cli.console import (
    FixedSpacingOption,
    JsonOption,
    MovingSpacingOption,
    OverwriteOption,
    PsfOption,
    named_values,
    offset_nm,
    print_verdict,
    progress_bar,
    require_free,
    result,
    table,
    write_json,
)

if TYPE_CHECKING:
    from clemreg.pipeline.register import RegisterCommand


def add_to(parent: typer.Typer) -> None:
    """Attach the command."""
    parent.command()(register)


def register(
    fixed: Annotated[str, typer.Option(help="Light volume.")],
    moving: Annotated[str, typer.Option(help="EM mitochondria mask, probability or prediction.")],
    out: Annotated[Path, typer.Option(help="Folder for the transform.")],
    channel: Annotated[
        str | None,
        typer.Option(help="Mitochondria channel of the light volume; else by its name."),
    ] = None,
    psf: PsfOption = "palm",
    kind: Annotated[
        str, typer.Option(help="What the EM holds: auto, prediction, probability or mask.")
    ] = "auto",
    ramp: Annotated[
        str, typer.Option(help="From prediction to membrane: linear or published.")
    ] = "linear",
    ecs: Annotated[
        str | None,
        typer.Option(help="Extracellular space in the EM: no mitochondrion is within 150 nm."),
    ] = None,
    shift: Annotated[
        list[str] | None,
        typer.Option(help='Chromatic shift to add to a channel: NAME="x, y, z unit"; repeat.'),
    ] = None,
    fixed_spacing: FixedSpacingOption = None,
    moving_spacing: MovingSpacingOption = None,
    search: Annotated[str, typer.Option(help="Start poses: in-plane or all.")] = "in-plane",
    allow_mirror: Annotated[bool, typer.Option(help="Accept a mirrored pose.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampler.")] = 0,
    engine: Annotated[str, typer.Option(help="newton or elastix.")] = "newton",
    preset: Annotated[
        str | None, typer.Option(help="Published elastix parameters: heinrich2021.")
    ] = None,
    params: Annotated[
        list[Path] | None,
        typer.Option(help="elastix parameter files instead of the default stages, in order."),
    ] = None,
    grid_spacing: Annotated[
        float | None, typer.Option(help="Final control point spacing in um.")
    ] = None,
    bending_weight: Annotated[
        float | None, typer.Option(help="Weight of the bending energy in um; more is stiffer.")
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help="A further structure: CHANNEL=EM_VOLUME[@WEIGHT]."),
    ] = None,
    fixed_mask: Annotated[
        str | None, typer.Option(help="Where the light volume can be trusted.")
    ] = None,
    moving_mask: Annotated[str | None, typer.Option(help="Where the EM can be trusted.")] = None,
    landmarks: Annotated[
        Path | None, typer.Option(help="Pairs to fit; not for measuring accuracy.")
    ] = None,
    use_landmarks: Annotated[
        list[str] | None, typer.Option(help="start, metric or correction; may be repeated.")
    ] = None,
    fixed_offset: Annotated[
        str | None,
        typer.Option(help='Added to the LM side of all landmarks, "x, y, z"; um unless said.'),
    ] = None,
    scan: Annotated[
        list[str] | None,
        typer.Option(help="Run a scan instead: KEY=V1,V2,...; may be repeated."),
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option(help="Landmarks that a scan is judged by.")
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Register an EM mask to a light volume: orientation search, affine, B-spline; and a verdict.

    The verdict (pass, warn or fail, with reasons) is that of `clemreg run`, but for the accuracy.
    """
    from clemreg.errors import ConfigError
    from clemreg.pipeline.register import GuideFiles, RegisterCommand, StageChoice, register_files
    from clemreg.register.orientation import OrientationOptions
    from clemreg.units import given_xyz_nm

    if held_out is not None and not scan:
        raise ConfigError(
            "--held-out judges a scan, and there is no --scan",
            hint="register, then: clemreg evaluate landmarks --transform OUT/transform.json "
            f"--landmarks {held_out}",
        )
    require_free(*_outputs(out, bool(scan)), overwrite=overwrite)
    command = RegisterCommand(
        fixed=fixed,
        moving=moving,
        out=out,
        channel=channel,
        psf=psf,
        orientation=OrientationOptions(search=search, allow_mirror=allow_mirror),  # type: ignore[arg-type]
        seed=seed,
        stages=StageChoice(engine, preset, tuple(params or ()), grid_spacing, bending_weight),
        guides=GuideFiles(
            tuple(also or ()),
            fixed_mask,
            moving_mask,
            landmarks,
            tuple(use_landmarks or ()),
            offset_nm(fixed_offset),
        ),
        kind=kind,  # type: ignore[arg-type]
        ramp=ramp,  # type: ignore[arg-type]
        ecs=ecs,
        shifts_nm=_shifts(shift or []),
        fixed_spacing_nm=given_xyz_nm(fixed_spacing),
        moving_spacing_nm=given_xyz_nm(moving_spacing),
    )
    if scan:
        _scan(command, scan, held_out, json)
        return
    with progress_bar("register") as progress:
        answer = register_files(command, progress)
    verdict = answer["verdict"]
    table({name: value for name, value in answer.items() if name != "verdict"})
    print_verdict(verdict["status"], verdict["reasons"])
    write_json(json, answer)
    result(f"transform: {out / 'transform.json'}")


def _outputs(out: Path, scan: bool) -> list[Path]:
    """Return the files that may be written, as far as they are known or there."""
    if scan:
        return [out / name for name in ("scan.csv", "scan.json", "scan.png")]
    fixed = ("transform.json", "orientation.json", "registration.json")
    varying = ("repeat-*.json", "elastix/TransformParameters.*.txt")
    return [*(out / n for n in fixed), *(path for form in varying for path in out.glob(form))]


def _scan(
    command: RegisterCommand, texts: list[str], held_out: Path | None, json: Path | None
) -> None:
    from clemreg.pipeline.register_scan import parse_axis, scan_files

    axes = [parse_axis(text) for text in texts]
    with progress_bar("scan") as progress:
        answer = scan_files(command, axes, held_out, progress)
    for number, row in enumerate(answer["rows"]):
        table({f"{number}: {key}": value for key, value in row.items() if value != ""})
    write_json(json, answer)
    result(f"table: {command.out / 'scan.csv'}")


def _shifts(texts: list[str]) -> dict[str, tuple[float, float, float]]:
    from clemreg.errors import ConfigError
    from clemreg.units import parse_xyz_nm

    for text in texts:
        if "=" not in text:
            raise ConfigError(f'--shift {text!r} is not of the form NAME="x, y, z unit"')
    pairs = ((name, value) for name, _, value in (text.partition("=") for text in texts))
    return {name: parse_xyz_nm(value) for name, value in named_values("--shift", pairs).items()}
