"""What tasks write: tables of quantiles, samples, figures, pictures."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flowcore import files
from flowcore.errors import MissingPackageError
from flowplat_timeseries import calendar
from flowplat_timeseries.metrics import LEVELS, quantile
from flowplat_timeseries.reading import Series

TABLES = (".csv", ".parquet")
Told = Mapping[str, Any]


def quantiles(series: Sequence[Series], samples: np.ndarray) -> pd.DataFrame:
    """item_id, timestamp, mean and the deciles of samples (n, S, P) of what follows each series."""
    parts = []
    for one, drawn in zip(series, samples, strict=True):
        times = calendar.stamps(calendar.later(one.start, len(one.values)), drawn.shape[1])
        columns = {f"q{level:.1f}": quantile(drawn, level) for level in LEVELS}
        parts.append(pd.DataFrame({"item_id": one.name, "timestamp": times, "mean": drawn.mean(0), **columns}))
    return pd.concat(parts, ignore_index=True)


def table(frame: pd.DataFrame, path: Path) -> None:
    """A frame as .csv or .parquet, by the ending. Raises ``MissingPackageError`` for Parquet without pyarrow."""
    if path.suffix.lower() == ".parquet":
        buffer = io.BytesIO()
        try:
            frame.to_parquet(buffer, index=False)
        except ImportError as error:
            raise MissingPackageError(f"{path} needs pyarrow: pip install 'flowplat-timeseries[parquet]'") from error
        files.write(path, buffer.getvalue())
        return
    files.write(path, frame.to_csv(index=False, float_format="%.7g", date_format="%Y-%m-%dT%H:%M:%S"))


def arrays(path: Path, **held: Any) -> None:
    """Arrays as .npz without pickles."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **held)
    files.write(path, buffer.getvalue())


def figures(path: Path, found: Any) -> None:
    """Figures as JSON."""
    files.write(path, json.dumps(found, indent=2) + "\n")
