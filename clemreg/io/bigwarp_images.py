"""Where BigWarp shows an image, against where clemreg says it is.

BigWarp places a TIFF by its voxel size, and since version 9 by ImageJ's calibration origin, which
it takes for a length that is added (ImageJ means voxels, subtracted; older versions ignore it). It
knows nothing of the origin that clemreg writes as a note, and clemreg never sets that of ImageJ.
Source: ``ImagePlusLoader`` in BigWarp's repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from clemreg.errors import FormatError
from clemreg.io import tiff
from clemreg.io.origin_note import KEEP_THE_PLACE

Triple = tuple[float, float, float]
NOTHING = (0.0, 0.0, 0.0)


def left_out_nm(path: str | Path) -> Triple:
    """Return what is to be added to BigWarp's coordinates of a TIFF: zyx, nm.

    Raises
    ------
    FormatError
        It is not a readable TIFF, or was cropped after its origin was noted.
    """
    source = tiff.open_source(Path(path))
    if source.lost_origin:
        raise FormatError(f"{path}: {source.lost_origin}", hint=KEEP_THE_PLACE)
    shown = tiff.calibration_origin(Path(path))
    z, y, x = (a - b for a, b in zip(source.levels[0].origin_nm, shown, strict=True))
    return z, y, x


def left_out_of_sources(project: Mapping[str, Any], where: str) -> tuple[Triple, Triple]:
    """Return the same for the EM (moving) and the LM (target) of a BigWarp project file.

    Only TIFF files that are still there are looked at: other images are shown where they are, or
    what BigWarp does with them is not known.

    Parameters
    ----------
    project
        The project's JSON object; its ``Sources`` name the images.
    where
        Name of the project, for messages.

    Raises
    ------
    FormatError
        Images of one side were shown at different offsets.
    """
    sources = project.get("Sources")
    found: dict[bool, list[Triple]] = {True: [], False: []}
    for source in sources.values() if isinstance(sources, dict) else ():
        path = _tiff_of(source)
        if path is not None:
            found[source.get("isMoving") is True].append(left_out_nm(path))
    em, lm = (_the_one(found[moving], where) for moving in (True, False))
    return em, lm


def _the_one(offsets: list[Triple], where: str) -> Triple:
    if len(offsets) > 1 and not np.allclose(offsets, offsets[0]):
        raise FormatError(
            f"{where}: its images of one side start at different places, {offsets} nm (z, y, x), "
            "but BigWarp showed all from 0",
            hint="make the landmarks on images that start at one place, or on --bdv copies",
        )
    return offsets[0] if offsets else NOTHING


def _tiff_of(source: Any) -> Path | None:
    uri = source.get("uri") if isinstance(source, dict) else None
    if not isinstance(uri, str):
        return None
    parts = urlsplit(uri)
    path = Path(unquote(parts.path) if parts.scheme == "file" else uri)
    return path if tiff.matches(path) else None
