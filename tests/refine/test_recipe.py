from __future__ import annotations

import pytest

from clemreg.errors import ConfigError
from clemreg.refine.recipe import load_recipe, presets

# The paper's table, all of its lines: cells, whether smoothed, smallest volume in nm^3 (None: not
# limited), what it is masked with, by how many nm that is expanded, and whether inside is kept.
FOUR = ("jrc_hela-2", "jrc_hela-3", "jrc_jurkat-1", "jrc_macrophage-2")
TWO = ("jrc_hela-1", "jrc_choroid-plexus-2")
SIX, COS = (*FOUR, *TWO), ("jrc_cos7-11",)
NUCLEUS_NM = dict(zip(FOUR, (80.0, 80.0, 150.0, 200.0), strict=True))
LINES = [
    ("ecs", FOUR, False, 1.7e9, None),
    ("pm", SIX, False, 2e7, None),
    ("mito", TWO, True, 2e7, None),
    ("mito", COS, False, 2e7, ("ecs-largest", 150.0, False)),
    ("vesicle", SIX, False, 3.3e4, None),
    ("endo", SIX, True, 5e5, ("mito", 30.0, False)),
    ("er", (*SIX, *COS), False, 2e7, None),
    ("eres", FOUR, False, 3e5, ("er", 0.0, True)),
    ("nucleus", ("jrc_hela-2", "jrc_hela-3", "jrc_macrophage-2", *TWO), True, 1.7e9, None),
    ("nucleolus", FOUR, True, 5e5, ("nucleus", 0.0, True)),
    ("golgi", FOUR, False, 2e7, None),
    ("lyso", FOUR, True, 5e5, None),
    ("ld", FOUR, True, 5e5, None),
    ("np", FOUR, False, 3e5, ("ne", 0.0, True)),
    ("chrom", FOUR, True, 8e3, ("nucleus", 0.0, True)),
    ("nhchrom", FOUR, False, 8e3, ("nucleus", 0.0, True)),
    ("cent", FOUR, False, 3e5, None),
    ("cent-dapp", FOUR, False, 8e3, None),
]
SPLIT = {
    ("mito", "jrc_hela-2"): (0.25, 0.9),
    ("mito", "jrc_hela-3"): (0.25, 0.875),
    ("mito", "jrc_jurkat-1"): (0.5, 0.6),
    ("mito", "jrc_macrophage-2"): (0.5, 0.7),
    ("nucleus", "jrc_jurkat-1"): (0.25, 0.1),
}
MEMBRANES = [
    *((name, cell) for name in ("vesicle", "endo", "er", "golgi", "lyso", "ld", "ne")
      for cell in FOUR),
    *(("mito", cell) for cell in (*FOUR, *COS)),
]  # fmt: skip


def steps(recipe, name):
    return {step.do: step for step in recipe.organelles[name].steps}


@pytest.mark.parametrize(
    ("cell", "line"),
    [(c, line) for line in LINES for c in line[1]],
    ids=lambda x: x if isinstance(x, str) else x[0],
)
def test_presets_say_what_every_line_of_the_paper_s_table_says(cell, line):
    name, _, smoothed, volume, mask = line
    of = steps(load_recipe(f"heinrich2021/{cell}"), name)
    assert of["components"].min_volume_nm3 == volume
    assert [s.sigma_nm for s in of.values() if s.do == "smooth"] == [12.0] * smoothed
    assert of["threshold"].distance_nm == 0
    masks = [of[do] for do in ("keep_inside", "remove_inside") if do in of]
    found = [(s.mask, s.expand_nm, s.do == "keep_inside") for s in masks]
    assert found == ([] if mask is None else [mask])
    filled = [s.min_volume_nm3 for s in of.values() if s.do == "fill_holes"]
    assert filled == ([2e7] if name == "mito" else [])


@pytest.mark.parametrize(("name", "cell"), SPLIT)
def test_presets_split_as_in_the_paper(name, cell):
    of = steps(load_recipe(f"heinrich2021/{cell}"), name)
    split = of.pop("watershed")
    assert (split.quantile, split.threshold, split.sigma_nm) == (*SPLIT[name, cell], 12.0)
    assert split.affinity == ("quantile_by_contact" if name == "nucleus" else "quantile")
    assert split.min_volume_nm3 == 0
    assert {do: s.min_volume_nm3 for do, s in of.items()} == (
        {"fill_holes": 2e7} if name == "mito" else {}
    )


@pytest.mark.parametrize("cell", FOUR)
def test_presets_of_the_nuclear_envelope_and_the_peripheral_er(cell):
    recipe = load_recipe(f"heinrich2021/{cell}")
    assert recipe.organelles["er-periph"].of == "er"
    periphery = steps(recipe, "er-periph")["remove_inside"]
    assert (periphery.mask, periphery.expand_nm) == ("nucleus", NUCLEUS_NM[cell])
    envelope = steps(recipe, "ne")
    assert envelope["components"].min_volume_nm3 == 3e5
    inside = envelope["keep_inside"]
    assert (inside.mask, inside.expand_nm) == ("nucleus", NUCLEUS_NM[cell])


@pytest.mark.parametrize(("parent", "cell"), MEMBRANES)
def test_presets_give_membranes_the_id_of_their_organelle(parent, cell):
    of = steps(load_recipe(f"heinrich2021/{cell}"), f"{parent}-mem")
    assert list(of) == ["threshold", "assign"]
    assert of["assign"].parent == parent


def test_the_membrane_that_was_registered_to_light_microscopy():
    recipe = load_recipe("heinrich2021/jrc_cos7-11")
    assert [s.do for s in recipe.organelles["ecs-largest"].steps][-2:] == ["components", "largest"]
    assert "smooth" in steps(recipe, "ecs-largest")
    assert steps(recipe, "mito-mem-registered")["keep_inside"].expand_nm == 16.0


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
