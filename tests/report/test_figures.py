from __future__ import annotations

import io

import numpy as np
import pytest

from clemreg.report import canvas, figures
from clemreg.report.figures import Overlay
from clemreg.space import Affine, Grid
from clemreg.testing import hostile_grid, random_bspline
from clemreg.volume import Volume

GRID = Grid((12, 40, 50), (104.0, 52.0, 52.0), (500.0, 100.0, -300.0), "lm")
SLICE = Grid((1, 40, 50), (104.0, 52.0, 52.0), (500.0, 100.0, -300.0), "lm")
ROD = Grid((3, 4, 400), (104.0, 52.0, 52.0), (500.0, 100.0, -300.0), "lm")
QUARTER_TURN = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])  # in the plane y, x
ERRORS = {"median_nm": 30.0, "between_raters": {"median_nm": 25.0}, "affine_only": None}


def pixels(png):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def quarter(picture):
    """Upper left: the xy plane of the start pose, without its scale bar."""
    return picture[: int(0.5 * len(picture)), : picture.shape[1] // 2]


def test_overlays_show_the_blob_where_it_is():
    """Bright at small y (up) and large x (right); white where both images are alike."""
    lm = np.zeros(GRID.shape, np.float32)
    lm[3:9, 2:8, 40:48] = 1
    same = pixels(figures.overlay_figure(Overlay(lm, lm, GRID), Overlay(lm, lm, GRID)))
    empty = np.zeros_like(lm)
    only = quarter(
        pixels(figures.overlay_figure(Overlay(lm, empty, GRID), Overlay(lm, empty, GRID)))
    )
    magenta = (only[..., 0] > 240) & (only[..., 2] > 240) & (only[..., 1] < 15)
    assert magenta.sum() > 200
    rows, columns = np.nonzero(magenta)
    dark_rows, dark_columns = np.nonzero(only.max(axis=-1) < 15)
    top, bottom, left, right = *np.percentile(dark_rows, [0, 100]), *np.percentile(
        dark_columns, [0, 100]
    )  # fmt: skip
    # rows 2 to 8 of 40, columns 40 to 48 of 50
    assert (rows.mean() - top) / (bottom - top) == pytest.approx(5 / 40, abs=0.03)
    assert (columns.mean() - left) / (right - left) == pytest.approx(44 / 50, abs=0.03)
    assert same[int(rows.mean()), int(columns.mean())].min() > 240


def test_the_em_is_green_and_the_registered_pose_is_on_the_right():
    blob, empty = np.ones(GRID.shape, np.float32), np.zeros(GRID.shape, np.float32)
    picture = pixels(
        figures.overlay_figure(Overlay(empty, empty, GRID), Overlay(empty, blob, GRID))
    )
    green = (picture[..., 1] > 240) & (picture[..., 0] < 15)
    assert np.nonzero(green)[1].min() > picture.shape[1] // 2


def test_a_light_channel_lies_over_the_grey_em():
    """The EM alone at the left; light at small y and large x in magenta, also over white EM."""
    light, em = np.zeros(GRID.shape, np.float32), np.full(GRID.shape, 0.5, np.float32)
    light[3:9, 2:8, 40:48] = 1
    em[:, :20] = 1
    picture = pixels(figures.channel_figure(Overlay(light, em, GRID)))
    magenta = (picture[..., 0] > 240) & (picture[..., 2] > 240) & (picture[..., 1] < 15)
    middle = picture.shape[1] // 2
    assert magenta[:, :middle].sum() == 0
    above = magenta[: len(picture) // 2, middle:]
    assert above.sum() > 200
    assert np.nonzero(above)[1].mean() > 0.7 * (picture.shape[1] - middle)
    grey = (picture.max(axis=-1) == picture.min(axis=-1)) & (abs(picture[..., 0] - 128) < 3)
    assert grey[:, :middle].sum() > 2000


def test_the_grey_of_an_em_is_scaled_where_it_was_imaged():
    em = np.zeros(GRID.shape, np.uint8)
    em[6:] = np.linspace(100, 140, em[6:].size).reshape(em[6:].shape)
    grey = figures.to_grey(em)
    assert grey[:6].max() == 0
    assert grey[6].mean() < 0.2
    assert grey[-1].mean() > 0.8
    assert figures.to_grey(np.zeros(GRID.shape)).max() == 0


def test_a_checkerboard_of_equal_images_alternates():
    one = np.ones(GRID.shape, np.float32)
    picture = pixels(figures.checkerboard_figure(Overlay(one, one, GRID)))
    magenta = ((picture[..., 0] > 240) & (picture[..., 1] < 15)).sum()
    green = ((picture[..., 1] > 240) & (picture[..., 0] < 15)).sum()
    assert 0.7 < magenta / green < 1.4


def test_slabs_are_cut_through_the_middle():
    image = np.zeros(GRID.shape, np.float32)
    image[6] = 1  # inside the slab of 300 nm, 3 voxels: 4, 5, 6
    image[8, 0, 0] = 9
    assert figures.project(image, GRID, 0).max() == 1
    image[3] = 5
    assert figures.project(image, GRID, 0).max() == 1
    assert figures.project(np.ones(SLICE.shape, np.float32), SLICE, 0).shape == (40, 50)


def test_extents_are_edges_in_um_with_rows_down():
    grid = hostile_grid()
    left, right, bottom, top = canvas.extent_um(grid, 0)
    assert (left, top) == pytest.approx((0.068, -0.202))
    assert (right - left, bottom - top) == pytest.approx((23 * 4e-3, 17 * 4e-3))
    left, right, bottom, top = canvas.extent_um(grid, 1)
    assert (top, bottom) == pytest.approx(((300 - 2.62) / 1e3, (300 - 2.62 + 11 * 5.24) / 1e3))


@pytest.mark.parametrize(
    ("about", "length"), [(1.7, 1), (2.0, 2), (0.049, 0.02), (0.5, 0.5), (9.99, 5), (1234, 1000)]
)
def test_scale_bars_have_round_lengths(about, length):
    assert canvas.round_length(about) == pytest.approx(length)


def test_the_scale_bar_is_as_long_as_it_says():
    figure, axes = canvas.new_figure(1, 1, (4, 4))
    canvas.frame_axes(axes[0][0], GRID, 0)
    canvas.scale_bar(axes[0][0])
    (line,) = axes[0][0].lines
    assert np.ptp(line.get_xdata()) == pytest.approx(0.5)
    assert [t.get_text() for t in axes[0][0].texts] == ["0.5 µm"]
    bottom, top = axes[0][0].get_ylim()
    assert bottom > top > -1
    assert canvas.png(figure).startswith(b"\x89PNG")


def test_deformation_is_drawn_in_the_light_frame():
    """LM and EM may be turned against each other; arrows and lattice belong to the LM's axes."""
    rng = np.random.default_rng(3)
    bend = random_bspline(rng, GRID, amplitude_nm=60)
    turn = Affine.from_linear(QUARTER_TURN @ np.diag([1.1, 0.9, 1.05]), (9, 8, 7), "lm", "em")
    for axis in (0, 1):
        points, moved = figures._displaced_plane(bend.then(turn), turn, GRID, axis)
        flat = points.reshape(-1, 3)
        np.testing.assert_allclose(moved.reshape(-1, 3), bend(flat) - flat, atol=1e-6)
        assert np.ptp(points[..., axis]) == 0
        row, column = canvas.plane_axes(axis)
        assert (np.diff(points[..., row], axis=0) > 0).all()
        assert (np.diff(points[..., column], axis=1) > 0).all()


def test_arrows_point_to_where_the_em_is_shown(monkeypatch):
    """An EM spot whose place in the light volume is known, shown by a transform that is wrong."""
    drawn = []
    monkeypatch.setattr(
        figures, "_arrows", lambda _axes, at, shift, _colour: drawn.append((at, shift))
    )
    right = Affine.from_linear(QUARTER_TURN @ np.diag([1.1, 0.9, 1.05]), (50, 60, 70), "lm", "em")
    wrong = Affine.from_linear(right.linear, (51, 63, 65), "lm", "em")
    place = np.array([[600.0, 400.0, 900.0]])
    spot = right(place)
    shown = wrong.inverse()(spot)  # resampling puts EM(wrong(x)) at x
    points = {
        "lm_nm": place.tolist(),
        "difference_nm": (wrong(place) - spot).tolist(),
        "error_nm": [5.9],
    }
    figures.landmark_map_figure(points, wrong, GRID)
    (xy_at, xy), (xz_at, xz) = drawn
    np.testing.assert_allclose([xy_at[0], xz_at[0]], [[0.4, 0.9], [0.6, 0.9]])
    z, y, x = (shown - place)[0]
    np.testing.assert_allclose([xy[0], xz[0]], [[y, x], [z, x]], atol=1e-9)


def test_the_affine_line_is_left_out_where_it_would_squeeze_the_plot():
    levels = list(figures._levels({**ERRORS, "affine_only": {"median_nm": 900.0}}, 100.0))
    assert [value for value, *_ in levels] == [25.0, 30.0]
    levels = list(figures._levels({**ERRORS, "affine_only": {"median_nm": 90.0}}, 100.0))
    assert [value for value, *_ in levels] == [25.0, 90.0, 30.0]


@pytest.mark.parametrize("scale", [1.1121, -1.25])
def test_the_determinant_is_shown_with_its_sign_and_without_the_affine(monkeypatch, scale):
    monkeypatch.setattr(figures.canvas, "png", lambda figure: figure)
    after = np.linspace(0.8, 1.2, 400)
    plane = np.full(GRID.shape[1:], 1.05 * scale)
    figure = figures.jacobian_figure(after * scale, plane, GRID, scale)
    left, right = figure.axes[:2]
    np.testing.assert_allclose(left.images[0].get_array(), 1.05)
    filled = [patch.get_xy()[patch.get_xy()[:, 1] > 0, 0] for patch in right.patches]
    spans = [(x.min(), x.max()) for x in filled]
    width = np.ptp(right.get_xlim()) / 40  # of two bins
    np.testing.assert_allclose(spans[0], sorted((0.8 * scale, 1.2 * scale)), atol=width)
    np.testing.assert_allclose(spans[1], (0.8, 1.2), atol=width)


@pytest.mark.parametrize("grid", [GRID, SLICE, ROD], ids=["box", "slice", "rod"])
def test_every_figure_survives_odd_shapes(grid):
    flat = Overlay(np.zeros(grid.shape, np.float32), np.ones(grid.shape, np.float32), grid)
    still = Affine.identity("lm", "em")
    plane = np.ones(grid.shape[1:])
    plane[0, 0] = np.nan
    made = [
        figures.overlay_figure(flat, flat),
        figures.checkerboard_figure(flat),
        figures.channel_figure(flat),
        figures.deformation_figure(still, still, grid),
        figures.jacobian_figure(np.ones(3), plane, grid, 1.1),
        figures.jacobian_figure(np.array([-1.0, 1.0]), plane, grid),
        figures.stability_figure((still, still), grid),
        figures.predicted_error_figure(Volume(np.ones(grid.shape), grid), ()),
    ]
    for png in made:
        height, width, _ = pixels(png).shape
        assert max(height, width) < 2000


def test_the_predicted_error_is_drawn_where_it_is_and_places_are_marked():
    """Largest at small y (up) and large x (right) of the imaged part, which fills the axes."""
    values = np.full(GRID.shape, np.nan)
    values[:, 10:30, 10:40] = 5
    values[3:6, 10:15, 34:40] = 90
    found = Volume(values, GRID)
    bare = pixels(figures.predicted_error_figure(found, ()))
    xy = bare[:, : bare.shape[1] // 2]
    yellow = np.argwhere((xy[..., 0] > 240) & (xy[..., 1] > 220) & (xy[..., 2] < 60))
    dark = np.argwhere((xy[..., 0] < 75) & (xy[..., 1] < 10) & (xy[..., 2] > 70))
    assert len(yellow) > 200
    assert yellow.mean(axis=0)[0] < dark.mean(axis=0)[0]
    assert yellow.mean(axis=0)[1] > dark.mean(axis=0)[1]
    place = {"x_um": 0.7, "y_um": 1.2, "z_um": 1.0, "error_nm": 90.0}
    marked = pixels(figures.predicted_error_figure(found, [place]))
    changed = np.argwhere((marked != bare).any(axis=-1))
    assert 100 < len(changed) < 0.02 * bare.shape[0] * bare.shape[1]


def test_one_landmark_and_names_like_formulas():
    rater = {r"$\frac{1$ <b>": np.array([30.0])}
    assert len(figures.landmark_figure(ERRORS, np.array([30.0]), rater)) > 1000
    zero = {"lm_nm": [[600.0, 400.0, 900.0]], "difference_nm": [[0, 0, 0]], "error_nm": [0.0]}
    assert len(figures.landmark_map_figure(zero, Affine.identity("lm", "em"), GRID)) > 1000


def test_unit_scaling_survives_flat_and_broken_images():
    assert figures.to_unit(np.zeros((3, 3, 3))).max() == 0
    ramp = np.arange(1000.0).reshape(10, 10, 10)
    ramp[0, 0, 0] = np.nan
    scaled = figures.to_unit(ramp)
    assert (scaled.min(), scaled.max()) == (0, 1)


def bars(axes):
    """The bar's ends and level."""
    (line,) = axes.get_lines()
    return line.get_xdata(), line.get_ydata()[0]


@pytest.mark.parametrize("avoid", [(), [(8.4, 7.4)], [(8.4, 7.4), (0.6, 7.5)], "all"])
def test_the_scale_bar_keeps_clear_of_labels(avoid):
    grid = Grid((15, 40, 45), (200.0,) * 3, (0.0, 0.0, 0.0), "lm")
    if avoid == "all":
        avoid = [(8.4, 7.4), (0.6, 7.5), (8.2, 0.7)]
    _, axes = canvas.planes_beside(grid)
    canvas.show_picture(axes[0], np.zeros((40, 45)), grid, 0)
    canvas.scale_bar(axes[0], "white", avoid)
    ends, level = bars(axes[0])
    low, high = min(ends), max(ends)
    for x, y in avoid:
        assert np.hypot(max(low - x, 0, x - high), level - y) > 0.9  # 8 um high
    right, lower = low > 4.5, level > 4.0
    assert (right, lower) == {0: (1, 1), 1: (0, 1), 2: (1, 0), 3: (0, 0)}[len(avoid)]
    assert -0.1 <= low < high <= 8.9
    assert high - low == pytest.approx(1.0)
