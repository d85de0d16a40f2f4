from __future__ import annotations

import numpy as np
import pytest
import tensorstore
import zarr

from clemreg.errors import ConfigError
from clemreg.io.volumes import (
    WriteOptions,
    create_volume,
    open_labels,
    open_volume,
    write_volume,
)
from clemreg.space import Box, Grid
from clemreg.volume import Labels, Volume

from .volume_cases import GRID, PIXELS, RNG, same_place


@pytest.mark.parametrize("format_", ["zarr", "zarr2", "n5"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.uint64])
def test_what_is_written_comes_back_in_place(tmp_path, format_, dtype):
    pixels = PIXELS.astype(dtype) * (2**40 if dtype == np.uint64 else 1)
    path = tmp_path / f"v.{format_}"
    with create_volume(path, GRID, dtype, format=format_, options=WriteOptions((8, 8, 8))) as w:
        for box in GRID.box.tiles((8, 8, 8)):
            w[box] = pixels[box.slices]
    back = open_volume(path, frame="em")
    assert back.dtype == dtype
    same_place(back)
    np.testing.assert_array_equal(back.read(), pixels)
    box = Box((2, 3, 5), (9, 4, 22))
    np.testing.assert_array_equal(back.read(box), pixels[2:9, 3:4, 5:22])


@pytest.mark.interop
@pytest.mark.parametrize(
    ("format_", "driver"), [("zarr", "zarr3"), ("zarr2", "zarr"), ("n5", "n5")]
)
def test_tensorstore_reads_the_same_voxels(tmp_path, format_, driver):
    path = tmp_path / "v"
    write_volume(path, Volume(PIXELS, GRID), format=format_, options=WriteOptions((8, 8, 8)))
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(path / "s0")}}
    array = tensorstore.open(spec, read=True).result().read().result()
    assert (
        np.asarray(array)[(22, 16, 10) if format_ == "n5" else (10, 16, 22)] == PIXELS[10, 16, 22]
    )
    np.testing.assert_array_equal(array.T if format_ == "n5" else array, PIXELS)


@pytest.mark.interop
@pytest.mark.parametrize("format_", ["zarr", "zarr2"])
@pytest.mark.parametrize("channels", [(), ("mito", "er")])
def test_ome_zarr_models_accepts_it(tmp_path, format_, channels):
    import ome_zarr_models

    data = np.stack([PIXELS] * len(channels)) if channels else PIXELS
    volume = Volume(data, GRID, channels)
    write_volume(tmp_path / "v.zarr", volume, format=format_, options=WriteOptions((8, 8, 8)))
    group = zarr.open_group(str(tmp_path / "v.zarr"), mode="r")
    image = ome_zarr_models.open_ome_zarr(group)
    attributes = image.attributes.model_dump()
    multiscale = (attributes.get("ome") or attributes)["multiscales"][0]
    scale, shift = multiscale["datasets"][0]["coordinateTransformations"]
    assert list(scale["scale"][-3:]) == list(GRID.spacing_nm)
    assert list(shift["translation"][-3:]) == list(GRID.origin_nm)
    assert {a["unit"] for a in multiscale["axes"] if a["type"] == "space"} == {"nanometer"}


def test_pyramid_is_block_means_with_the_half_voxel(tmp_path):
    grid = Grid((40, 70, 90), (12.0, 4.0, 4.0), (5.0, 6.0, 7.0), "em")
    pixels = RNG.integers(0, 4000, grid.shape).astype(np.uint16)
    write_volume(tmp_path / "v.zarr", Volume(pixels, grid), options=WriteOptions((16, 16, 16)))
    back = open_volume(tmp_path / "v.zarr")
    # Only y and x are halved while they are finer than z.
    assert [v.shape for v in back.levels] == [(40, 70, 90), (40, 35, 45)]
    coarse = back.levels[1]
    assert coarse.grid.origin_nm == pytest.approx((5.0, 8.0, 9.0))
    expected = pixels.reshape(40, 35, 2, 45, 2).mean(axis=(2, 4))
    np.testing.assert_array_equal(coarse.read(), np.rint(expected))


def test_pyramid_of_labels_never_invents_an_id(tmp_path):
    grid = Grid((70, 70, 70), (4.0, 4.0, 4.0))
    ids = (RNG.integers(0, 3, (14, 14, 14)).repeat(5, 0).repeat(5, 1).repeat(5, 2)) * 70_001
    write_volume(tmp_path / "l.zarr", Labels(ids.astype(np.uint64), grid))
    back = open_labels(tmp_path / "l.zarr")
    assert isinstance(back.levels[1], Labels)
    assert set(np.unique(back.levels[1].read())) <= {0, 70_001, 140_002}


def test_shards_and_several_channels(tmp_path):
    data = np.stack([PIXELS, 255 - PIXELS])
    options = WriteOptions((4, 8, 8), shard=(8, 16, 16), colours=("#FF00FF", "00FF00"))
    write_volume(tmp_path / "v.zarr", Volume(data, GRID, ("mito", "er")), options=options)
    back = open_volume(tmp_path / "v.zarr")
    assert back.channels == ("mito", "er")
    np.testing.assert_array_equal(back.channel("er").read(), 255 - PIXELS)
    files = [p for p in (tmp_path / "v.zarr" / "s0").rglob("*") if p.is_file()]
    assert len(files) < 30
    omero = zarr.open_group(str(tmp_path / "v.zarr"), mode="r").attrs["ome"]["omero"]
    assert [c["color"] for c in omero["channels"]] == ["FF00FF", "00FF00"]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), create_volume(tmp_path / "v.zarr", GRID, "u1"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_resume_goes_on_with_what_was_written(tmp_path):
    path, options = tmp_path / "v.zarr", WriteOptions((8, 8, 8), resume=True)
    with pytest.raises(ZeroDivisionError), create_volume(path, GRID, "u1", options=options) as w:
        w[Box((0, 0, 0), (8, 8, 8))] = PIXELS[:8, :8, :8]
        1 / 0  # noqa: B018
    assert not path.exists()
    with create_volume(path, GRID, "u1", options=options) as w:
        w[Box((8, 0, 0), (11, 17, 23))] = PIXELS[8:]
    assert [p.name for p in tmp_path.iterdir()] == ["v.zarr"]
    back = open_volume(path).read()
    np.testing.assert_array_equal(back[:8, :8, :8], PIXELS[:8, :8, :8])
    np.testing.assert_array_equal(back[8:], PIXELS[8:])


@pytest.mark.parametrize("format_", ["zarr", "n5"])
def test_resume_leaves_no_torn_chunk(tmp_path, format_):
    """Killed while a chunk was written: it lies beside under another name."""
    path, options = tmp_path / "v", WriteOptions((8, 8, 8), resume=True)
    with (
        pytest.raises(ZeroDivisionError),
        create_volume(path, GRID, "u1", format=format_, options=options),
    ):
        1 / 0  # noqa: B018
    torn = [tmp_path / ".v.partial" / "s0" / name for name in ("0.abc.partial", "1.__lock")]
    for file in torn:
        file.write_bytes(b"half")
    with create_volume(path, GRID, "u1", format=format_, options=options) as w:
        w[GRID.box] = PIXELS
    assert [p.name for p in path.rglob("*") if p.suffix in (".partial", ".__lock")] == []
    np.testing.assert_array_equal(open_volume(path).read(), PIXELS)


def test_a_folder_does_not_take_the_name_of_a_file(tmp_path):
    for name in ("mito.tif", "mito.TIFF", "mito.nii.gz", "mito.h5", "mito.png"):
        with pytest.raises(ConfigError, match=f"{name}' would be a folder"):
            create_volume(tmp_path / name, GRID, "u1")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    """A file size limit in a child process stands in for the full disk."""
    import subprocess
    import sys
    import textwrap

    code = textwrap.dedent(f"""
        import resource, signal, sys
        import numpy as np
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        from clemreg.errors import StorageError
        from clemreg.io.volumes import create_volume, WriteOptions
        from clemreg.space import Grid
        import zarr, tifffile
        grid = Grid((64, 64, 64), (8.0, 8.0, 8.0))
        noise = np.random.default_rng(0).integers(0, 255, grid.shape).astype("u1")
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        try:
            with create_volume({str(tmp_path / "v.zarr")!r}, grid, "u1") as w:
                w[grid.box] = noise
        except StorageError as error:
            sys.stdout.write(str(error))
            sys.exit(7)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert "cannot write" in done.stdout
    assert list(tmp_path.iterdir()) == []
