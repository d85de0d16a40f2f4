"""Follow a training in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import DependencyError
from clemreg.segment.validation import Score


class Journal:
    """Writes losses, scores and example slices for TensorBoard.

    Raises
    ------
    DependencyError
        TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise DependencyError(
                f"a training journal needs TensorBoard: {error}",
                hint="pip install tensorboard, or leave --journal away",
            ) from error
        self._writer = SummaryWriter(str(folder))

    def loss(self, step: int, value: float, steps_per_second: float) -> None:
        """Note the mean loss of the last steps."""
        self._writer.add_scalar("loss", value, step)
        self._writer.add_scalar("steps per second", steps_per_second, step)

    def scores(self, step: int, scores: Mapping[str, Score], example: NDArray[np.uint8]) -> None:
        """Note a validation: scores by class, and a picture (y, x)."""
        for name, score in scores.items():
            for measure, value in asdict(score).items():
                self._writer.add_scalar(f"{name}/{measure}", value, step)
        self._writer.add_image("EM, truth, prediction", example, step, dataformats="HW")
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
