"""Write triangle meshes: OBJ, PLY, Neuroglancer. Vertices leave as x, y, z in nm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import ConfigError
from clemreg.io.atomic import atomic_path, atomic_write_json, atomic_write_text
from clemreg.io.xyz import flip

FORMATS = ("obj", "ply", "neuroglancer")


def write_mesh(
    path: str | Path, vertices_nm: NDArray[np.float64], faces: NDArray[np.int64]
) -> None:
    """Write ``.obj`` or ``.ply`` (binary, little endian).

    Parameters
    ----------
    vertices_nm
        (N, 3) zyx.
    faces
        (M, 3) vertex numbers from 0, counter-clockwise in x, y, z from outside.

    Raises
    ------
    ConfigError
        The suffix is neither.
    """
    suffix = Path(path).suffix.lower()
    xyz = flip(vertices_nm)
    if suffix == ".obj":
        lines = ["# x y z in nm"]
        lines += [f"v {x:.6g} {y:.6g} {z:.6g}" for x, y, z in np.round(xyz, 3).tolist()]
        lines += [f"f {a} {b} {c}" for a, b, c in (faces + 1).tolist()]
        atomic_write_text(path, "\n".join(lines) + "\n")
    elif suffix == ".ply":
        with atomic_path(path) as partial:
            partial.write_bytes(_ply(xyz, faces))
    else:
        raise ConfigError(f"{path}: meshes are written as .obj or .ply")


def _ply(xyz: NDArray[np.float64], faces: NDArray[np.int64]) -> bytes:
    header = (
        "ply\nformat binary_little_endian 1.0\ncomment x y z in nm\n"
        f"element vertex {len(xyz)}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    rows = np.empty(len(faces), np.dtype([("n", "u1"), ("v", "<i4", 3)]))
    rows["n"], rows["v"] = 3, faces
    return header.encode("ascii") + xyz.astype("<f4").tobytes() + rows.tobytes()


def write_neuroglancer_mesh(
    folder: str | Path, number: int, vertices_nm: NDArray[np.float64], faces: NDArray[np.int64]
) -> None:
    """Add an object to a folder of Neuroglancer's single-resolution meshes.

    The folder is a mesh source by itself (``precomputed://...``), or the ``mesh`` of a
    precomputed segmentation.

    Parameters
    ----------
    number
        Object id.
    """
    folder = Path(folder)
    fragment = f"{number}.mesh"
    body = np.array([len(vertices_nm)], "<u4").tobytes()
    body += flip(vertices_nm).astype("<f4").tobytes() + faces.astype("<u4").tobytes()
    with atomic_path(folder / fragment) as partial:
        partial.write_bytes(body)
    atomic_write_json(folder / f"{number}:0", {"fragments": [fragment]})


def write_neuroglancer_info(folder: str | Path) -> None:
    """Say what the folder is; written last."""
    atomic_write_json(Path(folder) / "info", {"@type": "neuroglancer_legacy_mesh"})
