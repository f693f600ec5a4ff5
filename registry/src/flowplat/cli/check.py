"""``platform check``."""

import sys
import time
from collections import Counter
from typing import Any

import click

from flowplat.cli.options import as_json, echo_json


@click.command("check")
@click.argument("plugin")
@click.option("--fast", is_flag=True, help="Leave the runs out: nothing is trained.")
@as_json()
def command(plugin: str, fast: bool, as_json: bool) -> None:
    """PLUGIN is an installed plugin. Every component is built and tried, and the default preset trained for seconds.

    Exit code 1 where a check fails. A kind of component that no check could try is a failure too. What needs an
    optional package that is not installed is left out, and the package named.
    """
    from flowplat.discovery import find

    find(plugin)  # before torch is imported: a typo is told at once
    from flowcore.errors import MissingPackageError
    from flowplat.conformance import checks
    from flowplat.progress import progress

    found = checks(plugin, fast)
    rows: list[dict[str, Any]] = []
    with progress(f"check {plugin}", len(found), "check") as bar:
        for check in found:
            start, message, left_out = time.perf_counter(), None, False
            try:
                check()
            except AssertionError as error:
                message = str(error)
            except MissingPackageError as error:
                message, left_out = str(error), True
            took = round(time.perf_counter() - start, 2)
            row = {"id": check.id, "kind": check.kind, "ok": left_out or message is None, "left_out": left_out,
                   "message": message, "seconds": took}  # fmt: skip
            rows.append(row)
            if not as_json:
                bar.write(_line(row), file=sys.stdout)
            bar.update()
    failed, untried = sum(not row["ok"] for row in rows), sum(row["left_out"] for row in rows)
    if as_json:
        kinds = Counter(row["kind"] for row in rows)
        counts = {"count": len(rows), "failed": failed, "left_out": untried}
        echo_json({"plugin": plugin, **counts, "kinds": kinds, "checks": rows})
    else:
        more = f", {untried} left out for want of a package" if untried else ""
        click.echo(f"{len(rows)} checks, {failed} failed{more}")
    if failed:
        click.get_current_context().exit(1)


def _line(row: dict[str, Any]) -> str:
    said = "left out" if row["left_out"] else "ok" if row["ok"] else "FAILED"
    return f"{said:<7} {row['id']}" + (f"\n        {row['message']}" if row["message"] else "")
