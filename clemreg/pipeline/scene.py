"""The volumes that a viewer shows together, from a run or from files, in the LM frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from clemreg.export.bdv import BdvSetup
from clemreg.io.transforms import read_transform
from clemreg.io.volumes import open_labels, open_volume
from clemreg.pipeline.context import RunContext
from clemreg.pipeline.features import open_prediction
from clemreg.pipeline.light import light_channel
from clemreg.pipeline.registration import read_result
from clemreg.register.apply import covering_box, warped_volume
from clemreg.register.registration import affine_of
from clemreg.space.fits import best_affine
from clemreg.space.grid import Box, Grid, Triple
from clemreg.space.transform import Affine, Chain, Transform
from clemreg.units import parse_xyz_nm
from clemreg.volume import Labels, Volume

COLOURS = {"mito": (255, 0, 255), "er": (0, 255, 0)}
LM_COLOURS = ((255, 0, 255), (0, 255, 0), (0, 255, 255), (255, 255, 0))
MASK_COLOUR = (255, 160, 0)
_LOOK = 1 << 24  # voxels that are looked at to find a display range


@dataclass(frozen=True, eq=False)
class Scene:
    """EM and LM with the transform between them.

    Attributes
    ----------
    transform
        LM to EM.
    em, lm
        Volumes in their own frames; `lm` may have channels.
    prediction
        In the EM frame; may have channels.
    labels
        In the EM frame.
    warped
        EM on a grid in the LM frame, the deformation included.
    shifts_nm
        Chromatic shift zyx of light channels, by name or number.
    """

    transform: Transform
    em: Volume
    lm: Volume
    prediction: Volume | None = None
    labels: tuple[Labels, ...] = ()
    warped: Volume | None = None
    shifts_nm: Mapping[str, Triple] = field(default_factory=dict)


@dataclass(frozen=True)
class SceneFiles:
    """Paths from which a scene is made; voxel sizes come from the files.

    Attributes
    ----------
    transform, em, lm
        A transform file (LM to EM) and the two images.
    labels
        Label images in the EM frame.
    warp_spacing
        ``"x, y, z unit"``: voxel size of the warped EM; None: that of the LM.
    em_spacing, lm_spacing
        ``"x, y, z unit"`` for images that do not say their voxel size, or say it wrong.
    lm_shifts_nm
        Chromatic shift zyx of light channels, by name or number.
    """

    transform: str
    em: str
    lm: str
    labels: tuple[str, ...] = ()
    warp_spacing: str | None = None
    em_spacing: str | None = None
    lm_spacing: str | None = None
    lm_shifts_nm: Mapping[str, Triple] = field(default_factory=dict)

    def open_em(self) -> Volume:
        """Open the EM, frame ``"em"``."""
        return _open(self.em, self.em_spacing, "em")

    def open_lm(self) -> Volume:
        """Open the LM, frame ``"lm"``."""
        return _open(self.lm, self.lm_spacing, "lm")


def _open(path: str, spacing: str | None, frame: str) -> Volume:
    override = None if spacing is None else parse_xyz_nm(spacing)
    return open_volume(path, spacing_nm=override, frame=frame)


def files_of_run(context: RunContext) -> SceneFiles:
    """Name the images and the transform of a finished run."""
    config = context.config
    em, lm = context.input(config.em.path), context.input(config.lm.path)
    transform = context.path("registration", "transform.json")
    return SceneFiles(
        str(transform),
        str(em),
        str(lm),
        em_spacing=config.em.voxel_size,
        lm_spacing=config.lm.voxel_size,
        lm_shifts_nm=context.shifts_nm(),
    )


def scene_of_run(context: RunContext) -> Scene:
    """Gather what a finished run has made."""
    return Scene(
        read_result(context),
        context.open_em(),
        context.open_lm(),
        prediction=open_prediction(context),
        warped=context.open_output("warped_em.zarr", "lm"),
        shifts_nm=context.shifts_nm(),
    )


def scene_of_files(files: SceneFiles) -> Scene:
    """Open images and transform; the warped EM is resampled when it is read.

    Raises
    ------
    GridError
        The transform sends the LM elsewhere than to the EM.
    """
    transform = read_transform(files.transform)
    em, lm = files.open_em(), files.open_lm()
    em = em.channel(0) if em.channels else em
    labels = tuple(open_labels(path, frame="em") for path in files.labels)
    onto = lm.grid.crop(covering_box(transform, em.grid, lm.grid))
    if files.warp_spacing is not None:
        onto = onto.with_spacing(parse_xyz_nm(files.warp_spacing))
    warped = None if isinstance(transform, Affine) else warped_volume(transform, em, onto)
    return Scene(transform, em, lm, None, labels, warped, files.lm_shifts_nm)


def affine_part(transform: Transform, grid: Grid) -> Affine:
    """LM to EM: the affine links of a registration, or else the best affine over an LM grid."""
    first = transform.parts[0] if isinstance(transform, Chain) else transform
    if isinstance(first, Affine):
        return affine_of(transform)
    axes = [np.linspace(-0.5, n - 0.5, 7) for n in grid.shape]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    return best_affine(transform, grid.to_world(index))


def affine_placement(scene: Scene) -> Affine:
    """EM to LM by the affine part of the transform, where EM and LM overlap."""
    box = covering_box(scene.transform, scene.em.grid, scene.lm.grid)
    return affine_part(scene.transform, scene.lm.grid.crop(box)).inverse()


def bdv_setups(scene: Scene) -> list[BdvSetup]:
    """EM and prediction (through the affine part), LM channels, warped EM: all in the LM frame."""
    to_lm = affine_placement(scene)
    window = display_window(scene.em)
    title = "EM" if scene.warped is None else "EM (affine)"
    setups = [BdvSetup(scene.em, title, to_lm, window=window, visible=scene.warped is None)]
    for name, part in channels_of(scene.prediction):
        title = f"prediction {name} (affine)".replace("  ", " ")
        setups.append(BdvSetup(part, title, to_lm, MASK_COLOUR, (100, 180), visible=False))
    # The viewer has no colour for each id: from 1 on all are bright, so that none is missed.
    setups += [
        BdvSetup(labels, labels.name, to_lm, MASK_COLOUR, (0.0, 1.0), visible=False)
        for labels in scene.labels
    ]
    for number, (name, part) in enumerate(channels_of(scene.lm)):
        colour, shown = channel_colour(name, number), display_window(part)
        placed = light_channel(scene.lm, name or "0", scene.shifts_nm)
        setups.append(BdvSetup(placed, f"LM {name}".strip(), None, colour, shown))
    if scene.warped is not None:
        setups.append(BdvSetup(scene.warped, "EM warped", None, window=window))
    return setups


def channels_of(volume: Volume | None) -> Iterator[tuple[str, Volume]]:
    """Yield name and volume of each channel; of a volume without channels, itself."""
    if volume is not None:
        for name in volume.channels or ("",):
            yield name, volume.channel(name) if name else volume


def channel_colour(name: str, number: int) -> tuple[int, int, int]:
    """Red, green, blue of a light channel."""
    return COLOURS.get(name, LM_COLOURS[number % len(LM_COLOURS)])


def display_window(volume: Volume) -> tuple[float, float]:
    """Grey values shown as black and as full colour, from the coarsest level.

    Where that is large, it is looked at in planes spread over its depth.
    """
    level = volume.levels[-1]
    if level.dtype.kind == "b":
        return 0.0, 1.0
    count = max(1, min(level.shape[0], _LOOK // (level.shape[1] * level.shape[2])))
    planes = np.unique(np.linspace(0, level.shape[0] - 1, count).round().astype(int))
    if len(planes) == level.shape[0]:
        values = level.read()
    else:
        boxes = [Box((z, 0, 0), (z + 1, *level.shape[1:])) for z in planes]
        values = np.concatenate([level.read(box) for box in boxes])
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [1.0, 99.8]) if finite.size else (0.0, 1.0)
    least = 1.0 if level.dtype.kind in "iu" or high <= low else 0.0
    return float(low), float(max(high, low + least))
