"""Surface meshes of objects: smooth, with fewer triangles, in nm."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.plan import Block
from clemreg.blocks.stages import Blockwise, Part
from clemreg.errors import ConfigError, DependencyError
from clemreg.io.meshes import Mesh
from clemreg.measure.gather import gathered
from clemreg.measure.morphology import check_boxes, object_boxes
from clemreg.measure.tables import Table
from clemreg.space.grid import Grid
from clemreg.volume import Labels

BYTES_PER_VOXEL = 40
"""Of an object's box, in memory, while it is meshed."""

LARGEST_CHANGE = 0.05
"""Part of a mesh's volume that smoothing may take or add, and fewer triangles after it."""

_LAMBDA, _MU = 0.5, -0.53
_FEWEST = 4  # triangles of a closed surface

# fast-simplification keeps its mesh in variables of the process: two threads would mix theirs.
_ONE_AT_A_TIME = threading.Lock()


def area_nm2(mesh: Mesh) -> float:
    """Sum of the areas of all triangles."""
    a, b, c = (mesh.vertices_nm[mesh.faces[:, i]] for i in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


@dataclass(frozen=True)
class MeshOptions:
    """How meshes are made.

    Attributes
    ----------
    smoothing
        Rounds of Taubin smoothing; fewer where they would change the volume by more than
        `LARGEST_CHANGE`.
    keep
        Part of the triangles to keep, above 0 to 1 (all); more where fewer would change the
        volume so.
    largest_box_voxels
        An object is meshed as a whole, in memory: about `BYTES_PER_VOXEL` for each voxel of its
        box and each worker. Larger ones are refused.

    Raises
    ------
    ConfigError
        A value is impossible.
    """

    smoothing: int = 20
    keep: float = 0.2
    largest_box_voxels: int = 100_000_000

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ConfigError(f"keep {self.keep} of the triangles, expected above 0, up to 1")
        if self.smoothing < 0:
            raise ConfigError(f"{self.smoothing} rounds of smoothing, expected 0 or more")


Save = Callable[[int, Mesh], None]
"""Called with object id and mesh; picklable if the executor has processes."""


def mesh_objects(
    labels: Labels,
    save: Save,
    options: MeshOptions | None = None,
    *,
    how: Blockwise | None = None,
    scratch: Path | None = None,
) -> Table:
    """Mesh every object within its own box and save it.

    Returns
    -------
    Table
        ``object_id``, ``vertices``, ``triangles``, ``volume_nm3`` and ``area_nm2`` of each mesh.

    Raises
    ------
    DataError
        An object's box has more voxels than allowed.
    """
    options, how = options or MeshOptions(), how or Blockwise()
    ids, boxes = object_boxes(labels, how=how.named("boxes"), scratch=scratch)
    check_boxes(labels.name, ids, boxes, options.largest_box_voxels, BYTES_PER_VOXEL)
    blocks = [Block(i, box, box.grow(1)) for i, box in enumerate(boxes)]
    work = _MeshOne(labels, ids, options, save)
    job = f"meshes {labels.name} {labels.grid} {options}"
    with gathered(work, blocks, how.named("objects"), job=job, scratch=scratch) as parts:
        rows = [part["row"] for part in parts]
    columns = np.array(rows, float).reshape(-1, 4).T
    return Table.of(
        object_id=ids,
        vertices=columns[0].astype(np.int64),
        triangles=columns[1].astype(np.int64),
        volume_nm3=columns[2],
        area_nm2=columns[3],
    )


@dataclass(frozen=True)
class _MeshOne:
    labels: Labels
    ids: NDArray[np.uint64]
    options: MeshOptions
    save: Save

    def __call__(self, block: Block) -> Part:
        number = self.ids[block.number]
        mask = self.labels.read(block.core) == number
        mesh = mesh_mask(mask, self.labels.grid.crop(block.core), self.options)
        self.save(int(number), mesh)
        size = (len(mesh.vertices_nm), len(mesh.faces))
        return {"row": np.array([*size, mesh.volume_nm3(), area_nm2(mesh)])}


def mesh_mask(mask: NDArray[np.bool_], grid: Grid, options: MeshOptions) -> Mesh:
    """Mesh one object: marching cubes half-way between voxels, smoothed, with fewer triangles.

    Where the array ends, the mesh is closed. Marching cubes leaves a sixth of a single voxel, and
    half of a line of them.

    Parameters
    ----------
    mask
        The object (z, y, x), anywhere in the array.
    grid
        Of the mask.
    """
    from skimage.measure import marching_cubes

    field = np.pad(mask, 1).astype(np.float32)
    index, faces, _, _ = marching_cubes(field, 0.5, allow_degenerate=False)
    mesh = Mesh(grid.to_world(index - 1.0), np.asarray(faces, np.intp))
    if mesh.volume_nm3() < 0:
        mesh = replace(mesh, faces=np.ascontiguousarray(mesh.faces[:, ::-1]))
    return _simplified(_smoothed(mesh, options.smoothing), options.keep)


def _smoothed(mesh: Mesh, rounds: int) -> Mesh:
    """Smooth in as many rounds as keep the volume, halving them.

    Across a thread of one or two voxels the shape itself is the short wave that smoothing takes.
    """
    while rounds:
        found = smooth(mesh, rounds)
        if _keeps_volume(found, mesh):
            return found
        rounds //= 2
    return mesh


def _simplified(mesh: Mesh, keep: float) -> Mesh:
    """Keep as few triangles as keep the volume, doubling them."""
    while keep < 1:
        found = simplify(mesh, keep)
        if _keeps_volume(found, mesh):
            return found
        keep *= 2
    return mesh


def _keeps_volume(made: Mesh, mesh: Mesh) -> bool:
    volume = mesh.volume_nm3()
    return abs(made.volume_nm3() - volume) <= LARGEST_CHANGE * volume


def smooth(mesh: Mesh, rounds: int) -> Mesh:
    """Smooth without shrinking: a step inwards, a slightly larger one outwards (Taubin 1995).

    What is only one or two voxels thick shrinks all the same.
    """
    from scipy.sparse import coo_array, diags_array

    count = len(mesh.vertices_nm)
    ends = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    ones = np.ones(len(ends))
    near = coo_array((ones, (ends[:, 0], ends[:, 1])), shape=(count, count)).tocsr()
    near = ((near + near.T) > 0).astype(np.float64)
    mean = diags_array(1 / np.maximum(near.sum(axis=1), 1)) @ near
    middle = mesh.vertices_nm.mean(axis=0)
    points = mesh.vertices_nm - middle
    for _ in range(rounds):
        for factor in (_LAMBDA, _MU):
            points = points + factor * (mean @ points - points)
    return replace(mesh, vertices_nm=points + middle)


def simplify(mesh: Mesh, keep: float) -> Mesh:
    """Keep about the part `keep` of the triangles, by quadric edge collapse.

    An object of a few voxels, of which nothing would be left, keeps all.

    Raises
    ------
    DependencyError
        fast-simplification is not installed.
    """
    try:
        import fast_simplification
    except ImportError as error:
        raise DependencyError(
            f"fewer triangles need fast-simplification: {error}",
            hint="pip install 'clemreg-toolkit[measure]', or keep all triangles (--keep 1)",
        ) from error
    middle = mesh.vertices_nm.mean(axis=0)  # float32 holds fine detail near 0 only
    points = (mesh.vertices_nm - middle).astype(np.float32)
    with _ONE_AT_A_TIME:
        points, faces = fast_simplification.simplify(points, mesh.faces.astype(np.int32), 1 - keep)
    if len(faces) < _FEWEST:
        return mesh
    return Mesh(points.astype(np.float64) + middle, np.asarray(faces, np.intp))
