"""The CIFAR archives, written as Python 2 wrote them, and in what later Pythons and numpys make of them."""

import io
import pickle
import tarfile

import numpy as np
import pytest
import torch

from flowcore.data import everything
from flowcore.errors import InputError, IntegrityError
from flowplat_images.cifar import Cifar10, Cifar10Config, Cifar100, Cifar100Config

NAMES = [f"class {i}" for i in range(10)]
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 3072), dtype=np.uint8)
LABELS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]


def python2(data, labels, key=b"labels"):
    """Byte for byte the shape that Python 2.7 and numpy 1 gave it: protocol 2, byte strings for text."""

    def text(content):
        return b"U" + bytes([len(content)]) + content

    def number(n):
        return b"J" + n.to_bytes(4, "little")

    raw = data.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R(K\x01"
    array += number(data.shape[0]) + number(data.shape[1]) + b"\x86"
    array += b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    array += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array += b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(key) + listed + b"u."


def titles(names, key=b"label_names"):
    listed = b"".join(b"U" + bytes([len(name)]) + name.encode() for name in names)
    return b"\x80\x02}U" + bytes([len(key)]) + key + b"](" + listed + b"es."


def files10(pack=python2):
    found = {"batches.meta": titles(NAMES)}
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        found[name] = pack(PIXELS[2 * i : 2 * i + 2], LABELS[2 * i : 2 * i + 2])
    return found


def archive(path, files, folder="cifar-10-batches-py", mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, content in {"readme.html": b"<html>", **files}.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def lay(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def ten(path, **options):
    return Cifar10(Cifar10Config(path=path, **options))


def pixels(source):
    return ((everything(source).x1 + 1) * 127.5).round().to(torch.uint8).flatten(1).numpy()


@pytest.mark.parametrize("kind", ["tar.gz", "tar", "folder", "folder around it"])
def test_the_archive_and_its_folder_read_alike(tmp_path, kind):
    files = files10()
    if kind.startswith("tar"):
        path = archive(tmp_path / f"c.{kind}", files, mode="w:gz" if kind == "tar.gz" else "w")
    else:
        lay(tmp_path / "cifar-10-batches-py", files)
        path = tmp_path / "cifar-10-batches-py" if kind == "folder" else tmp_path
    images = ten(path, flip=False, conditional=True)
    assert np.array_equal(pixels(images.train()), PIXELS[:10])
    assert np.array_equal(pixels(images.val()), PIXELS[10:])
    assert everything(images.train()).condition.tolist() == LABELS[:10]
    assert everything(images.val()).condition.tolist() == LABELS[10:]
    assert images.names == NAMES
    assert images.condition(1, "class 7").tolist() == [7]


def test_a_row_is_red_green_and_blue_each_by_rows(tmp_path):
    red = np.zeros((2, 3072), np.uint8)
    red[:, 32:64] = 255  # the second row of the first colour
    x = ten(lay(tmp_path, files10() | {"data_batch_1": python2(red, [0, 0])}), flip=False).loaded.x[0]
    assert x.shape == (3, 32, 32)
    assert x[0, 1].min() == 255
    assert int(x.long().sum()) == 32 * 255


def test_half_of_the_training_images_are_mirrored_unless_told_otherwise(tmp_path):
    path = lay(tmp_path, files10())
    plain = everything(ten(path, flip=False).train()).x1
    drawn = everything(ten(path).train()).x1
    kept, mirrored = ((drawn == x).flatten(1).all(1) for x in (plain, plain.flip(-1)))
    assert bool((kept ^ mirrored).all())
    assert 0 < int(mirrored.sum()) < 10
    assert not ten(path).val().flip


def test_a_share_held_out_leaves_the_test_images_alone(tmp_path):
    images = ten(lay(tmp_path, files10() | {"test_batch": b"never read"}), holdout=0.2)
    assert (len(images.train()), len(images.val())) == (8, 2)


@pytest.mark.parametrize("level", ["fine", "coarse"])
def test_cifar_100_has_fine_and_coarse_labels(tmp_path, level):
    def both(data, fine):
        found = {b"data": data, b"fine_labels": fine, b"coarse_labels": [label // 5 for label in fine]}
        return pickle.dumps(found, protocol=2)

    meta = {
        b"fine_label_names": [b"f%d" % i for i in range(100)],
        b"coarse_label_names": [b"c%d" % i for i in range(20)],
    }
    files = {
        "meta": pickle.dumps(meta, 2),
        "train": both(PIXELS[:9], [*range(91, 100)]),
        "test": both(PIXELS[9:], [0, 5, 9]),
    }
    images = Cifar100(Cifar100Config(path=archive(tmp_path / "c.tar.gz", files, "cifar-100-python"), labels=level))
    found = [images.names[i] for i in everything(images.val()).extra["labels"]]
    assert found == (["f0", "f5", "f9"] if level == "fine" else ["c0", "c1", "c1"])
    assert len(images.names) == (100 if level == "fine" else 20)
    assert (len(images.train()), len(images.val())) == (9, 3)


def modern(protocol):
    return lambda data, labels: pickle.dumps({"data": np.asfortranarray(data), "labels": labels}, protocol)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_python_3_writes_is_read_too(tmp_path, protocol):
    images = ten(lay(tmp_path, files10(modern(protocol))), flip=False)
    assert np.array_equal(pixels(images.train()), PIXELS[:10])
    assert images.loaded.labels.tolist() == LABELS


def test_tiny_reads_one_file_and_the_names(tmp_path):
    path = archive(tmp_path / "c.tar.gz", files10() | {"data_batch_4": b"never read", "test_batch": b"never read"})
    whole = ten(path, conditional=True)
    assert whole.tiny().spec() == whole.spec()
    assert len(whole.tiny().train()) == 2
    assert whole.facts() == {"shape": [3, 32, 32], "names": NAMES}


class Call:
    """A pickle that has something called when it is read."""

    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def trap(path):
    return Call(open, str(path), "w")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_pickle_that_asks_for_anything_else_is_refused_and_not_run(tmp_path, protocol, place):
    sprung = tmp_path / "sprung"
    bad = pickle.dumps({"data": PIXELS[:2], "labels": [0, trap(sprung)], "label_names": NAMES}, protocol)
    with pytest.raises(
        IntegrityError, match=rf"{place} is not safe to read: it asks for (_?io|__builtin__)\.open"
    ) as refused:
        ten(lay(tmp_path / "set", files10() | {place: bad})).train()
    assert refused.value.exit_code == 5
    assert "\n" not in str(refused.value)
    assert not sprung.exists()


@pytest.mark.parametrize(
    "name", ["os\nsystem", "builtins\neval", "numpy\nload", "numpy.core.multiarray\nscalar", "numpy\nndarray.tofile"]
)
def test_no_other_global_is_even_looked_up(tmp_path, name):
    bad = b"\x80\x02c" + name.encode() + b"\n."
    with pytest.raises(IntegrityError, match=name.replace("\n", ".")):
        ten(lay(tmp_path, files10() | {"data_batch_2": bad})).train()


@pytest.mark.parametrize("kind", ["f8", "O", "i4", "V10"])
def test_an_array_of_anything_but_bytes_is_refused(tmp_path, kind):
    bad = pickle.dumps({"data": np.zeros((2, 3072), kind), "labels": [0, 0]}, 2)
    with pytest.raises(InputError, match=r"data_batch_2 holds an array of '.*'; pixels are unsigned bytes"):
        ten(lay(tmp_path, files10() | {"data_batch_2": bad})).train()


WHOLE = python2(PIXELS[:2], [0, 1])
FAULTS = {
    "cut": (WHOLE[:-100], "data_batch_1 cannot be read as a pickle: "),
    "empty": (b"", "data_batch_1 cannot be read as a pickle: "),
    "text": (b"hello", "data_batch_1 cannot be read as a pickle: "),
    "a persistent id": (b"\x80\x02X\x01\x00\x00\x00aQ.", "data_batch_1 cannot be read as a pickle: "),
    "an extension": (b"\x80\x02\x82\x01.", "data_batch_1 cannot be read as a pickle: "),
    "a list": (pickle.dumps([1, 2]), "data_batch_1 holds a list; the published files hold a dict"),
    "no array": (pickle.dumps({"labels": [1]}, 2), r"data_batch_1 has no array 'data' of \(n, 3072\) bytes"),
    "another shape": (python2(PIXELS[:2, :768], [0, 1]), r"data_batch_1 has no array 'data' of \(n, 3072\) bytes"),
    "no labels": (python2(PIXELS[:2], [0, 1], b"fine_labels"), "data_batch_1 has no list 'labels' of 2 labels"),
    "labels too few": (python2(PIXELS[:2], [0]), "data_batch_1 has no list 'labels' of 2 labels"),
    "labels too large": (python2(PIXELS[:2], [0, 10]), "data_batch_1 has labels other than 0 to 9"),
    "a wrong shape": (WHOLE.replace(b"J\x00\x0c\0\0", b"J\xff\xff\xff\x7f"), "cannot be read as a pickle"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), FAULTS.values(), ids=FAULTS)
def test_a_file_that_is_not_as_it_should_be_is_named_in_one_line(tmp_path, content, message):
    path = archive(tmp_path / "c.tar.gz", files10() | {"data_batch_1": content})
    with pytest.raises(InputError, match=message) as refused:
        ten(path).train()
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


def test_an_archive_that_is_none_or_lacks_a_file(tmp_path):
    whole = archive(tmp_path / "c.tar.gz", files10()).read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        (tmp_path / "bad.tar.gz").write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.tar\.gz is neither a folder nor a \.tar\.gz that can be read"):
            ten(tmp_path / "bad.tar.gz").train()
    with pytest.raises(InputError, match="gone does not exist"):
        ten(tmp_path / "gone").train()
    for missing in ("data_batch_3", "test_batch", "batches.meta"):
        files = {name: content for name, content in files10().items() if name != missing}
        with pytest.raises(InputError, match=f"holds no file {missing}; data.path names cifar-10-batches-py"):
            ten(archive(tmp_path / "c.tar.gz", files)).train()
    with pytest.raises(InputError, match=r"holds no file batches\.meta"):
        ten(archive(tmp_path / "c.tar.gz", {"train": b"", "meta": b""})).spec()
