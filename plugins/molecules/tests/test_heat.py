"""Heat capacities against closed forms."""

import numpy as np
import pytest

from flowplat_molecules import heat

PLACES = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.1]])


def springs(constant: float, places: np.ndarray = PLACES) -> np.ndarray:
    """Second derivatives of half ``constant`` times the squared stretch of every pair."""
    count = len(places)
    second = np.zeros((count, 3, count, 3))
    for i in range(count):
        for j in range(i):
            along = (places[i] - places[j]) / np.linalg.norm(places[i] - places[j])
            block = constant * np.outer(along, along)
            for a, b, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
                second[a, :, b] += sign * block
    return second.reshape(3 * count, -1)


def test_two_atoms_have_five_halves_of_r_and_an_oscillator() -> None:
    """Carbon monoxide: k = 1902 N/m, 2170 wavenumbers, x = 10.47."""
    constant = 1902.0 * heat.BOHR**2 / heat.HARTREE
    x = 1.438776877 * 2170.2 / heat.TEMPERATURE
    wanted = heat.R * (2.5 + x**2 * np.exp(x) / (np.exp(x) - 1) ** 2)
    assert heat.capacity(springs(constant), [6, 8], PLACES) == pytest.approx(wanted, rel=1e-4)


def test_slow_oscillators_have_r_each_fast_and_imaginary_ones_nothing() -> None:
    bent = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.2]])
    for constant, wanted in ((1e-9, 3 + 3), (1e3, 3), (-1e-9, 3)):
        found = heat.capacity(springs(constant, bent), [8, 1, 1], bent)
        assert found == pytest.approx(wanted * heat.R, rel=1e-5)


def test_turning_the_molecule_changes_nothing() -> None:
    draw = np.random.default_rng(0)
    places = draw.normal(size=(5, 3))
    turn = np.linalg.qr(draw.normal(size=(3, 3)))[0]
    here = heat.capacity(springs(0.01, places), [6, 1, 1, 8, 1], places)
    assert heat.capacity(springs(0.01, places @ turn.T), [6, 1, 1, 8, 1], places @ turn.T + 3) == pytest.approx(here)
