"""Data sets of Hugging Face's ``datasets``, on the disk. Where the package is not installed it is asked for."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from flowcore.data import everything
from flowcore.errors import InputError, MachineError
from flowplat_images import hub
from flowplat_images.data import Loaded
from flowplat_images.hub import Hf, HfConfig

installed = importlib.util.find_spec("datasets") is not None
needs_datasets = pytest.mark.skipif(not installed, reason="datasets is not installed")


def hf(path, **options):
    return Hf(HfConfig(**{"path": str(path), "size": 8, "channels": 1} | options))


# ---------------------------------------------------------------- without the package, without the network


def test_a_smoke_run_needs_neither_the_package_nor_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    images = hf("someone/pictures", size=12, channels=3)
    tiny = images.tiny()
    assert tiny.spec() == images.spec()
    x = everything(tiny.train()).x1
    assert x.shape == (128, 3, 12, 12)
    assert torch.equal(x[:, 0], x[:, 2])
    assert 0.3 < x.std() < 1.2
    assert len(tiny.loaded.labels.unique()) == 10
    with pytest.raises(
        MachineError, match=r"data=hf needs `datasets`; `pip install 'flowplat-images\[hf\]'` brings it"
    ):
        images.train()


def test_the_package_is_imported_when_something_is_read():
    code = "import sys, flowplat_images.hub; print('datasets' in sys.modules, 'pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_path_is_made_absolute_and_an_id_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ylecun").mkdir()
    assert HfConfig(path="ylecun").path == str(tmp_path / "ylecun")
    assert HfConfig(path="./gone").path == str(tmp_path / "gone")
    assert HfConfig(path="ylecun/mnist").path == "ylecun/mnist"


def test_a_path_that_is_not_there_is_no_id(tmp_path):
    with pytest.raises(InputError, match=r"gone does not exist; data.path names a folder, or a data set on the Hub"):
        hf(tmp_path / "gone").train()


# ---------------------------------------------------------------- with it

X = torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(9) % 3
NAMES = ["ant", "bee", "cat"]


@pytest.fixture
def saved(tmp_path):
    """Six pictures to train on and three to test, saved to disk."""
    package = pytest.importorskip("datasets")
    package.disable_progress_bars()
    parts = {}
    for name, rows in (("train", slice(0, 6)), ("test", slice(6, 9))):
        hub.write(tmp_path / name, Loaded(X[rows], LABELS[rows], NAMES))
        parts[name] = package.load_from_disk(str(tmp_path / name))["train"]
    return package.DatasetDict(parts)


def laid(saved, folder, how):
    if how == "saved":
        saved.save_to_disk(str(folder))
    elif how == "parquet":
        (folder / "data").mkdir(parents=True)
        for name, part in saved.items():
            for i in range(2):
                part.shard(2, i, contiguous=True).to_parquet(str(folder / "data" / f"{name}-0000{i}-of-00002.parquet"))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder.mkdir()
        for name, part in saved.items():  # as another tool writes it, without the Hub's own notes
            table = part.data.table
            pq.write_table(pa.table(table.columns, names=table.column_names), folder / f"{name}.parquet")
    return folder


@needs_datasets
@pytest.mark.parametrize("how", ["saved", "parquet", "plain parquet"])
def test_what_is_on_the_disk_is_read(saved, tmp_path, how):
    images = hf(laid(saved, tmp_path / "set", how), conditional=True)
    train, val = everything(images.train()), everything(images.val())
    assert torch.allclose(train.x1, X[:6] / 127.5 - 1, atol=1e-6)
    assert torch.allclose(val.x1, X[6:] / 127.5 - 1, atol=1e-6)
    assert train.condition.tolist() == LABELS[:6].tolist()
    assert images.names == (["0", "1", "2"] if how == "plain parquet" else NAMES)
    assert images.tiny().spec() == images.spec()


@needs_datasets
def test_splits_and_columns_are_named_where_they_are_not_plain(saved, tmp_path):
    both = saved["train"].add_column("other", [0] * 6).rename_column("label", "fine")
    both = both.cast_column("other", both.features["fine"])
    both.save_to_disk(str(tmp_path / "one"))
    path = tmp_path / "one"
    with pytest.raises(
        InputError, match=r"the columns image, fine, other: fine and other are labels; name one with data.label"
    ):
        hf(path).train()
    assert len(hf(path, label="fine").loaded.labels.unique()) == 3
    with pytest.raises(InputError, match=r"no picture is there; name one with data.image"):
        hf(path, image="picture").train()
    saved.save_to_disk(str(tmp_path / "two"))
    with pytest.raises(InputError, match=r"has no split 'all'; there are train, test: name one with data.split"):
        hf(tmp_path / "two", split="all").train()
    assert len(hf(tmp_path / "two", split="test").train()) == 3
    assert len(hf(tmp_path / "two", holdout=0.5).train()) == 3
    assert not hf(tmp_path / "two", test="").holds_out


@needs_datasets
def test_pictures_of_any_size_are_made_square_as_those_of_a_folder_are(saved, tmp_path):
    package = pytest.importorskip("datasets")
    Image.new("RGB", (30, 10), (200, 100, 50)).save(tmp_path / "wide.png")
    features = package.Features({"image": package.Image()})
    package.Dataset.from_dict({"image": [str(tmp_path / "wide.png")]}, features).save_to_disk(str(tmp_path / "set"))
    x = hf(tmp_path / "set", channels=3, size=6).loaded.x
    assert torch.equal(x, torch.tensor([200, 100, 50], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 6, 6))
    package.Dataset.from_dict({"image": [None]}, features).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(InputError, match="none, row 0 has no picture: neither bytes nor a file that can be read"):
        hf(tmp_path / "none").train()


@needs_datasets
def test_what_cannot_be_read_is_named_in_one_line(saved, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds neither a data set saved by save_to_disk nor a \.parquet file"):
        hf(tmp_path / "empty").train()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "train.parquet").write_bytes(b"hello")
    with pytest.raises(InputError, match=r"bad cannot be read") as refused:
        hf(tmp_path / "bad").train()
    assert "\n" not in str(refused.value)
    package = pytest.importorskip("datasets")
    cells = [{"bytes": np.arange(9, dtype=np.uint8).tobytes(), "path": None}]
    package.Dataset.from_dict({"image": cells}, package.Features({"image": package.Image()})).save_to_disk(
        str(tmp_path / "x")
    )
    with pytest.raises(InputError, match="x, row 0 is no picture"):
        hf(tmp_path / "x").train()
