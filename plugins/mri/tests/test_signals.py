"""Pulse sequences against their limits, and MPRAGE against its cycles walked one by one."""

import numpy as np
import pytest

from flowplat_mri import signals


def test_spoiled_gradient_echo_at_90_degrees_and_long_tr_is_proton_density():
    got = signals.spoiled_gradient_echo(0.8, 900, 50, 1e6, 20, 90)
    assert got == pytest.approx(0.8 * np.exp(-20 / 50), rel=1e-9)


@pytest.mark.parametrize(("tr", "t1"), [(9, 840), (20, 1350), (500, 650)])
def test_spoiled_gradient_echo_is_brightest_at_the_ernst_angle(tr, t1):
    angles = np.arange(0.1, 90, 0.05)
    brightest = angles[signals.spoiled_gradient_echo(1, t1, 50, tr, 4, angles).argmax()]
    assert brightest == pytest.approx(np.rad2deg(np.arccos(np.exp(-tr / t1))), abs=0.5)


def test_spin_echo_at_long_tr_and_no_te_is_proton_density():
    assert signals.spin_echo(0.7, 900, 80, 1e6, 0) == pytest.approx(0.7, rel=1e-12)


def test_inversion_recovery_is_null_at_t1_ln_2():
    t1 = 1350.0
    assert signals.inversion_recovery(1, t1, 1e6, t1 * np.log(2)) == pytest.approx(0, abs=1e-12)
    assert signals.inversion_recovery(1, t1, 1e6, 2 * t1) > 0.5


@pytest.mark.parametrize(("tr", "ti", "angle"), [(2300, 900, 9), (2600, 1100, 7), (2400, 1000, 8)])
def test_mprage_is_the_steady_state_of_its_cycles(tr, ti, angle):
    t1, n, tau = np.array([4200.0, 1350, 840]), 176, 7.0
    m, read = np.ones(3), np.zeros(3)

    def rest(m, time):
        return 1 - (1 - m) * np.exp(-time / t1)

    for _ in range(200):
        m = rest(-0.96 * m, ti - n * tau / 2)
        for pulse in range(n):
            if pulse == n // 2:
                read = m.copy()
            m = rest(m * np.cos(np.deg2rad(angle)), tau)
        m = rest(m, tr - ti - n * tau / 2)
    got = signals.mprage(1, t1, 50, tr, ti, angle)
    np.testing.assert_allclose(got, np.sin(np.deg2rad(angle)) * np.abs(read) * np.exp(-3 / 50), atol=1e-6)


def test_a_train_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="do not fit into TR=1000"):
        signals.mprage(1, 900, 50, 1000, 500, 9)
