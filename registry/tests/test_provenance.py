"""provenance: where a result comes from."""

import json
import platform
import sys
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import torch

from flowplat import provenance
from flowplat.config import resolve
from flowplat.experiment import Experiment

Install = Callable[..., Path]


def test_the_record_names_versions_data_seed_and_machine(ring: Path) -> None:
    experiment = Experiment(resolve("ring", ["seed=11"]))
    record = provenance.collect(experiment)
    assert record["status"] == "running"
    assert record["seed"] == 11
    assert record["argv"] == sys.argv
    assert record["data"] == {"name": "ring/ring", "fingerprint": experiment.data.fingerprint()}
    assert record["versions"]["python"] == platform.python_version()
    assert record["versions"]["torch"] == version("torch")
    assert record["versions"]["flowplat"] == version("flowplat")
    assert record["versions"]["flowplat-ring"] == "1.0"
    assert record["hardware"]["device"] == str(experiment.device)
    assert record["hardware"]["threads"] == torch.get_num_threads()
    assert datetime.fromisoformat(record["started"]).tzinfo is not None
    assert json.loads(json.dumps(record)) == record


def test_the_record_is_completed_and_not_changed() -> None:
    record = {"started": "then", "status": "running", "sessions": [{"status": "failed"}, {"status": "running"}]}
    ended = provenance.finish(record, "failed", 1)
    assert (ended["status"], ended["exit_code"], ended["started"]) == ("failed", 1, "then")
    assert datetime.fromisoformat(ended["ended"]).tzinfo is not None
    assert [session["status"] for session in ended["sessions"]] == ["failed", "failed"]
    assert record["status"] == record["sessions"][-1]["status"] == "running"


def test_every_plugin_that_a_config_names_is_on_record(install: Install, ring: Path) -> None:
    code = """
        from flowcore.plugin import hookimpl

        @hookimpl
        def register_metrics(register):
            register("count", "flowplat_extra.plugin:count", summary="how many")

        def count(samples, measured):
            return {}
        """
    install("extra", code)
    record = provenance.collect(Experiment(resolve("ring", ["eval.metrics=[extra/count]"])))
    assert record["versions"]["flowplat-extra"] == "1.0"
