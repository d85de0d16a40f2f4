"""Files of ``clemreg segment``: what is a mask, and where it lies in the EM."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from clemreg.cli.app import run_app
from clemreg.io.volumes import open_volume, write_volume
from clemreg.space import Grid
from clemreg.volume import Volume

pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("torch")]
EM = Grid((6, 9, 12), (8.0, 8.0, 8.0), (300.0, -200.0, 70.0), "em")
AS_IT_IS = """
input_size = output_size = (8, 8, 8)
input_voxel_size = output_voxel_size = (8.0, 8.0, 8.0)
output_channels = ("grey",)

def model(x):
    return x
"""


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(100, 255, EM.shape).astype(np.uint8)


@pytest.fixture
def inside():
    """Not symmetric along any axis."""
    mask = np.zeros(EM.shape, np.uint8)
    mask[1:, 2:8, 5:] = 3
    return mask


@pytest.fixture
def segment(tmp_path, capsys):
    """The command; it gives the exit code, what it says, and the folder."""
    (tmp_path / "as_it_is.py").write_text(AS_IT_IS)

    def run(em, *more):
        model, out = str(tmp_path / "as_it_is.py"), str(tmp_path / "out.zarr")
        command = ["segment", str(em), "--model", model, "--contrast", "0", "255"]
        code = run_app([*command, "--out", out, *map(str, more)])
        return code, " ".join(capsys.readouterr().err.split())

    return run


def test_the_name_of_a_file_is_refused_before_anything_is_written(tmp_path, segment, pixels):
    write_volume(tmp_path / "em.zarr", Volume(pixels, EM))
    before = set(tmp_path.iterdir())
    own = "--model", "mito-8nm"
    for network in ((), own):  # the script, or one of clemreg
        code, said = segment(tmp_path / "em.zarr", *network, "--out", tmp_path / "out.tif")
        assert code == 1
        assert "let the name end in .zarr" in said
    assert set(tmp_path.iterdir()) == before


def test_of_several_channels_the_first_is_taken_with_a_note(tmp_path, segment, pixels, caplog):
    both = Volume(np.stack([pixels, pixels[::-1]]), EM, channels=("sem", "bse"))
    write_volume(tmp_path / "em.zarr", both)
    stored = {"sem": pixels, "bse": pixels[::-1]}
    for name, more in (("sem", ()), ("bse", ("--channel", "bse", "--overwrite"))):
        caplog.clear()
        assert segment(tmp_path / "em.zarr", *more)[0] == 0
        found = open_volume(tmp_path / "out.zarr").read()[0]
        np.testing.assert_allclose(found, stored[name], atol=1)
        note = "em.zarr has channels sem, bse: the first, sem, is segmented; another with --channel"
        assert (note in caplog.text) == (name == "sem")
    code, said = segment(tmp_path / "em.zarr", "--channel", "tld", "--overwrite")
    assert code == 1
    assert "em.zarr has no channel 'tld' hint: its channels are: sem, bse" in said


def test_a_single_channel_is_taken_without_a_word(tmp_path, segment, pixels, caplog):
    write_volume(tmp_path / "em.zarr", Volume(pixels[None], EM, channels=("sem",)))
    assert segment(tmp_path / "em.zarr")[0] == 0
    assert not caplog.records


def predicted_where(folder):
    return open_volume(folder / "out.zarr").channel("grey").read() > 0


def test_a_mask_may_have_an_axis_for_its_only_channel(tmp_path, segment, pixels, inside):
    write_volume(tmp_path / "em.zarr", Volume(pixels, EM))
    write_volume(tmp_path / "mask.zarr", Volume(inside[None], EM, channels=("cell",)))
    assert segment(tmp_path / "em.zarr", "--mask", tmp_path / "mask.zarr")[0] == 0
    np.testing.assert_array_equal(predicted_where(tmp_path), inside > 0)


def test_a_mask_of_several_channels_is_refused(tmp_path, segment, pixels, inside):
    write_volume(tmp_path / "em.zarr", Volume(pixels, EM))
    both = Volume(np.stack([inside, 1 - inside]), EM, channels=("cell", "nucleus"))
    write_volume(tmp_path / "mask.zarr", both)
    code, said = segment(tmp_path / "em.zarr", "--mask", tmp_path / "mask.zarr")
    assert code == 1
    assert "mask.zarr has channels cell, nucleus; one volume is expected" in said
    assert not list(tmp_path.glob(".out*"))


def write_without_voxel_size(path, pixels):
    import tifffile

    tifffile.imwrite(path, pixels)


def test_a_mask_without_voxel_size_lies_on_the_voxels_of_the_em(tmp_path, segment, pixels, inside):
    write_without_voxel_size(tmp_path / "mask.tif", inside)
    mask = "--mask", tmp_path / "mask.tif"
    write_volume(tmp_path / "em.zarr", Volume(pixels, EM))  # its place is not 0
    assert segment(tmp_path / "em.zarr", *mask)[0] == 0
    np.testing.assert_array_equal(predicted_where(tmp_path), inside > 0)
    write_without_voxel_size(tmp_path / "em.tif", pixels)
    given = "--spacing", "8, 8, 8 nm", "--overwrite"
    assert segment(tmp_path / "em.tif", *given, *mask)[0] == 0
    np.testing.assert_array_equal(predicted_where(tmp_path), inside > 0)


def test_a_mask_of_another_shape_must_say_its_voxel_size(tmp_path, segment, pixels, inside):
    write_volume(tmp_path / "em.zarr", Volume(pixels, EM))
    write_without_voxel_size(tmp_path / "mask.tif", inside[:, :, ::2])
    code, said = segment(tmp_path / "em.zarr", "--mask", tmp_path / "mask.tif")
    assert code == 1
    assert "(6, 9, 6) voxels, not (6, 9, 12) (z, y, x) as the EM" in said
    assert "hint: save the mask with its voxel size, or on the voxels of the EM" in said
    assert "--spacing" not in said
