"""A batch script for SLURM that does a run, and goes on with it when it is sent again."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from flowplat.settings import RunConfig


def script(
    config: RunConfig, overrides: Sequence[str], preset: str | None, file: str | None, smoke: bool, out: Path | None
) -> str:
    """The script's text. Machines, processes and GPUs are those of ``engine``; srun starts the processes.

    Two minutes before the time is up SLURM sends SIGTERM, upon which the run saves and ends with 143. The folder is
    fixed, so that the same script, queued again by a person or by SLURM itself, goes on where it stopped.
    """
    engine = config.engine
    devices = len(engine.devices) if isinstance(engine.devices, list) else engine.devices
    devices = 1 if devices == "auto" else devices
    name = config.preset or "config"
    folder = out or Path("runs") / config.plugin / name.replace("/", "-") / "$SLURM_JOB_ID"
    words = [sys.executable, "-m", "flowplat", "run", config.plugin, *overrides]
    words += ["--preset", preset] if preset else []
    words += ["-c", file] if file else []
    words += ["--smoke"] if smoke else []
    command = shlex.join(words) + (f" --out {shlex.quote(str(folder))}" if out else f' --out "{folder}"')
    gpus = "" if engine.accelerator == "cpu" else f"#SBATCH --gpus-per-node={devices}\n"
    return f"""#!/bin/bash
#SBATCH --job-name=flowplat-{config.plugin}-{name.replace("/", "-")}
#SBATCH --nodes={engine.num_nodes}
#SBATCH --ntasks-per-node={devices}
{gpus}#SBATCH --cpus-per-task={engine.workers + 2}
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
# Add what your cluster asks for: --partition, --account, modules to load.

srun {command} --resume last
"""
