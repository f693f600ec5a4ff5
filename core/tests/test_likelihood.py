"""Densities against closed forms: linear fields, Gaussians, mixtures; and what they must not depend on."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from flowcore import paths
from flowcore.closed_form import mixture
from flowcore.field import Field
from flowcore.likelihood import (
    bits_per_dimension,
    estimated_divergence,
    exact_divergence,
    log_likelihood,
    rademacher,
    sample_with_likelihood,
)
from flowcore.seeds import generator
from flowcore.solvers import rk4

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=F64)


def log_normal(x: Tensor, mean: Tensor | float = 0.0, std: float = 1.0) -> Tensor:
    """log N(x; mean, std^2 I) by torch's own distribution."""
    return torch.distributions.Normal(torch.as_tensor(mean, dtype=x.dtype), std).log_prob(x).flatten(1).sum(1)


def linear_flow(A: Tensor):
    """v = A x on the flattened sample."""
    return lambda x, t: (x.flatten(1) @ A.T).view_as(x)


def matrix(size: int) -> Tensor:
    """A matrix without symmetry, of norm about 1."""
    return draw(size, size, seed=1) / (2 * math.sqrt(size))


@pytest.mark.parametrize("method", ["midpoint", "heun", "rk4", "dopri5", rk4()])
@pytest.mark.parametrize("shape", [(5, 3), (4, 4), (3, 2, 2, 2), (6, 1)], ids=["rows", "B == d", "images", "scalars"])
def test_linear_field(shape, method):
    """v = A x: x0 = e^-A x1 and log p1(x1) = log p0(e^-A x1) - tr A."""
    A = matrix(math.prod(shape[1:]))
    x1 = draw(*shape)
    x0 = (x1.flatten(1) @ torch.linalg.matrix_exp(-A).T).view_as(x1)
    found = log_likelihood(linear_flow(A), x1, 1 if method == "dopri5" else 60, method)
    assert found.log_p.shape == (shape[0],)
    torch.testing.assert_close(found.log_p, log_normal(x0) - A.trace(), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.x0, x0, atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_divergence_in_chunks(chunk):
    """However many products are taken at once, the trace is the whole trace, of every sample."""
    x = draw(3, 2, 2, 2)
    v, found = exact_divergence(linear_flow(matrix(8)), x, torch.tensor(0.0), chunk)
    torch.testing.assert_close(found, matrix(8).trace().expand(3))
    torch.testing.assert_close(v, linear_flow(matrix(8))(x, 0))
    # the Jacobian of x^3 is diagonal, another one for each sample
    torch.testing.assert_close(
        exact_divergence(lambda x, t: x**3, x, torch.tensor(0.0), chunk)[1], (3 * x**2).sum((1, 2, 3))
    )


def test_dict_state():
    """Coupled leaves of different shapes: only the diagonal blocks of the Jacobian count, and every leaf does."""
    A = matrix(7)
    x1 = {"cell": draw(5, 3), "inner": {"atoms": draw(5, 2, 2, seed=1)}}

    def join(x):
        return torch.cat([x["cell"], x["inner"]["atoms"].flatten(1)], 1)

    def v(x, t):
        flat = join(x) @ A.T
        return {"cell": flat[:, :3], "inner": {"atoms": flat[:, 3:].reshape(-1, 2, 2)}}

    x0 = join(x1) @ torch.linalg.matrix_exp(-A).T
    found = log_likelihood(v, x1, 20, "rk4")
    torch.testing.assert_close(found.log_p, log_normal(x0) - A.trace(), atol=1e-6, rtol=0)
    torch.testing.assert_close(join(found.x0), x0, atol=1e-6, rtol=0)

    probe = rademacher(x1, generator(3))
    e = join(probe)
    _, estimate = estimated_divergence(v, x1, torch.tensor(0.5), probe)
    torch.testing.assert_close(estimate, torch.einsum("bi,ij,bj->b", e, A, e))


@pytest.mark.parametrize("path", [paths.linear(), paths.cosine(), paths.linear(floor=0.1)], ids=lambda path: path.name)
@pytest.mark.parametrize("shape", [(2,), (1, 2, 2)], ids=["rows", "images"])
def test_gaussian_data(path, shape):
    """x1 ~ N(m, 1.3^2 I): the closed form to 1e-4 with 100 midpoint steps, whatever the path."""
    mean = draw(*shape, seed=4)
    x1 = mean + 1.3 * draw(6, *shape)
    final = math.hypot(1.3, float(path.sigma(torch.tensor(1.0, dtype=F64))))
    found = log_likelihood(mixture(path, mean[None], 1.3), x1, 100, "midpoint")
    torch.testing.assert_close(found.log_p, log_normal(x1, mean, final), atol=1e-4, rtol=0)


def test_paths_that_set_out_from_scaled_noise():
    """The path ve() starts from sigma_max x0: log p1 of N(0, S^2 + sigma_max^2) scaled along with the flow."""
    found = log_likelihood(mixture(paths.ve(3.0), torch.zeros(1, 2, dtype=F64), 1.3), x1 := draw(5, 2), 60, "rk4")
    # the flow multiplies by S / sqrt(S^2 + sigma_max^2), and what it is given is N(0, sigma_max^2 I)
    std = 3.0 * 1.3 / math.hypot(1.3, 3.0)
    torch.testing.assert_close(found.log_p, log_normal(x1, 0.0, std), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.x0, x1 / std, atol=1e-5, rtol=0)
    again = sample_with_likelihood(mixture(paths.ve(3.0), torch.zeros(1, 2, dtype=F64), 1.3), found.x0, 60, "rk4")
    torch.testing.assert_close(again.log_p, found.log_p, atol=1e-6, rtol=0)


MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [0.0, -2.0]], dtype=F64)


def three() -> Field:
    """A field whose Jacobian changes along the way and is no multiple of the identity."""
    return mixture(paths.linear(), MEANS, 0.6, torch.tensor([0.5, 0.3, 0.2], dtype=F64))


def test_mixture_density():
    """log sum_k w_k N(x; m_k, S^2 I)."""
    x1 = MEANS[[0, 1, 2, 0]] + 0.6 * draw(4, 2)
    parts = torch.stack([log_normal(x1, m, 0.6) + math.log(w) for m, w in zip(MEANS, (0.5, 0.3, 0.2), strict=True)])
    torch.testing.assert_close(log_likelihood(three(), x1, 40, "rk4").log_p, parts.logsumexp(0), atol=1e-4, rtol=0)


def test_density_integrates_to_one():
    """Over a line, for a field that is no closed form: v = sin(2 x) cos(3 t)."""
    x1 = torch.linspace(-8, 8, 1601, dtype=F64)[:, None]
    log_p = log_likelihood(lambda x, t: torch.sin(2 * x) * torch.cos(3 * t), x1, 20, "rk4").log_p
    assert torch.trapezoid(log_p.exp(), x1[:, 0]).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("seed", [None, 5])
def test_both_directions_agree(seed):
    """A sample's density found on the way to it is the one found on the way back, exact or with one probe."""

    def probes():
        return None if seed is None else generator(seed)

    there = sample_with_likelihood(three(), draw(6, 2), 40, "rk4", probes())
    back = log_likelihood(three(), there.x1, 40, "rk4", probes())
    torch.testing.assert_close(back.log_p, there.log_p, atol=1e-4, rtol=0)
    torch.testing.assert_close(back.x0, there.x0, atol=1e-4, rtol=0)


def test_one_probe_for_the_whole_solve():
    """v = A x with one probe e: log p0(e^-A x) - e^T A e, so the same signs were used at every step."""
    A = matrix(3)
    x1 = draw(5, 3)
    e = rademacher(x1, generator(7))
    assert set(e.unique().tolist()) == {-1.0, 1.0}
    expected = log_normal(x1 @ torch.linalg.matrix_exp(-A).T) - torch.einsum("bi,ij,bj->b", e, A, e)
    found = log_likelihood(linear_flow(A), x1, 20, "rk4", generator(7))
    torch.testing.assert_close(found.log_p, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(found.log_p, log_likelihood(linear_flow(A), x1, 20, "rk4", generator(8)).log_p)


def test_estimate_is_unbiased():
    """The mean of 200 probes lies within 3 standard errors of the exact log density."""
    x1 = MEANS[[0, 1]] + 0.6 * draw(2, 2)
    exact = log_likelihood(three(), x1, 30).log_p
    many = log_likelihood(three(), x1.repeat(200, 1), 30, generator=generator(1)).log_p.view(200, 2)
    error = many.std(0) / math.sqrt(200)
    assert (error > 1e-3).all()
    assert ((many.mean(0) - exact).abs() < 3 * error).all()


def test_ragged_batch():
    """v_i = a x_i + b mean of its sample: div = n d a + d b for n rows of d, rows in any order."""
    index = torch.tensor([1, 0, 1, 1, 0, 3])  # samples 2 and 4 are empty
    a, b, d = 0.7, -0.4, 2

    def network(x, t, condition, index):
        count = torch.bincount(index, minlength=5).clamp(min=1)[:, None]
        mean = x.new_zeros(5, d).index_add(0, index, x) / count
        return a * x + b * mean[index]

    field = Field(network, paths.linear(), index=index, samples=5)
    x = draw(6, d)
    expected = torch.tensor([2.0, 3.0, 0.0, 1.0, 0.0], dtype=F64) * d * a + torch.tensor([1, 1, 0, 1, 0]) * d * b
    for chunk in (1, 4):
        torch.testing.assert_close(exact_divergence(field, x, torch.tensor(0.5), chunk)[1], expected)
    uncounted = Field(network, paths.linear(), index=index)  # as many samples as the index names
    torch.testing.assert_close(exact_divergence(uncounted, x, torch.tensor(0.5))[1], expected[:4])
    probe = rademacher(x, generator(0))
    _, estimate = estimated_divergence(field, x, torch.tensor(0.5), probe)
    per_row = (probe * network(probe, 0, None, index)).sum(1)
    torch.testing.assert_close(estimate, torch.zeros(5, dtype=F64).index_add(0, index, per_row))
    # each sample alone is the same density: an empty one has log p = 0
    found = log_likelihood(field, x, 20, "rk4").log_p
    for sample, n in ((0, 2), (1, 3), (3, 1)):
        A = torch.kron(a * torch.eye(n, dtype=F64) + b / n, torch.eye(d, dtype=F64))
        x0 = x[index == sample].reshape(1, -1) @ torch.linalg.matrix_exp(-A).T
        assert found[sample].item() == pytest.approx((log_normal(x0) - A.trace()).item(), abs=1e-6)
    assert found[2] == found[4] == 0


@pytest.mark.parametrize("probes", [None, 3])
def test_gradients_on_request(probes):
    """v = a x: d log p / d a = |e^-a x|^2 - d, and d log p / d x = -e^-2a x; no graph unless asked."""
    a = nn.Parameter(torch.tensor(0.4, dtype=F64))
    field = Field(lambda x, t, condition: a * x, paths.linear())
    x = draw(5, 3).requires_grad_()
    for _ in range(2):  # a second call must not meet the first one's graph
        found = log_likelihood(field, x, 20, "rk4", probes and generator(probes), differentiable=True)
        by_a, by_x = torch.autograd.grad(found.log_p.sum(), [a, x])
        z = (x * torch.exp(-a)).detach()
        torch.testing.assert_close(by_a, (z.square().sum(1) - 3).sum().detach(), atol=1e-5, rtol=0)
        torch.testing.assert_close(by_x, -z * math.exp(-0.4), atol=1e-5, rtol=0)

    there = sample_with_likelihood(field, x, 20, "rk4", probes and generator(probes), differentiable=True)
    torch.testing.assert_close(torch.autograd.grad(there.log_p.sum(), a)[0].item(), -15.0, atol=1e-6, rtol=0)

    for carry in (log_likelihood, sample_with_likelihood):
        plain = carry(field, x, 20, "rk4", probes and generator(probes))
        assert not plain.log_p.requires_grad
        with torch.no_grad():  # the caller's mode makes no difference
            silent = carry(field, x, 20, "rk4", probes and generator(probes))
        assert torch.equal(plain.log_p, silent.log_p)


def test_gradients_reach_a_network():
    """Maximum likelihood by its own gradient: it is the finite difference of log p in every parameter."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    field = Field(lambda x, t, condition: network(x) * t[:, None], paths.linear())
    x1 = draw(3, 2)
    log_likelihood(field, x1, 10, differentiable=True).log_p.sum().backward()
    for parameter in network.parameters():
        slope = torch.zeros_like(parameter)
        with torch.no_grad():
            for place in range(parameter.numel()):
                sides = []
                for step in (1e-5, -1e-5):
                    parameter.view(-1)[place] += step
                    sides.append(log_likelihood(field, x1, 10).log_p.sum())
                    parameter.view(-1)[place] -= step
                slope.view(-1)[place] = (sides[0] - sides[1]) / 2e-5
        assert slope.abs().max() > 0
        torch.testing.assert_close(parameter.grad, slope, atol=1e-7, rtol=1e-6)


def test_divergence_after_a_training_step():
    """The same x and t after the weights have changed: the evaluation that the field kept is not taken."""
    a = nn.Parameter(torch.tensor(1.0))
    field = Field(lambda x, t, condition: a * x, paths.linear())
    x, t = torch.ones(2, 3, requires_grad=True), torch.tensor(0.5)
    for value in (1.0, 2.0):
        with torch.no_grad():
            a.fill_(value)
        v, found = exact_divergence(field, x, t, differentiable=True)
        torch.testing.assert_close(found, torch.full((2,), 3 * value))
        (v.sum() + found.sum()).backward()


def test_divergence_costs_no_further_network_call():
    field = three()
    log_likelihood(field, draw(4, 2), 7, "midpoint")
    assert field.calls == 14


def test_velocity_that_ignores_part_of_the_state():
    """A leaf that moves at constant speed, or is moved by another leaf alone, adds nothing to the divergence."""
    x1 = {"a": draw(3, 2), "b": draw(3, 2, seed=1), "c": draw(3, 1, seed=2)}

    def v(x, t):
        return {"a": torch.ones_like(x["a"]), "b": x["a"] * 2.0, "c": 3.0 * x["c"]}

    for found in (
        exact_divergence(v, x1, torch.tensor(0.0)),
        exact_divergence(v, x1, torch.tensor(0.0), chunk=1),
    ):
        torch.testing.assert_close(found[1], torch.full((3,), 3.0, dtype=F64))
    still = log_likelihood(lambda x, t: torch.ones_like(x), x1["a"], 4, generator=generator(0))
    torch.testing.assert_close(still.log_p, log_normal(x1["a"] - 1))


def test_single_precision_images():
    """float32 stays float32, and the density of 1x8x8 images is right to a ten-thousandth of a nat per number."""
    mean = torch.zeros(1, 1, 8, 8)
    x1 = 1.3 * draw(2, 1, 8, 8).float()
    found = log_likelihood(mixture(paths.linear(), mean, 1.3), x1, 100)
    assert found.log_p.dtype == torch.float32
    torch.testing.assert_close(found.log_p, log_normal(x1, 0.0, 1.3), atol=64e-4, rtol=0)


def test_other_sources():
    """x0 from N(0, 2^2 I), v = A x: the given log density takes the place of the normal one."""
    A = matrix(2)
    x1 = draw(5, 2)
    found = log_likelihood(linear_flow(A), x1, 20, "rk4", log_source=lambda x0: log_normal(x0, 0.0, 2.0))
    expected = log_normal(x1 @ torch.linalg.matrix_exp(-A).T, 0.0, 2.0) - A.trace()
    torch.testing.assert_close(found.log_p, expected, atol=1e-6, rtol=0)


def student(path: paths.Affine) -> paths.Affine:
    return replace(path, source=paths.student_t(3.0))


def test_source_that_is_not_gaussian_is_refused():
    x = {"a": torch.zeros(2, 1), "b": torch.zeros(2, 1)}
    heavy = Field(lambda x, t, condition: x, student(paths.linear()))
    with pytest.raises(ValueError, match=r"source of path 'linear' is not N\(0, I\): pass .* log_source"):
        log_likelihood(heavy, x)
    mixed = paths.Product({"a": paths.linear(), "b": student(paths.cosine())})
    with pytest.raises(ValueError, match="product of paths"):
        sample_with_likelihood(Field(lambda x, t, condition: x, mixed), x)
    normal = paths.Product({"a": paths.linear(), "b": paths.cosine()})
    log_p = log_likelihood(Field(lambda x, t, condition: x, normal), x, 20, "rk4").log_p  # v = x on two numbers
    torch.testing.assert_close(log_p, torch.full((2,), -math.log(2 * math.pi) - 2))
    log_likelihood(heavy, x, 4, log_source=lambda x0: torch.zeros(2))


@pytest.mark.parametrize("path", [paths.linear(), paths.cosine()])
def test_singular_conversion_is_refused(path):
    """A field that predicts data has no velocity at t = 1, one that predicts noise none at t = 0."""
    exact = mixture(path, torch.zeros(1, 2, dtype=F64), 1.3)
    x = draw(3, 2)
    data = Field(lambda x, t, condition: exact.x1(x, t), path, "x1")
    noise = Field(lambda x, t, condition: exact.noise(x, t), path, "noise")
    with pytest.raises(ValueError, match=r"no velocity at t = 1 to a field that predicts 'x1'.*linspace\(0.001"):
        log_likelihood(data, x)
    with pytest.raises(ValueError, match="no velocity at t = 0 to a field that predicts 'noise'"):
        sample_with_likelihood(noise, x)
    inside = torch.linspace(0.001, 0.999, 21, dtype=F64)
    expected = log_likelihood(exact, x, inside, "rk4").log_p
    for field in (data, noise):
        torch.testing.assert_close(log_likelihood(field, x, inside, "rk4").log_p, expected, atol=1e-6, rtol=0)


def test_other_refusals():
    x = torch.zeros(2, 1)
    with pytest.raises(ValueError, match="ascends"):
        log_likelihood(lambda x, t: x, x, torch.linspace(1, 0, 5))
    with pytest.raises(ValueError, match=r"'exponential' needs more than a velocity.*midpoint"):
        log_likelihood(lambda x, t: x, x, method="exponential")
    with pytest.raises(FloatingPointError):
        log_likelihood(mixture(paths.linear(), torch.zeros(1, 1)), x)  # data on one point have no density


@pytest.mark.parametrize(("low", "high", "scale"), [(0.0, 1.0, 256.0), (-1.0, 1.0, 128.0)])
def test_bits_per_dimension(low, high, scale):
    """Noise spread evenly over 256 levels costs 8 bits a number, however the levels are scaled."""
    log_p = torch.full((3,), -12 * math.log(high - low))
    torch.testing.assert_close(bits_per_dimension(log_p, 12, scale), torch.full((3,), 8.0))
    # halving the width of the distribution saves one bit a number
    torch.testing.assert_close(bits_per_dimension(log_p + 12 * math.log(2), 12, scale), torch.full((3,), 7.0))
