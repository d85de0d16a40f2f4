"""N5 displacement fields, read by tensorstore and SciPy alone, and by `read_transform`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorstore
from scipy.ndimage import map_coordinates

from clemreg.errors import ConfigError, DataError, FormatError, FrameError, StorageError
from clemreg.export.dfield import FieldOptions, write_n5_field
from clemreg.export.sampled_field import SampledField, field_grid
from clemreg.io.transforms import read_fixed_grid, read_transform
from clemreg.space import Affine, Grid
from clemreg.testing import hostile_grid, random_affine, random_bspline

RNG = np.random.default_rng(12)
LM = Grid((9, 14, 8), (104.0, 52.0, 60.0), (40.0, 30.0, -20.0), "lm")
AFFINE = random_affine(RNG, "lm", "lm:affine", mirror=True)
# The control grid covers the turned LM and a margin: at its border the B-spline has no inverse.
WIDE = Grid((19, 29, 17), (160.0, 90.0, 100.0), (0.0, 0.0, 0.0), "lm:affine")
WIDE = Grid(
    WIDE.shape,
    WIDE.spacing_nm,
    tuple(AFFINE(LM.centre_nm[None])[0] - WIDE.centre_nm),
    "lm:affine",
)
BEND = random_bspline(RNG, WIDE, amplitude_nm=25, target="em")
TRANSFORM = AFFINE.then(BEND)
WHOLE_AFFINE = Affine(AFFINE.matrix, "lm", "em")
INSIDE = RNG.uniform(*LM.corners_nm()[[0, -1]], (300, 3))


def independent(folder, points_um_xyz):
    """The published meaning: moving = affine(fixed + d(fixed)), everything x, y, z."""
    attributes = json.loads((folder / "attributes.json").read_text())
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": str(folder)}}
    stored = np.asarray(tensorstore.open(spec, open=True, read=True).result()).astype(float)
    stored *= attributes.get("quantization_multiplier", 1.0)
    index = (points_um_xyz - attributes["offset"]) / attributes["spacing"]
    d = [map_coordinates(stored[c], index.T, order=1, mode="nearest") for c in range(3)]
    moved = points_um_xyz + np.stack(d, axis=-1)
    if "affine" in attributes:
        rows = np.array(attributes["affine"]).reshape(3, 4)
        moved = moved @ rows[:, :3].T + rows[:, 3]
    return moved


def mapped(folder, points_nm):
    return independent(folder, points_nm[:, ::-1] / 1e3)[:, ::-1] * 1e3


@pytest.mark.interop
@pytest.mark.parametrize("affine", [None, WHOLE_AFFINE])
def test_the_field_maps_as_the_transform_does(tmp_path, affine):
    field = SampledField(TRANSFORM, LM, affine)
    write_n5_field(tmp_path / "f.n5", field)
    at_voxels = LM.points_nm().reshape(-1, 3)
    folder = tmp_path / "f.n5" / "dfield"
    np.testing.assert_allclose(mapped(folder, at_voxels), TRANSFORM(at_voxels), atol=1e-3)
    stated = field.error()
    distance = np.linalg.norm(mapped(folder, INSIDE) - TRANSFORM(INSIDE), axis=1)
    assert distance.max() < 1.2 * stated.max_nm
    assert 0.01 < stated.mean_nm < 5
    assert read_fixed_grid(folder) == LM
    for path in (tmp_path / "f.n5", folder):
        again = read_transform(path)
        assert (again.source, again.target) == ("lm", "em")
        np.testing.assert_allclose(again(INSIDE), mapped(folder, INSIDE), atol=1e-6)
    assert ("affine" in json.loads((folder / "attributes.json").read_text())) == bool(affine)


def test_a_field_of_its_own_axis_order_and_direction(tmp_path):
    """Moving 100 nm along x only, so that a swapped axis or direction cannot hide."""
    shift = Affine.translation([0.0, 0.0, 100.0], "lm", "em")
    write_n5_field(tmp_path / "f.n5", SampledField(shift, LM))
    attributes = json.loads((tmp_path / "f.n5" / "dfield" / "attributes.json").read_text())
    assert attributes["dimensions"] == [3, 8, 14, 9]
    assert attributes["spacing"] == [0.06, 0.052, 0.104]
    assert attributes["offset"] == [-0.02, 0.03, 0.04]
    assert attributes["dataType"] == "float32"
    moved = independent(tmp_path / "f.n5" / "dfield", np.array([[0.1, 0.2, 0.3]]))
    np.testing.assert_allclose(moved, [[0.2, 0.2, 0.3]], atol=1e-7)


def test_quantised_fields_keep_their_promise(tmp_path):
    field = SampledField(TRANSFORM, LM, WHOLE_AFFINE)
    write_n5_field(tmp_path / "f.n5", field, FieldOptions(unit="nm", max_error_nm=0.25))
    folder = tmp_path / "f.n5" / "dfield"
    attributes = json.loads((folder / "attributes.json").read_text())
    assert (attributes["dataType"], attributes["quantization_multiplier"]) == ("int16", 0.5)
    at_voxels = LM.points_nm().reshape(-1, 3)
    moved = independent(folder, at_voxels[:, ::-1])[:, ::-1]
    off = np.abs(WHOLE_AFFINE.inverse()(moved) - WHOLE_AFFINE.inverse()(TRANSFORM(at_voxels)))
    assert 0.2 < off.max() <= 0.25 + 1e-9
    np.testing.assert_allclose(read_transform(tmp_path / "f.n5")(at_voxels), moved, atol=1e-6)


def test_what_16_bits_cannot_hold(tmp_path):
    with pytest.raises(DataError, match="16 bits hold 32767"):
        write_n5_field(
            tmp_path / "f.n5", SampledField(TRANSFORM, LM), FieldOptions(max_error_nm=1e-4)
        )
    assert not list(tmp_path.iterdir())
    for error_nm in (0.0, -0.5):
        with pytest.raises(ConfigError, match="cannot be off"):
            FieldOptions(max_error_nm=error_nm)


def test_the_inverse_field_leads_back(tmp_path):
    field = SampledField(TRANSFORM, LM, WHOLE_AFFINE)
    write_n5_field(tmp_path / "f.n5", field, FieldOptions(with_inverse=True))
    folder = tmp_path / "f.n5" / "invdfield"
    attributes = json.loads((folder / "attributes.json").read_text())
    em = TRANSFORM(INSIDE)[:, ::-1] / 1e3
    rows = np.array(attributes.pop("affine")).reshape(3, 4)
    (folder / "attributes.json").write_text(json.dumps(attributes))
    back = independent(folder, em @ rows[:, :3].T + rows[:, 3])  # inverse: the affine comes first
    assert np.abs(back[:, ::-1] * 1e3 - INSIDE).max() < 3
    with pytest.raises(FormatError, match="'dfield'"):
        read_transform(folder)
    with pytest.raises(FrameError, match="affine part"):
        SampledField(TRANSFORM, LM).inverse()


def test_any_block_shape_gives_the_same_field(tmp_path, monkeypatch):
    from clemreg.export import dfield, sampled_field

    def stored(name):
        write_n5_field(tmp_path / name, SampledField(TRANSFORM, LM))
        spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{tmp_path / name}/dfield"}}
        return np.asarray(tensorstore.open(spec, open=True).result())

    whole = stored("a.n5")
    monkeypatch.setattr(dfield, "BLOCK", (4, 4, 4))
    monkeypatch.setattr(SampledField.write, "__defaults__", ((4, 8, 4), None))
    np.testing.assert_array_equal(stored("b.n5"), whole)
    assert sampled_field.BLOCK != (4, 4, 4)


def test_a_coarse_grid_reaches_beyond_the_image():
    grid = field_grid(LM, 200.0)
    low, high = LM.corners_nm()[[0, -1]]
    assert (grid.corners_nm()[0] < low - 100).all()
    assert (grid.corners_nm()[-1] > high + 100).all()
    assert field_grid(LM, None) == LM


def test_a_field_that_exists_is_kept(tmp_path):
    path = write_n5_field(tmp_path / "f.n5", SampledField(TRANSFORM, LM))
    with pytest.raises(StorageError, match="exists"):
        write_n5_field(path, SampledField(TRANSFORM, LM))
    write_n5_field(path, SampledField(TRANSFORM, LM), FieldOptions(overwrite=True))
    assert [p.name for p in tmp_path.iterdir()] == ["f.n5"]


def test_frames_are_checked():
    with pytest.raises(FrameError, match="grid in 'em'"):
        SampledField(TRANSFORM, hostile_grid("em"))
    with pytest.raises(FrameError, match="affine part"):
        SampledField(TRANSFORM, LM, AFFINE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spacing": [1, 2]}, "spacing must be 3 finite"),
        ({"spacing": [1, 0, 2]}, "positive"),
        ({"affine": [1, 2, 3]}, "affine must be 12"),
        ({"affine": ["x"] * 12}, "affine must be 12 numbers"),
        ({"offset": [0, 0, None]}, "offset must be 3"),
        ({"dimensions": [4, 8, 14, 9]}, r"\(3, x, y, z\)"),
        ({"dimensions": [3, 8, 14]}, r"\(3, x, y, z\)"),
        ({"dataType": "nonsense"}, "not a readable N5"),
    ],
)
def test_damaged_fields(tmp_path, changes, words):
    write_n5_field(tmp_path / "f.n5", SampledField(TRANSFORM, LM))
    path = tmp_path / "f.n5" / "dfield" / "attributes.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(FormatError, match=words):
        read_transform(tmp_path / "f.n5")
