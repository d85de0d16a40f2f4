from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from clemreg.errors import FormatError
from clemreg.io.tables import check_widths, read_rows
from clemreg.io.xyz import flip, flip_matrix

finite = st.floats(-1e6, 1e6)


@given(arrays(float, (4, 3), elements=finite))
def test_flip_is_its_own_inverse_and_reverses_axes(points):
    assert np.array_equal(flip(flip(points)), points)
    assert np.array_equal(flip(points)[:, 0], points[:, 2])


@given(arrays(float, (4, 4), elements=finite), arrays(float, 3, elements=finite))
def test_flipped_matrix_maps_flipped_points(matrix, point):
    matrix[3] = [0, 0, 0, 1]
    mapped = (matrix @ [*point, 1.0])[:3]
    np.testing.assert_allclose(
        flip_matrix(matrix) @ [*flip(point), 1.0], [*flip(mapped), 1.0], rtol=1e-9, atol=1e-3
    )
    assert np.array_equal(flip_matrix(flip_matrix(matrix)), matrix)
    assert np.array_equal(flip_matrix(matrix[:3, :3]), flip_matrix(matrix)[:3, :3])


def test_rows_keep_their_line_numbers_across_quoted_line_breaks(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('a,b\n\n"one\ntwo", 2\n3\n')
    rows = read_rows(path, "table")
    assert [(row.line, row.fields) for row in rows] == [
        (1, ("a", "b")),
        (4, ("one\ntwo", "2")),
        (5, ("3",)),
    ]
    with pytest.raises(FormatError, match="line 5: 1 fields, expected 2"):
        check_widths(rows, 2)


@pytest.mark.parametrize("text", ["1.5", "-.5", "+2.", "1e3", "1.0E-9"])
def test_numbers(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(f"{text},x\n")
    assert read_rows(path, "table")[0].number(0, "a") == float(text)


@pytest.mark.parametrize("text", ["1,5", "nan", "", "1 um", "١", "--1", "1e"])
def test_not_numbers(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(f'"{text}";x;y\n', encoding="utf-8")
    with pytest.raises(FormatError, match=r"line 1, column 1 \(a\)"):
        read_rows(path, "table")[0].number(0, "a")
