from __future__ import annotations

import numpy as np
import pytest

from clemreg.errors import ConfigError, MissingError
from clemreg.segment.classes import (
    ALL,
    ATOMS,
    CATEGORIES,
    FEW,
    MANY,
    AnnotatedIds,
    Annotation,
    category,
    cytosol_mask,
    parts_of,
    weight_source,
    wholes_of,
)
from clemreg.segment.setups import SETUPS, setup

IDS = {c.name: set(c.ids) for c in CATEGORIES}


def annotated(present, absent=()) -> AnnotatedIds:
    return AnnotatedIds(frozenset(present), frozenset(absent))


def test_counts_of_the_paper():
    assert [a.id for a in ATOMS] == list(range(1, 38))
    assert len({a.cellmap for a in ATOMS}) == 37
    assert len(CATEGORIES) == len(IDS) == 35
    for key in ("paper", "cellmap"):
        assert len({getattr(c, key) for c in CATEGORIES}) == 35
    assert len(ALL) == 34
    assert set(IDS) - set(ALL) == {"ERES_membrane"}
    assert len(MANY) == 14
    assert len(FEW) == 14


def test_every_id_but_two_is_in_a_category():
    covered = set().union(*IDS.values())
    assert set(range(1, 38)) - covered == {35}  # the cytosol
    assert 24 in IDS["chromatin"]
    assert {24} not in IDS.values()  # no channel of its own
    assert 28 in IDS["nucleus"]
    assert {28} not in IDS.values()


def test_single_ids_carry_the_same_cellmap_name_as_their_category():
    for c in CATEGORIES:
        if len(c.ids) == 1:
            assert ATOMS[c.ids[0] - 1].cellmap == c.cellmap


def test_hierarchy_is_closed():
    for c in CATEGORIES:
        for part in parts_of(c.name):
            assert IDS[part] < IDS[c.name]
            assert set(parts_of(part)) <= set(parts_of(c.name))
            assert c.name in wholes_of(part)
        if c.parent:
            assert IDS[c.name] < IDS[c.parent]
        for name in c.absorbs:
            assert name in IDS
    assert set(parts_of("er")) == {
        "er_membrane", "ERES", "ERES_membrane", "NE", "NE_membrane", "nuclear_pore",
        "nuclear_pore_out",
    }  # fmt: skip
    assert {"NE", "nuclear_pore", "nucleolus", "chromatin", "NHChrom"} <= set(parts_of("nucleus"))
    assert wholes_of("mito_DNA") == ("mito",)
    assert parts_of("er_membrane") == ("ERES_membrane",)  # not NE_membrane: it has the pores


def test_what_the_paper_treats_apart():
    assert {c.name for c in CATEGORIES if c.separate} == {"nucleolus", "centrosome", "ribosomes"}
    grown = {c.name: c.grown_nm for c in CATEGORIES if c.grown_nm}
    assert grown == {"centrosome": 2, "ribosomes": 8}
    assert category("nucleus").generic_id == 37
    assert weight_source("mito_membrane", ("mito", "mito_membrane")) == "mito"
    assert weight_source("mito_membrane", ("mito_membrane",)) == "mito_membrane"
    assert weight_source("golgi_membrane", ("golgi", "golgi_membrane")) == "golgi_membrane"


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("endo", "MVB"), ("mito-ribo", "mito_DNA"), ("mito_ribo", "mito_DNA"), ("ne", "NE"),
        ("np", "nuclear_pore"), ("cent-dapp", "distal_app"), ("ld", "LD"), ("eres", "ERES"),
        ("nhchrom", "NHChrom"), ("echrom", "EChrom"), ("mito-mem_pred", "mito_membrane"),
        ("er_seg", "er"), ("ves", "vesicle"), ("nuc", "nucleus"), ("nucleo", "nucleolus"),
        ("lysosome", "lysosome"), ("ribo", "ribosomes"), ("pm", "plasma_membrane"),
    ],
)  # fmt: skip
def test_names_of_paper_portal_and_cellmap(alias, name):
    assert category(alias).name == name


def test_names_do_not_clash_between_vocabularies():
    for c in CATEGORIES:
        assert category(c.name) is category(c.paper) is category(c.cellmap) is c


def test_unknown_name():
    with pytest.raises(MissingError, match="no class 'mitos'") as error:
        category("mitos")
    assert "mito_membrane" in error.value.hint


def test_absent_is_known_and_unknown_is_not():
    mito, nucleus = category("mito"), category("nucleus")
    assert annotated({3, 4, 5, 35}).of(mito) is Annotation.PRESENT
    assert annotated({35}, {3, 4, 5}).of(mito) is Annotation.ABSENT
    assert annotated({3, 4, 35}, {5}).of(mito) is Annotation.PRESENT
    assert annotated({3, 4, 35}).of(mito) is Annotation.UNKNOWN  # nobody looked for ribosomes
    assert annotated({35}).of(mito) is Annotation.UNKNOWN
    assert annotated({37}).of(nucleus) is Annotation.PRESENT
    assert annotated({35}, {37}).of(nucleus) is Annotation.ABSENT
    assert annotated({20}, set(range(21, 30))).of(nucleus) is Annotation.PRESENT
    assert annotated(set(range(21, 30))).of(nucleus) is Annotation.UNKNOWN


def test_impossible_annotations():
    with pytest.raises(ConfigError, match=r"\[3\] are said to be present and absent"):
        annotated({3}, {3})
    with pytest.raises(ConfigError, match=r"\[0, 38\]"):
        annotated({0, 3}, {38})


def test_cytosol_is_what_nothing_else_claims():
    rng = np.random.default_rng(0)
    masks = {name: rng.random((5, 6, 7)) < 0.03 for name in ALL}
    masks["er"][0, 0, 0] = True
    masks["ribosomes"][:] = True
    found = cytosol_mask({category(n).cellmap: m for n, m in masks.items()})
    expected = [m for n, m in masks.items() if n != "ribosomes"]
    np.testing.assert_array_equal(found, np.sum(expected, axis=0) == 0)
    assert 0 < found.sum() < found.size
    with pytest.raises(ConfigError, match="golgi"):
        cytosol_mask({name: masks[name] for name in MANY})
    assert category("cyto").ids == (35,)
    assert "cytosol" not in IDS


def test_setups_of_the_paper():
    names = [s.name for s in SETUPS]
    assert len(set(names)) == len(names) == 38
    assert len(setup("01").classes) == 34
    assert setup("setup03").classes == setup("04").classes == MANY
    assert setup("26.1").classes == ("mito", "mito_membrane", "mito_DNA")
    assert {s.input_nm for s in SETUPS} == {4.0, 8.0}
    assert (setup("45").input_nm, setup("46").input_nm) == (4.0, 8.0)
    assert [setup(n).iterations for n in ("45", "46")] == [1_000_000, 1_700_000]
    assert {s.name for s in SETUPS if s.present_first} == {"setup56", "setup57", "setup59"}
    assert [s.group for s in map(setup, ("01", "04", "26.1", "64"))] == [
        "all", "many", "few", "many",
    ]  # fmt: skip
    for s in SETUPS:
        assert set(s.classes) <= set(IDS)
        even = int(s.name.removeprefix("setup").partition(".")[0]) % 2 == 0
        if s.name not in ("setup56", "setup62", "setup64"):
            assert (s.input_nm == 8.0) == even
    with pytest.raises(MissingError, match="no setup '99'"):
        setup("99")
