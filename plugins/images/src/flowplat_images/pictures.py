"""Between tensors in [-1, 1] and pictures: reading, writing, contact sheets."""

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from flowcore.errors import InputError

MODES = {1: "L", 3: "RGB"}


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 images (n, h, w) or (n, h, w, c) as float32 (n, c, h, w) in [-1, 1]: x / 127.5 - 1."""
    if images.ndim == 3:
        images = images[..., None]
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float().div_(127.5).sub_(1)


def to_uint8(x: Tensor) -> np.ndarray:
    """(n, c, h, w) in [-1, 1] as uint8 (n, h, w) or (n, h, w, 3), values outside clipped."""
    scaled = ((x.detach().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    images = scaled.permute(0, 2, 3, 1).numpy()
    return images[..., 0] if images.shape[-1] == 1 else images


def read(file: Any, name: str, channels: int, size: int) -> np.ndarray:
    """One picture as uint8 (size, size) or (size, size, 3): turned upright, cropped to its centre square, resized.

    Raises ``InputError`` naming ``name`` when it cannot be decoded.
    """
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode == "I;16":  # 16-bit greyscale: PIL's own conversion clips instead of scaling
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            if "A" in upright.getbands() or "transparency" in upright.info:
                ground = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(ground, upright.convert("RGBA"))
            return np.asarray(ImageOps.fit(upright.convert(MODES[channels]), (size, size), Image.Resampling.LANCZOS))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise InputError(f"{name} cannot be read as a picture: {reason}; repair it or take it out") from error


def sheet(x: Tensor, columns: int | None = None, limit: int = 100) -> bytes:
    """The first ``limit`` images side by side, enlarged to at least 48 pixels by whole factors, as PNG bytes."""
    images = to_uint8(x[:limit])
    columns = columns or math.ceil(math.sqrt(len(images)))
    height, width = images.shape[1:3]
    factor = max(1, math.ceil(48 / max(height, width)))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width, gap = height * factor, width * factor, 2
    rows = math.ceil(len(images) / columns)
    page = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, *images.shape[3:]), 32, np.uint8)
    for i, image in enumerate(images):
        y, x0 = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        page[y : y + height, x0 : x0 + width] = image
    buffer = io.BytesIO()
    Image.fromarray(page).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write(x: Tensor, folder: Path, labels: Tensor | None, names: list[str]) -> None:
    """PNG files, ``samples.npz``, and ``labels.csv`` when there are labels: a folder that ``data=folder`` reads."""
    images = to_uint8(x)
    files = [f"{i:05d}.png" for i in range(len(images))]
    for name, image in zip(files, images, strict=True):
        Image.fromarray(image).save(folder / name)
    arrays = {"images": images}
    if labels is not None:
        arrays["labels"] = labels.cpu().numpy()
        with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["file", "label"])
            rows.writerows([name, names[int(label)]] for name, label in zip(files, labels, strict=True))
    np.savez_compressed(folder / "samples.npz", allow_pickle=False, **arrays)
