"""wheel: what a file says of itself."""

import zipfile
from pathlib import Path

import pytest
import wheels

from flowcore.errors import IntegrityError
from flowplat import wheel


def test_a_wheel_says_what_it_is(tmp_path: Path) -> None:
    made = wheels.wheel(tmp_path, "wind", {"plugin.py": "raise SystemExit"}, requires=["flowplat>=0.1", "numpy"])
    said = wheel.read(made)
    assert (str(said), said.licence, said.plugins) == ("flowplat-wind 1.0", "MIT", ("wind",))
    assert said.requires == ("flowplat>=0.1", "numpy")


def written(path: Path, metadata: str, points: str | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x-1.dist-info/METADATA", metadata)
        if points is not None:
            archive.writestr("x-1.dist-info/entry_points.txt", points)
    return path


@pytest.mark.parametrize(
    ("lines", "licence"),
    [
        ("License-Expression: MIT\nLicense: other\n", "MIT"),
        ("License: BSD\n  and all of its text\n", "BSD"),
        (f"License: {'x' * 200}\n", "x" * 80),
        ("License: \nClassifier: License :: OSI Approved :: MIT License\n", "MIT License"),
        ("Classifier: License :: A\nClassifier: Topic :: B\nClassifier: License :: OSI :: C\n", "A, C"),
        ("", "not stated"),
    ],
)
def test_the_licence(lines: str, licence: str, tmp_path: Path) -> None:
    assert wheel.read(written(tmp_path / "x.whl", f"Name: x\nVersion: 1\n{lines}")).licence == licence


def test_the_plugins(tmp_path: Path) -> None:
    metadata = "Name: x\nVersion: 1\n"
    for points, plugins in (
        (None, ()),
        ("[console_scripts]\nrun = x:main\n", ()),
        ("[flowplat.plugins]\nB:a = x.a\nb = x.b:c [extra]\n", ("B:a", "b")),
        ("[flowplat.plugins]\na = x\n[flowplat.plugins]\nb = y\n", ("a", "b")),
    ):
        assert wheel.read(written(tmp_path / "x.whl", metadata, points)).plugins == plugins


def test_what_is_no_wheel(tmp_path: Path) -> None:
    path = tmp_path / "x.whl"
    broken = written(tmp_path / "y.whl", "Name: x\nVersion: 1\n" * 100).read_bytes().replace(b"Name", b"Nome")
    for content in (b"", b"text", broken):
        path.write_bytes(content)
        with pytest.raises(IntegrityError, match=r"x\.whl is no wheel, or a damaged one"):
            wheel.read(path)
    for metadata, points in (("Version: 1\n", None), ("Name: x\nVersion: 1\n", "no section")):
        with pytest.raises(IntegrityError, match=r"x\.whl is no wheel, or a damaged one") as caught:
            wheel.read(written(path, metadata, points))
        assert "\n" not in str(caught.value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.py", "")
    with pytest.raises(IntegrityError):
        wheel.read(path)
