"""phases: steps of order 1, the pair that two states imply, and the loss of a phase, in closed form."""

from dataclasses import replace

import pytest
import torch

from flowcore import paths
from flowcore.closed_form import mixture
from flowcore.couplings import Pairs
from flowcore.field import Field
from flowcore.losses import l2, matching_loss
from flowcore.phases import edges, implied_pair, phased_loss, through_phases
from flowcore.seeds import generator
from flowcore.solvers import exponential, solve

AFFINE = [paths.vp(), paths.vp(beta_max=10.0), paths.cosine(), paths.linear_vp(), paths.linear(), paths.ve(3.0)]
every_path = pytest.mark.parametrize("path", AFFINE, ids=lambda path: path.name)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "normal"), dtype=torch.float64)


def grid(*times):
    return torch.tensor(times, dtype=torch.float64)


@every_path
@pytest.mark.parametrize(("n", "m"), [(0.05, 0.95), (0.3, 0.4), (0.9, 0.2)])
def test_where_the_noise_is_constant_one_step_is_as_many(path, n, m):
    """From any time to any other, on every affine path, backwards too."""
    noise, x = normal(8, 3), normal(8, 3, seed=1)
    field = Field(lambda x, t, c: noise, path, "noise")
    one = solve(field, x, grid(n, m), exponential(order=1))
    many = solve(field, x, torch.linspace(n, m, 41, dtype=torch.float64), exponential(order=1))
    torch.testing.assert_close(one, many, atol=1e-5, rtol=1e-5)
    a, s, b, r = (one(grid(at)) for at in (n, m) for one in (path.alpha, path.sigma))
    torch.testing.assert_close(one / b, x / a + (r / b - s / a) * noise)


@every_path
def test_the_implied_pair_is_the_one_that_both_states_are_of(path):
    pairs = Pairs(normal(20, 2), normal(20, 2, seed=1))
    s, r = torch.linspace(path.start, 0.6, 20).double(), torch.linspace(0.3, path.stop, 20).double()
    early, late = path.interpolate(*pairs[:2], s), path.interpolate(*pairs[:2], r)
    noise, data, *_ = implied_pair(path, early, late, s, r)
    torch.testing.assert_close(noise, pairs.x0)
    torch.testing.assert_close(data, pairs.x1)
    both, *_ = implied_pair(path, {"a": early, "b": late}, {"a": late, "b": early}, s, r)
    torch.testing.assert_close(both["a"], noise)


def test_the_implied_noise_is_the_slope_in_the_noise_ratio():
    path, early, late = paths.vp(), normal(5, 2), normal(5, 2, seed=1)
    s, r = grid(0.2, 0.6).unbind()
    k = path.sigma(r) / path.alpha(r) - path.sigma(s) / path.alpha(s)
    found = implied_pair(path, early, late, s, r).x0
    torch.testing.assert_close(found, (late / path.alpha(r) - early / path.alpha(s)) / k)


def teacher(path):
    return mixture(path, torch.tensor([[1.0, -0.5], [-2.0, 0.5]]).double(), 0.4)


def test_the_teacher_goes_through_each_phase_by_itself():
    path, number = paths.cosine(), torch.arange(12) % 3
    field, pairs, times = teacher(path), Pairs(normal(12, 2), normal(12, 2, seed=1)), edges(path, 3)
    found = through_phases(field, pairs, number, times, 5)
    for phase in range(3):
        rows = number == phase
        begin = path.interpolate(pairs.x0[rows], pairs.x1[rows], times[phase])
        part = torch.linspace(float(times[phase]), float(times[phase + 1]), 6, dtype=torch.float64)
        torch.testing.assert_close(found[rows], solve(field, begin, part, exponential(order=1)))


@pytest.mark.parametrize("predicts", ["velocity", "x1"])
def test_one_phase_of_the_linear_path_is_reflow(predicts):
    """The loss is that of the data which the student sees in x_t, on the pairs of the teacher's flow."""
    path = paths.linear()
    pairs, u = Pairs(normal(30, 2), normal(30, 2, seed=1), torch.rand(30).double()), torch.linspace(0.01, 0.99, 30)
    student = Field(lambda x, t, c: torch.sin(x) + t[:, None], path, predicts)
    found = phased_loss(student, teacher(path), pairs, torch.zeros(30, dtype=torch.long), u.double(), 1, 20)
    reflow = Pairs(pairs.x0, solve(teacher(path), pairs.x0, 20), pairs.weight)
    as_data = Field(lambda x, t, c: student.x1(x, t), path, "x1")
    torch.testing.assert_close(found, matching_loss(as_data, reflow, u.double()))
    velocity = Field(lambda x, t, c: student.velocity(x, t), path)
    torch.testing.assert_close(found, (1 - u.double()) ** 2 * matching_loss(velocity, reflow, u.double()))


@every_path
@pytest.mark.parametrize("predicts", ["noise", "velocity", "x1"])
def test_a_student_that_sees_the_implied_pair_has_no_loss(path, predicts):
    """And the loss is measured at the phase's end: metric(x_r of the student's step, x_r of the teacher)."""
    path = replace(path, start=max(path.start, 0.02), stop=min(path.stop, 0.98))
    pairs, number = Pairs(normal(40, 2), normal(40, 2, seed=1)), torch.arange(40) % 4
    times, u = edges(path, 4), torch.linspace(0.01, 0.99, 40).double()
    s, r = times[number], times[number + 1]
    late = through_phases(teacher(path), pairs, number, times, 3)
    noise, data, *_ = implied_pair(path, path.interpolate(*pairs[:2], s), late, s, r)

    def network(x, t, condition):
        torch.testing.assert_close(t, s + u * (r - s))
        return path.target(predicts, noise, data, t)

    student = Field(network, path, predicts)
    found = phased_loss(student, teacher(path), pairs, number, u, 4, 3)
    torch.testing.assert_close(found, torch.zeros(40).double(), atol=1e-16, rtol=0)
    if predicts == "noise":
        off = Field(lambda x, t, c: noise + 1, path, "noise")
        t = s + u * (r - s)
        moved = path.alpha(r) * (path.sigma(r) / path.alpha(r) - path.sigma(t) / path.alpha(t))
        wanted = l2()(moved[:, None].expand(40, 2), torch.zeros(40, 2))
        torch.testing.assert_close(phased_loss(off, teacher(path), pairs, number, u, 4, 3), wanted)


def test_states_in_parts_add_up():
    path, number = paths.cosine(), torch.arange(10) % 2
    pairs, u = Pairs(normal(10, 2), normal(10, 2, seed=1)), torch.linspace(0.1, 0.9, 10).double()

    def both(field):
        return Field(lambda x, t, c: {key: field(leaf, t) for key, leaf in x.items()}, path)

    student = Field(lambda x, t, c: torch.sin(x), path)
    one = phased_loss(student, teacher(path), pairs, number, u, 2, 2)
    twice = Pairs({"a": pairs.x0, "b": pairs.x0}, {"a": pairs.x1, "b": pairs.x1})
    torch.testing.assert_close(phased_loss(both(student), both(teacher(path)), twice, number, u, 2, 2), 2 * one)
