"""The whole core on a GPU. What draws nothing must give there what it gives on the CPU, in float64 and on the device it
was given; what draws takes a generator of that device, and keeps its law. The laws themselves are tested elsewhere."""

import math

import pytest
import torch
from torch import nn

from flowcore import closed_form, distances, interpolants, jacobian, masked, paths, reflow, times
from flowcore.couplings import (
    Coupled,
    Pairs,
    automatic_eps,
    effective_sample_size,
    entropic,
    exact,
    gibbs,
    independent,
    sinkhorn,
    split,
    squared_distance,
    tilt,
    unbalanced,
)
from flowcore.data import Rows
from flowcore.diagnostics import denoising_loss, diagnose, normalised_path_energy, transport
from flowcore.field import Field, change_path
from flowcore.guidance import (
    classifier,
    classifier_free,
    gradient_skipping,
    linear_constraint,
    observation,
    quantile,
    replacement,
    squared_error,
)
from flowcore.likelihood import bits_per_dimension, log_likelihood, rademacher, sample_with_likelihood
from flowcore.losses import l2, matching_loss, pseudo_huber
from flowcore.seeds import generator
from flowcore.solvers import METHODS, edm_grid, solve, time_grid
from flowcore.state import leaves, tree_map

GPU = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

F64 = torch.float64
PATHS = {
    "linear": paths.linear(),
    "linear with floor": paths.linear(0.1),
    "polynomial": paths.polynomial(2),
    "cosine": paths.cosine(),
    "linear_vp": paths.linear_vp(),
    "vp": paths.vp(),
    "ve": paths.ve(5.0),
    "general": paths.general(lambda t: t, lambda t: (1 - t) * (1 + t / 2)),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
T = torch.tensor([0.1, 0.35, 0.6, 0.9], dtype=F64)
INDEX = torch.tensor([0, 2, 2, 1, 0, 3, 3, 3])  # eight rows of four samples


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=generator(seed, "normal"), dtype=dtype)


def draws(device=GPU, seed=0):
    return generator(seed, "test", device=device)


def put(state, device):
    """Tensors, in dicts, tuples or alone, on ``device``; the rest as it is."""
    if isinstance(state, dict):
        return {key: put(one, device) for key, one in state.items()}
    if isinstance(state, (tuple, list)):
        moved = [put(one, device) for one in state]
        return type(state)(*moved) if hasattr(state, "_fields") else type(state)(moved)
    return state.to(device) if isinstance(state, (torch.Tensor, nn.Module)) else state


def flat(answer):
    """The tensors and numbers of an answer, in order."""
    if isinstance(answer, dict):
        answer = list(answer.values())
    if isinstance(answer, (tuple, list)):
        return [leaf for one in answer for leaf in flat(one)]
    return [] if answer is None else [answer]


def alike(work, *given, rtol=1e-9, atol=1e-9):
    """``work(*given)`` on the GPU: its tensors are there, and equal to those it gives on the CPU."""
    wanted, found = flat(work(*given)), flat(work(*put(list(given), GPU)))
    for a, b in zip(found, wanted, strict=True):
        if not isinstance(a, torch.Tensor):
            assert a == pytest.approx(b, rel=rtol, abs=atol)
            continue
        assert a.device.type == GPU
        torch.testing.assert_close(a.cpu(), b, rtol=rtol, atol=atol)


def mixture(path, device, shape=(2,), std=0.5):
    return closed_form.mixture(path, put(normal(3, *shape, seed=9), device), std)


def on(x):
    """The device of a state."""
    return next(leaves(x)).device


# paths, times, losses, fields


@each_path
@pytest.mark.parametrize("t", [0.35, T], ids=["scalar", "per sample"])
def test_paths(path, t):
    def work(x0, x1, t):
        x = path.interpolate(x0, x1, t)
        v = path.target("velocity", x0, x1, t)
        converted = [path.convert(v, x, t, "velocity", kind) for kind in ("x1", "noise", "score")]
        ratio = path.inverse(path.alpha(T.to(on(x0))), path.sigma(T.to(on(x0))))
        return x, v, converted, ratio, path.initial(x0)

    alike(work, normal(4, 4), normal(4, 4, seed=1), t)
    ragged = ({"a": normal(8, 3, seed=i), "b": normal(4, 2, 3, seed=i + 2)} for i in (0, 1))
    alike(lambda x0, x1, t: path.interpolate(x0, x1, t, {"a": INDEX.to(on(x0))}), *ragged, t)


@pytest.mark.parametrize("source", [paths.gaussian, paths.student_t(10.0)], ids=["gaussian", "student"])
def test_sources(source):
    like = torch.empty(20000, 3, 2, device=GPU)
    x0 = source(like, draws())
    assert (x0.device.type, x0.dtype, x0.shape) == (GPU, torch.float32, like.shape)
    assert torch.equal(x0, source(like, draws()))
    wanted = 1.0 if source is paths.gaussian else 10 / 8
    assert x0.double().square().mean().item() == pytest.approx(wanted, rel=0.05)


FACTORIES = [times.uniform, times.logit_normal, times.u_shaped, times.mode, times.cosmap, times.log_normal_noise]


@pytest.mark.parametrize("make", FACTORIES)
@pytest.mark.parametrize("stratified", [False, True])
def test_times(make, stratified):
    law = make(stratified=stratified)
    t = law(1000, draws())
    assert (t.device.type, t.dtype, t.shape) == (GPU, F64, (1000,))
    u = torch.linspace(0.01, 0.99, 99, dtype=F64)
    alike(lambda u: (law.quantile(u), law.density(law.quantile(u)), times.shifted(law, 3.0).quantile(u)), u)
    cells = torch.bucketize(t, law.quantile(torch.linspace(0, 1, 11, dtype=F64, device=GPU)[1:-1])).bincount()
    assert (cells - 100).abs().max() <= (1 if stratified else 50)
    if make is not times.uniform:
        assert make(importance=True).weights(t).device.type == GPU


@pytest.mark.parametrize("metric", [l2(), pseudo_huber(0.1)], ids=["l2", "pseudo-huber"])
@pytest.mark.parametrize("ragged", [False, True])
def test_matching_loss(metric, ragged):
    """On a dict whose first leaf may be ragged, with weights, a perceptual part and a gradient."""
    rows = len(INDEX) if ragged else 4

    def work(x0, x1, weight, t, index, slope):
        slope = slope.clone().requires_grad_()
        index = {"a": index} if ragged else None
        field = Field(lambda x, t, c: tree_map(lambda leaf: torch.sin(slope * leaf), x), paths.cosine(), samples=4)
        loss = matching_loss(
            field, Pairs(x0, x1, weight), t, metric, index, weight,
            perceptual=lambda guess, data, t: t * (guess["b"] - data["b"]).square().mean((1, 2)),
        )  # fmt: skip
        return loss.detach(), torch.autograd.grad(loss.sum(), slope)[0]

    x0, x1 = ({"a": normal(rows, 3, seed=i), "b": normal(4, 2, 3, seed=i + 2)} for i in (0, 1))
    alike(work, x0, x1, T + 0.5, T, INDEX, torch.tensor(1.3, dtype=F64))


def test_matching_loss_under_autocast():
    network, x0, x1 = (
        nn.Linear(16, 16, device=GPU),
        normal(64, 16).float().to(GPU),
        normal(64, 16, seed=1).float().to(GPU),
    )
    field, t = Field(lambda x, t, c: network(x), paths.linear()), times.uniform()(64, draws())
    full = matching_loss(field, Pairs(x0, x1), t)
    with torch.autocast(GPU, torch.bfloat16):
        loss = matching_loss(field, Pairs(x0, x1), t)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, full, rtol=0.05, atol=0.02)


@each_path
@pytest.mark.parametrize("t", [0.35, T], ids=["scalar", "per sample"])
def test_fields(path, t):
    def work(x, t):
        field, x = mixture(path, on(x)), x.clone()
        answers = field.velocity(x, t), field.x1(x, t), field.noise(x, t), field.score(x, t), field.velocity_once(x, t)
        assert field.calls == 2
        x += 1  # in place, which is noticed there as here
        return *answers, field.velocity(x, t), change_path(field, paths.linear()).velocity(x, t)

    alike(work, normal(4, 2), t)


def test_a_null_condition_and_a_time_from_the_cpu():
    field = Field(
        lambda x, t, c: x * c[:, None] + t[:, None], paths.linear(), condition=torch.ones(4, device=GPU), null=7
    )
    assert field.null_condition().tolist() == [7] * 4
    x = normal(4, 2).to(GPU)
    told = field.with_condition(field.null_condition())
    torch.testing.assert_close(told.velocity(x, torch.tensor(0.5)), 7 * x + 0.5)


# couplings


@pytest.mark.parametrize("n", [120, 300])
@pytest.mark.parametrize("d", [2, 64])
@pytest.mark.parametrize("condition", ["none", "classes", "numbers"])
def test_exact_coupling(n, d, condition):
    """The same permutation, by either solver, and everything where the data are."""
    label = torch.arange(n) % 3
    weight, told = {"none": (None, None), "classes": (math.inf, label), "numbers": (0.7, normal(n, 2, seed=5))}[
        condition
    ]

    def work(x0, x1, told):
        pairs = exact(weight)(x0, x1, told, None)
        return pairs.x0, pairs.x1, pairs.index, [part.x0 for part in split(pairs, 4)]

    alike(work, normal(n, d), 5 * normal(n, d, seed=1).sign() + 0.3 * normal(n, d, seed=2), told)


@pytest.mark.parametrize("reg_m", [math.inf, 10.0])
def test_plans(reg_m):
    def work(x0, x1):
        return squared_distance(x1, x0), sinkhorn(squared_distance(x1, x0), 2.0, reg_m), tilt(x0, x1, 3.0)

    alike(work, normal(100, 8), 1 + 2 * normal(100, 8, seed=1))
    tokens, other = torch.arange(60).reshape(20, 3) % 7, torch.arange(60).reshape(20, 3) % 5
    alike(squared_distance, {"a": normal(20, 3), "b": tokens}, {"a": normal(20, 3, seed=1), "b": other})


@pytest.mark.parametrize("make", [entropic, unbalanced])
def test_partners_are_drawn_from_the_plan(make):
    """Five samples, each 200 times, meet as often as the plan of the five says."""
    x0, x1 = normal(5, 2).to(GPU), (1 + 2 * normal(5, 2, seed=1)).to(GPU)
    pairs = make(4.0)(x0.repeat(200, 1), x1.repeat(200, 1), None, draws())
    i, j = pairs.index
    assert {one.device.type for one in (i, j, pairs.x0, pairs.x1)} == {GPU}
    met = torch.bincount(5 * (j % 5) + i % 5, minlength=25).reshape(5, 5) / 200
    plan = sinkhorn(squared_distance(x1, x0), 4.0, math.inf if make is entropic else 100.0)
    torch.testing.assert_close(met.double(), plan.softmax(1), rtol=0, atol=0.14)
    if make is unbalanced:
        torch.testing.assert_close(pairs.weight[:5], (mass := plan.exp().sum(1)) / mass.mean(), rtol=1e-2, atol=1e-2)
    label = torch.arange(90, device=GPU) % 3
    pairs = make(condition_weight=math.inf)(normal(90, 2).to(GPU), normal(90, 2, seed=1).to(GPU), label, draws())
    assert torch.equal(label[pairs.index[0]], label)


def test_gibbs_weights_and_independent_pairs():
    def work(x0, x1):
        weight = gibbs(2.0)(x0, x1, None, None).weight
        return weight, gibbs(ess=0.7)(x0, x1, None, None).weight, automatic_eps(x0, x1), effective_sample_size(weight)

    alike(work, normal(100, 8), normal(100, 8, seed=1))
    x = normal(12, 2).to(GPU)
    pairs = independent()(x, x + 1, None, draws())
    assert pairs.x0 is x
    assert split(pairs, 3)[2].x1.device.type == GPU


def test_coupling_under_autocast():
    x0, x1 = normal(300, 16).float().to(GPU), normal(300, 16, seed=1).float().to(GPU)
    plain = exact()(x0, x1, None, None)
    with torch.autocast(GPU, torch.bfloat16):
        assert torch.equal(exact()(x0, x1, None, None).index[0], plain.index[0])


def test_a_coupled_source_of_samples_on_the_gpu():
    x1, label = normal(100, 2).to(GPU), (torch.arange(100) % 2).to(GPU)
    coupled = Coupled(Rows(x1, label), paths.linear().draw_source, exact(math.inf))
    batch = coupled.batch(torch.arange(32), draws())
    x0 = paths.linear().draw_source(x1[:32], draws())
    assert torch.equal(batch.x0, exact(math.inf)(x0, x1[:32], label[:32], None).x0)


# solvers and guidance


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"euler_maruyama"}))
@pytest.mark.parametrize("name", ["linear", "vp", "ve"])
def test_solvers(method, name):
    path = PATHS[name]

    def work(x):
        field = mixture(path, on(x))
        watched = []
        end = solve(field, path.initial(x), 12, method, callback=lambda i, t, x: watched.append(x))
        late = time_grid(6, path.start + 0.1, path.stop - 0.1)
        with torch.inference_mode():
            again = solve(field, path.initial(x), 12, method)
        return end, again, len(watched), solve(field, x, late.to(on(x)).flip(0), method), field.calls

    alike(work, normal(5, 2), rtol=1e-6, atol=1e-6)


def test_solvers_on_dicts_and_the_edm_grid():
    def work(x):
        velocity = lambda x, t: tree_map(lambda leaf: -leaf * (1 + t), x)  # noqa: E731
        return [solve(velocity, x, 7, method) for method in ("euler", "midpoint", "heun", "rk4", "dopri5")]

    alike(work, {"a": normal(3, 2), "b": {"c": normal(3, 2, 2, seed=1)}}, rtol=1e-6, atol=1e-6)
    alike(lambda x: solve(mixture(paths.ve(), on(x), std=0.2), 80 * x, edm_grid(18), "heun"), normal(5, 2), rtol=1e-6)


def test_an_sde_on_the_gpu_ends_with_the_mean_and_the_variance_of_the_data():
    field = closed_form.mixture(paths.linear(), torch.full((1, 1), 1.5, dtype=F64, device=GPU), 0.5)
    x = solve(field, normal(20000, 1).to(GPU), 200, "euler_maruyama", generator=draws())
    assert x.device.type == GPU
    assert x.mean().item() == pytest.approx(1.5, abs=0.03)
    assert x.var().item() == pytest.approx(0.25, abs=0.03)


Y, MASK = torch.ones(4, dtype=F64), torch.arange(4) % 2 == 0


def guidances(device):
    """One of each, for four numbers and a condition of one."""
    y, mask = Y.to(device), MASK.to(device)
    ones = torch.ones(1, 4, dtype=F64, device=device)
    return {
        "classifier_free": classifier_free(1.5, (0.0, 0.9)),
        "classifier": classifier(lambda x, t: -t * (x - 1).square().flatten(1).sum(1), 0.5),
        "gradient_skipping": gradient_skipping(squared_error(y, mask), 0.3, repeats=2),
        "observation": observation(squared_error(y, mask), 0.5),
        "observation state": observation(squared_error(y, mask), 0.5, "state"),
        "quantile": observation(quantile(y, mask), 0.5),
        "linear_constraint": linear_constraint(ones, ones[0, :1], noise=0.1),
        "projection": linear_constraint(ones, ones[0, :1], covariance=torch.diag(y + mask)),
        "replacement": replacement(y, mask),
    }


def conditional(device, dtype=F64):
    """A network of (x, t, condition) on ``device``."""
    weight, told = (put(normal(*shape, seed=8, dtype=dtype) / 2, device) for shape in ((5, 4), (1, 4)))

    def network(x, t, condition):
        return torch.tanh(torch.cat([x, t[:, None]], 1) @ weight + condition[:, None] * told)

    condition = torch.linspace(0.5, 1, 3, dtype=dtype, device=device)
    return Field(network, paths.linear(), condition=condition, null=torch.tensor(0.0))


@pytest.mark.parametrize("name", guidances("cpu"))
@pytest.mark.parametrize("method", ["euler", "midpoint", "exponential"])
def test_guidance(name, method):
    if name == "replacement":  # which draws
        x = solve(conditional(GPU), normal(3, 4).to(GPU), 8, method, [guidances(GPU)[name]], generator=draws())
        assert torch.equal(x[:, MASK], Y.to(GPU)[MASK].expand(3, 2))
        return
    alike(
        lambda x: solve(conditional(on(x)), x, 8, method, [guidances(on(x))[name]]), normal(3, 4), rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("guided", [False, True])
def test_memory_is_flat_over_a_thousand_steps(guided):
    held = {}

    def callback(i, t, x):
        if i in (10, 450, 880):  # while every guidance acts: one stops at 0.9
            held[i] = torch.cuda.memory_allocated()

    guidance = list(guidances(GPU).values()) if guided else []
    solve(conditional(GPU), normal(3, 4).to(GPU), 1000, guidance=guidance, callback=callback, generator=draws())
    assert held[10] == held[450] == held[880]


# tokens


TOKENS = 5  # and MASK is the next
KAPPAS = [masked.linear(TOKENS), masked.polynomial(TOKENS), masked.cosine(TOKENS)]
each_kappa = pytest.mark.parametrize("kappa", KAPPAS, ids=lambda one: one.name)
LOGITS = torch.tensor([0.0, 1, -1, 2, 0.5, 9])  # independent tokens; MASK too has a logit, which must not count
ENTROPY = torch.distributions.Categorical(logits=LOGITS[:5].double()).entropy().item()


def independent_tokens(x, t, condition):
    assert {x.device.type, t.device.type} == {GPU}
    return LOGITS.to(x.device).expand(*x.shape, 6)


@each_kappa
def test_the_bounds_of_independent_tokens_are_their_entropy(kappa):
    x1 = torch.multinomial(LOGITS[:5].softmax(0), 24000, True, generator=generator(0)).view(4000, 6).to(GPU)
    t = times.uniform(stratified=True)(4000, draws())
    for kind in (masked.bound, masked.any_order_bound):
        nats = kind(independent_tokens, kappa, x1, t, draws(seed=1))
        assert (nats.device.type, nats.shape) == (GPU, (4000,))
        assert abs(nats.mean().item() - 6 * ENTROPY) < 5 * nats.std().item() / 4000**0.5
        free = torch.zeros_like(x1, dtype=torch.bool)
        assert not kind(independent_tokens, kappa, x1[:3], t[:3], draws(), free=free[:3]).any()
    hidden = kappa.sample(x1, 0.3, draws()) == TOKENS
    assert hidden.double().mean().item() == pytest.approx(1 - kappa.kappa(torch.tensor(0.3)).item(), abs=0.02)
    ragged = kappa.sample(x1[:8], torch.tensor([0.0, 1.0, 0.0, 1.0], device=GPU), draws(), index=INDEX.to(GPU))
    assert torch.equal((ragged == TOKENS).all(1).cpu(), INDEX % 2 == 0)


PLANS = {
    "tweedie": masked.tweedie(8),
    "euler": masked.euler(8),
    "first hitting": masked.first_hitting(),
    "random order": masked.ordered(),
    "left to right": masked.ordered(torch.arange(6)),
    "pairs": masked.ordered(size=2),
}


@each_kappa
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_generated_tokens_follow_the_network_and_the_given_ones_stay(kappa, plan):
    x = torch.full((1000, 6), TOKENS, device=GPU)
    x[:, 2] = 4
    told = {"row": torch.arange(1000, device=GPU)}
    seen = []

    def network(x, t, condition):
        seen.append(len(condition["row"]) == len(x))
        return independent_tokens(x, t, condition)

    out = masked.generate(network, kappa, x, plan, draws(), told, warp=lambda logits: logits / 1.0)
    assert {one.device.type for one in out} == {GPU}
    assert all(seen)
    assert (out.x[:, 2] == 4).all()
    assert 0 < out.calls.max() <= 8
    shares = out.x[:, [0, 1, 3, 4, 5]].flatten().bincount(minlength=6) / 5000
    torch.testing.assert_close(shares[:5].cpu(), LOGITS[:5].softmax(0), rtol=0, atol=0.03)
    assert shares[5] == 0


@each_kappa
def test_jump_steps_keep_the_marginals_of_the_path(kappa):
    x, grid = torch.full((4000, 3), TOKENS, device=GPU), torch.linspace(0, 1, 41, dtype=F64)
    logits = LOGITS.to(GPU).expand(4000, 3, 6)
    noise = draws()
    for t, r in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        x = masked.euler_step(kappa, x, logits, t, r, noise, remask=0.5)
        if abs(r - 0.5) < 1e-9:
            share = (x == TOKENS).double().mean().item()
            assert share == pytest.approx(1 - kappa.kappa(torch.tensor(0.5)).item(), abs=0.05)
    assert x.device.type == GPU
    assert (x != TOKENS).all()


def test_categorical():
    u = torch.rand(200, 3, generator=generator(0), dtype=F64)
    alike(lambda logits, u: masked.categorical(logits, u), normal(200, 3, 7), u)


# interpolants


GAMMAS = {
    "brownian": interpolants.brownian(),
    "quadratic": interpolants.quadratic(),
    "sine": interpolants.sine_squared(),
}
KINDS = {
    "linear": interpolants.linear,
    "trigonometric": interpolants.trigonometric,
    "encoding": interpolants.encoding_decoding,
    "mirror": interpolants.mirror,
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("gamma", GAMMAS.values(), ids=GAMMAS.keys())
def test_interpolants(kind, gamma):
    path = kind(gamma)
    alike(lambda x0, x1, t, z: (path.interpolate(x0, x1, t, z), path.drift(x0, x1, t), path.spread(t)),
          normal(4, 3), normal(4, 3, seed=1), T, normal(4, 3, seed=2))  # fmt: skip


def bridge(device):
    ends = (put(normal(2, 2, seed=4), device), 0.5), (put(normal(3, 2, seed=5), device), 0.4)
    return closed_form.interpolant_mixture(interpolants.bridge(0.8), *ends)


def test_interpolant_fields():
    def work(x, t):
        field = bridge(on(x))
        return field.velocity(x, t), field.denoiser(x, t), field.score(x, t), solve(field, x, 10, "heun"), field.calls

    alike(work, normal(4, 2), T)
    pairs = Pairs(normal(256, 2).to(GPU), normal(256, 2, seed=1).to(GPU), torch.ones(256, device=GPU))
    loss = interpolants.interpolant_loss(bridge(GPU), pairs, times.uniform()(256, draws()), draws())
    assert (loss.device.type, loss.shape) == (GPU, (256,))
    assert loss.isfinite().all()
    x = solve(bridge(GPU), normal(256, 2).to(GPU), 50, "euler_maruyama", generator=draws())
    assert x.device.type == GPU


# densities, derivatives, diagnostics, distances


IMAGE = (1, 3, 3)


@pytest.mark.parametrize("shape", [(2,), IMAGE], ids=str)
def test_exact_likelihood(shape):
    def work(x1):
        field = mixture(paths.linear(), on(x1), shape)
        found = log_likelihood(field, x1, 10), sample_with_likelihood(field, x1, 10, chunk=4)
        parameter = torch.tensor(0.5, dtype=F64, device=on(x1), requires_grad=True)
        scaled = log_likelihood(lambda x, t: parameter * field(x, t), x1, 4, differentiable=True).log_p.sum()
        return found, bits_per_dimension(found[0].log_p, 9), torch.autograd.grad(scaled, parameter)

    alike(work, normal(4, *shape), rtol=1e-7, atol=1e-7)


def test_the_likelihood_of_ragged_dicts():
    def work(x, index):
        field = Field(lambda x, t, c, index: tree_map(torch.sin, x), paths.linear(), index={"a": index}, samples=4)
        return log_likelihood(field, x, 5)

    alike(work, {"a": normal(8, 2), "b": normal(4, 3)}, INDEX, rtol=1e-7, atol=1e-7)


def test_hutchinsons_estimate_on_images():
    x1, field = normal(1, *IMAGE).to(GPU).expand(500, *IMAGE).contiguous(), mixture(paths.linear(), GPU, IMAGE)
    estimate = log_likelihood(field, x1, 10, generator=draws()).log_p
    wanted = log_likelihood(field, x1[:1], 10).log_p
    assert estimate.device.type == GPU
    assert (estimate.mean() - wanted).abs().item() < 5 * estimate.std().item() / 500**0.5
    probe = rademacher({"a": x1}, draws())["a"]
    assert probe.device.type == GPU
    assert torch.equal(probe.abs(), torch.ones_like(probe))


def test_derivatives():
    def work(x, e, plane):
        field = mixture(paths.linear(), on(x), IMAGE)
        circle, triangle = jacobian.circle(x, plane, 0.5), jacobian.triangle(x, plane, 0.5)
        spectrum = jacobian.flow_spectrum(field, x, 5)
        return (
            jacobian.jacobian(field, x, 0.4),
            jacobian.jacobian_products(field, x, 0.4, e),
            jacobian.asymmetry(field, x, 0.4),
            jacobian.negative_mass(field.x1, x, 0.4),
            jacobian.line_integral(field, circle, x, 0.4),
            jacobian.line_integral(field, triangle, x, 0.4),
            jacobian.path_dependence(field.score, x, 2 * x, -x, 0.4),
            jacobian.gauge_residual(lambda x, t: x.flip(1), field.score, x, 0.4),
            spectrum.values,
            jacobian.flow_dimension(spectrum.values[-1], 1e-3),
        )

    plane = jacobian.random_plane(normal(3, *IMAGE), generator(0))
    alike(work, normal(3, *IMAGE), normal(3, 9, seed=1), plane, rtol=1e-7, atol=1e-7)


def test_derivatives_that_draw():
    x, field = normal(3, *IMAGE).to(GPU), mixture(paths.linear(), GPU, IMAGE)
    plane = jacobian.random_plane(x, draws())
    torch.testing.assert_close(plane.mT @ plane, torch.eye(2, dtype=F64, device=GPU).expand(3, 2, 2))
    assert jacobian.asymmetry(field, x, 0.4, 5, draws()).max() < 1e-6  # an exact field is a gradient
    assert jacobian.gauge_residual(lambda x, t: 0 * x, field.score, x, 0.4, 2, draws()).abs().max() < 1e-9
    values = jacobian.score_spectrum(field, x, 0.9, draws())
    assert values.device.type == jacobian.score_dimension(values).device.type == GPU
    rows = normal(512, 2).to(GPU)
    assert jacobian.gauge_share(lambda x, t: x, rows, 0.5, draws(), steps=50) < 0.1
    assert jacobian.gauge_share(lambda x, t: x.flip(1) * x.new_tensor([1.0, -1]), rows, 0.5, draws(), steps=50) > 0.8


def test_diagnostics():
    def work(x):
        found = transport(mixture(paths.cosine(), on(x)), x, 20)
        return tuple(found), tuple(normalised_path_energy(found, 1.0))

    alike(work, normal(50, 2))
    x0, x1, field = normal(500, 2).to(GPU), normal(500, 2, seed=1).to(GPU), mixture(paths.linear(), GPU)
    loss = denoising_loss(field, Pairs(x0, x1, torch.ones(500, device=GPU)), draws(), 5).loss
    assert loss.isfinite().all()
    geometry = diagnose(field, x1[:20], [0.3, 0.7], draws())
    assert max(one.asymmetry + abs(one.loop) + one.negative for one in geometry) < 1e-6


def test_distances():
    def work(x, y):
        transported = distances.wasserstein(x, y, 1), distances.wasserstein(x, y)
        kernels = distances.median_bandwidth(x, y), distances.squared_mmd(x, y), distances.squared_mmd(x, y, [1.0, 2.0])
        return *transported, *kernels, distances.energy_distance(x, y)

    alike(work, normal(200, 3), normal(150, 3, seed=1) + 0.5)


def test_distillation():
    def work(x0, x1):
        student = mixture(paths.linear(), on(x0))
        return reflow.one_step_loss(student, Pairs(x0, x1)), reflow.k_step_loss(
            student, Pairs(x0, x1), 1, draws(on(x0))
        )

    alike(work, normal(20, 2), normal(20, 2, seed=1))
    pairs = Pairs(normal(20, 2).to(GPU), normal(20, 2, seed=1).to(GPU))
    assert reflow.k_step_loss(mixture(paths.linear(), GPU), pairs, 4, draws()).device.type == GPU
