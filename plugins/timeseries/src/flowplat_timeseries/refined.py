"""The forecasts of any GluonTS predictor, made likelier by a model of whole windows; itself a GluonTS predictor.

better = predictor.refine(base_predictor, dataset)
forecasts = list(better.predict(dataset, num_samples=100))
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gluonts.dataset.common import Dataset
from gluonts.dataset.field_names import FieldName
from gluonts.model.forecast import Forecast, SampleForecast
from gluonts.model.predictor import Predictor

from flowcore.errors import InputError, UsageError
from flowcore.plugin.contracts import Parts
from flowplat_timeseries import refining
from flowplat_timeseries.windows import Windows, ends

OPTIONS = "refined.json"
TOLD = 64  # windows that say which time stands for all


def time_for(flow: Any, dataset: Dataset) -> float:
    """The representative time of a model on the last windows of a data set."""
    module = flow.prediction_net
    values = [entry[FieldName.TARGET] for entry, _ in zip(dataset, range(TOLD), strict=False)]
    kept = [np.asarray(one, np.float64) for one in values if np.isfinite(one).any()]
    if not kept:
        raise UsageError("there is no series to refine by: the data set is empty, or all of it is missing")
    source = Windows(kept, module.context_length, module.prediction_length, module.lags, True, scaling=module.scaling)
    rows = torch.arange(len(kept))
    draws = torch.Generator().manual_seed(0)
    parts: Parts = module.parts()
    network = module.average.module
    return refining.representative_time(
        parts, network, source.batch(rows, draws), torch.Generator(parts.device).manual_seed(0)
    )


class Refined(Predictor):
    """See ``FlowPredictor.refine``. Draws come from torch's global seed."""

    def __init__(self, flow: Any, base: Predictor, options: dict[str, Any]) -> None:
        super().__init__(base.prediction_length, base.lead_time)
        self.flow, self.base, self.options = flow, base, options

    def predict(self, dataset: Dataset, num_samples: int | None = None, **kwargs: Any) -> Iterator[Forecast]:
        """The base's forecasts, in the order of ``dataset``, each moved by the model; see GluonTS's ``Predictor``.

        Raises ``InputError`` where the base has none for a series.
        """
        samples = num_samples or self.flow.prediction_net.num_parallel_samples
        batch: list[dict[str, Any]] = []
        for entry in dataset:
            batch.append(entry)
            if len(batch) == self.flow.batch_size:
                yield from self._refined(batch, samples)
                batch = []
        if batch:
            yield from self._refined(batch, samples)

    def _refined(self, entries: Sequence[dict[str, Any]], samples: int) -> Iterator[Forecast]:
        module = self.flow.prediction_net
        horizon = module.prediction_length
        casts = matched(entries, list(self.base.predict(cast(Dataset, entries))))
        levels = (np.arange(samples) + 1) / (samples + 1)
        first = np.stack([[one.quantile(float(level)) for level in levels] for one in casts]).astype(np.float64)
        values = [np.asarray(entry[FieldName.TARGET], np.float64) for entry in entries]
        values = [np.where(np.isfinite(one), one, np.nan) for one in values]
        windows = ends(values, module.context_length, horizon, module.lags, module.scaling)
        parts: Parts = module.parts()
        draws = torch.Generator(parts.device).manual_seed(int(torch.randint(2**62, ())))
        module.eval()
        x = refining.refine(
            parts, module.average.module, windows.x, windows.mask, windows.guess(first), generator=draws, **self.options
        )
        made = windows.back(x.cpu())[:, :, -horizon:].float()
        for one, rows in zip(casts, made, strict=True):
            order = torch.randperm(samples)  # GluonTS keeps the first of them
            yield SampleForecast(rows[order].numpy(), one.start_date, one.item_id, one.info)

    def serialize(self, path: Path) -> None:
        """See GluonTS: the model and the base in folders of their own."""
        super().serialize(path)
        for name, one in (("flow", self.flow), ("base", self.base)):
            (path / name).mkdir(exist_ok=True)
            one.serialize(path / name)
        (path / OPTIONS).write_text(json.dumps(self.options), encoding="utf-8")

    @classmethod
    def deserialize(cls, path: Path, **kwargs: Any) -> "Refined":
        """See GluonTS."""
        flow, base = (Predictor.deserialize(path / name, **kwargs) for name in ("flow", "base"))
        return cls(flow, base, json.loads((path / OPTIONS).read_text(encoding="utf-8")))


def matched(entries: Sequence[dict[str, Any]], casts: Sequence[Forecast]) -> list[Forecast]:
    """The forecast of each entry, by name and beginning, whatever order they come in and whatever else there is."""
    found = {(one.item_id, one.start_date): one for one in casts}
    wanted = [
        (entry.get(FieldName.ITEM_ID), entry[FieldName.START] + len(entry[FieldName.TARGET])) for entry in entries
    ]
    if len(casts) == len(entries) and [(one.item_id, one.start_date) for one in casts] == wanted:
        return list(casts)
    if missing := [key for key in wanted if key not in found]:
        name, start = missing[0]
        raise InputError(f"the base predictor has no forecast of {name or 'a series without a name'} from {start} on")
    return [found[key] for key in wanted]
