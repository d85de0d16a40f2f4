"""Write meshes for Neuroglancer (precomputed, single resolution): x, y, z in nm, float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clemreg.io.atomic import atomic_path, atomic_write_json
from clemreg.io.meshes import Mesh
from clemreg.io.xyz import flip


def write_neuroglancer_mesh(folder: str | Path, number: int, mesh: Mesh) -> None:
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
    body = np.array([len(mesh.vertices_nm)], "<u4").tobytes()
    body += flip(mesh.vertices_nm).astype("<f4").tobytes() + mesh.faces.astype("<u4").tobytes()
    with atomic_path(folder / fragment) as partial:
        partial.write_bytes(body)
    atomic_write_json(folder / f"{number}:0", {"fragments": [fragment]})


def write_neuroglancer_info(folder: str | Path) -> None:
    """Say what the folder is; written last."""
    atomic_write_json(Path(folder) / "info", {"@type": "neuroglancer_legacy_mesh"})
