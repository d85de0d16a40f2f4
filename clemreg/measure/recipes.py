"""The contact recipes of Heinrich et al. 2021: which organelles, how near, whose the overlap is."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files

from clemreg.errors import ConfigError
from clemreg.measure.contacts import ContactOptions

PREFIX = "heinrich2021/"


@dataclass(frozen=True)
class ContactRecipe:
    """One kind of contact.

    Attributes
    ----------
    name
        As in the paper's data: ``"heinrich2021/er_mito"``.
    a, b
        Names of the two label volumes.
    options
        How contacts are found.
    """

    name: str
    a: str
    b: str
    options: ContactOptions


def contact_recipes() -> tuple[ContactRecipe, ...]:
    """Return all recipes that come with clemreg."""
    text = files("clemreg.measure").joinpath("heinrich2021-contacts.toml").read_text("utf-8")
    return tuple(
        ContactRecipe(
            PREFIX + name,
            entry["a"],
            entry["b"],
            ContactOptions(entry.get("distance_nm", 10.0), overlap=entry.get("overlap", "shared")),
        )
        for name, entry in tomllib.loads(text).items()
    )


def contact_recipe(name: str) -> ContactRecipe:
    """Return one recipe; the prefix ``heinrich2021/`` may be left out.

    Raises
    ------
    ConfigError
        There is no such recipe; the hint lists those there are.
    """
    recipes = {recipe.name: recipe for recipe in contact_recipes()}
    full = name if name.startswith(PREFIX) else PREFIX + name
    if full not in recipes:
        raise ConfigError(
            f"no contact recipe {name!r}",
            hint=f"there are: {', '.join(n.removeprefix(PREFIX) for n in recipes)}",
        )
    return recipes[full]
