"""source: the line that installs a distribution again, from what pip has noted."""

import json
import platform as machine
import re
from collections.abc import Callable
from importlib.metadata import PathDistribution, version
from pathlib import Path
from typing import Any

import pytest

import flowcore
from flowplat import source

DIGEST = "a" * 64
WHEEL = "https://example.org/flowplat_wind-1.0-py3-none-any.whl"


@pytest.mark.parametrize(
    ("noted", "line"),
    [
        (None, "flowplat-wind==1.0"),
        ({"url": WHEEL, "archive_info": {"hashes": {"sha256": DIGEST}}}, f"flowplat-wind @ {WHEEL}#sha256={DIGEST}"),
        ({"url": WHEEL, "archive_info": {"hash": f"sha256={DIGEST}"}}, f"flowplat-wind @ {WHEEL}#sha256={DIGEST}"),
        ({"url": WHEEL, "archive_info": {}}, f"flowplat-wind @ {WHEEL}"),
        ({"url": "file:///a%20b/wind", "dir_info": {}}, "flowplat-wind @ file:///a%20b/wind"),
        ({"url": "file:///a%20b/wind", "dir_info": {"editable": True}}, "-e /a b/wind"),
        (
            {"url": "https://example.org/wind", "vcs_info": {"vcs": "git", "commit_id": "0123"}},
            "flowplat-wind @ git+https://example.org/wind@0123",
        ),
        ("no json", "flowplat-wind==1.0"),
        ([], "flowplat-wind==1.0"),
    ],
)  # fmt: skip
def test_the_line_of_a_distribution(noted: Any, line: str, install: Callable[..., Path]) -> None:
    package = install("wind", "")
    (info,) = package.parent.glob("*.dist-info")
    if noted is not None:
        (info / "direct_url.json").write_text(noted if isinstance(noted, str) else json.dumps(noted))
    assert source.line(PathDistribution(info)) == line


def test_freeze(platform: Callable[..., tuple[int, str, str]], install: Callable[..., Path]) -> None:
    install("wind", "")
    install("sea", "", distribution="Acme_Sea")
    rain = install("rain", "")
    (info,) = rain.parent.glob("*.dist-info")
    (info / "direct_url.json").write_text('{"url": "file:///rain", "dir_info": {"editable": true}}')
    (info / "entry_points.txt").write_text("[flowplat.plugins]\nrain = a\nsnow = b\n")
    code, out, err = platform("freeze")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    python, torch, numpy = machine.python_version(), version("torch"), version("numpy")
    assert lines[1] == f"# made with Python {python}, torch {torch}, numpy {numpy}"
    assert lines[2] == f"flowplat=={flowcore.__version__}"
    ours = [line for line in lines[3:] if re.search("Sea|rain|wind", line)]  # more may be installed here
    assert ours == [
        "Acme_Sea==1.0",
        "# flowplat-rain 1.0 is a folder, and whatever it holds by then",
        "-e /rain",
        "flowplat-wind==1.0",
    ]
    rows = {row["distribution"]: row for row in json.loads(platform("freeze", "--json")[1])}
    assert rows["flowplat-rain"] == {
        "distribution": "flowplat-rain",
        "version": "1.0",
        "plugins": ["rain", "snow"],
        "requirement": "-e /rain",
        "exact": False,
    }
    assert rows["flowplat-wind"]["exact"] is True
