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

    Exit code 1 where a check fails. A kind of component that no check could try is a failure too.
    """
    from flowplat.discovery import find

    find(plugin)  # before torch is imported: a typo is told at once
    from flowplat.conformance import checks
    from flowplat.progress import progress

    found = checks(plugin, fast)
    rows: list[dict[str, Any]] = []
    with progress(f"check {plugin}", len(found), "check") as bar:
        for check in found:
            start = time.perf_counter()
            try:
                check()
                message = None
            except AssertionError as error:
                message = str(error)
            took = round(time.perf_counter() - start, 2)
            row = {"id": check.id, "kind": check.kind, "ok": message is None, "message": message, "seconds": took}
            rows.append(row)
            if not as_json:
                bar.write(_line(row), file=sys.stdout)
            bar.update()
    failed = sum(not row["ok"] for row in rows)
    if as_json:
        kinds = Counter(row["kind"] for row in rows)
        echo_json({"plugin": plugin, "count": len(rows), "failed": failed, "kinds": kinds, "checks": rows})
    else:
        click.echo(f"{len(rows)} checks, {failed} failed")
    if failed:
        click.get_current_context().exit(1)


def _line(row: dict[str, Any]) -> str:
    return f"ok      {row['id']}" if row["ok"] else f"FAILED  {row['id']}\n        {row['message']}"
