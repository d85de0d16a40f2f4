"""The parameter keys that elastix knows; it takes a misspelt key without a word."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from clemreg.errors import ConfigError

_TEXT = """
Registration FixedImageDimension MovingImageDimension FixedInternalImagePixelType
MovingInternalImagePixelType UseDirectionCosines Interpolator ResampleInterpolator Resampler
FixedImagePyramid MovingImagePyramid Optimizer Transform Metric ImageSampler
AutomaticTransformInitialization AutomaticTransformInitializationMethod
AutomaticScalesEstimation Scales HowToCombineTransforms NumberOfResolutions
ImagePyramidSchedule FixedImagePyramidSchedule MovingImagePyramidSchedule
ImagePyramidRescaleSchedule FixedImagePyramidRescaleSchedule MovingImagePyramidRescaleSchedule
ImagePyramidSmoothingSchedule FixedImagePyramidSmoothingSchedule
MovingImagePyramidSmoothingSchedule ImagePyramidUseShrinkImageFilter
MaximumNumberOfIterations MaximumStepLength MinimumStepLength NumberOfSpatialSamples
NewSamplesEveryIteration CheckNumberOfSamples MaximumNumberOfSamplingAttempts
RequiredRatioOfValidSamples UseRandomSampleRegion SampleRegionSize
FixedImageBSplineInterpolationOrder BSplineInterpolationOrder FinalBSplineInterpolationOrder
FinalGridSpacingInVoxels FinalGridSpacingInPhysicalUnits GridSpacingSchedule
BSplineTransformSplineOrder PassiveEdgeWidth UseCyclicTransform
ErodeMask ErodeFixedMask ErodeMovingMask DefaultPixelValue
WriteResultImage WriteResultImageAfterEachResolution WriteResultImageAfterEachIteration
ResultImageFormat ResultImagePixelType CompressResultImage
WriteTransformParametersEachIteration WriteTransformParametersEachResolution
WriteIterationInfo RandomSeed ShowExactMetricValue ExactMetricSampleGridSpacing
ExactMetricEveryXIterations NumberOfHistogramBins NumberOfFixedHistogramBins
NumberOfMovingHistogramBins FixedKernelBSplineOrder MovingKernelBSplineOrder
FixedLimitRangeRatio MovingLimitRangeRatio UseFastAndLowMemoryVersion
UseNormalization SubtractMean UseMultiThreadingForMetrics UseRelativeWeights
Use0thElement UseAllPixels NumberOfThreads MaximumDeformation
SP_a SP_A SP_alpha SigmoidMax SigmoidMin SigmoidScale SigmoidInitialTime
NumberOfGradientMeasurements NumberOfJacobianMeasurements NumberOfSamplesForExactGradient
NumberOfBandStructureSamples UseAdaptiveStepSizes AutomaticParameterEstimation
UseConstantStep StepLength ASGDParameterEstimationMethod MaximumDisplacementEstimationMethod
NoiseCompensation NoiseFactor LBFGSMemory LBFGSUpdateAccuracy StopIfWolfeNotSatisfied
GenerateLineSearchIterations MaximumNumberOfLineSearchIterations LineSearchValueTolerance
LineSearchGradientTolerance GradientMagnitudeTolerance ValueTolerance WolfeParameterSigma
MaximumNumberOfSamples TransformRigidityPenalty SampleGridSpacing Order
LinearityConditionWeight OrthonormalityConditionWeight PropernessConditionWeight
Direction_0 CenterOfRotation CenterOfRotationPoint ComputeZYX RelaxationFactor
GradientMagnitudeToleranceCG InitialTransformParametersFileName InitialTransformParameterFileName
Origin Spacing Size Index FixedImageDerivativeScales MovingImageDerivativeScales
CheckNumberOfIterations SelfHessianSmoothingSigma SelfHessianNoiseRange
MinimumGradientElementMagnitude
UseJacobianPreconditioning FiniteDifferenceDerivative CalculateNumericalDerivative
FixedImageFileNameExtension DistancePreservationRigidityPenalty TangentPlane
NumericSamplesPerIteration KNearestNeighbours Alpha AvoidDivisionBy ErrorBound TreeType BucketSize
SplittingRule ShrinkingRule TreeSearchType SquaredSearchRadius UseCorrespondingPoints
CenterOfGravityUsesLowerThreshold LowerThresholdForCenterGravity
NumberOfSamplesForCenteredTransformInitialization ComputePyramidImagesPerResolution
ITKTransformOutputFileNameExtension MaximumStepLengthRatio MaxBandCovSize NumberOfPerturbations
NumberOfSamplesForNoiseCompensationFactor NumberOfSamplesForPrecondition NumberOfSubTransforms
StackOrigin StackSpacing StepSizeStrategy UseCovarianceMatrixAdaptation UseDecayingSigma
PopulationSize PositionToleranceMax PositionToleranceMin RecombinationWeightsPreset UpdateBDPeriod
FullSearchSpace ShowMetricValues ShowProgressPercentage WriteOptimizationSurfaceEachResolution
"""
_INDEXED = ("Metric", "ImageSampler", "Interpolator")
_SUFFIXES = ("Weight", "Use", "RelativeWeight")
KNOWN_KEYS = frozenset(_TEXT.split())


def check_parameters(parameters: Mapping[str, Sequence[str]]) -> None:
    """Refuse keys that elastix does not know.

    Raises
    ------
    ConfigError
        A key is unknown; the hint names the nearest known one. Or they are what elastix wrote, or
        transforms would be added instead of composed.
    """
    if "TransformParameters" in parameters:
        raise ConfigError(
            "this is a transform that elastix has found, not the parameters to find one",
            hint="give the file that elastix was given by -p",
        )
    how = parameters.get("HowToCombineTransforms", ("Compose",))
    if tuple(how) != ("Compose",):
        raise ConfigError(
            f"HowToCombineTransforms is {' '.join(how)}, and what that gives cannot be used",
            hint='give (HowToCombineTransforms "Compose"), or leave it out',
        )
    for key in parameters:
        if key in KNOWN_KEYS or _is_indexed(key):
            continue
        near = difflib.get_close_matches(key, KNOWN_KEYS, n=1)
        raise ConfigError(
            f"elastix has no parameter {key!r}",
            hint=f"did you mean {near[0]!r}?" if near else "see the elastix manual",
        )


def _is_indexed(key: str) -> bool:
    """Tell whether it is a key such as Metric1Weight."""
    for stem in _INDEXED:
        if key.startswith(stem):
            rest = key[len(stem) :].lstrip("0123456789")
            return rest in _SUFFIXES and key[len(stem) : len(key) - len(rest)].isdigit()
    return False
