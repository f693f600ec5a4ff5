"""Whether a plugin keeps what its components promise: every check of the kit on every component, and short runs."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from flowcore.errors import FlowError, MissingPackageError
from flowcore.plugin import testing
from flowcore.plugin.contracts import Data
from flowcore.plugin.testing import data as data_checks
from flowcore.plugin.testing import networks
from flowcore.plugin.testing.offline import no_network
from flowcore.plugin.testing.trees import all_continuous, must, same
from flowplat import discovery, isolated
from flowplat.bench import Bench
from flowplat.components import Component, one_line
from flowplat.config import plain, resolve, to_yaml
from flowplat.experiment import Experiment
from flowplat.settings import RunConfig
from flowplat.trial import HERE, SMOKE, Trial

WAY_OUT = "register what can be tried, or name it in a preset"


@dataclass(frozen=True)
class Check:
    """One check: of a component, whose ``kind`` that is, of the plugin itself, or of a run. Calling it returns nothing,
    or raises ``AssertionError`` with one line, or ``MissingPackageError`` where an optional package would be needed."""

    kind: str
    about: str
    title: str
    body: Callable[[], Any]

    @property
    def id(self) -> str:
        """What it is called: "network/mlp: it depends on t"."""
        return f"{self.about}: {self.title}"

    def __call__(self) -> None:
        threads = torch.get_num_threads()
        try:
            with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):
                self.body()
        except (KeyboardInterrupt, MissingPackageError):
            raise
        except AssertionError as error:
            raise AssertionError(" ".join(str(error).split()) or "an assertion of the plugin's own fails") from error
        except BaseException as error:  # a plugin may call sys.exit()
            raise AssertionError(one_line(error)) from error
        finally:
            torch.set_num_threads(threads)


def checks(plugin: str, fast: bool = False) -> list[Check]:
    """All checks of an installed plugin; without the runs if ``fast``. A registered kind that none of them tries is a
    check that fails. Raises ``PluginError`` where the plugin cannot be loaded."""
    bench = Bench(plugin)
    with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):
        found = [*_plugin(bench)]
        for component in bench.components:
            found += _component(bench, component)
    tried = {check.kind for check in found}
    for kind in dict.fromkeys(component.kind for component in bench.components):
        if kind not in tried:
            found.append(_failing(kind, kind, "at least one check", f"nothing of this kind was tried; {WAY_OUT}"))
    return found if fast else [*found, *_runs(bench)]


def _failing(kind: str, about: str, title: str, line: str) -> Check:
    return Check(kind, about, title, partial(must, False, line))


def _missing(error: MissingPackageError) -> None:
    raise error


def _plugin(bench: Bench) -> Iterator[Check]:
    entry = discovery.find(bench.plugin).entry_point.module
    modules = {entry: None}
    for component in bench.components:
        for reference in (component.reference, component.config):
            if reference is not None and component.kind != "preset":
                modules[reference.partition(":")[0]] = None
    yield Check("plugin", "plugin", "its entry module imports nothing heavy", partial(isolated.imports_little, entry))
    title = "importing it has no side effects"
    yield Check("plugin", "plugin", title, partial(isolated.leaves_nothing_behind, list(modules)))
    for component in bench.components:
        about = f"{component.kind}/{component.name}"
        yield Check("plugin", about, "its reference loads", partial(_loads, component))


def _loads(component: Component) -> None:
    if component.kind == "preset":
        component.file().read_text(encoding="utf-8")
    elif component.kind == "command":
        component.load()
    else:
        component.load()
        component.model()


def _component(bench: Bench, component: Component) -> Iterator[Check]:
    """The checks of one component; one that fails where it cannot be built."""
    kind, about = component.kind, f"{component.kind}/{component.name}"

    def of_kit(functions: testing.Checks, *arguments: Any) -> Iterator[Check]:
        for function in functions:
            yield Check(kind, about, testing.title(function), partial(function, *arguments))

    try:
        match kind:
            case "preset":
                yield from _preset(bench, component, about)
            case "command":
                yield Check(kind, about, "it is a command that says what it does", partial(_command, component))
            case "task":
                for function in testing.CHECKS[kind]:
                    yield Check(kind, about, testing.title(function), partial(_task, bench, component, function))
            case "data":
                make = partial(component.build, bench.options(component))
                yield from of_kit(testing.CHECKS[kind], make)
                if hasattr(make(), "read_back"):
                    yield from of_kit((data_checks.written_samples_read_back,), make)
                if hasattr(make(), "augment"):
                    yield from of_kit((data_checks.noise_is_augmented_as_its_samples_are,), make)
                if hasattr(make(), "facts"):
                    yield Check(kind, about, "its facts say all", partial(_facts, component, bench))
            case "network" if config := _of_its_own(bench, component):
                experiment = Experiment(config)
                objective, sampler = (
                    partial(config.objective.build, experiment.parts),
                    partial(config.sample.sampler.build, experiment.steered()),
                )
                yield from of_kit(testing.CHECKS["objective"], objective, experiment.network(), experiment.data)
                yield from of_kit(testing.CHECKS["sampler"], sampler, experiment.network(), experiment.data)
            case "network":
                options, data, network = bench.fitting(component, lambda o, data: component.build(o, data.spec()))
                must(isinstance(network, torch.nn.Module), f"it built {type(network).__name__}, no torch.nn.Module")
                arguments = (lambda: component.build(options, data.spec())), data
                yield from of_kit((*testing.CHECKS[kind], *_further(network, data)), *arguments)
            case "guidance":
                yield from of_kit(testing.CHECKS[kind], *_guidance(bench, component))
            case "metric":
                options, data, _ = bench.fitting(component, lambda options, data: None)
                configs = [config for config, _ in bench.naming(component)]
                trained = bench.untrained(configs[0]) if configs else None
                yield from of_kit(testing.CHECKS[kind], lambda: partial(component.build, options), data, trained)
            case "objective" | "sampler":
                yield from of_kit(testing.CHECKS[kind], *_run_part(bench, component))
            case _:
                make = partial(component.build, bench.options(component))
                make()
                yield from of_kit(testing.CHECKS[kind], make)
    except KeyboardInterrupt:
        raise
    except MissingPackageError as error:
        yield Check(kind, about, "it can be built", partial(_missing, error))
    except BaseException as error:  # a plugin's own, of any kind
        line = str(error) if isinstance(error, AssertionError) else one_line(error)
        yield _failing(kind, about, "it can be built", line)


def _of_its_own(bench: Bench, component: Component) -> RunConfig | None:
    """A preset in which a network serves an objective of the plugin's, where no preset has it match a path: what it
    takes and returns is between these two then, and the network is tried through the objective and the sampler."""
    configs = [config for config, _ in bench.naming(component)]
    matched = [config for config in configs if config.objective.component.full_name == "core/matching"]
    return configs[0] if configs and not matched else None


def _further(network: torch.nn.Module, data: Data) -> Iterator[Callable[..., None]]:
    """The checks of a network that depend on what it is for."""
    spec = data.spec()
    if all_continuous(spec.state):
        yield networks.it_depends_on_t
    if spec.condition is not None:
        yield networks.it_depends_on_the_condition
    if getattr(network, "symmetries", ()):
        yield networks.it_is_symmetric_as_it_states


def _guidance(bench: Bench, component: Component) -> tuple[Any, Any, Data]:
    options, data, _ = bench.fitting(component, lambda options, data: component.build(options, data.spec()))
    given = {name: getattr(options, name) for name in type(options).model_fields}
    try:
        off = component.model().model_validate({**given, **component.off})
    except ValueError as error:
        raise AssertionError(f"its off={dict(component.off)} are no options of it: {one_line(error)}") from error
    return partial(component.build, off, data.spec()), partial(component.build, options, data.spec()), data


def _run_part(bench: Bench, component: Component) -> tuple[Any, torch.nn.Module, Data]:
    """An objective or a sampler, the network and the data set of the first preset that names it."""
    for config, options in bench.naming(component):
        experiment = Experiment(config)
        parts = experiment.parts if component.kind == "objective" else experiment.steered()
        return partial(component.build, options, parts), experiment.network(), experiment.data
    raise AssertionError(f"no preset names it, and it needs a network; {WAY_OUT}")


def _preset(bench: Bench, component: Component, about: str) -> Iterator[Check]:
    name = component.name

    def reads_back() -> None:
        config = resolve(bench.plugin, (), name)
        with TemporaryDirectory() as folder:
            file = Path(folder) / "config.yaml"
            file.write_text(to_yaml(config), encoding="utf-8")
            again = resolve(bench.plugin, (), file=file)
        differ = [key for key in plain(config) if plain(config)[key] != plain(again)[key]]
        must(not differ, f"shown and read again its {differ[:1]} is another; an option has to be plain YAML")

    def fits() -> None:
        with no_network():
            experiment = Experiment(resolve(bench.plugin, HERE, name, smoke=True))
            experiment.rehearse(experiment.network())

    yield Check("preset", about, "it resolves", partial(resolve, bench.plugin, (), name))
    yield Check("preset", about, "it reads back as it is shown", reads_back)
    yield Check("preset", about, "its parts fit each other", fits)


def _facts(component: Component, bench: Bench) -> None:
    """Built from its facts alone a data set has the spec and the conditions that it has with its files."""
    options = bench.options(component)
    made = component.build(options)
    facts = json.loads(json.dumps(made.facts(), allow_nan=False))
    again = component.build(options, facts)
    must(again.spec() == made.spec(), f"built from its facts its spec is {again.spec()}, with its files {made.spec()}")
    must(same(again.condition(4, None), made.condition(4, None)), "built from its facts it has other conditions")


def _task(bench: Bench, component: Component, function: Callable[..., None]) -> None:
    """A task on the models of the presets, of which one has to be to its liking."""

    def make() -> Callable[..., Any]:
        return partial(component.build, bench.options(component))

    if not component.model_needed:
        function(make, None)
        return
    must(bool(bench.configs), f"there is no preset to make a model from; {WAY_OUT}")
    for number, config in enumerate(bench.configs, 1):
        try:
            function(make, bench.untrained(config))
            return
        except AssertionError:
            if number == len(bench.configs):
                raise


def _command(component: Component) -> None:
    import click

    command = component.load()
    must(isinstance(command, click.Command), f"it is {type(command).__name__}; it should be a click.Command")
    must(bool(command.help or command.short_help), "its help is empty; say in a docstring what it does")


def _runs(bench: Bench) -> Iterator[Check]:
    """Short runs of the default preset, and of one called smoke."""
    wanted = [preset.name for preset in bench.presets[:1]]
    wanted += [preset.name for preset in bench.presets[1:] if preset.name == SMOKE]
    for name in wanted:
        about = f"run/{name}"
        try:
            trial = Trial(bench.plugin, name)
        except FlowError as error:
            yield _failing("run", about, "it can be run", one_line(error))
            continue
        functions = [trial.takes_under_a_minute, trial.is_better_than_untrained, trial.goes_on_where_it_stopped]
        if name == wanted[0]:
            functions.append(trial.samples_alike_where_it_is_loaded)  # of one run: it takes a process of its own
        for function in functions:
            yield Check("run", about, f"it {testing.title(function)}", function)
