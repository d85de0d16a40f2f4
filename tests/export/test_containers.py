"""Images inside a container, and images of one name."""

from __future__ import annotations

import csv
import json

import h5py
import numpy as np
import pytest
import zarr

from clemreg.cli.app import run_app
from clemreg.io.transforms import write_transform
from clemreg.io.volumes import open_volume, write_tiff, write_volume
from clemreg.space import Affine, Grid
from clemreg.testing import hostile_grid, random_affine
from clemreg.volume import Volume

LM = Grid((13, 9, 15), (9.0, 7.0, 5.0), (-400.0, 250.0, 77.0), "lm")
EM = hostile_grid("em")
RNG = np.random.default_rng(0)
IMAGES = {
    "em": Volume(RNG.integers(1, 99, EM.shape).astype("u1"), EM),
    "lm": Volume(RNG.integers(1, 99, LM.shape).astype("u1"), LM),
}


@pytest.fixture
def transform(tmp_path):
    linear = random_affine(RNG, "lm", "em", mirror=True).linear
    affine = Affine.from_linear(linear, EM.centre_nm - linear @ LM.centre_nm, "lm", "em")
    write_transform(affine, tmp_path / "t.json")
    return tmp_path / "t.json"


@pytest.fixture
def inside(tmp_path):
    """Words that name both images of one zarr, and the container."""
    container = tmp_path / "cont.zarr"
    zarr.open_group(str(container), mode="w")
    for name, volume in IMAGES.items():
        write_volume(container / name, volume)
    return [f"--{name}={container}::{name}" for name in IMAGES], container


def test_a_scene_names_images_inside_a_container(tmp_path, transform, inside):
    words, container = inside
    out = tmp_path / "s.zarr"
    assert run_app(["export", "ngff", str(transform), *words, f"--out={out}"]) == 0
    steps = json.loads((out / "zarr.json").read_text())["attributes"]["ome"]["scene"]
    ends = [s["input"]["path"] for s in steps["coordinateTransformations"] if "path" in s["input"]]
    assert [(out / end).resolve() for end in ends] == [container / "lm", container / "em"]


def test_mobie_is_led_to_images_inside_a_container(tmp_path, transform, inside):
    words, container = inside
    out = tmp_path / "m"
    assert run_app(["export", "mobie", *words, f"--transform={transform}", f"--out={out}"]) == 0
    with (out / "collection.csv").open(newline="", encoding="utf-8") as stream:
        uris = {row["uri"] for row in csv.DictReader(stream)}
    assert uris == {str(container / "em"), str(container / "lm")}


def test_neuroglancer_is_led_to_images_inside_a_container(tmp_path, transform, inside):
    words, _ = inside
    out = tmp_path / "s.json"
    words = ["export", "neuroglancer", *words, f"--transform={transform}", f"--root={tmp_path}"]
    assert run_app([*words, f"--out={out}"]) == 0
    urls = [layer["source"]["url"] for layer in json.loads(out.read_text())["layers"]]
    assert [url.partition("9000/")[2] for url in urls] == ["cont.zarr/em", "cont.zarr/lm"]


def test_neuroglancer_is_not_led_to_float64(tmp_path, transform, capsys):
    for name, volume in IMAGES.items():
        data = volume.read().astype("f8" if name == "em" else "f4")
        write_volume(tmp_path / f"{name}.zarr", Volume(data, volume.grid))
    words = [f"--{name}={tmp_path / name}.zarr" for name in IMAGES]
    words = ["export", "neuroglancer", *words, f"--transform={transform}"]
    assert run_app([*words, f"--out={tmp_path / 's.json'}"]) == 1
    assert "em.zarr holds float64" in capsys.readouterr().err
    assert not (tmp_path / "s.json").exists()


def test_a_bigwarp_project_names_images_inside_a_container(tmp_path, transform, inside):
    (em, _), container = inside
    words = ["export", "bigwarp", str(transform), f"--grid-of={container}::lm", em, "--unit=nm"]
    words += [f"--out={tmp_path / 'l.csv'}", f"--project={tmp_path / 'p.json'}"]
    assert run_app(words) == 0
    sources = json.loads((tmp_path / "p.json").read_text())["Sources"]
    uris = [sources[number]["uri"] for number in "01"]
    assert uris == [str(container / "em"), str(container / "lm")]


@pytest.mark.parametrize("kind", ["tiff", "hdf5"])
def test_mobie_stores_images_of_one_name_apart(tmp_path, transform, kind):
    places = {name: f"{tmp_path / 'cell'}.{name}.tif" for name in IMAGES}
    if kind == "hdf5":
        places = {name: f"{tmp_path / 'both.h5'}::{name}" for name in IMAGES}
        with h5py.File(tmp_path / "both.h5", "w") as file:
            for name, volume in IMAGES.items():
                file[name] = volume.read()
                file[name].attrs["resolution"] = volume.grid.spacing_nm
                file[name].attrs["offset"] = volume.grid.origin_nm
    else:
        for name, volume in IMAGES.items():
            write_tiff(places[name], volume)
    out = tmp_path / "m"
    words = ["export", "mobie", *(f"--{name}={place}" for name, place in places.items())]
    assert run_app([*words, f"--transform={transform}", f"--out={out}"]) == 0
    with (out / "collection.csv").open(newline="", encoding="utf-8") as stream:
        uris = {row["name"]: row["uri"] for row in csv.DictReader(stream)}
    for name, volume in IMAGES.items():
        found = open_volume(out / uris[name.upper()])
        np.testing.assert_array_equal(found.read(), volume.read())
