from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import BSpline as ScipyBSpline

from clemreg.register.lattice import Lattice
from clemreg.register.newton import _carried, _faded


def a_lattice():
    low = np.array([100.0, -4000.0, 250.0])
    return Lattice.covering(
        low, low + np.array([2100.0, 3000.0, 2500.0]), np.array([900.0, 700.0, 650.0])
    )


def points_on(lattice, rng, count):
    low = lattice.origin_nm + lattice.spacing_nm
    high = lattice.origin_nm + (np.array(lattice.shape) - 2) * lattice.spacing_nm
    return rng.uniform(low, high - 1e-6, (count, 3))


def test_placed_points_move_as_the_spline_moves_them():
    rng, lattice = np.random.default_rng(0), a_lattice()
    coefficients = rng.normal(size=(lattice.size, 3)) * 50
    points = points_on(lattice, rng, 300)
    spline = lattice.spline(coefficients, "em")
    expected = spline(points) - points
    np.testing.assert_allclose(lattice.place(points).displace(coefficients), expected, atol=2e-4)


def test_normal_equations_are_those_of_the_dense_jacobian():
    rng, lattice = np.random.default_rng(1), a_lattice()
    points = points_on(lattice, rng, 200)
    slope = rng.normal(size=(200, 3)).astype("f4")
    residual = rng.normal(size=200).astype("f4")
    # The derivative of the residual by every coefficient, one by one.
    placed = lattice.place(points)
    jacobian = np.zeros((200, lattice.size, 3))
    for node in range(lattice.size):
        one = np.zeros((lattice.size, 3))
        one[node] = 1.0
        jacobian[:, node] = placed.displace(one) * slope
    jacobian = jacobian.reshape(200, -1)
    equations = placed.normal_equations(residual, slope)
    np.testing.assert_allclose(equations.matrix().toarray(), jacobian.T @ jacobian, atol=1e-4)
    np.testing.assert_allclose(equations.right.ravel(), jacobian.T @ residual, atol=1e-4)


def test_the_bending_energy_of_a_parabola_is_analytic():
    lattice = a_lattice()
    nodes, h = lattice.nodes_nm() / 1e3, lattice.spacing_nm / 1e3
    # Cubic B-splines reproduce y^2 - h^2/3 at the nodes as y^2, and products of lines exactly.
    along_y = nodes[:, 1] ** 2 - h[1] ** 2 / 3
    twist = nodes[:, 0] * nodes[:, 2]
    volume = np.prod((np.array(lattice.shape) - 3) * h)
    bending = lattice.bending()
    assert along_y @ bending @ along_y == pytest.approx(4 * volume, rel=1e-9)
    assert twist @ bending @ twist == pytest.approx(2 * volume, rel=1e-9)
    line = nodes @ [0.3, -2.0, 1.0] + 4
    assert abs(line @ bending @ line) < 1e-9


def test_the_solution_is_that_of_the_dense_system():
    rng, lattice = np.random.default_rng(2), a_lattice()
    placed = lattice.place(points_on(lattice, rng, 4000))
    slope = rng.normal(size=(4000, 3)).astype("f4")
    equations = placed.normal_equations(rng.normal(size=4000).astype("f4"), slope)
    before = rng.normal(size=(lattice.size, 3))
    penalty = 3.0 * lattice.bending()
    stiff = np.kron(penalty.toarray(), np.eye(3))
    right = equations.right.ravel() - stiff @ before.ravel()
    expected = np.linalg.lstsq(equations.matrix().toarray() + stiff, right, rcond=1e-9)[0]
    found = equations.solve(penalty, before)
    moved, wanted = placed.displace(found), placed.displace(expected.reshape(-1, 3))
    np.testing.assert_allclose(moved, wanted, atol=0.02 * np.abs(wanted).max())


def test_a_deformation_is_carried_to_a_finer_lattice():
    rng, coarse = np.random.default_rng(3), a_lattice()
    low = coarse.origin_nm + 1.5 * coarse.spacing_nm
    high = coarse.origin_nm + (np.array(coarse.shape) - 2.5) * coarse.spacing_nm
    fine = Lattice.covering(low, high, coarse.spacing_nm / 2)
    coefficients = rng.normal(size=(coarse.size, 3)) * 40
    points = rng.uniform(low + 700, high - 700, (400, 3))
    expected = coarse.place(points).displace(coefficients)
    found = fine.place(points).displace(_carried(coarse, coefficients, fine))
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_outside_the_em_the_deformation_fades_without_a_jump():
    rng, lattice = np.random.default_rng(4), a_lattice()
    coefficients = rng.normal(size=(lattice.size, 3)) * 30
    spline = (lambda pair: pair[0].spline(pair[1], "em"))(_faded(lattice, coefficients))
    points = points_on(lattice, rng, 200)
    np.testing.assert_allclose(
        spline.displacement(points), lattice.place(points).displace(coefficients), atol=1e-3
    )
    line = np.linspace(-40_000.0, 40_000.0, 4001)[:, None] * [0.3, 1.0, -0.6]
    line = line + points.mean(axis=0)
    steps = np.abs(np.diff(spline.displacement(line), axis=0)).max()
    assert steps < 8.0  # nm over 24 nm of way: no jump at the end of the lattice
    assert np.abs(spline.displacement(line[[0, -1]])).max() == 0


def test_scipy_agrees_about_the_basis():
    lattice = a_lattice()
    points = points_on(lattice, np.random.default_rng(5), 5)
    coefficients = np.zeros((lattice.size, 3))
    middle = np.ravel_multi_index((2, 3, 3), lattice.shape)
    coefficients[middle, 1] = 1.0
    centre = lattice.nodes_nm()[middle]
    product = np.ones(len(points))
    for axis in range(3):
        element = ScipyBSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
        t = (points[:, axis] - centre[axis]) / lattice.spacing_nm[axis]
        product *= np.nan_to_num(element(t))
    found = lattice.place(points).displace(coefficients)
    np.testing.assert_allclose(found[:, 1], product, atol=1e-6)
    assert (found[:, [0, 2]] == 0).all()
