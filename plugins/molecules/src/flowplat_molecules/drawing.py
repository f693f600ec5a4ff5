"""Pictures: a grid of structures, and what was asked against what came."""

import io
import logging
import math
from collections.abc import Sequence
from functools import cache
from textwrap import wrap
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rdkit import Chem, rdBase
from rdkit.Chem import rdDepictor

from flowplat_molecules import chemistry

log = logging.getLogger("flowplat")

SHOWN, COLUMNS, WIDTH, HEIGHT = 24, 6, 230, 210


def grid(molecules: Sequence[Chem.Mol], legends: Sequence[str]) -> bytes:
    """The first two dozen structures as PNG: valid ones without their hydrogens, others bare as they are, and those
    that no drawing can show as their legend alone."""
    shown = list(zip(molecules, legends, strict=True))[:SHOWN]
    columns = min(COLUMNS, max(1, len(shown)))
    picture = Image.new("RGB", (columns * WIDTH, max(1, math.ceil(len(shown) / columns)) * HEIGHT), "white")
    for place, (molecule, legend) in enumerate(shown):
        picture.paste(_cell(molecule, legend), (place % columns * WIDTH, place // columns * HEIGHT))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _cell(molecule: Chem.Mol, legend: str) -> Image.Image:
    """One structure; nothing but the legend where RDKit cannot draw: it looks up an element of number Z less charge,
    and finds no place for atoms that are all bonded to each other."""
    if (drawer := _drawer()) is None:
        return _written(molecule, legend)
    with rdBase.BlockLogs():
        try:
            drawn = _drawn(drawer, _flat(molecule), legend)
        except (RuntimeError, ValueError):
            drawn = _drawn(drawer, Chem.Mol(), legend)
    return Image.open(io.BytesIO(drawn)).convert("RGB")


@cache
def _drawer() -> Any:
    """RDKit's drawing, which needs libraries of X that a bare machine has not; None there, said once."""
    try:
        from rdkit.Chem.Draw import rdMolDraw2D
    except ImportError as error:
        log.warning(
            "RDKit cannot draw here (%s), so pictures have SMILES for structures: apt-get install libxrender1 libxext6,"
            " or what your system calls them",
            error,
        )
        return None
    return rdMolDraw2D


def _written(molecule: Chem.Mol, legend: str) -> Image.Image:
    """The SMILES in the place of the structure."""
    cell = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(cell)
    whole = chemistry.sanitised(molecule)
    text = "" if whole is None else "\n".join(wrap(chemistry.smiles_of(whole), 22))
    draw.multiline_text((WIDTH / 2, HEIGHT / 2), text, "#111111", ImageFont.load_default(16), "mm", align="center")
    draw.text((WIDTH / 2, HEIGHT - 20), legend, "#111111", ImageFont.load_default(14), "mm")
    return cell


def _drawn(drawer: Any, flat: Chem.Mol, legend: str) -> bytes:
    canvas = drawer.MolDraw2DCairo(WIDTH, HEIGHT)
    wanted = {"prepareMolsBeforeDrawing": False, "legendFontSize": 15, "fixedFontSize": 15, "fixedBondLength": 28}
    for name, value in (wanted | {"padding": 0.12}).items():
        setattr(canvas.drawOptions(), name, value)
    canvas.DrawMolecule(flat, legend=legend)
    canvas.FinishDrawing()
    return bytes(canvas.GetDrawingText())


def _flat(molecule: Chem.Mol) -> Chem.Mol:
    whole = chemistry.sanitised(molecule)
    if whole is not None:
        flat = Chem.RemoveHs(whole)
        Chem.Kekulize(flat, clearAromaticFlags=True)
    else:
        flat = Chem.Mol(molecule)
        flat.UpdatePropertyCache(strict=False)
        Chem.FastFindRings(flat)
    flat.RemoveAllConformers()
    rdDepictor.Compute2DCoords(flat)
    return flat


def parity(asked: Sequence[float], came: Sequence[float], name: str, unit: str, source: str) -> bytes:
    """Each molecule at (asked, came) beside the diagonal, as PNG; those without a value are left out."""
    points = [(a, b) for a, b in zip(asked, came, strict=True) if math.isfinite(a) and math.isfinite(b)]
    size, left, top, side = (660, 620), 90, 50, 500
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(18), ImageFont.load_default(14)
    values = [value for pair in points for value in pair] or [0.0, 1.0]
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.5
    low, high = low - room, high + room

    def place(a: float, b: float) -> tuple[float, float]:
        return left + side * (a - low) / (high - low), top + side * (1 - (b - low) / (high - low))

    for tick in ticks(low, high):
        x, y = place(tick, tick)
        draw.line([(x, top), (x, top + side)], "#e6e6e6")
        draw.line([(left, y), (left + side, y)], "#e6e6e6")
        draw.text((x, top + side + 8), f"{tick:g}", "#333333", small, "ma")
        draw.text((left - 8, y), f"{tick:g}", "#333333", small, "rm")
    draw.line([place(low, low), place(high, high)], "#888888", 2)
    draw.rectangle([left, top, left + side, top + side], outline="#333333")
    for a, b in points:
        x, y = place(a, b)
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill="#1f6fb4", outline="white")
    error = sum(abs(a - b) for a, b in points) / max(1, len(points))
    text = f"{name}: asked against {source}, {len(points)} molecules, mean error {error:.3g} {unit}"
    draw.text((size[0] / 2, 22), text, "#111111", font, "mm")
    draw.text((left + side / 2, top + side + 40), f"asked ({unit})", "#111111", font, "mm")
    upright = Image.new("RGB", (300, 28), "white")
    ImageDraw.Draw(upright).text((150, 14), f"{source} ({unit})", "#111111", font, "mm")
    turned = upright.rotate(90, expand=True)
    picture.paste(turned, (6, top + side // 2 - turned.height // 2))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def ticks(low: float, high: float) -> list[float]:
    """Some five round numbers between ``low`` and ``high``."""
    rough = (high - low) / 5
    base = 10.0 ** math.floor(math.log10(rough))
    step = next(base * factor for factor in (1, 2, 5, 10) if base * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]
