"""The ``platform`` command."""

import os
import sys

try:
    from flowplat.cli.main import main
except Exception:  # click, as much else, imports Python's module `platform`, and a file of that name may hide it
    from importlib.util import find_spec

    place = getattr(find_spec("platform"), "origin", None) or os.__file__
    if os.path.dirname(os.path.realpath(place)) == os.path.dirname(os.path.realpath(os.__file__)):
        raise
    told = f"{place} hides Python's own module 'platform'; rename it, or take its folder off the path"
    print(f"platform: {told}", file=sys.stderr)
    sys.exit(4)

__all__ = ["main"]
