"""config: layers of settings become one validated config, and every fault is told at once."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowcore.errors import InputError, PluginError, UsageError
from flowplat.config import plain, resolve, to_yaml
from flowplat.plain_yaml import parse
from flowplat.settings import CHOICES, LISTS, USED, EvalSettings

Install = Callable[..., Path]

BARE = """
from flowcore.plugin import hookimpl

@hookimpl
def run_started(run):
    pass
"""


def faults(*arguments: Any, **keywords: Any) -> list[str]:
    """The lines of the message, without the first."""
    with pytest.raises(UsageError) as caught:
        resolve(*arguments, **keywords)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("the config has ")
    return [line.strip() for line in lines]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


pytestmark = pytest.mark.usefixtures("ring")


# precedence


def test_defaults_preset_file_smoke_and_command_line_in_this_order(tmp_path: Path) -> None:
    file = write(tmp_path / "my.yaml", "eval: {count: 50}")
    assert EvalSettings.model_fields["count"].default == 1000
    assert resolve("ring", preset="halves").eval.count == 1000
    assert resolve("ring").eval.count == 16
    assert resolve("ring", file=file).eval.count == 50
    assert resolve("ring", file=file, smoke=True).eval.count == 64
    assert resolve("ring", ["eval.count=10"], file=file, smoke=True).eval.count == 10
    assert resolve("ring", ["eval.count=10", "eval.count=11"]).eval.count == 11


def test_a_layer_changes_only_what_it_states(tmp_path: Path) -> None:
    file = write(tmp_path / "my.yaml", "train: {steps: 7}")
    below, above = plain(resolve("ring")), plain(resolve("ring", file=file))
    assert above["train"].pop("steps") == 7
    assert below["train"].pop("steps") == 12
    assert above == below


def test_a_file_may_name_its_preset_and_the_option_wins(tmp_path: Path) -> None:
    file = write(tmp_path / "my.yaml", "preset: halves\nseed: 3")
    assert resolve("ring", file=file).preset == "halves"
    assert resolve("ring", file=file).train.drop_condition == 0.1
    assert resolve("ring", file=file, preset="ring").train.drop_condition == 0.0


def test_standard_input_is_a_file_called_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("plugin: ring\nseed: 8\n"))
    assert resolve("ring", file="-").seed == 8


def test_the_default_preset_is_the_one_marked() -> None:
    assert resolve("ring").preset == "ring"  # the second that the plugin registers
    assert plain(resolve("ring", preset="ring/ring")) == plain(resolve("ring"))


# components


@pytest.mark.parametrize("name", ["affine", "ring/affine", "{name: affine}"])
def test_a_component_named_anew_drops_the_options_of_the_one_it_replaces(name: str) -> None:
    network = plain(resolve("ring", [f"network={name}"]))["network"]
    assert network == {"name": "ring/affine", "bias": True, "repeat": [1, 1]}


@pytest.mark.parametrize("name", ["dense", "ring/dense", "{name: dense}", "{name: ring/dense}"])
def test_a_component_named_again_keeps_its_options(name: str, tmp_path: Path) -> None:
    assert plain(resolve("ring", [f"network={name}"]))["network"]["width"] == 24
    file = write(tmp_path / "my.yaml", "network: {width: 64}")
    assert plain(resolve("ring", [f"network={name}"], file=file))["network"]["width"] == 64


def test_options_may_be_given_to_a_component_that_a_layer_below_only_names() -> None:
    times = plain(resolve("ring", ["times.stratified=true"]))["times"]
    assert times["name"] == "core/uniform"
    assert times["stratified"] is True


def test_a_component_and_its_option_in_turn() -> None:
    network = plain(resolve("ring", ["network=affine", "network.bias=false"]))["network"]
    assert (network["name"], network["bias"]) == ("ring/affine", False)


def test_lists_are_replaced_whole() -> None:
    config = resolve("ring", ["eval.metrics=[keeps]", "eval.steps=[3]", "network=affine", "network.repeat=[5]"])
    assert plain(config)["eval"]["metrics"] == [{"name": "ring/keeps"}]
    assert config.eval.steps == [3]
    assert plain(config)["network"]["repeat"] == [5]
    guided = plain(resolve("ring", ["sample.guidance=[{name: classifier_free, interval: [0.1, 1]}]"], preset="halves"))
    assert [one["scale"] for one in guided["sample"]["guidance"]] == [1.0]


@pytest.mark.parametrize(("key", "kind"), CHOICES.items())
def test_an_unknown_component_is_named_with_what_there_is(key: str, kind: str) -> None:
    value = "[zzz]" if key in LISTS else "zzz"
    pairs = ["teacher={model: run, pairs: {count: 1}}"] if key.startswith("teacher.pairs.") else []
    (line,) = faults("ring", [*pairs, f"{key}={value}"])
    place = f"{key}.0" if value == "[zzz]" else key
    assert line.startswith(f"{place} (command line): no {kind} is called 'zzz'; there are ")


@pytest.mark.parametrize(
    ("override", "hint"),
    [("network=desne", "'dense'"), ("sample.solver=eulr", "'euler'"), ("path=core/linea", "'core/linear'"),
     ("eval.metrics=[radios]", "'radius'")],
)  # fmt: skip
def test_a_misspelt_component_has_a_suggestion(override: str, hint: str) -> None:
    (line,) = faults("ring", [override])
    assert line.endswith(f"did you mean {hint}?")


@pytest.mark.parametrize("value", ["5", "[dense]", "{width: 5, name: 3}", "null"])
def test_what_names_no_component_is_a_fault(value: str) -> None:
    (line,) = faults("ring", [f"network={value}"])
    assert line.startswith("network (command line): should name a network")


def test_a_component_of_a_plugin_that_is_not_installed() -> None:
    with pytest.raises(PluginError, match="'nothere'"):
        resolve("ring", ["network=nothere/mlp"])


OTHER = """
    from flowcore.plugin import hookimpl

    @hookimpl
    def register_data(register):
        register("same", "flowplat_other.plugin:nothing", summary="takes no options")

    @hookimpl
    def register_networks(register):
        register("dense", "flowplat_other.plugin:nothing", summary="the name of a network of ring")

    @hookimpl
    def register_metrics(register):
        register("same", "flowplat_other.plugin:nothing", summary="takes no options")

    def nothing():
        return None
    """


def test_a_component_of_another_plugin(install: Install) -> None:
    install("other", OTHER)
    config = resolve("ring", ["eval.metrics=[other/same]", "network=ring/dense"])
    assert plain(config)["eval"]["metrics"] == [{"name": "other/same"}]


@pytest.mark.parametrize("override", ["data=other/same", "eval.metrics=[other/same]"])
def test_a_name_is_ambiguous_whichever_key_brings_the_other_plugin(override: str, install: Install) -> None:
    install("other", OTHER)
    (line,) = faults("ring", [override, "network=dense"])
    assert line == "network (command line): 'dense' is ambiguous; write ring/dense or other/dense"


def test_the_short_names_of_a_preset_are_its_own_plugins(install: Install) -> None:
    install("other", OTHER)
    config = resolve("ring", ["eval.metrics=[other/same, radius]"])  # whose networks are called as ring's are
    assert plain(config)["network"] == {"name": "ring/dense", "width": 24}
    assert resolve("other", preset="ring/ring").network.component.full_name == "ring/dense"
    (line,) = faults("ring", ["eval.metrics=[other/same]", "network.widht=3"])
    assert line == "network.widht (command line): no such key; did you mean network.width?"


# faults


def test_every_fault_is_told_at_once_with_its_key_and_origin(tmp_path: Path) -> None:
    text = "train: {batch_size: 0, warmup: many}\nnetwork: {widht: 3, width: 0}\ncolour: red"
    file = write(tmp_path / "my.yaml", text)
    wrong = [
        "train.lrr=1",
        "train.steps=-3",
        "sample.solver=eulr",
        "engine.workers=tpu",
        "eval.metrics=[radius, nope]",
    ]
    found = faults("ring", wrong, file=file)
    in_file = ("train.batch_size", "train.warmup", "network.widht", "network.width", "colour")
    typed = ("train.lrr", "train.steps", "sample.solver", "engine.workers", "eval.metrics.1")
    expected = [f"{key} ({file})" for key in in_file] + [f"{key} (command line)" for key in typed]
    assert sorted(line.split(":")[0] for line in found) == sorted(expected)


def test_a_fault_of_a_preset_names_the_preset(ring: Path) -> None:
    write(ring / "ring.yaml", "data: ring\nnetwork: dense\ntrain: {stepps: 1}")
    (line,) = faults("ring")
    assert line == "train.stepps (preset ring): no such key; did you mean train.steps?"


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("train.lrr=1", "train.lr"),
        ("train.step=1", "train.steps"),
        ("lr=1", "train.lr"),
        ("batch_size=1", "train.batch_size"),
        ("solver=heun", "sample.solver"),
        ("metrics=[radius]", "eval.metrics"),
        ("network.widht=5", "network.width"),
        ("data.cuont=5", "data.count"),
        ("sample.solvr=heun", "sample.solver"),
        ("sead=1", "seed"),
    ],
)
def test_did_you_mean(override: str, meant: str) -> None:
    (line,) = faults("ring", [override])
    assert line == f"{override.split('=')[0]} (command line): no such key; did you mean {meant}?"


def test_a_key_found_elsewhere_is_meant_before_one_that_only_looks_alike() -> None:
    (line,) = faults("ring", ["steps=5"])
    assert line == "steps (command line): no such key; did you mean train.steps?"


def test_an_unknown_key_like_no_other_lists_what_there_is() -> None:
    (line,) = faults("ring", ["data.zzz=5"])
    assert line == "data.zzz (command line): no such key; there are count, split, conditional"
    (line,) = faults("ring", ["coupling.zzz=5"])
    assert line == "coupling.zzz (command line): no such key; it takes no options"


def test_a_required_option_that_is_missing() -> None:
    (line,) = faults("ring", ["data=points"])
    assert line == "data.path (command line): is missing"


def test_an_option_that_went_with_its_component_is_blamed_on_who_took_it_away(install: Install, tmp_path: Path) -> None:
    code = """
        from pydantic import BaseModel
        from flowcore.plugin import hookimpl

        class Config(BaseModel):
            path: str

        @hookimpl
        def register_data(register):
            for name in ("one", "two"):
                register(name, "flowplat_wind.plugin:Config", config="flowplat_wind.plugin:Config", summary="a file")
        """
    install("wind", code)
    file = write(tmp_path / "my.yaml", "data: {name: wind/one, path: my.csv}")
    assert plain(resolve("ring", file=file))["data"] == {"name": "wind/one", "path": "my.csv"}
    (line,) = faults("ring", ["data=wind/two"], file=file)
    assert line == "data.path (command line): is missing"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=-3", "should be greater than or equal to 0, not -3"),
        ("train.ema=1", "should be less than 1, not 1"),
        ("train=5", "should be a valid dictionary"),
        ("train.steps.more=5", "should be a valid integer, not {'more': 5}"),
        ("predicts=speed", "should be 'velocity', 'x1', 'noise', 'score' or 'edm', not 'speed'"),
        ("eval.steps=[]", "should have at least 1 item"),
        ("eval.steps=[1, 0]", "should be greater than or equal to 1, not 0"),
        ("eval.metrics=radius", "should be a"),
    ],
)
def test_a_bad_value_is_told_with_its_bound(override: str, message: str) -> None:
    (line,) = faults("ring", [override])
    assert message in line


@pytest.mark.parametrize("override", ["nonsense", "=5", "a..b=5", ".a=5", "a.=5", "--train.steps"])
def test_an_override_is_key_equals_value(override: str) -> None:
    with pytest.raises(UsageError, match="write key=value") as caught:
        resolve("ring", [override])
    assert repr(override) in str(caught.value)


def test_an_override_whose_value_is_not_yaml() -> None:
    with pytest.raises(UsageError, match=r"the value of eval\.steps, line 1, column \d+: "):
        resolve("ring", ["eval.steps=[1"])


def test_a_malformed_override_hides_no_other_fault() -> None:
    with pytest.raises(UsageError) as caught:
        resolve("ring", ["nonsense", "train.lrr=1", "eval.steps=[1"])
    for told in ("nonsense", "train.lrr", "eval.steps"):
        assert told in str(caught.value)


@pytest.mark.parametrize("override", ["plugin=other", "preset=halves", "preset=ring"])
def test_what_the_command_line_says_elsewhere_is_no_override(override: str) -> None:
    with pytest.raises(UsageError, match=override.split("=")[0]):
        resolve("ring", [override])


def test_a_number_is_a_wish_too() -> None:
    assert resolve("ring", ["sample.condition=3"]).sample.condition == "3"


# files


def test_a_file_of_another_plugin(tmp_path: Path) -> None:
    file = write(tmp_path / "my.yaml", "plugin: molecules")
    with pytest.raises(UsageError, match=r"my\.yaml is a config of plugin 'molecules', not of 'ring'"):
        resolve("ring", file=file)


@pytest.mark.parametrize("text", ["", "- a\n- b", "5", "just words", "# a comment"])
def test_a_file_that_holds_no_settings(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"my\.yaml holds no settings"):
        resolve("ring", file=write(tmp_path / "my.yaml", text))


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2", "seed: [1", "seed: !!int 1"])
def test_a_file_that_is_not_plain_yaml(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"my\.yaml, line \d"):
        resolve("ring", file=write(tmp_path / "my.yaml", text))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"seed: \xff\xfe")
    for name in ("missing.yaml", "bytes.yaml", "."):
        with pytest.raises(InputError, match=str(tmp_path / name)):
            resolve("ring", file=tmp_path / name)


@pytest.mark.parametrize("text", ["preset: 5", "preset: [ring]", "preset: {name: ring}", "preset: true"])
def test_a_file_whose_preset_is_no_name(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="preset"):
        resolve("ring", file=write(tmp_path / "my.yaml", text))


# presets


@pytest.mark.parametrize(
    ("name", "hint"), [("halfs", "did you mean 'halves'"), ("zzz", "there are halves, straight, ring")]
)
def test_an_unknown_preset(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        resolve("ring", preset=name)


def test_a_plugin_without_presets_runs_from_a_complete_file(install: Install, tmp_path: Path) -> None:
    file = write(tmp_path / "my.yaml", "data: ring/ring\nnetwork: ring/dense\n")
    install("bare", BARE)
    with pytest.raises(UsageError, match="plugin 'bare' has no preset"):
        resolve("bare")
    config = resolve("bare", file=file)
    assert config.preset is None
    assert config.data.component.full_name == "ring/ring"


def test_a_preset_of_another_plugin_can_be_found_again(install: Install, tmp_path: Path) -> None:
    install("bare", BARE)
    config = resolve("bare", preset="ring/halves")
    file = write(tmp_path / "config.yaml", to_yaml(config))
    assert plain(resolve("bare", file=file)) == plain(config)
    partial = write(tmp_path / "partial.yaml", f"preset: {config.preset}\nseed: 0\n")
    assert plain(resolve("bare", file=partial)) == plain(config)


# resolved configs


@pytest.mark.parametrize(
    ("preset", "overrides", "smoke"),
    [
        (None, [], False),
        ("halves", ["sample.condition='3'", "sample.guidance=[{name: classifier_free, interval: [0.1, 0.9]}]"], False),
        ("ring", ["network=affine", "train.lr=1e-05", "times=logit_normal", "train.clip=null"], True),
        (None, ["data={name: points, path: 'a: b'}", "data.count=8"], False),
    ],
)
def test_a_resolved_config_resolves_to_itself(
    preset: str | None, overrides: list[str], smoke: bool, tmp_path: Path
) -> None:
    config = resolve("ring", overrides, preset=preset, smoke=smoke)
    again = resolve("ring", file=write(tmp_path / "config.yaml", to_yaml(config)))
    assert plain(again) == plain(config)
    assert to_yaml(again) == to_yaml(config)


def test_a_resolved_config_leaves_nothing_to_defaults() -> None:
    config = resolve("ring")
    written = parse(to_yaml(config), "written")
    for name, info in type(config).model_fields.items():
        assert name in written
        if hasattr(info.annotation, "model_fields"):
            assert set(written[name]) == set(info.annotation.model_fields)
    assert written["network"] == {"name": "ring/dense", "width": 24}
    assert written["sample"]["solver"]["name"] == "core/euler"
    assert "stratified" in written["times"]


def test_a_preset_that_changes_later_does_not_change_a_resolved_config(ring: Path, tmp_path: Path) -> None:
    config = resolve("ring")
    file = write(tmp_path / "config.yaml", to_yaml(config))
    lines = file.read_text().splitlines()
    older = [line for line in lines if "drop_condition" not in line]  # written before there was such a setting
    assert len(older) == len(lines) - 1
    write(file, "\n".join(older))
    write(ring / "ring.yaml", "data: ring\nnetwork: dense\ntrain: {drop_condition: 0.5}")
    assert plain(resolve("ring", file=file)) == plain(config)


# settings that not every objective and sampler uses

UNUSED = {
    "path": "linear", "coupling": "exact", "times": "uniform", "loss": "l2", "predicts": "noise",
    "sample.solver": "heun", "sample.guidance": "[{name: classifier_free}]",
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), UNUSED.items())
def test_a_setting_that_nothing_uses_is_refused_with_its_origin(
    key: str, value: str, normal: Path, tmp_path: Path
) -> None:
    nothing = "[]" if key == "sample.guidance" else "null"
    told = (
        f"is used by neither objective normal/likelihood nor sampler normal/drawn; leave it out, or say {key}={nothing}"
    )
    assert set(UNUSED) == set(USED)
    assert faults("normal", [f"{key}={value}"]) == [f"{key} (command line): {told}"]
    parent, _, last = key.rpartition(".")
    text = f"{parent}: {{{last}: {value}}}" if parent else f"{key}: {value}"
    file = write(tmp_path / "my.yaml", text)
    assert faults("normal", file=file) == [f"{key} ({file}): {told}"]
    assert plain(resolve("normal", [f"{key}={nothing}"], file=file)) == plain(resolve("normal"))


def test_an_option_of_what_nothing_uses_is_refused_too(normal: Path) -> None:
    (line,) = faults("normal", ["times.stratified=true"])
    assert line.startswith("times (command line): is used by neither ")
    lines = faults("normal", ["path=zzz", "train.stepps=3"])
    assert [line.split()[0] for line in lines] == ["path", "train.stepps"]  # what else is wrong is told with it


def test_what_one_of_the_two_uses_is_there(normal: Path) -> None:
    config = resolve("normal", ["objective=straight", "path=cosine"])
    assert config.path is not None
    assert (config.path.component.name, config.times.component.name) == ("cosine", "uniform")  # type: ignore[union-attr]
    assert (config.coupling, config.loss, config.predicts, config.sample.solver) == (None, None, None, None)
    config = resolve("normal", ["sample.sampler=flow"])
    assert (config.predicts, config.path is None, config.times) == ("velocity", False, None)
    (line,) = faults("normal", ["objective=straight", "loss=l2"])
    assert line.startswith("loss (command line): is used by neither objective normal/straight nor sampler normal/drawn")


def test_what_was_set_for_another_objective_is_passed_over(normal: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "straight.yaml", "objective: straight\ntimes: logit_normal\n")
    assert resolve("normal", file=file).times is not None
    config = resolve("normal", ["objective=likelihood"], file=file)
    assert (config.times, config.path) == (None, None)
    assert plain(config) == plain(resolve("normal", ["objective=likelihood"]))
    (line,) = faults("normal", ["objective=likelihood", "times=uniform"], file=file)
    assert line.startswith("times (command line): is used by neither ")
    file = write(tmp_path / "both.yaml", "objective: likelihood\ntimes: logit_normal\n")
    (line,) = faults("normal", file=file)
    assert line.startswith(f"times ({file}): is used by neither ")


def test_the_standard_deviation_of_the_data_is_for_edm_alone(normal: Path, tmp_path: Path) -> None:
    assert resolve("ring", ["predicts=edm", "sigma_data=2"]).sigma_data == 2
    told = "is used by predicts=edm alone; leave it out, or say sigma_data=null"
    assert faults("ring", ["sigma_data=2"]) == [f"sigma_data (command line): {told}"]
    assert faults("normal", ["sigma_data=2"]) == [f"sigma_data (command line): {told}"]
    (line,) = faults("ring", ["predicts=edm", "sigma_data=0"])
    assert line.startswith("sigma_data (command line): should be greater than 0")
    file = write(tmp_path / "edm.yaml", "predicts: edm\nsigma_data: 2.0\n")
    assert resolve("ring", file=file).sigma_data == 2
    assert resolve("ring", ["predicts=x1"], file=file).sigma_data is None  # it was for what predicts was before
    write(file, "predicts: x1\nsigma_data: 2.0\n")
    assert faults("ring", file=file) == [f"sigma_data ({file}): {told}"]


@pytest.mark.parametrize("key", ["path", "coupling", "times", "loss", "sample.solver", "predicts"])
def test_null_where_something_is_used_is_a_fault(key: str) -> None:
    (line,) = faults("ring", [f"{key}=null"])
    assert line.startswith(f"{key} (command line): should ")


@pytest.mark.parametrize("key", ["objective", "sample.sampler"])
@pytest.mark.parametrize("value", ["null", "5", "[matching]", "{name: 5}"])
def test_what_names_no_objective_or_sampler_is_a_fault(key: str, value: str) -> None:
    (line,) = faults("ring", [f"{key}={value}"])
    assert line.startswith(f"{key} (command line): should name a")


def test_an_objective_of_another_plugin(normal: Path) -> None:
    config = resolve("ring", ["objective=normal/likelihood", "objective.weight=2", "sample.sampler=normal/drawn"])
    assert plain(config)["objective"] == {"name": "normal/likelihood", "weight": 2.0}
    assert config.path is None
    (line,) = faults("ring", ["objective={name: normal/likelihood, wieght: 2}"])
    assert line == "objective.wieght (command line): no such key; did you mean objective.weight?"
