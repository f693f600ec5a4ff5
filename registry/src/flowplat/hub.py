"""Models on the Hugging Face hub: ``hf://owner/name``, and ``@revision`` behind it to read one.

The network is reached here and nowhere else, through huggingface_hub, which ``flowplat[hub]`` installs.
"""

import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowcore import __version__
from flowcore.errors import FlowError, InputError, IntegrityError, MachineError, UsageError
from flowplat import modelfolder
from flowplat.components import one_line

SCHEME = "hf://"
PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
BROUGHT = {".gitattributes", modelfolder.CARD, "LICENSE"}
"""Files that a repository of no model yet may hold: what the hub's own pages put there."""


@dataclass(frozen=True)
class Repository:
    """A repository of the hub; ``revision`` is a branch, a tag or a commit."""

    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{SCHEME}{self.id}" + (f"@{self.revision}" if self.revision else "")

    @property
    def name(self) -> str:
        """What it is called without its owner."""
        return self.id.partition("/")[2]


def parse(text: str) -> Repository | None:
    """The repository that ``hf://owner/name[@revision]`` names; None for a folder. Raises ``UsageError``."""
    if not text.startswith(SCHEME):
        return None
    found = re.fullmatch(rf"({PART}/{PART})(?:@([\w./-]+))?", text.removeprefix(SCHEME))
    if found is None:
        raise UsageError(f"{text!r} names no model of the hub; write hf://owner/name or hf://owner/name@revision")
    return Repository(found[1], found[2])


def look(repository: Repository) -> dict[str, Any] | None:
    """``{"private", "files"}`` of a repository, or None when there is none that we may see."""
    with _network(repository) as hub:
        try:
            info = hub.HfApi().model_info(repository.id)
        except hub.errors.RepositoryNotFoundError:
            return None
        return {"private": bool(info.private), "files": [file.rfilename for file in info.siblings or ()]}


def refuse(repository: Repository, there: dict[str, Any] | None, private: bool) -> None:
    """Raise where publishing would show what should be private, or replace what is no model of ours."""
    if repository.revision is not None:
        raise UsageError(f"{repository} names a revision; a model is published to hf://{repository.id}")
    if there is None:
        return
    if private and not there["private"]:
        raise UsageError(f"{repository} is there and public; make it private on the hub, or publish without --private")
    if modelfolder.MANIFEST not in there["files"] and (strange := sorted(set(there["files"]) - BROUGHT)):
        raise InputError(f"{repository} holds something else, such as {strange[0]}; name another repository")


def send(
    folder: Path, names: Sequence[str], repository: Repository, there: dict[str, Any] | None, private: bool
) -> str:
    """Make the repository hold a verified model and nothing else, in one commit; returns its address.

    ``there`` is what ``look`` saw. Files of a model before this one would not be in the new manifest, and go.
    """
    sent = [*names, modelfolder.MANIFEST]
    old = [name for name in (there["files"] if there else ()) if name not in (*sent, *BROUGHT)]
    with _network(repository) as hub:
        api = hub.HfApi(library_name="flowplat", library_version=__version__)
        api.create_repo(repository.id, private=private, exist_ok=True)
        operations = [hub.CommitOperationDelete(path_in_repo=name) for name in old]
        operations += [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in sent]
        message = f"Model exported by flowplat {__version__}"
        api.create_commit(repository.id, operations, commit_message=message)
        return f"{api.endpoint}/{repository.id}"


def fetch(repository: Repository, target: Path) -> None:
    """Download a model into the folder ``target``: its manifest, and then the files that this names."""
    with _network(repository) as hub:
        api = hub.HfApi(library_name="flowplat", library_version=__version__)
        info = api.model_info(repository.id, revision=repository.revision)
        commit = info.sha  # one state, whatever is published meanwhile
        try:
            api.hf_hub_download(repository.id, modelfolder.MANIFEST, revision=commit, local_dir=target)
        except hub.errors.EntryNotFoundError as error:
            raise InputError(f"{repository} holds no model of flowplat: it has no {modelfolder.MANIFEST}") from error
        names = sorted(modelfolder.read(target / modelfolder.MANIFEST))
        api.snapshot_download(repository.id, revision=commit, local_dir=target, allow_patterns=names)
    shutil.rmtree(target / ".cache", ignore_errors=True)  # the client's notes on what it has downloaded
    missing = [name for name in names if not (target / name).exists()]
    if missing:
        raise IntegrityError(f"{repository} lacks {missing[0]}, which its {modelfolder.MANIFEST} names")


@contextmanager
def _network(repository: Repository) -> Iterator[Any]:
    """``huggingface_hub``, and what it raises as errors of ours: its own are many, and differ between versions."""
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
        from huggingface_hub.utils import disable_progress_bars
    except ImportError as error:
        raise MachineError(f"{repository} needs huggingface_hub; `pip install 'flowplat[hub]'` brings it") from error
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield hub
    except (FlowError, KeyboardInterrupt):
        raise
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        reason = f"{repository} is not there, or not for you to see; `hf auth login` tells the hub who you are"
        raise InputError(reason) from error
    except errors.HFValidationError as error:
        raise UsageError(f"{repository} is no name the hub would take: {one_line(error)}") from error
    except errors.LocalTokenNotFoundError as error:
        raise MachineError(f"{repository} cannot be written: `hf auth login` tells the hub who you are") from error
    except errors.HfHubHTTPError as error:
        raise MachineError(f"the hub refuses {repository}: {one_line(error)[:300]}") from error
    except Exception as error:
        raise MachineError(f"the hub cannot be reached for {repository}: {one_line(error)[:300]}") from error
