"""``python warm.py SOCKET`` starts ``platform`` commands without the seconds that their imports take: forked from here.

A request is one line of JSON: arguments, cwd, environment, and the files that take stdout and stderr. The answers are
two lines: the process's number, and how it ended. Everything else of the command is as the installed script has it.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import sysconfig
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import flowplat

ONCE = ("images", "network.width=16", "network.blocks=1", "engine.threads=1", "engine.accelerator=cpu")
"""A run that is made before any is asked for: all imports and first times. It starts no thread that a fork would
lose, as one on a GPU would."""


def become(request: dict[str, Any]) -> None:
    """In the forked process: what the request asks for, up to calling ``main``."""
    os.setsid()  # a group of its own, as a terminal or a batch system signals it
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    importlib.invalidate_caches()
    sys.argv = [str(Path(sysconfig.get_path("scripts")) / "platform"), *request["arguments"]]
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def serve(path: str) -> None:
    """Answer requests until the socket's folder or the parent is gone; returns in each forked process."""
    server, parent = socket.socket(socket.AF_UNIX), os.getppid()
    server.bind(path)
    server.listen()
    running: dict[int, socket.socket] = {}
    while os.getppid() == parent:
        if select.select([server], [], [], 0.02)[0]:
            connection = server.accept()[0]
            request = json.loads(connection.makefile().readline())
            process = os.fork()
            if process == 0:
                for held in (server, connection, *running.values()):
                    held.close()
                become(request)
                return
            running[process] = connection
            connection.sendall(f"{process}\n".encode())
        for process in list(running):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                with suppress(OSError), running.pop(process) as connection:
                    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        flowplat.run(*ONCE, smoke=True, out=Path(folder) / "run")
    import flowplat.cli.run
    import flowplat.cli.sample

    gc.collect()
    gc.freeze()  # what is here is never collected: a fork that looked through it would copy it
    serve(sys.argv[1])
    from flowplat.cli.main import main

    main()
