from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import h5py
import mrcfile
import numpy as np
import pytest
import SimpleITK as sitk
import tensorstore
import tifffile
import zarr

from clemreg.errors import (
    DataError,
    FormatError,
    GridError,
    MissingError,
    VoxelSizeError,
)
from clemreg.io.volumes import (
    WriteOptions,
    describe,
    open_labels,
    open_volume,
    write_tiff,
    write_volume,
)
from clemreg.space import Box, Grid
from clemreg.volume import Labels, Volume

from .volume_cases import GRID, PIXELS, same_place


def test_opening_never_writes(tmp_path):
    (tmp_path / "data.n5").mkdir()
    with pytest.raises(FormatError):
        open_volume(tmp_path / "data.n5")
    assert list((tmp_path / "data.n5").iterdir()) == []


# -- files of others ------------------------------------------------------------------------------


def cosem_n5(folder, attributes, group):
    spec = {
        "driver": "n5",
        "kvstore": {"driver": "file", "path": str(folder / "s0")},
        "metadata": {
            "dimensions": [23, 17, 11],
            "blockSize": [8, 8, 8],
            "dataType": "uint8",
            "compression": {"type": "gzip"},
        },
    }
    tensorstore.open(spec, create=True, open=True).result()[...].write(PIXELS.T).result()
    own = folder / "s0" / "attributes.json"
    own.write_text(json.dumps(json.loads(own.read_text()) | attributes))
    (folder / "attributes.json").write_text(json.dumps(group))


@pytest.mark.parametrize(
    ("attributes", "group", "origin"),
    [
        (
            {
                "transform": {
                    "axes": ["z", "y", "x"],
                    "scale": [5.24, 4.0, 4.0],
                    "translate": [300.0, -200.0, 70.0],
                    "units": ["nm"] * 3,
                }
            },
            {"n5": "2.0.0"},
            (300.0, -200.0, 70.0),
        ),
        (
            {
                "transform": {
                    "axes": ["x", "y", "z"],
                    "scale": [0.004, 0.004, 0.00524],
                    "translate": [0.07, -0.2, 0.3],
                    "units": ["um"] * 3,
                }
            },
            {"n5": "2.0.0"},
            (300.0, -200.0, 70.0),
        ),
        ({"resolution": [4.0, 4.0, 5.24], "offset": [70, -200, 300]}, {}, (300.0, -200.0, 70.0)),
        ({"pixelResolution": {"dimensions": [4.0, 4.0, 5.24], "unit": "nm"}}, {}, (0, 0, 0)),
        (
            {},
            {"resolution": [4.0, 4.0, 5.24], "units": ["nm"] * 3, "scales": [[1, 1, 1]]},
            (0, 0, 0),
        ),
    ],
    ids=["cosem zyx", "cosem xyz um", "resolution offset", "pixelResolution", "n5-viewer group"],
)
def test_every_n5_dialect_lands_in_the_same_place(tmp_path, attributes, group, origin):
    cosem_n5(tmp_path / "a.n5", attributes, group)
    for uri in (tmp_path / "a.n5", tmp_path / "a.n5" / "s0", f"{tmp_path / 'a.n5'}::s0"):
        volume = open_volume(uri)
        same_place(volume, Grid(GRID.shape, GRID.spacing_nm, origin))
        np.testing.assert_array_equal(volume.read(), PIXELS)


def test_an_n5_is_found_from_beside(tmp_path, monkeypatch):
    cosem_n5(tmp_path / "a.n5", {"resolution": [4.0, 4.0, 5.24], "offset": [0, 0, 0]}, {})
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a.n5")
    monkeypatch.chdir(tmp_path / "here")
    for uri in ("../a.n5", "../a.n5::s0", "../link", "./../here/../a.n5"):
        np.testing.assert_array_equal(open_volume(uri).read(), PIXELS)
    write_volume("../out.n5", open_volume("../a.n5"))
    np.testing.assert_array_equal(open_volume("../out.n5").read(), PIXELS)


def test_an_ome_zarr_in_micrometres_with_time(tmp_path):
    group = zarr.open_group(str(tmp_path / "v.zarr"), mode="w", zarr_format=2)
    array = group.create_array("0", shape=(1, 2, *GRID.shape), dtype="u1", chunks=(1, 1, 8, 8, 8))
    array[0, 1] = PIXELS
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}]
    axes += [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    transforms = [
        {"type": "scale", "scale": [1, 1, 0.00524, 0.004, 0.004]},
        {"type": "translation", "translation": [0, 0, 0.3, -0.2, 0.07]},
    ]
    dataset = {"path": "0", "coordinateTransformations": transforms}
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [dataset]}]
    group.attrs["omero"] = {"channels": [{"label": "a"}, {"label": "Halo"}]}
    volume = open_volume(tmp_path / "v.zarr", channel="Halo")
    same_place(volume)
    np.testing.assert_array_equal(volume.read(), PIXELS)
    same_place(open_volume(tmp_path / "v.zarr" / "0"))


def test_imagej_tiff_round_trip_keeps_size_and_channels(tmp_path):
    data = np.stack([PIXELS, 255 - PIXELS]).astype(np.uint16)
    volume = Volume(data, Grid(GRID.shape, GRID.spacing_nm), ("mito", "er"))
    write_tiff(tmp_path / "v.tif", volume)
    back = open_volume(tmp_path / "v.tif")
    assert back.channels == ("mito", "er")
    same_place(back, volume.grid)
    np.testing.assert_array_equal(back.read(Box((3, 2, 1), (5, 9, 23))), data[:, 3:5, 2:9, 1:23])
    with tifffile.TiffFile(tmp_path / "v.tif") as tiff:
        assert tiff.series[0].axes == "ZCYX"
        assert tiff.imagej_metadata["unit"] == "um"


@pytest.mark.parametrize("unit", ["micron", "\\u00B5m", "nm"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_imagej_units(tmp_path, unit, compression):
    k = 1e-3 if unit != "nm" else 1.0
    tifffile.imwrite(
        tmp_path / "v.tif",
        PIXELS,
        imagej=True,
        resolution=(1 / (4 * k), 1 / (4 * k)),
        metadata={"axes": "ZYX", "unit": unit, "spacing": 5.24 * k},
        compression=compression,
    )
    volume = open_volume(tmp_path / "v.tif")
    np.testing.assert_allclose(volume.grid.spacing_nm, GRID.spacing_nm, rtol=1e-5)
    np.testing.assert_array_equal(volume.read(Box((2, 0, 3), (4, 17, 9))), PIXELS[2:4, :, 3:9])


def test_bytes_the_other_way_round_keep_their_type(tmp_path):
    big = (PIXELS.astype("u2") * 200).astype(">u2")
    write_tiff(tmp_path / "v.tif", Volume(big, GRID))
    found = tifffile.imread(tmp_path / "v.tif")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, big)


@pytest.mark.parametrize(("stored", "read"), [("bool", "bool"), ("float16", "float32")])
def test_types_that_few_know_are_read_as_wider_ones(tmp_path, stored, read):
    write_volume(tmp_path / "v.zarr", Volume((PIXELS % 3).astype(stored), GRID))
    assert describe(tmp_path / "v.zarr").dtype == stored
    volume = open_volume(tmp_path / "v.zarr")
    assert volume.dtype == volume.read(Box((1, 2, 3), (4, 6, 8))).dtype == read
    np.testing.assert_array_equal(volume.read(), (PIXELS % 3).astype(stored))


def test_threads_read_one_compressed_tiff_at_once(tmp_path):
    """As prediction and masks do: pages must not be mixed up on one file handle."""
    pixels = np.random.default_rng(0).integers(0, 9, (40, 60, 70), dtype="u1")
    path = tmp_path / "z.tif"
    tifffile.imwrite(
        path, pixels, imagej=True, metadata={"axes": "ZYX", "unit": "nm", "spacing": 5.0},
        resolution=(0.25, 0.25), compression="zlib",
    )  # fmt: skip
    volume = open_volume(path)
    boxes = [Box((z, 0, 0), (z + 4, 60, 70)) for z in range(0, 40, 4)] * 40
    with ThreadPoolExecutor(8) as threads:
        for box, block in zip(boxes, threads.map(volume.read, boxes), strict=True):
            np.testing.assert_array_equal(block, pixels[box.slices])


def test_ome_tiff_sizes_in_their_units(tmp_path):
    tifffile.imwrite(
        tmp_path / "v.ome.tif",
        PIXELS,
        metadata={
            "axes": "ZYX",
            "PhysicalSizeX": 4.0,
            "PhysicalSizeXUnit": "nm",
            "PhysicalSizeY": 0.004,
            "PhysicalSizeYUnit": "µm",
            "PhysicalSizeZ": 52.4,
            "PhysicalSizeZUnit": "Å",
        },
    )
    volume = open_volume(tmp_path / "v.ome.tif")
    np.testing.assert_allclose(volume.grid.spacing_nm, GRID.spacing_nm)
    np.testing.assert_array_equal(volume.read(), PIXELS)


def test_gzipped_tiff(shared_data):
    volume = open_volume(
        shared_data / "cosem-clem" / "mask_bin.tif.gz", spacing_nm=(104.0, 52.0, 52.0)
    )
    assert volume.shape == (59, 1650, 1388)
    assert 0.05 < float((volume.read(Box((29, 0, 0), (30, 1650, 1388))) != 0).mean()) < 0.12


def test_hdf5_attributes_and_the_choice_of_datasets(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        data = file.create_dataset("volumes/raw", data=PIXELS)
        data.attrs["resolution"], data.attrs["offset"] = GRID.spacing_nm, GRID.origin_nm
        file.create_dataset("volumes/other", data=PIXELS)
    volume = open_volume(f"{tmp_path / 'v.h5'}::volumes/raw")
    same_place(volume)
    np.testing.assert_array_equal(volume.read(Box((1, 2, 3), (4, 5, 6))), PIXELS[1:4, 2:5, 3:6])
    with pytest.raises(FormatError, match="volumes/other"):
        open_volume(tmp_path / "v.h5")
    with pytest.raises(MissingError, match="volumes/raw"):
        open_volume(f"{tmp_path / 'v.h5'}::nothing")


def sitk_image():
    image = sitk.GetImageFromArray(PIXELS)
    image.SetSpacing((0.004, 0.004, 0.00524))
    return image


def test_nrrd_needs_a_unit_and_reads_regions(tmp_path):
    sitk.WriteImage(sitk_image(), str(tmp_path / "v.nrrd"))
    with pytest.raises(VoxelSizeError, match="--spacing"):
        open_volume(tmp_path / "v.nrrd")
    volume = open_volume(tmp_path / "v.nrrd", spacing_nm=GRID.spacing_nm)
    np.testing.assert_array_equal(volume.read(Box((1, 2, 3), (4, 5, 6))), PIXELS[1:4, 2:5, 3:6])


def test_a_given_voxel_size_leaves_the_origin_as_many_voxels_away(tmp_path):
    """The file's own size changes nothing; a wrong unit was wrong for the origin, too."""
    grid = replace(GRID, origin_nm=(800.0, -1200.0, 2400.0))
    coarse = PIXELS[:10, :16, :22].reshape(5, 2, 8, 2, 11, 2).mean(axis=(1, 3, 5))
    volume = Volume(PIXELS, grid)
    pyramid = replace(
        volume,
        coarser=(
            Volume(
                coarse.astype(PIXELS.dtype),
                Grid((5, 8, 11), (10.48, 8, 8), (802.62, -1198.0, 2402.0)),
            ),
        ),
    )
    write_volume(tmp_path / "v.zarr", pyramid)
    plain = open_volume(tmp_path / "v.zarr")
    same = open_volume(tmp_path / "v.zarr", spacing_nm=grid.spacing_nm)
    for a, b in zip(plain.levels, same.levels, strict=True):
        np.testing.assert_allclose(b.grid.origin_nm, a.grid.origin_nm, atol=1e-9)
    thousand = open_volume(tmp_path / "v.zarr", spacing_nm=(5240.0, 4000.0, 4000.0))
    np.testing.assert_allclose(thousand.grid.origin_nm, (8e5, -12e5, 24e5))


@pytest.mark.parametrize("name", ["v.nrrd", "v.mha"])
def test_an_origin_without_unit_is_taken_with_the_voxel_size(tmp_path, name):
    image = sitk_image()
    image.SetOrigin((0.04, -0.012, 0.0524))  # 10, -3 and 10 voxels along x, y, z
    sitk.WriteImage(image, str(tmp_path / name))
    volume = open_volume(tmp_path / name, spacing_nm=GRID.spacing_nm)
    np.testing.assert_allclose(volume.grid.origin_nm, (52.4, -12.0, 40.0), rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_nifti_stored_backwards_along_an_axis_would_be_mirrored(tmp_path, axis):
    image = sitk.Flip(sitk_image(), [axis == k for k in range(3)])
    sitk.WriteImage(image, str(tmp_path / "v.nii"))
    with pytest.raises(FormatError, match=r"stored backwards along [xyz].*mirrored") as error:
        open_volume(tmp_path / "v.nii")
    assert "DICOMOrient" in error.value.hint
    forwards = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "v.nii")), "LPS")
    sitk.WriteImage(forwards, str(tmp_path / "w.nii"))
    np.testing.assert_array_equal(open_volume(tmp_path / "w.nii").read(), PIXELS)


def test_nifti_is_in_millimetres(tmp_path):
    image = sitk_image()
    image.SetSpacing((4e-6, 4e-6, 5.24e-6))
    sitk.WriteImage(image, str(tmp_path / "v.nii"))
    volume = open_volume(tmp_path / "v.nii")
    np.testing.assert_allclose(volume.grid.spacing_nm, GRID.spacing_nm, rtol=1e-5)
    np.testing.assert_array_equal(volume.read(), PIXELS)


def test_mha_region(tmp_path):
    sitk.WriteImage(sitk_image(), str(tmp_path / "v.mha"))
    volume = open_volume(tmp_path / "v.mha", spacing_nm=GRID.spacing_nm)
    np.testing.assert_array_equal(volume.read(Box((0, 16, 3), (11, 17, 6))), PIXELS[:, 16:, 3:6])


def test_mrc_in_angstrom(tmp_path):
    with mrcfile.new(tmp_path / "v.mrc") as file:
        file.set_data(PIXELS.astype(np.int16))
        file.voxel_size = (40.0, 40.0, 52.4)
    volume = open_volume(tmp_path / "v.mrc")
    np.testing.assert_allclose(volume.grid.spacing_nm, GRID.spacing_nm, rtol=1e-6)
    np.testing.assert_array_equal(volume.read(), PIXELS)


# -- bad input ------------------------------------------------------------------------------------


def plain_tiff(path, **metadata):
    tifffile.imwrite(path, PIXELS, imagej=True, metadata={"axes": "ZYX", **metadata})


def test_only_imagej_leaves_out_a_distance_of_one(tmp_path):
    """What else writes its format leaves it out where it does not know."""
    metadata = {"axes": "ZYX", "unit": "um"}
    tifffile.imwrite(
        tmp_path / "v.tif", PIXELS, imagej=True, resolution=(2, 2.5), metadata=metadata
    )
    with tifffile.TiffFile(tmp_path / "v.tif") as tiff:
        assert "spacing" not in tiff.imagej_metadata
    assert describe(tmp_path / "v.tif").spacing_nm is None


def test_a_missing_voxel_size_is_an_error_with_the_fix(tmp_path):
    plain_tiff(tmp_path / "v.tif")
    with pytest.raises(VoxelSizeError, match="--spacing"):
        open_volume(tmp_path / "v.tif")
    assert open_volume(tmp_path / "v.tif", spacing_nm=(5.24, 4, 4)).grid.spacing_nm == (5.24, 4, 4)
    assert "voxel size" in describe(tmp_path / "v.tif").notes[0]


@pytest.mark.parametrize("unit", ["furlong", "pixel", "px"])
def test_a_unit_that_is_no_length_is_no_voxel_size(tmp_path, unit):
    """As far as ImageJ and OME say no more than pixels, the user may say the size."""
    resolution = {"resolution": (1 / 7.0, 1 / 7.0)}
    tifffile.imwrite(
        tmp_path / "v.tif",
        PIXELS,
        imagej=True,
        metadata={"axes": "ZYX", "spacing": 9, "unit": unit},
        **resolution,
    )
    sizes = {f"PhysicalSize{a}": 1.0 for a in "XYZ"} | {f"PhysicalSize{a}Unit": unit for a in "XYZ"}
    tifffile.imwrite(tmp_path / "v.ome.tif", PIXELS, ome=True, metadata={"axes": "ZYX"} | sizes)
    for name in ("v.tif", "v.ome.tif"):
        with pytest.raises(VoxelSizeError, match="does not say its voxel size"):
            open_volume(tmp_path / name)
        volume = open_volume(tmp_path / name, spacing_nm=GRID.spacing_nm)
        np.testing.assert_array_equal(volume.read(), PIXELS)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colours_of_a_tiff_are_channels(tmp_path, compression, planar):
    colours = np.stack([PIXELS, PIXELS // 2, 255 - PIXELS])
    stored = np.moveaxis(colours, 0, -1 if planar == "contig" else 1)
    tifffile.imwrite(
        tmp_path / "v.tif", stored, photometric="rgb", planarconfig=planar, compression=compression
    )
    volume = open_volume(tmp_path / "v.tif", spacing_nm=GRID.spacing_nm)
    np.testing.assert_array_equal(volume.read(), colours)
    box = Box((1, 2, 3), (4, 5, 6))
    np.testing.assert_array_equal(volume.read(box), colours[:, 1:4, 2:5, 3:6])


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_truncated_tiff_is_an_error_when_opened(tmp_path, keep, compression):
    path = tmp_path / "v.tif"
    tifffile.imwrite(path, PIXELS, imagej=True, metadata={"axes": "ZYX"}, compression=compression)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(FormatError, match=r"v\.tif"):
        open_volume(path, spacing_nm=(4, 4, 4)).read()


@pytest.mark.parametrize("factor", [1e-3, 1e6])
def test_a_unit_error_is_named(tmp_path, factor):
    write_volume(tmp_path / "v.zarr", Volume(PIXELS, Grid(GRID.shape, (8.0, 8.0, 8.0))))
    path = tmp_path / "v.zarr" / "zarr.json"
    meta = json.loads(path.read_text())
    for dataset in meta["attributes"]["ome"]["multiscales"][0]["datasets"]:
        for transform in dataset["coordinateTransformations"]:
            if transform["type"] == "scale":
                transform["scale"] = [s * factor for s in transform["scale"]]
    path.write_text(json.dumps(meta))
    with pytest.raises(VoxelSizeError, match="cannot be right"):
        open_volume(tmp_path / "v.zarr")


def test_only_the_finest_level_must_have_voxels_of_a_microscope(tmp_path):
    """A wrong unit is told by the voxels a person knows; 2 um light sheets have coarse levels."""
    grid = Grid((8, 60, 60), (20_000.0, 20_000.0, 20_000.0))
    volume = Volume(np.ones(grid.shape, np.uint8), grid)
    write_volume(tmp_path / "v.zarr", volume, options=WriteOptions(levels=3))
    opened = open_volume(tmp_path / "v.zarr")
    assert [v.grid.spacing_nm[2] for v in opened.levels] == [20_000.0, 40_000.0, 80_000.0]
    far = replace(grid, spacing_nm=(60_000.0, 60_000.0, 60_000.0))
    write_volume(tmp_path / "f.zarr", replace(volume, grid=far), options=WriteOptions(levels=3))
    with pytest.raises(VoxelSizeError, match="voxels of 60 um x 60 um x 60 um"):
        open_volume(tmp_path / "f.zarr")


def test_zero_spacing_is_refused(tmp_path):
    plain_tiff(tmp_path / "v.tif", unit="nm", spacing=0)
    with pytest.raises(VoxelSizeError):
        open_volume(tmp_path / "v.tif")


def test_a_damaged_chunk_is_named(tmp_path):
    write_volume(tmp_path / "v.zarr", Volume(PIXELS, GRID), options=WriteOptions((8, 8, 8)))
    chunk = next(p for p in (tmp_path / "v.zarr" / "s0" / "c").rglob("*") if p.is_file())
    chunk.write_bytes(b"garbage")
    with pytest.raises(FormatError, match=r"v\.zarr/s0"):
        open_volume(tmp_path / "v.zarr").read()


def test_a_missing_level_is_named(tmp_path):
    import shutil

    write_volume(
        tmp_path / "v.zarr", Volume(PIXELS, GRID), options=WriteOptions((8, 8, 8), levels=2)
    )
    shutil.rmtree(tmp_path / "v.zarr" / "s1")
    with pytest.raises(FormatError, match="'s1'"):
        open_volume(tmp_path / "v.zarr")


@pytest.mark.parametrize("name", ["v.tif", "v.h5", "v.mrc", "v.nrrd", "v.nii"])
def test_garbage_is_not_a_volume(tmp_path, name):
    (tmp_path / name).write_bytes(b"this is not an image" * 100)
    with pytest.raises(FormatError, match=name):
        open_volume(tmp_path / name, spacing_nm=(4, 4, 4))


def test_paths_that_are_not_there_name_what_is(tmp_path):
    (tmp_path / "real.tif").touch()
    with pytest.raises(MissingError, match=r"real\.tif"):
        open_volume(tmp_path / "reel.tif")
    (tmp_path / "x.docx").touch()
    with pytest.raises(FormatError, match="format not known"):
        open_volume(tmp_path / "x.docx")
    with pytest.raises(FormatError, match="neither zarr nor N5"):
        open_volume(tmp_path)


def test_a_single_image_is_not_a_volume(tmp_path):
    tifffile.imwrite(tmp_path / "v.tif", PIXELS[0])
    with pytest.raises(FormatError, match="volumes"):
        open_volume(tmp_path / "v.tif", spacing_nm=(4, 4, 4))


@pytest.mark.parametrize("ome", [False, True])
def test_a_time_series_is_not_a_volume(tmp_path, ome):
    kind = {"PhysicalSizeZ": 0.2} if ome else {"unit": "um", "spacing": 0.2}
    path = tmp_path / ("t.ome.tif" if ome else "t.tif")
    metadata = {"axes": "TYX", **kind}
    tifffile.imwrite(path, PIXELS, ome=ome, imagej=not ome, resolution=(20, 20), metadata=metadata)
    with pytest.raises(FormatError, match="tyx") as caught:
        open_volume(path, spacing_nm=(200.0, 50.0, 50.0))
    assert "time points are slices" in caught.value.hint


def test_xml_with_entities_expands_nothing(tmp_path):
    bomb = (
        '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image><Pixels SizeX="23" PhysicalSizeX="&b;"/></Image></OME>'
    )
    tifffile.imwrite(tmp_path / "v.ome.tif", PIXELS, description=bomb, metadata=None)
    with pytest.raises((FormatError, VoxelSizeError)):
        open_volume(tmp_path / "v.ome.tif")


def test_a_crop_is_a_volume_at_its_place():
    two = Volume(np.stack([PIXELS, 255 - PIXELS]), GRID, ("a", "b"), coarser=())
    box, inner = Box((2, 3, 5), (9, 14, 22)), Box((1, 0, 4), (6, 5, 17))
    part = two.crop(box)
    assert part.channels == ("a", "b")
    np.testing.assert_allclose(
        part.grid.to_world([[0.0, 0.0, 0.0]]), GRID.to_world([[2.0, 3.0, 5.0]])
    )
    expected = two.read()[:, 2:9, 3:14, 5:22]
    np.testing.assert_array_equal(part.read(), expected)
    np.testing.assert_array_equal(part.channel("b").read(inner), expected[1, 1:6, :5, 4:17])
    np.testing.assert_array_equal(part.crop(inner).read(), expected[:, 1:6, :5, 4:17])
    with pytest.raises(GridError, match="reaches outside"):
        part.crop(box)


def test_boxes_outside_are_refused():
    with pytest.raises(GridError, match="outside"):
        Volume(PIXELS, GRID).read(Box((0, 0, 0), (12, 17, 23)))


def test_float_labels_are_refused(tmp_path):
    write_volume(tmp_path / "v.zarr", Volume(PIXELS.astype(np.float32), GRID))
    with pytest.raises(FormatError, match="integers"):
        open_labels(tmp_path / "v.zarr")


def test_ids_above_65535_come_back_from_an_imagej_tiff(tmp_path):
    ids = np.zeros(GRID.shape, np.uint64)
    ids[2:5, 3:9, 4:12], ids[0, 0, 0], ids[10, 16, 22] = 70001, 70002, 1 << 24
    write_tiff(tmp_path / "v.tif", Labels(ids, GRID))
    assert tifffile.imread(tmp_path / "v.tif").dtype == np.float32
    labels = open_labels(tmp_path / "v.tif")
    assert labels.dtype.kind == "i"
    np.testing.assert_array_equal(labels.read(), ids)


@pytest.mark.parametrize("value", [3.5, float((1 << 24) + 2), np.nan, np.inf])
def test_floats_that_are_no_ids_are_refused_where_they_are_read(tmp_path, value):
    values = np.zeros(GRID.shape, np.float32)
    values[4, 5, 6] = value
    write_tiff(tmp_path / "v.tif", Volume(values, GRID))
    labels = open_labels(tmp_path / "v.tif")
    assert not labels.read(Box((0, 0, 0), (4, 17, 23))).any()
    with pytest.raises(FormatError, match=r"v\.tif .*whole"):
        labels.read()


def noted_tiff(path, pixels, spacing_um, origin_of):
    """A TIFF as ImageJ saves it after a crop: the notes are those of the image before."""
    tifffile.imwrite(
        path,
        pixels,
        imagej=True,
        resolution=(1 / spacing_um[2], 1 / spacing_um[1]),
        metadata={
            "axes": "ZYX",
            "unit": "um",
            "spacing": spacing_um[0],
            "Info": f"clemreg-origin-nm-zyx: 1000.0 -2000.0 3333.5\n{origin_of}",
        },
    )


NOTE_OF = "clemreg-origin-of: 11 17 23 @ 5.24 4.0 4.0\n"


@pytest.mark.parametrize(
    ("shape", "spacing_um"),
    [((5, 17, 23), (0.00524, 0.004, 0.004)), ((11, 17, 23), (0.00524, 0.008, 0.008))],
)
def test_a_tiff_that_was_cut_after_its_origin_was_noted_is_refused(tmp_path, shape, spacing_um):
    pixels = np.zeros(shape, np.uint8)
    noted_tiff(tmp_path / "v.tif", pixels, spacing_um, NOTE_OF)
    with pytest.raises(FormatError, match=r"23 x 17 x 11 voxels .* cropped") as caught:
        open_volume(tmp_path / "v.tif")
    assert "Crop and keep the place" in caught.value.hint
    assert any("cropped" in note for note in describe(tmp_path / "v.tif").notes)


@pytest.mark.parametrize("origin_of", [NOTE_OF, "", "clemreg-origin-of: who knows\n"])
def test_the_origin_of_a_whole_tiff_is_taken(tmp_path, origin_of):
    noted_tiff(tmp_path / "v.tif", PIXELS, (0.00524, 0.004, 0.004), origin_of)
    assert open_volume(tmp_path / "v.tif").grid.origin_nm == (1000.0, -2000.0, 3333.5)
    assert describe(tmp_path / "v.tif").notes == ()


def test_errors_are_builtins_too():
    assert issubclass(MissingError, FileNotFoundError)
    assert issubclass(VoxelSizeError, ValueError)
    assert issubclass(DataError, ValueError)


def test_what_is_inside_a_group_is_listed_without_what_is_not(tmp_path, recwarn):
    grid = Grid((3, 4, 5), (5.24, 4.0, 4.0))
    for name in ("mito", "er"):
        write_volume(tmp_path / "labels.zarr" / name, Volume(np.ones(grid.shape, "u1"), grid))
    (tmp_path / "labels.zarr" / "zarr.json").write_text(
        '{"zarr_format": 3, "node_type": "group", "attributes": {}}'
    )
    (tmp_path / "labels.zarr" / "clemreg.json").write_text("{}")
    (tmp_path / "labels.zarr" / "notes").mkdir()
    with pytest.raises(FormatError, match="without OME multiscales") as error:
        open_volume(tmp_path / "labels.zarr")
    assert error.value.hint == "name what is inside it: er, mito"
    assert not recwarn.list
