from __future__ import annotations

import pytest

from clemreg.errors import ConfigError
from clemreg.refine.recipe import load_recipe, presets

# What the paper's table says: smoothing, smallest volume in nm^3.
TABLE = {
    "ecs": (False, 1.7e9),
    "pm": (False, 2e7),
    "vesicle": (False, 3.3e4),
    "endo": (True, 5e5),
    "er": (False, 2e7),
    "eres": (False, 3e5),
    "nucleolus": (True, 5e5),
    "chrom": (True, 8e3),
    "nhchrom": (False, 8e3),
    "golgi": (False, 2e7),
    "lyso": (True, 5e5),
    "ld": (True, 5e5),
    "ne": (False, 3e5),
    "np": (False, 3e5),
    "cent": (False, 3e5),
    "cent-dapp": (False, 8e3),
}
CELLS = {
    "jrc_hela-2": ((0.25, 0.9), 80.0),
    "jrc_hela-3": ((0.25, 0.875), 80.0),
    "jrc_jurkat-1": ((0.5, 0.6), 150.0),
    "jrc_macrophage-2": ((0.5, 0.7), 200.0),
}


def steps(recipe, name):
    return {step.do: step for step in recipe.organelles[name].steps}


@pytest.mark.parametrize("cell", CELLS)
def test_presets_say_what_the_paper_says(cell):
    recipe = load_recipe(f"heinrich2021/{cell}")
    for name, (smoothed, volume) in TABLE.items():
        of = steps(recipe, name)
        assert of["components"].min_volume_nm3 == volume, name
        assert ("smooth" in of) == smoothed, name
        if smoothed:
            assert of["smooth"].sigma_nm == 12.0
    (quantile, threshold), nucleus_nm = CELLS[cell]
    mito = steps(recipe, "mito")
    assert (mito["watershed"].quantile, mito["watershed"].threshold) == (quantile, threshold)
    assert mito["fill_holes"].min_volume_nm3 == 2e7
    periphery = steps(recipe, "er-periph")["remove_inside"]
    assert (periphery.mask, periphery.expand_nm) == ("nucleus", nucleus_nm)
    endo = steps(recipe, "endo")["remove_inside"]
    assert (endo.mask, endo.expand_nm) == ("mito", 30.0)
    for name, mask in {
        "eres": "er",
        "nucleolus": "nucleus",
        "chrom": "nucleus",
        "np": "ne",
    }.items():
        assert steps(recipe, name)["keep_inside"].mask == mask
    assert steps(recipe, "mito-mem")["assign"].parent == "mito"


def test_the_cell_for_light_microscopy():
    recipe = load_recipe("heinrich2021/jrc_cos7-11")
    mito = steps(recipe, "mito")
    assert "smooth" not in mito
    assert (mito["remove_inside"].mask, mito["remove_inside"].expand_nm) == ("ecs-largest", 150.0)
    assert steps(recipe, "ecs-largest")["largest"]
    assert steps(recipe, "mito-mem")["keep_inside"].expand_nm == 16.0


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_in_an_order_that_can_be_worked(name):
    done = set()
    for organelle, recipe in load_recipe(name).in_order():
        assert set(recipe.needs) <= done
        done.add(organelle)
    assert "mito" in done


def test_only_what_is_wanted_and_what_it_needs():
    recipe = load_recipe("heinrich2021/jrc_hela-2")
    assert [name for name, _ in recipe.in_order(("np",))] == ["nucleus", "ne", "np"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("organelles = 3", "organelles"),
        ("[organelles.mito]\nsteps = []", "organelles.mito.steps"),
        ('[organelles.mito]\nsteps = [{do = "smoth"}]', "smoth"),
        ('[organelles.mito]\nsteps = [{do = "smooth", sigma = 3}]', "sigma"),
        ('[organelles.mito]\nsteps = [{do = "smooth", sigma_nm = -1}]', "greater than 0"),
        ('[organelles.a]\nsteps = [{do = "assign", parent = "b"}]', "no organelle 'b'.*'a' needs"),
        (
            '[organelles.a]\nof = "b"\nsteps = [{do = "largest"}]\n'
            '[organelles.b]\nof = "a"\nsteps = [{do = "largest"}]',
            "a > b > a",
        ),
        ('base = "no"\n[organelles]', "no recipe 'no'"),
        ("[organelles", "not valid TOML"),
    ],
)
def test_faults_are_named(tmp_path, text, message):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(str(path))


def test_recipes_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no recipe 'heinrich2021/hela'") as caught:
        load_recipe("heinrich2021/hela")
    assert "jrc_hela-2" in str(caught.value)
    with pytest.raises(ConfigError, match="cannot read"):
        load_recipe(str(tmp_path / "absent.toml"))
    with pytest.raises(ConfigError, match="no organelle 'x'"):
        list(load_recipe("generic").in_order(("x",)))


def test_a_recipe_of_ones_own_on_top_of_a_preset(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "generic"\n[organelles.er]\nsteps = [{do = "threshold"}]\n')
    recipe = load_recipe(str(path))
    assert [s.do for s in recipe.organelles["er"].steps] == ["threshold"]
    assert "mito" in recipe.organelles
