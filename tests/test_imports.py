"""Which package imports which: plugin -> flowcore <- flowplat, and no circle inside the core."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [ROOT / "core" / "src", ROOT / "registry" / "src", *sorted((ROOT / "plugins").glob("*/src"))]


def files(package: str) -> list[Path]:
    return sorted(path for source in SOURCES for path in (source / package).rglob("*.py"))


PACKAGES = sorted(init.parent.name for source in SOURCES for init in source.glob("*/__init__.py"))
PLUGINS = [package for package in PACKAGES if package not in ("flowcore", "flowplat")]


def module(path: Path) -> str:
    (source,) = (source for source in SOURCES if path.is_relative_to(source))
    return ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, typing: bool = True) -> Iterator[str]:
    """Every module that a file imports, wherever in the file; not for type checkers only unless ``typing``."""

    def walk(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: imports are absolute"
                yield from (f"{child.module}.{alias.name}" for alias in child.names)
            elif not typing and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            else:
                yield from walk(child)

    yield from walk(ast.parse(path.read_text(encoding="utf-8"), str(path)))


def ours(name: str) -> str | None:
    """The package of ours that an imported name belongs to."""
    top = name.partition(".")[0]
    return top if top == "flowcore" or top.startswith("flowplat") else None


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    allowed = {package, "flowcore"}
    found = [(module(path), name) for path in files(package) for name in imports(path)]
    assert len(found) > 3
    assert [f"{here} imports {name}" for here, name in found if ours(name) not in (None, *allowed)] == []


def test_every_package_is_walked() -> None:
    assert {"flowcore", "flowplat", "flowplat_images"} <= set(PACKAGES)
    assert len(PLUGINS) == len([path for path in (ROOT / "plugins").iterdir() if (path / "pyproject.toml").is_file()])
    names = {plugin.name for plugin in (ROOT / "plugins").iterdir() if (plugin / "pyproject.toml").is_file()}
    assert {f"flowplat_{name.replace('-', '_')}" for name in names} == set(PLUGINS)


def test_the_core_knows_no_command_line_and_no_file_of_a_plugin() -> None:
    found = {name.partition(".")[0] for path in files("flowcore") for name in imports(path)}
    assert not found & {"click", "yaml", "jinja2", "matplotlib", "tqdm", "argparse"}


def test_the_core_has_no_circle() -> None:
    known = {module(path) for path in files("flowcore")}
    graph = {
        module(path): {
            target
            for name in imports(path, typing=False)
            for target in (name, name.rpartition(".")[0])  # `from flowcore.state import add` names flowcore.state
            if target in known and target != module(path)
        }
        for path in files("flowcore")
    }
    graph |= {name: needs - {"flowcore"} for name, needs in graph.items()}
    assert sum(map(len, graph.values())) > 20
    placed: list[str] = []
    while ready := sorted(name for name in graph if name not in placed and graph[name] <= set(placed)):
        placed += ready
    assert sorted(set(graph) - set(placed)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_takes_a_name_that_is_taken(package: str) -> None:
    assert package not in ("core", "registry", "plugins", "platform", "tests")
    assert package not in sys.stdlib_module_names


def test_nothing_shadows_the_standard_library() -> None:
    hidden = {".git", ".venv", ".venv-bench", "build", "dist", "runs"}
    tops = [path for path in ROOT.iterdir() if path.name not in hidden]
    named = [*tops, *(path for top in tops if top.is_dir() for path in top.rglob("*"))]
    assert [str(path) for path in named if path.name in ("platform", "platform.py")] == []
    for folder in ("core", "registry", "plugins", "tests", "docs"):
        assert not (ROOT / folder / "__init__.py").exists()
    done = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.system(), platform.__file__)"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(ROOT / "platform") not in done.stdout
