"""OME-Zarr, NGFF scenes, ImageJ TIFF and Neuroglancer states, read by other means."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from scipy.ndimage import map_coordinates

from clemreg.cli.app import run_app
from clemreg.errors import DataError, StorageError
from clemreg.export.neuroglancer import NeuroglancerLayer, neuroglancer_state, state_link
from clemreg.export.ngff import Display, SceneImage, write_ome_zarr, write_scene
from clemreg.export.sampled_field import SampledField
from clemreg.io.tiff import TiffOptions, write_tiff
from clemreg.io.transforms import write_transform
from clemreg.io.volumes import open_volume, write_volume
from clemreg.space import Affine, Grid
from clemreg.testing import hostile_grid, random_affine, random_bspline
from clemreg.volume import Labels, Volume

from .axis_orders import write_in_order

RNG = np.random.default_rng(9)
EM = hostile_grid("em")
LM = Grid((9, 14, 8), (104.0, 52.0, 60.0), (40.0, 30.0, -20.0), "lm")
AFFINE = random_affine(RNG, mirror=True)
POINTS = RNG.uniform(*LM.corners_nm()[[0, -1]], (60, 3))
PIXELS = RNG.integers(0, 60000, (3, *LM.shape)).astype(np.uint16)
NAMES = ("mito", "er", 'a "b"\n../c')
DISPLAYS = tuple(
    Display(name, colour, (10.0 * i, 5000.0 + i))
    for i, (name, colour) in enumerate(
        zip(NAMES, [(255, 0, 255), (0, 255, 0), (255, 128, 0)], strict=True)
    )
)


# ---- OME-Zarr


@pytest.mark.interop
@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("channels", [NAMES, ()])
def test_ome_zarr_with_display_settings(tmp_path, version, channels):
    import ome_zarr_models

    data = PIXELS if channels else PIXELS[0]
    displays = DISPLAYS if channels else (Display("EM", (255, 255, 255), (1.0, 2.0)),)
    path = write_ome_zarr(tmp_path / "v.ome.zarr", Volume(data, LM, channels), displays,
                          version=version)  # fmt: skip
    group = zarr.open_group(str(path), mode="r")
    assert group.metadata.zarr_format == (2 if version == "0.4" else 3)
    attributes = ome_zarr_models.open_ome_zarr(group).attributes.model_dump()
    attributes = attributes.get("ome") or attributes
    shown = attributes["omero"]["channels"]
    assert [c["label"] for c in shown] == [d.name for d in displays]
    assert [c["color"] for c in shown] == (
        ["FF00FF", "00FF00", "FF8000"] if channels else ["FFFFFF"]
    )
    assert [(c["window"]["start"], c["window"]["end"]) for c in shown] == [
        d.window for d in displays
    ]
    np.testing.assert_array_equal(group["s0"][:], data if channels else data[None])
    scale, shift = attributes["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert tuple(scale["scale"][1:]) == LM.spacing_nm
    assert tuple(shift["translation"][1:]) == LM.origin_nm
    with pytest.raises(StorageError, match="exists"):
        write_ome_zarr(path, Volume(data, LM, channels), displays)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_stay_labels_and_pool_by_the_most_frequent(tmp_path, version):
    import ome_zarr_models

    grid = Grid((3, 130, 70), (4.0, 4.0, 4.0), frame="em")
    ids = RNG.choice([0, 2**40 + 1], grid.shape).astype(np.uint64)
    write_ome_zarr(tmp_path / "ids.zarr", Labels(ids, grid), (), version=version)
    image = ome_zarr_models.open_ome_zarr(zarr.open_group(tmp_path / "ids.zarr", mode="r"))
    assert image.ome_zarr_version == version
    back = open_volume(tmp_path / "ids.zarr")
    assert back.channels == ()
    assert len(back.coarser) >= 1
    assert set(np.unique(back.coarser[0].read())) == {0, 2**40 + 1}


def test_omezarr_from_the_command_line(tmp_path, capsys):
    write_volume(tmp_path / "lm.zarr", Volume(PIXELS[:2], LM, ("mito", "er")))
    words = ["export", "omezarr", str(tmp_path / "lm.zarr")]
    assert run_app([*words, f"--out={tmp_path / 'a.ome.zarr'}", "--version=0.4",
                    "--colours=cyan,#FF8000"]) == 0  # fmt: skip
    omero = zarr.open_group(tmp_path / "a.ome.zarr", mode="r").attrs["omero"]
    assert [c["color"] for c in omero["channels"]] == ["00FFFF", "FF8000"]
    low, high = np.percentile(PIXELS[0], [1.0, 99.8])
    window = omero["channels"][0]["window"]
    assert (window["start"], window["end"]) == (pytest.approx(low), pytest.approx(high))
    for bad, message in (("--colours=cyan", "1 colours for 2"), ("--colours=cyan,puce", "'puce'"),
                         ("--version=0.6", "cannot write OME-Zarr 0.6")):  # fmt: skip
        assert run_app([*words, f"--out={tmp_path / 'b.zarr'}", bad]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "b.zarr").exists()


# ---- NGFF scene


class Scene:
    """A scene by the rules of RFC-5: every name that is used is declared, or that of an array."""

    def __init__(self, path):
        ome = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]
        assert ome["version"] == "0.6"
        self.path = path
        self.systems = {s["name"]: s["axes"] for s in ome["scene"]["coordinateSystems"]}
        for axes in self.systems.values():
            assert [(a["name"], a["type"], a["unit"]) for a in axes] == [
                (name, "space", "nanometer") for name in "zyx"
            ]
        self.steps = ome["scene"]["coordinateTransformations"]
        assert len({step["name"] for step in self.steps}) == len(self.steps)
        for step in self.steps:
            for end in (step["input"], step["output"]):
                assert "path" in end or end["name"] in self.systems

    def between(self, start, end):
        (step,) = [
            s for s in self.steps if (s["input"]["name"], s["output"]["name"]) == (start, end)
        ]
        return step

    def from_array(self, system):
        """The array that is tied to a system, if it is there, and the rows of the affine."""
        (step,) = [s for s in self.steps if "path" in s["input"] and s["output"]["name"] == system]
        return self.path / step["input"]["path"] / step["input"]["name"], np.array(step["affine"])


def image(path, grid, axes="zyx"):
    return SceneImage(path, "s0", grid, axes)


def test_a_scene_of_an_affine(tmp_path):
    write_scene(
        tmp_path / "s.zarr", AFFINE, (image("../lm.zarr", LM, "czyx"), image("../em.zarr", EM))
    )
    found = Scene(tmp_path / "s.zarr")
    assert list(found.systems) == ["lm", "em"]
    rows = np.array(found.between("lm", "em")["affine"])
    np.testing.assert_allclose(POINTS @ rows[:, :3].T + rows[:, 3], AFFINE(POINTS))
    array, rows = found.from_array("lm")
    assert array == tmp_path / "s.zarr" / "../lm.zarr" / "s0"
    index = np.array([[1, 2, 3, 4], [0, 2, 3, 4.5]])
    np.testing.assert_allclose(index @ rows[:, :4].T + rows[:, 4], LM.to_world(index[:, 1:]))
    _, rows = found.from_array("em")
    np.testing.assert_allclose(index[:, 1:] @ rows[:, :3].T + rows[:, 3], EM.to_world(index[:, 1:]))


def test_a_scene_of_a_deformation(tmp_path):
    move = Affine(AFFINE.matrix, "lm", "lm:affine")
    corner = tuple(move(LM.centre_nm[None])[0] - 900)
    bend = random_bspline(
        RNG, Grid(LM.shape, (300.0, 200.0, 200.0), corner, "lm:affine"),
        amplitude_nm=30, target="em",
    )  # fmt: skip
    transform = move.then(bend)
    field = SampledField(transform, LM, AFFINE)
    path = write_scene(tmp_path / "s.zarr", field, (image("a", LM), image("b", EM)))
    found = Scene(path).between("lm", "em")
    assert found["type"] == "sequence"
    displacements, affine = found["transformations"]
    kinds = [json.loads(p.read_text())["node_type"] for p in sorted(path.rglob("zarr.json"))]
    assert kinds == ["array", "group", "group", "group"]  # none of them only implied
    group = zarr.open_group(path / displacements["path"], mode="r")
    (multiscale,) = group.attrs["ome"]["multiscales"]
    axes = multiscale["coordinateSystems"][0]["axes"]
    assert axes[0] == {"name": "d", "type": "displacement", "discrete": True}
    assert [a["name"] for a in axes[1:]] == ["z", "y", "x"]
    (placement,) = multiscale["datasets"][0]["coordinateTransformations"]
    scale, shift = placement["transformations"]
    voxels = LM.points_nm().reshape(-1, 3)
    index = (voxels - shift["translation"][1:]) / scale["scale"][1:]
    moved = [map_coordinates(c, index.T, order=1, mode="nearest") for c in group["s0"][:]]
    rows = np.array(affine["affine"])
    found = (voxels + np.stack(moved, -1)) @ rows[:, :3].T + rows[:, 3]
    np.testing.assert_allclose(found, transform(voxels), atol=1e-3)


@pytest.mark.parametrize("version", ["zarr", "zarr2"])
def test_a_scene_from_the_command_line(tmp_path, capsys, version):
    """Voxels of both files to the scene's systems, by the scene and the arrays alone."""
    names = tuple(f"c{i}" for i in range(len(PIXELS)))
    write_volume(tmp_path / "lm.zarr", Volume(PIXELS, LM, names), format=version)
    write_volume(tmp_path / "em.zarr", Volume(np.zeros(EM.shape, "u1"), EM), format=version)
    bend = random_bspline(RNG, LM, amplitude_nm=20, target="em")
    lm, em = f"--lm={tmp_path / 'lm.zarr'}", f"--em={tmp_path / 'em.zarr'}"
    for name, transform in (("a", AFFINE), ("b", bend)):
        write_transform(transform, tmp_path / "t.json")
        words = ["export", "ngff", str(tmp_path / "t.json"), lm, em]
        assert run_app([*words, f"--out={tmp_path / 'scenes' / name}"]) == 0
        found = Scene(tmp_path / "scenes" / name)
        for system, grid, lead in (("lm", LM, [0]), ("em", EM, [])):
            array, rows = found.from_array(system)
            assert zarr.open_array(str(array), mode="r").shape[-3:] == grid.shape
            index = np.array([*lead, 1, 2, 3])
            np.testing.assert_allclose(rows[:, :-1] @ index + rows[:, -1], grid.to_world([1, 2, 3]))
    write_tiff(tmp_path / "lm.tif", Volume(PIXELS[0], LM))
    words = ["export", "ngff", str(tmp_path / "t.json"), f"--lm={tmp_path / 'lm.tif'}", em]
    assert run_app([*words, f"--out={tmp_path / 'c'}"]) == 1
    assert "is no OME-Zarr" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


ORDERS = ("tczyx", "xyz", "zcyx")


@pytest.mark.parametrize("order", ORDERS)
def test_a_scene_of_an_image_with_other_axes(tmp_path, order):
    write_in_order(tmp_path / "em.zarr", np.zeros(EM.shape, "u1"), EM, order)
    write_volume(tmp_path / "lm.zarr", Volume(PIXELS[0], LM))
    write_transform(AFFINE, tmp_path / "t.json")
    lm, em = f"--lm={tmp_path / 'lm.zarr'}", f"--em={tmp_path / 'em.zarr'}"
    out = tmp_path / "s.zarr"
    assert run_app(["export", "ngff", str(tmp_path / "t.json"), lm, em, f"--out={out}"]) == 0
    _, rows = Scene(out).from_array("em")
    assert rows.shape == (3, len(order) + 1)
    place = {"z": 1, "y": 2, "x": 3}
    index = np.array([place.get(a, 7) for a in order])
    np.testing.assert_allclose(rows[:, :-1] @ index + rows[:, -1], EM.to_world([1, 2, 3]))


@pytest.mark.parametrize("order", ORDERS)
def test_a_neuroglancer_state_of_images_with_other_axes(tmp_path, order):
    write_in_order(tmp_path / "em.zarr", np.zeros(EM.shape, "u1"), EM, order)
    write_in_order(tmp_path / "ids.zarr", np.zeros(EM.shape, "u4"), EM, order)
    write_in_order(tmp_path / "lm.zarr", PIXELS[0], LM, order)
    shift = EM.centre_nm - AFFINE.linear @ LM.centre_nm
    affine = Affine.from_linear(AFFINE.linear, shift, "lm", "em")
    write_transform(affine, tmp_path / "t.json")
    words = [f"--{name}={tmp_path / name}.zarr" for name in ("em", "lm")]
    words += [f"--labels={tmp_path / 'ids'}.zarr", f"--transform={tmp_path / 't.json'}"]
    assert run_app(["export", "neuroglancer", *words, f"--out={tmp_path / 's.json'}"]) == 0
    em, ids, lm = json.loads((tmp_path / "s.json").read_text())["layers"]
    others = [f"{a}'" for a in order if a not in "zyx"]
    for layer in (em, ids):
        transform = layer["source"]["transform"]
        rows, outputs = np.array(transform["matrix"]), list(transform["outputDimensions"])
        assert outputs == [*others, "z", "y", "x"]
        assert list(layer.get("localDimensions", {})) == others
        columns = [{"z": 5.0, "y": -3.0, "x": 2.0}.get(a, 0.0) for a in order]
        moved = dict(zip(outputs, rows[:, :-1] @ columns + rows[:, -1], strict=True))
        expected = affine.inverse()(np.array([[5.0, -3.0, 2.0]]))[0]
        np.testing.assert_allclose([moved[a] for a in "zyx"], expected)
        for name in others:
            assert rows[outputs.index(name)].tolist() == [f"{a}'" == name for a in order] + [0]
    assert ("transform" in lm["source"]) == ("t" in order)


# ---- ImageJ


def test_a_hyperstack_has_its_calibration_colours_ranges_and_names(tmp_path):
    options = TiffOptions(tuple(d.colour for d in DISPLAYS), tuple(d.window for d in DISPLAYS))
    write_tiff(tmp_path / "v.tif", Volume(PIXELS, LM, NAMES), options)
    with tifffile.TiffFile(tmp_path / "v.tif") as tiff:
        np.testing.assert_array_equal(tiff.asarray(), np.moveaxis(PIXELS, 0, 1))
        found = tiff.imagej_metadata
        resolution = tiff.pages[0].tags["XResolution"].value
    assert (found["unit"], found["spacing"], found["mode"]) == ("um", 0.104, "composite")
    assert (found["slices"], found["channels"]) == (9, 3)
    assert resolution[0] / resolution[1] == pytest.approx(1 / 0.06, rel=1e-6)
    assert found["Ranges"] == (0.0, 5000.0, 10.0, 5001.0, 20.0, 5002.0)
    assert [lut[:, 255].tolist() for lut in found["LUTs"]] == [list(d.colour) for d in DISPLAYS]
    assert [lut[:, 0].tolist() for lut in found["LUTs"]] == [[0, 0, 0]] * 3
    assert found["Labels"] == ["mito", "er", 'a "b" ../c'] * 9
    assert open_volume(tmp_path / "v.tif").channels == ("mito", "er", 'a "b" ../c')


@pytest.mark.parametrize(
    ("top", "dtype"), [(200, np.uint8), (70_000, np.float32), (1000, np.uint16)]
)
def test_labels_keep_their_ids(tmp_path, top, dtype):
    ids = RNG.integers(0, top, LM.shape).astype(np.uint64)
    ids[0, 0, 0] = top
    write_tiff(tmp_path / "v.tif", Labels(ids, LM))
    with tifffile.TiffFile(tmp_path / "v.tif") as tiff:
        stored, found = tiff.asarray(), tiff.imagej_metadata
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored.astype(np.uint64), ids)
    lowest = int(ids[ids > 0].min())
    assert found["Ranges"] == (0.0, min(float(top), 255.0 * lowest))  # lowest id: not black
    (table,) = np.reshape(found["LUTs"], (-1, 3, 256))
    assert table[:, 0].tolist() == [0, 0, 0]
    assert len(np.unique(table.T, axis=0)) > 250


def test_ids_that_imagej_cannot_hold(tmp_path):
    ids = np.full(LM.shape, 2**24 + 1, np.uint32)
    with pytest.raises(DataError, match="16777217"):
        write_tiff(tmp_path / "v.tif", Labels(ids, LM))
    assert not list(tmp_path.iterdir())


def test_odd_types_flat_and_thin_volumes(tmp_path):
    grid = Grid((1, 5, 1), (8.0, 8.0, 8.0))
    for number, pixels in enumerate((
        np.full(grid.shape, np.nan), np.zeros(grid.shape, np.int16), np.ones(grid.shape, ">u2")
    )):  # fmt: skip
        path = tmp_path / f"{number}.tif"
        write_tiff(path, Volume(pixels, grid))
        with tifffile.TiffFile(path) as tiff:
            np.testing.assert_array_equal(tiff.asarray().reshape(grid.shape), pixels)
            low, high = tiff.imagej_metadata["Ranges"]
        assert low < high


def test_any_slab_gives_the_same_file(tmp_path, monkeypatch):
    from clemreg.io import tiff

    volume = Volume(PIXELS, LM, NAMES)
    write_tiff(tmp_path / "a.tif", volume)
    monkeypatch.setattr(tiff, "_SLAB_BYTES", 4 * PIXELS[:, 0].nbytes)
    write_tiff(tmp_path / "b.tif", volume)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), np.moveaxis(PIXELS, 0, 1))
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_imagej_from_the_command_line(tmp_path, capsys):
    write_volume(tmp_path / "lm.zarr", Volume(PIXELS[:2], LM, ("mito", "er")))
    words = ["export", "imagej", str(tmp_path / "lm.zarr"), f"--out={tmp_path / 'a b.tif'}"]
    assert run_app([*words, "--colours=red,cyan"]) == 0
    with tifffile.TiffFile(tmp_path / "a b.tif") as tiff:
        luts = tiff.imagej_metadata["LUTs"]
    assert [lut[:, 255].tolist() for lut in luts] == [[255, 0, 0], [0, 255, 255]]
    assert run_app(words) == 1
    assert "exists already" in capsys.readouterr().err
    assert run_app([*words[:3], f"--out={tmp_path / 'a.png'}"]) == 1
    assert "a.png must end in .tif" in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()
    ids = Labels(RNG.integers(0, 9, EM.shape).astype("u4"), EM)
    write_volume(tmp_path / "ids.zarr", ids)
    words = ["export", "imagej", str(tmp_path / "ids.zarr"), f"--out={tmp_path / 'i.tif'}"]
    assert run_app([*words, "--labels"]) == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "i.tif"), ids.read())


COPIES = {
    "omezarr": ["export", "omezarr", "IN", "--out=o.zarr"],
    "imagej": ["export", "imagej", "IN", "--out=o.tif"],
    "imagej labels": ["export", "imagej", "IN", "--labels", "--out=o.tif"],
    "bdv": ["export", "bdv", "--em=IN", "--lm=IN", "--transform=t.json", "--out=o.xml"],
    "mobie": ["export", "mobie", "--em=IN", "--lm=IN", "--transform=t.json", "--out=o"],
    "n5": ["apply", "t.json", "IN", "--onto=IN", "--out=o.n5"],
    "n5 labels": ["apply", "t.json", "IN", "--labels", "--onto=IN", "--out=o.n5"],
}


@pytest.mark.parametrize("dtype", ["bool", "float16"])
@pytest.mark.parametrize("words", COPIES)
def test_masks_of_truth_values_and_half_floats_are_exported(
    tmp_path, monkeypatch, capsys, words, dtype
):
    monkeypatch.chdir(tmp_path)
    write_volume("v.zarr", Volume((PIXELS[0] % 2).astype(dtype), LM))
    write_transform(Affine.identity("lm", "em"), "t.json")
    code = run_app([word.replace("IN", "v.zarr") for word in COPIES[words]])
    if "labels" in words and dtype == "float16":
        assert "labels are integers" in capsys.readouterr().err
        return
    if (words, dtype) == ("bdv", "bool"):
        assert "BigDataViewer does not know bool\nhint: convert it" in capsys.readouterr().err
        return
    assert code == 0, capsys.readouterr().err
    (out,) = [path for path in ("o.zarr", "o.tif", "o.n5", "o.h5", "o") if Path(path).exists()]
    if out in ("o.zarr", "o.tif", "o.n5"):
        found = open_volume(out).read().reshape(LM.shape)
        np.testing.assert_array_equal(found, PIXELS[0] % 2)


# ---- Neuroglancer


def test_a_state_places_the_em_by_its_matrix():
    to_lm = AFFINE.inverse()
    layers = [
        NeuroglancerLayer("EM", "a b/em.zarr", (DISPLAYS[0],), to_world=to_lm),
        NeuroglancerLayer("em2", "c.zarr", DISPLAYS, axes="czyx", to_world=to_lm),
        NeuroglancerLayer("ids", "ids.zarr", to_world=to_lm, is_labels=True),
        NeuroglancerLayer("LM", "lm.zarr", DISPLAYS, axes="czyx"),
    ]
    state = json.loads(json.dumps(neuroglancer_state(layers, LM)))
    em, em2, _, _, ids, lm, er, _ = state["layers"]
    assert em["source"]["url"] == "zarr://http://127.0.0.1:9000/a%20b/em.zarr"
    transform = em["source"]["transform"]
    assert list(transform["outputDimensions"]) == ["z", "y", "x"]
    assert set(map(tuple, transform["outputDimensions"].values())) == {(1e-9, "m")}
    rows = np.array(transform["matrix"])
    np.testing.assert_allclose(POINTS @ rows[:, :3].T + rows[:, 3], to_lm(POINTS))
    rows = np.array(em2["source"]["transform"]["matrix"])
    assert list(em2["source"]["transform"]["outputDimensions"]) == ["c'", "z", "y", "x"]
    assert rows[0].tolist() == [1, 0, 0, 0, 0]
    np.testing.assert_allclose(rows[1:, 1:], to_lm.matrix[:3])
    assert ids["type"] == "segmentation"
    assert [layer["localPosition"] for layer in (lm, er)] == [[0], [1]]
    assert lm["localDimensions"] == {"c'": [1, ""]}
    assert "vec3(1.0000, 0.0000, 1.0000) * normalized()" in lm["shader"]
    assert "range=[10.0, 5001.0]" in er["shader"]
    assert 'a "b"' not in lm["shader"] + er["shader"]  # names of users are no part of a program
    assert len({layer["name"] for layer in state["layers"]}) == 8
    np.testing.assert_allclose(state["position"][::-1], LM.centre_nm)
    assert state_link(state, "http://localhost/").startswith("http://localhost/#!%7B")


@pytest.mark.interop
def test_neuroglancers_own_classes_take_the_state():
    neuroglancer = pytest.importorskip("neuroglancer")
    layers = [NeuroglancerLayer("EM", "em.zarr", (DISPLAYS[0],), to_world=AFFINE.inverse())]
    state = neuroglancer.ViewerState(neuroglancer_state(layers, LM))
    transform = state.layers["EM"].layer.source[0].transform
    np.testing.assert_allclose(transform.matrix, AFFINE.inverse().matrix[:3])
    assert transform.output_dimensions.names == ("z", "y", "x")
    assert state.dimensions["x"].scale == pytest.approx(1e-9)


def test_neuroglancer_from_the_command_line(tmp_path, capsys):
    em = Grid((20, 20, 20), (40.0, 40.0, 40.0), (0.0, 0.0, 0.0), "em")
    write_volume(tmp_path / "lm.zarr", Volume(PIXELS[:2], LM, ("mito", "er")))
    write_volume(tmp_path / "d" / "em.zarr", Volume(np.ones(em.shape, "u1"), em))
    write_volume(tmp_path / "w.zarr", Volume(np.ones(LM.shape, "u1"), LM))
    write_tiff(tmp_path / "em.tif", Volume(np.ones(em.shape, "u1"), em))
    write_volume(tmp_path / "ids.zarr", Labels(np.ones(em.shape, "u4"), em))
    move = Affine.translation([12.0, -7.0, 30.0], "lm", "em")
    write_transform(move, tmp_path / "t.json")
    words = ["export", "neuroglancer", f"--out={tmp_path / 's.json'}",
             f"--lm={tmp_path / 'lm.zarr'}", f"--transform={tmp_path / 't.json'}"]  # fmt: skip
    more = [f"--labels={tmp_path / 'ids.zarr'}", f"--warped={tmp_path / 'w.zarr'}",
            "--viewer=http://localhost:8080"]  # fmt: skip
    assert run_app([*words, f"--em={tmp_path / 'd' / 'em.zarr'}", *more]) == 0
    assert "http://localhost:8080/#!" in capsys.readouterr().out
    state = json.loads((tmp_path / "s.json").read_text())
    names = [layer["name"] for layer in state["layers"]]
    assert names == ["EM", "ids.zarr", "EM warped", "LM mito", "LM er"]
    assert state["layers"][0]["source"]["url"].endswith(":9000/d/em.zarr")
    rows = np.array(state["layers"][0]["source"]["transform"]["matrix"])
    np.testing.assert_allclose(rows[:, 3], [-12.0, 7.0, -30.0])
    words.append("--overwrite")
    assert run_app([*words, f"--em={tmp_path / 'em.tif'}"]) == 1
    assert "no OME-Zarr" in capsys.readouterr().err
    assert run_app([*words, f"--em={tmp_path / 'd' / 'em.zarr'}", f"--root={tmp_path / 'd'}"]) == 1
    assert "choose another --root" in capsys.readouterr().err
