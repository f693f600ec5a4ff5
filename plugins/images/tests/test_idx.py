"""IDX files as MNIST and its like are published: written here byte by byte, read as a user would name them."""

import gzip
import struct

import numpy as np
import pytest
import torch

from flowcore.data import everything
from flowcore.errors import InputError
from flowplat_images.idx import Idx, IdxConfig

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 5, 4), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5, 9, 2], np.uint8)
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def packed(array):
    """An array as Yann LeCun's page says the format is."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def lay(folder, names=NAMES, zipped=False, images=IMAGES, labels=LABELS):
    """Four images to train on and three to test, or all seven where only two files are named."""
    folder.mkdir(exist_ok=True)
    arrays = [images[:4], labels[:4], images[4:], labels[4:]] if len(names) == 4 else [images, labels]
    for name, array in zip(names, arrays, strict=True):
        content = packed(array)
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    return folder


def idx(path, **options):
    return Idx(IdxConfig(path=path, **options))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("stem", ["", "emnist-letters-"])
def test_the_four_files_of_a_folder_are_trained_on_and_tested_on(tmp_path, zipped, mark, stem):
    names = [stem + name.replace("-idx", f"{mark}idx") for name in NAMES]
    images = idx(lay(tmp_path / "set", names, zipped))
    train, val = everything(images.train()), everything(images.val())
    assert torch.allclose(train.x1[:, 0], torch.from_numpy(IMAGES[:4] / 127.5 - 1).float(), atol=1e-6)
    assert torch.allclose(val.x1[:, 0], torch.from_numpy(IMAGES[4:] / 127.5 - 1).float(), atol=1e-6)
    assert images.names == ["1", "2", "3", "4", "5", "9"]
    assert [images.names[i] for i in train.extra["labels"]] == ["3", "1", "4", "1"]
    assert [images.names[i] for i in val.extra["labels"]] == ["5", "9", "2"]
    assert images.holds_out


def test_a_share_held_out_leaves_the_test_images_alone(tmp_path):
    images = idx(lay(tmp_path / "set"), holdout=0.25)
    (tmp_path / "set" / NAMES[2]).write_bytes(b"never read")
    assert (len(images.train()), len(images.val())) == (3, 1)
    drawn = torch.cat([everything(images.train()).x1, everything(images.val()).x1])[:, 0]
    assert sorted(drawn.sum((1, 2)).tolist()) == pytest.approx(sorted((IMAGES[:4] / 127.5 - 1).sum((1, 2))), abs=1e-4)


def test_without_test_images_the_training_images_are_validated_on(tmp_path):
    images = idx(lay(tmp_path / "set", NAMES[:2]))
    assert (len(images.train()), len(images.val()), images.holds_out) == (7, 7, False)


def test_two_files_are_named_and_labels_may_be_left_out(tmp_path):
    lay(tmp_path, ["a.idx", "b.idx"])
    both = idx(tmp_path / "a.idx", labels=tmp_path / "b.idx", conditional=True, holdout=0.2)
    assert both.spec().condition.classes == 6
    alone = idx(tmp_path / "a.idx")
    assert alone.names == []
    assert everything(alone.train()).extra == {}
    assert len(alone.train()) == 7


def test_classes_can_be_given_names(tmp_path):
    folder = lay(tmp_path / "set")
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    images = idx(folder, names=names, conditional=True)
    assert images.condition(2, "nine,zero").tolist() == [9, 0]
    assert images.loaded.labels.tolist() == LABELS.tolist()
    with pytest.raises(InputError, match=r"has a label 9; data.names names 3 classes"):
        idx(folder, names=names[:3]).train()


def test_the_fingerprint_tells_what_is_tested_on(tmp_path):
    parted, whole = idx(lay(tmp_path / "one")), idx(lay(tmp_path / "two", NAMES[:2]))
    assert torch.equal(parted.loaded.x, whole.loaded.x)
    assert parted.fingerprint() != whole.fingerprint()
    assert parted.fingerprint() == idx(lay(tmp_path / "three", zipped=True)).fingerprint()


CUT, LONG = packed(IMAGES)[:-1], packed(IMAGES) + b"x"
FAULTS = {
    "empty": (b"", "is no IDX file: it begins with nothing"),
    "text": (b"hello, world", "is no IDX file: it begins with 68656c6c"),
    "labels for images": (packed(LABELS), "holds no images: it begins with 00000801, .* 00000803"),
    "floats": (b"\0\0\x0d\x03" + bytes(12), "holds no images: it begins with 00000d03"),
    "cut in the header": (packed(IMAGES)[:10], "is cut short within its header; fetch it again"),
    "cut": (CUT, "is cut short: 139 bytes follow its header, which says 140; fetch it again"),
    "longer": (LONG, "is longer than the 140 bytes that its header says"),
    "a huge header": (b"\0\0\x08\x03" + b"\xff" * 12, "cannot be read|is cut short: 0 bytes"),
    "no images": (packed(IMAGES[:0]), "holds no images"),
    "cut while packed": (gzip.compress(packed(IMAGES))[:-20], "cannot be read: .*end-of-stream"),
    "damaged while packed": (gzip.compress(packed(IMAGES))[:40] + b"\xff" * 200, "cannot be read: "),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), FAULTS.values(), ids=FAULTS)
def test_a_file_that_is_not_as_it_should_be_is_named_in_one_line(tmp_path, content, message):
    lay(tmp_path)
    (tmp_path / NAMES[0]).write_bytes(content)
    with pytest.raises(InputError, match=message) as refused:
        idx(tmp_path).train()
    assert str(tmp_path / NAMES[0]) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


def test_labels_and_images_of_different_sets_are_refused(tmp_path):
    lay(tmp_path)
    (tmp_path / NAMES[1]).write_bytes(packed(LABELS[:3]))
    with pytest.raises(InputError, match=r"idx1-ubyte holds 3 labels and .*idx3-ubyte 4 images"):
        idx(tmp_path).train()
    lay(tmp_path)
    (tmp_path / NAMES[2]).write_bytes(packed(IMAGES[4:, :, :3]))
    with pytest.raises(InputError, match=r"holds images of \(5, 3\) and .* of \(5, 4\); they do not belong"):
        idx(tmp_path).train()


def test_a_folder_that_is_not_as_it_should_be(tmp_path):
    with pytest.raises(InputError, match=r"gone does not exist; data\.path names a folder"):
        idx(tmp_path / "gone").train()
    with pytest.raises(InputError, match=r"holds no train-images-idx3-ubyte, packed as .gz or not"):
        idx(tmp_path).train()
    lay(tmp_path)
    with pytest.raises(InputError, match=r"data\.labels goes with one file of images"):
        idx(tmp_path, labels=tmp_path / NAMES[1]).train()
    lay(tmp_path, [f"kmnist-{name}" for name in NAMES])
    with pytest.raises(InputError, match=r"holds several data sets: , kmnist-; name the files of one"):
        idx(tmp_path).train()
    for name in NAMES[1:]:
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match=r"holds train-images-idx3-ubyte without train-labels-idx1-ubyte; data.path="):
        idx(tmp_path).train()
