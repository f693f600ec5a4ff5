"""Which run ``--resume`` means."""

from pathlib import Path

from flowcore.errors import InputError


def begun(plugin: str, wanted: str | Path, out: Path | None = None) -> Path | None:
    """The folder of the run to go on with.

    ``wanted`` names a run of ``plugin``, or is ``last`` for its newest. With ``out`` it is ``last`` that is meant: the
    run in ``out``, or None where none was begun there yet, so that a batch script can be sent twice unchanged.
    """
    from flowplat.runs import find

    if out is None:
        return find(str(wanted), Path("runs"), plugin)
    if str(wanted) != "last":
        raise InputError(f"--resume {wanted} names a run, and --out {out} another: leave --out away, or resume last")
    return out if (out / "config.yaml").is_file() else None
