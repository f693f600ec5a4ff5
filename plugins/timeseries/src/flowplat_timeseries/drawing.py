"""Pictures: windows, and forecasts with what was known, their bands and what came."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

INK, FLOW, TRUTH = "#333333", "#1f77b4", "#d62728"
BANDS = ((0.05, 0.95, 0.18), (0.25, 0.75, 0.35))


class Told(NamedTuple):
    """One picture: what it is called, the steps that were known, samples (S, L) from step ``begin`` of them on, and
    what is true there, where that is known."""

    name: str
    known: np.ndarray
    samples: np.ndarray
    begin: int
    truth: np.ndarray | None = None
    times: Any = None


def _figure(count: int, columns: int, wide: float, high: float) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(1, min(columns, count))
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(wide * columns, high * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for empty in axes[count:]:
        empty.set_axis_off()
    for one in axes:
        one.tick_params(labelsize=7)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()


def windows(x: np.ndarray, context: int) -> bytes:
    """Windows x (n, L), each in a panel, a line where the horizon begins, as PNG bytes."""
    return named([("", row) for row in x], context)


def named(told: Sequence[tuple[str, np.ndarray]], context: int) -> bytes:
    """The same, each window under its name."""
    figure, axes = _figure(len(told), 4, 3.0, 1.6)
    for one, (name, row) in zip(axes, told, strict=False):
        one.set_title(name, fontsize=7, loc="left")
        one.plot(row, color=FLOW, linewidth=0.9)
        if 0 < context < len(row):
            one.axvline(context - 0.5, color=INK, linewidth=0.6, linestyle=":")
    return _png(figure)


def forecasts(told: Sequence[Told]) -> bytes:
    """A panel for each: what was known in black, the bands of 50 and 90 % and the median in blue, the truth in red."""
    columns = 2 if len(told) > 1 else 1
    figure, axes = _figure(len(told), columns, 5.5, 2.3)
    for one, panel in zip(told, axes, strict=False):
        _panel(panel, one)
    if told:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, fontsize=7, frameon=False, loc="outside upper left", ncols=5)
    return _png(figure)


def _panel(panel: Any, told: Told) -> None:
    length = max(len(told.known), told.begin + told.samples.shape[1])
    x = np.arange(length) if told.times is None else np.asarray(told.times[:length])
    ahead = x[told.begin : told.begin + told.samples.shape[1]]
    panel.plot(x[: len(told.known)], told.known, color=INK, linewidth=0.9, label="known")
    for low, high, strength in BANDS:
        a, b = np.quantile(told.samples, [low, high], axis=0)
        panel.fill_between(ahead, a, b, color=FLOW, alpha=strength, linewidth=0, label=f"{high - low:.0%} band")
    panel.plot(ahead, np.median(told.samples, 0), color=FLOW, linewidth=1.1, label="median")
    if told.truth is not None:
        panel.plot(ahead[: len(told.truth)], told.truth, color=TRUTH, linewidth=0.9, label="came")
    panel.set_title(told.name, fontsize=8, loc="left")
    if told.times is not None:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(maxticks=6)
        panel.xaxis.set_major_locator(locator)
        panel.xaxis.set_major_formatter(ConciseDateFormatter(locator))
