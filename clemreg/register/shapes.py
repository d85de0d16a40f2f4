"""Use a transform on what is made of points: meshes and skeletons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from clemreg.io.meshes import Mesh
from clemreg.io.skeletons import Skeleton
from clemreg.space.transform import FloatArray, Transform


def apply_to_mesh(transform: Transform, mesh: Mesh) -> Mesh:
    """Map the vertices of a mesh; a mirrored one has its faces turned, so that out stays out.

    Parameters
    ----------
    transform
        From the frame of the mesh to that of the result.
    """
    if not len(mesh.vertices_nm):
        return mesh
    mirrored = np.median(transform.determinant(mesh.vertices_nm)) < 0
    faces = mesh.faces[:, ::-1] if mirrored else mesh.faces
    return Mesh(transform(mesh.vertices_nm), faces)


def apply_to_skeleton(transform: Transform, skeleton: Skeleton) -> Skeleton:
    """Map the nodes of a skeleton; radii grow with the cube root of the local volume.

    Parameters
    ----------
    transform
        From the frame of the skeleton to that of the result.
    """
    nodes = skeleton.nodes_nm
    return replace(
        skeleton,
        nodes_nm=transform(nodes),
        radius_nm=skeleton.radius_nm * _scale(transform, nodes),
    )


def _scale(transform: Transform, points_nm: FloatArray) -> FloatArray:
    """Mean linear scale (N,) of a transform at points."""
    return np.cbrt(np.abs(transform.determinant(points_nm)))
