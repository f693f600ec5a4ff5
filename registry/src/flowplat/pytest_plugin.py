"""Checks as tests: where ``flowplat_plugin`` is set, a test that takes ``flowplat_check`` runs once for each of them.

    [tool.pytest.ini_options]
    flowplat_plugin = "wind"

    def test_it_conforms(flowplat_check):
        flowplat_check()

pytest loads this in every run, so nothing is imported until a test asks.
"""

from collections.abc import Callable
from functools import partial
from typing import Any


def pytest_addoption(parser: Any) -> None:
    parser.addini("flowplat_plugin", "the flowplat plugin whose checks tests with the argument flowplat_check run")


def pytest_generate_tests(metafunc: Any) -> None:
    if "flowplat_check" not in metafunc.fixturenames:
        return
    import pytest

    plugin = metafunc.config.getini("flowplat_plugin")
    if not plugin:
        raise pytest.UsageError("flowplat_check needs the name of a plugin: set flowplat_plugin in the ini options")
    from flowcore.errors import FlowError
    from flowplat.conformance import checks

    try:
        found = checks(plugin)
    except FlowError as error:
        raise pytest.UsageError(str(error)) from error
    metafunc.parametrize(
        "flowplat_check", [partial(_or_skip, check) for check in found], ids=[check.id for check in found]
    )


def _or_skip(check: Callable[[], None]) -> None:
    """The check, skipped where it needs an optional package that is not installed."""
    import pytest

    from flowcore.errors import MissingPackageError

    try:
        check()
    except MissingPackageError as error:
        pytest.skip(str(error))
