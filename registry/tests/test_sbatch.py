"""sbatch: the script of `--emit-sbatch`, as bash and the command read it."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowplat.cli.run import command

Platform = Any


def directives(script: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE))


def words(script: str, **variables: str) -> list[str]:
    """What srun is called with, as bash reads it."""
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    stub = "srun() { printf '%s\\0' \"$@\"; }\n"
    said = subprocess.run(["bash", "-s"], input=stub + script, text=True, capture_output=True, env=variables)
    assert (said.returncode, said.stderr) == (0, "")
    python, *rest = said.stdout.split("\0")[:-1]
    assert python == sys.executable
    assert rest[:3] == ["-m", "flowplat", "run"]
    return rest[3:]


def parsed(script: str, **variables: str) -> dict[str, Any]:
    """What `platform run` understands of it."""
    return command.make_context("run", words(script, SLURM_JOB_ID="77", **variables)).params


def test_the_run_it_does_is_the_run_that_was_asked_for(ring: Path, platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "my config.yaml").write_text("train: {steps: 9}\n")
    asked = ("run", "ring", "sample.condition=it's $HOME", "train.lr=2e-3", "--preset", "ring", "--smoke")
    code, script, err = platform(*asked, "-c", str(tmp_path / "my config.yaml"), "--emit-sbatch")
    assert (code, err) == (0, "")
    found = parsed(script)
    assert found["plugin"] == "ring"
    assert found["overrides"] == ("sample.condition=it's $HOME", "train.lr=2e-3")
    assert (found["preset"], found["smoke"]) == ("ring", True)
    assert found["file"] == str(tmp_path / "my config.yaml")
    assert (found["out"], found["resume"]) == (Path("runs/ring/ring/77"), "last")
    assert not {found["dry_run"], found["emit_sbatch"], found["as_json"]} & {True}


def test_a_folder_of_ones_own(ring: Path, platform: Platform, tmp_path: Path) -> None:
    out = str(tmp_path / "it's $HOME")
    found = parsed(platform("run", "ring", "--out", out, "--emit-sbatch")[1])
    assert (found["out"], found["resume"]) == (Path(out), "last")
    assert not Path(out).exists()


def test_a_run_that_was_begun_goes_on(trained: Path, platform: Platform) -> None:
    found = parsed(platform("run", "ring", "--resume", str(trained), "train.steps=20", "--emit-sbatch")[1])
    assert (found["out"], found["resume"], found["overrides"]) == (trained, "last", ("train.steps=20",))


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ((), {"nodes": "1", "ntasks-per-node": "1", "gpus-per-node": "1", "cpus-per-task": "2"}),
        (("engine.devices=4", "engine.num_nodes=2", "engine.workers=6"),
         {"nodes": "2", "ntasks-per-node": "4", "gpus-per-node": "4", "cpus-per-task": "8"}),
        (("engine.devices=[1,3]",), {"nodes": "1", "ntasks-per-node": "2", "gpus-per-node": "2", "cpus-per-task": "2"}),
        (("engine.accelerator=cpu", "engine.devices=2"),
         {"nodes": "1", "ntasks-per-node": "2", "cpus-per-task": "2"}),
    ],
)  # fmt: skip
def test_what_is_asked_of_slurm(
    engine: tuple[str, ...], expected: dict[str, str], ring: Path, platform: Platform
) -> None:
    script = platform("run", "ring", *engine, "--emit-sbatch")[1]
    found = directives(script)
    assert found.items() >= expected.items()
    assert ("gpus-per-node" in found) == ("gpus-per-node" in expected)
    assert found["signal"] == "TERM@120"
    assert {"requeue", "time", "job-name"} <= set(found)
    assert script.startswith("#!/bin/bash\n#SBATCH ")
    assert shlex.split(script.splitlines()[-1])[-2:] == ["--resume", "last"]


def test_faults_of_the_config_are_told_and_no_script_is_printed(ring: Path, platform: Platform) -> None:
    code, out, err = platform("run", "ring", "train.lrr=1", "--emit-sbatch")
    assert (code, out) == (2, "")
    assert "did you mean train.lr?" in err
