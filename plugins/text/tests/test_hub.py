import numpy as np
import pytest

from flowcore.errors import InputError, MachineError
from flowplat_text import hub
from flowplat_text.hub import Hf, HfConfig
from flowplat_text.vocabulary import Vocabulary

TEXTS = [f"text number {n}, of some length" for n in range(20)]


@pytest.fixture
def saved(tmp_path):
    """``saved("name", train=[...], test=[...])`` is a folder that save_to_disk wrote."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def made(name: str, **splits):
        parts = {
            split: datasets.Dataset.from_dict({"text": texts, "n": [0] * len(texts)}) for split, texts in splits.items()
        }
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / name))
        return str(tmp_path / name)

    return made


def text(tokens) -> str:
    return Vocabulary().decode(tokens.tolist(), special=False)


def test_splits_are_what_is_trained_on_and_held_out(saved) -> None:
    path = saved("it", train=[*TEXTS, " "], validation=["another text"])
    data = Hf(HfConfig(path=path, length=8))
    assert text(data.packed.train) == "".join(TEXTS)
    assert text(data.packed.val) == "another text"
    share = Hf(HfConfig(path=path, length=8, validation="none", holdout=0.4))
    assert 0 < len(share.packed.val) < len(share.packed.train)
    assert data.tiny().spec() == data.spec()


def test_what_is_streamed_is_read_as_it_comes_and_a_cache_keeps_the_tokens(saved, monkeypatch, tmp_path) -> None:
    """With the rows of a data set on the disk, handed out as the Hub's are."""
    path, package = saved("it", train=TEXTS), pytest.importorskip("datasets")
    kept, asked = package.load_from_disk(path), []

    def load_dataset(name, subset, revision, streaming):
        asked.append((name, streaming))
        return {split: rows.to_iterable_dataset() for split, rows in kept.items()}

    monkeypatch.setattr(package, "load_dataset", load_dataset)
    data = Hf(HfConfig(path="someone/texts", length=8, streaming=True, holdout=0, cache=str(tmp_path / "cache")))
    assert text(data.packed.train) == "".join(TEXTS)
    assert isinstance(data.packed.train, np.memmap)
    assert asked == [("someone/texts", True)]
    again = Hf(HfConfig(path="someone/texts", length=8, streaming=True, holdout=0, cache=str(tmp_path / "cache")))
    assert again.fingerprint() == data.fingerprint()
    with pytest.raises(InputError, match="has no column 'body'; there are text, n"):
        Hf(HfConfig(path="someone/texts", length=8, streaming=True, field="body")).train()


def test_what_is_not_there_is_told_in_one_line(saved, tmp_path) -> None:
    path = saved("it", train=TEXTS)
    for options, line in (({"path": path, "split": "test"}, "has no split 'test'; there are train"),
                          ({"path": path, "field": "body"}, "has no column 'body'; there are text, n"),
                          ({"path": path, "field": "n"}, "row 0: 'n' is int, not text"),
                          ({"path": str(tmp_path)}, "is no folder that save_to_disk wrote")):  # fmt: skip
        with pytest.raises(InputError, match=line):
            Hf(HfConfig(length=8, **options)).train()


def test_without_the_package_the_way_out_is_told(monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MachineError, match=r"pip install 'flowplat-text\[hf\]'"):
        hub.datasets()
