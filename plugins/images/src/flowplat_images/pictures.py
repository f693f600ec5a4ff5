"""Between tensors in [-1, 1] and pictures: reading, writing, contact sheets."""

import csv
import io
import math
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor

from flowcore.errors import InputError

MODES = {1: "L", 3: "RGB"}
SMALLEST, LARGEST, GAP, HEAD = 48, 128, 2, 16  # of a contact sheet, in pixels
PAPER, INK = "#202020", "#e0e0e0"


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 images (n, h, w) or (n, h, w, c) as a uint8 tensor (n, c, h, w)."""
    if images.ndim == 3:
        images = images[..., None]
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def scaled(x: Tensor, white: int = 255) -> Tensor:
    """uint8 as float32 in [-1, 1]: x / (white / 2) - 1."""
    return x.float().div_(white / 2).sub_(1)


def to_uint8(x: Tensor) -> np.ndarray:
    """(n, c, h, w) in [-1, 1] as uint8 (n, h, w) or (n, h, w, 3), values outside clipped; undoes ``scaled``."""
    levels = ((x.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    images = levels.permute(0, 2, 3, 1).numpy()
    return images[..., 0] if images.shape[-1] == 1 else images


def read(file: IO[bytes], name: str, channels: int, height: int, width: int | None = None) -> np.ndarray:
    """One PNG or JPEG as uint8 (height, width) or (height, width, 3), square where no width is given: upright, on white
    where it is transparent, cropped around its centre to that shape, resized.

    Raises ``InputError`` naming ``name`` when it cannot be decoded.
    """
    size = (height if width is None else width, height)
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            image.draft(None, (2 * size[0], 2 * size[1]))  # a much larger JPEG is decoded at a fraction of its size
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion clips instead of scaling
                upright = Image.fromarray(np.rint(np.asarray(upright) / 257).astype(np.uint8))
            if "A" in upright.getbands() or "transparency" in upright.info:
                ground = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(ground, upright.convert("RGBA"))
            return np.asarray(ImageOps.fit(upright.convert(MODES[channels]), size, Image.Resampling.LANCZOS))
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is no picture: neither PNG nor JPEG") from error
    except Exception as error:  # damaged files raise OSError, ValueError, SyntaxError, struct.error, TypeError ...
        raise InputError(
            f"{name} cannot be read as a picture: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error


def sheet(x: Tensor, titles: list[str] | None = None, limit: int = 100) -> bytes:
    """The first ``limit`` images side by side as PNG bytes, each shown at 48 to 128 pixels by whole factors.

    ``titles`` head the columns, in turn; the number of columns is a multiple of theirs.
    """
    images = to_uint8(x[:limit])
    titles = titles or []
    turn = max(1, len(titles))
    columns = turn * max(1, round(math.ceil(math.sqrt(len(images))) / turn))
    longest = max(images.shape[1:3])
    up, down = math.ceil(SMALLEST / longest), math.ceil(longest / LARGEST)
    cells = [Image.fromarray(image.repeat(up, axis=0).repeat(up, axis=1)).reduce(down) for image in images]
    width, height = cells[0].width + GAP, cells[0].height + GAP
    head = HEAD if titles else 0
    rows = math.ceil(len(cells) / columns)
    page = Image.new(cells[0].mode, (columns * width + GAP, rows * height + GAP + head), PAPER)
    for i, cell in enumerate(cells):
        page.paste(cell, (GAP + i % columns * width, GAP + head + i // columns * height))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default()
    for column in range(columns if titles else 0):
        text = titles[column % turn]
        while pen.textlength(text, font) > width - GAP and len(text) > 1:
            text = text[:-1]
        pen.text((GAP + column * width + width // 2, 3), text, INK, font, anchor="ma")
    buffer = io.BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write(x: Tensor, folder: Path, labels: Tensor | None, names: list[str], captions: list[str] | None = None) -> None:
    """``images/`` with a PNG file for each image, labels.csv when there are labels and a .txt beside each image when
    there are captions: what ``data=folder`` reads. Beside it ``samples.npz``: what ``data=npz`` reads."""
    images = to_uint8(x)
    files = [f"{i:05d}.png" for i in range(len(images))]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, image in zip(files, images, strict=True):
        Image.fromarray(image).save(folder / "images" / name)
    more: dict[str, np.ndarray] = {}
    if captions is not None:
        more["captions"] = np.array(captions, dtype=str)
        for name, caption in zip(files, captions, strict=True):
            (folder / "images" / name).with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
    if labels is None:
        np.savez_compressed(folder / "samples.npz", images=images, **more)
        return
    named = [names[number] for number in labels.tolist()]
    with (folder / "images" / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "label"), *zip(files, named, strict=True)])
    numbers = all(name.isdecimal() and name == str(int(name)) for name in names)
    np.savez_compressed(
        folder / "samples.npz", images=images, labels=np.array(named, dtype=int if numbers else str), **more
    )
