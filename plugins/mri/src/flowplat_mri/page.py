"""The quality page: one self-contained HTML file, the volumes that need a look first."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from flowplat_mri.quality import Look

NAMES = {
    "ncc": (
        "NCC with the source",
        "correlation of the voxels in the mask; 1 is the same up to brightness and contrast",
    ),
    "edge_ncc": ("NCC of edges", "correlation of gradient lengths: whether boundaries are where they were"),
    "worst_patch": ("worst patch", "the lowest NCC of any cube of 16 mm within the mask"),
    "w1_before": (
        "W1 before",
        "Wasserstein-1 distance of the source's histogram to the target's; 1 is the whole range",
    ),
    "w1_after": ("W1 after", "the same of the result"),
    "clipped": ("out of range", "share of voxels that are darker or brighter than any of the target's"),
    "mean_change": ("mean change", "mean |harmonized - source|; 1 is the whole range"),
    "likeness": ("likeness", "correlation with the target's mean, coarse; below 0 the contrast is another one"),
    "latent_norm": ("latent norm", "|z|^2 / d under the prior; about 1 for what it has learned"),
    "weight": ("weight", "share of the learned prior in the result, the rest being histogram matching"),
    "lesion_ncc": ("NCC in lesions", "as NCC with the source, within the lesion mask"),
    "outside_ncc": ("NCC outside lesions", "as NCC with the source, outside of the lesion mask"),
    "lesion_change": ("change in lesions", "mean |harmonized - source| within the lesion mask"),
    "outside_change": ("change outside", "mean |harmonized - source| outside of the lesion mask"),
    "psnr": ("PSNR", "against the truth, in the mask, dB; 1 is the whole range"),
    "psnr_unchanged": ("PSNR unchanged", "of the source"),
    "psnr_matched": ("PSNR matched", "of histogram matching"),
}
STYLE = """
:root { color-scheme: light dark; --ink: #1d242c; --paper: #fbfaf7; --soft: #6b7480; --line: #d9d6ce; --warn: #b4451f; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e6e1; --paper: #171c23; --soft: #9aa4b1; --line: #313944; --warn: #f0875f; } }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.2rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2.6rem 0 .4rem; }
p { max-width: 60rem; } .soft { color: var(--soft); } .warn { color: var(--warn); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .86rem; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, td.text { text-align: left; } td.text { white-space: normal; min-width: 16rem; }
th abbr { text-decoration: none; border-bottom: 1px dotted var(--soft); cursor: help; }
img { width: 100%; border-radius: 6px; display: block; margin-top: .6rem; } a { color: inherit; }
"""


@dataclass(frozen=True)
class Shown:
    """One volume on the page: its name, its ``Look``, its picture (PNG) if it has one, and what else is told of it."""

    name: str
    look: Look
    picture: bytes | None
    told: Mapping[str, str] = field(default_factory=dict)


def page(title: str, shown: Sequence[Shown], intro: str = "", failed: Mapping[str, str] | None = None) -> str:
    """The HTML, with a row and a section for each volume, worst first, and with what could not be done, and why."""
    order = sorted(shown, key=lambda one: one.look.worst, reverse=True)
    flagged = sum(bool(one.look.flags) for one in order)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=soft>{escape(intro)}</p>" if intro else "",
        f"<p>{_count(len(order), 'volume')}, {flagged} to look at twice{f', {len(failed)} failed' if failed else ''}. "
        "The ones that need it most come first.</p>",
    ]
    if failed:
        rows = "".join(f"<tr><td>{escape(name)}<td class=text>{escape(why)}" for name, why in failed.items())
        parts.append(f"<div class=wide><table><tr><th>failed<th>why{rows}</table></div>")
    if order:
        parts.append(_table(order))
        parts += [_section(number, one) for number, one in enumerate(order)]
    parts.append(
        "<h2>How to read it</h2><p class=soft>Left is the subject's left. Source and result are each shown from the 0.5"
        " to the 99.5 percentile of the source and of the target. A model that has learned from healthy brains may"
        " weaken what it has not seen: compare lesions with the source, and protect them by a mask. For research, not"
        " for diagnosis.</p>"
    )
    body = "\n".join(part for part in parts if part)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _table(order: Sequence[Shown]) -> str:
    keys = [key for key in NAMES if any(key in one.look.figures for one in order)]
    head = "".join(f'<th><abbr title="{escape(NAMES[key][1])}">{escape(NAMES[key][0])}</abbr>' for key in keys)
    rows = []
    for number, one in enumerate(order):
        cells = "".join(f"<td>{_number(one.look.figures.get(key))}" for key in keys)
        why = escape("; ".join(one.look.flags))
        rows.append(f'<tr><td><a href="#v{number}">{escape(one.name)}</a>{cells}<td class="text warn">{why}')
    return f"<div class=wide><table><tr><th>volume{head}<th>look twice because{''.join(rows)}</table></div>"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _section(number: int, one: Shown) -> str:
    told = "; ".join(f"{key} {value}" for key, value in one.told.items())
    flags = "".join(f"<p class=warn>{escape(flag)}</p>" for flag in one.look.flags)
    head = f'<h2 id="v{number}">{escape(one.name)}</h2>{flags}<p class=soft>{escape(told)}</p>'
    if one.picture is None:
        return head
    image = base64.b64encode(one.picture).decode()
    alt = f"three planes of {one.name}: source, harmonized, difference, edges, histograms"
    return f'{head}<img alt="{escape(alt)}" src="data:image/png;base64,{image}">'
