"""One picture of slices."""

import io

import numpy as np

COLUMNS = 8


def sheet(slices: np.ndarray, views: np.ndarray | None = None) -> bytes:
    """Slices (n, H, W) as PNG, eight in a row, each below its view; x to the right and y upwards, as brains are
    shown."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = 1 if views is None else 2
    rows = -(-len(slices) // COLUMNS)
    ratio = slices.shape[2] / slices.shape[1]
    figure = Figure(figsize=(1.3 * COLUMNS, 1.3 * ratio * lines * rows), layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines * rows, COLUMNS, squeeze=False)
    for one in axes.ravel():
        one.set_axis_off()
    for number, picture in enumerate(slices):
        row, column = divmod(number, COLUMNS)
        shown = [picture] if views is None else [views[number], picture]
        for line, values in enumerate(shown):
            axes[lines * row + line, column].imshow(values.T, origin="lower", cmap="gray", vmin=-3, vmax=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80, facecolor="black")
    return buffer.getvalue()
