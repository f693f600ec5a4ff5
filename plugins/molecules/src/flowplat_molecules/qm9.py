"""QM9: 134 thousand molecules of C, H, N, O, F with properties by B3LYP/6-31G(2df,p) (Ramakrishnan et al. 2014,
doi 10.1038/sdata.2014.22), or rQM9, where bond orders and charges of some 30 thousand of them are repaired."""

import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from rdkit import Chem
from torch import Tensor

from flowcore.errors import InputError, MissingPackageError
from flowplat_molecules.data import Known, MoleculesConfig
from flowplat_molecules.sdf import LeftOutError, Place, Sdf, SdfConfig
from flowplat_molecules.vocabulary import AROMATIC, KEKULE, Vocabulary

log = logging.getLogger("flowplat")

METHOD = "B3LYP/6-31G(2df,p), QM9"
UNITS = {
    "mu": "D", "alpha": "bohr^3", "homo": "Ha", "lumo": "Ha", "gap": "Ha", "r2": "bohr^2", "zpve": "Ha", "u0": "Ha",
    "u298": "Ha", "h298": "Ha", "g298": "Ha", "cv": "cal/(mol K)",
}  # fmt: skip
STRUCTURES, TABLE, DOUBTFUL = ("rQM9.sdf", "gdb9.sdf"), "gdb9.sdf.csv", "uncharacterized.txt"
HEADER = 9  # lines of words before the molecules in uncharacterized.txt
FETCH = "fetch"
TRAINED = 100_000  # of the paper's split, in two halves
Name = Literal["mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "u0", "u298", "h298", "g298", "cv"]


def _place(text: str) -> str:
    return text if text == FETCH else str(Path(text).expanduser().absolute())


class Qm9Config(MoleculesConfig):
    """QM9."""

    properties: list[Name] = Field(["mu"], description="what the network is told of each molecule")  # type: ignore[assignment]
    raw: Annotated[str, AfterValidator(_place)] = Field(
        description="folder with gdb9.sdf or rQM9.sdf, gdb9.sdf.csv, and uncharacterized.txt if it is there; or `fetch`"
    )
    cache: Place | None = Field(None, description="a folder to keep in what was read, for the next run: minutes less")
    root: Place = Field("data/qm9", description="where torch_geometric puts them with raw=fetch: a download")


class Qm9(Sdf):
    """See the module. Molecules that sanitise are permuted by numpy's seed 42: the first 100,000 are trained on, the
    first half of them by the generator, the second by the judge; a tenth of all is the test set, which no run sees, and
    the rest is held out. Of a folder with fewer, in the same proportions."""

    def __init__(self, config: Qm9Config, facts: object = None) -> None:
        self.own = config
        shared = {name: getattr(config, name) for name in MoleculesConfig.model_fields}
        super().__init__(
            SdfConfig(path=[], key="_Name", method=METHOD, units=UNITS, cache=config.cache, **shared), facts
        )

    @staticmethod
    def example(folder: Path) -> dict[str, str]:
        """See ``Checkable.example``: forty of the package's molecules in QM9's own files."""
        from flowplat_molecules.builtin import Builtin, BuiltinConfig

        small = Builtin(BuiltinConfig())
        source = small.tiny().train()
        batch = source.batch(torch.arange(40), torch.Generator())
        small.write(batch, folder)
        text = (folder / "molecules.sdf").read_text()
        records = [record for record in text.split("$$$$\n") if record]
        plain = [f"gdb_{n}\n" + record.partition("\n")[2].partition(">  <")[0] for n, record in enumerate(records, 1)]
        for path in list(folder.iterdir()):
            path.unlink()
        (folder / "gdb9.sdf").write_text("".join(record + "$$$$\n" for record in plain))
        values = batch.condition[:, 0].tolist()
        lines = [f"gdb_{number},{value:.5f}" for number, value in enumerate(values, 1)]
        (folder / TABLE).write_text("mol_id,mu\n" + "\n".join(lines) + "\n")
        return {"raw": str(folder)}

    @cached_property
    def _folder(self) -> Path:
        if self.own.raw != FETCH:
            folder = Path(self.own.raw)
            if not folder.is_dir():
                raise InputError(f"{folder} is no folder; data.raw names one with gdb9.sdf and {TABLE}")
            return folder
        root = Path(self.own.root)
        if not any((root / "raw" / name).exists() for name in STRUCTURES):
            _fetch(root)
        return root / "raw"

    @property
    def _name(self) -> str:
        return str(self._folder)

    def _files(self) -> Iterator[Path]:
        for name in STRUCTURES:
            if (self._folder / name).exists():
                yield self._folder / name
                return
        raise InputError(f"{self._folder} holds neither {' nor '.join(STRUCTURES)}")

    def origin(self) -> list[Path]:
        """See ``Sdf.origin``."""
        others = [self._folder / name for name in (TABLE, DOUBTFUL)]
        return [*self._files(), *(path for path in others if path.exists())]

    def known(self) -> Mapping[str, Known]:
        """QM9's own."""
        return {name: Known(unit, METHOD) for name, unit in UNITS.items()}

    def own_vocabulary(self) -> Vocabulary:
        """QM9's."""
        return Vocabulary(bonds=AROMATIC if self.config.aromatic else KEKULE)

    def _table(self) -> dict[str, Mapping[str, str]] | None:
        path = self._folder / TABLE
        if not path.exists():
            return None  # an SDF with its properties in fields
        self.config = self.config.model_copy(update={"csv": str(path), "key": "mol_id"})
        return super()._table()

    @cached_property
    def _doubtful(self) -> set[str]:
        path = self._folder / DOUBTFUL
        if not path.exists():
            return set()
        words = (line.split() for line in path.read_text(encoding="utf-8").splitlines()[HEADER:])
        return {f"gdb_{line[0]}" for line in words if line and line[0].isdigit()}

    def _key(self, raw: Chem.Mol, number: int) -> str | None:
        own = str(raw.GetProp("_Name")).strip()
        if own in self._doubtful:
            raise LeftOutError(f"named in {DOUBTFUL}")
        return own

    @cached_property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """The paper's split; see the class."""
        count = len(self.loaded.sizes)
        order = torch.from_numpy(np.random.RandomState(42).permutation(count))
        trained = min(TRAINED, round(0.75 * count))
        test = count // 10
        own = trained // 2 if self.config.properties and self.config.judge_share > 0 else 0
        train, judge = order[: trained - own], order[trained - own : trained]
        return train, order[trained + test :], judge


def _fetch(root: Path) -> None:
    """The raw files from where torch_geometric has them."""
    try:
        from torch_geometric.data import download_url, extract_zip  # type: ignore[import-untyped]
        from torch_geometric.datasets import QM9  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingPackageError(
            "QM9 is fetched by torch_geometric: pip install 'flowplat-molecules[qm9]', or set data.raw to its folder"
        ) from error
    raw = root / "raw"
    log.info("QM9 is fetched to %s", raw)
    try:
        packed = Path(download_url(QM9.raw_url, str(raw), log=False))
        extract_zip(str(packed), str(raw), log=False)
        packed.unlink()
        Path(download_url(QM9.raw_url2, str(raw), log=False)).rename(raw / DOUBTFUL)
    except Exception as error:  # of the network, of the disk, of any library below
        raise InputError(
            f"QM9 could not be fetched to {raw} ({type(error).__name__}); put gdb9.sdf and {TABLE} into a folder and"
            " set data.raw to it"
        ) from error
