from __future__ import annotations

import base64
import io
import json
import math
import re
from math import comb

import numpy as np
import pytest

from clemreg.cli.app import run_app
from clemreg.errors import ConfigError, DataError, FormatError, MissingError
from clemreg.evaluate.blinded import (
    Key,
    Pair,
    decode,
    draw_pairs,
    preference,
    read_choices,
    read_key,
)
from clemreg.io.volumes import write_volume
from clemreg.report.blinded import montage, outlines, render_pairs
from clemreg.space.grid import Box, Grid
from clemreg.volume import Volume

SHAPE = (11, 17, 23)
CUBES = (4.0, 4.0, 4.0)


def test_places_lie_inside_and_sides_are_balanced():
    pairs = draw_pairs((40, 300, 500), count=101, edge=150, seed=3)
    assert all(p.box.shape == (40, 150, 150) for p in pairs)
    assert all(p.box.clip((40, 300, 500)) == p.box for p in pairs)
    starts = np.array([p.box.start for p in pairs])
    assert np.ptp(starts, axis=0)[1:].min() > 100
    assert abs(sum(1 if p.left == "a" else -1 for p in pairs)) == 1
    assert draw_pairs((40, 300, 500), count=101, seed=3) == pairs
    assert draw_pairs((40, 300, 500), count=101, seed=4) != pairs
    with pytest.raises(ConfigError, match="cannot be drawn"):
        draw_pairs(SHAPE, count=0, seed=0)


@pytest.mark.parametrize(
    ("shape", "edge", "places"), [(SHAPE, 150, 1), (SHAPE, 10, 2 * 8 * 14), ((3, 5, 7), 6, 2)]
)
def test_no_place_is_drawn_twice(shape, edge, places):
    pairs = draw_pairs(shape, count=1000, edge=edge, seed=5)
    size = np.minimum(edge, shape)
    every = np.ndindex(*(np.asarray(shape) - size + 1))
    assert {p.box.start for p in pairs} == set(every)
    assert len(pairs) == places
    assert [p.number for p in pairs] == list(range(1, places + 1))


def test_places_without_anything_are_left_out():
    corner = (1, 6, 8)
    pairs = draw_pairs(
        SHAPE, count=4, edge=10, seed=2, worth=lambda box: box.start in (corner, (0, 0, 0))
    )
    assert {p.box.start for p in pairs} == {corner, (0, 0, 0)}
    assert {p.left for p in pairs} == {"a", "b"}
    with pytest.raises(DataError, match="none of 224 places"):
        draw_pairs(SHAPE, count=4, edge=10, seed=2, worth=lambda _box: False)


def binomial_p(a: int, b: int) -> float:
    """Two-sided: the chance of any split at most as likely as this one, added up."""
    n = a + b
    chances = [comb(n, k) / 2**n for k in range(n + 1)]
    return sum(c for c in chances if c <= chances[a] * (1 + 1e-9))


@pytest.mark.parametrize(("a", "b", "neither"), [(8, 2, 3), (5, 5, 0), (0, 6, 1), (60, 40, 7)])
def test_p_value_is_exact(a, b, neither):
    pairs = draw_pairs(SHAPE, count=a + b + neither, edge=5, seed=1)
    wanted = ["a"] * a + ["b"] * b + ["neither"] * neither
    choices = {
        p.number: w if w == "neither" else ("left" if w == p.left else "right")
        for p, w in zip(pairs, wanted, strict=True)
    }
    key = Key("old", "new", pairs)
    found = preference(key, choices)
    assert (found.prefer_a, found.prefer_b, found.neither) == (a, b, neither)
    assert found.p_value == pytest.approx(binomial_p(a, b))
    assert list(decode(key, choices).values()) == wanted


def test_no_preference_gives_no_p(tmp_path):
    key = Key("old", "new", draw_pairs(SHAPE, count=3, edge=4, seed=0))
    found = preference(key, {1: "neither"})
    assert math.isnan(found.p_value)
    assert found.to_json()["p_value"] is None
    key.write(tmp_path / "key.json")
    assert read_key(tmp_path / "key.json") == key
    with pytest.raises(FormatError, match="pair 4, the key has 3"):
        preference(key, {4: "left"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pair,choice\n1,both\n", "line 2: 'both' is none of left, right, neither"),
        ("pair,choice\n1,left\n1,right\n", "line 3: pair 1 was judged before"),
        ("pair,choice\none,left\n", "is not a number"),
        ("pair,choice\n1.7,left\n", "1.7 is no number of a pair"),
        ("place,choice\n1,left\n", "expected pair, choice"),
    ],
)
def test_bad_choices(tmp_path, text, message):
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(FormatError, match=message):
        read_choices(tmp_path / "c.csv")


def test_bad_keys(tmp_path):
    with pytest.raises(MissingError, match="no key"):
        read_key(tmp_path / "key.json")
    for text in ("[]", "{}", '{"schema": 2}', "no json"):
        (tmp_path / "key.json").write_text(text)
        with pytest.raises(FormatError, match=r"key\.json"):
            read_key(tmp_path / "key.json")


def pictures(html: str, alt: str) -> list[np.ndarray]:
    from PIL import Image

    found = re.findall(rf'alt="{alt}" src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(f)))) for f in found]


def test_the_page_shows_each_on_its_side_and_names_none():
    em = np.arange(5 * 7 * 9).reshape(5, 7, 9).astype(np.uint8)
    a, b = (np.zeros(em.shape, bool) for _ in range(2))
    a[:, 2:6, 2:6] = True
    b[:, :, 6:8] = True
    box = Box((0, 0, 0), em.shape)
    shown = [(Pair(1, box, "a"), em, a, b), (Pair(2, box, "b"), em, a, b)]
    html = render_pairs("Which <one>?", shown, CUBES, "c0ffee")
    assert "Which &lt;one&gt;?" in html
    left, right = pictures(html, "left prediction"), pictures(html, "right prediction")
    np.testing.assert_array_equal(left[0], right[1])
    np.testing.assert_array_equal(left[1], right[0])
    np.testing.assert_array_equal(left[0], outlines(a, CUBES))
    np.testing.assert_array_equal(pictures(html, "EM")[0], montage(em, CUBES))
    np.testing.assert_array_equal(montage(em, CUBES)[:7], em[2])  # xy, then xz, then yz
    np.testing.assert_array_equal(montage(em, CUBES)[9:14], em[:, 3])
    np.testing.assert_array_equal(montage(em, CUBES)[16:21, 1:8], em[:, :, 4])
    edge = outlines(a, CUBES)[:7, :, 3] > 0
    assert edge[2, 2:6].all()
    assert edge[3].tolist() == [False, False, True, False, False, True, False, False, False]
    assert (outlines(a, CUBES)[..., 1][outlines(a, CUBES)[..., 3] > 0] == 255).all()


def test_flat_voxels_are_drawn_flat():
    """z of 12 nm over 4 and 6 nm: three rows of pixels each, and 3 pixels for 2 voxels of y."""
    em = np.arange(5 * 8 * 10, dtype=np.uint8).reshape(5, 8, 10)
    drawn = montage(em, (12.0, 6.0, 4.0))
    assert drawn.shape == (12 + 15 + 15 + 6, 12)
    y = [0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7, 7]
    np.testing.assert_array_equal(drawn[:12, 1:11], em[2][y])
    np.testing.assert_array_equal(drawn[14:29, 1:11], np.repeat(em[:, 4], 3, axis=0))
    np.testing.assert_array_equal(drawn[31:46], np.repeat(em[:, :, 5], 3, axis=0)[:, y])
    mask = np.zeros(em.shape, bool)
    mask[1:4, 2:6, 3:7] = True
    assert outlines(mask, (12.0, 6.0, 4.0))[14:29, :, 3].any(axis=1).sum() == 9
    assert (outlines(mask, (12.0, 6.0, 4.0))[14:29, 6, 3] > 0).sum() == 2  # lines stay thin


def test_from_files_to_the_p_value(tmp_path, capsys):
    grid = Grid(SHAPE, (5.24, 4.0, 4.0), (1.0, 2.0, 3.0), "em")
    rng = np.random.default_rng(0)
    values = {
        "em": rng.random(SHAPE, np.float32) / 100,  # small values, which are not black
        "a": rng.integers(0, 255, SHAPE).astype(np.uint8),
        "b": rng.integers(0, 9, SHAPE).astype(np.uint16) * 70,
    }
    for name, array in values.items():
        write_volume(tmp_path / f"{name}.zarr", Volume(array, grid))
    out = tmp_path / "ab"
    files = [str(tmp_path / f"{n}.zarr") for n in ("em", "a", "b")]
    start = ["ab", "start", *files, "--out", str(out), "--count", "6", "--edge", "9"]
    assert run_app(start) == 0
    html = (out / "pairs.html").read_text()
    assert "a.zarr" not in html
    key = read_key(out / "key.json")
    assert (key.a, key.b) == (files[1], files[2])
    first = key.pairs[0]
    block = {n: v[first.box.slices] for n, v in values.items()}
    mask = block["a"] >= 127 if first.left == "a" else block["b"] != 0
    np.testing.assert_array_equal(
        pictures(html, "left prediction")[0], outlines(mask, grid.spacing_nm)
    )
    assert pictures(html, "EM")[0].max() > 250
    chosen = ["left" if p.left == "b" else "right" for p in key.pairs]
    lines = [f"{p.number},{c}" for p, c in zip(key.pairs, chosen, strict=True)]
    (tmp_path / "choices.csv").write_text("pair,choice\n" + "\n".join(lines) + "\n")
    read = ["ab", "read", str(out), str(tmp_path / "choices.csv")]
    extra = ["--json", str(tmp_path / "p.json"), "--decoded", str(tmp_path / "d.csv")]
    assert run_app([*read, *extra]) == 0
    report = json.loads((tmp_path / "p.json").read_text())
    assert (report["prefer_a"], report["prefer_b"]) == (0, 6)
    assert report["p_value"] == pytest.approx(2 / 64)
    assert (tmp_path / "d.csv").read_text().count("b.zarr") == 6
    assert f'page = "{key.page}"' in html
    for page, code in ((key.page, 0), ("another", 1)):
        rows = [f"{line},{page}" for line in lines]
        (tmp_path / "choices.csv").write_text("pair,choice,page\n" + "\n".join(rows) + "\n")
        assert run_app(read) == code
    assert "line 2: a choice of another page" in capsys.readouterr().err
    (tmp_path / "choices.csv").write_text("pair,choice\n")
    assert run_app(read) == 1


def test_places_show_something_to_judge(tmp_path):
    """Objects fill a hundredth of the volume; every place shows one, in a plane that is shown."""
    shape = (20, 60, 64)
    grid = Grid(shape, (5.24, 4.0, 4.0), (1.0, 2.0, 3.0), "em")
    a, b = (np.zeros(shape, np.uint8) for _ in range(2))
    a[4:9, 10:18, 50:60] = 1
    b[12:17, 40:48, 5:12] = 1
    for name, array in (("em", a + 3), ("a", a), ("b", b)):
        write_volume(tmp_path / f"{name}.zarr", Volume(array, grid))
    files = [str(tmp_path / f"{n}.zarr") for n in ("em", "a", "b")]
    assert (
        run_app(["ab", "start", *files, "--out", str(tmp_path), "--count", "8", "--edge", "9"]) == 0
    )
    for pair in read_key(tmp_path / "key.json").pairs:
        either = (a | b)[pair.box.slices]
        assert either[4].any() or either[:, 4].any() or either[:, :, 4].any()
    again = ["ab", "start", *files, "--out", str(tmp_path / "again"), "--count", "8", "--edge", "9"]
    assert run_app(again) == 0
    one, other = (read_key(f / "key.json").pairs for f in (tmp_path, tmp_path / "again"))
    assert [p.box for p in one] != [p.box for p in other]  # drawn anew: a key opens one page only
    plain = draw_pairs(shape, count=8, edge=9, seed=0)
    assert sum((a | b)[pair.box.slices].any() for pair in plain) < 6


@pytest.mark.parametrize(
    ("spacing", "origin", "code"),
    [
        ((5.24, 4.0, 4.0), (1.0, 2.0, 5.0), 0),  # half a voxel: corner or centre
        ((5.24, 4.0, 4.0), (0.0, 0.0, 0.0), 0),  # says nothing
        ((5.24, 4.0, 4.0), (1.0, 2.0, 83.0), 1),
        ((5.24, 4.0, 8.0), (1.0, 2.0, 3.0), 1),
    ],
)
def test_predictions_of_another_place_are_not_judged(tmp_path, capsys, spacing, origin, code):
    values = np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)
    write_volume(tmp_path / "em.zarr", Volume(values, Grid(SHAPE, (5.24, 4, 4), (1, 2, 3))))
    write_volume(tmp_path / "p.zarr", Volume(values, Grid(SHAPE, spacing, origin)))
    files = [str(tmp_path / f"{n}.zarr") for n in ("em", "p", "p")]
    start = ["ab", "start", *files, "--out", str(tmp_path), "--count", "2", "--edge", "9"]
    assert run_app(start) == code
    assert ("must show the same place" in capsys.readouterr().err) is bool(code)


@pytest.mark.parametrize(
    ("edge", "count", "told"),
    [
        (150, 100, "only 1 different places of 11 x 17 x 23 voxels"),
        (8, 20, "20 places of 8 x 8 x 8 voxels are more than the EM holds side by side"),
        (8, 3, ""),
    ],
)
def test_too_few_and_overlapping_places_are_told(tmp_path, caplog, edge, count, told):
    values = np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)
    grid = Grid(SHAPE, (5.24, 4.0, 4.0), (1.0, 2.0, 3.0), "em")
    write_volume(tmp_path / "em.zarr", Volume(values, grid))
    start = ["ab", "start", *[str(tmp_path / "em.zarr")] * 3, "--out", str(tmp_path)]
    assert run_app([*start, "--edge", str(edge), "--count", str(count)]) == 0
    assert told in caplog.text
    assert bool(told) is ("places of" in caplog.text)
