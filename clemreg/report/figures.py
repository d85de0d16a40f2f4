"""The pictures of a report, one function each; PNG bytes out."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.space.grid import Grid
from clemreg.space.transform import Affine, Transform

FloatArray = NDArray[np.float64]
Image = NDArray[np.float32]

SLAB_NM = 300.0
MAGENTA, GREEN, ORANGE, GREY = "#c2185b", "#2e7d32", "#e07b00", "#777777"


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
    """Scale an image to 0 .. 1 between its median and a high percentile."""
    values = np.asarray(image, dtype=np.float32)
    low, high = np.percentile(values, [50.0, top_percentile])
    if high <= low:
        low, high = float(values.min()), float(values.max())
    return np.clip((values - low) / max(float(high - low), 1e-9), 0, 1).astype(np.float32)


def overlay_figure(before: Overlay, after: Overlay) -> bytes:
    """Draw LM (magenta) and EM (green) before and after, as xy and xz slabs."""
    figure, axes = _figure(2, 2, (10, _height(after.grid)), heights=_heights(after.grid))
    for column, (overlay, title) in enumerate(((before, "start pose"), (after, "registered"))):
        for row, axis in enumerate((0, 1)):
            _show(axes[row][column], _colours(overlay, axis), overlay.grid, axis)
        axes[0][column].set_title(title)
    return _png(figure)


def checkerboard_figure(after: Overlay, tiles: int = 8) -> bytes:
    """Draw squares of LM and EM in turn: edges must run on across them."""
    lm, em = (project(image, after.grid, 0) for image in (after.lm, after.em))
    y, x = np.indices(lm.shape)
    step = max(4, max(lm.shape) // tiles)
    from_lm = ((y // step) + (x // step)) % 2 == 0
    picture = np.zeros((*lm.shape, 3), np.float32)
    picture[..., 0] = picture[..., 2] = np.where(from_lm, lm, 0)
    picture[..., 1] = np.where(from_lm, 0, em)
    figure, axes = _figure(1, 1, (6, 6 * lm.shape[0] / lm.shape[1] + 0.4))
    _show(axes[0][0], picture, after.grid, 0)
    return _png(figure)


def landmark_figure(landmarks: Mapping[str, Any], errors_nm: FloatArray) -> bytes:
    """Draw every landmark's error, sorted, beside what people differ by; and a histogram."""
    figure, axes = _figure(1, 2, (10, 3.6))
    line, bars = axes[0]
    ordered = np.sort(errors_nm)
    line.plot(np.arange(1, len(ordered) + 1), ordered, "o-", color=MAGENTA, ms=3, lw=1)
    line.set_xlabel("landmark, by error")
    line.set_ylabel("error in the EM frame (nm)")
    bars.hist(errors_nm, bins=min(20, max(5, len(errors_nm) // 2)), color=MAGENTA, alpha=0.75)
    bars.set_xlabel("error (nm)")
    bars.set_ylabel("landmarks")
    between = (landmarks.get("between_raters") or {}).get("mean_nm")
    levels = [(landmarks["median_nm"], "median", MAGENTA, "-")]
    if between is not None:
        levels.append((between, "person to person, mean", GREEN, "--"))
    affine = (landmarks.get("affine_only") or {}).get("median_nm")
    if affine is not None and affine < 4 * ordered[-1]:
        levels.append((affine, "affine alone, median", ORANGE, ":"))
    for value, label, colour, style in levels:
        line.axhline(value, color=colour, ls=style, lw=1.2, label=f"{label} {value:.0f} nm")
        bars.axvline(value, color=colour, ls=style, lw=1.2)
    line.set_ylim(bottom=0)
    line.legend(fontsize=8, frameon=False)
    return _png(figure)


def deformation_figure(transform: Transform, affine: Affine, grid: Grid) -> bytes:
    """Draw the displacement that is left after the affine part, in the middle plane."""
    z = grid.shape[0] // 2
    step = max(1, max(grid.shape[1:]) // 24)
    rows, columns = np.arange(0, grid.shape[1], step), np.arange(0, grid.shape[2], step)
    index = np.stack(np.meshgrid([z], rows, columns, indexing="ij"), -1).reshape(-1, 3)
    points = grid.to_world(index)
    moved = transform(points) - affine(points)
    size = np.linalg.norm(moved, axis=1).reshape(len(rows), len(columns))
    x, y = points[:, 2].reshape(size.shape) / 1e3, points[:, 1].reshape(size.shape) / 1e3
    figure, axes = _figure(1, 1, (6.5, 5.2))
    mesh = axes[0][0].pcolormesh(x, y, size, cmap="viridis", shading="nearest")
    axes[0][0].quiver(
        x, y, moved[:, 2].reshape(size.shape), moved[:, 1].reshape(size.shape),
        color="white", angles="xy", width=0.003,
    )  # fmt: skip
    figure.colorbar(mesh, ax=axes[0][0], label="displacement after the affine (nm)")
    _label(axes[0][0], "x (um)", "y (um)")
    return _png(figure)


def jacobian_figure(determinants: FloatArray, plane: FloatArray, grid: Grid) -> bytes:
    """Draw the determinant after the affine: a plane of it, and its histogram.

    Parameters
    ----------
    determinants
        (N,) all values.
    plane
        (y, x) values of one plane of `grid`.
    """
    figure, axes = _figure(1, 2, (10, 4))
    left, right = axes[0]
    width = max(0.05, float(np.abs(plane - 1).max()))
    image = left.imshow(
        plane, cmap="RdBu_r", vmin=1 - width, vmax=1 + width, extent=_extent(grid, 0)
    )
    figure.colorbar(image, ax=left, label="local volume, EM / LM")
    _label(left, "x (um)", "y (um)")
    right.hist(determinants, bins=60, color=GREY)
    right.axvline(1, color="black", lw=1)
    right.axvline(0, color="red", lw=1, ls="--")
    right.set_xlabel("determinant after the affine (0 or less: fold)")
    right.set_ylabel("points")
    return _png(figure)


def _colours(overlay: Overlay, axis: int) -> Image:
    lm, em = (project(image, overlay.grid, axis) for image in (overlay.lm, overlay.em))
    return np.stack([lm, em, lm], axis=-1)


def project(image: Image, grid: Grid, axis: int, thickness_nm: float = SLAB_NM) -> Image:
    """Take the largest value along `axis` through a slab in the middle of the volume.

    A projection of the whole depth would lay too many mitochondria over each other.
    """
    count = max(1, round(thickness_nm / grid.spacing_nm[axis]))
    first = max(0, (grid.shape[axis] - count) // 2)
    slab = np.take(image, range(first, min(grid.shape[axis], first + count)), axis=axis)
    return np.asarray(slab.max(axis=axis))


def _extent(grid: Grid, axis: int) -> tuple[float, float, float, float]:
    """Return left, right, bottom, top in um of a projection along `axis`; rows go down."""
    low = (np.asarray(grid.origin_nm) - np.asarray(grid.spacing_nm) / 2) / 1e3
    high = low + grid.extent_nm / 1e3
    row = 1 if axis == 0 else 0
    return float(low[2]), float(high[2]), float(high[row]), float(low[row])


def _show(axes: Any, picture: Image, grid: Grid, axis: int) -> None:
    axes.imshow(picture, extent=_extent(grid, axis), interpolation="nearest")
    _label(axes, "x (um)", "y (um)" if axis == 0 else "z (um)")


def _label(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_aspect("equal")
    if axes.get_ylim()[0] < axes.get_ylim()[1]:
        axes.invert_yaxis()


def _heights(grid: Grid) -> Sequence[float]:
    return [float(grid.extent_nm[1]), max(float(grid.extent_nm[0]), 0.25 * grid.extent_nm[1])]


def _height(grid: Grid) -> float:
    return float(5 * sum(_heights(grid)) / grid.extent_nm[2] + 1.2)


def _figure(
    rows: int, columns: int, size: tuple[float, float], heights: Sequence[float] | None = None
) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    for each in axes.ravel():
        each.tick_params(labelsize=8)
    return figure, axes


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
