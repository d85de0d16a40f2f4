from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


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
        offset = [4.0 * x, 4.0 * y, 5.24 * z]
        _write_n5(
            root / f"volumes/subsampled/raw/{phase}", em[z::2, y::2, x::2], [8, 8, 10.48], offset
        )
    for name, start in (("crop3", 2), ("crop8", 12)):
        part = distance[4:44, 6:46, start : start + 44]
        fine = part.repeat(2, 0).repeat(2, 1).repeat(2, 2)
        ids = np.where(fine > 8, 4, np.where(fine > 0, 3, 35)).astype(np.uint64)
        folder = root / "volumes/groundtruth/0003" / name / "labels/all"
        where = [4.0 * start - 1, 4.0 * 6 - 1, 5.24 * 4 - 1.31]
        _write_n5(folder, ids, [2, 2, 2.62], where)
    looked = {"present_annotated": [[3, 4], [35]], "absent_annotated": [[5], [14, 15]]}
    documents = [{"number": n, "labels": looked} for n in ("3", "8")]
    (root.parent / "ids.json").write_text(json.dumps(documents))
    return root
