import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flowcore.errors import InputError
from flowplat_text.hugging import fast
from flowplat_text.vocabulary import Vocabulary, byte_pairs, from_facts, of_folder

HARD = "tabs\tand\nlines, ünïcödé, 日本語, 🙂, \u0000 and \u200b"


@pytest.fixture(scope="module")
def pairs() -> Vocabulary:
    return byte_pairs(["the cat sat on the mat. " * 50, HARD], 300)


def test_bytes_are_those_of_utf_8() -> None:
    bytes_of = Vocabulary()
    assert bytes_of.encode(HARD).tolist() == list(HARD.encode())
    assert bytes_of.decode(bytes_of.encode(HARD).tolist()) == HARD
    assert (bytes_of.size, bytes_of.mask, bytes_of.eos) == (258, 256, 257)
    assert bytes_of.decode([97, 256, 98, 257]) == "a[MASK]b[EOS]"
    assert bytes_of.decode([97, 256, 98, 257], special=False) == "ab"
    assert bytes_of.decode([0xE6, 97]) == "\ufffda"  # half a letter
    assert bytes_of.bytes_of(np.array([97, 256, 98, 257])) == 2


def test_byte_pairs_come_back_and_are_fewer(pairs) -> None:
    for text in ("the cat sat on the mat.", HARD, " spaces  inside "):
        assert pairs.decode(pairs.encode(text).tolist()) == text
    assert len(pairs.encode("the cat sat on the mat.")) < 12
    assert (pairs.size, pairs.mask, pairs.eos) == (300, 0, 1)
    row = np.append(pairs.encode(HARD), [pairs.eos, pairs.mask])
    assert pairs.bytes_of(row) == len(HARD.encode())
    assert pairs.decode([pairs.eos, pairs.mask]) == "[EOS][MASK]"
    assert not {pairs.mask, pairs.eos} & set(pairs.encode(HARD).tolist())


def test_training_is_the_same_twice_and_facts_are_all_of_it(pairs) -> None:
    again = byte_pairs(["the cat sat on the mat. " * 50, HARD], 300)
    assert again == pairs
    assert from_facts(pairs.facts()) == pairs
    assert again.digest() == pairs.digest() != Vocabulary().digest()


def test_the_type_of_tokens_grows_with_the_vocabulary(pairs) -> None:
    assert pairs.encode("a").dtype == np.uint16
    assert Vocabulary(pairs.json, 2**16 + 1, 0, 1).encode("a").dtype == np.uint32


def saved(folder, **special: str):
    """A tokenizer of three words in a folder."""
    words = {"cat": 0, "dog": 1, "sat": 2, **{name: 3 + n for n, name in enumerate(special.values())}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="sat"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def test_a_tokenizer_of_a_folder_keeps_its_own_mask(tmp_path) -> None:
    found = of_folder(saved(tmp_path / "it", mask_token="<m>", sep_token="<s>"))
    assert (found.size, found.mask, found.eos) == (5, 3, 4)
    assert found.encode("cat sat dog").tolist() == [0, 2, 1]


def test_a_tokenizer_without_a_mask_is_told_and_may_be_given_one(tmp_path) -> None:
    folder = saved(tmp_path / "it", eos_token="</s>")
    with pytest.raises(InputError, match=r"it has no mask token.*data.add_mask=true adds one"):
        of_folder(folder)
    found = of_folder(folder, add_mask=True)
    assert (found.size, found.mask, found.eos) == (5, 4, 3)
    with pytest.raises(InputError, match="neither eos_token nor sep_token"):
        of_folder(saved(tmp_path / "other", mask_token="<m>"))


def test_what_is_no_tokenizer_is_told(tmp_path) -> None:
    with pytest.raises(InputError, match=r"nowhere is no folder; data.tokenizer is bytes, bpe"):
        of_folder(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="holds no tokenizer that transformers reads") as told:
        of_folder(tmp_path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", ["bytes", "pairs"])
def test_for_transformers_it_is_the_same_tokenizer(kind, pairs, tmp_path) -> None:
    from transformers import AutoTokenizer

    vocabulary = Vocabulary() if kind == "bytes" else pairs
    fast(vocabulary, 64).save_pretrained(tmp_path)
    there = AutoTokenizer.from_pretrained(str(tmp_path))
    for text in (HARD, "the cat sat"):
        assert there(text)["input_ids"] == vocabulary.encode(text).tolist()
        assert there.decode(vocabulary.encode(text).tolist()) == text
    assert (there.mask_token_id, there.eos_token_id, len(there)) == (vocabulary.mask, vocabulary.eos, vocabulary.size)
    again = of_folder(tmp_path)
    assert (again.size, again.mask, again.eos) == (vocabulary.size, vocabulary.mask, vocabulary.eos)
    assert again.encode(HARD).tolist() == vocabulary.encode(HARD).tolist()
