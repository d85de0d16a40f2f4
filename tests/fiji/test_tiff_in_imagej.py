"""Real ImageJ opens the TIFF files that clemreg writes, and says what is in them."""

from __future__ import annotations

import numpy as np
import pytest

from clemreg.cli.app import run_app
from clemreg.errors import FormatError
from clemreg.io.tiff import TiffOptions, write_tiff
from clemreg.io.transforms import write_transform
from clemreg.io.volumes import open_volume, write_volume
from clemreg.space import Affine, Grid
from clemreg.testing import hostile_grid
from clemreg.volume import Labels, Volume

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("imagej")]

REPORT = """
setBatchMode(true);
open(getArgument());
getDimensions(width, height, channels, slices, frames);
getVoxelSize(pixelWidth, pixelHeight, pixelDepth, unit);
print(width, height, channels, slices, frames, bitDepth());
print(d2s(pixelWidth, 12), d2s(pixelHeight, 12), d2s(pixelDepth, 12), unit);
for (c = 1; c <= channels; c++) {
  Stack.setPosition(c, 1, 1);
  getMinAndMax(low, high);
  print(d2s(low, 6), d2s(high, 6));
}
for (c = 1; c <= channels; c++)
  for (z = 1; z <= slices; z++) {
    Stack.setPosition(c, z, 1);
    text = "";
    for (y = 0; y < height; y += 5)
      for (x = 0; x < width; x += 3)
        text += d2s(getPixel(x, y), 7) + " ";
    print(text);
  }
close();
"""


def noise(dtype, shape):
    values = np.random.default_rng(3).uniform(-40, 300, shape)
    limits = {"uint8": (0, 255), "uint16": (0, 65535), "float32": (-1e9, 1e9)}[dtype]
    scaled = values * 200 if dtype == "uint16" else values
    return np.clip(scaled, *limits).astype(dtype)


def report(imagej, path):
    answer = imagej.macro(REPORT, path)
    assert answer["error"] is None, answer
    return answer["log"].splitlines()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [(), ("mito", "er", "nucleus")])
def test_imagej_reads_what_was_written(imagej, tmp_path, dtype, channels):
    grid = hostile_grid()
    data = noise(dtype, ((len(channels),) if channels else ()) + grid.shape)
    path = tmp_path / "a b, ü.tif"
    write_tiff(path, Volume(data, grid, channels))
    shape, size, *rest = report(imagej, path)
    count = max(1, len(channels))
    bits = {"uint8": 8, "uint16": 16, "float32": 32}[dtype]
    assert [int(v) for v in shape.split()] == [23, 17, count, 11, 1, bits]
    *voxel, unit = size.split()
    assert unit in ("µm", "um", "micron", "microns")
    np.testing.assert_allclose([float(v) for v in voxel], [0.004, 0.004, 0.00524], rtol=1e-6)
    planes = data.reshape(count, *grid.shape)
    windows = [[float(v) for v in line.split()] for line in rest[:count]]
    expected = [[plane.min(), plane.max()] for plane in planes]
    np.testing.assert_allclose(windows, expected, atol=1e-4)
    seen = np.array([[float(v) for v in line.split()] for line in rest[count:]])
    truth = planes[:, :, ::5, ::3].reshape(len(seen), -1)
    np.testing.assert_allclose(seen, truth, atol=1e-4)


def test_one_slice_and_constant_pixels(imagej, tmp_path):
    grid = hostile_grid()
    grid = type(grid)((1, 5, 7), grid.spacing_nm)
    write_tiff(tmp_path / "flat.tif", Volume(np.zeros(grid.shape, "uint16"), grid))
    shape, size, window, *_ = report(imagej, tmp_path / "flat.tif")
    assert shape.split() == ["7", "5", "1", "1", "1", "16"]
    assert float(size.split()[2]) == pytest.approx(0.00524)
    assert [float(v) for v in window.split()] == [0, 1]


def test_what_imagej_saves_again_is_what_clemreg_reads(imagej, tmp_path):
    grid = hostile_grid()
    volume = Volume(noise("uint16", (2, *grid.shape)), grid, ("mito", "er"))
    write_tiff(tmp_path / "first.tif", volume)
    answer = imagej.macro(
        f'open("{tmp_path}/first.tif"); run("Properties...", "unit=nm pixel_width=4 '
        f'pixel_height=4 voxel_depth=5.24"); saveAs("Tiff", "{tmp_path}/second.tif"); close();'
    )
    assert answer["error"] is None
    again = open_volume(tmp_path / "second.tif")
    np.testing.assert_allclose(again.grid.spacing_nm, grid.spacing_nm, rtol=1e-6)
    assert again.grid.origin_nm == grid.origin_nm
    assert again.channels == ("mito", "er")
    np.testing.assert_array_equal(again.read(), volume.read())


def test_the_bridge_finds_origin_and_names_in_an_opened_file(imagej, tmp_path):
    grid = hostile_grid("em")
    volume = Volume(noise("uint8", (2, *grid.shape)), grid, ("mito", "er"))
    write_tiff(tmp_path / "x.tif", volume)
    answer = imagej.python(
        f"import jpype\nimage = jpype.JClass('ij.IJ').openImage({str(tmp_path / 'x.tif')!r})\n"
        "v = ij.from_imageplus(image)\nanswer = [list(v.grid.origin_nm), list(v.channels)]"
    )
    assert answer["error"] is None, answer
    assert answer["answer"] == [list(grid.origin_nm), ["mito", "er"]]


CUTS = {
    "crop": 'makeRectangle(3, 2, 6, 5); run("Crop");',
    "substack": 'run("Make Substack...", "slices=5-9");',
    "part": 'run("Duplicate...", "duplicate range=5-9");',
    "scaled": 'run("Scale...", "x=0.5 y=0.5 z=1.0 width=11 height=8 depth=11 interpolation=None '
    'average process create title=s");',
}


@pytest.mark.parametrize("cut", CUTS)
def test_what_was_cut_in_imagej_does_not_keep_the_origin_of_the_whole(imagej, tmp_path, cut):
    volume = Volume(noise("uint16", hostile_grid().shape), hostile_grid())
    write_tiff(tmp_path / "x.tif", volume)
    answer = imagej.macro(
        f'open("{tmp_path}/x.tif"); {CUTS[cut]} saveAs("Tiff", "{tmp_path}/cut.tif"); '
        'run("Close All");'
    )
    assert answer["error"] is None, answer
    with pytest.raises(FormatError, match="cropped"):
        open_volume(tmp_path / "cut.tif")
    answer = imagej.python(
        "from clemreg.errors import DataError\nfrom clemreg.io.volumes import open_volume\n"
        f"ij.show(open_volume({str(tmp_path / 'x.tif')!r}))\n"
        f"ij.run_macro({CUTS[cut]!r})\n"
        "try:\n    answer = list(ij.image().grid.origin_nm)\n"
        "except DataError as error:\n    answer = str(error)\n"
        "ij.run_macro('run(\"Close All\");')"
    )
    assert answer["error"] is None, answer
    assert "cropped" in answer["answer"]


def test_imagej_saves_the_origin_of_what_the_bridge_showed(imagej, tmp_path):
    grid = hostile_grid("em")
    write_volume(tmp_path / "x.zarr", Volume(noise("uint8", grid.shape), grid))
    answer = imagej.python(
        "from clemreg.io.volumes import open_volume\n"
        f"ij.show(open_volume({str(tmp_path / 'x.zarr')!r}))\n"
        f'ij.run_macro(\'saveAs("Tiff", "{tmp_path}/saved.tif"); close();\')'
    )
    assert answer["error"] is None, answer
    assert open_volume(tmp_path / "saved.tif").grid.origin_nm == grid.origin_nm


def test_a_time_series_of_imagej_is_not_a_volume(imagej, tmp_path):
    answer = imagej.macro(
        'newImage("t", "8-bit ramp", 5, 7, 6); run("Properties...", "channels=1 slices=1 frames=6 '
        f'unit=um pixel_width=0.05 pixel_height=0.06 voxel_depth=0.2"); '
        f'saveAs("Tiff", "{tmp_path}/t.tif"); close();'
    )
    assert answer["error"] is None, answer
    with pytest.raises(FormatError, match="tyx"):
        open_volume(tmp_path / "t.tif")


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ("unit=um pixel_width=0.5 pixel_height=0.4 voxel_depth=1", (1000.0, 400.0, 500.0)),
        ("unit=nm pixel_width=5 pixel_height=4 voxel_depth=1", (1.0, 4.0, 5.0)),
        ("unit=\u00c5 pixel_width=50 pixel_height=40 voxel_depth=80", (8.0, 4.0, 5.0)),
    ],
)
def test_sizes_that_imagej_shortens_or_escapes(imagej, tmp_path, sizes, expected):
    answer = imagej.macro(
        f'newImage("t", "8-bit ramp", 5, 7, 6); run("Properties...", "{sizes}"); '
        f'saveAs("Tiff", "{tmp_path}/t.tif"); close();'
    )
    assert answer["error"] is None, answer
    np.testing.assert_allclose(open_volume(tmp_path / "t.tif").grid.spacing_nm, expected)


def test_the_slices_of_imagej_have_their_own_unit(imagej, tmp_path):
    answer = imagej.macro(
        'newImage("t", "8-bit ramp", 5, 7, 6); run("Properties...", "unit=nm pixel_width=5 '
        'pixel_height=4 voxel_depth=0.05"); Stack.setZUnit("micron"); '
        f'saveAs("Tiff", "{tmp_path}/t.tif"); close();'
    )
    assert answer["error"] is None, answer
    np.testing.assert_allclose(open_volume(tmp_path / "t.tif").grid.spacing_nm, (50.0, 4.0, 5.0))
    opened = imagej.python(
        f"import jpype\nimage = jpype.JClass('ij.IJ').openImage({str(tmp_path / 't.tif')!r})\n"
        "answer = list(ij.from_imageplus(image).grid.spacing_nm)"
    )
    assert opened["answer"] == pytest.approx([50, 4, 5]), opened


def test_the_bridge_keeps_the_16_bits_of_imagej(imagej, tmp_path):
    """ImageJ's files are big-endian."""
    answer = imagej.macro(
        'newImage("t", "16-bit ramp", 5, 7, 6); run("Properties...", "unit=um pixel_width=0.05 '
        f'pixel_height=0.06 voxel_depth=0.2"); saveAs("Tiff", "{tmp_path}/t.tif"); close();'
    )
    assert answer["error"] is None, answer
    volume = open_volume(tmp_path / "t.tif")
    assert volume.read().dtype == volume.dtype == np.uint16
    assert volume.read().max() > 255
    answer = imagej.python(
        "from clemreg.io.volumes import open_volume\n"
        f"v = open_volume({str(tmp_path / 't.tif')!r})\n"
        "image = ij.to_imageplus(v)\nanswer = [image.getBitDepth(), str(ij.from_imageplus(image)"
        ".dtype), bool((ij.from_imageplus(image).read() == v.read()).all())]"
    )
    assert answer["answer"] == [16, "uint16", True], answer


def test_channel_names_with_commas(imagej, tmp_path):
    names = ("mito, matrix", "er")
    volume = Volume(noise("uint8", (2, *hostile_grid().shape)), hostile_grid(), names)
    write_tiff(tmp_path / "x.tif", volume)
    assert open_volume(tmp_path / "x.tif").channels == names
    answer = imagej.python(
        "from clemreg.io.volumes import open_volume\n"
        f"v = open_volume({str(tmp_path / 'x.tif')!r})\n"
        "answer = list(ij.from_imageplus(ij.to_imageplus(v)).channels)"
    )
    assert answer["answer"] == list(names), answer


COLOURS = """
setBatchMode(true);
open(getArgument());
getMinAndMax(low, high);
getLut(reds, greens, blues);
used = "";
for (i = 0; i < 256; i++) used += "" + reds[i] + "," + greens[i] + "," + blues[i] + " ";
print(low, high, bitDepth());
print(used);
run("RGB Color", "slices");
setSlice(6);
text = "";
for (y = 0; y < getHeight(); y++)
  for (x = 0; x < getWidth(); x++) text += "" + (getPixel(x, y) & 0xffffff) + " ";
print(text);
close();
"""


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_labels_that_were_transformed_keep_a_colour_each(imagej, tmp_path, dtype):
    """From the command line to what a person sees: as many colours as ids, 0 black."""
    grid = hostile_grid("em")
    ids = np.zeros(grid.shape, dtype)
    for number in range(1, 9):
        ids[:, 2 * number - 1, :] = number * (25 if dtype == "uint8" else 4000)
    write_volume(tmp_path / "ids.zarr", Labels(ids, grid))
    here = grid.with_frame("lm")
    write_volume(tmp_path / "lm.zarr", Volume(np.ones(grid.shape, "u1"), here))
    write_transform(Affine.identity("lm", "em"), tmp_path / "t.json")
    out = tmp_path / "out.tif"
    words = ["apply", str(tmp_path / "t.json"), str(tmp_path / "ids.zarr"), "--labels"]
    assert run_app([*words, f"--onto={tmp_path / 'lm.zarr'}", f"--out={out}"]) == 0
    answer = imagej.macro(COLOURS, out)
    assert answer["error"] is None, answer
    shown, table, pixels = answer["log"].splitlines()
    assert [float(v) for v in shown.split()[:3]] == [
        0,
        ids.max(),
        {"uint8": 8, "uint16": 16}[dtype],
    ]
    colours = table.split()
    assert colours[0] == "0,0,0"
    assert len(set(colours)) > 250
    assert sum(len(set(colour.split(","))) == 1 for colour in colours) < 5  # no ramp of greys
    seen = np.array(pixels.split(), int).reshape(grid.shape[1:])
    of_id = {int(i): set(seen[ids[5] == i].tolist()) for i in np.unique(ids)}
    assert of_id[0] == {0}
    assert all(len(found) == 1 for found in of_id.values())
    assert len(set.union(*of_id.values())) == 9


MANY = {
    "more than 255": np.arange(601),
    "thousands": np.arange(0, 5001, 3),
    "small ones and one far off": np.array([0, 1, 2, 3, 60000]),
    "above 65535": np.array([0, 1, 65536, 70001, 1 << 24]),
    "far from 0": np.array([0, 66000, 66001, 66300]),
    "none": np.array([0, 0]),
}


@pytest.mark.parametrize("case", MANY)
def test_no_label_is_dark(imagej, tmp_path, case):
    """Only 0 is black when the file is opened, and when the bridge shows the same labels."""
    ids = MANY[case].astype(np.uint32)
    grid = Grid((7, 1, len(ids)), (8.0, 8.0, 8.0))
    volume = Labels(np.repeat(ids[None, None], 7, axis=0), grid)
    write_tiff(tmp_path / "l.tif", volume)
    opened = imagej.macro(COLOURS, tmp_path / "l.tif")
    assert opened["error"] is None, opened
    write_volume(tmp_path / "l.zarr", volume)
    shown = imagej.python(
        "from clemreg.io.volumes import open_labels\n"
        f"image = ij.to_imageplus(open_labels({str(tmp_path / 'l.zarr')!r}))\n"
        "image.setSlice(6)\n"
        "rgb = image.getProcessor().convertToRGB()\n"
        "answer = [rgb.getPixel(x, 0) & 0xffffff for x in range(image.getWidth())]"
    )
    assert shown["error"] is None, shown
    for pixels in (opened["log"].splitlines()[2].split(), shown["answer"]):
        seen = np.array(pixels, int)
        assert (seen[ids == 0] == 0).all()
        bright = np.stack([seen[ids > 0] >> s & 255 for s in (16, 8, 0)]).max(axis=0, initial=0)
        assert (bright > 150).all()
        assert len(np.unique(seen)) >= min(len(np.unique(ids)), 3)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_one_channel_keeps_its_colour_and_window(imagej, tmp_path, dtype):
    grid = hostile_grid()
    options = TiffOptions(((255, 128, 0),), ((10.0, 70.0),))
    write_tiff(tmp_path / "o.tif", Volume(noise(dtype, grid.shape), grid), options)
    code = "open(getArgument()); getLut(r, g, b); getMinAndMax(low, high); close();"
    answer = imagej.macro(
        code + "print(r[255], g[255], b[255], r[0], low, high);", tmp_path / "o.tif"
    )
    assert answer["error"] is None, answer
    assert [float(v) for v in answer["log"].split()] == [255, 128, 0, 0, 10, 70]
