"""What a plugin is written against: ``hookimpl`` here, the hooks in ``hookspecs``, what they register in ``contracts``.

Importing this package imports pluggy and nothing else, so a plugin's entry module stays light.
"""

import pluggy

PROJECT = "flowplat"
"""The pluggy project name, and the stem of the entry point group."""

GROUP = "flowplat.plugins"
"""The entry point group a plugin's distribution names its entry module in."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

__all__ = ["GROUP", "PROJECT", "hookimpl", "hookspec"]
