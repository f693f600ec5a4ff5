"""Models from outside: exported, moved to where the training data is not, published, pulled, and refused if unsafe."""

import hashlib
import importlib.util
import json
import os
import pickle
import resource
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(sysconfig.get_path("scripts")) / "platform"
Done = subprocess.CompletedProcess[str]
Platform = Callable[..., Done]


@pytest.fixture(name="platform")
def _platform(tmp_path: Path) -> Platform:
    """``platform("runs", "list")`` as a user types it, in this test's folder; keywords add to the environment."""

    def run(*arguments: str | Path, most: int | None = None, **environment: str) -> Done:
        def limit() -> None:
            if most is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

        return subprocess.run(
            [SCRIPT, *map(str, arguments)], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180, preexec_fn=limit,
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def exported(smoke: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the smoke run; nothing may write into its folder."""
    model = tmp_path_factory.mktemp("exported") / "digits"
    done = subprocess.run([SCRIPT, "export", smoke.folder, "-o", model], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{model}\n"), done.stderr
    return model


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def told(done: Done, code: int) -> str:
    """The one line on stderr of a command that ended with ``code``."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_a_model_samples_the_same_where_its_pictures_are_not(platform: Platform, tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        for i in range(6):
            picture = Image.fromarray(draws.integers(0, 256, (20, 20, 3), dtype=np.uint8))
            picture.save(tmp_path / "pictures" / kind / f"{i}.png")
    wanted = ("data=folder", "data.path=pictures", "data.size=8", "data.channels=3", "data.conditional=true",
              "eval.metrics=[]", "train.steps=4", "--smoke")  # fmt: skip
    assert platform("run", "images", *wanted).returncode == 0
    sample = ("-n", "5", "--seed", "7", "--condition", "dog")
    assert platform("sample", "last", *sample, "-o", "before").returncode == 0
    assert platform("export", "last", "-o", "cats and dogs").returncode == 0
    elsewhere = tmp_path / "elsewhere" / "Größe"
    elsewhere.parent.mkdir()
    (tmp_path / "cats and dogs").rename(elsewhere)
    shutil.rmtree(tmp_path / "pictures")
    shutil.rmtree(tmp_path / "runs")
    done = platform("sample", elsewhere, *sample, "-o", "after")
    assert (done.returncode, done.stderr) == (0, "")
    before, after = bytes_of(tmp_path / "before"), bytes_of(tmp_path / "after")
    assert len(before) == 5 + 3  # pictures, labels.csv, samples.npz, sheet.png
    assert after == before


# a shared folder, and a hub


def test_runs_are_listed_and_shown(smoke: Any, platform: Platform, tmp_path: Path) -> None:
    home = tmp_path / "runs" / "images" / "digits"
    home.mkdir(parents=True)
    shutil.copytree(smoke.folder, home / "20260101T000000Z-aaaaaa")
    (home / "20260102T000000Z-bbbbbb").mkdir()
    done = platform("runs", "list")
    assert done.returncode == 0
    assert "20260102T000000Z-bbbbbb is no run folder" in done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("20260101T000000Z-aaaaaa")]
    assert {"images", "digits", "done", "30/30", "frechet"} <= set(line.split())
    shown = json.loads(platform("runs", "show", "2026", "--verify", "--json").stdout)
    assert [one["whole"] for one in shown["checkpoints"]] == [True, True]
    assert platform("runs", "prune").stderr == "there is nothing to delete\n"


def test_a_model_goes_over_a_shared_folder(exported: Path, platform: Platform, tmp_path: Path) -> None:
    assert platform("publish", exported, "shared/digits").stdout == "shared/digits\n"
    assert platform("pull", "shared/digits").stdout == "models/digits\n"
    assert bytes_of(tmp_path / "models" / "digits") == bytes_of(exported)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Any]:
    """A hub on this machine; ``hub.environment`` leads the client to it."""
    pytest.importorskip("huggingface_hub")
    spec = importlib.util.spec_from_file_location("fake_hub", Path(__file__).with_name("fake_hub.py"))
    assert spec is not None
    assert spec.loader is not None
    fake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    with fake.serve() as served:
        served.environment = {"HF_ENDPOINT": served.address, "HF_TOKEN": "hf_test", "HF_HOME": str(tmp_path / "hf")}
        yield served


def test_a_model_goes_over_the_hub(exported: Path, smoke: Any, hub: Any, platform: Platform, tmp_path: Path) -> None:
    def do(*arguments: str | Path) -> Done:
        return platform(*arguments, **hub.environment)

    question = told(do("publish", exported, "hf://ada/digits"), 2)  # nobody is there to agree
    for word in ("hf://ada/digits", "for everyone to see", "config.yaml", "--yes"):
        assert word in question
    assert hub.repositories == {}
    done = do("publish", exported, "hf://ada/digits", "--yes")
    assert (done.returncode, done.stdout) == (0, f"{hub.address}/ada/digits\n"), done.stderr
    assert hub.files("ada/digits") == {".gitattributes": b"", **bytes_of(exported)}
    done = do("pull", "hf://ada/digits", "--json")
    assert json.loads(done.stdout) == {"folder": "models/digits"}, done.stderr
    assert bytes_of(tmp_path / "models" / "digits") == bytes_of(exported)
    # a run, exported on the way, in place of the model that is there; what that had and this has not goes
    hub.put("ada/digits", {**hub.files("ada/digits"), "old.json": b"{}"})
    assert "in place of the model that is there" in told(do("publish", exported, "hf://ada/digits"), 2)
    assert do("publish", smoke.folder, "hf://ada/digits", "--yes", "--license", "mit").returncode == 0
    files = hub.files("ada/digits")
    assert set(files) == {".gitattributes", *bytes_of(exported)}
    assert b"license: mit" in files["README.md"]
    assert files["model.safetensors"] == (exported / "model.safetensors").read_bytes()
    # the commit before is still there by its name
    assert do("pull", f"hf://ada/digits@{'0' * 40}", "-o", "first").returncode == 0
    assert "not there" in told(do("pull", "hf://ada/digits@v9", "-o", "ninth"), 2)
    assert "not there" in told(do("pull", "hf://ada/nothing", "-o", "nothing"), 2)


def test_what_should_be_private_is_and_what_is_foreign_stays(exported: Path, hub: Any, platform: Platform) -> None:
    def publish(name: str, *options: str, **environment: str) -> Done:
        return platform("publish", exported, f"hf://ada/{name}", *options, "--yes", **hub.environment | environment)

    assert publish("secret", "--private").returncode == 0
    assert hub.repositories["ada/secret"]["private"] is True
    hub.put("ada/open", {".gitattributes": b""})
    assert "is there and public" in told(publish("open", "--private"), 2)
    hub.put("ada/bert", {"pytorch_model.bin": b"years of work"})
    assert "holds something else, such as pytorch_model.bin" in told(publish("bert"), 2)
    assert hub.files("ada/bert") == {"pytorch_model.bin": b"years of work"}
    assert hub.files("ada/open") == {".gitattributes": b""}
    told(publish("unknown", HF_TOKEN=""), 2)
    assert "ada/unknown" not in hub.repositories


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def sealed(files: dict[str, bytes], **changes: str) -> dict[str, bytes]:
    """Files with the manifest that their author would write, and what is changed in it."""
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name != "manifest.json"}
    record = {"format": 1, "flowplat": "0.1.0", "files": hashes | changes}
    return files | {"manifest.json": json.dumps(record).encode()}


def test_a_hub_that_means_harm(exported: Path, hub: Any, platform: Platform, tmp_path: Path) -> None:
    mark, whole = tmp_path / "executed", bytes_of(exported)
    payload = pickle.dumps(Payload(mark))
    harm = {
        "nothing": ({"README.md": b""}, 2, "no manifest.json"),
        "tampered": (whole | {"model.safetensors": whole["model.safetensors"][:-1] + b"x"}, 5, "model.safetensors"),
        "missing": ({n: c for n, c in whole.items() if n != "model.safetensors"}, 5, "model.safetensors"),
        "outside": (sealed(whole, **{"../../.bashrc": "0" * 64}), 5, "'../../.bashrc'"),
        "pickle": (whole | {"model.safetensors": payload}, 5, "model.safetensors"),
    }
    for name, (files, code, word) in harm.items():
        hub.put(f"eve/{name}", files)
        assert word in told(platform("pull", f"hf://eve/{name}", "-o", "deep/model", **hub.environment), code)
        assert not (tmp_path / "deep").exists()
    hub.put("eve/sealed", sealed(whole | {"model.safetensors": payload}) | {"pytorch_model.bin": payload})
    hub.fetched.clear()
    assert platform("pull", "hf://eve/sealed", **hub.environment).returncode == 0
    assert "pytorch_model.bin" not in hub.fetched
    message = told(platform("sample", "models/sealed", "-o", "drawn"), 5)
    assert "model.safetensors holds no weights that are safe to read" in message
    assert not mark.exists()
    assert not (tmp_path / "drawn").exists()


def test_without_a_network(exported: Path, platform: Platform, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_test"}
    for environment in (nowhere, {"HF_HUB_OFFLINE": "1"}):
        for arguments in (("pull", "hf://ada/digits"), ("publish", exported, "hf://ada/digits", "--yes")):
            message = told(platform(*arguments, **environment), 4)
            assert message.startswith("platform: the hub cannot be reached for hf://ada/digits: ")
    assert list(tmp_path.iterdir()) == []


# a disk that refuses


def test_a_full_disk_leaves_no_half_model(exported: Path, smoke: Any, platform: Platform, tmp_path: Path) -> None:
    for arguments in (
        ("export", smoke.folder, "-o", "deep/model"), ("publish", exported, "deep/model"),
        ("pull", exported, "-o", "deep/model"),
    ):  # fmt: skip
        message = told(platform(*arguments, most=1_000_000), 4)
        assert message.startswith(f"platform: {tmp_path}/deep/model cannot be written: ")
        assert list(tmp_path.iterdir()) == []


def test_a_place_that_takes_nothing(exported: Path, platform: Platform) -> None:
    assert "/proc/model cannot be written" in told(platform("pull", exported, "-o", "/proc/model"), 4)
