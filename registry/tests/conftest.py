"""Plugins made for one test: real distributions on sys.path, with metadata and an entry point."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

import flowplat
from flowplat.cli.main import main

PRESETS = {
    "ring.yaml": """
        data: ring
        network: {name: dense, width: 24}
        train: {steps: 12, batch_size: 8, log_every: 4, checkpoint_every: 5}
        sample: {count: 8, steps: 2}
        eval: {count: 16, steps: [1, 2], metrics: [radius], paths: 8}
        """,
    "straight.yaml": """
        data: ring
        network: {name: dense, width: 24}
        teacher: {preset: ring, start: averaged, pairs: {count: 40, steps: 3, batch_size: 8}}
        train: {steps: 6, batch_size: 8}
        sample: {count: 8, steps: 1}
        eval: {count: 16, steps: [1], paths: 8}
        """,
    "halves.yaml": """
        data: {name: ring, conditional: true}
        network: dense
        train: {steps: 12, drop_condition: 0.1}
        sample: {guidance: [{name: classifier_free, scale: 1.5}]}
        """,
}

Install = Callable[..., Path]


def put(
    site: Path, plugin: str, code: str, files: dict[str, str] | None = None, distribution: str | None = None
) -> Path:
    """Write what ``pip install`` of flowplat-<plugin> 1.0 would: the package flowplat_<plugin>, whose module ``plugin``
    holds ``code`` and is the entry point, with any further ``files``. Returns the package's folder."""
    distribution = distribution or f"flowplat-{plugin}"
    stem = distribution.replace("-", "_")
    package, info = site / distribution / stem, site / distribution / f"{stem}-1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    for name, text in {"__init__.py": "", "plugin.py": code, **(files or {})}.items():
        (package / name).write_text(dedent(text), encoding="utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\nSummary: a test\n")
    (info / "entry_points.txt").write_text(f"[flowplat.plugins]\n{plugin} = {stem}.plugin\n")
    return package


@contextmanager
def path_to(site: Path) -> Iterator[Install]:
    """``install(plugin, code, ...)`` puts a plugin below ``site`` and on sys.path, until the end."""
    with pytest.MonkeyPatch.context() as patch:

        def install(*arguments: Any, **keywords: Any) -> Path:
            package = put(site, *arguments, **keywords)
            patch.syspath_prepend(package.parent)
            return package

        yield install
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(site)):
            del sys.modules[name]


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Install]:
    """``install("wind", code)`` installs a plugin for one test; see ``put``."""
    with path_to(tmp_path / "site") as install:
        yield install


RING = {"code": Path(__file__).with_name("ring.py").read_text(encoding="utf-8"), "files": PRESETS}


@pytest.fixture
def ring(install: Install) -> Path:
    """The plugin of ring.py, installed, with its two presets."""
    return install("ring", **RING)


NORMAL = {
    "code": Path(__file__).with_name("normal.py").read_text(encoding="utf-8"),
    "files": {
        "normal.yaml": """
            data: ring/ring
            network: normal
            objective: likelihood
            train: {steps: 12, batch_size: 64, warmup: 0, log_every: 4, checkpoint_every: 5}
            sample: {sampler: drawn, count: 8, steps: 2}
            eval: {count: 16, steps: [1, 2], metrics: [ring/radius]}
            """
    },
}


@pytest.fixture
def normal(ring: Path, install: Install) -> Path:
    """The plugin of normal.py, installed beside ring."""
    return install("normal", **NORMAL)


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with path_to(folder / "site") as install:
        install("ring", **RING)
        return flowplat.run("ring", "engine.threads=1", out=folder / "run").folder


@pytest.fixture
def trained(_trained: Path, ring: Path, tmp_path: Path) -> Path:
    """A copy of a finished run of ring's preset."""
    return Path(shutil.copytree(_trained, tmp_path / "run"))


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``make("20260101T000000Z-aaaaaa")`` makes the folder of a run, as far as runs.py reads it, below ``runs``."""
    monkeypatch.chdir(tmp_path)

    def make(
        name: str, plugin: str = "ring", preset: str = "small", status: str = "done", day: int = 1,
        config: str = "train:\n  steps: 40\n  lr: 1e-3\n", **record: Any,
    ) -> Path:  # fmt: skip
        folder = Path("runs", plugin, preset, name)
        (folder / "eval").mkdir(parents=True)
        (folder / "config.yaml").write_text(f"plugin: {plugin}\npreset: {preset}\n{config}", encoding="utf-8")
        started = f"2026-01-{day:02d}T00:00:00+00:00"
        (folder / "provenance.json").write_text(json.dumps({"status": status, "started": started, **record}))
        (folder / "metrics.jsonl").write_text('{"step": 20, "loss": 2.0}\n{"step": 40, "loss": 1.0}\n')
        figure = {"value": 0.25, "floor": 0.125, "baselines": {"noise": 3.0}}
        figures = {"by_steps": [{"steps": n, "figures": {"radius": figure, "away": figure}} for n in (1, 4)]}
        (folder / "eval" / "metrics.json").write_text(json.dumps(figures))
        for step in (20, 40):
            (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
            (folder / "checkpoints" / f"step-{step:08d}" / "model.safetensors").write_bytes(bytes(100))
        return folder

    return make


@pytest.fixture
def platform(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``platform("runs", "list")``: exit code, stdout, stderr."""

    def platform(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(ended.value.code or 0), out, err

    return platform


@pytest.fixture
def in_use() -> Callable[[Path], AbstractContextManager[None]]:
    """``with in_use(folder)``: another process holds the run's lock while this lasts."""
    return _in_use


@contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    code = (
        "import sys\nfrom filelock import FileLock\n"
        "with FileLock(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
        process.communicate()


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes what the user has switched off."""
    monkeypatch.setenv("FLOWPLAT_CONFIG", str(tmp_path / "settings"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The same arithmetic, and no more than one core, whatever the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
