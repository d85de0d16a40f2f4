"""The pictures of a report, one function each; PNG bytes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.report import canvas
from clemreg.report.canvas import BLUE, GREEN, INK, MAGENTA, ORANGE, SOFT
from clemreg.space.grid import Box, Grid
from clemreg.space.transform import Affine, Transform
from clemreg.volume import Volume

FloatArray = NDArray[np.float64]
Image = NDArray[np.float32]

SLAB_NM = 300.0
RATER_COLOURS = (MAGENTA, BLUE, ORANGE, GREEN)


@dataclass(frozen=True, eq=False)
class Overlay:
    """Two images on one grid, each scaled to 0 .. 1.

    Attributes
    ----------
    lm, em
        (z, y, x) on `grid`.
    grid
        LM grid.
    """

    lm: Image
    em: Image
    grid: Grid


def to_unit(image: NDArray[Any], top_percentile: float = 99.7) -> Image:
    """Scale an image to 0 .. 1 between its median and a high percentile; NaN becomes 0."""
    values = np.asarray(image, dtype=np.float32)
    values = np.where(np.isfinite(values), values, np.float32(0))
    low, high = np.percentile(values, [50.0, top_percentile])
    if high <= low:
        low, high = float(values.min()), float(values.max())
    result: Image = np.clip((values - low) / max(float(high - low), 1e-9), 0, 1).astype(np.float32)
    return result


def to_grey(image: NDArray[Any]) -> Image:
    """Scale an EM image to 0 .. 1 between low and high percentiles; 0, not imaged, stays 0."""
    values = np.asarray(image, dtype=np.float32)
    imaged = values[values != 0]
    low, high = np.percentile(imaged, [1.0, 99.0]) if imaged.size else (0.0, 1.0)
    grey = np.clip((values - low) / max(float(high - low), 1e-9), 0, 1)
    result: Image = np.where(values != 0, grey, 0).astype(np.float32)
    return result


def overlay_figure(before: Overlay, after: Overlay) -> bytes:
    """Draw LM (magenta) and EM (green) before and after, as xy and xz slabs."""
    figure, axes = canvas.planes_above(after.grid, 2)
    for column, (overlay, title) in enumerate(((before, "start pose"), (after, "registered"))):
        for row, axis in enumerate((0, 1)):
            picture = _colours(overlay, axis)
            canvas.show_picture(axes[row][column], picture, overlay.grid, axis)
            _mark_slab(axes[row][column], overlay.grid, across=1 - axis)
            canvas.scale_bar(axes[row][column])
        axes[0][column].set_title(title, fontsize=11, color=INK)
    return canvas.png(figure)


def channel_figure(seen: Overlay) -> bytes:
    """Draw the EM (grey) in the middle xy and xz planes, alone and below a light channel."""
    figure, axes = canvas.planes_above(seen.grid, 2)
    for row, axis in enumerate((0, 1)):
        grey = np.take(seen.em, seen.grid.shape[axis] // 2, axis=axis)
        light = project(seen.lm, seen.grid, axis)
        lit = np.maximum(grey, light)
        pictures = (grey,) * 3, (lit, grey * (1 - light), lit)
        for column, picture in enumerate(pictures):
            canvas.show_picture(axes[row][column], np.stack(picture, axis=-1), seen.grid, axis)
            canvas.scale_bar(axes[row][column])
    for column, title in enumerate(("EM", "EM and light")):
        axes[0][column].set_title(title, fontsize=11, color=INK)
    return canvas.png(figure)


def checkerboard_figure(after: Overlay, tiles: int = 8) -> bytes:
    """Draw squares of LM and EM in turn, and the middle enlarged: edges must run on across them."""
    lm, em = (project(image, after.grid, 0) for image in (after.lm, after.em))
    y, x = np.indices(lm.shape)
    step = max(2, max(lm.shape) // tiles)
    from_lm = ((y // step) + (x // step)) % 2 == 0
    picture = np.zeros((*lm.shape, 3), np.float32)
    picture[..., 0] = picture[..., 2] = np.where(from_lm, lm, 0)
    picture[..., 1] = np.where(from_lm, 0, em)
    height, width = after.grid.extent_nm[1:]
    figure, axes = canvas.new_figure(1, 2, (10, 4.3 * height / width + 0.8))
    for each in axes[0]:
        canvas.show_picture(each, picture, after.grid, 0)
    left, right, bottom, top = canvas.extent_um(after.grid, 0)
    axes[0][1].set_xlim(left + 0.3 * (right - left), left + 0.7 * (right - left))
    axes[0][1].set_ylim(top + 0.7 * (bottom - top), top + 0.3 * (bottom - top))
    for each in axes[0]:
        canvas.scale_bar(each)
    return canvas.png(figure)


def landmark_figure(
    landmarks: Mapping[str, Any],
    errors_nm: FloatArray,
    by_rater: Mapping[str, FloatArray] | None = None,
) -> bytes:
    """Draw every landmark's error, sorted, beside what people differ by; and a histogram.

    Parameters
    ----------
    landmarks
        The ``landmarks`` object of ``report.json``.
    errors_nm
        (N,) against the mean of the people.
    by_rater
        The same against each person.
    """
    figure, axes = canvas.new_figure(1, 2, (10, 3.7), widths=(3, 2))
    line, bars = axes[0]
    curves = dict(by_rater or {})
    label = "against their mean" if curves else "result"
    _sorted_curve(line, errors_nm, label, INK)
    for (name, values), colour in zip(curves.items(), RATER_COLOURS * 9, strict=False):
        _sorted_curve(line, np.asarray(values), f"against {name}", colour)
    line.set_xlabel("share of the landmarks (%)", fontsize=9)
    line.set_ylabel("error in the EM (nm)", fontsize=9)
    bins = min(20, max(5, len(errors_nm) // 2))
    bars.hist(errors_nm, bins=bins, color="#c5cad3", edgecolor="white")
    bars.set_xlabel("error (nm)", fontsize=9)
    bars.set_ylabel("landmarks", fontsize=9)
    top = max(float(np.max(v)) for v in (errors_nm, *curves.values()))
    for value, words, colour, style in _levels(landmarks, 1.5 * top):
        line.axhline(value, color=colour, ls=style, lw=1.3, label=f"{words} {value:.0f} nm")
        bars.axvline(value, color=colour, ls=style, lw=1.3)
    line.set_ylim(bottom=0)
    bars.set_xlim(left=0)
    bars.yaxis.get_major_locator().set_params(integer=True)
    line.legend(fontsize=8, framealpha=0.92, edgecolor="none", loc="upper left").set_zorder(9)
    return canvas.png(figure)


def landmark_map_figure(points: Mapping[str, Any], affine: Affine | None, grid: Grid) -> bytes:
    """Draw where the errors are: each landmark in the LM, coloured by its error.

    Parameters
    ----------
    points
        ``landmarks.points`` of ``report.json``: ``lm_nm`` and ``difference_nm`` (N, 3) zyx, and
        ``error_nm`` (N,).
    affine
        LM to EM; turns the differences into the LM frame for the arrows. None: no arrows. An EM
        point that the transform overshoots by d is shown short of its place by ``affine^-1 d``.
    grid
        What is drawn of the LM.
    """
    where, error = np.asarray(points["lm_nm"]) / 1e3, np.asarray(points["error_nm"])
    figure, axes = canvas.planes_beside(grid)
    for axis in (0, 1):
        row, column = canvas.plane_axes(axis)
        each = axes[axis]
        canvas.frame_axes(each, grid, axis)
        dots = each.scatter(
            where[:, column], where[:, row], c=error, cmap="viridis_r", vmin=0, s=34,
            edgecolors="white", linewidths=0.6, zorder=3,
        )  # fmt: skip
        if affine is not None:
            shown_off = -np.asarray(points["difference_nm"]) @ np.linalg.inv(affine.linear).T
            _arrows(each, where[:, [row, column]], shown_off[:, [row, column]], INK)
        each.grid(color="#e6e9ee", lw=0.6, zorder=0)
        each.set_axisbelow(True)
    canvas.colour_bar(figure, dots, axes, "error in the EM (nm)")
    return canvas.png(figure)


def deformation_figure(transform: Transform, affine: Affine, grid: Grid) -> bytes:
    """Draw what the deformation adds to the affine, in the middle xy and xz planes.

    The displacement is ``affine^-1(transform(x)) - x``, in the LM frame, so that arrows and the
    bent lattice fit the axes whatever the rotation between LM and EM.
    """
    figure, axes = canvas.planes_beside(grid)
    planes = [_displaced_plane(transform, affine, grid, axis) for axis in (0, 1)]
    top = max(float(np.linalg.norm(moved, axis=-1).max()) for _, moved in planes)
    times = 1.0
    for axis, (points, moved) in enumerate(planes):
        row, column = canvas.plane_axes(axis)
        each = axes[axis]
        at, shift = points[..., [row, column]] / 1e3, moved[..., [row, column]] / 1e3
        mesh = each.pcolormesh(
            at[..., 1], at[..., 0], np.linalg.norm(moved, axis=-1), cmap="viridis",
            shading="gouraud", vmin=0, vmax=max(top, 1e-3),
        )  # fmt: skip
        if axis == 0:
            times = _exaggeration(at, shift)
        _bent_lattice(each, at + times * shift)
        canvas.frame_axes(each, grid, axis)
        canvas.scale_bar(each)
    axes[0].set_title(f"lattice bent {times:g} times as much", fontsize=10, color=INK)
    canvas.colour_bar(figure, mesh, axes, "displacement after the affine (nm)")
    return canvas.png(figure)


def jacobian_figure(
    determinants: FloatArray,
    plane: FloatArray,
    grid: Grid,
    affine_determinant: float = 1.0,
) -> bytes:
    """Draw the determinant after the affine: a plane of it, and histograms of it and before.

    Parameters
    ----------
    determinants
        (N,) of the whole transform; negative where it mirrors.
    plane
        (y, x) in one plane of `grid`, of the whole transform; NaN is left out.
    affine_determinant
        Of the affine that is divided out.
    """
    height, width = grid.extent_nm[1:]
    figure, axes = canvas.new_figure(1, 2, (10, min(7.0, max(3.4, 4.2 * height / width + 0.6))))
    left, right = axes[0]
    plane, after = plane / affine_determinant, determinants / affine_determinant
    spread = max(0.05, float(np.nanpercentile(np.abs(plane - 1), 99.5)))
    image = canvas.show_picture(
        left, plane, grid, 0, cmap="RdBu_r", vmin=1 - spread, vmax=1 + spread
    )
    canvas.scale_bar(left, INK)
    canvas.colour_bar(figure, image, left, "local volume, EM / LM")
    values = [(determinants, "whole transform", "#b9c0cc"), (after, "after the affine", INK)]
    bins = np.linspace(*_range([v for v, *_ in values]), 81)
    for data, words, colour in values:
        right.hist(data, bins=bins, color=colour, alpha=0.85, label=words, histtype="stepfilled")
    right.axvline(1, color=SOFT, lw=1)
    if bins[0] <= 0:
        right.axvline(0, color="#b3261e", lw=1.5, ls="--", label="another sign: fold")
    right.set_yticks([])
    right.set_xlabel("Jacobian determinant", fontsize=9)
    right.set_ylabel("share of the volume", fontsize=9)
    right.legend(fontsize=8, frameon=False)
    return canvas.png(figure)


def stability_figure(transforms: Sequence[Transform], grid: Grid) -> bytes:
    """Draw how far repeated registrations scatter in the middle xy plane, and the histogram."""
    points = _plane_points(grid, 0, 48)
    mapped = np.stack([t(points.reshape(-1, 3)) for t in transforms])
    spread = np.sqrt(mapped.var(axis=0, ddof=1).sum(axis=1)).reshape(points.shape[:2])
    height, width = grid.extent_nm[1:]
    figure, axes = canvas.new_figure(1, 2, (10, min(7.0, max(3.4, 4.2 * height / width + 0.6))))
    left, right = axes[0]
    mesh = left.pcolormesh(
        points[..., 2] / 1e3, points[..., 1] / 1e3, spread, cmap="magma", vmin=0, shading="gouraud"
    )
    canvas.frame_axes(left, grid, 0)
    canvas.scale_bar(left)
    canvas.colour_bar(figure, mesh, left, "spread (nm)")
    right.hist(spread.ravel(), bins=40, color=SOFT)
    right.set_xlim(left=0)
    right.set_xlabel(f"spread of {len(transforms)} registrations (nm)", fontsize=9)
    right.set_yticks([])
    right.set_ylabel("share of the plane", fontsize=9)
    return canvas.png(figure)


def predicted_error_figure(found: Volume, places: Sequence[Mapping[str, float]]) -> bytes:
    """Draw a map of the predicted error along z and along y, and where to add landmarks.

    Parameters
    ----------
    found
        Error in nm (z, y, x); NaN where the EM was not imaged.
    places
        ``stability.suggested_landmarks`` of ``report.json``, numbered in this order.
    """
    values = np.asarray(found.read(), dtype=np.float64)
    known = np.argwhere(np.isfinite(values))
    box = Box(tuple(known.min(axis=0).tolist()), tuple((known.max(axis=0) + 1).tolist()))
    grid, values = found.grid.crop(box), values[box.slices]
    lowest, highest = float(np.nanmin(values)), float(np.nanmax(values))
    figure, axes = canvas.planes_beside(grid)
    for axis in (0, 1):
        largest = np.fmax.reduce(values, axis=axis)
        image = canvas.show_picture(
            axes[axis], largest, grid, axis, cmap="viridis", vmin=lowest, vmax=highest
        )
        row, column = (f"{'zyx'[a]}_um" for a in canvas.plane_axes(axis))
        labels = [(place[column], place[row]) for place in places]
        canvas.scale_bar(axes[axis], INK, labels)
        for number, where in enumerate(labels, start=1):
            axes[axis].annotate(
                str(number), where, ha="center", va="center", fontsize=8,
                color=INK, bbox={"boxstyle": "circle", "fc": "white", "ec": INK, "lw": 0.8},
            )  # fmt: skip
    canvas.colour_bar(figure, image, axes, "predicted error in the EM (nm)")
    return canvas.png(figure)


def project(image: Image, grid: Grid, axis: int, thickness_nm: float = SLAB_NM) -> Image:
    """Take the largest value along `axis` through a slab in the middle of the volume.

    A projection of the whole depth would lay too many mitochondria over each other.
    """
    first, stop = _slab(grid, axis, thickness_nm)
    return np.asarray(np.take(image, range(first, stop), axis=axis).max(axis=axis))


def _slab(grid: Grid, axis: int, thickness_nm: float = SLAB_NM) -> tuple[int, int]:
    """Return first and last + 1 voxel of the slab."""
    count = min(grid.shape[axis], max(1, round(thickness_nm / grid.spacing_nm[axis])))
    first = (grid.shape[axis] - count) // 2
    return first, first + count


def _colours(overlay: Overlay, axis: int) -> Image:
    lm, em = (project(image, overlay.grid, axis) for image in (overlay.lm, overlay.em))
    return np.stack([lm, em, lm], axis=-1)


def _mark_slab(axes: Any, grid: Grid, across: int) -> None:
    """Tick the borders, left and right, where the slab of the other view is cut."""
    low = grid.origin_nm[across] - grid.spacing_nm[across] / 2
    for voxel in _slab(grid, across):
        level = (low + voxel * grid.spacing_nm[across]) / 1e3
        for start, stop in ((0.0, 0.03), (0.97, 1.0)):
            axes.axhline(level, start, stop, color="white", lw=1)


def _sorted_curve(axes: Any, values: FloatArray, label: str, colour: str) -> None:
    share = 100 * (np.arange(len(values)) + 1) / len(values)
    label = canvas.plain_text(label)
    axes.plot(share, np.sort(values), "o-", color=colour, ms=2.5, lw=1.2, label=label)


def _levels(landmarks: Mapping[str, Any], highest: float) -> Iterator[tuple[float, str, str, str]]:
    """Medians to compare with: value, words, colour, line style."""
    people = (landmarks.get("between_raters") or {}).get("median_nm")
    affine = (landmarks.get("affine_only") or {}).get("median_nm")
    if people is not None:
        yield people, "person to person, median", GREEN, "--"
    if affine is not None and affine < highest:
        yield affine, "affine alone, median", ORANGE, ":"
    yield landmarks["median_nm"], "result, median", INK, "-"


def _plane_points(grid: Grid, axis: int, count: int) -> FloatArray:
    """Points (rows, columns, 3) zyx nm of a lattice over the middle plane across `axis`."""
    row, column = canvas.plane_axes(axis)
    low = np.asarray(grid.origin_nm) - np.asarray(grid.spacing_nm) / 2
    extent = grid.extent_nm
    step = max(float(extent[row]), float(extent[column])) / count
    lines = [np.linspace(0, extent[a], max(2, round(extent[a] / step) + 1)) for a in (row, column)]
    points = np.empty((len(lines[0]), len(lines[1]), 3))
    points[...] = grid.centre_nm
    points[..., row] = low[row] + lines[0][:, None]
    points[..., column] = low[column] + lines[1][None, :]
    return points


def _displaced_plane(
    transform: Transform, affine: Affine, grid: Grid, axis: int
) -> tuple[FloatArray, FloatArray]:
    """Points of a plane and what moves them after the affine, both (rows, columns, 3) zyx nm."""
    points = _plane_points(grid, axis, 96)
    flat = points.reshape(-1, 3)
    moved = affine.inverse()(transform(flat)) - flat
    return points, moved.reshape(points.shape)


def _exaggeration(at: FloatArray, shift: FloatArray) -> float:
    """Return a round factor by which the largest shift spans most of a lattice cell."""
    cell = max(np.ptp(at[..., 0]), np.ptp(at[..., 1])) / 20
    largest = float(np.linalg.norm(shift, axis=-1).max())
    return canvas.round_length(min(100.0, 1.2 * cell / largest)) if largest > 0 else 1.0


def _bent_lattice(axes: Any, at: FloatArray, step: int = 5) -> None:
    """Draw every `step`-th row and column of (rows, columns, 2) positions (down, right)."""
    for line in (*at[::step], *at[:, ::step].transpose(1, 0, 2)):
        axes.plot(line[:, 1], line[:, 0], color="white", lw=0.7, alpha=0.75)


def _arrows(axes: Any, at_um: FloatArray, shift_nm: FloatArray, colour: str) -> None:
    """Draw arrows (N, 2) (down, right) whose longest spans a twelfth of the picture."""
    left, right = axes.get_xlim()
    longest = float(np.linalg.norm(shift_nm, axis=1).max())
    if longest > 0:
        length = shift_nm * ((right - left) / 12 / longest)
        axes.quiver(
            at_um[:, 1], at_um[:, 0], length[:, 1], length[:, 0], angles="xy", scale_units="xy",
            scale=1, color=colour, width=0.003, zorder=2,
        )  # fmt: skip


def _range(values: Sequence[FloatArray]) -> tuple[float, float]:
    """Histogram range: all values and 1, with a margin."""
    low = min(1.0, *(float(v.min()) for v in values))
    high = max(1.0, *(float(v.max()) for v in values))
    margin = 0.05 * max(high - low, 0.1)
    return low - margin, high + margin
