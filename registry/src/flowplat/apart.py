"""A run in processes of its own, started as the command would be: what several devices need under a notebook."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
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
        with answer.open("w") as stdout:
            process = subprocess.Popen(
                command, stdout=stdout, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
        code, said = _followed(process)
        if code:
            raise _error(code, said)
        told = json.loads(answer.read_text())
    return Finished(Path(told["folder"]), told["figures"])


def _followed(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """The exit code, and the message of the error if there was one.

    Ctrl-C is passed on to the first process alone, which tells the others: it saves before it ends, and a second one
    within five seconds stops it.
    """
    lines: list[str] = []

    def pass_on() -> None:  # as a notebook does not see another process's stderr
        for line in process.stderr or ():
            sys.stderr.write(line)
            lines.append(line)

    reader = threading.Thread(target=pass_on, daemon=True)
    reader.start()
    code = None
    while code is None:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
    if code:  # where the first was killed, another may wait for it still
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    reader.join(10)
    starts = [number for number, line in enumerate(lines) if line.startswith("platform: ")]
    return code, "".join(lines[starts[-1] :]).removeprefix("platform: ").strip() if starts else ""


def _error(code: int, said: str) -> BaseException:
    if code in (130, 143):
        return KeyboardInterrupt()
    kinds = [errors.UsageError, errors.PluginError, errors.MachineError, errors.IntegrityError]
    kind = next((kind for kind in kinds if kind.exit_code == code), errors.FlowError)
    return kind(said or f"the run ended with code {code}")
