from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep the files of one `xdist_group` in one process: they share ImageJ, elastix or torch.

    xdist 3.8 marks a group in the private name of a test, which pytest 9.2 no longer has, so
    without this every process starts its own of everything.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return _group_of(config.rootpath / nodeid.partition("::")[0]) or nodeid

    return ByGroup(config, log)


@functools.cache
def _group_of(file):
    found = re.search(r"xdist_group\(\"(\w+)\"\)", file.read_text(encoding="utf-8"))
    return found and found.group(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data that is not part of clemreg: `$CLEMREG_SHARED_DATA`, or `shared/data` beside it."""
    folder = Path(os.environ.get("CLEMREG_SHARED_DATA", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("real data not present; set CLEMREG_SHARED_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The simulated pair that comes with clemreg."""
    return REPO / "sample_data"


def _write_n5(path: Path, array, resolution, offset, **more) -> None:
    """Write (z, y, x) as COSEM publishes: axes x, y, z, attributes in x, y, z and nm."""
    import json

    import tensorstore

    spec = {
        "driver": "n5",
        "kvstore": {"driver": "file", "path": str(path)},
        "metadata": {
            "dimensions": list(array.shape[::-1]),
            "blockSize": [32, 32, 32],
            "dataType": array.dtype.name,
            "compression": {"type": "gzip"},
        },
    }
    tensorstore.open(spec, create=True).result().write(array.T).result()
    attributes = path / "attributes.json"
    own = json.loads(attributes.read_text()) | {"resolution": resolution, "offset": offset} | more
    attributes.write_text(json.dumps(own))


@pytest.fixture(scope="session")
def cosem_sample(tmp_path_factory) -> Path:
    """A COSEM container with two annotated crops of a dark ball, and `ids.json` beside it."""
    import json

    import numpy as np

    root = tmp_path_factory.mktemp("sample") / "jrc_ball.n5"
    points = np.stack(np.meshgrid(*(np.arange(n) for n in (48, 52, 60)), indexing="ij"), -1)
    distance = 60 - np.linalg.norm(points * (5.24, 4, 4) - (120, 108, 116), axis=-1)
    rng = np.random.default_rng(0)
    em = np.where(distance > 0, 70, 170) + rng.normal(scale=6, size=distance.shape)
    em = em.clip(0, 255).astype(np.uint8)
    limits = {"min": 20, "max": 220}
    _write_n5(root / "volumes/raw/s0", em, [4, 4, 5.24], [0, 0, 0], contrastAdjustment=limits)
    for phase in range(8):
        z, y, x = phase >> 2 & 1, phase >> 1 & 1, phase & 1
        part = em[z::2, y::2, x::2]
        _write_n5(root / f"volumes/subsampled/raw/{phase}", part, [8, 8, 10.48], [0, 0, 0])
    for name, start in (("crop3", 2), ("crop8", 12)):
        part = distance[4:44, 6:46, start : start + 44]
        fine = part.repeat(2, 0).repeat(2, 1).repeat(2, 2)
        ids = np.where(fine > 8, 4, np.where(fine > 0, 3, 35)).astype(np.uint64)
        folder = root / "volumes/groundtruth/0003" / name / "labels/all"
        _write_n5(folder, ids, [2, 2, 2.62], [4.0 * start, 4.0 * 6, 5.24 * 4])
    looked = {"present_annotated": [[3, 4], [35]], "absent_annotated": [[5], [14, 15]]}
    documents = [{"number": n, "labels": looked} for n in ("3", "8")]
    (root.parent / "ids.json").write_text(json.dumps(documents))
    return root


def _write_cellmap_label(path: Path, array: Any, spacing_nm: Any, origin_nm: Any) -> None:
    """A class of a crop (z, y, x) as CellMap publishes it; 0 unknown, 1 absent, 2 present."""
    import zarr

    steps = [
        {"type": "scale", "scale": list(spacing_nm)},
        {"type": "translation", "translation": list(origin_nm)},
    ]
    axes = [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]
    datasets = [{"path": "s0", "coordinateTransformations": steps}]
    encoding = {"unknown": 0, "absent": 1, "present": 2}
    kind = {"type": "semantic_segmentation", "encoding": encoding}
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    group.create_array("s0", data=array, chunks=(32, 32, 32))
    group.attrs.update({
        "multiscales": [{"version": "0.4", "axes": axes, "datasets": datasets}],
        "cellmap": {"annotation": {"class_name": path.name, "annotation_type": kind}},
    })  # fmt: skip


@pytest.fixture(scope="session")
def write_cellmap_label() -> Any:
    """Write a class of a crop as CellMap publishes it."""
    return _write_cellmap_label


@pytest.fixture(scope="session")
def cellmap_sample(tmp_path_factory) -> Path:
    """EM ``em.zarr`` of a dark ball, and ``groundtruth`` with two crops: its parts, and no ER."""
    import numpy as np
    import zarr

    from clemreg.io.volumes import write_volume
    from clemreg.space.grid import Grid
    from clemreg.volume import Volume

    root = tmp_path_factory.mktemp("jrc_ball")
    grid = Grid((48, 52, 60), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")
    distance = 60 - np.linalg.norm(grid.points_nm() - (420, -92, 186), axis=-1)
    noise = np.random.default_rng(0).normal(scale=6, size=grid.shape)
    em = (np.where(distance > 0, 70, 170) + noise).clip(0, 255).astype(np.uint8)
    write_volume(root / "em.zarr", Volume(em, grid))
    for name, start in (("crop21", 2), ("crop110", 12)):
        fine = distance[4:44, 6:46, start : start + 44].repeat(2, 0).repeat(2, 1).repeat(2, 2)
        crop = root / "groundtruth" / name
        zarr.open_group(str(crop), mode="w", zarr_format=2).attrs["cellmap"] = {
            "annotation": {"class_names": ["mito_mem", "mito_lum", "mito_ribo", "er"]}
        }
        parts = {
            "mito_mem": (fine > 0) & (fine <= 8), "mito_lum": fine > 8, "mito_ribo": fine > 1000,
            "er": fine > 1000,
        }  # fmt: skip
        origin = grid.to_world((4, 6, start)) - (1.31, 1.0, 1.0)
        for part, mask in parts.items():
            values = np.where(mask, 2, 1).astype(np.uint8)
            _write_cellmap_label(crop / part, values, (2.62, 2.0, 2.0), origin.tolist())
    return root
