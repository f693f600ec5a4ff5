"""Several processes: started by the command itself, by torchrun, by srun; one run, one result."""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flowcore.files import sha256
from flowcore.training import checkpoints

SCRIPTS = Path(sysconfig.get_path("scripts"))
QUICK = {"OMP_NUM_THREADS": "1"}
Team = Callable[..., list[Any]]


def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def torchrun(rank: int, world: int, where: int) -> dict[str, Any]:
    """What torchrun tells a process, as on machines of one process each."""
    return {
        "RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "GROUP_RANK": rank,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": where, "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip


def srun(rank: int, world: int, where: int) -> dict[str, Any]:
    """What srun tells a process, all on one machine."""
    return {
        "SLURM_NTASKS": world, "SLURM_NNODES": 1, "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": 0,
        "SLURM_STEP_ID": 0, "SLURM_JOB_ID": 4242, "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "test",
        "MASTER_PORT": where,
    }  # fmt: skip


@pytest.fixture
def team(warm: Any, probe: Path, tmp_path: Path) -> Team:
    """``team("train.steps=9")`` starts ``platform run probe --out run train.steps=9`` in two processes."""

    def start(*arguments: str, world: int = 2, by: Any = torchrun, out: str = "run", **more: Any) -> list[Any]:
        where = port()
        (tmp_path / "hashes").mkdir(exist_ok=True)
        more = {"PYTHONPATH": probe, "PROBE_HASHES": tmp_path / "hashes"} | more
        return [
            warm.start("run", "probe", *arguments, "--out", out, cwd=tmp_path, **more, **by(rank, world, where))
            for rank in range(world)
        ]

    return start


def done(*processes: Any) -> None:
    for process in processes:
        assert process.wait() == 0, process.err
        assert process.err == ""


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "provenance.json").read_text())


def weights(folder: Path) -> dict[str, str]:
    """The sha256 of weights, average and optimiser at the end."""
    newest = checkpoints.latest(folder / "checkpoints")
    return {name: sha256(newest / f"{name}.safetensors") for name in ("model", "ema", "optim")}


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def held_alike(tmp_path: Path, world: int = 2) -> None:
    """Each process held the weights that were saved."""
    told = {path.name: path.read_text() for path in (tmp_path / "hashes").iterdir()}
    assert sorted(told) == [str(rank) for rank in range(world)]
    assert len(set(told.values())) == 1
    saved = load_file(checkpoints.latest(tmp_path / "run" / "checkpoints") / "model.safetensors")
    names = ("layers.0.weight", "layers.0.bias", "layers.3.weight", "layers.3.bias")
    content = b"".join(saved[name].numpy().tobytes() for name in names)
    assert told["0"] == hashlib.sha256(content).hexdigest()


LONGER = ("train.steps=120", "train.batch_size=64", "train.log_every=10", "train.checkpoint_every=50")


# started by whom


def test_two_machines_of_torchrun_are_one_run_like_that_of_one_process(
    team: Team, warm: Any, probe: Path, tmp_path: Path
) -> None:
    (tmp_path / "hashes").mkdir()
    command = [SCRIPTS / "torchrun", "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
    command += [f"--master-port={port()}"]
    words = ["-m", "flowplat", "run", "probe", *LONGER, "--out", "run"]
    more = {"PYTHONPATH": str(probe), "PROBE_HASHES": str(tmp_path / "hashes")}
    nodes = [
        subprocess.Popen([*command, f"--node-rank={rank}", *words], cwd=tmp_path, env=os.environ | QUICK | more,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]  # fmt: skip
    (first, _), (other, _) = [node.communicate(timeout=120) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert "report: run/report.html" in first
    assert other == ""  # one speaks for all
    held_alike(tmp_path)
    assert record(tmp_path / "run")["hardware"]["processes"] == 2
    assert [path.name for path in tmp_path.iterdir() if path.name != "hashes"] == ["run"]
    assert [path.name for path in (tmp_path / "run").rglob(".*")] == []
    done(*team(*LONGER, out="again"))
    assert weights(tmp_path / "again") == weights(tmp_path / "run")  # as this test's other way of starting them
    done(warm("run", "probe", *LONGER, "--out", "one", cwd=tmp_path, PYTHONPATH=probe))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "run")
    assert len(one) == len(two) == 12
    assert one != two  # other noise
    assert mean(two) == pytest.approx(mean(one), rel=0.1)


def test_the_command_starts_as_many_as_there_are_devices(warm: Any, probe: Path, tmp_path: Path) -> None:
    (tmp_path / "hashes").mkdir()
    process = warm(
        "run", "probe", "engine.devices=2", "engine.accelerator=cpu", "--out", "run", "--json",
        cwd=tmp_path, PYTHONPATH=probe, PROBE_HASHES=tmp_path / "hashes",
    )  # fmt: skip
    done(process)
    assert json.loads(process.out)["folder"] == "run"
    held_alike(tmp_path)
    assert [path.name for path in (tmp_path / "run").rglob(".*")] == []


def test_srun_is_noticed(team: Team, tmp_path: Path) -> None:
    done(*team(by=srun))
    held_alike(tmp_path)
    done(*team(out="again"))
    assert weights(tmp_path / "again") == weights(tmp_path / "run")


def test_the_batch_script_runs_under_srun(warm: Any, probe: Path, tmp_path: Path) -> None:
    """srun is a shell script that starts as many processes as the batch script asks for."""
    settings = ["engine.devices=2", "engine.accelerator=cpu", "sample.condition=a b", "train.steps=7"]
    process = warm("run", "probe", *settings, "--emit-sbatch", cwd=tmp_path, PYTHONPATH=probe)
    done(process)
    assert list(tmp_path.iterdir()) == []
    script = process.out
    assert script.startswith("#!/bin/bash\n")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, re.MULTILINE))
    assert (asked["nodes"], asked["ntasks-per-node"], asked["signal"]) == ("1", "2", "TERM@120")
    (line,) = (line for line in script.splitlines() if line.startswith("srun "))
    assert shlex.split(line)[1:6] == [sys.executable, "-m", "flowplat", "run", "probe"]
    variables = " ".join(f"{key}={value}" for key, value in srun(0, 2, port()).items() if key[-2:] != "ID")
    stub = tmp_path / "bin" / "srun"
    stub.parent.mkdir()
    stub.write_text(
        f"#!/bin/bash\nexport {variables} SLURM_NODEID=0 SLURM_STEP_ID=0\nfor k in 0 1; do\n"
        '  SLURM_PROCID=$k SLURM_LOCALID=$k "$@" & process[k]=$!\ndone\nwait ${process[0]} && wait ${process[1]}\n'
    )
    stub.chmod(0o755)
    more = QUICK | {"PYTHONPATH": str(probe), "PATH": f"{stub.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    command = ["bash", "-s"]
    ended = subprocess.run(
        command, input=script, cwd=tmp_path, env=os.environ | more, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / "runs" / "probe" / "probe" / "77"
    assert (record(folder)["status"], record(folder)["hardware"]["processes"]) == ("done", 2)
    assert f"report: {folder.relative_to(tmp_path)}" in ended.stdout


def test_from_python(probe: Path, tmp_path: Path) -> None:
    code = (
        "import flowplat\n"
        "one = flowplat.run('probe', 'engine.devices=2', 'engine.accelerator=cpu', 'train.steps=9', out='run')\n"
        "print(one.folder, sorted(one.figures), one.first)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | QUICK | {"PYTHONPATH": str(probe)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "run ['by_steps', 'count', 'paths', 'seed'] True\n"
    assert record(tmp_path / "run")["hardware"]["processes"] == 2


def test_a_config_from_stdin_cannot_be_read_by_several(platform: Any) -> None:
    ended = platform(
        "run", "images", "-c", "-", "engine.devices=2", "engine.accelerator=cpu", stdin="train: {steps: 9}"
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("platform: -c - is read once, and engine asks for several processes")


# ended


def slow(team: Team, tmp_path: Path, *more: str, **how: Any) -> list[Any]:
    """Two processes that train, a step in 50 ms, beyond their first checkpoint."""
    processes = team("network.sleep=0.05", "train.checkpoint_every=5", *more, **how)
    processes[0].until((tmp_path / "run" / "checkpoints" / "latest").exists)
    return processes


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
def test_one_that_is_lost_ends_all_and_the_run_goes_on_in_one_or_two(
    number: int, team: Team, warm: Any, probe: Path, tmp_path: Path
) -> None:
    first, other = slow(team, tmp_path, "engine.timeout=8")
    began = time.monotonic()
    other.kill(number)
    assert first.wait(30) == 1
    assert time.monotonic() - began < 8 + 7
    assert first.err.startswith("platform: another process of the run has ended or does not answer")
    assert first.err.count("\n") == 1
    if number == signal.SIGSTOP:
        other.kill(signal.SIGCONT)
        assert other.wait() == 1
    assert other.wait() != 0
    assert (record(tmp_path / "run")["status"], record(tmp_path / "run")["exit_code"]) == ("failed", 1)
    settings = ("network.sleep=0.05", "train.checkpoint_every=5", "--resume", "last")
    if number == signal.SIGSTOP:
        return done(warm("run", "probe", *settings, "--out", "run", cwd=tmp_path, PYTHONPATH=probe))
    done(*team(*settings))
    done(*team(*settings[:2], out="straight"))
    assert weights(tmp_path / "run") == weights(tmp_path / "straight")
    return None


@pytest.mark.parametrize("by", [torchrun, srun])
def test_a_signal_to_the_first_saves_in_all(by: Any, team: Team, tmp_path: Path) -> None:
    processes = slow(team, tmp_path, by=by)
    processes[0].kill(signal.SIGTERM)
    assert [process.wait() for process in processes] == [143, 143]
    assert processes[0].err.startswith("interrupted: saving step")
    assert processes[1].err == ""
    assert (record(tmp_path / "run")["status"], record(tmp_path / "run")["exit_code"]) == ("interrupted", 143)
    step = int(checkpoints.latest(tmp_path / "run" / "checkpoints").name[5:])
    assert 5 < step < 40
    assert f"saving step {step};" in processes[0].err
    done(*team("network.sleep=0.05", "train.checkpoint_every=5", "--resume", "last", by=by))
    done(*team("network.sleep=0.05", "train.checkpoint_every=5", out="straight", by=by))
    assert weights(tmp_path / "run") == weights(tmp_path / "straight")
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")


def test_a_signal_at_the_last_step_is_heard(team: Team, tmp_path: Path) -> None:
    processes = team(PROBE_SIGNAL="INT@40")
    assert [process.wait() for process in processes] == [130, 130]
    assert record(tmp_path / "run")["status"] == "interrupted"
    done(*team("--resume", "last"))


def test_a_signal_to_a_command_that_started_its_own(warm: Any, probe: Path, tmp_path: Path) -> None:
    """The first alone, as `kill` does it; the other is its child."""
    settings = ("network.sleep=0.05", "engine.devices=2", "engine.accelerator=cpu", "train.checkpoint_every=5")
    process = warm.start("run", "probe", *settings, "--out", "run", cwd=tmp_path, PYTHONPATH=probe)
    process.until((tmp_path / "run" / "checkpoints" / "latest").exists)
    (child,) = children(process.pid)
    process.kill(signal.SIGTERM)
    assert process.wait() == 143
    assert "Traceback" not in process.err
    patience = time.monotonic() + 20
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < patience
        time.sleep(0.05)
    done(warm("run", "probe", *settings[:1], "--resume", "run", "engine.devices=1", cwd=tmp_path, PYTHONPATH=probe))


def test_one_that_waits_for_a_first_that_was_killed_ends(warm: Any, probe: Path, tmp_path: Path) -> None:
    """Killed while the other still starts, and would wait half an hour to hear from it."""
    settings = ("engine.devices=2", "engine.accelerator=cpu", "--out", "run")
    process = warm.start("run", "probe", *settings, cwd=tmp_path, PYTHONPATH=probe)
    process.until(lambda: children(process.pid))
    (child,) = children(process.pid)
    process.kill(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    patience = time.monotonic() + 40
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < patience
        time.sleep(0.05)
    assert not (tmp_path / "run").exists()


def children(pid: int) -> list[int]:
    """The processes that a process has started as commands of their own."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split() if b"platform" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_what_all_know_is_told_once(team: Team, tmp_path: Path) -> None:
    processes = team("train.lr=1e30", "train.clip=null", out="run")
    assert [process.wait() for process in processes] == [1, 1]
    assert processes[0].err.count("\n") == 1
    assert "the loss is" in processes[0].err
    assert processes[1].err == ""
    (tmp_path / "thesis.tex").write_text("years of work")
    processes = team(out="thesis.tex")
    assert [process.wait() for process in processes] == [4, 4]
    assert "the run folder thesis.tex cannot be made" in processes[0].err
    assert processes[1].err == ""


# sharded


def test_a_sharded_network_trains_saves_and_goes_on(team: Team, warm: Any, probe: Path, tmp_path: Path) -> None:
    plain = ("network.dropout=0", "train.validate_every=20")
    sharded = (*plain, "engine.strategy=fsdp", "engine.accelerator=cpu")
    done(*team(*plain, out="copied"))
    done(*team(*sharded))
    done(*team(*sharded, "train.steps=23", out="parts"))
    shutil.copytree(tmp_path / "parts", tmp_path / "one")
    done(*team(*sharded, "train.steps=40", "--resume", "last", out="parts"))
    one = ("engine.strategy=auto", "train.steps=40", "--resume", "one")
    done(warm("run", "probe", *one, cwd=tmp_path, PYTHONPATH=probe))
    for name in ("model", "ema"):
        run, parts, copied = (
            load_file(checkpoints.latest(tmp_path / folder / "checkpoints") / f"{name}.safetensors")
            for folder in ("run", "parts", "copied")
        )
        assert run.keys() == parts.keys() == copied.keys()
        for key, value in run.items():
            torch.testing.assert_close(parts[key], value, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(copied[key], value, rtol=1e-4, atol=1e-5)
    assert checkpoints.latest(tmp_path / "one" / "checkpoints").name == "step-00000040"
    done(warm("sample", "run", "engine.strategy=auto", "-n", "4", "-o", "drawn", cwd=tmp_path, PYTHONPATH=probe))
    assert np.loadtxt(tmp_path / "drawn" / "points.csv", delimiter=",").shape == (4, 2)


SHARED = """
import hashlib, os, sys
import flowplat, flowplat.model
folder, ports = sys.argv[1], sys.argv[2:]
for world, port in zip((1, 2, 8), ports):
    children = []
    for rank in range(world):
        if child := os.fork():
            children.append(child)
            continue
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
                       "GROUP_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                       "TORCHELASTIC_RUN_ID": "test"}
        model = flowplat.load(folder, "sample.batch_size=8")
        model.experiment.engine.launch()
        samples = model.experiment.sample(model.network, 75, 3, 5)
        assert (samples is None) == (rank > 0)
        if samples is not None:
            content = samples.x1.numpy().tobytes() + samples.x0.numpy().tobytes()
            print(world, len(samples), hashlib.sha256(content).hexdigest(), flush=True)
        os._exit(0)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * world
"""


def test_samples_are_the_same_bytes_from_one_process_two_or_eight(warm: Any, probe: Path, tmp_path: Path) -> None:
    done(warm("run", "probe", "train.steps=3", "--out", "run", cwd=tmp_path, PYTHONPATH=probe))
    command = [sys.executable, "-c", SHARED, str(tmp_path / "run"), *(str(port()) for _ in range(3))]
    more = QUICK | {"PYTHONPATH": str(probe)}
    ended = subprocess.run(command, cwd=tmp_path, env=os.environ | more, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    lines = [line.split() for line in ended.stdout.splitlines()]
    assert [line[:2] for line in lines] == [["1", "75"], ["2", "75"], ["8", "75"]]
    assert len({line[2] for line in lines}) == 1
