"""distillation: what is learnt from a teacher, against the losses called by hand and teachers known in closed form."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from flowcore import losses, paths, reflow, times
from flowcore.closed_form import mixture
from flowcore.couplings import Pairs
from flowcore.data import Batch
from flowcore.distillation import annealed, flow_guided, k_step, mixed, one_step, phased
from flowcore.errors import UsageError
from flowcore.field import Field
from flowcore.guidance import classifier_free
from flowcore.objectives import matching
from flowcore.phases import phased_loss
from flowcore.plugin.contracts import Leaf, Parts, Spec
from flowcore.seeds import generator
from flowcore.solvers import solve


class Told(nn.Module):
    """v = w x + t + condition, which it keeps."""

    def __init__(self, w=0.5):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, x, t, condition=None):
        self.condition, self.t = condition, t
        return self.w * x + t[:, None] + (0 if condition is None else condition[:, None].float())


def parts(path=None, **more):
    spec = Spec(Leaf((3,)), Leaf((), "int64", "class", 4), null=4)
    more = {"predicts": "velocity", "times": times.uniform(), "loss": losses.l2(), **more}
    return Parts(spec, None, torch.device("cpu"), path=path or paths.linear(), **more)


def taught(network, path=None, guidance=(), **more):
    """Parts with a teacher."""
    own = parts(path, guidance=guidance, **more)
    return parts(path, teacher=SimpleNamespace(network=network, parts=lambda: own), **more)


def straight(x, t, condition=None):
    """The field whose flow is x1 = 1 + 3 x0 along straight lines, at constant speed."""
    time = t[:, None]
    return 1 + 2 * (x - time) / (1 + 2 * time)


X0, X1 = (torch.randn(64, 3, generator=generator(seed)) for seed in (2, 1))
LABELS = torch.arange(64) % 4
PAIRED = [one_step, k_step, annealed, lambda made: flow_guided(taught(Told()))]


@pytest.mark.parametrize("objective", PAIRED, ids=["one_step", "k_step", "annealed", "flow_guided"])
def test_what_learns_pairs_says_so_where_there_are_none(objective):
    with pytest.raises(UsageError, match=r"learns the pairs of a teacher; set teacher\.model"):
        objective(parts())(Told(), Batch(X1), generator(0))


def test_one_step_vanishes_where_one_step_leads_to_the_data():
    found = one_step(parts())(Told(-0.5), Batch(0.5 * X0, x0=X0), generator(0))
    assert found.shape == (64,)
    assert found.max() < 1e-12


def test_k_step_is_spent_on_the_times_where_the_steps_begin():
    made, network = parts(), Told()
    found = k_step(made, steps=4)(network, Batch(X1, x0=X0), generator(0))
    assert set(network.t.tolist()) == {0.0, 0.25, 0.5, 0.75}
    wanted = reflow.k_step_loss(made.field(network), Pairs(X0, X1), 4, generator(0), made.loss)
    assert torch.equal(found, wanted)


# annealing


@pytest.mark.parametrize("step", [None, 100, 250])
def test_annealed_ends_as_reflow_to_the_last_bit(step):
    weight = torch.rand(64, generator=generator(3))
    made, network = parts(drop_condition=0.3), Told()
    batch = Batch(X1, LABELS, x0=X0, weight=weight, step=step)
    found = annealed(made, steps=100)(network, batch, generator(0))
    assert torch.equal(found, matching(made)(network, batch, generator(0)))


def test_annealed_is_reflow_on_noise_that_is_mixed():
    made, network = parts(), Told()
    found = annealed(made, steps=100)(network, Batch(X1, LABELS, x0=X0, step=60), generator(0))
    draws = generator(0)
    noise = math.sqrt(1 - 0.4**2) * X0 + 0.4 * made.path.draw_source(X1, draws)
    torch.testing.assert_close(found, matching(made)(network, Batch(X1, LABELS, x0=noise), draws))


def test_annealed_begins_as_a_first_flow():
    """At b = 1 nothing is left of the pairs' noise."""
    made, network = parts(), Told()
    one, other = (annealed(made, 10)(network, Batch(X1, x0=x0, step=0), generator(0)) for x0 in (X0, 100 * X0))
    assert torch.equal(one, other)


@pytest.mark.parametrize("b", [0.0, 0.3, 0.8, 1.0])
def test_noise_that_is_mixed_stays_normal(b):
    z, other = torch.randn(2, 200_000, generator=generator(4), dtype=torch.float64)
    found = mixed(z, other, b)
    assert found.var().item() == pytest.approx(1, abs=1e-2)
    assert torch.corrcoef(torch.stack([z, found]))[0, 1].item() == pytest.approx(math.sqrt(1 - b * b), abs=1e-2)


def test_noise_that_cannot_be_mixed_is_told():
    heavy = replace(paths.linear(), source=paths.student_t(3.0))
    with pytest.raises(UsageError, match="source is another"):
        annealed(parts(heavy), steps=5)


# two steps of a teacher


def test_two_steps_of_a_straight_teacher_are_its_one():
    teacher = Field(straight, paths.linear())
    z = torch.randn(50, 3, generator=generator(5), dtype=torch.float64)
    t = torch.linspace(0.2, 0.8, 50, dtype=torch.float64)
    torch.testing.assert_close(reflow.two_steps(teacher, teacher, z, t), solve(teacher, z, 1))
    torch.testing.assert_close(reflow.two_steps(teacher, teacher, z, t), 1 + 3 * z)


@pytest.mark.parametrize("path", [paths.linear(), paths.ve(3.0), paths.vp()], ids=lambda path: path.name)
def test_two_steps_are_those_of_the_solver(path):
    """On dicts too, and from where the path begins to where it ends."""
    teacher = mixture(path, torch.tensor([[1.0, -0.5]]).double(), 0.7)
    z = torch.randn(20, 2, generator=generator(6), dtype=torch.float64)
    grid = torch.tensor([path.start, path.start + 0.3 * (path.stop - path.start), path.stop], dtype=torch.float64)
    found = reflow.two_steps(teacher, teacher, z, torch.full((20,), 0.3, dtype=torch.float64))
    torch.testing.assert_close(found, solve(teacher, path.initial(z), grid))
    both = Field(lambda x, t, c: {key: teacher(leaf, t) for key, leaf in x.items()}, path)
    again = reflow.two_steps(both, both, {"a": z, "b": 2 * z}, torch.full((20,), 0.3, dtype=torch.float64))
    torch.testing.assert_close(again["a"], found)


def test_a_student_that_is_the_straight_teacher_has_no_loss():
    made = taught(straight)
    for first in ("student", "teacher"):
        found = flow_guided(made, first)(straight, Batch(1 + 3 * X0, x0=X0), generator(0))
        assert found.shape == (64,)
        assert found.max() < 1e-10


def test_flow_guided_is_two_distances_of_one_weight():
    """Student v = w x + t + c, teacher v = u x + t + c, by hand."""
    w, u = 0.5, -0.25
    c = LABELS[:, None].float()
    for first, slope in (("student", w), ("teacher", u)):
        made, network = taught(Told(u)), Told(w)
        found = flow_guided(made, first)(network, Batch(X1, LABELS, x0=X0), generator(0))
        draws = generator(0)
        z = made.path.draw_source(X1, draws)
        t = (0.2 + 0.6 * torch.rand(64, generator=draws))[:, None]
        half = z + t * (slope * z + c)
        target = half + (1 - t) * (u * half + t + c)
        wanted = (X0 + w * X0 + c - X1).square().mean(1) + (z + w * z + c - target).square().mean(1)
        torch.testing.assert_close(found, wanted)
        found.mean().backward()
        grad = 2 * ((X0 + w * X0 + c - X1) * X0 + (z + w * z + c - target) * z).mean()  # none through the target
        torch.testing.assert_close(network.w.grad, grad)
        assert made.teacher.network.w.grad is None


def test_a_teacher_whose_steps_lead_elsewhere_is_told():
    with pytest.raises(UsageError, match="asks the teacher for steps; set teacher"):
        flow_guided(parts())
    for own, its in ((paths.linear(), paths.cosine()), (paths.vp(), paths.vp(beta_max=10.0)), (paths.linear(), None)):
        teacher = taught(Told(), its).teacher
        if its is None:
            teacher.parts = lambda: SimpleNamespace(path=None)
        for objective in (flow_guided, phased):
            with pytest.raises(UsageError, match="takes steps of"):
                objective(parts(own, teacher=teacher))


# phases


class Kept(nn.Module):
    """The noise of the vp path through N(c, 1) data of which it keeps nothing: e(x) = w x."""

    def __init__(self, w=0.5):
        super().__init__()
        self.w, self.asked = nn.Parameter(torch.tensor(w)), []

    def forward(self, x, t, condition=None):
        self.asked.append(t)
        return self.w * x if condition is None else self.w * x + condition[:, None]


def test_phased_is_the_loss_of_its_draws():
    made, network = taught(Kept(0.3), paths.vp(beta_max=10.0), predicts="noise"), Kept()
    weight = torch.rand(64, generator=generator(3))
    found = phased(made, phases=3, teacher_steps=2)(network, Batch(X1, weight=weight), generator(0))
    draws = generator(0)
    x0 = made.path.draw_source(X1, draws)
    number = (torch.arange(64) + torch.randint(3, (), generator=draws)) % 3
    u = made.times(64, draws)
    fields = made.field(network), made.field(made.teacher.network)
    wanted = phased_loss(*fields, Pairs(x0, X1, weight), number, u, 3, 2, made.loss)
    assert found.shape == (64,)
    assert torch.equal(found, wanted)
    assert made.teacher.network.w.grad is None


def test_phases_share_a_batch_evenly_and_none_is_left_out_of_small_ones():
    network, made = Kept(), taught(Kept(), paths.linear_vp(), predicts="velocity")
    seen = []
    for step in range(20):
        phased(made, phases=4, teacher_steps=1)(network, Batch(X1[:2]), generator(0, step))
        seen.append((network.asked[-1] * 4 / made.path.stop).long())
    assert torch.cat(seen).unique().tolist() == [0, 1, 2, 3]
    phased(made, phases=4, teacher_steps=1)(network, Batch(X1), generator(0))
    assert torch.bincount((network.asked[-1] * 4 / made.path.stop).long()).tolist() == [16] * 4


def test_phased_teachers_are_guided_as_in_their_own_run():
    """Classifier-free guidance of w = 2 on e = w x + c is e = w x + 2 c - null."""
    labels = LABELS.float()
    spec = Spec(Leaf((3,)), Leaf(()), null=-1.0)
    own = replace(parts(paths.cosine(), guidance=(classifier_free(2.0),), predicts="noise"), spec=spec)
    plain = replace(own, guidance=())
    guided = replace(own, teacher=SimpleNamespace(network=Kept(), parts=lambda: own))
    by_hand = replace(own, teacher=SimpleNamespace(network=Kept(), parts=lambda: plain))
    own, plain = (replace(one, path=replace(one.path, start=0.1)) for one in (own, plain))
    guided, by_hand = (replace(one, path=own.path) for one in (guided, by_hand))
    student = Kept()
    found = phased(guided)(student, Batch(X1, labels), generator(0))
    by_hand.teacher.network.forward = lambda x, t, c: 0.5 * x + (2 * c + 1)[:, None]
    torch.testing.assert_close(found, phased(by_hand)(student, Batch(X1, labels), generator(0)), atol=1e-5, rtol=1e-4)


def test_phases_that_cannot_be_are_told():
    made = taught(Told())
    with pytest.raises(UsageError, match="one affine path"):
        phased(replace(made, path=paths.Product({"a": paths.linear()})))
    with pytest.raises(UsageError, match="ragged"):
        phased(made)(Told(), Batch(X1, index=torch.zeros(64, dtype=torch.long), samples=1), generator(0))
