"""What is known of a set of windows: how long, which lags, which season."""

from dataclasses import dataclass

from flowcore.plugin.contracts import Leaf, Spec


@dataclass(frozen=True)
class SeriesSpec(Spec):
    """Windows (1 + K, L) with L = ``context`` + ``horizon``: the scaled series and, below it, its K ``lags``.

    ``season`` is the period of the frequency in time steps (24 of hours), ``freq`` its name in pandas ("h").
    """

    context: int = 0
    horizon: int = 0
    lags: tuple[int, ...] = ()
    season: int = 1
    freq: str = ""


def spec_of(context: int, horizon: int, lags: tuple[int, ...] = (), season: int = 1, freq: str = "") -> SeriesSpec:
    """The spec of windows of ``context`` + ``horizon`` steps."""
    return SeriesSpec(
        Leaf((1 + len(lags), context + horizon)),
        context=context,
        horizon=horizon,
        lags=lags,
        season=season,
        freq=freq,
    )
