"""progress: a bar for a person, nothing for a pipe."""

import sys

import pytest

from flowplat.progress import progress


def test_silent_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", 3) as bar:
        for _ in range(3):
            bar.update()
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress("train", 3, "step") as bar:
        bar.update(3)
        bar.refresh()
    out, err = capsys.readouterr()
    assert out == ""
    assert "train" in err
    assert "3/3" in err
