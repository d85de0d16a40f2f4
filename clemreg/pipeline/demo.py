"""The demo: the sample pair, registered with its own configuration into another folder."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path

import tomli_w

from clemreg.errors import MissingError
from clemreg.io.atomic import atomic_write_text


def demo_config(data: Path | None, out: Path) -> Path:
    """Write ``out/config.toml``: the sample pair's configuration with absolute input paths.

    Parameters
    ----------
    data
        Folder with ``config.toml`` of a simulated pair; default: `find_sample_data`.
    out
        Folder of the run.

    Raises
    ------
    MissingError
        The sample pair is not there.
    """
    folder = (find_sample_data() if data is None else data).resolve()
    template = folder / "config.toml"
    if not template.is_file():
        raise MissingError(
            f"no sample pair at {folder}",
            hint="`clemreg simulate clem --out DIR` makes one; then `clemreg demo --data DIR`",
        )
    config = tomllib.loads(template.read_text(encoding="utf-8"))
    for section, key in _PATHS:
        if key in config.get(section, {}):
            config[section][key] = str(folder / config[section][key])
    config.setdefault("output", {})["dir"] = "."
    out.mkdir(parents=True, exist_ok=True)
    path = out / "config.toml"
    text = tomli_w.dumps(config)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        atomic_write_text(path, text)
    return path


_PATHS = (
    *(("em", key) for key in ("path", "prediction")),
    ("lm", "path"),
    *(("proof", key) for key in ("landmarks", "truth")),
    *(("register", key) for key in ("fixed_mask", "moving_mask", "landmarks", "ecs")),
)


def find_sample_data() -> Path:
    """Find ``sample_data`` beside the package (a checkout); the wheel does not carry it."""
    return Path(str(files("clemreg"))).parent / "sample_data"
