"""The conformance kit: what must hold of a data set, a network, a guidance and of every other kind a plugin brings.

Each check is a function that takes ``make``, which builds what is checked, and what it is tried on. It returns nothing,
or raises ``AssertionError`` with one line that says what was expected, what was found, and the way out. No test runner
is needed: ``platform check`` runs them all on an installed plugin, and so does a test that takes ``flowplat_check``.

    from flowcore.plugin.testing import networks
    networks.it_depends_on_t(lambda: mlp(MLPConfig(), data.spec()), data)
"""

from collections.abc import Callable, Mapping
from typing import Any

from flowcore.plugin.testing import data, guidance, networks, paths, solvers, uses

Checks = tuple[Callable[..., None], ...]

CHECKS: Mapping[str, Checks] = {
    "data": data.ALWAYS,
    "network": networks.ALWAYS,
    "guidance": guidance.ALWAYS,
    "objective": solvers.OBJECTIVE,
    "sampler": solvers.SAMPLER,
    "metric": uses.METRIC,
    "task": uses.TASK,
    "path": paths.PATH,
    "coupling": paths.COUPLING,
    "times": paths.TIMES,
    "loss": paths.LOSS,
    "solver": solvers.SOLVER,
}
"""The checks that every component of a kind has to pass."""


def title(check: Callable[..., Any]) -> str:
    """A check's name for people: ``it_depends_on_t`` is "it depends on t"."""
    return getattr(check, "__name__", "it").replace("_", " ")
