"""Reflow and distillation on data whose flow is known in closed form.

The teacher is the exact field for data N(m, S^2 I), whose flow is x1 = m + S x0.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from flowcore import paths
from flowcore.closed_form import mixture
from flowcore.couplings import Pairs
from flowcore.data import batches
from flowcore.diagnostics import transport
from flowcore.field import Field
from flowcore.losses import l2, matching_loss
from flowcore.pairs import PairStore, Recipe, generate_pairs
from flowcore.reflow import k_step_loss, one_step_loss
from flowcore.seeds import generator
from flowcore.solvers import solve

MEAN = torch.tensor([1.5, -0.5])
S = 1.3


def teacher(path: paths.Affine | None = None, mean: Tensor = MEAN) -> Field:
    return mixture(path or paths.linear(), mean[None], S)


def reflowed(store: PairStore) -> Field:
    """A small network trained on the pairs, with the loss every field is trained with."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2))
    field = Field(lambda x, t, condition: network(torch.cat([x, t[:, None]], 1)), paths.linear())
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for step, batch in enumerate(batches(store, 256, 0, 300, 0)):
        t = torch.rand(256, generator=generator(0, "t", step))
        optimizer.zero_grad()
        matching_loss(field, Pairs(batch.x0, batch.x1), t).mean().backward()
        optimizer.step()
    return field


def test_reflow_straightens(tmp_path):
    """Trained on its pairs, a second field reaches in one Euler step what the first needs many for.

    The first's one step lands on the mean of the data whatever x0, so it errs by S |x0|; the second errs by less than a
    fifth of it. Its paths are straighter by more than ten, and its end has the same mean and spread.
    """
    recipe = Recipe("teacher-hash", grid=20, method="heun", dtype="float16", shard_size=512, batch_size=512)
    generate_pairs(teacher(), recipe, tmp_path, torch.empty(2), 2048, 7)
    second = reflowed(PairStore(tmp_path))
    x0 = torch.randn(1000, 2, generator=generator(1))

    def error(field: Field) -> float:
        return (solve(field, x0, 1) - (MEAN + S * x0)).square().sum(1).mean().sqrt().item()

    assert error(teacher()) == pytest.approx(S * math.sqrt(2), rel=0.05)
    assert error(second) < error(teacher()) / 5
    with torch.no_grad():
        end = solve(second, x0, 50)
    torch.testing.assert_close(end.mean(0), MEAN + S * x0.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(end.std(0), S * x0.std(0), atol=0.05, rtol=0)
    assert transport(second, x0, 50).straightness < transport(teacher(), x0, 50).straightness / 10


def noisy_pairs(count: int = 200) -> Pairs:
    """x1 a linear function of x0 and noise, so that no student can be exact."""
    x0 = torch.randn(count, 2, generator=generator(0), dtype=torch.float64)
    z = torch.randn(count, 2, generator=generator(1), dtype=torch.float64)
    return Pairs(x0, MEAN + S * x0 + 0.5 * x0.flip(1) + 0.3 * z)


def affine_student(weight: Tensor, bias: Tensor, path: paths.Affine) -> Field:
    return Field(lambda x, t, condition: x @ weight + bias, path)


@pytest.mark.parametrize("path", [paths.linear(), paths.cosine()], ids=lambda path: path.name)
@pytest.mark.parametrize("loss", ["one step", "k step, k = 1"])
def test_minimiser_is_the_regression_of_x1(path, loss):
    """Among students v = W x + b, the loss is least, and flat, where x0 + v is the least-squares fit of x1 to x0."""
    pairs = noisy_pairs()
    columns = torch.cat([pairs.x0, torch.ones(200, 1, dtype=torch.float64)], 1)
    fit = torch.linalg.lstsq(columns, pairs.x1 - pairs.x0).solution
    residual = (pairs.x1 - pairs.x0 - columns @ fit).square().mean(1)
    if loss != "one step" and path.name != "linear":
        fit = torch.linalg.lstsq(columns, math.pi / 2 * pairs.x1).solution  # the velocity at t = 0 of the cosine path
        residual = (math.pi / 2 * pairs.x1 - columns @ fit).square().mean(1)
    weight, bias = fit[:2].clone().requires_grad_(), fit[2].clone().requires_grad_()
    student = affine_student(weight, bias, path)
    value = one_step_loss(student, pairs) if loss == "one step" else k_step_loss(student, pairs, 1, generator(0))
    torch.testing.assert_close(value, residual)
    value.mean().backward()
    torch.testing.assert_close(weight.grad, torch.zeros_like(weight), atol=1e-10, rtol=0)
    torch.testing.assert_close(bias.grad, torch.zeros_like(bias), atol=1e-10, rtol=0)


def test_one_step_loss_is_that_of_the_sampler():
    """It compares what solve(student, x0, 1) returns, on images and dicts, with weights, under a metric of choice."""
    x0, x1 = (torch.randn(5, 1, 2, 2, generator=generator(n)) for n in (0, 1))
    student = teacher(mean=torch.zeros(1, 2, 2))
    end = solve(student, x0, 1)
    torch.testing.assert_close(one_step_loss(student, Pairs(x0, x1)), l2()(end, x1))

    def l1(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().flatten(1).mean(1)

    torch.testing.assert_close(one_step_loss(student, Pairs(x0, x1), l1), l1(end, x1))
    weight = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(one_step_loss(student, Pairs(x0, x1, weight)), l2()(end, x1) * weight / 2)

    both = Field(lambda x, t, c: {"a": x["b"], "b": t[:, None] + x["a"]}, paths.linear())
    a, b = torch.randn(2, 5, 3, generator=generator(2))
    pairs = Pairs({"a": a, "b": b}, {"a": b, "b": a})
    torch.testing.assert_close(one_step_loss(both, pairs), l2()(a + b, b) + l2()(b + a, a))

    # a path with alpha(0) = 1, which sets out from sigma_max x0 and must not see x1
    blown = teacher(paths.ve(3.0), torch.zeros(1, 2, 2))
    torch.testing.assert_close(one_step_loss(blown, Pairs(x0, x1)), l2()(solve(blown, 3 * x0, 1), x1))


def test_one_step_loss_of_students_that_predict_data():
    """Whatever the network predicts, the step is the velocity's: x1-prediction and velocity give one loss."""
    x0, x1 = (torch.randn(5, 2, generator=generator(n), dtype=torch.float64) for n in (0, 1))
    exact = teacher(mean=MEAN.double())
    by_data = Field(lambda x, t, c: exact.x1(x, t), paths.linear(), "x1")
    torch.testing.assert_close(one_step_loss(by_data, Pairs(x0, x1)), one_step_loss(exact, Pairs(x0, x1)))


def test_ragged_students():
    """Rows of a sample are averaged, and there is one loss a sample."""
    index = torch.tensor([0, 0, 1])
    field = Field(lambda x, t, c, index: torch.ones_like(x), paths.linear(), index=index, samples=2)
    pairs = Pairs(torch.zeros(3, 2), torch.tensor([[1.0, 1.0], [3.0, 3.0], [4.0, 4.0]]))
    torch.testing.assert_close(one_step_loss(field, pairs), torch.tensor([2.0, 9.0]))
    torch.testing.assert_close(k_step_loss(field, pairs, 4, generator(0)), torch.tensor([2.0, 9.0]))


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_times_of_the_k_step_loss(steps):
    """Exactly {0, 1/k, ..., (k-1)/k}, each as often as the others: the times at which k Euler steps begin."""
    seen, begun = [], []

    def network(x, t, condition):
        seen.append(t)
        return torch.zeros_like(x)

    zeros = torch.zeros(6000, 1, dtype=torch.float64)
    k_step_loss(Field(network, paths.linear()), Pairs(zeros, zeros), steps, generator(0))
    solve(lambda x, t: begun.append(t) or x, torch.zeros(1, 1, dtype=torch.float64), steps)
    values, counts = seen[0].unique(return_counts=True)
    torch.testing.assert_close(values, torch.stack(begun))
    assert ((counts - 6000 / steps).abs() <= 4 * math.sqrt(6000 / steps * (1 - 1 / steps))).all()
    again: list[Tensor] = []
    k_step_loss(Field(lambda x, t, c: again.append(t) or x, paths.linear()), Pairs(zeros, zeros), steps, generator(0))
    assert torch.equal(again[0], seen[0])


@pytest.mark.parametrize("steps", [1, 4])
def test_k_step_minimiser_samples_exactly(steps):
    """The field of the straight pairs, m + (S - 1) (x - t m) / (1 + t (S - 1)), has no loss, and k steps are exact."""
    x0 = torch.randn(50, 2, generator=generator(0), dtype=torch.float64)
    pairs = Pairs(x0, MEAN + S * x0)

    def straight(x, t, condition):
        time = t[:, None]
        return MEAN + (S - 1) * (x - time * MEAN) / (1 + time * (S - 1))

    student = Field(straight, paths.linear())
    loss = k_step_loss(student, pairs, steps, generator(0))
    assert loss.shape == (50,)
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-24, rtol=0)
    torch.testing.assert_close(solve(student, x0, steps), pairs.x1)
    assert k_step_loss(teacher(mean=MEAN.double()), pairs, steps, generator(0)).mean() > 0.1


def test_k_step_loss_with_a_perceptual_distance():
    """It is added, of the data that the student sees in x_t, as in the matching loss."""
    pairs = noisy_pairs(20)
    student = teacher(mean=MEAN.double())

    def distance(found: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        return (found - x1).abs().sum(1) * (1 + t)

    with_it = k_step_loss(student, pairs, 2, generator(0), perceptual=distance)
    without = k_step_loss(student, pairs, 2, generator(0))
    t = torch.randint(2, (20,), generator=generator(0)).double() / 2
    x = t[:, None] * pairs.x1 + (1 - t[:, None]) * pairs.x0
    torch.testing.assert_close(with_it - without, distance(student.x1(x, t), pairs.x1, t))
