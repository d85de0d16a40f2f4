"""Tasks for Appose: a program in another language (Fiji) hands over images in shared memory.

The worker is Appose's own; ``python -m clemreg.fiji.appose`` starts it, and so does Appose's
``environment.python()``. A task's script is two constant statements, `SCRIPT`; what varies are its
inputs ``verb``, ``images`` and ``options``, so no text of a user becomes code.

=========  ==========================  ============================================  ===============
verb       images                      options                                       outputs
=========  ==========================  ============================================  ===============
segment    ``em``                      ``em`` (grid), ``model``                      ``prediction``,
                                                                                     ``channels``
register   ``fixed``, ``moving``       ``fixed``, ``moving`` (grids), ``psf``,       ``transform``,
                                       ``search``, ``allow_mirror``, ``seed``        ``figures``
apply      ``image``                   ``image``, ``onto`` (grids; ``onto`` with     ``image``
                                       ``shape`` x, y, z), ``transform``,
                                       ``direction``, ``labels``
evaluate                               ``transform``, ``landmarks``,                 ``landmarks``
                                       ``fixed_offset``, ``raters``
=========  ==========================  ============================================  ===============

A grid is ``{"voxel_size": "x, y, z unit", "origin": "x, y, z unit"}``, origin optional. Images are
(z, y, x). A transform is the path of a file, or the content of a ``transform.json``.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np

from clemreg.blocks.run import Progress
from clemreg.errors import ClemregError, ConfigError, DependencyError
from clemreg.space.grid import Grid
from clemreg.space.transform import Transform
from clemreg.units import parse_xyz_nm
from clemreg.volume import Labels, Volume

SCRIPT = """\
from clemreg.fiji.appose import perform

perform(task, verb, images, options)
"""
Options = Mapping[str, Any]
# A worker reports completion after every script, one that has failed too, and such a line can run
# into the next task's failure, whose caller then sees its own completion only. Outputs that JSON
# cannot hold keep the worker from sending it.
NO_COMPLETION: Mapping[Any, Any] = {("a task that has ended", "has no outputs"): None}


class TaskCancelled(Exception):
    """The caller asked to stop."""


def perform(task: Any, verb: str, images: Mapping[str, Any], options: Options) -> None:
    """Do one task and put its results into ``task.outputs``.

    Parameters
    ----------
    task
        Appose's task: told of progress, asked for cancelling, failed with clemreg's own words.
    verb
        ``"segment"``, ``"register"``, ``"apply"`` or ``"evaluate"``.
    images
        Appose NDArrays by name, zyx.
    options
        See the table at the top of this file.
    """
    try:
        if verb not in VERBS:
            raise ConfigError(f"no task {verb!r}", hint=f"one of {', '.join(VERBS)}")
        arrays = {name: image.ndarray() for name, image in images.items()}
        outputs = VERBS[verb](arrays, options, _progress(task))
    except TaskCancelled:
        task.cancel()
        task.outputs = NO_COMPLETION
    except ClemregError as error:
        task.fail(str(error))
        task.outputs = NO_COMPLETION
    else:
        task.outputs.update(outputs)


def _progress(task: Any) -> Progress:
    def report(done: int, total: int, message: str) -> None:
        if task.cancel_requested:
            raise TaskCancelled
        task.update(message=message, current=done, maximum=total)

    return report


def _segment(images: Options, options: Options, progress: Progress) -> dict[str, Any]:
    from clemreg.pipeline.segment import segment_volume

    em = _volume(images, options, "em", "em")
    with tempfile.TemporaryDirectory(prefix="clemreg-") as folder:
        model = str(options.get("model", "auto"))
        found = segment_volume(em, Path(folder) / "p.zarr", model=model, progress=progress)
        return {"prediction": _shared(found.read()), "channels": list(found.channels)}


def _register(images: Options, options: Options, progress: Progress) -> dict[str, Any]:
    from clemreg.io.volumes import write_volume
    from clemreg.pipeline.register import RegisterCommand, register_files
    from clemreg.register.orientation import OrientationOptions

    volumes = {"fixed": _volume(images, options, "fixed", "lm")}
    volumes["moving"] = _volume(images, options, "moving", "em")
    known = {k: options[k] for k in ("psf", "seed") if k in options}
    turns = {k: options[k] for k in ("search", "allow_mirror") if k in options}
    with tempfile.TemporaryDirectory(prefix="clemreg-") as folder:
        paths = {name: Path(folder) / f"{name}.zarr" for name in volumes}
        for name, volume in volumes.items():
            write_volume(paths[name], volume)
        out = Path(folder) / "out"
        command = RegisterCommand(
            str(paths["fixed"]),
            str(paths["moving"]),
            out,
            orientation=OrientationOptions(**turns),
            **known,
        )
        figures = register_files(command, progress)
        document = json.loads((out / "transform.json").read_text(encoding="utf-8"))
    return {"transform": document, "figures": _plain(figures)}


def _apply(images: Options, options: Options, progress: Progress) -> dict[str, Any]:
    from clemreg.register.apply import apply_to_image

    transform = _transform(options)
    if options.get("direction", "lm-to-em") == "em-to-lm":
        transform = transform.inverse()
    volume = _volume(images, options, "image", transform.target)
    image = Labels(volume.data, volume.grid) if options.get("labels") else volume
    shape = _option(_option(options, "onto"), "shape")
    onto = _grid(_option(options, "onto"), tuple(shape)[::-1], transform.source)
    with tempfile.TemporaryDirectory(prefix="clemreg-") as folder:
        out = Path(folder) / "warped.zarr"
        warped = apply_to_image(transform, image, onto, out, progress=progress)
        return {"image": _shared(warped.read())}


def _evaluate(_images: Options, options: Options, progress: Progress) -> dict[str, Any]:
    from clemreg.evaluate.landmarks import evaluate_landmarks
    from clemreg.io.points import read_landmarks

    offset = options.get("fixed_offset", "")
    progress(0, 1, "landmarks")
    report = evaluate_landmarks(
        _transform(options),
        read_landmarks(_option(options, "landmarks")),
        raters=tuple(options.get("raters", ())),
        fixed_offset_nm=parse_xyz_nm(offset) if offset else (0.0, 0.0, 0.0),
    )
    progress(1, 1, "landmarks")
    return {"landmarks": _plain(report.to_json())}


class WholeLines:
    """A text stream whose lines stay whole when several threads print.

    `print` writes a text and its line end one after the other; another task's message can come
    between them, and Appose then loses both.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.lock = threading.Lock()
        self.begun = threading.local()

    def write(self, text: str) -> int:
        """Pass on the lines that this thread has ended; keep the rest."""
        *lines, rest = (getattr(self.begun, "text", "") + text).split("\n")
        self.begun.text = rest
        if lines:
            with self.lock:
                self.stream.write("".join(f"{line}\n" for line in lines))
        return len(text)

    def flush(self) -> None:
        """Flush what has been passed on."""
        with self.lock:
            self.stream.flush()


VERBS: Mapping[str, Callable[[Options, Options, Progress], dict[str, Any]]] = {
    "segment": _segment,
    "register": _register,
    "apply": _apply,
    "evaluate": _evaluate,
}


def _option(options: Options, name: str) -> Any:
    if name not in options:
        raise ConfigError(f"the task needs the option {name!r}", hint=f"given: {sorted(options)}")
    return options[name]


def _volume(images: Options, options: Options, name: str, frame: str) -> Volume:
    if name not in images:
        raise ConfigError(f"the task needs the image {name!r}", hint=f"given: {sorted(images)}")
    data = images[name]
    return Volume(data, _grid(_option(options, name), data.shape, frame), name=name)


def _grid(record: Options, shape: tuple[int, ...], frame: str) -> Grid:
    origin = record.get("origin", "")
    return Grid(
        shape,  # type: ignore[arg-type]
        parse_xyz_nm(_option(record, "voxel_size")),
        parse_xyz_nm(origin) if origin else (0.0, 0.0, 0.0),
        frame,
    )


def _transform(options: Options) -> Transform:
    from clemreg.io.transform_json import transform_from_json
    from clemreg.io.transforms import read_transform

    given = _option(options, "transform")
    return read_transform(given) if isinstance(given, str) else transform_from_json(given)


def _shared(data: Any) -> Any:
    """Copy an array to shared memory, which the caller frees."""
    import appose

    array = appose.NDArray(str(data.dtype), list(data.shape))
    array.ndarray()[:] = np.asarray(data)
    return array


def _plain(report: Mapping[str, Any]) -> Any:
    """Make a report fit for strict JSON: no NaN, no numpy."""
    from clemreg.io.atomic import plain

    return json.loads(json.dumps(plain(report), allow_nan=False))


def main() -> None:
    """Serve tasks on stdin and stdout until stdin ends.

    Raises
    ------
    DependencyError
        appose is not installed.
    """
    try:
        from appose import python_worker
    except ImportError as error:
        raise DependencyError(
            "the Appose worker needs appose", hint="pip install 'clemreg-toolkit[fiji]'"
        ) from error
    sys.stdout = cast("TextIO", WholeLines(sys.stdout))
    python_worker.main()


if __name__ == "__main__":
    main()
