import io
import json
import logging
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from sklearn.datasets import load_digits

from flowcore.data import Batch, Resident, everything
from flowcore.errors import InputError, UsageError
from flowcore.seeds import generator
from flowplat_images import data, pictures
from flowplat_images.data import Digits, DigitsConfig, Fixed, Folder, FolderConfig, Images, Loaded, Npz, NpzConfig


def grey(value, size=8):
    """The bytes of a PNG of one grey."""
    buffer = io.BytesIO()
    Image.new("L", (size, size), value).save(buffer, "PNG")
    return buffer.getvalue()


def lay(folder, files):
    """Write {name: bytes, text, or the grey of a picture} below ``folder``."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            grey(content) if isinstance(content, int) else content.encode() if isinstance(content, str) else content
        )
    return folder


def zipped(path, files):
    """The same as a zip."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, grey(content) if isinstance(content, int) else content)
    return path


def folder(path, **options):
    return Folder(FolderConfig(**{"path": path, "size": 8, "channels": 1} | options))


def levels(images: Images):
    """The grey of each image and the name of its class, in the order read."""
    x, labels, names, *_ = images.loaded
    values = x[:, 0, 0, 0].tolist()
    return values if labels is None else [(v, names[i]) for v, i in zip(values, labels.tolist(), strict=True)]


# ---------------------------------------------------------------- digits


def test_digits_are_the_bundled_images_scaled_exactly():
    real = load_digits()
    batch = everything(Digits(DigitsConfig()).train())
    assert batch.x1.shape == (1797, 1, 8, 8)
    assert batch.x1.dtype == torch.float32
    assert torch.equal(batch.x1[:, 0].double(), torch.from_numpy(real.images) / 8 - 1)
    assert batch.extra["labels"].tolist() == real.target.tolist()
    assert batch.condition is None


def test_the_fingerprint_of_the_digits_is_the_same_everywhere():
    digest = "885a0fc741a5ee279476b80a8a42a725c04faccc8656417b47d0b4f9942286e5"
    assert Digits(DigitsConfig()).fingerprint() == digest
    assert Digits(DigitsConfig(conditional=True, holdout=0.5)).fingerprint() == digest


def test_a_conditional_spec_has_one_class_more_than_there_are_for_null():
    spec = Digits(DigitsConfig(conditional=True)).spec()
    assert spec.state.shape == (1, 8, 8)
    assert (spec.condition.kind, spec.condition.classes, spec.null) == ("class", 10, 10)
    assert Digits(DigitsConfig()).spec().condition is None


# ---------------------------------------------------------------- what is in a folder

LAYOUTS = {
    "flat": ({"b.png": 2, "a.png": 1}, [1, 2]),
    "sub-folders": ({"cat/1.png": 1, "dog/1.png": 2, "cat/2.png": 3}, [(1, "cat"), (3, "cat"), (2, "dog")]),
    "deep": ({"cat/x/y/1.png": 1, "dog/1.png": 2}, [(1, "cat"), (2, "dog")]),
    "one folder around it": ({"pets/cat/1.png": 1, "pets/dog/1.png": 2}, [(1, "cat"), (2, "dog")]),
    "one folder with labels": ({"p/labels.csv": "file,label\na.png,z\n", "p/a.png": 1}, [(1, "z")]),
    "some not in a folder": ({"cat/1.png": 1, "2.png": 2}, [2, 1]),
    "labels before folders": ({"labels.csv": "file,label\nc/a.png,x\nd/b.png,x\n", "c/a.png": 1, "d/b.png": 2},
                              [(1, "x"), (2, "x")]),
    "numbers sort as numbers": ({"10/a.png": 1, "9/a.png": 2, "x/a.png": 3}, [(1, "10"), (2, "9"), (3, "x")]),
    "a byte order mark, spaces, columns": (
        {"labels.csv": "\ufeffid, label, file\r\n1, x y, ./a.png\r\n2, x y, B.PNG\r\n", "a.png": 1, "B.PNG": 2},
        [(2, "x y"), (1, "x y")],
    ),
    "other files, hidden ones": (
        {"a.png": 1, ".b.png": 2, ".git/c.png": 3, "__MACOSX/._a.png": b"", "notes.txt": "", "._a.png": b""}, [1]
    ),
    "upper case": ({"a.PNG": 1, "b.Png": 2}, [1, 2]),
}  # fmt: skip


@pytest.mark.parametrize(("files", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_folder_and_a_zip_of_it_read_alike(tmp_path, files, expected):
    plain = folder(lay(tmp_path / "plain", files))
    packed = folder(zipped(tmp_path / "packed.zip", files))
    assert levels(plain) == levels(packed) == expected
    assert plain.fingerprint() == packed.fingerprint()


def test_classes_are_in_natural_order(tmp_path):
    images = folder(lay(tmp_path, {"10/a.png": 1, "9/a.png": 2, "x/a.png": 3}), conditional=True)
    assert images.names == ["9", "10", "x"]
    assert everything(images.train()).condition.tolist() == [1, 0, 2]


def test_a_linked_folder_counts_once(tmp_path):
    lay(tmp_path / "elsewhere", {"1.png": 7})
    lay(tmp_path / "set", {"dog/1.png": 2})
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "dog" / "loop").symlink_to(tmp_path / "set")
    assert levels(folder(tmp_path / "set")) == [(7, "cat"), (2, "dog")]


def test_pictures_of_any_size_become_the_size_and_channels_asked_for(tmp_path):
    for i, size in enumerate([(3, 3), (8, 8), (300, 20), (20, 300)]):
        Image.new("RGB", size, (200, 100, 50)).save(tmp_path / f"{i}.png")
    images = folder(tmp_path, size=12, channels=3)
    assert images.spec().state.shape == (3, 12, 12)
    assert images.loaded.x.shape == (4, 3, 12, 12)
    assert torch.equal(
        images.loaded.x, torch.tensor([200, 100, 50], dtype=torch.uint8)[:, None, None].expand(4, 3, 12, 12)
    )


# ---------------------------------------------------------------- faults of single files


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


BOMB = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0)) + chunk(
    b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")  # fmt: skip

FAULTS = {
    "empty": ({"bad.png": b""}, "bad.png is no picture"),
    "text": ({"bad.jpg": "hello"}, "bad.jpg is no picture"),
    "another format": ({"bad.png": b"GIF89a" + bytes(50)}, "bad.png is no picture"),
    "truncated": ({"bad.png": grey(9)[:-30]}, "bad.png cannot be read as a picture"),
    "decompression bomb": ({"bad.png": BOMB}, "bad.png cannot be read as a picture: Image size"),
    "no row": ({"labels.csv": "file,label\ngood.png,a\n", "bad.png": 3}, "bad.png has no row in labels.csv"),
    "unknown row": ({"labels.csv": "file,label\ngood.png,a\nbad.png,b\n"}, "labels.csv, line 3: there is no picture"),
    "listed twice": ({"labels.csv": "file,label\ngood.png,a\ngood.png,b\n"},
                     "labels.csv, line 3: 'good.png' is listed a second time, as 'b' after 'a'"),
    "no label": ({"labels.csv": "file,label\ngood.png,a\nbad.png,\n"}, "labels.csv, line 3: a file and a label"),
    "short row": ({"labels.csv": "file,label\ngood.png,a\nbad.png\n"}, "labels.csv, line 3: a file and a label"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "message"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_fault_of_one_file_is_refused_in_one_line_or_skipped_and_named(tmp_path, caplog, kind, files, message):
    files = {"good.png": 5} | files
    path = lay(tmp_path / "set", files) if kind == "folder" else zipped(tmp_path / "set.zip", files)
    with pytest.raises(InputError) as refused:
        folder(path).train()
    told = str(refused.value)
    assert message in told
    assert str(path) in told
    assert "data.on_error=skip" in told
    assert "\n" not in told
    assert refused.value.exit_code == 2

    with caplog.at_level(logging.WARNING, "flowplat"):
        left = levels(folder(path, on_error="skip"))
    assert left in ([5], [(5, "a")])
    assert [message in record.getMessage() for record in caplog.records].count(True) == 1


def test_the_others_keep_their_labels_when_one_is_skipped(tmp_path):
    files = {"ant/1.png": 1, "ant/2.png": b"", "bee/1.png": 3, "cat/1.png": 4}
    assert levels(folder(lay(tmp_path, files), on_error="skip")) == [(1, "ant"), (3, "bee"), (4, "cat")]


def test_a_link_to_nothing_is_a_fault(tmp_path):
    lay(tmp_path, {"good.png": 5})
    (tmp_path / "bad.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"bad\.png is no file, or a link to nothing"):
        folder(tmp_path).train()


def test_a_damaged_member_of_a_zip_is_named(tmp_path):
    path = zipped(tmp_path / "set.zip", {"a.png": 1, "b.png": 2})
    content = bytearray(path.read_bytes())
    content[content.index(b"b.png") + 20] ^= 255
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"set\.zip/b\.png cannot be read"):
        folder(path).train()


def test_all_pictures_at_fault_is_an_error_even_when_skipping(tmp_path):
    with pytest.raises(InputError, match="none of its 2 pictures can be read"):
        folder(lay(tmp_path, {"a.png": b"", "b.png": b""}), on_error="skip").train()


WHOLE = {
    "an empty folder": ({}, r"holds no \.png or \.jpg file"),
    "other files only": ({"a.txt": "x", "b.gif": b"x"}, r"holds no \.png or \.jpg file"),
    "no header": ({"a.png": 1, "labels.csv": "a.png,cat\n"}, "should start with the line `file,label`"),
    "an empty table": ({"a.png": 1, "labels.csv": ""}, "should start with the line `file,label`"),
    "semicolons": ({"a.png": 1, "labels.csv": "file;label\na.png;cat\n"}, "should start with the line `file,label`"),
    "latin-1": ({"a.png": 1, "labels.csv": "file,label\na.png,\xe9t\xe9\n".encode("latin-1")}, "is not UTF-8 text"),
}


@pytest.mark.parametrize("on_error", ["refuse", "skip"])
@pytest.mark.parametrize(("files", "message"), WHOLE.values(), ids=WHOLE)
def test_a_fault_of_the_whole_is_refused(tmp_path, files, message, on_error):
    with pytest.raises(InputError, match=message) as refused:
        folder(lay(tmp_path, files), on_error=on_error).train()
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_path_that_is_not_there_or_is_no_zip(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        folder(tmp_path / "nowhere").train()
    lay(tmp_path, {"a.zip": "PK no"})
    with pytest.raises(InputError, match=r"a\.zip is neither a folder nor a zip"):
        folder(tmp_path / "a.zip").train()


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    "wrong", [{"channels": 2}, {"channels": 4}, {"size": 3}, {"on_error": "ignore"}, {"colour": 1}]
)
def test_a_config_refuses_what_cannot_be(tmp_path, wrong):
    with pytest.raises(ValidationError):
        FolderConfig(path=tmp_path, **wrong)


def test_a_path_is_the_same_from_every_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert FolderConfig(path="pictures").path == tmp_path / "pictures"
    assert NpzConfig(path="~/x.npz").model_dump(mode="json")["path"] == "/home/someone/x.npz"


def test_conditional_without_classes_says_where_they_come_from(tmp_path):
    images = folder(lay(tmp_path, {"a.png": 1, "b.png": b""}), conditional=True)
    for ask in (images.spec, images.train, lambda: images.condition(3, None)):
        with pytest.raises(UsageError, match=r"needs classes: a labels\.csv"):
            ask()


def test_the_spec_and_the_classes_are_known_without_decoding(tmp_path):
    images = folder(lay(tmp_path, {"cat/a.png": b"", "dog/b.png": b""}), conditional=True)
    assert images.spec().state.shape == (1, 8, 8)
    assert images.condition(3, "dog").tolist() == [1, 1, 1]
    with pytest.raises(InputError):
        images.train()


@pytest.mark.parametrize("kind", ["folder", "npz", "tiny", "unlabelled"])
def test_the_facts_stand_for_the_files(tmp_path, kind):
    pictures_ = lay(tmp_path, {f"{name}/{i}.png": 10 * i for name in ("cat", "dog") for i in range(2)})
    labelled = kind != "unlabelled"
    if kind == "npz":
        images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array(["cat", "dog", "cat", "dog"])
        np.savez(tmp_path / "all.npz", images=images, labels=labels)
        config = NpzConfig(path=tmp_path / "all.npz", conditional=True)
        known = Npz(config)
    else:
        config = FolderConfig(path=pictures_, size=8, channels=1, conditional=labelled)
        known = Folder(config).tiny() if kind == "tiny" else Folder(config)
    facts = json.loads(json.dumps(known.facts()))
    gone = config.model_copy(update={"path": tmp_path / "gone"})
    alone = (Npz if kind == "npz" else Folder)(gone, facts)
    assert alone.spec() == known.spec()
    assert alone.names == known.names == ["cat", "dog"]
    x = torch.linspace(-1, 1, 4 * alone.spec().state.shape[0] * 64).view(4, -1, 8, 8)
    condition = alone.condition(4, "dog,cat" if labelled else None)
    assert (condition is None) == (not labelled)
    for name, one in (("one", known), ("two", alone)):
        (tmp_path / name).mkdir()
        one.write(Batch(x, condition), tmp_path / name)
    written = [sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*")) for n in ("one", "two")]
    assert written[0] == written[1]
    for path in written[0]:
        if (tmp_path / "one" / path).is_file():
            assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    assert alone.show(Batch(x, condition)) == known.show(Batch(x, condition))
    with pytest.raises(InputError):
        alone.train()


@pytest.mark.parametrize(
    "facts",
    [[], {}, "x", {"shape": [1, 8], "names": []}, {"shape": [1, 0, 8], "names": []}, {"shape": [1, 8, 8], "names": 3},
     {"shape": [1, 8, 8], "names": [], "more": 1}],
)  # fmt: skip
def test_facts_that_cannot_be_are_refused(facts):
    with pytest.raises(ValidationError):
        Digits(DigitsConfig(), facts)


@pytest.mark.parametrize(("share", "train", "val"), [(0.0, 100, 100), (0.1, 90, 10), (0.004, 100, 100), (0.999, 1, 99)])
def test_what_is_held_out_is_not_trained_on(share, train, val):
    x = torch.arange(100, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    images = Fixed(data.ImagesConfig(holdout=share), Loaded(x, None, []))
    assert (len(images.train()), len(images.val())) == (train, val)
    one, other = (set(everything(part).x1[:, 0, 0, 0].tolist()) for part in (images.train(), images.val()))
    if images.holds_out:
        assert len(one | other) == 100
    else:
        assert one == other
    assert images.holds_out == (train + val == 100)


def test_flip_mirrors_about_half_of_the_training_images_and_no_others():
    x = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2).expand(400, 3, 2, 2)
    images = Fixed(data.ImagesConfig(flip=True, holdout=0.5), Loaded(x, None, [], white=16))
    plain = x[0] / 8 - 1
    drawn = images.train().batch(torch.arange(200), generator(0)).x1
    mirrored = (drawn == plain.flip(-1)).flatten(1).all(1)
    assert bool((mirrored | (drawn == plain).flatten(1).all(1)).all())
    assert 70 < int(mirrored.sum()) < 130
    assert torch.equal(drawn, images.train().batch(torch.arange(200), generator(0)).x1)
    assert bool((everything(images.val()).x1 == plain).all())


def test_pairs_are_mirrored_as_the_images_are_and_with_their_noise():
    x = torch.randn(400, 3, 2, 2, generator=generator(1))
    batch = Batch(x, x0=-x)
    turned = Fixed(data.ImagesConfig(flip=True), Loaded(torch.zeros(2, 3, 2, 2, dtype=torch.uint8), None, [])).augment(
        batch, generator(0)
    )
    mirrored = (turned.x1 == x.flip(-1)).flatten(1).all(1)
    assert bool((mirrored | (turned.x1 == x).flatten(1).all(1)).all())
    assert 150 < int(mirrored.sum()) < 250
    assert torch.equal(turned.x0, -turned.x1)
    assert (
        Fixed(data.ImagesConfig(), Loaded(torch.zeros(2, 3, 2, 2, dtype=torch.uint8), None, [])).augment(
            batch, generator(0)
        )
        is batch
    )


# ---------------------------------------------------------------- tiny, fingerprint, condition


def test_tiny_has_the_same_spec_and_128_images():
    for conditional in (False, True):
        whole = Digits(DigitsConfig(conditional=conditional))
        assert whole.tiny().spec() == whole.spec()
        assert len(whole.tiny().train()) == 128
    assert len(whole.tiny().loaded.labels.unique()) == 10
    again = Fixed(whole.config, whole.loaded).tiny()
    assert again.fingerprint() == whole.tiny().fingerprint() != whole.fingerprint()


def test_tiny_of_a_folder_decodes_no_more_than_it_holds(tmp_path, monkeypatch):
    files = {f"{name}/{i}.png": i for name in ("cat", "dog") for i in range(100)}
    images = folder(lay(tmp_path, files), conditional=True)
    decoded = []
    read = pictures.read
    monkeypatch.setattr(pictures, "read", lambda *given: decoded.append(given[1]) or read(*given))
    tiny = images.tiny()
    assert tiny.spec() == images.spec()
    assert len(tiny.train()) + len(tiny.val()) == len(decoded) == 128
    assert set(tiny.loaded.labels.tolist()) == {0, 1}
    assert levels(folder(tmp_path).tiny()) == levels(tiny)  # the same ones every time


def test_the_fingerprint_follows_pixels_labels_names_and_shape(tmp_path):
    files = {"cat/a.png": 1, "dog/b.png": 2}
    changes = [
        files,
        {"cat/a.png": 1, "dog/b.png": 3},
        {"cat/a.png": 1, "fox/b.png": 2},
        {"a.png": 1, "b.png": 2},
        {"labels.csv": "file,label\na.png,dog\nb.png,cat\n", "a.png": 1, "b.png": 2},
    ]
    found = [folder(lay(tmp_path / str(i), files)).fingerprint() for i, files in enumerate(changes)]
    found.append(folder(tmp_path / "0", channels=3).fingerprint())
    assert len(set(found)) == len(found)
    assert folder(lay(tmp_path / "again", files)).fingerprint() == found[0]


def test_conditions_are_balanced_or_as_named(tmp_path):
    files = {f"{name}/a.png": 1 for name in ("cat", "dog", "red, round")}
    images = folder(lay(tmp_path, files), conditional=True)
    assert images.condition(7, None).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert images.condition(3, "dog").tolist() == [1, 1, 1]
    assert images.condition(3, "dog, cat").tolist() == [1, 0, 1]
    assert images.condition(2, "red, round").tolist() == [2, 2]
    assert images.condition(2, None).dtype == torch.int64
    with pytest.raises(UsageError, match="no class is called 'fox'; the classes are cat, dog, red, round"):
        images.condition(2, "cat,fox")
    with pytest.raises(UsageError, match="no class is called ''"):
        images.condition(2, "")


def test_unconditional_data_give_no_conditions():
    digits = Digits(DigitsConfig())
    assert digits.condition(5, None) is None
    with pytest.raises(UsageError, match=r"data\.conditional=true"):
        digits.condition(5, "3")


# ---------------------------------------------------------------- npz


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 1), (5, 6, 7, 3)])
def test_an_npz_holds_uint8_images(tmp_path, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    x = everything(Npz(NpzConfig(path=tmp_path / "a.npz", holdout=0)).train()).x1
    expected = images.reshape(5, 6, 7, -1).transpose(0, 3, 1, 2) / 127.5 - 1
    assert torch.allclose(x.double(), torch.from_numpy(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [([7, 3, 10], ["3", "7", "10"], [1, 0, 2]), (["b", "a", "b"], ["a", "b"], [1, 0, 1])],
)
def test_an_npz_holds_labels_that_are_numbers_or_names(tmp_path, labels, names, numbers):
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 4, 4), np.uint8), labels=np.array(labels))
    found = Npz(NpzConfig(path=tmp_path / "a.npz", conditional=True))
    assert found.names == names
    assert found.loaded.labels.tolist() == numbers
    assert found.spec().null == len(names)


ZEROS = np.zeros((3, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": ZEROS, "y": ZEROS}, "has no array `images`; it holds x, y"),
        ({"images": ZEROS / 1.0}, r"`images` is float64; it should be uint8.*\(255 \* x\)\.round\(\)\.astype"),
        ({"images": ZEROS.astype(np.uint16)}, "`images` is uint16"),
        ({"images": ZEROS[0]}, r"`images` is \(4, 4\); it should be \(n, h, w\)"),
        ({"images": np.zeros((2, 3, 8, 8), np.uint8)}, r"transpose\(0, 2, 3, 1\)"),
        ({"images": ZEROS[:0]}, "which is empty"),
        ({"images": ZEROS, "labels": np.zeros(2, int)}, "it should be 3 integers or strings"),
        ({"images": ZEROS, "labels": np.zeros(3)}, "`labels` is float64"),
        ({"images": ZEROS, "labels": np.array([1, "a", None], object)}, "cannot be read as an .npz: Object arrays"),
    ],
)
def test_an_npz_that_is_not_as_it_should_be_is_named(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=message) as refused:
        Npz(NpzConfig(path=tmp_path / "a.npz")).train()
    assert str(tmp_path / "a.npz") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_npz_that_is_no_npz_is_named(tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", images=np.random.default_rng(0).integers(0, 256, (9, 32, 32), np.uint8))
    whole = bytearray((tmp_path / "whole.npz").read_bytes())
    (tmp_path / "cut.npz").write_bytes(whole[:-40])
    whole[3000] ^= 255
    (tmp_path / "flipped.npz").write_bytes(whole)
    np.save(tmp_path / "bare.npy", ZEROS)
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("hello")
    for name, message in {
        "gone.npz": "does not exist",
        "cut.npz": "cannot be read",
        "flipped.npz": "cannot be read",
        "bare.npy": "one bare array",
        "empty.npz": "cannot be read",
        "text.npz": "cannot be read",
        ".": "cannot be read",
    }.items():
        with pytest.raises(InputError, match=message):
            Npz(NpzConfig(path=tmp_path / name)).train()


# ---------------------------------------------------------------- written and read again


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("names", [["cat", "red, round"], [str(i) for i in range(12)], ["07", "7"]])
def test_samples_that_are_written_read_back_as_they_were(tmp_path, channels, names):
    x = torch.randint(0, 256, (30, channels, 8, 8), dtype=torch.uint8, generator=generator(1))
    labels = torch.arange(30) % len(names)
    Fixed(data.ImagesConfig(conditional=True), Loaded(x, labels, names)).write(
        Batch(pictures.scaled(x), labels), tmp_path
    )
    (tmp_path / "sheet.png").write_bytes(grey(0))  # where the platform puts it
    for again in (
        folder(tmp_path / "images", channels=channels, conditional=True),
        Npz(NpzConfig(path=tmp_path / "samples.npz", conditional=True)),
    ):
        assert torch.equal(again.loaded.x, x)
        assert again.names == names
        assert torch.equal(again.loaded.labels, labels)


def test_samples_from_elsewhere_are_read_as_pictures_are(tmp_path):
    """Without the .npz the PNG files count, brought to the data's size; classes that the data do not have, where these
    are to be told, are a fault."""
    x = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8, generator=generator(1))
    given = Fixed(data.ImagesConfig(conditional=True), Loaded(x, torch.tensor([0, 1, 1, 0]), ["cat", "dog"]))
    given.write(Batch(pictures.scaled(x), given.loaded.labels), tmp_path)
    for folder in (tmp_path, tmp_path / "images"):
        again = given.read_back(folder)
        assert torch.equal(again.x1, pictures.scaled(x))
        assert again.condition.tolist() == [0, 1, 1, 0]
    Image.new("RGB", (20, 30), "white").save(tmp_path / "images" / "00001.png")
    again = given.read_back(tmp_path / "images")
    assert again.x1.shape == (4, 1, 8, 8)
    assert bool((again.x1[1] == 1).all())
    digits = Digits(DigitsConfig())
    assert digits.read_back(tmp_path).condition is None
    with pytest.raises(InputError, match=r"class 'cat'; the data's are 0, 1, 2"):
        Digits(DigitsConfig(conditional=True)).read_back(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [({"images": np.zeros((2, 8, 8), np.float32)}, "is float32"), ({"x": np.zeros(3)}, "no array `images`"),
     ({"images": np.zeros((0, 8, 8), np.uint8)}, "empty"), ({"images": np.zeros((2, 9, 8), np.uint8)}, "resized"),
     ({"images": np.zeros((2, 8, 8), np.uint8), "labels": np.zeros(3, int)}, "should be 2 integers")],
)  # fmt: skip
def test_samples_that_are_no_images_of_the_data_are_named(tmp_path, arrays, told):
    np.savez(tmp_path / "samples.npz", **arrays)
    with pytest.raises(InputError, match=told):
        Digits(DigitsConfig()).read_back(tmp_path)


def test_unconditional_samples_are_written_without_labels(tmp_path):
    digits = Digits(DigitsConfig())
    digits.write(everything(digits.train(), 5), tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        *(f"0000{i}.png" for i in range(5)), "images", "samples.npz"
    ]  # fmt: skip
    with np.load(tmp_path / "samples.npz") as file:
        assert file.files == ["images"]
        assert file["images"].dtype == np.uint8


def test_a_sheet_has_a_column_for_each_class_that_comes_in_turn():
    digits = Digits(DigitsConfig(conditional=True))
    x = torch.full((40, 1, 8, 8), -1.0)

    def width(condition):
        size = Image.open(io.BytesIO(digits.show(Batch(x[: len(condition)], condition)))).size
        return (size[0] - 2) / 50

    assert width(digits.condition(40, None)) == 10
    assert width(digits.condition(40, "3,7")) == 8
    assert width(digits.condition(36, "3")) == 6
    assert width(digits.condition(40, None).sort().values) == 7


def test_images_held_on_a_device_give_the_same_batches():
    part = Digits(DigitsConfig(conditional=True, flip=True)).train()
    assert isinstance(part, Resident)
    assert part.nbytes == 1797 * 64
    rows = torch.arange(5, 30, 3)
    here, there = (source.batch(rows, generator(0)) for source in (part, part.to(torch.device("cpu"))))
    assert torch.equal(here.x1, there.x1)
    assert torch.equal(here.condition, there.condition)
