"""``python -m flowplat`` is the ``platform`` command."""

from flowplat.cli import main

main()
