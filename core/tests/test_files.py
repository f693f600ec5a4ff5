"""Endings of outputs, and what tells files apart."""

import json
import os
from pathlib import Path

import pytest

from flowcore import files
from flowcore.errors import UsageError


@pytest.mark.parametrize("name", ["out.csv", "OUT.CSV", "out.jsonl", "folder"])
def test_a_known_ending_or_none_is_taken(name: str) -> None:
    files.refuse_ending(Path(name), ".csv", ".jsonl")
    files.refuse_ending(None, ".csv")


def test_another_ending_is_refused_and_the_known_are_named() -> None:
    with pytest.raises(UsageError, match=r"^out.pdf: its ending is none of .csv, .jsonl; name one of these, or a fol"):
        files.refuse_ending(Path("runs/out.pdf"), ".csv", ".jsonl")


def test_a_stamp_is_the_same_until_the_file_is_another(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = files.stamp([path])
    assert json.loads(json.dumps(before)) == files.stamp([str(path)]) == before
    path.write_text("longer")
    assert files.stamp([path]) != before
    path.write_text("one")
    os.utime(path, ns=(1, 1))
    assert files.stamp([path]) != before
