"""What is known of a set of windows: how long, which lags, which season."""

from dataclasses import dataclass

from flowcore.plugin.contracts import Leaf, Spec


@dataclass(frozen=True)
class SeriesSpec(Spec):
    """Windows (1 + K, L) with L = ``context`` + ``horizon``: the scaled series and, below it, its K ``lags``.

    ``season`` is the period of the frequency in time steps (24 of hours), ``freq`` its name in pandas ("h"). Where
    ``kernel`` names a process the model is conditional: its state is the series alone, (1, L), and what it is told
    (K + 2, L); see ``flowplat_timeseries.conditional``.
    """

    context: int = 0
    horizon: int = 0
    lags: tuple[int, ...] = ()
    season: int = 1
    freq: str = ""
    kernel: str = ""

    @property
    def period(self) -> int:
        """The season of a Gaussian process, in time steps: 30 of days, as in TSFlow (arXiv 2410.03024)."""
        return 30 if self.freq in ("D", "B") else self.season


def spec_of(
    context: int, horizon: int, lags: tuple[int, ...] = (), season: int = 1, freq: str = "", kernel: str | None = None
) -> SeriesSpec:
    """The spec of windows of ``context`` + ``horizon`` steps."""
    length = context + horizon
    return SeriesSpec(
        Leaf((1 if kernel else 1 + len(lags), length)),
        Leaf((len(lags) + 2, length)) if kernel else None,
        context=context,
        horizon=horizon,
        lags=lags,
        season=season,
        freq=freq,
        kernel=kernel or "",
    )
