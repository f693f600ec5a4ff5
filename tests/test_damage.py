"""What a disk, a stranger or a full file system may do to a run: it is noticed and named, what was whole is used."""

import json
import os
import pickle
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowcore.files import sha256
from flowcore.training import checkpoints

FILES = ("model.safetensors", "ema.safetensors", "optim.safetensors", "state.json", "manifest.json")
STEPS = ("step-00000040", "step-00000035", "step-00000030", "step-00000020", "step-00000010", "step-00000005")
EVERY = ("train.checkpoint_every=5", "train.keep=null")
BIG = ("network.width=20000",)  # a checkpoint takes 1.9 MB


def weights(folder: Path) -> dict[str, str]:
    """The sha256 of weights, average and optimiser at the end."""
    newest = checkpoints.latest(folder / "checkpoints")
    return {"step": newest.name} | {name: sha256(newest / name) for name in FILES[:3]}


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "provenance.json").read_text())


def done(process: Any, said: bool = False) -> None:
    assert process.wait() == 0, process.err
    assert said or process.err == ""


def refused(process: Any, code: int = 4) -> str:
    """The one line that stderr says, where the command ended with ``code`` and nothing on stdout."""
    assert process.wait() == code, process.err
    assert process.out == ""
    assert process.err.startswith("platform: ")
    assert process.err.count("\n") == 1, process.err
    return process.err


@pytest.fixture
def run(warm: Any, probe: Path, tmp_path: Path) -> Callable[..., Any]:
    """``run("--out", "run")`` is ``platform run probe`` in this test's folder; ``start=True`` does not wait."""

    def run(*arguments: str | Path, start: bool = False, **environment: Any) -> Any:
        how = warm.start if start else warm
        return how("run", "probe", *arguments, cwd=tmp_path, PYTHONPATH=probe, **environment)

    return run


@pytest.fixture(scope="module")
def whole(warm: Any, probe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps with a checkpoint every five."""
    home = tmp_path_factory.mktemp("whole")
    done(warm("run", "probe", *EVERY, "--out", "run", cwd=home, PYTHONPATH=probe))
    return home / "run"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy of it with six of its checkpoints."""
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    for checkpoint in checkpoints.found(folder / "checkpoints"):
        if checkpoint.name not in STEPS:
            shutil.rmtree(checkpoint)
    return folder


# damage


class Payload:
    """Whoever unpickles this makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def missing(path: Path) -> None:
    path.unlink()


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(path.parents[3] / "it-ran")))


@pytest.mark.parametrize("damage", [flipped, truncated, empty, garbage, missing, pickled], ids=lambda f: f.__name__)
def test_damage_is_named_and_the_checkpoint_before_is_used(
    damage: Callable[[Path], None], run: Callable[..., Any], copy: Path, whole: Path, tmp_path: Path
) -> None:
    """One kind of damage to each file of a checkpoint: the five newest are of no use, each for another file."""
    damaged = [copy / "checkpoints" / step / name for step, name in zip(STEPS[:5], FILES, strict=True)]
    for path in damaged:
        damage(path)
    process = run("--out", "run", "--resume", "last", *EVERY)
    done(process, said=True)
    lines = process.err.splitlines()
    for path, line in zip(damaged, lines, strict=True):
        named = path.parent if path.name == "manifest.json" else path  # which may name another file by its false hash
        assert line.startswith(f"platform: {named.relative_to(tmp_path)}")
        assert line.endswith("; going on from step-00000005")
    assert record(copy)["from_step"] == 5
    assert weights(copy) == weights(whole)
    assert not (tmp_path / "it-ran").exists()
    assert [path.name for path in copy.rglob(".*")] == []


def test_5_where_no_checkpoint_is_whole(run: Callable[..., Any], copy: Path, tmp_path: Path) -> None:
    damages = (flipped, truncated, empty, garbage, missing, pickled)
    files = ("state.json", "manifest.json", "model.safetensors", "ema.safetensors", "optim.safetensors", "state.json")
    damaged = [copy / "checkpoints" / step / name for step, name in zip(STEPS, files, strict=True)]
    for damage, path in zip(damages, damaged, strict=True):
        damage(path)
    before = sorted(path.relative_to(copy) for path in (copy / "checkpoints").rglob("*"))
    process = run("--out", "run", "--resume", "last", *EVERY)
    assert process.wait() == 5
    *lines, last = process.err.splitlines()
    for path, line in zip(damaged, lines, strict=True):
        assert line.startswith(f"platform: {path.relative_to(tmp_path)} ")
    assert last == ("platform: no checkpoint in run/checkpoints is whole; delete the folder to begin again from step 0")
    assert not (tmp_path / "it-ran").exists()
    assert sorted(path.relative_to(copy) for path in (copy / "checkpoints").rglob("*")) == before
    assert (record(copy)["status"], record(copy)["exit_code"]) == ("failed", 5)
    shutil.rmtree(copy / "checkpoints")  # as it says
    done(run("--out", "run", "--resume", "last", *EVERY))


@pytest.mark.parametrize("name", FILES[:4])
def test_5_where_a_file_with_the_right_hash_is_a_pickle(
    name: str, run: Callable[..., Any], copy: Path, tmp_path: Path
) -> None:
    newest = copy / "checkpoints" / STEPS[0]
    pickled(newest / name)
    hashes = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps(hashes | {name: sha256(newest / name)}))
    message = refused(run("--out", "run", "--resume", "last", *EVERY), 5)
    assert "run/checkpoints/step-00000040 holds a file that is not safe to read" in message
    assert not (tmp_path / "it-ran").exists()


def test_who_samples_is_told_of_damage(warm: Any, probe: Path, copy: Path, tmp_path: Path) -> None:
    flipped(copy / "checkpoints" / STEPS[0] / "ema.safetensors")
    process = warm("sample", "run", "-n", "4", "-o", "drawn", cwd=tmp_path, PYTHONPATH=probe)
    done(process, said=True)
    path = f"run/checkpoints/{STEPS[0]}/ema.safetensors"
    assert process.err == f"{path} is damaged: its sha256 is not the one in manifest.json; {STEPS[1]} is used\n"


def test_the_payload_would_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "it-ran")))
    assert (tmp_path / "it-ran").exists()


def test_damaged_checkpoints_do_not_count_among_those_that_are_kept(
    run: Callable[..., Any], copy: Path, whole: Path
) -> None:
    for step in STEPS[:4]:
        flipped(copy / "checkpoints" / step / "model.safetensors")
    keep = ("--out", "run", "--resume", "last", "train.keep=2")
    assert run(*keep, PROBE_SIGNAL="INT@12").wait() == 130
    assert [path.name for path in checkpoints.found(copy / "checkpoints")] == ["step-00000012", "step-00000010"]
    for checkpoint in checkpoints.found(copy / "checkpoints"):
        checkpoints.verify(checkpoint)
    done(run(*keep))
    assert weights(copy) == weights(whole)


# a disk that is full


def mounted(folder: Path, *options: str) -> bool:
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 5 MB."""
    if not mounted(tmp_path / "disk", "size=5m"):
        pytest.skip("no file system can be mounted here")
    yield tmp_path / "disk"
    subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)


def test_4_where_the_disk_is_full_and_on_when_there_is_room(
    run: Callable[..., Any], disk: Path, tmp_path: Path
) -> None:
    where = ("--out", "disk/run", *BIG)
    assert "No space left on device" in refused(run(*where))
    kept = checkpoints.found(disk / "run" / "checkpoints")
    assert [path.name for path in kept] == ["step-00000020", "step-00000010"]
    for checkpoint in kept:
        checkpoints.verify(checkpoint)
    assert (record(disk / "run")["status"], record(disk / "run")["exit_code"]) == ("failed", 4)
    assert [path.name for path in (disk / "run").rglob(".*")] == []
    assert "No space left on device" in refused(run(*where, "--resume", "last"))  # as full as before
    assert checkpoints.found(disk / "run" / "checkpoints") == kept
    subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
    done(run(*where, "--resume", "last"))
    done(run("--out", "straight", *BIG))
    assert weights(disk / "run") == weights(tmp_path / "straight")
    assert (disk / "run" / "metrics.jsonl").read_text().count("\n") == 8


def test_4_where_the_last_byte_is_taken_at_any_moment(run: Callable[..., Any], disk: Path) -> None:
    process = run("--out", "disk/run", "network.sleep=0.05", "train.checkpoint_every=4", start=True)
    process.until((disk / "run" / "checkpoints" / "latest").exists)
    with (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            try:
                filler.write(bytes(1 << 16))
            except OSError:
                break
    assert "No space left on device" in refused(process)
    kept, *_ = checkpoints.found(disk / "run" / "checkpoints")
    checkpoints.verify(kept)
    assert "No space left on device" in refused(run("--out", "disk/run", "--resume", "last"))
    assert "No space left on device" in refused(run("--out", "disk/other"))
    (disk / "filler").unlink()
    done(run("--out", "disk/run", "--resume", "last"))
    done(run("--out", "disk/other", "--resume", "last"))
    assert weights(disk / "run") == weights(disk / "other")


def test_4_where_a_file_may_not_grow(run: Callable[..., Any], tmp_path: Path) -> None:
    """`ulimit -f`, as some clusters set it: what a quota does, too."""
    process = run("--out", "run", *BIG, "network.sleep=0.05", start=True)
    process.until((tmp_path / "run" / "checkpoints" / "latest").exists)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (300_000, 300_000))
    message = refused(process)
    assert "checkpoint run/checkpoints/step-00000020 cannot be written" in message
    (kept,) = checkpoints.found(tmp_path / "run" / "checkpoints")
    checkpoints.verify(kept)
    assert [path.name for path in (tmp_path / "run").rglob(".*")] == []
    done(run("--out", "run", *BIG, "--resume", "last"))


# a folder that cannot be written


def test_4_where_a_file_is_in_the_place_of_the_folder(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for out in ("thesis.tex", "thesis.tex/run"):
        for more in ((), ("--resume", "last")):
            assert f"the run folder {out} cannot be made" in refused(run("--out", out, *more))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_4_where_the_disk_is_read_only(run: Callable[..., Any], disk: Path, copy: Path) -> None:
    shutil.copytree(copy, disk / "run", ignore=lambda folder, names: [name for name in names if name in STEPS[:3]])
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert "the run folder disk/new cannot be made" in refused(run("--out", "disk/new"))
    assert "the run folder disk/run cannot be written" in refused(run("--resume", "disk/run"))
