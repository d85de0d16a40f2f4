"""N5 displacement fields as BigWarp exports them and as the JRC2018 templates are published."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError, DataError
from clemreg.export.sampled_field import BLOCK, SampledField
from clemreg.io.atomic import atomic_path, atomic_write_json
from clemreg.io.n5 import disk_errors, kvstore
from clemreg.io.n5_field import FORWARD, INVERSE, field_attributes
from clemreg.io.xyz import flip
from clemreg.space.grid import Box
from clemreg.space.transform import Affine, FloatArray
from clemreg.units import nm_per


@dataclass(frozen=True)
class FieldOptions:
    """How a field is stored.

    Attributes
    ----------
    unit
        Unit of displacement, spacing and offset.
    max_error_nm
        None stores float32; else 16-bit integers that are off by at most this.
    with_inverse
        Whether ``invdfield``, EM to LM, is written beside ``dfield``.
    overwrite
        Whether a container of that name is replaced.
    """

    unit: str = "um"
    max_error_nm: float | None = None
    with_inverse: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.max_error_nm is not None and self.max_error_nm <= 0:
            raise ConfigError(
                f"integers cannot be off by at most {self.max_error_nm:g} nm",
                hint="allow an error above 0, or leave it out and store floating point",
            )


def write_n5_field(
    path: str | Path,
    field: SampledField,
    options: FieldOptions | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write an N5 container with the dataset ``dfield``.

    Parameters
    ----------
    path
        Folder, whole or not there.
    field
        Maps the LM (BigWarp's target) to the EM (moving), as BigWarp's forward field does.
    options
        How it is stored.
    progress
        Told of every block.

    Raises
    ------
    DataError
        A displacement is too long for 16 bits with the error that is allowed.
    StorageError
        It exists and must not be replaced, or cannot be written.

    Notes
    -----
    Dimensions are (component, x, y, z); the attributes ``spacing``, ``offset``, ``affine`` (3 x 4,
    row by row) and ``quantization_multiplier`` are in x, y, z. The total is ``affine(x + d(x))``.
    """
    options = options or FieldOptions()
    with atomic_path(path, overwrite=options.overwrite) as partial:
        partial.mkdir(parents=True)
        atomic_write_json(partial / "attributes.json", {"n5": "2.5.1"})
        store_field(partial / FORWARD, field, field.affine, options, progress)
        if options.with_inverse:
            inverse = field.inverse()
            back = None if field.affine is None else field.affine.inverse()
            store_field(partial / INVERSE, inverse, back, options, progress)
    return Path(path)


def store_field(
    folder: Path,
    field: SampledField,
    affine: Affine | None,
    options: FieldOptions,
    progress: Progress | None,
) -> None:
    """Write one dataset; `affine` is its attribute."""
    import tensorstore

    step = None if options.max_error_nm is None else 2 * options.max_error_nm / nm_per(options.unit)
    shape = (3, *field.grid.shape[::-1])
    metadata = {
        "dimensions": list(shape),
        "blockSize": [min(n, b) for n, b in zip(shape, (3, *BLOCK), strict=True)],
        "dataType": "float32" if step is None else "int16",
        "compression": {"type": "gzip", "level": 6, "useZlib": False},
    }
    spec = {"driver": "n5", "kvstore": kvstore(folder), "metadata": metadata}
    array = tensorstore.open(spec, create=True).result()

    def store(box: Box, displacement: FloatArray) -> None:
        values = flip(displacement) / nm_per(options.unit)
        packed = values.astype(np.float32) if step is None else _quantised(values, step)
        with disk_errors():
            array[(slice(None), *box.slices[::-1])].write(packed.transpose()).result()

    field.write(store, progress=progress)
    attributes = field_attributes(field.grid, affine, options.unit)
    if step is not None:
        attributes["quantization_multiplier"] = step
    path = folder / "attributes.json"
    atomic_write_json(path, json.loads(path.read_text(encoding="utf-8")) | attributes)


def _quantised(values: FloatArray, step: float) -> NDArray[np.int16]:
    whole = np.rint(values / step)
    longest = float(np.abs(whole).max(initial=0))
    if longest > np.iinfo(np.int16).max:
        raise DataError(
            f"a displacement is {longest:.0f} steps long, 16 bits hold 32767",
            hint="allow a larger error, or store floating point",
        )
    return whole.astype(np.int16)
