"""What elastix is asked to do: options of the affine and the B-spline stage, as parameter maps.

Lengths are in micrometres, the unit in which elastix gets its images. The metric is normalised
correlation: both images are bright where the mitochondrial membrane is (Heinrich et al. 2021 use
the same metric).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clemreg.errors import ConfigError

ParameterMap = dict[str, tuple[str, ...]]
PRESETS = ("heinrich2021",)


@dataclass(frozen=True)
class AffineStage:
    """Twelve degrees of freedom, coarse to fine.

    Parameters
    ----------
    shrink
        Pyramid: the smoothing factor of each resolution, coarsest first, in LM voxels (see
        `pyramid_schedule` for how axes of different voxel size are treated).
    iterations
        Optimiser steps of each resolution.
    samples
        Random positions per step, drawn anew each step.
    max_step_um
        Largest move per step in um; None lets elastix take the mean voxel size.
    """

    shrink: tuple[int, ...] = (4, 2, 1)
    iterations: tuple[int, ...] = (500, 500, 500)
    samples: int = 4000
    max_step_um: float | None = 0.1

    def __post_init__(self) -> None:
        _check_levels(self.shrink, self.iterations)


@dataclass(frozen=True)
class BSplineStage:
    """A cubic B-spline deformation, coarse to fine.

    Parameters
    ----------
    grid_spacing_um
        Control point spacing zyx at the finest resolution. One tube of membrane should span no more
        than a few control points: finer grids follow noise.
    grid_schedule
        Factor on `grid_spacing_um` at each resolution, coarsest first.
    shrink, iterations, samples, max_step_um
        As for `AffineStage`.
    bending_weight
        Weight of the bending energy (um); 0 leaves it out.
    """

    grid_spacing_um: tuple[float, float, float] = (1.6, 1.6, 1.6)
    grid_schedule: tuple[float, ...] = (2.0, 1.0, 1.0)
    shrink: tuple[int, ...] = (4, 2, 1)
    iterations: tuple[int, ...] = (400, 400, 400)
    samples: int = 4000
    max_step_um: float | None = 0.1
    bending_weight: float = 0.0

    def __post_init__(self) -> None:
        _check_levels(self.shrink, self.iterations)
        _check_levels(self.shrink, self.grid_schedule)
        if min(self.grid_spacing_um) <= 0:
            raise ConfigError(f"control point spacing must be positive, got {self.grid_spacing_um}")


def affine_parameters(stage: AffineStage, spacing_nm: Sequence[float], seed: int) -> ParameterMap:
    """Parameter map of an affine stage, for a fixed image of that voxel size (zyx, nm)."""
    return {
        **_common(stage, spacing_nm, seed),
        "Metric": ("AdvancedNormalizedCorrelation",),
        "Transform": ("AffineTransform",),
        "AutomaticTransformInitialization": ("false",),
        "AutomaticScalesEstimation": ("true",),
    }


def bspline_parameters(stage: BSplineStage, spacing_nm: Sequence[float], seed: int) -> ParameterMap:
    """Parameter map of a B-spline stage, for a fixed image of that voxel size (zyx, nm)."""
    parameters = {
        **_common(stage, spacing_nm, seed),
        "Metric": ("AdvancedNormalizedCorrelation",),
        "Transform": ("BSplineTransform",),
        "FinalGridSpacingInPhysicalUnits": _texts(stage.grid_spacing_um[::-1]),
        "GridSpacingSchedule": _texts([f for f in stage.grid_schedule for _ in range(3)]),
    }
    if stage.bending_weight > 0:
        parameters |= {
            "Registration": ("MultiMetricMultiResolutionRegistration",),
            "Metric": ("AdvancedNormalizedCorrelation", "TransformBendingEnergyPenalty"),
            "Metric0Weight": ("1.0",),
            "Metric1Weight": _texts([stage.bending_weight]),
        }
    return parameters


def preset_parameters(name: str) -> tuple[ParameterMap, ...]:
    """Parameter maps of a published registration.

    ``heinrich2021``: the two maps with which the COS-7 cell was registered to PALM (Heinrich et
    al., Nature 2021; `cosem-lm-em-registration`, ``COS7_20190930``), but that the affine starts
    from the searched pose and not from the centres of gravity.

    Raises
    ------
    ConfigError
        There is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}", hint=f"there are: {', '.join(PRESETS)}")
    common: ParameterMap = {
        "Registration": ("MultiResolutionRegistration",),
        "FixedImageDimension": ("3",),
        "MovingImageDimension": ("3",),
        "FixedInternalImagePixelType": ("float",),
        "MovingInternalImagePixelType": ("float",),
        "UseDirectionCosines": ("true",),
        "FixedImagePyramid": ("FixedRecursiveImagePyramid",),
        "MovingImagePyramid": ("MovingRecursiveImagePyramid",),
        "Interpolator": ("BSplineInterpolator",),
        "BSplineInterpolationOrder": ("1",),
        "ResampleInterpolator": ("FinalBSplineInterpolator",),
        "FinalBSplineInterpolationOrder": ("3",),
        "Resampler": ("DefaultResampler",),
        "Metric": ("AdvancedNormalizedCorrelation",),
        "Optimizer": ("AdaptiveStochasticGradientDescent",),
        "HowToCombineTransforms": ("Compose",),
        "ImageSampler": ("Random",),
        "NumberOfSpatialSamples": ("2048",),
        "NewSamplesEveryIteration": ("true",),
        "ErodeMask": ("false",),
        "DefaultPixelValue": ("0",),
        "WriteResultImage": ("false",),
    }
    affine = common | {
        "Transform": ("AffineTransform",),
        "AutomaticTransformInitialization": ("false",),
        "Scales": ("1000.0",),
        "NumberOfResolutions": ("5",),
        "ImagePyramidSchedule": _texts([f for f in (16, 8, 4, 2, 1) for _ in range(3)]),
        "MaximumNumberOfIterations": ("4000", "2000", "1000", "200", "10"),
        "MaximumStepLength": ("0.3",),
    }
    elastic = common | {
        "Transform": ("BSplineTransform",),
        "NumberOfResolutions": ("4",),
        "MaximumNumberOfIterations": ("500",),
        "FinalGridSpacingInVoxels": ("16",),
    }
    return affine, elastic


def pyramid_schedule(shrink: Sequence[int], spacing_nm: Sequence[float]) -> tuple[str, ...]:
    """Elastix pyramid schedule (xyz per resolution) that smooths about equally in nm on every axis.

    An axis whose voxels are twice as large gets half the factor, and at least 1.
    """
    finest = min(spacing_nm)
    factors: list[int] = []
    for level in shrink:
        factors += [max(1, round(level * finest / s)) for s in spacing_nm[::-1]]
    return _texts(factors)


def _common(
    stage: AffineStage | BSplineStage, spacing_nm: Sequence[float], seed: int
) -> ParameterMap:
    parameters: ParameterMap = {
        "Registration": ("MultiResolutionRegistration",),
        "FixedImageDimension": ("3",),
        "MovingImageDimension": ("3",),
        "FixedInternalImagePixelType": ("float",),
        "MovingInternalImagePixelType": ("float",),
        "UseDirectionCosines": ("true",),
        "FixedImagePyramid": ("FixedRecursiveImagePyramid",),
        "MovingImagePyramid": ("MovingRecursiveImagePyramid",),
        "Interpolator": ("LinearInterpolator",),
        "ResampleInterpolator": ("FinalLinearInterpolator",),
        "Resampler": ("DefaultResampler",),
        "Optimizer": ("AdaptiveStochasticGradientDescent",),
        "HowToCombineTransforms": ("Compose",),
        "NumberOfResolutions": (str(len(stage.shrink)),),
        "FixedImagePyramidSchedule": pyramid_schedule(stage.shrink, spacing_nm),
        "MovingImagePyramidSchedule": pyramid_schedule(stage.shrink, spacing_nm),
        "MaximumNumberOfIterations": _texts(stage.iterations),
        "ImageSampler": ("RandomCoordinate",),
        "NumberOfSpatialSamples": (str(stage.samples),),
        "NewSamplesEveryIteration": ("true",),
        "CheckNumberOfSamples": ("true",),
        "RequiredRatioOfValidSamples": ("0.1",),
        "MaximumNumberOfSamplingAttempts": ("8",),
        "ErodeMask": ("false",),
        "DefaultPixelValue": ("0",),
        "WriteResultImage": ("false",),
        "RandomSeed": (str(seed),),
    }
    if stage.max_step_um is not None:
        parameters["MaximumStepLength"] = _texts([stage.max_step_um])
    return parameters


def _texts(values: Sequence[float]) -> tuple[str, ...]:
    return tuple(format(v, ".10g") for v in values)


def _check_levels(shrink: Sequence[int], other: Sequence[float]) -> None:
    if not shrink or len(shrink) != len(other):
        raise ConfigError(
            f"every resolution needs a pyramid factor, iterations and a grid factor: got "
            f"{len(shrink)} and {len(other)}"
        )
    if min(shrink) < 1 or min(other) <= 0:
        raise ConfigError(f"pyramid factors and iterations must be positive: {shrink}, {other}")
