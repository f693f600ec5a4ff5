import io
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from flowcore.errors import InputError
from flowcore.seeds import generator
from flowplat_images import pictures

RNG = np.random.default_rng(0)
GREYS = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
COLOURS = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(content, channels=1, size=8):
    return pictures.read(io.BytesIO(content), "set/a.png", channels, size)


def test_every_level_survives_the_way_to_minus_one_to_one_and_back():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    x = pictures.scaled(pictures.to_tensor(images))
    assert (x.min().item(), x.max().item()) == (-1, 1)
    assert np.array_equal(pictures.to_uint8(x), images)
    assert torch.equal(pictures.scaled(torch.arange(17, dtype=torch.uint8), 16), torch.arange(17) / 8 - 1)


def test_values_outside_are_clipped_and_channels_keep_their_place():
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, 0.5]).view(1, 3, 1, 2)
    assert pictures.to_uint8(x).tolist() == [[[[0, 128, 255], [0, 255, 191]]]]


# ---------------------------------------------------------------- modes


def palette():
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    image.putpalette(COLOURS.tobytes())
    return image


def on_white(alpha):
    """COLOURS at an opacity of ``alpha`` over white."""
    return COLOURS * (alpha / 255) + 255 * (1 - alpha / 255)


RGBA = Image.fromarray(np.dstack([COLOURS, np.full((8, 8, 1), 100, np.uint8)]))

MODES = {
    "L": (encoded(Image.fromarray(GREYS)), GREYS),
    "1": (encoded(Image.fromarray(GREYS > 127)), (GREYS > 127) * 255),
    "RGB": (encoded(Image.fromarray(COLOURS)), COLOURS),
    "P": (encoded(palette()), COLOURS),
    "P, one colour transparent": (
        encoded(palette(), transparency=3),
        np.where(np.arange(64).reshape(8, 8, 1) == 3, 255, COLOURS),
    ),
    "RGBA": (encoded(RGBA), on_white(100)),
    "LA": (encoded(Image.merge("LA", [Image.fromarray(GREYS), Image.new("L", (8, 8), 0)])), np.full((8, 8), 255)),
    "L, one grey transparent": (
        encoded(Image.fromarray(GREYS), transparency=int(GREYS[0, 0])),
        np.where(GREYS[0, 0] == GREYS, 255, GREYS),
    ),
    "I;16": (
        encoded(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040)),
        np.arange(64).reshape(8, 8) * 1040 / 257,
    ),
}


@pytest.mark.parametrize(("content", "expected"), MODES.values(), ids=MODES)
def test_every_mode_reads_as_its_colours(content, expected):
    colours = np.broadcast_to(expected.reshape(8, 8, -1), (8, 8, 3))
    assert np.abs(read(content, 3) - colours).max() <= 1
    weights = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma
    assert np.abs(read(content, 1) - colours @ weights).max() <= 1.5


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4"])
def test_sixteen_bits_are_scaled_and_not_clipped(dtype, monkeypatch):
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    image = {
        "<u2": Image.fromarray(values),
        ">u2": Image.frombytes("I;16B", (8, 8), values.astype(">u2").tobytes()),
        "<i4": Image.fromarray(values.astype("<i4")),  # how older Pillows open such a PNG
    }[dtype]
    monkeypatch.setattr(Image, "open", lambda *_, **__: image)
    assert np.abs(read(b"") - values / 257).max() <= 0.5


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_reads_as_its_colours(mode):
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    content = encoded(Image.fromarray(np.dstack([smooth, smooth, smooth])).convert(mode), "JPEG", quality=95)
    assert np.abs(read(content, 1, 64).astype(int) - smooth).max() <= 6


UPRIGHT = np.repeat(np.repeat(np.array([[0, 80], [160, 240]], np.uint8), 4, 0), 4, 1)
TURNED = {  # what is stored, so that a viewer that obeys the tag shows UPRIGHT
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("bits", [8, 16])
def test_pictures_are_turned_upright(orientation, bits):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(TURNED[orientation])
    image = Image.fromarray(stored if bits == 8 else stored.astype(np.uint16) * 257)
    assert np.array_equal(read(encoded(image, exif=exif)), UPRIGHT)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_centre_square_is_kept(axis):
    wide = np.concatenate([np.zeros((8, 6), np.uint8), GREYS, np.zeros((8, 6), np.uint8)], 1)
    assert np.array_equal(read(encoded(Image.fromarray(wide if axis else wide.T))), GREYS if axis else GREYS.T)


def test_a_large_jpeg_decoded_at_a_fraction_is_close_to_one_decoded_whole():
    smooth = np.asarray(Image.fromarray(COLOURS[:3, :4]).resize((500, 400), Image.Resampling.BILINEAR))
    content = encoded(Image.fromarray(smooth), "JPEG", quality=95)
    whole = encoded(Image.open(io.BytesIO(content)))  # a PNG of the same pixels
    assert np.abs(read(content, 3, 24).astype(int) - read(whole, 3, 24)).mean() < 1.5


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.fromarray(GREYS)),
        encoded(palette(), transparency=3),
        encoded(Image.fromarray(COLOURS), "JPEG"),
        encoded(Image.fromarray(COLOURS).convert("CMYK"), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01"),
    ],
    ids=["grey", "palette", "jpeg", "cmyk"],
)
def test_a_damaged_picture_is_read_or_refused_in_one_line_naming_it(content):
    damaged = [content[:n] for n in range(0, len(content), 1 + len(content) // 60)]
    for _ in range(150):
        bytes_ = bytearray(content)
        for place in RNG.integers(0, len(content), 3):
            bytes_[place] = RNG.integers(256)
        damaged.append(bytes(bytes_))
    refused = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in damaged:
            try:
                assert read(one, 3).shape == (8, 8, 3)
            except InputError as error:
                refused.append(str(error))
    assert len(refused) > 50
    lines = r"set/a\.png (is no picture: neither PNG nor JPEG|cannot be read as a picture: .+)"
    assert all(re.fullmatch(lines, message) for message in refused)


def test_a_truncated_picture_is_refused_whatever_its_size():
    content = encoded(Image.fromarray(RNG.integers(0, 256, (200, 200, 3), dtype=np.uint8)), "JPEG")
    with pytest.raises(InputError, match="truncated"):
        read(content[: len(content) * 9 // 10])


# ---------------------------------------------------------------- contact sheets


def opened(sheet):
    return np.asarray(Image.open(io.BytesIO(sheet)))


@pytest.mark.parametrize(("size", "shown"), [(8, 48), (28, 56), (48, 48), (64, 64), (128, 128), (256, 128), (300, 100)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_shown_large_enough_to_see_and_no_larger_than_needed(size, shown, channels):
    x = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, channels, size, size)
    page = opened(pictures.sheet(x))
    assert page.shape[:2] == (2 * (shown + 2) + 2, 3 * (shown + 2) + 2)
    assert page.ndim == (2 if channels == 1 else 3)
    for i, level in enumerate([0, 64, 128, 191, 255]):
        row, column = divmod(i, 3)
        cell = page[row * (shown + 2) + 2 :, column * (shown + 2) + 2 :][:shown, :shown]
        assert np.all(cell == level)
    assert np.all(page[:2] == 32)
    assert np.all(page[-shown:, -shown:] == 32)  # the place of a sixth


def test_enlarging_keeps_pixels_square_and_sharp():
    x = torch.rand(1, 3, 8, 8, generator=generator(0)) * 2 - 1
    assert np.array_equal(opened(pictures.sheet(x))[2:-2, 2:-2][::6, ::6], pictures.to_uint8(x)[0])


def test_only_so_many_are_shown():
    assert opened(pictures.sheet(torch.zeros(30, 1, 8, 8), limit=9)).shape == (152, 152)
    assert opened(pictures.sheet(torch.zeros(1, 1, 8, 8))).shape == (52, 52)


def test_titles_head_their_columns():
    x = torch.full((6, 1, 8, 8), -1.0)
    plain, titled = opened(pictures.sheet(x)), opened(pictures.sheet(x, ["", "a very long name", "b"]))
    assert titled.shape == (plain.shape[0] + pictures.HEAD, plain.shape[1])
    assert np.array_equal(titled[pictures.HEAD :], plain)
    ink = [np.any(titled[: pictures.HEAD, 2 + i * 50 : 50 + i * 50] > 128) for i in range(3)]
    assert ink == [False, True, True]
    assert np.all(titled[: pictures.HEAD, [0, 1, 50, 51, 100, 101, 150, 151]] == 32)
