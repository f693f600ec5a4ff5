"""The method as GluonTS has it: an estimator that trains, and a predictor whose forecasts its evaluation takes.

    predictor = FlowEstimator(freq="h", prediction_length=24, context_length=96).train(dataset)
    forecasts = list(predictor.predict(dataset, num_samples=100))

What GluonTS does with any estimator works unchanged: ``make_evaluation_predictions``, ``Evaluator``,
``evaluate_model``, ``serialize`` and ``Predictor.deserialize``.
"""

import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, Literal, cast, get_args

import lightning.pytorch as pl
import numpy as np
import torch
from gluonts.core.component import validated
from gluonts.dataset.common import Dataset
from gluonts.dataset.field_names import FieldName
from gluonts.model.forecast_generator import SampleForecastGenerator
from gluonts.model.predictor import Predictor
from gluonts.torch.model.estimator import PyTorchLightningEstimator, TrainOutput
from gluonts.torch.model.predictor import PyTorchPredictor
from gluonts.transform import (
    AddObservedValuesIndicator,
    InstanceSplitter,
    MapTransformation,
    SelectFields,
    TestSplitSampler,
    Transformation,
)
from torch import Tensor, nn

from flowcore import losses, paths, solvers, times
from flowcore.couplings import independent
from flowcore.data import Batch
from flowcore.errors import UsageError
from flowcore.objectives import matching
from flowcore.plugin.contracts import Parts
from flowcore.training.ema import Average
from flowplat_timeseries import calendar
from flowplat_timeseries.conditional import law_of
from flowplat_timeseries.forecasting import forecast
from flowplat_timeseries.guidance import Likelihood, Weight
from flowplat_timeseries.networks import S4DOptions, s4d
from flowplat_timeseries.priors import Kernel, gaussian_process
from flowplat_timeseries.spec import spec_of
from flowplat_timeseries.windows import Lags, Scaling, Windows, lags_of, scaled

INPUTS = ["past_target", "past_observed_values", "level"]


class Level(MapTransformation):
    """Adds ``level``, the mean size of what is known of a whole series, so that a context of zeros has a scale."""

    @validated()
    def __init__(self) -> None:
        super().__init__()

    def map_transform(self, data: dict[str, Any], is_train: bool) -> dict[str, Any]:
        """See GluonTS's ``MapTransformation``. Raises ``UsageError`` for a target of several dimensions."""
        target = np.asarray(data[FieldName.TARGET], np.float32)
        if target.ndim != 1:
            raise UsageError(
                f"the target of {data.get(FieldName.ITEM_ID, 'a series')} has shape {target.shape}, and this is a model"
                " of single series: give each of its rows as a series of its own"
            )
        target = np.where(np.isfinite(target), target, np.nan).astype(np.float32)
        known = target[np.isfinite(target)]
        level = np.abs(known).mean() if len(known) else 0.0
        return {**data, FieldName.TARGET: target, "level": np.array(level, np.float32)}


class FlowModule(pl.LightningModule):
    """The network, its matching loss, and, called as GluonTS's predictor calls it, its forecasts.

    ``average`` is the network whose weights are a moving average, and forecasts are its.
    """

    @validated()
    def __init__(
        self,
        context_length: int,
        prediction_length: int,
        freq: str,
        lags: list[int],
        scaling: str = "mean",
        kernel: str = "iso",
        conditional: str | None = None,
        hidden: int = 64,
        blocks: int = 3,
        state: int = 128,
        lr: float = 1e-3,
        ema: float = 0.995,
        guidance: str = "quantile",
        guidance_scale: float = 4.0,
        guidance_weight: str = "tsflow",
        num_steps: int = 32,
        num_parallel_samples: int = 100,
    ) -> None:
        super().__init__()
        self.context_length, self.prediction_length, self.lags = context_length, prediction_length, list(lags)
        self.scaling = cast(Scaling, scaling)
        self.lr = lr
        self.guidance, self.guidance_scale, self.guidance_weight = guidance, guidance_scale, guidance_weight
        self.num_steps, self.num_parallel_samples = num_steps, num_parallel_samples
        self.spec = spec_of(context_length, prediction_length, tuple(lags), calendar.season_of(freq), freq, conditional)
        self.path = _path(cast(Kernel, kernel), freq, self.spec.season)
        self.model: nn.Module = s4d(
            S4DOptions(hidden=hidden, blocks=blocks, state=state, skip=conditional is None), self.spec
        )
        self.average = Average(self.model, ema).requires_grad_(False)
        self._draws: torch.Generator | None = None

    def parts(self) -> Parts:
        """What the core's functions are built from."""
        return Parts(
            self.spec, cast(Any, None), self.device, path=self.path, coupling=independent(), times=times.uniform(),
            loss=losses.l2(), predicts="velocity", solver=solvers.euler(),
        )  # fmt: skip

    def forward(self, past_target: Tensor, past_observed_values: Tensor, level: Tensor) -> Tensor:
        """Samples (B, num_parallel_samples, prediction_length) of what follows a past (B, M + context_length), in its
        units; the rows of each series in an order of their own, since GluonTS keeps the first of them."""
        past = torch.where(past_observed_values.bool(), past_target, torch.nan)
        ahead = past.new_full((len(past), self.prediction_length), torch.nan)
        made = scaled(torch.cat([past, ahead], 1), self.context_length, self.lags, level, self.scaling)
        draws = _generator(past.device)
        x = forecast(
            self.parts(), self.average.module, made.x, made.mask, self.num_parallel_samples, self.num_steps,
            likelihood=cast(Likelihood, self.guidance), scale=self.guidance_scale,
            weight=cast(Weight, self.guidance_weight), generator=draws,
        )  # fmt: skip
        x = x[:, :, -self.prediction_length :].to(past.device)
        order = torch.rand(x.shape[:2], generator=draws, device=past.device).argsort(1)
        return made.back(x.gather(1, order[..., None].expand_as(x))).float()

    def _loss(self, batch: dict[str, Tensor], draws: torch.Generator) -> Tensor:
        return matching(self.parts())(self.model, Batch(**cast(dict[str, Any], batch)), draws).mean()

    def on_fit_start(self) -> None:
        """A generator of one's own for the draws of training, seeded by torch's global one."""
        self._draws = _generator(self.device)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """See ``LightningModule``."""
        assert self._draws is not None
        loss = self._loss(batch, self._draws)
        self.log("train_loss", loss, on_epoch=True, on_step=False, prog_bar=True, batch_size=len(batch["x1"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """See ``LightningModule``; under the same draws each time."""
        draws = torch.Generator(self.device).manual_seed(batch_idx)
        loss = self._loss(batch, draws)
        self.log("val_loss", loss, on_epoch=True, on_step=False, prog_bar=True, batch_size=len(batch["x1"]))
        return loss

    def on_train_batch_end(self, *told: Any) -> None:
        """The average moves with the weights."""
        self.average.update_parameters(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.model.parameters(), lr=self.lr)


class FlowPredictor(PyTorchPredictor):
    """GluonTS's predictor of a network, and what a model of whole windows can do besides."""

    def refine(
        self,
        base: Predictor,
        dataset: Dataset,
        method: Literal["ml", "langevin"] = "ml",
        iterations: int = 20,
        rate: float = 0.01,
        likelihood: Likelihood = "quantile",
        scale: float = 1.0,
    ) -> Predictor:
        """A predictor whose forecasts are ``base``'s, moved to where the model finds whole windows likelier.

        ``dataset`` finds the one time that stands for all; the rest is as in ``flowplat_timeseries.refining.refine``.
        Raises ``UsageError`` for a base of another horizon, or an option that is not there.
        """
        from flowplat_timeseries.refined import Refined, time_for

        if self.prediction_net.spec.condition is not None:
            raise UsageError("refine needs a model of whole windows: train the estimator with conditional=None")
        if base.prediction_length != self.prediction_length or base.lead_time:
            raise UsageError(
                f"the base forecasts {base.prediction_length} steps after {base.lead_time}, and the model"
                f" {self.prediction_length} after 0: give them one prediction_length"
            )
        if method not in ("ml", "langevin") or likelihood not in ("quantile", "mse"):
            raise UsageError(f"method={method!r} is ml or langevin, and likelihood={likelihood!r} quantile or mse")
        options = {"method": method, "iterations": iterations, "rate": rate, "likelihood": likelihood, "scale": scale}
        return Refined(self, base, options | {"tau": time_for(self, dataset)})


def _generator(device: torch.device) -> torch.Generator:
    """A new generator, seeded by torch's global one: what ``torch.manual_seed`` and ``seed_everything`` set."""
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, ())))


def _path(kernel: Kernel, freq: str, season: int) -> paths.Affine:
    return gaussian_process(kernel, 30 if freq in ("D", "B") else season)  # as TSFlow has it


class _Stream:
    """Batches without end, cut into epochs. An epoch goes on where the last one ended."""

    def __init__(self, source: Windows, batch_size: int, batches: int) -> None:
        self.source, self.batch_size, self.batches = source, batch_size, batches
        self.draws = _generator(torch.device("cpu"))

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for _ in range(self.batches):
            rows = torch.randint(len(self.source), (self.batch_size,), generator=self.draws)
            yield _told(self.source.batch(rows, self.draws))


class _Once:
    """The last window of every series, in order."""

    def __init__(self, source: Windows, batch_size: int) -> None:
        self.source, self.batch_size = source, batch_size

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for rows in torch.arange(len(self.source)).split(self.batch_size):
            yield _told(self.source.batch(rows, torch.Generator()))


def _told(batch: Batch) -> dict[str, Tensor]:
    told = {"x1": batch.x1, "x0": batch.x0, "condition": batch.condition, "mask": batch.mask}
    return {name: one for name, one in told.items() if isinstance(one, Tensor)}


class FlowEstimator(PyTorchLightningEstimator):
    """TSDiff on flow matching as a GluonTS estimator (Kollovieh et al. 2023, arXiv 2307.11494; 2024, 2410.03024).

    One unconditional model of windows of ``context_length`` + ``prediction_length`` steps is trained; a forecast guides
    it by what is known. ``freq`` sets the season and the ``lags`` (none, tsdiff, gluonts or a list). ``guidance`` is
    "quantile" or "mse", ``guidance_scale`` its strength, ``num_steps`` the steps of a draw, ``kernel`` the noise it
    begins with (iso, se, ou, periodic). ``conditional`` names the process that a model of forecasts alone starts from
    (TSFlow's; ``kernel`` and guidance are then not used). Missing values may be anywhere, a series may be shorter than
    the context. Checkpoints of training go to a temporary folder unless ``trainer_kwargs`` names a
    ``default_root_dir``. Series are read into memory.
    """

    @validated()
    def __init__(
        self,
        freq: str,
        prediction_length: int,
        context_length: int | None = None,
        lags: str | list[int] = "none",
        scaling: str = "mean",
        kernel: str = "iso",
        conditional: str | None = None,
        hidden: int = 64,
        blocks: int = 3,
        state: int = 128,
        lr: float = 1e-3,
        ema: float = 0.995,
        guidance: str = "quantile",
        guidance_scale: float = 4.0,
        guidance_weight: str = "tsflow",
        num_steps: int = 32,
        num_parallel_samples: int = 100,
        batch_size: int = 64,
        num_batches_per_epoch: int = 128,
        trainer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        defaults = {"max_epochs": 100, "gradient_clip_val": 0.5}
        super().__init__(trainer_kwargs=defaults | (trainer_kwargs or {}))
        self.freq = calendar.frequency(freq)
        self.prediction_length = prediction_length
        self.context_length = context_length or 4 * prediction_length
        self.lags = lags_of(self.freq, cast(Lags, lags))
        self.batch_size, self.num_batches_per_epoch = batch_size, num_batches_per_epoch
        self.scaling = cast(Scaling, scaling)
        if conditional not in (None, *get_args(Kernel)):
            raise UsageError(f"conditional={conditional!r} is none of {', '.join(get_args(Kernel))}, or None")
        self.options = {
            "scaling": scaling, "kernel": kernel, "conditional": conditional, "hidden": hidden, "blocks": blocks,
            "state": state, "lr": lr, "ema": ema, "guidance": guidance, "guidance_scale": guidance_scale,
            "guidance_weight": guidance_weight, "num_steps": num_steps, "num_parallel_samples": num_parallel_samples,
        }  # fmt: skip

    def train_model(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """See GluonTS's ``PyTorchLightningEstimator``. Lightning would write checkpoints where the user stands."""
        given: dict[str, Any] = self.trainer_kwargs
        with tempfile.TemporaryDirectory() as folder:
            self.trainer_kwargs = {"default_root_dir": folder} | given
            try:
                return super().train_model(*args, **kwargs)
            finally:
                self.trainer_kwargs = given

    def create_transformation(self) -> Transformation:
        """See GluonTS."""
        fields = [FieldName.ITEM_ID, FieldName.INFO, FieldName.START, FieldName.TARGET]
        return (
            SelectFields(fields, allow_missing=True)
            + Level()
            + AddObservedValuesIndicator(target_field=FieldName.TARGET, output_field=FieldName.OBSERVED_VALUES)
        )

    def create_lightning_module(self) -> FlowModule:
        """See GluonTS."""
        return FlowModule(
            context_length=self.context_length, prediction_length=self.prediction_length, freq=self.freq,
            lags=self.lags, **cast(Any, self.options),
        )  # fmt: skip

    def _windows(self, data: Dataset, last: bool) -> Windows:
        values = []
        for entry in data:
            known = np.where(entry[FieldName.OBSERVED_VALUES] > 0, entry[FieldName.TARGET], np.nan)
            if np.isfinite(known).any():
                values.append(known.astype(np.float64))
        if not values:
            raise UsageError("there is no series to learn from: the data set is empty, or all of it is missing")
        law = None
        if (kernel := self.options["conditional"]) is not None:
            season = calendar.season_of(self.freq)
            told = spec_of(
                self.context_length, self.prediction_length, tuple(self.lags), season, self.freq, str(kernel)
            )
            law = law_of(told)
        return Windows(
            values, self.context_length, self.prediction_length, self.lags, last, scaling=self.scaling, law=law
        )

    def create_training_data_loader(self, data: Dataset, module: Any, **kwargs: Any) -> Iterable[Any]:
        """Windows drawn anywhere in the series; see ``flowplat_timeseries.windows``."""
        return _Stream(self._windows(data, False), self.batch_size, self.num_batches_per_epoch)

    def create_validation_data_loader(self, data: Dataset, module: Any, **kwargs: Any) -> Iterable[Any]:
        """The last window of every series."""
        return _Once(self._windows(data, True), self.batch_size)

    def create_predictor(self, transformation: Transformation, module: Any) -> PyTorchPredictor:
        """See GluonTS."""
        splitter = InstanceSplitter(
            target_field=FieldName.TARGET,
            is_pad_field=FieldName.IS_PAD,
            start_field=FieldName.START,
            forecast_start_field=FieldName.FORECAST_START,
            instance_sampler=TestSplitSampler(),
            past_length=self.context_length + max(self.lags, default=0),
            future_length=self.prediction_length,
            time_series_fields=[FieldName.OBSERVED_VALUES],
            dummy_value=0.0,
        )
        return FlowPredictor(
            input_transform=transformation + splitter,
            input_names=INPUTS,
            prediction_net=module,
            forecast_generator=SampleForecastGenerator(),
            batch_size=self.batch_size,
            prediction_length=self.prediction_length,
            device="auto",
        )
