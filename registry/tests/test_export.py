"""export: a run's model as a folder that stands alone, and what loading it refuses."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import flowplat
from flowcore.errors import InputError, IntegrityError, MachineError, PluginError, UsageError
from flowplat import modelfolder
from flowplat.export import export
from flowplat.model import load

Platform = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    """An exported model."""
    return export(trained, tmp_path / "models" / "ring")


def drawn(folder: Path, *overrides: str) -> torch.Tensor:
    return load(folder, *overrides).sample(6, seed=3).x1


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def reseal(folder: Path, **changes: Any) -> None:
    """The manifest that whoever changed the folder would write."""
    names = [name for name in manifest(folder)["files"] if (folder / name).is_file()]
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "manifest.json").write_text(json.dumps({**manifest(folder), "files": hashes, **changes}))


# what is exported


def test_a_model_folder_holds_what_it_should(model: Path, trained: Path) -> None:
    names = {path.name for path in model.iterdir()}
    assert names == {
        "README.md", "config.yaml", "figures.json", "manifest.json", "model.safetensors", "provenance.json", "sheet.png"
    }  # fmt: skip
    assert set(manifest(model)["files"]) == names - {"manifest.json"}
    for name, expected in manifest(model)["files"].items():
        assert hashlib.sha256((model / name).read_bytes()).hexdigest() == expected
    for name, original in (("config.yaml", "config.yaml"), ("sheet.png", "samples/sheet.png")):
        assert (model / name).read_bytes() == (trained / original).read_bytes()
    assert json.loads((model / "figures.json").read_text()) == json.loads((trained / "eval/metrics.json").read_text())
    record = json.loads((model / "provenance.json").read_text())
    assert record["exported"] == {"run": "run", "step": 12}
    assert record["data"] == json.loads((trained / "provenance.json").read_text())["data"]
    assert len({(model / name).stat().st_mode for name in names}) == 1  # readable as one is, so are all
    assert sorted(path.name for path in model.parent.iterdir()) == ["ring"]


def test_the_weights_are_the_averaged_ones(model: Path, trained: Path) -> None:
    from safetensors.torch import load_file

    averaged = load_file(trained / "checkpoints" / "step-00000012" / "ema.safetensors")
    exported = load_file(model / "model.safetensors")
    assert exported.keys() == averaged.keys()
    assert all(torch.equal(exported[key], averaged[key]) for key in averaged)


def test_it_draws_the_samples_of_its_run(model: Path, trained: Path) -> None:
    before = drawn(trained)
    shutil.rmtree(trained)
    assert torch.equal(drawn(model), before)
    assert torch.equal(flowplat.load(str(model)).sample(6, seed=3).x1, before)
    assert load(model, "sample.solver=heun").sample(3).extra["calls"] == 4


def test_exporting_twice_gives_the_same_bytes(model: Path, trained: Path, tmp_path: Path) -> None:
    again = export(trained, tmp_path / "elsewhere" / "ring")
    assert manifest(again) == manifest(model)


@pytest.mark.parametrize("of", ["run", "model"])
def test_a_model_is_used_where_it_is_and_not_where_it_was_trained(of: str, model: Path, trained: Path) -> None:
    folder = trained if of == "run" else model
    config = folder / "config.yaml"
    far = {"workers: 0": "workers: 8", "accelerator: auto": "accelerator: cuda", "devices: 1": "devices: 8",
           "num_nodes: 1": "num_nodes: 4", "compile: false": "compile: true"}  # fmt: skip
    text = config.read_text()
    for here, there in far.items():
        assert f"  {here}\n" in text
        text = text.replace(f"  {here}\n", f"  {there}\n")
    before = drawn(folder)
    config.write_text(text)
    if of == "model":
        reseal(model)
    engine = load(folder).experiment.config.engine
    assert (engine.accelerator, engine.devices, engine.num_nodes, engine.workers) == ("auto", 1, 1, 0)
    assert engine.threads == 1  # which has a say in the last bits
    assert load(folder, "engine.workers=2").experiment.config.engine.workers == 2
    assert torch.equal(drawn(folder), before)
    config.write_text(text.replace("accelerator: cuda", "accelerator: cpu"))
    if of == "model":
        reseal(model)
    assert load(folder).experiment.config.engine.accelerator == "cpu"


@pytest.fixture
def scaled(ring: Path, tmp_path: Path) -> Path:
    """A run on a file of points whose scale sampling needs."""
    points = tmp_path / "points.csv"
    points.write_text("".join(f"{x},{y}\n" for x, y in ((3, 0), (0, 3), (-3, 0), (0, -3))))
    return flowplat.run("ring", "data=scaled", f"data.path={points}", out=tmp_path / "run").folder


def test_a_model_samples_without_the_training_data(scaled: Path, tmp_path: Path) -> None:
    model = export(scaled, tmp_path / "model")
    assert json.loads((model / "facts.json").read_text()) == {"scale": 3.0}
    for folder in ("before", "after"):
        (tmp_path / folder).mkdir()
        loaded = load(model)
        loaded.data.write(loaded.sample(8), tmp_path / folder)
        (tmp_path / "points.csv").unlink(missing_ok=True)
    assert (tmp_path / "before" / "points.csv").read_bytes() == (tmp_path / "after" / "points.csv").read_bytes()
    assert (tmp_path / "before" / "points.csv").read_bytes() == (scaled / "samples" / "points.csv").read_bytes()
    with pytest.raises(InputError, match=r"points\.csv cannot be read"):
        load(scaled)


@pytest.mark.parametrize("facts", ["{", "[]", "{}", '{"scale": "large"}', '{"scale": null}', "3"])
def test_facts_that_do_not_suit_the_data_are_code_5(facts: str, scaled: Path, tmp_path: Path) -> None:
    model = export(scaled, tmp_path / "model")
    (model / "facts.json").write_text(facts)
    reseal(model)
    with pytest.raises(IntegrityError, match=r"facts\.json") as caught:
        load(model)
    assert "\n" not in str(caught.value)


def test_facts_that_are_no_json_are_the_plugins_fault(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = type(load(trained).data)
    for facts in ({"x": torch.zeros(2)}, {"x": float("nan")}, {(1, 2): 3}):
        monkeypatch.setattr(data, "facts", lambda self, facts=facts: facts, raising=False)
        with pytest.raises(PluginError, match="no plain JSON"):
            export(trained, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_figures_of_other_weights_are_left_out(trained: Path, tmp_path: Path) -> None:
    weights = trained / "checkpoints" / "step-00000012" / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    model = export(trained, tmp_path / "model")
    assert json.loads((model / "provenance.json").read_text())["exported"]["step"] == 10
    assert not {"figures.json", "sheet.png"} & set(os.listdir(model))
    assert "not measured" in (model / "README.md").read_text()


@pytest.mark.parametrize("spoilt", ["missing", "damaged", "interrupted"])
def test_an_unfinished_run_is_exported_without_figures(spoilt: str, trained: Path, tmp_path: Path) -> None:
    record = trained / "provenance.json"
    if spoilt == "missing":
        record.unlink()
    else:
        record.write_text("{" if spoilt == "damaged" else record.read_text().replace('"done"', '"interrupted"'))
    model = export(trained, tmp_path / "model")
    assert not {"figures.json", "sheet.png"} & set(os.listdir(model))
    assert "These weights were not measured." in (model / "README.md").read_text()
    assert torch.equal(drawn(model), drawn(trained))


def test_where_it_was_trained_is_not_told(trained: Path, tmp_path: Path) -> None:
    path = trained / "provenance.json"
    record = json.loads(path.read_text())
    record["sessions"] = [{"argv": ["platform", "run"], "host": "secret-node", "pid": 4711, "status": "done"}]
    path.write_text(json.dumps(record))
    model = export(trained, tmp_path / "model")
    assert json.loads((model / "provenance.json").read_text())["sessions"] == [
        {"argv": ["platform", "run"], "status": "done"}
    ]
    assert not [path.name for path in model.iterdir() if b"secret-node" in path.read_bytes()]


# where it is put


def test_a_folder_that_holds_something_is_refused(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    for name in ("thesis", "file", "link"):
        with pytest.raises(InputError, match=f"{name} is no"):
            export(trained, tmp_path / name)
    assert os.listdir(tmp_path / "thesis") == ["thesis.tex"]
    assert load(export(trained, tmp_path / "empty"))
    with pytest.raises(InputError, match="not empty"):
        export(trained, tmp_path / "empty")
    with pytest.raises(UsageError, match="is a model already"):
        export(tmp_path / "empty", tmp_path / "more")
    with pytest.raises(UsageError, match="no licence"):
        export(trained, tmp_path / "more", license="all mine!")


@pytest.mark.parametrize("at", ["save_file", "write_text", "copyfile", "sync", "rename"])
def test_a_full_disk_leaves_nothing_half_done(
    at: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(*arguments: Any, **keywords: Any) -> None:
        raise (
            SafetensorError("No space left on device") if at == "save_file" else OSError(28, "No space left on device")
        )

    where = {"save_file": "flowplat.export.save_file", "write_text": "pathlib.Path.write_text",
             "copyfile": "shutil.copyfile", "sync": "flowcore.files.sync", "rename": "pathlib.Path.rename"}  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(where[at], full)
        with pytest.raises(MachineError, match=r"models/ring cannot be written: .*No space left"):
            export(trained, tmp_path / "models" / "ring")
    assert not (tmp_path / "models").exists()
    assert load(export(trained, tmp_path / "models" / "ring"))


def test_what_a_killed_export_left_is_cleared_away(trained: Path, tmp_path: Path) -> None:
    left = tmp_path / ".ring.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    assert load(export(trained, tmp_path / "ring"))
    assert not left.exists()


def test_names_with_spaces_and_letters_of_all_kinds(trained: Path, tmp_path: Path) -> None:
    model = export(trained, tmp_path / "mein Modell für Ünïcode 二")
    assert torch.equal(drawn(model), drawn(trained))
    assert "# mein Modell für Ünïcode 二" in (model / "README.md").read_text(encoding="utf-8")


# what is refused


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_a_pickle_in_place_of_the_weights_is_never_run(model: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    (model / "model.safetensors").write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(IntegrityError, match=r"model\.safetensors is damaged"):
        load(model)
    reseal(model)
    with pytest.raises(IntegrityError, match=r"model\.safetensors holds no weights that are safe to read"):
        load(model)
    torch.save({"weights": Payload(mark)}, model / "model.safetensors")
    reseal(model)
    with pytest.raises(IntegrityError, match=r"model\.safetensors holds no weights that are safe to read"):
        load(model)
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["README.md", "config.yaml", "figures.json", "model.safetensors", "provenance.json", "sheet.png"]
)
@pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "gone", "link", "folder"])
def test_every_file_is_verified(name: str, how: str, model: Path, tmp_path: Path) -> None:
    path = model / name
    content = path.read_bytes()
    match how:
        case "flipped":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "cut":
            path.write_bytes(content[:-1])
        case "emptied":
            path.write_bytes(b"")
        case _:
            path.unlink()
    if how == "link":  # to the very same bytes
        (tmp_path / "same").write_bytes(content)
        path.symlink_to(tmp_path / "same")
    if how == "folder":
        path.mkdir()
    with pytest.raises(IntegrityError, match=name):
        load(model)


def test_no_weights_but_those_of_the_manifest(model: Path) -> None:
    for name in ("extra.safetensors", "pytorch_model.bin", "model.PT", "facts.json"):
        (model / name).write_bytes(b"{}")
        with pytest.raises(IntegrityError, match=f"{name} is not in manifest.json"):
            load(model)
        (model / name).unlink()
    for name in (".gitattributes", "notes.txt", "LICENSE"):  # what hubs and people leave is nobody's harm
        (model / name).write_text("")
    (model / "samples").mkdir()
    assert load(model)


HOSTILE = {
    "outside": {"../secret": "0" * 64},
    "absolute": {"/etc/passwd": "0" * 64},
    "below": {"a/b": "0" * 64},
    "windows": {"..\\secret": "0" * 64},
    "drive": {"C:secret": "0" * 64},
    "dots": {"..": "0" * 64},
    "here": {".": "0" * 64},
    "nothing": {"": "0" * 64},
    "null": {"a\0b": "0" * 64},
    "hidden": {".ssh": "0" * 64},
    "line": {"a\nb": "0" * 64},
    "glob": {"*": "0" * 64},
    "itself": {"manifest.json": "0" * 64},
    "no hash": {"model.safetensors": 3},
    "short hash": {"model.safetensors": "00"},
}


@pytest.mark.parametrize("extra", HOSTILE.values(), ids=HOSTILE)
def test_a_manifest_that_means_harm(extra: dict[str, Any], model: Path, tmp_path: Path) -> None:
    (model.parent / "secret").write_text("secret")
    record = manifest(model)
    record["files"] |= extra
    (model / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(IntegrityError, match=r"manifest\.json") as caught:
        load(model)
    assert "\n" not in str(caught.value)


BROKEN = {
    "empty": b"",
    "half": b'{"format": 1, "files": {',
    "list": b"[]",
    "text": b'"files"',
    "no files": b'{"format": 1}',
    "files of no kind": b'{"format": 1, "files": 3}',
    "no format": b'{"files": {}}',
    "newer": b'{"format": 99, "flowplat": "9.9", "files": {}}',
    "none needed": b'{"format": 1, "files": {}}',
    "binary": b"\xff\xfe",
    "deep": b"[" * 500_000,
    "huge": b" " * (1 << 21),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_manifest_that_is_broken(content: bytes, model: Path) -> None:
    (model / "manifest.json").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        load(model)


def test_a_manifest_of_a_newer_flowplat_says_so(model: Path) -> None:
    reseal(model, format=99, flowplat="9.9")
    with pytest.raises(IntegrityError, match=r"is of a newer flowplat, 9\.9"):
        load(model)


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml"])
def test_a_model_without_its_parts_is_none(name: str, model: Path) -> None:
    (model / name).unlink()
    reseal(model)
    with pytest.raises(IntegrityError, match=f"names no {name}"):
        load(model)


def test_a_manifest_that_is_no_file(model: Path, tmp_path: Path) -> None:
    path = model / "manifest.json"
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match=r"manifest\.json is missing"):
        load(model)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match=r"manifest\.json is no manifest"):
        load(model)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(IntegrityError, match=r"manifest\.json is no manifest"):
        load(model)


def test_weights_of_another_network_are_told_in_a_line(model: Path) -> None:
    with pytest.raises(UsageError, match="do not fit the network") as caught:
        load(model, "network.width=8")
    assert "\n" not in str(caught.value)


def test_a_config_that_is_spoilt(model: Path) -> None:
    for text in ("", "plugin: [", "seed: 1\n"):
        (model / "config.yaml").write_text(text)
        reseal(model)
        with pytest.raises(UsageError, match=r"config\.yaml"):
            load(model)


# the verbs


def test_export_publish_and_pull(trained: Path, tmp_path: Path, platform: Platform) -> None:
    run, model = str(trained), str(tmp_path / "model")
    code, out, err = platform("export", run, "-o", model)
    assert (code, out) == (0, f"{model}\n")
    assert "no licence is stated" in err
    code, out, err = platform("export", run, "-o", str(tmp_path / "licensed"), "--license", "MIT", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["folder"], "model.safetensors" in told["files"]) == (str(tmp_path / "licensed"), True)
    assert "license: mit\n" in (tmp_path / "licensed" / "README.md").read_text()
    shared, pulled = str(tmp_path / "shared" / "ring"), str(tmp_path / "pulled")
    assert platform("publish", model, shared) == (0, f"{shared}\n", "")
    assert platform("pull", shared, "-o", pulled) == (0, f"{pulled}\n", "")
    assert manifest(Path(pulled)) == manifest(Path(model))
    assert torch.equal(drawn(Path(pulled)), drawn(trained))
    direct = str(tmp_path / "shared" / "direct")
    assert json.loads(platform("publish", run, direct, "--license", "mit", "--json")[1]) == {"model": direct}
    assert manifest(Path(direct))["files"]["model.safetensors"] == manifest(Path(model))["files"]["model.safetensors"]


def test_pull_names_the_folder_after_the_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: Platform
) -> None:
    monkeypatch.chdir(tmp_path / "run")
    assert json.loads(platform("pull", f"{model}/", "--json")[1]) == {"folder": "models/ring"}
    assert load("models/ring")
    code, out, err = platform("pull", str(model))
    assert (code, out) == (2, "")
    assert "models/ring is not empty" in err


def test_only_what_the_manifest_names_travels(model: Path, tmp_path: Path, platform: Platform) -> None:
    (model / "diary.txt").write_text("private")
    assert platform("publish", str(model), str(tmp_path / "shared"))[0] == 0
    (tmp_path / "shared" / "virus.exe").write_text("")
    assert platform("pull", str(tmp_path / "shared"), "-o", str(tmp_path / "pulled"))[0] == 0
    assert set(os.listdir(tmp_path / "pulled")) == {*manifest(model)["files"], "manifest.json"}


@pytest.mark.parametrize("verb", ["publish", "pull", "sample"])
def test_a_tampered_model_goes_nowhere(verb: str, model: Path, tmp_path: Path, platform: Platform) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    target = str(tmp_path / "deep" / "target")
    arguments = (str(model), target) if verb == "publish" else (str(model), "-o", target)
    code, out, err = platform(verb, *arguments)
    assert (code, out) == (5, "")
    assert err == f"platform: {weights} is damaged: its sha256 is not the one in manifest.json\n"
    assert not (tmp_path / "deep").exists()


def test_what_was_typed_wrong(trained: Path, model: Path, tmp_path: Path, platform: Platform) -> None:
    new = str(tmp_path / "new")
    for arguments, told in (
        (("export", "nowhere", "-o", new), "no run is called 'nowhere'"),
        (("export", str(model), "-o", new), "is a model already"),
        (("export", str(trained)), "--out"),
        (("publish", str(model), new, "--license", "mit"), "is exported already"),
        (("publish", str(model), new, "--private"), "--private is for hf://"),
        (("publish", str(model), str(trained)), "is not empty"),
        (("publish", str(model), "hf://name"), "hf://owner/name"),
        (("publish", str(trained), new, "--license", "a b"), "no licence"),
        (("pull", str(trained), "-o", new), "is no model folder"),
        (("pull", "hf://../x", "-o", new), "hf://owner/name"),
        (("runs", "show", str(model)), "is an exported model"),
    ):
        code, out, err = platform(*arguments)
        assert (code, out) == (2, ""), arguments
        assert told in err
    assert not Path(new).exists()


def test_samples_of_a_model_do_not_go_into_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: Platform
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(os.listdir(model))
    code, out, err = platform("sample", "models/ring", "-n", "3")
    assert (code, out, err) == (0, "samples/ring/n3-steps2-seed0\n", "")
    assert set(os.listdir(model)) == before
    assert load(model)


def test_a_run_is_sampled_by_its_id(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: Platform
) -> None:
    home = tmp_path / "runs" / "ring" / "ring"
    home.mkdir(parents=True)
    trained.rename(home / "20260101T000000Z-aaaaaa")
    monkeypatch.chdir(tmp_path)
    code, out, _ = platform("sample", "2026", "-n", "3")
    assert (code, out) == (0, "runs/ring/ring/20260101T000000Z-aaaaaa/samples/n3-steps2-seed0\n")
    assert platform("sample", "last", "-n", "3", "-o", "drawn")[0] == 0


def test_find_knows_models_and_runs(model: Path, trained: Path, tmp_path: Path) -> None:
    assert modelfolder.find(model) == model
    assert modelfolder.find(str(trained)) == trained
    (model / "manifest.json").unlink()
    assert modelfolder.find(model) == model  # so that its weights are refused, and not a checkpoint looked for
