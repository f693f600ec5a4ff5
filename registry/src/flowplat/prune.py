"""Deleting runs: what would go and what it frees, and the deleting, which touches nothing but run folders."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flowcore import files
from flowcore.errors import InputError, IntegrityError, MachineError
from flowplat import runs
from flowplat.progress import progress
from flowplat.rundir import locked

STAMP = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}")
"""The names that runs get from the platform. What a person named, a person has to name again."""

UNFINISHED = ("failed", "interrupted", "killed")
RECORDS = ("config.yaml", "provenance.json")  # what makes a folder a run: they go last


@dataclass(frozen=True)
class Doomed:
    """What would go of one run: the folder itself, or some of its checkpoints."""

    run: runs.Run
    paths: list[Path]
    size: int

    @property
    def whole(self) -> bool:
        """Whether nothing of the run would stay."""
        return self.paths == [self.run.folder]


def choose(
    root: Path,
    named: Sequence[str] = (),
    statuses: Sequence[str] | None = None,
    older_than: float | None = None,
    thin: bool = False,
) -> tuple[list[Doomed], list[str]]:
    """What would be deleted, and a line for each run that is spared against the wish.

    ``named`` runs, or all below ``root`` of the ``statuses`` (those that did not finish; with ``thin`` those that did),
    that ended more than ``older_than`` days ago. ``thin`` deletes checkpoints: all but the newest whole one and the
    best. Raises ``MachineError`` when a named run is being trained.
    """
    folders = list(dict.fromkeys(_real(runs.find(name, root)) for name in named))
    found = [runs.read(folder) for folder in folders] if named else runs.scan(root)[0]
    if statuses is None and not named:
        statuses = ("done",) if thin else UNFINISHED
    now, doomed, spared = datetime.now(UTC), list[Doomed](), list[str]()
    if statuses is not None:
        found = [run for run in found if run.status in statuses]
    if older_than is not None:
        found = [run for run in found if now - run.ended >= timedelta(days=older_than)]
    with progress("look", len(found), "run") as bar:
        for run in found:
            place = runs.shown(run.folder)
            if runs.held(run.folder):
                if named:
                    raise MachineError(f"{place} is in use: it is being trained, and nothing was deleted")
                spared.append(f"{place} is in use")
            elif thin:
                try:
                    doomed += _thinned(run)
                except IntegrityError as error:
                    spared.append(f"{place} keeps its checkpoints, of which none is whole: {error}")
            elif not named and not STAMP.fullmatch(run.id):
                spared.append(f"{place} was named by hand; name it to delete it")
            else:
                doomed.append(Doomed(run, [run.folder], run.size))
            bar.update()
    return doomed, spared


def delete(doomed: Sequence[Doomed], root: Path) -> None:
    """Delete what ``choose`` chose; folders of plugins and presets that are then empty go too.

    Raises ``MachineError`` naming what could not be deleted, after all the rest was.
    """
    faults = []
    with progress("delete", sum(len(one.paths) for one in doomed), "folder") as bar:
        for one in doomed:
            try:
                with _held(one.run.folder):
                    if runs.read(one.run.folder).record != one.run.record:
                        raise MachineError(f"{runs.shown(one.run.folder)} has changed meanwhile, and was not deleted")
                    for path in one.paths:
                        _delete_run(path) if one.whole else shutil.rmtree(files.aside(path))
                        bar.update()
                    if not one.whole:  # the latest may have been damaged, and gone
                        files.write(one.run.folder / "checkpoints" / "latest", one.run.checkpoints[-1].name + "\n")
            except OSError as error:
                faults.append(f"{runs.shown(one.run.folder)} cannot be deleted: {error.strerror or error}")
            except MachineError as error:
                faults.append(str(error))
            else:
                if one.whole:
                    _clear(one.run.folder.parent, root)
    if faults:
        raise MachineError("; ".join(faults))


def _real(folder: Path) -> Path:
    """A named folder, unless deleting it would delete more, or something else, than was named."""
    if folder.is_symlink():
        raise InputError(f"{folder} is a symlink; name the folder it leads to")
    if folder.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise InputError(f"you are working in {folder.resolve()}; leave it before you delete it")
    return folder


def _thinned(run: runs.Run) -> list[Doomed]:
    if len(run.checkpoints) < 2:
        return []
    from flowcore.training import checkpoints

    folder = run.folder / "checkpoints"
    kept = {checkpoints.latest(folder).name, *(path.name for path in checkpoints.best(folder)[:1])}
    gone = [path for path in run.checkpoints if path.name not in kept]
    return [Doomed(run, gone, sum(map(runs.size_of, gone)))] if gone else []


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The run's lock, so that nobody resumes what is being deleted."""
    with ExitStack() as lock:
        try:
            ours = lock.enter_context(locked(folder / ".lock"))
        except (RuntimeError, NotImplementedError):  # nobody can tell
            ours = False
        if not ours:
            raise MachineError(f"{runs.shown(folder)} is in use, and was not deleted")
        yield


def _delete_run(folder: Path) -> None:
    for entry in os.scandir(folder):
        if entry.name in (*RECORDS, ".lock"):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    shutil.rmtree(folder)


def _clear(folder: Path, root: Path) -> None:
    """Remove ``folder`` and those above it, up to ``root``, as far as they are empty."""
    top = root.resolve()
    for above in (folder.resolve(), *folder.resolve().parents):
        if top not in above.parents:
            return
        try:
            above.rmdir()
        except OSError:
            return
