"""``platform search``."""

import click

from flowplat.cli.options import as_json, echo_json

catalog_option = click.option(
    "--catalog", metavar="FILE|DIR|URL", help="Another catalogue, at https:// for one; the shipped one if not given."
)


@click.command("search")
@click.argument("words", nargs=-1, metavar="[WORD]...")
@catalog_option
@as_json()
def command(words: tuple[str, ...], catalog: str | None, as_json: bool) -> None:
    """Those whose name or summary holds every WORD; all of them without one.

    The catalogue comes with the platform, so no network is asked unless --catalog names one there.
    """
    from packaging.utils import canonicalize_name

    from flowplat import catalogue
    from flowplat.discovery import installed

    there = {canonicalize_name(one.distribution): one.version for claims in installed().values() for one in claims}
    rows = []
    for entry in catalogue.matching(catalogue.entries(catalog), words):
        latest = entry.latest()
        rows.append(
            {
                "plugin": entry.plugin,
                "distribution": entry.distribution,
                "version": latest and latest.version,
                "requires": latest and f"flowplat{latest.requires}",
                "fits": latest and latest.fits,
                "licence": entry.licence,
                "reviewed": entry.reviewed and entry.reviewed.isoformat(),
                "installed": there.get(canonicalize_name(entry.distribution)),
                "homepage": entry.homepage,
                "summary": entry.summary,
            }
        )
    if as_json:
        echo_json(rows)
        return
    if not rows:
        click.echo(f"nothing in the catalogue matches {' '.join(words)!r}; `platform search` lists all of it", err=True)
    for row in rows:
        version = row["version"] or "no release yet"
        needs = f", for {row['requires']}" if row["fits"] is False else ""
        reviewed = f"reviewed {row['reviewed']}" if row["reviewed"] else "not reviewed"
        here = f", {row['installed']} installed" if row["installed"] else ""
        click.echo(f"{row['plugin']:14}{row['summary']}")
        click.echo(f"{'':14}{version}{needs}, {row['licence']}, {reviewed}{here}")
