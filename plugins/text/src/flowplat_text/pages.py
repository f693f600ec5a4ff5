"""Texts as one picture."""

import io
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

WIDTH, LINES, SIZE = 100, 9, 13  # letters in a line, lines of a text, points
PAPER, INK, PALE = 255, 20, 190


def page(texts: Sequence[str]) -> bytes:
    """The beginnings of some texts, one below the other, as PNG bytes. Line breaks are shown as a sign."""
    font = ImageFont.load_default(SIZE)
    blocks = [_lines(text) for text in texts]
    high, margin = SIZE + 5, 12
    height = sum(len(block) * high + margin for block in blocks) + margin
    picture = Image.new("L", (WIDTH * SIZE * 6 // 10, height), PAPER)
    pen, y = ImageDraw.Draw(picture), margin
    for number, block in enumerate(blocks):
        if number:
            pen.line([(margin, y - margin // 2), (picture.width - margin, y - margin // 2)], PALE)
        for line in block:
            pen.text((margin, y), line, INK, font)
            y += high
        y += margin
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _lines(text: str) -> list[str]:
    """Some lines of a text, letters that a picture cannot show replaced."""
    shown = "".join(letter if letter.isprintable() else {"\n": " / ", "\t": " "}.get(letter, "?") for letter in text)
    lines = textwrap.wrap(shown, WIDTH) or [""]
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], lines[LINES - 1][: WIDTH - 4] + " ..."]
