"""What a registration may be told besides its two images: channels, masks, landmarks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from clemreg.errors import DataError, RegistrationError
from clemreg.register.matching import Channel, Masks
from clemreg.register.orientation import Orientation
from clemreg.space.fits import fit_affine, fit_rigid
from clemreg.space.grid import Grid
from clemreg.space.landmarks import Landmarks
from clemreg.space.tps import ThinPlateSpline
from clemreg.space.transform import Affine, FloatArray, Transform
from clemreg.volume import Volume

LandmarkUse = Literal["start", "metric", "correction"]
LANDMARK_USES: tuple[LandmarkUse, ...] = ("start", "metric", "correction")
_WRONG_MARKS = (
    "check the unit and the columns of the landmarks, and whether they were clicked in a crop "
    "(--fixed-offset)"
)
_AFFINE_FROM = 10
_NO_PEOPLE = ("auto", "truth")  # raters of published results and of simulated data
_THIN = 0.1
"""Thickness over breadth below which landmarks are a sheet."""
_FAR_NM = 1000.0
"""Tissue bends by less: 350 nm on average in the published registration of a whole cell."""
_ODD = 5.0
"""Distance over the median distance, from which a click is probably a mistake."""
_ODD_NM = 300.0
_ODD_FROM = 5


@dataclass(frozen=True, eq=False)
class Guides:
    """Further channels, masks, and landmarks with their use.

    Attributes
    ----------
    channels
        Besides the first: more structures seen by both microscopes, with weights.
    masks
        Where the images can be trusted.
    landmarks
        Pairs that may be fitted; they say nothing about accuracy afterwards. The mean over the
        people is taken; rows of the raters "Auto" and "truth" only if there are no others.
    uses
        ``"start"``: start pose instead of the search (3 or more); ``"metric"``: they pull on the
        deformation; ``"correction"``: a thin-plate spline at the end brings them together exactly.
    pose
        Start pose that is known already; then nothing is searched.

    Raises
    ------
    DataError
        Too few landmarks for their use.
    """

    channels: tuple[Channel, ...] = ()
    masks: Masks = field(default_factory=Masks)
    landmarks: Landmarks | None = None
    uses: tuple[LandmarkUse, ...] = ()
    pose: Orientation | None = None

    def __post_init__(self) -> None:
        if not self.uses:
            return
        found = 0 if self.landmarks is None else len(set(self.landmarks.usable.names))
        least = 4 if "correction" in self.uses else 3 if "start" in self.uses else 1
        if found < least:
            raise DataError(
                f"{found} landmarks are too few for {', '.join(self.uses)}",
                hint=f"give {least} or more with both sides set",
            )

    @property
    def fitted(self) -> Landmarks | None:
        """Landmarks that are used for anything."""
        return self._for(self.uses[0]) if self.uses else None

    @property
    def start(self) -> Landmarks | None:
        """Landmarks that give the start pose."""
        return self._for("start")

    @property
    def metric(self) -> Landmarks | None:
        """Landmarks that pull on the deformation."""
        return self._for("metric")

    @property
    def correction(self) -> Landmarks | None:
        """Landmarks that the end result passes through."""
        return self._for("correction")

    def _for(self, use: LandmarkUse) -> Landmarks | None:
        if use not in self.uses or self.landmarks is None:
            return None
        return _mean_over_raters(_of_people(self.landmarks.usable))


def start_from_landmarks(fixed: Volume, moving: Volume, landmarks: Landmarks) -> Orientation:
    """Start pose from pairs of points: rigid, or affine from 10 pairs on.

    Landmarks in a thin sheet say how it is stretched, but not how it is along its normal: there the
    rotation alone is taken. Nothing was searched, so there is no score and no runner-up.

    Raises
    ------
    DataError
        The points lie on a line.
    """
    lm_nm, em_nm = landmarks.lm_nm, landmarks.em_nm
    frames = (fixed.grid.frame, moving.grid.frame)
    affine = fit_rigid(lm_nm, em_nm, *frames)
    if len(lm_nm) >= _AFFINE_FROM:
        affine = fit_affine(*_thickened(lm_nm, em_nm, affine), *frames)
    return Orientation(affine, math.nan, math.nan, math.nan, affine.is_mirrored, math.nan)


def _thickened(
    lm_nm: FloatArray, em_nm: FloatArray, rigid: Affine
) -> tuple[FloatArray, FloatArray]:
    """Put copies above and below the landmarks of a sheet, where a rotation has them."""
    _, spread, axes = np.linalg.svd(lm_nm - lm_nm.mean(axis=0))
    if spread[2] >= _THIN * spread[0]:
        return lm_nm, em_nm
    up = axes[2] * spread[0] / np.sqrt(len(lm_nm))
    there = rigid.linear @ up
    return (
        np.concatenate([lm_nm, lm_nm + up, lm_nm - up]),
        np.concatenate([em_nm, em_nm + there, em_nm - there]),
    )


def require_overlap(affine: Affine, lm: Grid, em: Grid) -> None:
    """Refuse a start pose of landmarks in which nothing overlaps.

    Raises
    ------
    RegistrationError
        They put the EM beside the light volume.
    """
    places = np.stack(np.meshgrid(*(np.linspace(0, 1, 32),) * 3, indexing="ij"), -1)
    places = lm.corners_nm()[0] + places.reshape(-1, 3) * (lm.corners_nm()[-1] - lm.corners_nm()[0])
    if not em.contains(affine(places)).any():
        raise RegistrationError(
            "the landmarks put the EM beside the light volume: nothing overlaps", hint=_WRONG_MARKS
        )


def landmark_warnings(guides: Guides, affine: Affine, lm: Grid, em: Grid) -> list[str]:
    """Say which fitted landmarks do not belong to these images, or not to the others.

    Parameters
    ----------
    affine
        Affine part of the result, LM to EM, which the images have fitted.
    lm, em
        Grids of the images.
    """
    marks = guides.fitted
    if marks is None:
        return []
    outside = ~lm.contains(marks.lm_nm) | ~em.contains(marks.em_nm)
    if 2 * outside.sum() > len(outside):
        return [
            f"{outside.sum()} of {len(outside)} landmarks to be fitted lie outside the light "
            f"volume or the EM: {_WRONG_MARKS}."
        ]
    gap_nm = np.linalg.norm(affine(marks.lm_nm) - marks.em_nm, axis=1)
    middle = float(np.median(gap_nm))
    if middle > _FAR_NM:
        return [
            f"The images put the landmarks {middle / 1e3:.1f} um (median) from where they were "
            f"clicked. The pose is wrong, or they are: {_WRONG_MARKS}."
        ]
    odd = np.flatnonzero(gap_nm > max(_ODD * middle, _ODD_NM))
    if len(odd) == 0 or len(gap_nm) < _ODD_FROM:
        return []
    named = ", ".join(f"{marks.names[i]!r} ({gap_nm[i]:.0f} nm)" for i in odd)
    return [
        f"Landmarks that do not fit the others and the images: {named}; the median of all is "
        f"{middle:.0f} nm. A mistaken click takes what is around it along: look at it, or leave it "
        "out."
    ]


def corrected(transform: Transform, guides: Guides, em: Grid) -> Transform:
    """Append a thin-plate spline of the EM frame that closes the gap at each landmark.

    The corners of the EM move by the mean gap: a spline through noisy clicks alone goes on as a
    straight line where there are none, and in the corners that is far off.

    Parameters
    ----------
    em
        Grid of the EM.
    """
    landmarks = guides.correction
    if landmarks is None:
        return transform
    there = transform(landmarks.lm_nm)
    if float(np.abs(there - landmarks.em_nm).max()) < 1e-6:
        return transform
    frame = transform.target
    corners = _unmarked(em.corners_nm(), there)
    gap = (landmarks.em_nm - there).mean(axis=0)
    before, after = np.concatenate([there, corners]), [*landmarks.em_nm, *(corners + gap)]
    return transform.then(ThinPlateSpline(before, np.array(after), frame, frame))


def _unmarked(corners: FloatArray, places: FloatArray) -> FloatArray:
    """Corners that no landmark stands on."""
    return corners[[bool((np.abs(places - c).max(axis=1) > 1.0).all()) for c in corners]]


def _of_people(landmarks: Landmarks) -> Landmarks:
    """Leave out what no person clicked, if there are rows of people."""
    people = [i for i, name in enumerate(landmarks.rater) if name.lower() not in _NO_PEOPLE]
    return landmarks.take(people) if people else landmarks


def _mean_over_raters(landmarks: Landmarks) -> Landmarks:
    names = tuple(dict.fromkeys(landmarks.names))
    rows = [[i for i, n in enumerate(landmarks.names) if n == name] for name in names]
    lm_nm = np.stack([landmarks.lm_nm[r].mean(axis=0) for r in rows])
    em_nm = np.stack([landmarks.em_nm[r].mean(axis=0) for r in rows])
    return Landmarks(names, lm_nm, em_nm)
