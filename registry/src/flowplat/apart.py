"""A run in processes of its own, started as the command would be: what several devices need under a notebook."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from flowcore import errors
from flowplat.config import to_yaml
from flowplat.settings import RunConfig

if TYPE_CHECKING:
    from flowplat.runner import Finished


def run_apart(config: RunConfig, out: Path | None, resume: bool) -> "Finished":
    """``platform run`` of a resolved config in another process; raises the error its exit code stands for."""
    from flowplat.runner import Finished

    with tempfile.TemporaryDirectory() as folder:
        file, answer = Path(folder) / "config.yaml", Path(folder) / "answer.json"
        file.write_text(to_yaml(config), encoding="utf-8")
        command = [sys.executable, "-m", "flowplat", "run", config.plugin, "-c", str(file), "--json"]
        command += ["--out", str(out)] if out is not None else []
        command += ["--resume", "last"] if resume else []
        said = ""
        with answer.open("w") as stdout:
            process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
            for said in process.stderr or ():  # passed on, as a notebook does not see another process's stderr
                sys.stderr.write(said)
        if code := process.wait():
            raise _error(code, said.strip().removeprefix("platform: "))
        told = json.loads(answer.read_text())
    return Finished(Path(told["folder"]), told["figures"])


def _error(code: int, said: str) -> BaseException:
    if code in (130, 143):
        return KeyboardInterrupt()
    kinds = [errors.UsageError, errors.PluginError, errors.MachineError, errors.IntegrityError]
    kind = next((kind for kind in kinds if kind.exit_code == code), errors.FlowError)
    return kind(said or f"the run ended with code {code}")
