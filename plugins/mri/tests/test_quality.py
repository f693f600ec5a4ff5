import json
import re

import numpy as np
import pytest

from flowplat_mri import quality, simulate, target
from flowplat_mri.page import Shown, page
from flowplat_mri.picture import picture
from flowplat_mri.quality import Look
from flowplat_mri.scaling import robust


@pytest.fixture(scope="module")
def scans():
    """``scans(scanner, number)``: a simulated volume of 6 mm on the common scale, and its mask."""

    def made(scanner, number):
        tissues = simulate.subject(number, 6.0)
        x = simulate.scan(tissues, scanner, number)
        return np.where(tissues.mask, robust(x, tissues.mask).apply(x), 0).astype(np.float32), tissues.mask

    return made


@pytest.fixture(scope="module")
def known(scans):
    """A target of four subjects, as it is read back from its facts."""
    volumes, masks = zip(*(scans("target", number) for number in range(4)), strict=True)
    found = target.of_volumes(volumes, masks, [robust(v, m) for v, m in zip(volumes, masks, strict=True)], (6, 6, 6))
    again = target.of_facts(json.loads(json.dumps(found.facts(), allow_nan=False)))
    np.testing.assert_array_equal(again.quantiles, found.quantiles)  # an exported model gives the same bytes
    np.testing.assert_array_equal(again.view, found.view)
    return again


def test_an_inverted_contrast_is_known_without_registration(scans, known):
    for scanner in ("target", "S1", "S2", "S3", "S4", "S5", "gamma1.5"):
        x, mask = scans(scanner, 9)
        assert known.likeness(x, mask) > 0.2, scanner
        elsewhere = [np.roll(one, (3, -2, 1), (0, 1, 2)) for one in (np.pad(x, 4), np.pad(mask, 4))]
        assert known.likeness(*elsewhere) == pytest.approx(known.likeness(x, mask), abs=1e-5)
    assert known.likeness(*scans("T2w", 9)) < -0.2


def test_the_targets_own_histogram_is_no_distance_away(known):
    ramp = np.interp(np.linspace(0, 100, 100_001), target.LEVELS, known.quantiles)
    assert quality.wasserstein(ramp, known) < 1e-4
    assert quality.wasserstein(ramp + 0.3, known) == pytest.approx(0.3, abs=1e-4)


def test_correlation_sees_neither_brightness_nor_contrast(scans, known):
    x, mask = scans("S1", 5)
    look = quality.look(x, np.where(mask, 0.5 * x + 0.2, 0), mask, known)
    assert look.figures["ncc"] == pytest.approx(1)
    assert look.figures["worst_patch"] == pytest.approx(1)
    assert look.figures["mean_change"] == pytest.approx(np.abs(0.2 - 0.5 * x[mask]).mean(), rel=1e-4)
    assert quality.ncc(np.arange(5.0), -np.arange(5.0)) == pytest.approx(-1)
    assert quality.ncc(np.ones(5), np.ones(5)) == 1
    assert quality.ncc(np.ones(5), np.arange(5.0)) == 0


def test_what_needs_a_look_is_flagged(scans, known):
    x, mask = scans("target", 9)
    assert quality.look(x, x, mask, known, latent_norm=1.0).flags == []
    gone = x.copy()
    box = np.s_[9:12, 18:21, 9:12]  # turned over in one place
    gone[box] = 1 - gone[box]
    assert mask[box].all()
    (flag, *_) = quality.look(x, gone, mask, known).flags
    assert flag.startswith("a patch correlates -1.000 ")
    flags = quality.look(x, np.where(mask, 3 - x, 0), mask, known, latent_norm=2.0).flags
    for words in ("correlation with the source -1.000", "latent norm 2.00", "out of the target's range", "histogram"):
        assert any(words in flag for flag in flags), words
    t2, there = scans("T2w", 9)
    assert "contrast looks inverted" in quality.look(t2, t2, there, known).flags[0]


def test_the_page_is_one_file_with_the_worst_first(scans, known):
    x, mask = scans("S3", 9)
    png = picture(x, x, mask, known, std=0.1 * mask)
    assert png.startswith(b"\x89PNG")
    good = Look({"ncc": 0.99, "worst_patch": 0.9}, [])
    bad = Look({"ncc": 0.5, "worst_patch": 0.1}, ["correlation with <the source>"])
    fair = Look({"ncc": 0.9, "worst_patch": 0.8}, [])
    shown = [Shown(f"sub-{i}", look, png if i < 2 else None) for i, look in enumerate((good, fair, bad))]
    html = page("A & B", shown, failed={"broken.nii": "cannot be <read>"})
    assert re.findall(r'<tr><td><a href="#v\d">(.*?)</a>', html) == ["sub-2", "sub-1", "sub-0"]
    assert re.findall(r'<h2 id="v\d">(.*?)</h2>', html) == ["sub-2", "sub-1", "sub-0"]
    assert "3 volumes, 1 to look at twice, 1 failed" in html
    assert "cannot be &lt;read&gt;" in html
    assert "correlation with &lt;the source&gt;" in html
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)
    assert len(html) < 1_000_000 * 2
