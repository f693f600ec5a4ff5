import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowcore.data import Batch, everything
from flowcore.errors import InputError, MissingPackageError, UsageError
from flowcore.plugin.contracts import Measured
from flowplat_images import captions
from flowplat_images.captions import class_of, moments, phrase, possible, trained, written
from flowplat_images.data import Digits, DigitsConfig, Folder, FolderConfig, Npz, NpzConfig
from flowplat_images.metrics import class_accuracy

pytest.importorskip("tokenizers")

NAMES = [str(digit) for digit in range(10)]


def digits(**options):
    return Digits(DigitsConfig(captions={"source": "labels"} | options))


def texts(images, condition):
    return images.text.tokens.texts(condition)


@pytest.fixture(scope="module")
def told():
    return digits()


# ---------------------------------------------------------------- written of classes


def bar(lean, width):
    """A stroke 21 pixels high that moves ``lean`` pixels to the right for each pixel upwards."""
    y, x = torch.meshgrid(torch.arange(21.0), torch.arange(41.0), indexing="ij")
    return ((x - 20 - lean * (10 - y)).abs() <= width).double()


def test_ink_and_lean_are_those_of_a_stroke_that_was_drawn():
    for lean in (-0.5, 0.0, 0.25, 1.0):
        _ink, measured = moments(bar(lean, 2)[None])
        assert measured.item() == pytest.approx(lean, abs=0.03)
    assert moments(bar(0, 2)[None])[0].item() == 5 * 21
    assert [value.item() for value in moments(torch.zeros(1, 5, 5).double())] == [0, 0]


def test_thirds_of_a_class_are_thick_and_slanted():
    images = torch.stack([bar(0.3 * lean, width) for lean in range(3) for width in (1, 2, 3)])
    x = (255 * images).to(torch.uint8)[:, None]
    said = written(x, torch.zeros(9, dtype=torch.int64), ["stroke"], ["a {weight} {class}", "{slant} {class}"])
    assert [row[0] for row in said] == ["a thin stroke", "a stroke", "a thick stroke"] * 3
    assert [row[1] for row in said] == ["upright stroke"] * 3 + ["stroke"] * 3 + ["slanted stroke"] * 3
    # by class: one that is alone in its class is neither, and colours have no ink
    assert written(x[:1], torch.zeros(1, dtype=torch.int64), ["stroke"], ["a {weight} {class}"]) == [["a stroke"]]
    colour = written(x.expand(-1, 3, -1, -1), torch.zeros(9, dtype=torch.int64), ["stroke"], ["a {weight} {class}"])
    assert {row[0] for row in colour} == {"a stroke"}


@pytest.mark.parametrize(
    ("template", "name", "weight", "text"),
    [
        ("a {weight} {class}", "8", "thick", "a thick eight"),
        ("a {weight} {class}", "8", "", "an eight"),
        ("a {class}", "1", "", "a one"),
        ("a {class}", "ankle_boot", "", "an ankle boot"),
        ("A {class}, seen", "12", "", "A 12, seen"),
    ],
)
def test_phrases_are_english(template, name, weight, text):
    assert phrase(template, name, weight, "") == text


def test_a_caption_tells_its_class_as_a_word():
    assert [class_of(text, NAMES) for text in ("a thick seven", "Seven!", "seventh", "a one or two", "")] == [
        7,
        7,
        -1,
        -1,
        -1,
    ]
    shirts = ["shirt", "t-shirt", "ankle_boot"]
    assert [class_of(text, shirts) for text in ("a t-shirt", "a shirt", "the ankle boot")] == [1, 0, 2]


def test_a_batch_has_a_caption_of_its_own_class_and_each_template_comes_up(told):
    source = told.train()
    batch = everything(source)
    assert torch.equal(told.asked(batch.condition), batch.extra["labels"])
    said = [
        texts(told, source.batch(torch.arange(3), torch.Generator().manual_seed(seed)).condition) for seed in range(40)
    ]
    first = set(written(told.loaded.x, told.loaded.labels, NAMES, told.config.captions.templates)[0])
    assert {row[0] for row in said} == first
    assert {text for row in said for text in row} <= set(possible(NAMES, told.config.captions.templates, True))


def test_the_mix_has_each_class_in_turn_and_is_the_same_from_facts(told):
    mix = told.condition(40, None)
    assert told.asked(mix).tolist() == [*range(10)] * 4
    facts = json.loads(json.dumps(told.facts(), allow_nan=False))
    again = Digits(told.config, facts)
    again.read = None  # nothing of the data is needed
    assert again.spec() == told.spec()
    assert torch.equal(again.condition(40, None), mix)
    assert torch.equal(again.condition(2, "a thick seven"), told.condition(2, "a thick seven"))
    assert told.tiny().spec() == told.spec()


def test_what_is_asked_for_is_understood_or_refused(told):
    asked = told.condition(3, "A thick  SEVEN | an eight")
    assert texts(told, asked) == ["a thick seven", "an eight", "a thick seven"]
    assert torch.equal(told.condition(1, "")[0], torch.tensor(told.spec().null))
    with pytest.raises(
        UsageError, match=r"no caption of the data has the word 'zebra'; its words are a, an, eight, five"
    ):
        told.condition(1, "a thick zebra")
    with pytest.raises(UsageError, match=r"takes 7 tokens and the model reads 6; say less"):
        told.condition(1, "a thick thick slanted seven")


# ---------------------------------------------------------------- as numbers


def test_a_tokenizer_is_the_same_in_every_process():
    code = (
        "from flowplat_images.captions import *; "
        "print(trained(possible([str(i) for i in range(10)], ['a {weight} {class}'], True))[0].to_str())"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    here = trained(possible(NAMES, ["a {weight} {class}"], True))[0].to_str()
    assert {text.strip() for text in runs} == {here}


def test_any_text_comes_back_from_its_numbers():
    tokenizer, pad = trained(["a thick seven", "a thin one"])
    tokens = captions.Tokens(tokenizer, pad, 64)
    said = ["a thick seven", "ein süßer 木 (x)", ""]
    ids = tokens.ids(said)
    assert ids.shape == (3, 64)
    assert tokens.texts(ids) == said
    assert (ids[2] != pad).sum() == 2
    short = tokens._replace(length=4).ids(["a thick thick thick seven"])[0]
    assert short[-1] == ids[2, 1]  # a text that is cut off still ends


# ---------------------------------------------------------------- beside the pictures


@pytest.fixture
def folder(tmp_path):
    """Three pictures with captions, two of them in words that tell a class."""
    for name, text in (("one", "a red square"), ("two", "a blue  square\n"), ("three", "nothing")):
        Image.new("RGB", (9, 9), text.split()[1] if " " in text else "white").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text)
    return tmp_path


def from_files(path, **options):
    return Folder(FolderConfig(path=path, size=8, holdout=0, captions="files", **options))


def test_captions_of_a_folder_belong_to_their_pictures(folder):
    images = from_files(folder)
    batch = everything(images.train())
    found = dict(zip(texts(images, batch.condition), batch.x1[:, :, 4, 4].tolist(), strict=True))
    assert found == {"a red square": [1, -1, -1], "a blue square": [-1, -1, 1], "nothing": [1, 1, 1]}
    assert sorted(texts(images, images.condition(3, None))) == sorted(found)
    assert images.condition(2, "a green square").shape == (2, images.spec().condition.shape[0])
    before = images.fingerprint()
    (folder / "one.txt").write_text("a red box")
    assert from_files(folder).fingerprint() != before


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (
            lambda folder: (folder / "two.txt").unlink(),
            r"two.png has no caption: two.txt is not there; mend it or take it",
        ),
        (lambda folder: (folder / "two.txt").write_text(" \n"), r"two.txt is empty"),
        (lambda folder: (folder / "two.txt").write_bytes(b"\xff\xfe\x00"), r"two.txt is not UTF-8 text"),
    ],
)
def test_a_picture_without_a_caption_is_named_or_left_out(folder, spoil, line, caplog):
    spoil(folder)
    with pytest.raises(InputError, match=line) as refused:
        from_files(folder).train()
    assert "\n" not in str(refused.value)
    kept = from_files(folder, on_error="skip")
    assert len(kept.train()) == 2
    assert "left out" in caplog.text
    for path in folder.glob("*.txt"):
        path.unlink()
    with pytest.raises(InputError, match=r"has no picture with a .txt of the same name beside it"):
        from_files(folder, on_error="skip").train()


def test_what_is_written_reads_back_as_a_data_set(told, tmp_path):
    x = everything(told.train(), 12).x1
    samples = Batch(x, told.condition(12, None), extra={"calls": 1})
    told.write(samples, tmp_path)
    said = texts(told, samples.condition)
    assert [(tmp_path / "images" / f"{i:05d}.txt").read_text().strip() for i in range(12)] == said
    assert torch.equal(told.read_back(tmp_path).condition, samples.condition)
    (tmp_path / "kept.npz").write_bytes((tmp_path / "samples.npz").read_bytes())
    (tmp_path / "samples.npz").unlink()
    again = Folder(FolderConfig(path=tmp_path / "images", size=8, channels=1, holdout=0, captions="files"))
    batch = everything(again.train())
    assert texts(again, batch.condition) == said
    assert [again.names[label] for label in batch.extra["labels"]] == [NAMES[i] for i in told.asked(samples.condition)]
    packed = Npz(NpzConfig(path=tmp_path / "kept.npz", holdout=0, captions="files"))
    assert texts(packed, everything(packed.train()).condition) == said
    assert torch.equal(told.read_back(tmp_path / "images").condition, samples.condition)
    assert told.show(samples) == Digits(DigitsConfig(conditional=True)).show(Batch(x, told.asked(samples.condition)))


def test_the_text_score_counts_captions_that_name_a_class(told, tmp_path):
    real = everything(told.train(), 200)
    measured = Measured(told, tmp_path, 0, torch.device("cpu"))
    assert class_accuracy(real, measured)["class_accuracy"].value > 0.95
    shuffled = Batch(real.x1, real.condition.roll(1, 0))
    assert class_accuracy(shuffled, measured)["class_accuracy"].value < 0.2
    empty = torch.tensor(told.spec().null).expand(200, -1).clone()
    with pytest.raises(UsageError, match=r"class_accuracy needs captions that name one class each"):
        class_accuracy(Batch(real.x1, empty), measured)
    empty[:100] = real.condition[:100]
    figure = class_accuracy(Batch(real.x1, empty), measured)["class_accuracy"]
    assert figure.value > 0.95
    assert figure.note.endswith("100 captions name no class, or several")


# ---------------------------------------------------------------- what is wrong is told in one line


def test_options_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the network is told classes or captions, not both"):
        DigitsConfig(conditional=True, captions="labels")
    with pytest.raises(ValueError, match=r"'a digit' needs \{class\}"):
        DigitsConfig(captions={"source": "labels", "templates": ["a digit"]})
    with pytest.raises(ValueError, match=r"'\{class\} \{size\}' needs"):
        DigitsConfig(captions={"source": "labels", "templates": ["{class} {size}"]})
    with pytest.raises(UsageError, match=r"these images come without captions; data.captions=labels"):
        Digits(DigitsConfig(captions="files")).spec()
    with pytest.raises(UsageError, match=r"data.captions.length=1 has no room for a word; an empty caption takes 2"):
        digits(length=1).spec()
    np.savez(tmp_path / "plain.npz", images=np.zeros((4, 8, 8), np.uint8))
    with pytest.raises(UsageError, match=r"data.captions=labels needs classes"):
        Npz(NpzConfig(path=tmp_path / "plain.npz", captions="labels")).spec()
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match=r"is no folder; data.captions.tokenizer names one"):
        digits(tokenizer=str(tmp_path / "gone")).spec()
    with pytest.raises(InputError, match=r"holds no tokenizer that can be read") as refused:
        digits(tokenizer=str(tmp_path)).spec()
    assert "\n" not in str(refused.value)


def test_a_tokenizer_of_the_users_is_taken_along(told, tmp_path):
    transformers = pytest.importorskip("transformers")
    mine, _ = trained(["a digit of another kind"])
    transformers.PreTrainedTokenizerFast(tokenizer_object=mine, pad_token="<pad>").save_pretrained(
        str(tmp_path / "mine")
    )
    images = digits(tokenizer=str(tmp_path / "mine"))
    condition = images.condition(5, None)
    assert texts(images, condition) == texts(told, told.condition(5, None))
    assert images.spec().condition.classes == mine.get_vocab_size() < told.spec().condition.classes
    for path in Path(tmp_path / "mine").iterdir():
        path.unlink()
    assert torch.equal(Digits(images.config, images.facts()).condition(5, None), condition)


def test_without_the_package_a_line_says_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        MissingPackageError, match=r"data.captions needs `tokenizers`; `pip install 'flowplat-images\[diff"
    ):
        digits().spec()
    assert Digits(DigitsConfig(conditional=True)).spec().condition.kind == "class"
