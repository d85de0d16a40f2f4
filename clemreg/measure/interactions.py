"""Who touches whom: contact tables of several organelles as one table of pairs and one graph."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clemreg.io.atomic import atomic_path
from clemreg.measure.tables import Table

_SUMMED = ("volume_nm3", "area_a_nm2", "area_b_nm2")
# A table that was read back without rows does not say what its columns hold.
_KINDS = {"organelle_a": np.str_, "a_id": np.uint64, "organelle_b": np.str_, "b_id": np.uint64}
_TYPES = {"U": "string", "u": "long", "i": "long", "f": "double"}


def named(contacts: Table, a: str, b: str) -> Table:
    """Say in a contact table which organelles it is about."""
    count = len(contacts)
    return contacts.with_columns(organelle_a=np.full(count, a), organelle_b=np.full(count, b))


def interactions(contacts: Sequence[Table]) -> Table:
    """Sum the contact sites of each pair of objects, over any number of named contact tables.

    Returns
    -------
    Table
        One row a pair: organelle and id of both, number of sites, volume and areas, smallest gap.
    """
    columns = {
        n: np.concatenate([t[n].astype(_KINDS.get(n, np.float64)) for t in contacts])
        for n in (*_KINDS, *_SUMMED, "gap_nm")
    }
    codes = [np.unique(columns[n], return_inverse=True)[1] for n in _KINDS]
    _, lead, pair = np.unique(np.stack(codes, 1), axis=0, return_index=True, return_inverse=True)
    pair = pair.ravel()
    gap = np.full(len(lead), np.inf)
    np.minimum.at(gap, pair, columns["gap_nm"])
    return Table.of(
        **{n: columns[n][lead] for n in _KINDS},
        sites=np.bincount(pair, minlength=len(lead)),
        **{n: np.bincount(pair, columns[n], len(lead)) for n in _SUMMED},
        gap_nm=gap,
    )


def partners(pairs: Table) -> Table:
    """Say of every object how many objects of which organelles it touches.

    Parameters
    ----------
    pairs
        Table of `interactions`.

    Returns
    -------
    Table
        Organelle, id, number of partners, and the organelles touched in alphabetical order,
        joined by ``+``: a microtubule at three organelles reads ``endo+er+mito``.
    """
    touched: dict[tuple[str, int], set[tuple[str, int]]] = {}
    for row in pairs.rows():
        a, b = (row["organelle_a"], row["a_id"]), (row["organelle_b"], row["b_id"])
        touched.setdefault(a, set()).add(b)
        touched.setdefault(b, set()).add(a)
    keys = sorted(touched)
    return Table.of(
        organelle=np.array([k[0] for k in keys], dtype=np.str_),
        object_id=np.array([k[1] for k in keys], dtype=np.uint64),
        partners=np.array([len(touched[k]) for k in keys], dtype=np.int64),
        touches=np.array(["+".join(sorted({o for o, _ in touched[k]})) for k in keys], np.str_),
    )


def write_graphml(path: str | Path, pairs: Table) -> None:
    """Write objects as nodes and their contacts as edges, for networkx, Gephi and Cytoscape.

    Parameters
    ----------
    path
        ``.graphml`` file.
    pairs
        Table of `interactions`.
    """
    ends = [
        [f"{o}:{i}" for o, i in zip(pairs[f"organelle_{s}"], pairs[f"{s}_id"], strict=True)]
        for s in "ab"
    ]
    shown = {n: c for n, c in pairs.columns.items() if n not in ("a_id", "b_id")}
    root = ET.Element("graphml", xmlns="http://graphml.graphdrawing.org/xmlns")
    for name in ("organelle", "object_id"):
        kind = "string" if name == "organelle" else "long"
        ET.SubElement(
            root, "key", {"id": name, "for": "node", "attr.name": name, "attr.type": kind}
        )
    for name, column in shown.items():
        kind = _TYPES[column.dtype.kind]
        ET.SubElement(
            root, "key", {"id": name, "for": "edge", "attr.name": name, "attr.type": kind}
        )
    graph = ET.SubElement(root, "graph", id="contacts", edgedefault="undirected")
    for node in sorted({*ends[0], *ends[1]}):
        organelle, _, number = node.rpartition(":")
        _data(ET.SubElement(graph, "node", id=node), {"organelle": organelle, "object_id": number})
    rows = zip(*shown.values(), strict=True)
    for a, b, values in zip(*ends, rows, strict=True):
        edge = ET.SubElement(graph, "edge", source=a, target=b)
        _data(edge, {n: str(v) for n, v in zip(shown, values, strict=True)})
    ET.indent(root)
    with atomic_path(path) as partial:
        ET.ElementTree(root).write(partial, encoding="utf-8", xml_declaration=True)


def _data(parent: ET.Element, values: dict[str, str]) -> None:
    for name, value in values.items():
        ET.SubElement(parent, "data", key=name).text = value
