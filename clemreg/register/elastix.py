"""Run elastix in a child process, and say in plain words what it did.

The only file that touches ITK. The parent writes images (npy) and a job (json) into a folder; a
child of ``python -m clemreg.register.elastix`` (see `clemreg.register.worker`) registers and leaves
parameter files there. It can crash, be killed or hang without taking the program along, and
elastix's real error, which stands only in its log, is found and raised.

Images are given to elastix in micrometres, xyz: its bending energy depends on the unit.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import ConfigError, DataError, DependencyError, GridError, RegistrationError
from clemreg.io.elastix_files import read_elastix
from clemreg.io.xyz import flip, flip_matrix
from clemreg.register.elastix_keys import check_parameters
from clemreg.register.worker import ElastixWorker
from clemreg.space.grid import Grid
from clemreg.space.transform import Affine, Transform
from clemreg.volume import Volume

ParameterMap = Mapping[str, Sequence[str]]
NM_PER_UM = 1e3
_JOB = "job.json"
_LOG = "elastix.log"
_NO_ITK = 3  # exit code of a child without itk-elastix

_REASONS = (
    (
        r"Too many samples map outside moving image buffer[^\n]*",
        "the volumes hardly overlap in this pose",
        "check voxel sizes and orientation (`clemreg doctor`), or search all orientations",
    ),
    (
        r"Could not find enough image samples[^\n]*|No valid voxels[^\n]*|mask[^\n]*empty[^\n]*",
        "the mask leaves too few voxels",
        "give a mask that covers more of the image",
    ),
    (
        r"image to be (?:smoothed|processed)[^\n]*|number of pixels along direction[^\n]*",
        "an image is too small for the smoothing that was asked for",
        "use fewer resolutions, or a larger image",
    ),
    (
        r"The following component could not be created[^\n]*|Component not found[^\n]*",
        "a component that the parameters name does not exist in elastix",
        "check the spelling of Metric, Optimizer, Transform and ImageSampler",
    ),
)


@dataclass(frozen=True)
class ElastixJob:
    """One elastix run: a fixed and a moving image, and a list of parameter maps done in order.

    Parameters
    ----------
    fixed, moving
        Scalar volumes (zyx). The result maps points of the fixed frame to the moving frame.
    parameters
        elastix parameter maps, one per stage; each stage starts from the one before.
    fixed_mask
        uint8 or bool zyx array on the fixed grid; samples are drawn where it is not 0.
    initial
        Affine that comes first, or None.
    """

    fixed: Volume
    moving: Volume
    parameters: tuple[ParameterMap, ...]
    fixed_mask: NDArray[np.bool_] | None = None
    initial: Affine | None = None


@dataclass(frozen=True)
class ElastixRun:
    """What elastix found.

    Attributes
    ----------
    transform
        Points of the fixed frame to the moving frame, the initial affine included.
    metrics
        Final metric value of each resolution, in order; NaN where the log has none.
    seconds
        Wall time of the child, start-up included.
    """

    transform: Transform
    metrics: tuple[float, ...]
    seconds: float


def require_elastix() -> None:
    """Say early that elastix is missing.

    Raises
    ------
    DependencyError
        itk-elastix is not installed.
    """
    if importlib.util.find_spec("itk") is None:
        raise _absent()


def _absent() -> DependencyError:
    return DependencyError(
        "registration needs elastix, which is not installed",
        hint="pip install 'clemreg-toolkit[register]'",
    )


def run_elastix(
    job: ElastixJob,
    work_dir: Path,
    *,
    threads: int = 0,
    timeout_s: float = 3600.0,
    worker: ElastixWorker | None = None,
) -> ElastixRun:
    """Register in a child process.

    Parameters
    ----------
    job
        Images, masks and parameter maps.
    work_dir
        Empty or new folder for the child's inputs, its log and ``TransformParameters.*.txt``.
    threads
        ITK threads; 0 means all cores. Results are identical for the same number of threads.
    timeout_s
        After this the child is ended.
    worker
        Has loaded ITK for earlier jobs; None starts one for this job alone. The result is the same.

    Raises
    ------
    ConfigError
        A parameter key is misspelt.
    DataError
        An image or mask cannot be registered (NaN, empty, a single slice).
    DependencyError
        itk-elastix is not installed.
    RegistrationError
        elastix failed, crashed or took too long; the text holds its own reason.
    """
    _write_job(job, work_dir)
    started = time.monotonic()
    with ExitStack() as stack:
        used = worker or stack.enter_context(ElastixWorker())
        code, stderr = used.run(work_dir, threads or os.cpu_count() or 1, timeout_s)
    seconds = time.monotonic() - started
    if code != 0:
        raise _failure(work_dir, code, stderr)
    files = sorted(
        work_dir.glob("TransformParameters.*.txt"), key=lambda path: int(path.name.split(".")[1])
    )
    if not files:
        raise RegistrationError(f"elastix ended without a result, see {work_dir / _LOG}")
    source, target = job.fixed.grid.frame, job.moving.grid.frame
    transform = read_elastix(files[-1], source=source, target=target)
    return ElastixRun(transform, read_metrics(work_dir / _LOG), seconds)


def read_metrics(log_file: Path) -> tuple[float, ...]:
    """Read the final metric value of each resolution from an elastix log, in order."""
    if not log_file.is_file():
        return ()
    text = log_file.read_text(encoding="utf-8", errors="replace")
    values = re.findall(r"Final metric value\s*=\s*(\S+)", text)
    return tuple(_float(v) for v in values)


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _write_job(job: ElastixJob, work_dir: Path) -> None:
    for parameters in job.parameters:
        check_parameters(parameters)
    if not job.parameters:
        raise ConfigError("elastix needs at least one parameter map")
    work_dir.mkdir(parents=True, exist_ok=True)
    for old in work_dir.glob("TransformParameters.*.txt"):
        old.unlink()
    document: dict[str, Any] = {
        "fixed": _write_image(job.fixed, work_dir / "fixed.npy"),
        "moving": _write_image(job.moving, work_dir / "moving.npy"),
        "fixed_mask": None,
        "parameters": [
            {k: [str(v) for v in values] for k, values in m.items()} for m in job.parameters
        ],
        "initial": None if job.initial is None else _affine_map(job.initial, job.fixed.grid),
    }
    if job.fixed_mask is not None:
        document["fixed_mask"] = _write_mask(job.fixed_mask, job.fixed.grid, work_dir)
    (work_dir / _JOB).write_text(json.dumps(document), encoding="utf-8")


def _write_image(volume: Volume, path: Path) -> dict[str, Any]:
    array = np.ascontiguousarray(volume.read(), dtype=np.float32)
    name = volume.name or path.stem
    if array.ndim != 3 or min(array.shape) < 4:
        raise DataError(
            f"{name}: shape {array.shape} cannot be registered in 3-D, each axis needs 4 voxels",
            hint="give a stack, not one slice; check that the axes were read as z, y, x",
        )
    if not np.isfinite(array).all():
        raise DataError(f"{name} holds NaN or infinity", hint="replace them before registering")
    if np.ptp(array) == 0:
        raise DataError(f"{name} is the same value everywhere", hint="is it the right channel?")
    np.save(path, array)
    return _geometry(volume.grid) | {"file": path.name}


def _write_mask(mask: NDArray[np.bool_], grid: Grid, work_dir: Path) -> dict[str, Any]:
    if mask.shape != grid.shape:
        raise GridError(f"mask of shape {mask.shape} does not fit the fixed image {grid.shape}")
    if not mask.any():
        raise DataError(
            "the fixed mask is empty: no voxel of the LM lies inside the EM volume",
            hint="check voxel sizes and the start pose",
        )
    np.save(work_dir / "fixed_mask.npy", np.ascontiguousarray(mask, dtype=np.uint8))
    return _geometry(grid) | {"file": "fixed_mask.npy"}


def _geometry(grid: Grid) -> dict[str, Any]:
    return {
        "spacing_um": [float(v) for v in flip(grid.spacing_nm) / NM_PER_UM],
        "origin_um": [float(v) for v in flip(grid.origin_nm) / NM_PER_UM],
    }


def _affine_map(affine: Affine, grid: Grid) -> dict[str, list[str]]:
    """Write the affine as an elastix transform parameter map, xyz, um, about the origin."""
    numbers = [*flip_matrix(affine.linear).ravel(), *(flip(affine.offset_nm) / NM_PER_UM)]
    spacing, origin = _geometry(grid)["spacing_um"], _geometry(grid)["origin_um"]
    return {
        "Transform": ["AffineTransform"],
        "NumberOfParameters": ["12"],
        "TransformParameters": [repr(float(v)) for v in numbers],
        "CenterOfRotationPoint": ["0", "0", "0"],
        "InitialTransformParameterFileName": ["NoInitialTransform"],
        "HowToCombineTransforms": ["Compose"],
        "FixedImageDimension": ["3"],
        "MovingImageDimension": ["3"],
        "FixedInternalImagePixelType": ["float"],
        "MovingInternalImagePixelType": ["float"],
        "Size": [str(n) for n in grid.shape[::-1]],
        "Index": ["0", "0", "0"],
        "Spacing": [repr(v) for v in spacing],
        "Origin": [repr(v) for v in origin],
        "Direction": ["1", "0", "0", "0", "1", "0", "0", "0", "1"],
        "UseDirectionCosines": ["true"],
        "ResampleInterpolator": ["FinalLinearInterpolator"],
        "Resampler": ["DefaultResampler"],
        "DefaultPixelValue": ["0"],
    }


def _failure(work_dir: Path, code: int, stderr: str) -> Exception:
    if code == _NO_ITK:
        return _absent()
    log_file = work_dir / _LOG
    if code < 0:
        name = signal.Signals(-code).name
        return RegistrationError(
            f"elastix was ended by {name} (out of memory, a crash, or killed)",
            hint="try fewer threads; if memory ran out, use a larger voxel size",
        )
    text = log_file.read_text(encoding="utf-8", errors="replace") if log_file.is_file() else ""
    for pattern, meaning, hint in _REASONS:
        match = re.search(pattern, text + stderr, re.IGNORECASE)
        if match:
            found = match.group(0).strip()
            return RegistrationError(f"{meaning} (elastix: {found})", hint=hint)
    lines = [s for s in text.splitlines() if re.search(r"error|description", s, re.IGNORECASE)]
    reason = " ".join(s.strip() for s in lines[:6]) or stderr.strip()[-400:] or f"exit code {code}"
    last = " | ".join([line.strip() for line in text.splitlines() if line.strip()][-4:])
    return RegistrationError(f"elastix failed: {reason}", hint=f"its log ends with: {last}")


# ---- in the child ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Itk:
    """The four things of ITK that a registration needs."""

    registration: Any
    parameter_object: Any
    float_buffer: Any
    byte_buffer: Any


def _load_itk() -> _Itk:
    """Load only the wrappers that elastix itself needs: about 1 s instead of 10 s.

    ``itk.ElastixRegistrationMethod`` would first load every ITK module that elastix's list of
    dependencies names (smoothing, convolution, image intensity: 7 s of dynamic linking), and torch
    if it is installed. The wrapper's own Python module imports what it really uses.
    """
    import itkConfig

    itkConfig.DefaultFactoryLoading = False
    import itk.support.helpers as helpers

    helpers._HAVE_TORCH = False  # noqa: SLF001
    helpers._HAVE_XARRAY = False  # noqa: SLF001
    from itk import elxParameterObjectPython, itkElastixRegistrationMethodPython, itkPyBufferPython

    return _Itk(
        itkElastixRegistrationMethodPython.itkElastixRegistrationMethodIF3IF3,
        elxParameterObjectPython.elastixParameterObject,
        itkPyBufferPython.itkPyBufferIF3,
        itkPyBufferPython.itkPyBufferIUC3,
    )


def _load_itk_slowly() -> _Itk:
    """Load ITK the documented way, where its inner modules are named otherwise."""
    import itk

    image, byte = itk.Image[itk.F, 3], itk.Image[itk.UC, 3]
    return _Itk(
        itk.ElastixRegistrationMethod[image, image],
        itk.ParameterObject,
        itk.PyBuffer[image],
        itk.PyBuffer[byte],
    )


def _child_image(folder: Path, info: Mapping[str, Any], buffer: Any) -> tuple[Any, Any]:
    """ITK image and the array that holds its pixels, which must stay alive as long as the image."""
    array = np.load(folder / info["file"], allow_pickle=False)
    image = buffer._GetImageViewFromArray(array, list(array.shape[::-1]), 1)  # noqa: SLF001
    image.SetSpacing(info["spacing_um"])
    image.SetOrigin(info["origin_um"])
    return image, array


def _register_in_child(itk: _Itk, folder: Path) -> None:
    job = json.loads((folder / _JOB).read_text(encoding="utf-8"))
    fixed, fixed_array = _child_image(folder, job["fixed"], itk.float_buffer)
    moving, moving_array = _child_image(folder, job["moving"], itk.float_buffer)
    keep = [fixed_array, moving_array]
    method = itk.registration.New()
    method.SetFixedImage(fixed)
    method.SetMovingImage(moving)
    if job["fixed_mask"] is not None:
        mask, mask_array = _child_image(folder, job["fixed_mask"], itk.byte_buffer)
        keep.append(mask_array)
        method.SetFixedMask(mask)
    if job["initial"] is not None:
        initial = itk.parameter_object.New()
        initial.AddParameterMap(job["initial"])
        method.SetInitialTransformParameterObject(initial)
    parameters = itk.parameter_object.New()
    for one in job["parameters"]:
        parameters.AddParameterMap(one)
    method.SetParameterObject(parameters)
    method.SetLogToConsole(False)
    method.SetLogToFile(True)
    method.SetOutputDirectory(str(folder))
    method.SetLogFileName(_LOG)
    method.Update()
    result = method.GetTransformParameterObject()
    maps = [dict(result.GetParameterMap(i)) for i in range(result.GetNumberOfParameterMaps())]
    _write_maps(folder, maps)
    del keep


def _write_maps(folder: Path, maps: Sequence[Mapping[str, Sequence[str]]]) -> None:
    for index, one in enumerate(maps):
        values = dict(one)
        name = "NoInitialTransform" if index == 0 else f"TransformParameters.{index - 1}.txt"
        values["InitialTransformParameterFileName"] = (name,)
        lines = [f"({key} {' '.join(_quote(v) for v in values[key])})" for key in sorted(values)]
        text = "\n".join(lines) + "\n"
        (folder / f"TransformParameters.{index}.txt").write_text(text, encoding="utf-8")


def _quote(value: str) -> str:
    try:
        float(value)
    except ValueError:
        return f'"{value}"'
    return value


def _die_with_parent(parent: int) -> None:
    """On Linux, end when the parent is killed, so that no registration runs on without an owner.

    A parent that was killed before this was asked for sends no signal; then it is not `parent`
    that this process belongs to any more.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _has_one_thread() -> bool:
    """Whether a fork copies all of this process; unknown, so False, where there is no ``/proc``."""
    return len(list(Path("/proc/self/task").glob("*"))) == 1


def _do(itk: _Itk, folder: Path, threads: int) -> int:
    """Do the job in `folder`; the exit code says how it went."""
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)
    try:
        _register_in_child(itk, folder)
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def main(parent: int) -> int:
    """Load ITK, then do jobs for the process `parent`; return an exit code.

    A line of stdin is the folder of a job and its threads. A fork of this process does it, and its
    exit code is written to stdout. Where a fork is not safe (macOS, Windows, or if something has
    started a thread) this process does one job itself, and ends with that code.
    """
    _die_with_parent(parent)
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what ITK prints is no answer
    try:
        import itk  # noqa: F401
    except ImportError:
        return _NO_ITK
    try:
        loaded = _load_itk()
    except (ImportError, AttributeError):
        loaded = _load_itk_slowly()
    server = os.getpid()
    for line in sys.stdin:
        folder, threads = json.loads(line)
        if not _has_one_thread():
            return _do(loaded, Path(folder), threads)
        if os.fork() == 0:
            _die_with_parent(server)
            return _do(loaded, Path(folder), threads)
        _, status = os.wait()
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    # Leave without running ITK's destructors: they can crash after a good result.
    code = main(int(sys.argv[1]))
    sys.stderr.flush()
    os._exit(code)
