"""The short form of kills.py."""

import importlib.util
from pathlib import Path
from typing import Any


def test_three_kills_at_random_moments_change_no_bit(warm: Any, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("kills", Path(__file__).with_name("kills.py"))
    assert spec is not None
    assert spec.loader is not None
    kills = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kills)

    def start(*arguments: Any) -> Any:
        return warm.start(*arguments, cwd=tmp_path)

    told: list[str] = []
    settings = (*kills.SETTINGS, "train.steps=100", "train.checkpoint_every=5", "network.width=64")
    assert kills.torment(start, tmp_path, 3, seed=5, settings=settings, tell=told.append) == []
    assert told[-1].startswith("3 kills, ")
    assert told[-1].endswith(" runs: all the same to the last bit")
