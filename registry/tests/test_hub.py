"""hub: names of repositories, what may be published where, and what the client's errors become."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from flowcore.errors import FlowError, InputError, MachineError, UsageError
from flowplat import hub
from flowplat.hub import Repository


def test_names() -> None:
    assert hub.parse("models/digits") is None
    assert hub.parse("hf:/x") is None
    assert hub.parse("hf://ada/digits") == Repository("ada/digits")
    found = hub.parse("hf://ada/digits.v2@refs/pr/1")
    assert found == Repository("ada/digits.v2", "refs/pr/1")
    assert (str(found), found.name if found else "") == ("hf://ada/digits.v2@refs/pr/1", "digits.v2")
    for wrong in (
        "",
        "digits",
        "ada/",
        "/digits",
        "../x",
        "a/..",
        "ada/digits/more",
        "ada/di gits",
        "ada/digits@",
        "a\n/b",
    ):
        with pytest.raises(UsageError, match="hf://owner/name"):
            hub.parse(f"hf://{wrong}")


@pytest.mark.parametrize(
    ("name", "there", "private", "told"),
    [
        ("a/b", None, False, None),
        ("a/b", None, True, None),
        ("a/b", {"private": False, "files": [".gitattributes", "README.md"]}, False, None),
        ("a/b", {"private": False, "files": ["manifest.json", "model.safetensors"]}, False, None),
        ("a/b", {"private": True, "files": []}, True, None),
        ("a/b", {"private": True, "files": []}, False, None),
        ("a/b", {"private": False, "files": []}, True, "is there and public"),
        ("a/b", {"private": False, "files": ["README.md", "pytorch_model.bin"]}, False, "such as pytorch_model.bin"),
        ("a/b@main", None, False, "names a revision"),
    ],
)
def test_what_may_be_published(name: str, there: Any, private: bool, told: str | None) -> None:
    repository = hub.parse(f"hf://{name}")
    assert repository is not None
    if told is None:
        hub.refuse(repository, there, private)
    else:
        with pytest.raises(UsageError, match=told):
            hub.refuse(repository, there, private)


def test_without_the_client_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MachineError, match=r"hf://a/b needs huggingface_hub; `pip install 'flowplat\[hub\]'`"):
        hub.fetch(Repository("a/b"), tmp_path)


def errors() -> list[tuple[str, type[FlowError], str]]:
    return [
        ("RepositoryNotFoundError", InputError, "hf auth login"),
        ("RevisionNotFoundError", InputError, "is not there"),
        ("HfHubHTTPError", MachineError, "the hub refuses hf://a/b"),
        ("HFValidationError", UsageError, "no name"),
        ("LocalTokenNotFoundError", MachineError, "hf auth login"),
        ("OfflineModeIsEnabled", MachineError, "cannot be reached"),
        ("TimeoutError", MachineError, "cannot be reached"),
    ]


@pytest.mark.parametrize(("name", "error", "told"), errors())
def test_what_the_client_raises_is_an_error_of_ours(
    name: str, error: type[FlowError], told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = pytest.importorskip("huggingface_hub")
    kind = getattr(importlib.import_module("huggingface_hub.errors"), name, TimeoutError)
    raised = kind.__new__(kind)
    raised.args = ("many\nlines",)

    def model_info(*arguments: Any, **keywords: Any) -> None:
        raise raised

    monkeypatch.setattr(client.HfApi, "model_info", model_info)
    with pytest.raises(error, match=told) as caught:
        hub.fetch(Repository("a/b"), tmp_path)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
