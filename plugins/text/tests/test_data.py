"""What the data sets hold: every token once, held out what should be, the same on every machine and after a restart."""

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from flowcore.data import Batch, Share, batches, everything
from flowcore.errors import InputError, IntegrityError, UsageError
from flowcore.plugin.contracts import Leaf
from flowplat_text import corpora
from flowplat_text.data import Builtin, BuiltinConfig, Excerpt, Files, FilesConfig
from flowplat_text.packing import Blocks, pack, split
from flowplat_text.vocabulary import Vocabulary

TEXTS = [f"text number {n}, of some length. " * (1 + n % 3) for n in range(60)]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_python_brings_texts_along() -> None:
    """In the sizes that the docs name, whatever the version is."""
    topics = list(corpora.pydoc())
    assert 60 < len(topics) < 120
    assert 400_000 < sum(map(len, topics)) < 700_000
    for name, least in (("docstrings", 20), ("stdlib", 20)):
        some = [text for text, _ in zip(corpora.CORPORA[name](), range(least), strict=False)]
        assert len(some) == least
        assert all(text.strip() for text in some)


def test_the_last_tenth_is_held_out_and_nothing_is_lost() -> None:
    data = Builtin(BuiltinConfig(length=64))
    whole = "".join(corpora.pydoc())
    train, val = data.packed.train, data.packed.val
    assert (
        Vocabulary().decode(train.tolist(), special=False) + Vocabulary().decode(val.tolist(), special=False) == whole
    )
    assert len(val) / (len(train) + len(val)) == pytest.approx(0.1, abs=1e-3)
    assert int((train == 257).sum() + (val == 257).sum()) == len(list(corpora.pydoc())) + 1  # one is cut in two


def test_a_text_is_held_out_by_its_hash_so_that_others_may_come_and_go() -> None:
    first, again = dict(map(reversed, split(TEXTS, 0.3))), dict(map(reversed, split(TEXTS[5:], 0.3)))
    assert 5 < sum(first.values()) < 30
    assert all(first[text] == part for text, part in again.items())
    few = list(split(TEXTS[:9], 0.3))
    assert [part for part, _ in few] == sorted(part for part, _ in few)
    assert "".join(text for _, text in few) == "".join(TEXTS[:9])
    assert sum(len(text) for part, text in few if part) == pytest.approx(0.3 * len("".join(TEXTS[:9])), abs=1)
    assert {part for part, _ in split(TEXTS[:9], 0.0)} == {0}


def test_blocks_are_the_tokens_in_a_row_and_shifted_ones_begin_anywhere() -> None:
    tokens = np.arange(103, dtype=np.uint16)
    plain = Blocks(tokens, 10, shifted=False)
    assert len(plain) == 10
    x = plain.batch(torch.arange(10), draws()).x1
    assert torch.equal(x.flatten(), torch.arange(100))
    assert x.dtype == torch.int64
    shifted = Blocks(tokens, 10, shifted=True)
    starts = torch.stack([shifted.batch(torch.tensor([3, 9]), draws(seed)).x1[:, 0] for seed in range(300)])
    assert set(starts[:, 0].tolist()) == set(range(30, 40))
    assert set(starts[:, 1].tolist()) == set(range(90, 100))
    row = shifted.batch(torch.full((300,), 9), draws()).x1
    assert bool(((row[:, 1:] - row[:, :-1]) % 103 == 1).all())  # a ring
    held = shifted.to(torch.device("cpu"))
    assert torch.equal(held.batch(torch.arange(5), draws()).x1, shifted.batch(torch.arange(5), draws()).x1)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_the_spec_is_known_from_the_config_and_tiny_has_the_same(tokenizer) -> None:
    data = Builtin(BuiltinConfig(length=64, tokenizer=tokenizer, vocabulary=512))
    expected = (258, 256) if tokenizer == "bytes" else (512, 0)
    assert data.spec().state == Leaf((64,), "int64", "token", *expected)
    tiny = data.tiny()
    assert tiny.spec() == data.spec()
    assert (tiny.vocabulary.size, tiny.vocabulary.mask) == expected
    assert 0 < len(tiny.val()) < len(tiny.train()) < 600
    x = everything(tiny.train()).x1
    assert bool((x != tiny.vocabulary.mask).all() & (x < tiny.vocabulary.size).all())


def test_files_are_read_split_and_fingerprinted_by_what_they_hold(write) -> None:
    paths = [write(f"{n:02d}.txt", text) for n, text in enumerate(TEXTS)]
    data = Files(FilesConfig(path=paths, length=16))
    assert data.fingerprint() == Files(FilesConfig(path=paths, length=16)).fingerprint()
    write("00.txt", "another")
    assert data.fingerprint() != Files(FilesConfig(path=paths, length=16)).fingerprint()
    alone = Files(FilesConfig(path=paths[1:], validation=paths[:1], length=16, holdout=0))
    assert Vocabulary().decode(alone.packed.val.tolist(), special=False) == "another"
    assert len(alone.val()) == len(alone.train())  # one text is shorter than a block


def test_a_cache_holds_the_same_tokens_and_is_made_again_where_the_files_have_changed(write, tmp_path) -> None:
    path = write("a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for tokenizer in ("bytes", "bpe"):
        options = {"path": path, "length": 16, "tokenizer": tokenizer, "vocabulary": 300}
        cached = Files(FilesConfig(cache=str(tmp_path / tokenizer), **options))
        plain = Files(FilesConfig(**options))
        assert np.array_equal(cached.packed.train, plain.packed.train)
        assert np.array_equal(cached.packed.val, plain.packed.val)
        assert isinstance(cached.packed.train, np.memmap)
        before = (tmp_path / tokenizer / "train.bin").stat().st_mtime_ns
        again = Files(FilesConfig(cache=str(tmp_path / tokenizer), **options))
        assert again.fingerprint() == cached.fingerprint()
        assert again.vocabulary == plain.vocabulary
        assert (tmp_path / tokenizer / "train.bin").stat().st_mtime_ns == before
    write("a.jsonl", json.dumps({"text": "another text altogether, of sixteen letters or more"}))
    changed = Files(FilesConfig(cache=str(tmp_path / "bytes"), path=path, length=16))
    assert changed.fingerprint() not in (plain.fingerprint(), cached.fingerprint())
    assert len(changed.packed.train) < 60
    (tmp_path / "bytes" / "train.bin").write_bytes(b"no")
    with pytest.raises(IntegrityError, match=r"train.bin is not as its manifest says; delete the folder"):
        _ = Files(FilesConfig(cache=str(tmp_path / "bytes"), path=path, length=16)).packed


def test_of_several_that_make_a_cache_at_once_one_does(write, tmp_path) -> None:
    """As the processes of a run do; what each gets is whole."""
    path, made = write("a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)), []

    class Counted(Files):
        def documents(self):
            made.append(self)
            return super().documents()

    def ask(_: int):
        packed = Counted(FilesConfig(path=path, length=16, cache=str(tmp_path / "cache"))).packed
        return packed.digest, packed.train.tobytes()

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(ask, range(4)))
    assert len(found) == len(made) == 1


def test_the_rows_of_a_step_are_shared_out_and_a_run_goes_on_where_it_was() -> None:
    """Nothing but the number of the step is kept: ranks see together what one process would, from any step on."""
    length, blocks = 16, 24
    data = Blocks(np.arange(length * blocks, dtype=np.uint16), length, shifted=True)

    def seen(start: int, stop: int, share: Share, workers: int = 0):
        return [batch.x1 for batch in batches(data, 8, start, stop, 3, share, workers)]

    def places(x) -> list[int]:
        return sorted((x[:, 0] // length).tolist())

    whole, ranks = seen(0, 6, Share(0, 1)), [seen(0, 6, Share(rank, 2)) for rank in (0, 1)]
    assert all(map(torch.equal, whole[4:], seen(4, 6, Share(0, 1))))
    assert all(map(torch.equal, whole, seen(0, 6, Share(0, 1), workers=2)))
    assert all(places(x) == places(torch.cat(both)) for x, *both in zip(whole, *ranks, strict=True))
    assert places(torch.cat(whole[:3])) == places(torch.cat(whole[3:])) == list(range(blocks))  # two epochs


def test_a_path_is_one_or_several_and_a_dash_is_the_standard_input(tmp_path) -> None:
    for given, read in (("a", [str(tmp_path / "a")]), ([str(tmp_path / "a"), "/b"], [str(tmp_path / "a"), "/b"]),
                        ("-", ["-"]), ([None], ["-"])):  # fmt: skip
        with contextlib.chdir(tmp_path):
            assert FilesConfig(path=given).path == read
            assert FilesConfig(path="/x", validation=given).validation == read
    with pytest.raises(ValueError, match="valid list"):
        FilesConfig(path=3)


def test_too_little_text_and_a_wish_are_refused(write) -> None:
    with pytest.raises(InputError, match=r"there are 5 tokens to train on, and data.length=128 asks for more"):
        Files(FilesConfig(path=write("a.txt", "four"), holdout=0)).train()
    with pytest.raises(UsageError, match="`platform apply text fill`"):
        Builtin(BuiltinConfig()).condition(3, "a cat")
    with pytest.raises(UsageError, match=r"data.cache keeps what comes from files"):
        Files(FilesConfig(path="-", cache="x")).train()


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_what_is_written_is_read_back_and_text_of_others_too(tmp_path, tokenizer) -> None:
    data = Excerpt(BuiltinConfig(length=20, tokenizer=tokenizer, vocabulary=300), TEXTS)
    drawn = everything(data.val(), 5)
    (tmp_path / "own").mkdir()
    data.write(drawn, tmp_path / "own")
    assert torch.equal(data.read_back(tmp_path / "own").x1, drawn.x1)
    assert data.vocabulary.decode(drawn.x1[0].tolist()) in (tmp_path / "own" / "samples.txt").read_text()
    (tmp_path / "a.txt").write_text("short")
    (tmp_path / "b.txt").write_text("long enough to be cut " * 9)
    (tmp_path / "own" / "samples.jsonl").unlink()
    (tmp_path / "own" / "samples.txt").unlink()
    x = data.read_back(tmp_path).x1
    assert x.shape == (2, 20)
    assert data.vocabulary.decode(x[0].tolist(), special=False) == "short"
    assert bool((x[0, 6:] == data.vocabulary.eos).all())


def test_from_its_facts_it_says_what_sampling_asks(tmp_path) -> None:
    config = BuiltinConfig(length=20, tokenizer="bpe", vocabulary=300)
    data = Excerpt(config, TEXTS)
    facts = json.loads(json.dumps(data.facts()))
    there = Files(FilesConfig(path=str(tmp_path / "gone"), length=20, tokenizer="bpe", vocabulary=300), facts)
    assert there.spec() == data.spec()
    x = everything(data.val(), 3)
    there.write(x, tmp_path)
    assert json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])["tokens"] == x.x1[0].tolist()
    assert there.show(x) == data.show(x)


def test_any_tokens_make_a_picture() -> None:
    data = Excerpt(BuiltinConfig(length=64), TEXTS)
    x = torch.randint(258, (20, 64), generator=draws())
    picture = data.show(Batch(x))
    assert picture.startswith(b"\x89PNG")
    assert picture == data.show(Batch(x))
    assert picture != data.show(Batch(x.flip(1)))


def test_packing_puts_an_end_behind_each_text() -> None:
    packed = pack([(0, "ab"), (1, "c"), (0, "d")], Vocabulary())
    assert packed.train.tolist() == [97, 98, 257, 100, 257]
    assert packed.val.tolist() == [99, 257]
    assert packed.digest != pack([(0, "ab"), (0, "d"), (1, "c"), (1, "")], Vocabulary()).digest
