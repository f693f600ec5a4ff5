"""testing: the kit passes what keeps its promises, and each check fails, in one line, where its promise is broken."""

import contextlib
import io
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowcore import couplings, guidance, losses, objectives, paths, samplers, solvers, times
from flowcore.data import Batch, Rows
from flowcore.errors import InputError, UsageError
from flowcore.plugin import testing
from flowcore.plugin.contracts import Figure, Leaf, Parts, Spec
from flowcore.plugin.testing import data as data_checks
from flowcore.plugin.testing import guidance as guidance_checks
from flowcore.plugin.testing import networks, uses
from flowcore.plugin.testing import paths as path_checks
from flowcore.plugin.testing import solvers as solver_checks
from flowcore.plugin.testing.offline import no_network
from flowcore.plugin.testing.trees import fault
from flowcore.seeds import generator

PNG = b"\x89PNG\r\n\x1a\n"


class Clouds:
    """Four points in space a sample, which of two clouds they are of as its condition."""

    spec_ = Spec(Leaf((4, 3)), Leaf((), "int64", "class", 2), null=2)

    def spec(self) -> Spec:
        return self.spec_

    def train(self) -> Rows:
        cloud = torch.arange(32) % 2
        noise = torch.randn(32, 4, 3, generator=generator(0, "clouds"))
        return Rows(noise + cloud[:, None, None], cloud, transform=self.shaken)

    def shaken(self, batch: Batch, draws: torch.Generator) -> Batch:
        return replace(batch, x1=batch.x1 + 0.01 * torch.randn(batch.x1.shape, generator=draws))

    def augment(self, batch: Batch, draws: torch.Generator) -> Batch:
        sign = torch.randint(2, (len(batch), 1, 1), generator=draws) * 2 - 1
        return replace(batch, x1=sign * batch.x1, x0=sign * batch.x0)

    val = train

    def tiny(self) -> "Clouds":
        return self

    def fingerprint(self) -> str:
        return "0123456789abcdef"

    def condition(self, count: int, wanted: str | None) -> Tensor:
        if wanted is not None:
            raise UsageError("there are clouds 0 and 1")
        return torch.arange(count) % 2

    def write(self, samples: Batch, folder: Path) -> None:
        buffer = io.BytesIO()
        torch.save(samples.x1, buffer)
        (folder / "clouds.pt").write_bytes(buffer.getvalue())

    def read_back(self, folder: Path) -> Batch:
        return Batch(torch.load(folder / "clouds.pt", weights_only=True))

    def show(self, samples: Batch) -> bytes:
        return PNG


class Dense(nn.Module):
    """Each point by itself, told t and the cloud: symmetric under permutations."""

    symmetries: tuple[str, ...] = ("permutation",)

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.told = nn.Linear(4, 3), nn.Embedding(3, 3)

    def forward(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        time = t[:, None, None].expand(*x.shape[:-1], 1)
        return torch.tanh(self.layer(torch.cat([x, time], -1)) + self.told(condition)[:, None])


class Gravity(nn.Module):
    """Each point is drawn to the others: E(3), and permutations."""

    symmetries = ("rotation", "translation", "permutation")

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        arrows = x[:, None] - x[:, :, None]
        pull = torch.exp(-arrows.square().sum(-1, keepdim=True)) * self.weight[condition][:, None, None, None]
        return (pull * arrows).sum(2) * (1 + t[:, None, None])


def line(check: Callable[..., None], *arguments: Any) -> str:
    """What a check says of something broken: one line."""
    with pytest.raises(AssertionError) as caught:
        check(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_core_keeps_its_own_promises() -> None:
    made: list[tuple[str, Callable[[], Any]]] = []
    made += [("path", getattr(paths, name)) for name in ("linear", "polynomial", "cosine", "linear_vp", "vp", "ve")]
    made += [("coupling", getattr(couplings, n)) for n in ("independent", "exact", "entropic", "unbalanced", "gibbs")]
    made += [("times", getattr(times, n)) for n in ("uniform", "logit_normal", "u_shaped", "mode", "cosmap")]
    made += [("times", times.log_normal_noise), ("loss", losses.l2), ("loss", losses.pseudo_huber)]
    made += [("solver", method) for method in solvers.METHODS.values()]
    ran = [check(make) for kind, make in made for check in testing.CHECKS[kind]]  # type: ignore[func-returns-value]
    assert len(ran) == 6 * 5 + 5 * 3 + 6 * 3 + 2 * 2 + 8 * 3


def test_a_data_set_and_two_networks_that_are_right_pass() -> None:
    more = (data_checks.written_samples_read_back, data_checks.noise_is_augmented_as_its_samples_are)
    for check in (*testing.CHECKS["data"], *more):
        check(Clouds)
    further = (networks.it_depends_on_t, networks.it_depends_on_the_condition, networks.it_is_symmetric_as_it_states)
    for network in (Dense, Gravity):
        for check in (*testing.CHECKS["network"], *further):
            check(network, Clouds())


class Heavier(Clouds):
    def tiny(self) -> "Clouds":
        start = time.process_time()
        while time.process_time() < start + 1:
            pass
        return self


class Random(Clouds):
    def train(self) -> Rows:
        return Rows(torch.randn(32, 4, 3), torch.arange(32) % 2)

    val = train


class Online(Clouds):
    """Asks in vain, and says nothing of it."""

    def tiny(self) -> "Clouds":
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", 9), timeout=0.1)
        return self


class Global(Clouds):
    def shaken(self, batch: Batch, draws: torch.Generator) -> Batch:
        return replace(batch, x1=batch.x1 + torch.randn(batch.x1.shape))


class Flat(Clouds):
    spec_ = Spec(Leaf((3, 4)), Leaf((), "int64", "class", 2), null=2)


class Double(Clouds):
    spec_ = Spec(Leaf((4, 3), "float64"), Leaf((), "int64", "class", 2), null=2)


class Gaps(Clouds):
    def shaken(self, batch: Batch, draws: torch.Generator) -> Batch:
        return replace(batch, x1=batch.x1.masked_fill(batch.x1 > 1, torch.nan))


class Third(Clouds):
    spec_ = Spec(Leaf((4, 3)), Leaf((), "int64", "class", 1), null=1)


class Untold(Clouds):
    spec_ = Spec(Leaf((4, 3)))


class Empty(Clouds):
    def val(self) -> Rows:
        return Rows(torch.zeros(0, 4, 3), torch.zeros(0, dtype=torch.long))


class Count(Clouds):
    number = 0

    def fingerprint(self) -> str:
        Count.number += 1
        return f"{Count.number:08x}"


class Words(Clouds):
    def fingerprint(self) -> str:
        return "the clouds of 2024"


class Short(Clouds):
    def condition(self, count: int, wanted: str | None) -> Tensor:
        return torch.arange(count - 1) % 2


class Null(Clouds):
    spec_ = Spec(Leaf((4, 3)), Leaf((), "int64", "class", 2), null=[1, 2, 3])


class Careless(Clouds):
    def condition(self, count: int, wanted: str | None) -> Tensor:
        return torch.full((count,), int(wanted)) if wanted else torch.arange(count) % 2


class Silent(Clouds):
    def write(self, samples: Batch, folder: Path) -> None:
        (folder / "nothing").touch()


class Abroad(Clouds):
    def write(self, samples: Batch, folder: Path) -> None:
        super().write(samples, folder)
        (folder.parent / "index.html").write_text("here")


class Here(Clouds):
    def write(self, samples: Batch, folder: Path) -> None:
        super().write(samples, folder)
        Path("log.txt").write_text("here")


class Rounded(Clouds):
    def read_back(self, folder: Path) -> Batch:
        return Batch(super().read_back(folder).x1.round())


class Lone(Clouds):
    def augment(self, batch: Batch, draws: torch.Generator) -> Batch:
        return replace(super().augment(batch, draws), x0=batch.x0)


class Fewer(Clouds):
    def augment(self, batch: Batch, draws: torch.Generator) -> Batch:
        return replace(batch, x1=batch.x1[:, :2], x0=batch.x0[:, :2])


class Vector(Clouds):
    def show(self, samples: Batch) -> bytes:
        return b"<svg>"


class Other(Clouds):
    def tiny(self) -> "Clouds":
        return Flat()


BROKEN_DATA = [
    (Online, data_checks.tiny_is_offline, "127.0.0.1"),
    (Heavier, data_checks.tiny_takes_under_a_second, "less than one"),
    (Random, data_checks.tiny_is_the_same_twice, "differs from one time to the next"),
    (Other, data_checks.tiny_has_the_same_spec, "should be that of the data set"),
    (Flat, data_checks.samples_are_as_the_spec_says, "(8, 4, 3) float32; the spec asks for (8, 3, 4) float32"),
    (Double, data_checks.samples_are_as_the_spec_says, "the spec asks for (8, 4, 3) float64"),
    (Gaps, data_checks.samples_are_as_the_spec_says, "not finite"),
    (Third, data_checks.samples_are_as_the_spec_says, "from 0 to 1; of 1 classes they are 0 to 0"),
    (Untold, data_checks.samples_are_as_the_spec_says, "spec().condition is None"),
    (Empty, data_checks.there_are_samples_to_train_on_and_to_hold_out, "val() is empty"),
    (Global, data_checks.a_batch_depends_on_its_rows_and_generator_alone, "global generator"),
    (Count, data_checks.its_fingerprint_is_a_hash_of_the_content, "depend on the samples alone"),
    (Words, data_checks.its_fingerprint_is_a_hash_of_the_content, "hex digest"),
    (Short, data_checks.conditions_fit_the_spec, "(4,) int64; the spec asks for (5,) int64"),
    (Null, data_checks.conditions_fit_the_spec, "null is [1, 2, 3]"),
    (Untold, data_checks.conditions_fit_the_spec, "it should be None"),
    (Careless, data_checks.any_wish_is_met_or_refused, "raised ValueError"),
    (Silent, data_checks.samples_are_written, "wrote no file"),
    (Abroad, data_checks.samples_are_written, "index.html"),
    (Here, data_checks.samples_are_written, "./log.txt"),
    (Rounded, data_checks.written_samples_read_back, "differ by"),
    (Lone, data_checks.noise_is_augmented_as_its_samples_are, "turn both alike"),
    (Fewer, data_checks.noise_is_augmented_as_its_samples_are, "keep shapes"),
    (Vector, data_checks.samples_are_shown, "no PNG"),
]


@pytest.mark.parametrize(("broken", "check", "words"), BROKEN_DATA, ids=lambda value: getattr(value, "__name__", ""))
def test_broken_data_are_told(broken: type[Clouds], check: Callable[..., None], words: str) -> None:
    assert words in line(check, broken)


def test_rows_of_a_ragged_batch_are_those_of_each_leaf() -> None:
    described = {"atoms": Leaf((3,)), "bonds": Leaf((), "int64", "token", 4)}
    state = {"atoms": torch.zeros(7, 3), "bonds": torch.arange(9) % 4}
    assert fault(described, state, {"atoms": 7, "bonds": 9}, "x1") == ""
    assert "x1.bonds is (9,) int64; the spec asks for (7,) int64" in fault(described, state, 7, "x1")
    assert "x1.atoms is (7, 3) float32" in fault(described, state, {"atoms": 8, "bonds": 9}, "x1")


def test_every_check_of_data_is_broken_once() -> None:
    more = {data_checks.written_samples_read_back, data_checks.noise_is_augmented_as_its_samples_are}
    known = {*data_checks.ALWAYS, *more}
    assert {check for _, check, _ in BROKEN_DATA} == known


def test_the_network_comes_back() -> None:
    with no_network() as asked:
        for call in (lambda: socket.getaddrinfo("localhost", 80), lambda: socket.create_connection(("::1", 80))):
            with pytest.raises(ConnectionError, match="without one"):
                call()
    assert asked == ["localhost", "::1"]
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())


class Wide(Dense):
    def forward(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return super().forward(x, t, condition)[..., :2]


class Mixing(Dense):
    def forward(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return super().forward(x, t, condition) - x.mean(0)


class Rooted(Dense):
    def forward(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return super().forward(x, t, condition) + (self.layer.weight * 0).square().sum().sqrt()


class Frozen(Dense):
    def __init__(self) -> None:
        super().__init__()
        self.still = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return super().forward(x, t, condition).detach() + 0 * self.still


class Timeless(Dense):
    def forward(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return super().forward(x, torch.ones_like(t), condition)


class Blind(Dense):
    def forward(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return super().forward(torch.ones_like(x), t, torch.zeros_like(condition))


class Deaf(Dense):
    def forward(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return super().forward(x, t, torch.zeros_like(condition))


class Noisy(Dense):
    def forward(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return super().forward(x, t, condition) + torch.rand(())


class InPlace(Dense):
    def forward(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return super().forward(x.mul_(1.5), t, condition)


class Secret(Dense):
    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.randn(3)  # neither a parameter nor a buffer

    def forward(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return super().forward(x, t, condition) + self.shift


class Turned(Dense):
    symmetries = ("rotation",)


class Moved(Dense):
    symmetries = ("translation",)


class Ordered(Dense):
    def forward(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return super().forward(x, t, condition).cumsum(1)


class Mirrored(Dense):
    symmetries = ("mirror",)


BROKEN_NETWORKS = [
    (Wide, networks.its_output_has_the_shape_of_the_state, "(6, 4, 2) float32 for a state of (6, 4, 3) float32"),
    (Mixing, networks.a_batch_of_one_is_a_row_of_a_larger_one, "mix no samples"),
    (Rooted, networks.its_gradients_are_finite, "gradient of ['layer.weight'] is not finite"),
    (Frozen, networks.its_gradients_are_finite, "nothing of it would learn"),
    (Timeless, networks.it_depends_on_t, "same answer at t = 0.1 and t = 0.9"),
    (Blind, networks.it_depends_on_x, "ignores x"),
    (Deaf, networks.it_depends_on_the_condition, "ignores the condition"),
    (Noisy, networks.it_draws_nothing_in_evaluation, "two answers"),
    (InPlace, networks.it_draws_nothing_in_evaluation, "it changed the x it was given"),
    (Secret, networks.its_weights_are_all_there_is, "register what is drawn as a buffer"),
    (Turned, networks.it_is_symmetric_as_it_states, "states rotation, and breaks it by"),
    (Moved, networks.it_is_symmetric_as_it_states, "states translation, and breaks it by"),
    (Ordered, networks.it_is_symmetric_as_it_states, "states permutation, and breaks it by"),
    (Mirrored, networks.it_is_symmetric_as_it_states, "a symmetry is permutation, rotation or translation"),
]


@pytest.mark.parametrize(
    ("broken", "check", "words"), BROKEN_NETWORKS, ids=lambda value: getattr(value, "__name__", "")
)
def test_broken_networks_are_told(broken: type[nn.Module], check: Callable[..., None], words: str) -> None:
    assert words in line(check, broken, Clouds())


def test_every_check_of_networks_is_broken_once() -> None:
    checks = {function for name, function in vars(networks).items() if name.startswith(("it_", "its_", "a_batch"))}
    assert {check for _, check, _ in BROKEN_NETWORKS} == checks


def test_a_symmetry_needs_room() -> None:
    class Points(Clouds):
        spec_ = Spec(Leaf((4,)))

        def train(self) -> Rows:
            return Rows(torch.randn(32, 4, generator=generator(0, "points")))

    class Linear(nn.Linear):
        symmetries = ("rotation",)

        def forward(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:  # type: ignore[override]
            return super().forward(x)

    assert "has no dimension for that" in line(networks.it_is_symmetric_as_it_states, lambda: Linear(4, 4), Points())


class Pushing(guidance.Guidance):
    """v + w, x + w: the identity at w = 0, if ``off`` is."""

    def __init__(self, velocity: float, state: float) -> None:
        self.by, self.shift = velocity, state

    def velocity(self, field: Any, x: Tensor, t: Tensor, dt: float) -> Tensor:
        return field.velocity(x, t) + self.by

    def state(self, field: Any, x: Tensor, t: Tensor, dt: float) -> Tensor:
        return x + self.shift * (dt == 0)


class Grabbing(Pushing):
    def state(self, field: Any, x: Tensor, t: Tensor, dt: float) -> Tensor:
        return x.add_(self.shift)


def test_guidance_is_off_where_it_says_so() -> None:
    def off() -> guidance.Guidance:
        return Pushing(0, 0)

    def make() -> guidance.Guidance:
        return Pushing(1, 1)

    for check in testing.CHECKS["guidance"]:
        check(off, make, Clouds())
        check(lambda: guidance.classifier_free(1.0), lambda: guidance.classifier_free(3.0), Clouds())
    first = guidance_checks.off_it_changes_nothing
    assert "at t = 0.1, it changes the velocity by" in line(first, lambda: Pushing(1e-3, 0), make, Clouds())
    assert "at t = 1, it changes the state by" in line(first, lambda: Pushing(0, 1e-3), make, Clouds())
    assert "changes the velocity" in line(first, lambda: guidance.classifier_free(0.0), make, Clouds())
    second = guidance_checks.what_it_returns_is_a_state
    assert "is not finite at t = 0.1" in line(second, off, lambda: Pushing(torch.nan, 0), Clouds())
    wide: Any = torch.ones(7, 6, 4, 3)
    assert "velocity() returned (7, 6, 4, 3) float32 for" in line(second, off, lambda: Pushing(wide, 0), Clouds())
    third = guidance_checks.it_leaves_its_arguments_alone
    assert "it changed the x it was given" in line(third, off, lambda: Grabbing(0, 1), Clouds())


def affine(**change: Any) -> Callable[[], paths.Affine]:
    return lambda: replace(paths.cosine(), **change)


def pairs(make: Callable[[Tensor, Tensor], couplings.Pairs]) -> Callable[[], couplings.Coupling]:
    return lambda: lambda x0, x1, condition, draws: make(x0, x1)


def drawn(make: Callable[[int, torch.Generator], Tensor]) -> Callable[[], Any]:
    return lambda: make


def measured(make: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], losses.Metric]:
    """A loss of the difference d, (B, n), and of the target."""
    return lambda: lambda p, t: make((p - t).flatten(1), t.flatten(1))


def stepping(make: Callable[..., Any]) -> Callable[[], Any]:
    return lambda: make


P, Q, R, S = path_checks, couplings.Pairs, torch.arange(32), solver_checks
BROKEN_PARTS: list[tuple[Callable[..., None], Callable[[], Any], str]] = [
    (P.it_begins_at_the_source_and_ends_at_the_data, affine(alpha=lambda t: t / 2), "alpha(1) is 0.5"),
    (P.it_begins_at_the_source_and_ends_at_the_data, affine(sigma=torch.ones_like), "sigma(1) is 1"),
    (P.it_begins_at_the_source_and_ends_at_the_data, affine(alpha=torch.ones_like), "alpha(0) is 1"),
    (P.its_slopes_are_the_derivatives, affine(dalpha=torch.ones_like), "dalpha is"),
    (P.its_slopes_are_the_derivatives, affine(dsigma=torch.ones_like), "dsigma is"),
    (P.noise_gives_way_to_data_all_along, affine(dsigma=lambda t: 9 * torch.ones_like(t)), "positive"),
    (P.noise_gives_way_to_data_all_along, affine(inverse=lambda a, s: a), "give t back"),
    (P.its_target_is_the_velocity, affine(dalpha=torch.ones_like), "derivative of x_t"),
    (P.its_target_is_the_velocity, affine(dalpha=lambda t: t * torch.nan), "away"),
    (P.its_source_is_drawn_from_the_generator, affine(source=lambda like, g: torch.randn(3)), "(3,) float32"),
    (P.its_source_is_drawn_from_the_generator, affine(source=lambda like, g: torch.randn_like(like)), "same"),
    (P.its_pairs_are_of_the_batch, pairs(lambda x0, x1: Q(x0, x1 + 1)), "none of the batch"),
    (P.its_pairs_are_of_the_batch, pairs(lambda x0, x1: Q(x0, x1.flip(0))), "gives no index"),
    (P.its_pairs_are_of_the_batch, pairs(lambda x0, x1: Q(x0[1:], x1)), "one x0 for each x1"),
    (P.its_pairs_are_of_the_batch, pairs(lambda x0, x1: Q(x0, x1.flip(0), index=(R, R))), "index does not say"),
    (P.its_weights_are_none_or_positive, pairs(lambda x0, x1: Q(x0, x1, x0[:, 0])), "below 0"),
    (P.its_weights_are_none_or_positive, pairs(lambda x0, x1: Q(x0, x1, x0)), "one for each"),
    (P.it_draws_from_the_generator, pairs(lambda x0, x1: Q(torch.randn_like(x0), x1)), "draw from it alone"),
    (P.its_draws_are_times, drawn(lambda n, g: torch.full((n,), 1.5)), "belong in [0, 1]"),
    (P.its_draws_are_times, drawn(lambda n, g: torch.zeros(n, 1)), "(1000, 1)"),
    (P.its_draws_are_times, drawn(lambda n, g: torch.rand(n)), "same generator"),
    (P.its_density_is_that_of_its_draws, lambda: times.Times(lambda u: u**2, torch.ones_like), "in distribution"),
    (P.its_importance_is_finite, lambda: times.Times(lambda u: u, torch.zeros_like, importance=True), "finite"),
    (P.it_is_nothing_where_they_are_equal, measured(lambda d, t: d.norm(dim=1).sqrt()), "gradient is not finite"),
    (P.it_is_nothing_where_they_are_equal, measured(lambda d, t: d.square().mean()), "() float32"),
    (P.it_is_nothing_where_they_are_equal, measured(lambda d, t: (d + t).square().mean(1)), "should be 0"),
    (P.it_grows_with_the_error_of_its_own_sample, measured(lambda d, t: 0 * d.sum(1)), "grow"),
    (P.it_grows_with_the_error_of_its_own_sample, measured(lambda d, t: d.square().mean().expand(5)), "another's"),
    (S.its_error_shrinks_with_the_step, stepping(lambda v, x, t, r, h: x), "error"),
    (S.its_error_shrinks_with_the_step, stepping(lambda v, x, t, r, h: x + 1.1 * h * v(x, t)), "error"),
    (S.it_keeps_the_kind_of_state, stepping(lambda v, x, t, r, h: {"a": x["a"]}), "came back as"),
    (
        S.it_keeps_the_kind_of_state,
        stepping(lambda v, x, t, r, h: {k: x[k].add_(h) for k in x}),
        "it changed the state",
    ),
    (S.it_begins_anew_each_time, lambda: Remembering(), "forget the last"),
]


class Remembering:
    """An Euler step that grows from use to use."""

    used = 0

    def __call__(self, v: Any, x: Tensor, t: Tensor, r: Tensor, h: float) -> Tensor:
        self.used += 1
        return x + h * v(x, t) * (1 + 0.01 * self.used)


@pytest.mark.parametrize(("check", "make", "words"), BROKEN_PARTS, ids=lambda value: getattr(value, "__name__", ""))
def test_broken_parts_are_told(check: Callable[..., None], make: Callable[[], Any], words: str) -> None:
    assert words in line(check, make)


def test_every_check_of_parts_is_broken_once() -> None:
    kinds = ("path", "coupling", "times", "loss", "solver")
    assert {check for check, _, _ in BROKEN_PARTS} == {check for kind in kinds for check in testing.CHECKS[kind]}


def test_objectives_and_samplers() -> None:
    data = Clouds()
    parts = Parts(
        data.spec(), data, torch.device("cpu"), path=paths.linear(), coupling=couplings.independent(),  # type: ignore[arg-type]
        times=times.uniform(), loss=losses.l2(), predicts="velocity", solver=solvers.euler(),
    )  # fmt: skip
    network = Dense()
    for check in testing.CHECKS["objective"]:
        check(lambda: objectives.matching(parts), network, data)
    for check in testing.CHECKS["sampler"]:
        check(lambda: samplers.flow(parts), network, data)
    right = objectives.matching(parts)

    def broken(check: Callable[..., None], objective: Any) -> str:
        return line(check, lambda: objective, network, data)

    one, two, three = testing.CHECKS["objective"]
    assert "one loss for each of 8" in broken(one, lambda n, b, g: right(n, b, g).mean())
    assert "not finite" in broken(one, lambda n, b, g: right(n, b, g) / 0)
    assert "reaches no weight" in broken(two, lambda n, b, g: right(n, b, g) * 0)
    assert "another loss" in broken(three, lambda n, b, g: right(n, b, g) + torch.rand(()))
    flow = samplers.flow(parts)
    drawn, again = testing.CHECKS["sampler"]
    assert "(3, 4, 3)" in broken(drawn, lambda n, c, k, s, g: flow(n, c[:3], 3, s, g))
    assert "extra['calls'] is None" in broken(drawn, lambda n, c, k, s, g: Batch(flow(n, c, k, s, g).x1))
    assert "other samples" in broken(again, lambda n, c, k, s, g: flow(n, c, k, s, torch.default_generator))


def test_metrics() -> None:
    def metric(figures: Callable[[Batch, Any], Any]) -> Callable[[], Any]:
        return lambda: figures

    for check in uses.METRIC:
        check(metric(lambda samples, measured: {"size": Figure(float(samples.x1.norm()), floor=1.0)}), Clouds())
        check(metric(lambda samples, measured: {"size": Figure(1.0, better="neither")}), Clouds())
    first, second = uses.METRIC
    assert "{name: Figure}" in line(first, metric(lambda samples, measured: {}), Clouds())
    assert "goes into a Figure" in line(first, metric(lambda samples, measured: {"size": 1.0}), Clouds())
    assert "stands alone" in line(first, metric(lambda samples, measured: {"size": Figure(1.0)}), Clouds())
    nan = metric(lambda samples, measured: {"size": Figure(float("nan"), floor=0.0)})
    assert "not finite" in line(first, nan, Clouds())
    drawn = metric(lambda samples, measured: {"size": Figure(torch.rand(()).item(), floor=0.0)})
    assert "measured.seed alone" in line(second, drawn, Clouds())


def test_tasks() -> None:
    def task(how: Callable[[Path, Path], Any]) -> Callable[[], Any]:
        return lambda: lambda trained, inputs, out: how(inputs[0], out)

    def refuse(file: Path, out: Path) -> None:
        raise InputError(f"{file} is not there")

    def grumble(file: Path, out: Path) -> None:
        raise InputError("no")

    def leave(file: Path, out: Path) -> None:
        out.mkdir()
        (out / "half").touch()
        raise InputError(f"{file} is not there")

    (check,) = uses.TASK
    check(task(refuse), None)
    assert "name the file" in line(check, task(grumble), None)
    assert "raised FileNotFoundError" in line(check, task(lambda file, out: file.read_text()), None)
    assert "took an input that is not there" in line(check, task(lambda file, out: {}), None)
    assert "left something" in line(check, task(leave), None)
