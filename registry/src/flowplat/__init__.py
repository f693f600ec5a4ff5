"""flowplat: finds plugins, resolves configs, trains, samples, evaluates and reports. ``platform`` is its command.

    import flowplat
    run = flowplat.run("images", "train.steps=500")
    samples = flowplat.load(run.folder).sample(64, seed=0)
    flowplat.plugins()

Importing this package costs nothing; ``run`` and ``load`` import torch when they are called. What ends the command with
one of its exit codes is raised as an exception of ``flowcore.errors``.
"""

from typing import TYPE_CHECKING, Any

from flowcore import __version__

if TYPE_CHECKING:
    from flowplat.model import load
    from flowplat.probe import plugins
    from flowplat.runner import run

__all__ = ["__version__", "load", "plugins", "run"]


def __getattr__(name: str) -> Any:
    if name == "run":
        from flowplat.runner import run

        return run
    if name == "load":
        from flowplat.model import load

        return load
    if name == "plugins":
        from flowplat.probe import plugins

        return plugins
    raise AttributeError(f"module 'flowplat' has no attribute {name!r}")
