"""What every step of a run knows: the configuration, where files are, and what made them."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from clemreg import __version__
from clemreg.blocks.run import Progress
from clemreg.config import RunConfig, resolve
from clemreg.pipeline.light import light_channel
from clemreg.pipeline.register import GuideFiles, split_channel
from clemreg.pipeline.steps import input_fingerprint
from clemreg.space.grid import Triple
from clemreg.units import given_xyz_nm, parse_xyz_nm
from clemreg.volume import Volume

ENGINES = ("numpy", "scipy", "zarr", "torch", "itk-elastix", "SimpleITK", "scikit-image")


@dataclass(frozen=True)
class RunContext:
    """One run: its configuration, folders and progress display.

    Attributes
    ----------
    config
        Validated configuration.
    base
        Folder that the configuration's relative paths start from.
    progress
        Opens a progress display with a title.
    """

    config: RunConfig
    base: Path
    progress: Callable[[str], AbstractContextManager[Progress]]

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return Path(resolve(self.config.output.dir, self.base))

    def path(self, *parts: str) -> Path:
        """Return a path inside the run folder."""
        return self.folder.joinpath(*parts)

    def input(self, path: str | None) -> str | None:
        """Resolve an input path of the configuration."""
        return None if path is None else resolve(path, self.base)

    def model(self) -> str:
        """Return a file relative to the configuration, or the name of a bundled network."""
        name = self.config.segment.model
        file = resolve(name, self.base)
        return file if Path(name).suffix and Path(file).is_file() else name

    def open_em(self) -> Volume:
        """Open the EM, frame ``"em"``: the channel that is named, or the first."""
        channel = self.config.em.channel
        return self.open_whole_em().channel(0 if channel is None else channel)

    def open_whole_em(self) -> Volume:
        """Open the EM with all its channels, frame ``"em"``."""
        em = self.config.em
        return _open(resolve(em.path, self.base), em.voxel_size, "em")

    def open_lm(self) -> Volume:
        """Open the light volume with all its channels, frame ``"lm"``."""
        lm = self.config.lm
        return _open(resolve(lm.path, self.base), lm.voxel_size, "lm")

    def fitted_channels(self, lm: Volume) -> set[str]:
        """Names of the channels of the light volume that drive the registration."""
        further = (split_channel(text)[0] for text in self.config.register_.channels)
        names = (self.config.lm.channel, *further)
        return {light_channel(lm, name, {}).name for name in names}

    def shifts_nm(self) -> dict[str, Triple]:
        """Return the chromatic shift zyx of each channel that has one."""
        return {name: parse_xyz_nm(text) for name, text in self.config.lm.shifts.items()}

    def open_output(self, name: str, frame: str) -> Volume:
        """Open a volume that an earlier step wrote."""
        return _open(str(self.path(name)), None, frame)

    def guides(self) -> GuideFiles:
        """Return the files that guide the registration, with absolute paths."""
        config = self.config.register_
        also = []
        for text in config.channels:
            name, path, weight = split_channel(text)
            also.append(f"{name}={self.input(path)}@{weight!r}")
        landmarks = self.input(config.landmarks)
        return GuideFiles(
            tuple(also),
            self.input(config.fixed_mask),
            self.input(config.moving_mask),
            None if landmarks is None else Path(landmarks),
            config.use_landmarks,
            parse_xyz_nm(config.fixed_offset) if config.fixed_offset else (0.0, 0.0, 0.0),
        )

    def inputs(self) -> dict[str, str | None]:
        """Fingerprints of every input file."""
        config = self.config
        paths: dict[str, str | None] = {
            "em": config.em.path,
            "prediction": config.em.prediction,
            "lm": config.lm.path,
            "landmarks": config.proof.landmarks,
            "truth": config.proof.truth,
        }
        paths |= {
            f"proof.overlap.{name}": path
            for name, path, _ in map(split_channel, config.proof.overlap)
        }
        found = {name: input_fingerprint(self.input(path)) for name, path in paths.items()}
        return found | self.model_input() | self.guide_inputs()

    def model_input(self) -> dict[str, str | None]:
        """Fingerprint of the network, if it is a file of the user's."""
        model = Path(self.model())
        return {"segment.model": input_fingerprint(model)} if model.is_file() else {}

    def guide_inputs(self) -> dict[str, str | None]:
        """Fingerprints of the files that steer the registration, if there are any."""
        files = self.guides()
        paths: dict[str, str | Path | None] = {
            f"register.channels.{name}": path for name, path, _ in map(split_channel, files.also)
        }
        paths |= {
            f"register.params.{i}": self.input(path)
            for i, path in enumerate(self.config.register_.params)
        }
        paths |= {
            "register.ecs": self.input(self.config.register_.ecs),
            "register.fixed_mask": files.fixed_mask,
            "register.moving_mask": files.moving_mask,
            "register.landmarks": files.landmarks,
        }
        return {name: input_fingerprint(path) for name, path in paths.items() if path is not None}

    def provenance(self) -> dict[str, Any]:
        """Return command, resolved configuration, versions, inputs, seed and threads.

        The command is that of the run, also when its report is written again later.
        """
        return {
            "command": self._command(),
            "config": self.config.model_dump(mode="json", by_alias=True),
            "versions": versions(),
            "inputs": self.inputs(),
            "seed": self.config.register_.seed,
            "threads": self.config.register_.threads or os.cpu_count(),
        }

    def _command(self) -> list[str]:
        try:
            record = json.loads(self.path("run.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return this_command()
        return list(record.get("command", this_command()))


def this_command() -> list[str]:
    """Return the words of the command that is running."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def versions() -> Mapping[str, str]:
    """Versions of clemreg, Python and the engines that are installed."""
    found = {"clemreg": __version__, "python": platform.python_version()}
    for name in ENGINES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _open(uri: str, voxel_size: str | None, frame: str) -> Volume:
    from clemreg.io.volumes import open_volume

    spacing = given_xyz_nm(voxel_size)
    return open_volume(uri, spacing_nm=spacing, frame=frame)
