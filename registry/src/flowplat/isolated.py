"""What importing a plugin does to a process that is fresh: what it loads, and what it leaves behind."""

import json
import os
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flowcore.plugin.testing.trees import must

LOADED = """
import importlib, json, sys
import flowcore.plugin.hookspecs
before = set(sys.modules)
importlib.import_module(sys.argv[1])
print()
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""

LEFT = """
import contextlib, importlib, io, json, os, random, sys, threading
import numpy, torch
from flowcore.plugin.testing.offline import no_network

def state():
    return {
        "torch's number of threads": torch.get_num_threads(),
        "torch's default dtype": str(torch.get_default_dtype()),
        "torch's grad mode": torch.is_grad_enabled(),
        "the working directory": os.getcwd(),
    }

def draws():
    return {
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's random state": repr(numpy.random.get_state()),
        "python's random state": repr(random.getstate()),
    }

def changed(before, after):
    return [f"changes {name}" for name in before if before[name] != after[name]]

names, before = sys.argv[1:], state()
with no_network() as asked:
    for name in names:
        importlib.import_module(name)
done = [f"asks the network for {one}" for one in asked] + changed(before, state())
done += [f"leaves the thread {one.name} running" for one in threading.enumerate() if one is not threading.main_thread()]
# a library may draw when it is first imported, as rich does; what the plugin itself draws it draws a second time
own = {name.partition(".")[0] for name in names} - {"flowcore", "flowplat"}
for name in [name for name in sys.modules if name.partition(".")[0] in own]:
    del sys.modules[name]
torch.manual_seed(417), numpy.random.seed(417), random.seed(417)
before = draws()
said = io.StringIO()  # what it prints it has printed
with contextlib.suppress(Exception), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    for name in names:
        importlib.import_module(name)  # or fails: there are modules that are imported once only
done += changed(before, draws())
print()
print(json.dumps(done))
"""


def imports_little(module: str) -> None:
    """The entry module imports its own package and the light part of flowcore, and nothing else."""
    loaded, _ = _fresh(LOADED, [module])
    ours = {module.partition(".")[0], "flowcore", "pluggy"}
    heavy = sorted(
        name for name in loaded if name[0] != "_" and name not in ours and name not in sys.stdlib_module_names
    )
    must(not heavy, f"importing {module} imports {', '.join(heavy[:4])}; name what needs it as text, in register()")


def leaves_nothing_behind(modules: Iterable[str]) -> None:
    """Importing every module that is registered prints nothing, writes no file, asks no network, leaves no thread, and
    changes no global state of torch, numpy or python."""
    done, traces = _fresh(LEFT, list(modules))
    done += traces
    must(not done, f"importing it {', '.join(done)}; do that in the function that needs it")


def sampled(folder: Path, out: Path, count: int) -> None:
    """``count`` samples of an exported model, drawn by a fresh process and written to ``out`` as safetensors."""
    code = (
        "import sys, flowplat\nfrom flowplat.trial import keep\n"
        "keep(flowplat.load(sys.argv[1]).sample(int(sys.argv[3]), seed=0), sys.argv[2])\nprint('\\n[]')"
    )
    _fresh(code, [str(folder), str(out), str(count)])


def _fresh(code: str, arguments: list[str]) -> tuple[Any, list[str]]:
    """What ``code`` printed last, as JSON, and the traces it left: what else was printed, and files in its home or its
    working folder, both empty at first. Raises ``AssertionError`` where it fails."""
    with tempfile.TemporaryDirectory() as name:
        home, here, kept = (Path(name) / part for part in ("home", "here", "kept"))
        for folder in (home, here, kept):
            folder.mkdir()
        variables = {
            "HOME": str(home), "PYTHONUSERBASE": site.getuserbase(), "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "MPLCONFIGDIR": str(kept), "XDG_CACHE_HOME": str(kept), "TMPDIR": str(kept),  # where libraries keep things
        }  # fmt: skip
        command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
        done = subprocess.run(
            command, cwd=here, env=os.environ | variables, capture_output=True, text=True, timeout=300
        )
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        must(done.returncode == 0, f"in a fresh process it fails: {last}")
        traces = [f"writes {path.name}" for folder in (home, here) for path in sorted(folder.iterdir())]
    *said, told = done.stdout.splitlines()
    text = " ".join([*said, *done.stderr.split()]).strip()
    return json.loads(told), traces + ([f"prints {text[:60]!r}"] if text else [])
