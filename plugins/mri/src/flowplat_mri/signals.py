"""What a tissue shines with under a pulse sequence. Times in ms, angles in degrees; arrays broadcast.

The steady states are textbook: Bernstein, King and Zhou, Handbook of MRI Pulse Sequences (2004), chapters 14 and 17.
"""

import numpy as np

Values = np.ndarray | float


def spin_echo(pd: Values, t1: Values, t2: Values, tr: float, te: float) -> Values:
    """PD (1 - 2 exp(-(TR - TE/2) / T1) + exp(-TR / T1)) exp(-TE / T2)."""
    return pd * (1 - 2 * np.exp(-(tr - te / 2) / t1) + np.exp(-tr / t1)) * np.exp(-te / np.asarray(t2))


def spoiled_gradient_echo(pd: Values, t1: Values, t2s: Values, tr: float, te: float, angle: float) -> Values:
    """PD sin a (1 - E1) / (1 - E1 cos a) exp(-TE / T2*) with E1 = exp(-TR / T1); largest at cos a = E1 (Ernst)."""
    a, e1 = np.deg2rad(angle), np.exp(-tr / np.asarray(t1))
    return pd * np.sin(a) * (1 - e1) / (1 - e1 * np.cos(a)) * np.exp(-te / np.asarray(t2s))


def inversion_recovery(pd: Values, t1: Values, tr: float, ti: float, efficiency: float = 1.0) -> Values:
    """PD |1 - (1 + eta - eta exp(-(TR - TI) / T1)) exp(-TI / T1)| with inversion efficiency eta, read at 90 degrees.

    An ideal inversion at long TR is null at TI = T1 ln 2.
    """
    t1 = np.asarray(t1)
    before = 1 - np.exp(-(tr - ti) / t1)  # what has come back when the next inversion strikes
    return pd * np.abs(1 - (1 + efficiency * before) * np.exp(-ti / t1))


def mprage(
    pd: Values, t1: Values, t2s: Values, tr: float, ti: float, angle: float, te: float = 3.0, pulses: int = 176,
    spacing: float = 7.0, efficiency: float = 0.96,
) -> Values:  # fmt: skip
    """PD sin a |Mz| exp(-TE / T2*), with Mz before pulse N/2 of a train of N in the steady state.

    One cycle: Mz -> -eta Mz; recovery for TI - N tau / 2; N times {Mz -> Mz cos a, recovery for tau}; recovery for the
    rest of TR. It is affine, Mz -> A Mz + b, so the steady state is b / (1 - A), in closed form. Raises ``ValueError``
    where the train does not fit.
    """
    before, after = ti - pulses * spacing / 2, tr - ti - pulses * spacing / 2
    if before < 0 or after < 0:
        raise ValueError(f"{pulses} pulses of {spacing} ms about TI={ti} ms do not fit into TR={tr} ms")
    t1, cosine = np.asarray(t1, np.float64), np.cos(np.deg2rad(angle))

    def recovered(a: Values, b: Values, time: float) -> tuple[Values, Values]:
        e = np.exp(-time / t1)
        return a * e, 1 - e + b * e

    def train(a: Values, b: Values, count: int) -> tuple[Values, Values]:
        e = np.exp(-spacing / t1)
        step, total = cosine * e, (cosine * e) ** count
        return a * total, b * total + (1 - e) * (1 - total) / (1 - step)

    first = recovered(np.full_like(t1, -efficiency), np.zeros_like(t1), before)
    middle = train(*first, pulses // 2)
    a, b = recovered(*train(*middle, pulses - pulses // 2), after)
    steady = b / (1 - a)
    read = middle[0] * steady + middle[1]
    return pd * np.sin(np.deg2rad(angle)) * np.abs(read) * np.exp(-te / np.asarray(t2s))
