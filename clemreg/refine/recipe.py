"""Recipes: which steps turn the predictions of a cell into its organelles. TOML, units in names."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError

from clemreg.errors import ConfigError

PRESETS = files("clemreg.refine") / "recipes"
Ids = Annotated[tuple[int, ...], Field(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Smooth(_Model):
    """Blur the prediction with a Gaussian; the paper's sigma is 12 nm, 3 voxels of 4 nm."""

    do: Literal["smooth"]
    sigma_nm: Annotated[float, Field(gt=0)] = 12.0


class Threshold(_Model):
    """Keep what is at least `distance_nm` inside the predicted surface; 0 is a value of 127."""

    do: Literal["threshold"]
    distance_nm: float = 0.0


class KeepInside(_Model):
    """Keep voxels within `expand_nm` of another organelle of the recipe."""

    do: Literal["keep_inside"]
    mask: str
    expand_nm: NonNegativeFloat = 0.0


class RemoveInside(_Model):
    """Remove voxels within `expand_nm` of another organelle of the recipe."""

    do: Literal["remove_inside"]
    mask: str
    expand_nm: NonNegativeFloat = 0.0


class ComponentsStep(_Model):
    """Give each 6-connected object an id; objects up to the minimum volume are dropped."""

    do: Literal["components"]
    min_volume_nm3: NonNegativeFloat = 0.0


class WatershedStep(_Model):
    """Split by watershed, and merge again fragments whose shared boundary is strong.

    `quantile` (0 to 1) is taken of the affinities along a boundary; fragments merge while
    ``1 - affinity`` there is at most `threshold`. With ``"quantile_by_contact"`` the quantile is
    divided by tanh of the number of voxel pairs along the boundary.
    """

    do: Literal["watershed"]
    quantile: Annotated[float, Field(ge=0, le=1)]
    threshold: Annotated[float, Field(ge=0, le=1)]
    affinity: Literal["quantile", "quantile_by_contact"] = "quantile"
    sigma_nm: Annotated[float, Field(gt=0)] = 12.0
    min_volume_nm3: NonNegativeFloat = 0.0


class FillHoles(_Model):
    """Fill background that touches one object only and not the volume's border."""

    do: Literal["fill_holes"]
    min_volume_nm3: NonNegativeFloat = 0.0


class Largest(_Model):
    """Keep the object with the most voxels."""

    do: Literal["largest"]


class Keep(_Model):
    """Keep the objects with these ids."""

    do: Literal["keep"]
    ids: Ids


class Drop(_Model):
    """Remove the objects with these ids."""

    do: Literal["drop"]
    ids: Ids


class KeepAdjacent(_Model):
    """Keep the objects with these ids and those that touch one of them."""

    do: Literal["keep_adjacent"]
    ids: Ids


class Assign(_Model):
    """Give each voxel the id that the parent organelle has there, 0 where it has none."""

    do: Literal["assign"]
    parent: str


StepModel = Annotated[
    Smooth
    | Threshold
    | KeepInside
    | RemoveInside
    | ComponentsStep
    | WatershedStep
    | FillHoles
    | Largest
    | Keep
    | Drop
    | KeepAdjacent
    | Assign,
    Field(discriminator="do"),
]


class Organelle(_Model):
    """One output.

    Attributes
    ----------
    source
        Names under which the prediction may be found; the first that is there counts. The
        organelle's own is the last of them.
    of
        Start from this organelle of the recipe instead of from a prediction.
    steps
        In order.
    """

    source: tuple[str, ...] = ()
    of: str | None = None
    steps: Annotated[tuple[StepModel, ...], Field(min_length=1)]

    @property
    def needs(self) -> tuple[str, ...]:
        """Other organelles of the recipe that come first."""
        named = [self.of, *(_needed(step) for step in self.steps)]
        return tuple(dict.fromkeys(name for name in named if name is not None))


class Recipe(_Model):
    """Steps for each organelle, by output name."""

    about: str = ""
    base: str | None = None
    organelles: Mapping[str, Organelle]

    def in_order(self, wanted: tuple[str, ...] = ()) -> Iterator[tuple[str, Organelle]]:
        """Organelles, each after those it needs.

        Parameters
        ----------
        wanted
            Only these and what they need; empty: all.

        Raises
        ------
        ConfigError
            A name is not in the recipe, or organelles need each other in a circle.
        """
        done: set[str] = set()
        for name in wanted or self.organelles:
            yield from self._visit(name, done, ())

    def _visit(
        self, name: str, done: set[str], path: tuple[str, ...]
    ) -> Iterator[tuple[str, Organelle]]:
        if name in done:
            return
        if name in path:
            raise ConfigError(f"organelles need each other: {' > '.join((*path, name))}")
        if name not in self.organelles:
            asker = f"; {path[-1]!r} needs it" if path else ""
            raise ConfigError(
                f"there is no organelle {name!r} in the recipe{asker}",
                hint=f"it has: {', '.join(self.organelles)}",
            )
        organelle = self.organelles[name]
        for needed in organelle.needs:
            yield from self._visit(needed, done, (*path, name))
        done.add(name)
        yield name, organelle


def _needed(step: _Model) -> str | None:
    if isinstance(step, (KeepInside, RemoveInside)):
        return step.mask
    return step.parent if isinstance(step, Assign) else None


def load_recipe(name: str) -> Recipe:
    """Read a recipe: a preset such as ``heinrich2021/jrc_hela-2`` or ``generic``, or a TOML file.

    A recipe with a `base` takes over the organelles of that recipe that it does not name itself.

    Raises
    ------
    ConfigError
        There is no such recipe, the TOML is broken, or a key is unknown or impossible.
    """
    data = _read(name)
    seen = [name]
    while (base := data.get("base")) is not None:
        if base in seen:
            raise ConfigError(f"recipe {name} is based on itself: {' > '.join([*seen, base])}")
        seen.append(base)
        under = _read(base)
        data = {
            **data,
            "base": under.get("base"),
            "organelles": {**under.get("organelles", {}), **data.get("organelles", {})},
        }
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        faults = [f"  {'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors()]
        raise ConfigError(
            f"invalid recipe {name}:\n" + "\n".join(faults),
            hint="docs/how-to/refine.md lists every step with its keys",
        ) from error
    for _ in recipe.in_order():
        pass  # names and order are checked by going through them
    return recipe


def presets() -> tuple[str, ...]:
    """Names of the recipes that come with clemreg."""
    return tuple(sorted(_names(PRESETS, "")))


def _names(folder: Traversable, prefix: str) -> Iterator[str]:
    for child in folder.iterdir():
        if child.is_dir():
            yield from _names(child, f"{prefix}{child.name}/")
        elif child.name.endswith(".toml"):
            yield prefix + child.name.removesuffix(".toml")


def _read(name: str) -> dict[str, Any]:
    path: Traversable = Path(name)
    if not name.endswith(".toml"):
        if name not in presets():
            raise ConfigError(
                f"there is no recipe {name!r}", hint=f"a .toml file, or: {', '.join(presets())}"
            )
        path = PRESETS / f"{name}.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {name}: {error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} is not valid TOML: {error}") from error
