"""An HTML page of candidates side by side, for the expert's choice. One file, nothing outside."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.refine.scan import Candidate, plane
from clemreg.refine.voxels import Smoothed
from clemreg.space.grid import Box
from clemreg.volume import Labels

WIDEST = 420  # pixels of a picture along its longer side
GOLDEN = 0.618034  # steps of the hue: neighbours in number are far apart in colour


@dataclass(frozen=True)
class _Row:
    candidate: Candidate
    pictures: list[str]
    step: str


def scan_page(
    title: str,
    candidates: Sequence[Candidate],
    basins: Labels,
    smoothed: Smoothed,
    min_volume_nm3: float,
) -> str:
    """Return the page: a table of all candidates, and pictures of three planes of each.

    Parameters
    ----------
    smoothed
        The prediction that the candidates were made from, as the background of the pictures.
    min_volume_nm3
        Objects up to this were left out.
    """
    from jinja2 import Environment

    depth, height, width = basins.shape
    planes = sorted({depth // 4, depth // 2, 3 * depth // 4})
    greys = {z: smoothed(Box((z, 0, 0), (z + 1, height, width)))[0] for z in planes}
    rows = [
        _Row(
            c,
            [_picture(plane(c, basins, z), greys[z], basins) for z in planes],
            _step(c, smoothed.sigma_nm, min_volume_nm3),
        )
        for c in candidates
    ]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = (files("clemreg.refine") / "scan.html").read_text(encoding="utf-8")
    scored = any(c.f1 is not None for c in candidates)
    return environment.from_string(source).render(
        title=title, rows=rows, planes=planes, scored=scored, grid=basins.grid
    )


def _step(candidate: Candidate, sigma_nm: float, min_volume_nm3: float) -> str:
    """Line of a recipe that makes the candidate."""
    sigma, smallest = f"sigma_nm = {sigma_nm}", f"min_volume_nm3 = {min_volume_nm3}"
    s = candidate.settings
    chosen = f"quantile = {s.quantile}, threshold = {s.threshold}"
    return f'{{ do = "watershed", {chosen}, {sigma}, {smallest} }}'


def colours(ids: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Colour (..., 3) of each id, always the same for the same id; 0 is black."""
    hue = (ids * GOLDEN) % 1.0
    turn = np.stack([hue, hue + 1 / 3, hue + 2 / 3], axis=-1) % 1.0
    wave = np.clip(np.abs(turn * 6 - 3) - 1, 0, 1)
    rgb = np.where(ids[..., None] > 0, 70 + 185 * wave, 0)
    return rgb.astype(np.uint8)


def _picture(ids: NDArray[np.int64], grey: NDArray[Any], basins: Labels) -> str:
    """Objects over the prediction, as an inline PNG with square pixels."""
    from PIL import Image

    edge = np.zeros(ids.shape, dtype=bool)
    down, right = ids[:-1] != ids[1:], ids[:, :-1] != ids[:, 1:]
    edge[:-1] |= down
    edge[1:] |= down
    edge[:, :-1] |= right
    edge[:, 1:] |= right
    back = np.repeat((grey[..., None] * 0.55).astype(np.uint8), 3, axis=-1)
    rgb = np.where(ids[..., None] > 0, (colours(ids) * 0.75 + back * 0.25).astype(np.uint8), back)
    rgb[edge & (ids > 0)] = 255
    _, y_nm, x_nm = basins.grid.extent_nm
    scale = WIDEST / max(y_nm, x_nm)
    image = Image.fromarray(rgb.astype(np.uint8)).resize(
        (max(1, round(x_nm * scale)), max(1, round(y_nm * scale))), Image.Resampling.BILINEAR
    )
    stream = io.BytesIO()
    image.quantize(96).save(stream, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
