"""pip: what its refusals become. The texts are what pip wrote; how it is run is tested from outside."""

import pytest

from flowcore.errors import FlowError, IntegrityError, MachineError, PluginError
from flowplat.pip import pip, refusal

FROZEN = {"torch": "2.13.0+cpu", "numpy": "2.4.6", "flowplat": "0.1.0"}


def conflict(*lines: str) -> str:
    return (
        "INFO: looking\n\nThe conflict is caused by:\n" + "".join(f"    {line}\n" for line in lines) + "\nTo fix this\n"
    )


HASH = """
ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated the package versions
    flowplat-wind@ https://example.org/w.whl from https://example.org/w.whl#sha256=1 (from -r pins.txt (line 1)):
        Expected sha256 1111
             Got        2222

"""
BUILD = """
  error: subprocess-exited-with-error
  Preparing metadata (pyproject.toml) did not run successfully.
      Traceback (most recent call last):
        File "x.py", line 1, in <module>
      ModuleNotFoundError: No module named 'editables'
      [end of output]
error: metadata-generation-failed
"""


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        (HASH, IntegrityError, "flowplat-wind is not the file it should be: expected sha256 1111, got 2222; nothing "),
        (
            conflict("wind 1 depends on torch<2", "The user requested (constraint) torch==2.13.0+cpu"),
            PluginError,
            "wind 1 requires torch<2, and torch 2.13.0+cpu is installed, which install never changes; ",
        ),
        (
            conflict("flowplat 0.1.0 depends on numpy>=1.26", "gusts 3 depends on numpy<2 and >=1"),
            PluginError,
            "wind brings along gusts 3, which requires numpy<2,>=1, and numpy 2.4.6 is installed, ",
        ),
        (
            conflict("wind 1 depends on gusts<2", "rain 1 depends on gusts>=2"),
            PluginError,
            "wind cannot be installed: wind 1 depends on gusts<2 and rain 1 depends on gusts>=2; ",
        ),
        (
            "ERROR: Could not find a version that satisfies the requirement x==9 (from versions: 1.0, 2.0)\n"
            "ERROR: No matching distribution found for x==9\n",
            PluginError,
            "wind: pip finds no wheel of x==9 for this Python where it looks; there are 1.0, 2.0",
        ),
        (
            "error: externally-managed-environment\n\nThis environment is externally managed\n",
            MachineError,
            "wind: this Python belongs to the system, which lets nothing be installed; make an environment of your own",
        ),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/usr/lib'\n",
            MachineError,
            "wind: OSError: [Errno 13] Permission denied: '/usr/lib'; where this cannot be written, make an",
        ),
        ("no such option: --report\n", MachineError, "pip is too old"),
        (BUILD, PluginError, "pip refuses wind: ModuleNotFoundError: No module named 'editables'"),
        ("ERROR: w.whl is not a supported wheel on this platform.\n", PluginError, "pip refuses wind: w.whl is not a "),
        (
            "error: connection-failed\n\n\N{MULTIPLICATION SIGN} Failed to connect to example.org while fetching x\n",
            MachineError,
            "wind: example.org cannot be reached; ",
        ),
        (
            "error: odd-thing\n\n\N{MULTIPLICATION SIGN} An odd thing.\n",
            PluginError,
            "pip refuses wind: An odd thing",
        ),
        ("", PluginError, "pip refuses wind: it says nothing of why"),
    ],
)
def test_refusals(text: str, error: type[FlowError], told: str) -> None:
    found = refusal("wind", text, FROZEN)
    assert type(found) is error
    assert str(found).startswith(told)
    assert "\n" not in str(found)


def test_pip_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert "--dry-run" in pip("help", "help", "install")
    with pytest.raises(PluginError, match=r"wind: pip finds no wheel of flowplat-none"):
        pip("wind", "install", "--dry-run", "--no-index", "flowplat-none")
    with pytest.raises(MachineError, match="pip is too old"):
        pip("wind", "install", "--none")
