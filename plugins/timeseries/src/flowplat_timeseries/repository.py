"""Data sets as GluonTS keeps them: a folder with metadata.json, train and test, or one of its names."""

import json
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from flowcore.errors import InputError, MachineError, UsageError
from flowplat_timeseries import builtin, calendar, reading
from flowplat_timeseries.data import Freq, SeriesConfig, SeriesSet
from flowplat_timeseries.reading import Series


class GluonTSConfig(SeriesConfig):
    """A data set with a split of its own."""

    path: str = Field("", description="a folder with metadata.json, train and test")
    repository: str = Field("", description="or a name of GluonTS's repository, such as m4_hourly, kept on this disk")
    download: bool = Field(False, description="have GluonTS fetch what is not on this disk")
    freq: Freq = Field(None, description="where the metadata say none")
    rolling: Literal[1] = Field(1, description="the test set says itself what is held out")

    @model_validator(mode="after")
    def _one_of_them(self) -> "GluonTSConfig":
        if bool(self.path) == bool(self.repository):
            raise ValueError("give path or repository, one of them")
        if self.path:
            object.__setattr__(self, "path", str(Path(self.path).expanduser().absolute()))
        return self


class GluonTS(SeriesSet):
    """Trained on ``train``; the last ``horizon`` steps of each entry of ``test`` are forecast from those before."""

    config: GluonTSConfig

    @staticmethod
    def example(folder: Path) -> Mapping[str, Any]:
        """See ``Checkable.example``: four built-in series, split."""
        some = [Series(f"{i}", one.start, one.values[-200:]) for i, one in enumerate(builtin.hourly()[::16])]
        (folder / "metadata.json").write_text(json.dumps({"freq": "H", "prediction_length": 12}), encoding="utf-8")
        for part, stop in (("train", 188), ("test", 200)):
            (folder / part).mkdir()
            lines = [
                json.dumps({"item_id": s.name, "start": str(s.times[0]), "target": s.until(stop).values.tolist()})
                for s in some
            ]
            (folder / part / "data.json").write_text("\n".join(lines).replace("NaN", '"NaN"'), encoding="utf-8")
        return {"path": str(folder), "context": 48, "horizon": 12}

    @cached_property
    def _folder(self) -> Path:
        if self.config.path:
            return Path(self.config.path)
        from gluonts.dataset.repository import dataset_names, get_dataset
        from gluonts.dataset.repository.datasets import get_download_path

        name = self.config.repository
        if name not in dataset_names:
            raise UsageError(f"GluonTS has no data set {name!r}; it has {', '.join(sorted(dataset_names))}")
        folder = Path(get_download_path()) / "datasets" / name
        if not folder.exists():
            if not self.config.download:
                raise InputError(f"{folder} is not there; set data.download=true to have GluonTS fetch {name}")
            print(f"GluonTS fetches {name}", file=sys.stderr)
            try:
                get_dataset(name)
            except Exception as error:  # of whatever kind the site that it reads from calls for
                raise MachineError(
                    f"GluonTS could not fetch {name}: {next(iter(str(error).splitlines()), type(error).__name__)}"
                ) from error
        return folder

    @cached_property
    def _told(self) -> tuple[str, int | None]:
        """The frequency and the horizon of the metadata."""
        folder = self._folder
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder")
        files = [folder / "metadata.json", folder / "metadata" / "metadata.json"]
        metadata: Any = {}
        for file in files:
            if file.is_file():
                try:
                    metadata = json.loads(file.read_text(encoding="utf-8"))
                except ValueError as error:
                    raise InputError(f"{file} is no JSON: {error}") from error
        freq = self.config.freq or (calendar.frequency(str(metadata["freq"])) if metadata.get("freq") else None)
        if freq is None:
            raise InputError(f"{folder} has no metadata.json with a freq; set data.freq")
        horizon = metadata.get("prediction_length")
        return freq, None if horizon is None else int(horizon)

    def _part(self, name: str) -> list[Series]:
        freq, horizon = self._told
        if horizon is not None and horizon != self.config.horizon:
            raise UsageError(
                f"{self._folder} is to be forecast {horizon} steps ahead, and data.horizon={self.config.horizon};"
                f" set data.horizon={horizon}"
            )
        folder = self._folder / name
        if not folder.is_dir():
            raise InputError(f"{folder} is not there; a data set of GluonTS has train and test")
        return reading.brought([folder], freq)

    def read(self) -> list[Series]:
        """The training series."""
        return self._part("train")

    @cached_property
    def _usable(self) -> tuple[list[Series], dict[str, str]]:
        return reading.usable(self.read())

    @cached_property
    def trained_on(self) -> list[Series]:
        """The training series, whole."""
        return self.series

    @cached_property
    def tests(self) -> list[Series]:
        """The test series of which anything is known before their last ``horizon`` steps."""
        horizon = self.config.horizon
        held = [one for one in self._part("test") if one.until(max(0, len(one.values) - horizon)).known]
        if not held:
            raise InputError(f"{self._folder / 'test'} has no series longer than data.horizon={horizon}")
        return held

    def _own_freq(self) -> str:
        return self._told[0]
