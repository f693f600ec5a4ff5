"""The ``platform`` command."""

from flowplat.cli.main import main

__all__ = ["main"]
