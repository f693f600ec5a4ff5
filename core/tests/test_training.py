import math
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from flowcore import paths
from flowcore.closed_form import mixture
from flowcore.couplings import Pairs
from flowcore.data import Rows
from flowcore.errors import FlowError
from flowcore.field import Field
from flowcore.losses import matching_loss
from flowcore.seeds import generator
from flowcore.training.ema import Average
from flowcore.training.engine import Engine
from flowcore.training.loop import TrainState, begin, fit, rate
from flowcore.training.settings import EngineSettings
from flowcore.training.settings import TrainSettings as Settings


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed, "normal"), dtype=dtype)


def quiet(row):
    pass


def train(network, loss, source, settings, seed=0, state=None, workers=0, **hooks):
    engine = Engine(EngineSettings(workers=workers, accelerator="cpu"))
    state = state or begin(network, settings, engine)
    hooks["engine"] = engine
    return fit(state, loss, source, settings, seed, hooks.pop("log", quiet), hooks.pop("save", quiet), **hooks)


def small(seed=0, dropout=0.3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 16), nn.SELU(), nn.Dropout(dropout), nn.Linear(16, 2))


def flow_loss(network, batch, g):
    """A matching loss with every source of randomness: x0, t and the network's dropout."""
    path = paths.linear()
    x0 = path.draw_source(batch.x1, g)
    t = torch.rand(len(batch), generator=g)
    field = Field(lambda x, time, condition: network(torch.cat([x, time[:, None]], 1)), path)
    return matching_loss(field, Pairs(x0, batch.x1), t)


def weights(state):
    return [p.detach().clone() for p in state.network.parameters()] + [p.clone() for p in state.ema.module.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


DATA = Rows(normal(37, 2, dtype=torch.float32), transform=lambda batch, g: batch)


# the step of a batch


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_knows_the_step_it_is_used_in_also_where_a_run_goes_on(workers):
    seen = []

    def loss(network, batch, g):
        seen.append(batch.step)
        return flow_loss(network, batch, g)

    settings = Settings(steps=3, batch_size=8, accumulate=2)
    state = train(small(), loss, DATA, settings, workers=workers)
    assert seen == [0, 0, 1, 1, 2, 2]
    train(None, loss, DATA, settings.model_copy(update={"steps": 5}), state=state, workers=workers)
    assert seen[6:] == [3, 3, 4, 4]


# the same twice


def test_one_seed_gives_the_same_weights_to_the_last_bit_whatever_was_drawn_before():
    settings = Settings(steps=12, batch_size=8)
    one = train(small(), flow_loss, DATA, settings, seed=4)
    network = small()
    torch.manual_seed(99)
    torch.rand(1000)
    assert same(weights(one), weights(train(network, flow_loss, DATA, settings, seed=4)))


def test_another_seed_gives_other_weights():
    settings = Settings(steps=3, batch_size=8)
    one, other = (train(small(), flow_loss, DATA, settings, seed=seed) for seed in (0, 1))
    assert not same(weights(one), weights(other))


def test_workers_that_make_the_batches_change_no_bit():
    settings = Settings(steps=12, batch_size=8)
    alone, helped = (train(small(), flow_loss, DATA, settings, workers=workers) for workers in (0, 2))
    assert same(weights(alone), weights(helped))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_run_that_is_stopped_and_goes_on_is_the_run_that_was_not_stopped(schedule):
    settings = Settings(steps=20, batch_size=8, schedule=schedule, warmup=4)
    whole = train(small(), flow_loss, DATA, settings)

    def stop(step):
        if step == 11:
            raise KeyboardInterrupt

    state = begin(small(), settings, Engine(EngineSettings(accelerator="cpu")))
    with pytest.raises(KeyboardInterrupt):
        train(None, flow_loss, DATA, settings, state=state, after_step=stop)
    assert state.step == 11
    torch.rand(7)  # the global generator is elsewhere by now
    assert same(weights(train(None, flow_loss, DATA, settings, state=state)), weights(whole))


def test_a_run_that_is_at_its_end_does_nothing():
    settings, saved = Settings(steps=5, batch_size=8), []
    state = train(small(), flow_loss, DATA, settings)
    before = weights(state)
    train(None, flow_loss, DATA, settings, state=state, save=saved.append)
    assert same(weights(state), before)
    assert saved == []


def test_no_steps_keep_the_network_as_it_was_built():
    network, kept = small(), []
    before = [p.clone() for p in network.parameters()]
    state = train(network, flow_loss, DATA, Settings(steps=0, batch_size=8), save=lambda state: kept.append(state.step))
    assert kept == [0]
    assert same(weights(state), 2 * before)


def test_steps_draw_differently():
    seen = []

    def loss(network, batch, g):
        seen.append((torch.rand(1, generator=g).item(), torch.rand(1).item()))
        return network(torch.zeros(len(batch), 3)).square().mean(1)

    train(small(), loss, DATA, Settings(steps=10, batch_size=4))
    assert len({own for own, _ in seen}) == 10  # the loss's generator
    assert len({shared for _, shared in seen}) == 10  # and the global one, which dropout uses


# exact trajectories: plain gradient descent on a parabola


class Scalar(nn.Module):
    """One weight, and the loss (w - x1)^2 / 2."""

    def __init__(self, start=0.0, dtype=torch.float64):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=dtype))


def parabola(network, batch, g):
    return (network.w - batch.x1).square() / 2


def descent(settings, start=0.0, target=1.0):
    network = Scalar(start)
    state = TrainState(network, Average(network, settings.ema), torch.optim.SGD(network.parameters(), lr=1.0))
    return state, Rows(torch.full((4,), target, dtype=torch.float64))


def test_the_steps_are_those_of_the_optimiser_at_the_scheduled_rate():
    """w' = w - r (w - 1), so 1 - w_n is the product of the 1 - r_i."""
    settings = Settings(steps=9, batch_size=2, lr=0.3, schedule="cosine", warmup=3, clip=None)
    state, source = descent(settings)
    train(None, parabola, source, settings, state=state)
    left = math.prod(1 - rate(settings, step) for step in range(9))
    assert 1 - state.network.w.item() == pytest.approx(left, rel=1e-12)


@pytest.mark.parametrize("clip", [0.5, None])
def test_a_gradient_above_the_clip_is_shortened_to_it_and_the_norm_before_is_logged(clip):
    settings, rows = Settings(steps=1, batch_size=2, lr=0.1, clip=clip), []
    state, source = descent(settings, target=10.0)
    train(None, parabola, source, settings, state=state, log=rows.append)
    assert state.network.w.item() == pytest.approx(0.1 * (clip or 10.0), rel=1e-5)
    assert rows[0]["grad_norm"] == pytest.approx(10.0)


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.9])
def test_the_loop_averages_every_step(decay):
    settings = Settings(steps=8, batch_size=2, lr=0.3, clip=None, ema=decay)
    state, source = descent(settings)
    seen = []
    train(None, parabola, source, settings, state=state, after_step=lambda step: seen.append(state.network.w.item()))
    mean = seen[0]  # the average begins at the first weights it is given
    for n, w in enumerate(seen[1:], 1):
        d = min(decay, (1 + n) / (10 + n))
        mean = d * mean + (1 - d) * w
    assert state.ema.module.w.item() == pytest.approx(mean, rel=1e-12)
    assert int(state.ema.n_averaged) == 8


def test_the_default_optimiser_is_adamw_as_set():
    state = begin(small(), Settings(lr=0.01, weight_decay=0.2))
    (group,) = state.optimizer.param_groups
    assert isinstance(state.optimizer, torch.optim.AdamW)
    assert (group["lr"], group["weight_decay"], state.step) == (0.01, 0.2, 0)


def test_weight_decay_alone_shrinks_the_weights_geometrically():
    """AdamW with a zero gradient: w' = (1 - lr wd) w."""
    network = Scalar(2.0)
    settings = Settings(steps=5, batch_size=2, lr=0.1, weight_decay=0.5, clip=None)
    train(network, lambda network, batch, g: 0 * network.w * batch.x1, Rows(torch.ones(4).double()), settings)
    assert network.w.item() == pytest.approx(2 * 0.95**5, rel=1e-9)


def test_frozen_parameters_stay():
    network = small()
    network[0].weight.requires_grad_(False)
    before = network[0].weight.clone()
    train(network, flow_loss, DATA, Settings(steps=3, batch_size=8, weight_decay=0.1))
    assert torch.equal(network[0].weight, before)


def test_a_network_with_complex_weights_trains_and_is_averaged():
    """Spectral layers have them."""

    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0 + 1.0j, -2.0j]))

    def loss(network, batch, g):
        return (network.w - batch.x1[:, None]).abs().square().sum(1)

    network, settings = Spectral(), Settings(steps=100, batch_size=4, lr=0.08, ema=0.5)
    state = train(network, loss, Rows(torch.full((4,), 0.5)), settings)
    torch.testing.assert_close(network.w.detach(), torch.full((2,), 0.5 + 0j), rtol=0, atol=0.05)
    assert not torch.equal(state.ema.module.w, network.w)


# the learning rate


def test_the_rate_rises_over_the_warm_up_and_then_stays():
    settings = Settings(steps=100, lr=0.8, warmup=3)
    assert [rate(settings, step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert [rate(Settings(steps=100, lr=0.8), step) for step in (0, 50, 99)] == pytest.approx([0.8] * 3)


def test_the_cosine_schedule_falls_to_zero_from_the_end_of_the_warm_up():
    settings = Settings(steps=110, lr=0.8, warmup=10, schedule="cosine")
    rates = [rate(settings, step) for step in range(111)]
    assert rates[10] == max(rates) == pytest.approx(0.8)
    assert rates[60] == pytest.approx(0.4)
    assert rates[110] == pytest.approx(0, abs=1e-12)
    for step in (20, 45, 99):
        assert rates[step] == pytest.approx(0.4 * (1 + math.cos(math.pi * (step - 10) / 100)))
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert all(a > b for a, b in pairwise(rates[10:]))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_warm_up_longer_than_the_run_only_rises(schedule):
    settings = Settings(steps=5, lr=1.0, warmup=9, schedule=schedule)
    rates = [rate(settings, step) for step in range(5)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


# the average of the weights


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("scale", torch.tensor([0.1, 1 / 3]))


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_the_average_has_its_closed_form_with_a_warm_up(decay):
    """m_0 = w_0, m_n = d_n m_(n-1) + (1 - d_n) w_n: unrolled, each w_k counts (1 - d_k) prod_(j > k) d_j."""
    network, N = Buffered(), 25
    ema = Average(network, decay)
    seen = normal(N, 3)
    for w in seen:
        network.w.data.copy_(w)
        ema.update_parameters(network)
    d = [min(decay, (1 + n) / (10 + n)) for n in range(N)]
    shares = [math.prod(d[1:])] + [(1 - d[k]) * math.prod(d[k + 1 :]) for k in range(1, N)]
    assert sum(shares) == pytest.approx(1)
    wanted = (torch.tensor(shares, dtype=torch.float64)[:, None] * seen).sum(0)
    torch.testing.assert_close(ema.module.w.detach(), wanted)


def test_after_the_warm_up_a_gap_closes_as_decay_to_the_n():
    network = Buffered()
    ema = Average(network, 0.5)
    for _ in range(20):  # (1 + n) / (10 + n) passes 1/2 at n = 8
        ema.update_parameters(network)
    network.w.data.fill_(1.0)
    for _ in range(6):
        ema.update_parameters(network)
    torch.testing.assert_close(1 - ema.module.w.detach(), torch.full((3,), 0.5**6).double())


def test_constant_weights_are_a_fixed_point_to_the_last_bit():
    network = Buffered()
    network.w.data.copy_(normal(3))
    ema = Average(network, 0.99)
    for _ in range(30):
        ema.update_parameters(network)
    assert torch.equal(ema.module.w, network.w)
    assert torch.equal(ema.module.scale, network.scale)


def test_buffers_are_copied():
    network = Buffered()
    ema = Average(network, 0.9)
    for n in range(1, 8):
        network.count += 1
        network.mask.logical_not_()
        network.scale.mul_(1.5)
        ema.update_parameters(network)
        assert ema.module.count.item() == n
        assert torch.equal(ema.module.mask, network.mask)
        assert torch.equal(ema.module.scale, network.scale)


def test_a_network_with_batch_normalisation_trains():
    """It counts its batches in an integer buffer."""
    network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.SELU(), nn.Linear(8, 2))
    state = train(network, flow_loss, DATA, Settings(steps=4, batch_size=8))
    assert state.ema.module[1].num_batches_tracked.item() == 4


def test_complex_weights_are_averaged_like_real_ones():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.real = nn.Parameter(torch.zeros(2, 2))
            self.complex = nn.Parameter(torch.zeros(2, dtype=torch.complex64))

    network = Pair()
    ema = Average(network, 0.9)
    for w in normal(10, 2, 2, dtype=torch.float32):
        network.real.data.copy_(w)
        network.complex.data.copy_(torch.view_as_complex(w))
        ema.update_parameters(network)
    torch.testing.assert_close(torch.view_as_real(ema.module.complex.detach()), ema.module.real.detach())


def test_the_average_is_a_copy():
    network = Buffered()
    ema = Average(network, 0.9)
    ema.update_parameters(network)
    network.w.data.add_(1.0)
    network.scale.add_(1.0)
    assert torch.equal(ema.module.w, torch.zeros(3, dtype=torch.float64))
    assert torch.equal(ema.module.scale, torch.tensor([0.1, 1 / 3]))


# what the run says


def test_rows_come_every_log_every_steps_and_at_the_end_with_the_mean_loss_since_the_last():
    settings = Settings(steps=11, batch_size=2, lr=0.3, clip=None, log_every=4)
    state, source = descent(settings)
    rows, values = [], []

    def loss(network, batch, g):
        value = parabola(network, batch, g)
        values.append(value.mean().item())
        return value

    train(None, loss, source, settings, state=state, log=rows.append)
    assert [row["step"] for row in rows] == [4, 8, 11]
    wanted = [sum(values[a:b]) / (b - a) for a, b in ((0, 4), (4, 8), (8, 11))]
    assert [row["loss"] for row in rows] == pytest.approx(wanted, rel=1e-5)
    assert [row["lr"] for row in rows] == [0.3, 0.3, 0.3]
    assert all(row["samples_per_s"] > 0 for row in rows)


def test_the_state_is_saved_every_checkpoint_every_steps_and_at_the_end_once():
    for steps, wanted in ((11, [4, 8, 11]), (8, [4, 8]), (3, [3])):
        settings, saved = Settings(steps=steps, batch_size=4, checkpoint_every=4), []
        train(small(), flow_loss, DATA, settings, save=lambda state, saved=saved: saved.append(state.step))
        assert saved == wanted


def test_observers_see_every_step_after_it_is_saved():
    seen = []
    train(
        small(), flow_loss, DATA, Settings(steps=4, batch_size=4, checkpoint_every=2),
        save=lambda state: seen.append(f"saved {state.step}"), after_step=seen.append,
    )  # fmt: skip
    assert seen == [1, "saved 2", 2, 3, "saved 4", 4]


def test_an_observer_that_asks_a_field_at_the_same_place_sees_the_network_learn():
    """The field keeps its last evaluation, and must know that the weights under it have moved."""
    network, x = small(dropout=0.0), normal(5, 2, dtype=torch.float32)

    class Velocity(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, t, condition):
            return network(torch.cat([x, t[:, None]], 1))

    field, seen = Field(Velocity(), paths.linear()), []

    def watch(step):
        with torch.no_grad():
            seen.append(field.velocity(x, 0.5))

    train(network, flow_loss, DATA, Settings(steps=5, batch_size=8, lr=0.01), after_step=watch)
    assert len(torch.stack(seen).unique(dim=0)) == 5


def test_the_network_is_trained_in_training_mode():
    modes = []

    def loss(network, batch, g):
        modes.append(network.training)
        return flow_loss(network, batch, g)

    train(small().eval(), loss, DATA, Settings(steps=2, batch_size=4))
    assert modes == [True, True]


# a loss that is not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_the_step_is_named(bad):
    settings, rows = Settings(steps=50, batch_size=2, log_every=4), []
    state, source = descent(settings)

    def loss(network, batch, g):
        return parabola(network, batch, g) * (bad if state.step == 9 else 1.0)

    with pytest.raises(FlowError, match=r"loss is (nan|inf) at step 10: lower train\.lr"):
        train(None, loss, source, settings, state=state, log=rows.append)
    assert [row["step"] for row in rows] == [4, 8]


@pytest.mark.parametrize(("checkpoint_every", "log_every"), [(5, 50), (5, 7), (1, 100)])
def test_no_weights_are_saved_that_a_loss_which_is_not_finite_has_spoilt(checkpoint_every, log_every):
    """The newest checkpoint must be one that a run can go on from."""
    settings = Settings(steps=60, batch_size=2, log_every=log_every, checkpoint_every=checkpoint_every)
    state, source = descent(settings)
    saved = []

    def save(state):
        saved.append((state.step, state.network.w.item(), state.ema.module.w.item()))

    def loss(network, batch, g):
        return parabola(network, batch, g) * (math.nan if state.step == 12 else 1.0)

    with pytest.raises(FlowError, match=r"(nan|not finite) at step 13"):
        train(None, loss, source, settings, state=state, save=save)
    assert saved[-1][0] == (10 if checkpoint_every == 5 else 12)
    assert all(math.isfinite(w) and math.isfinite(mean) for _, w, mean in saved)


def test_no_weights_are_saved_that_a_gradient_which_is_not_finite_has_spoilt():
    """The loss is finite and its gradient is not, at the very step that would be saved."""
    settings, saved = Settings(steps=5, batch_size=2, checkpoint_every=5), []
    state, source = descent(settings)

    def loss(network, batch, g):
        root = (0 * network.w).abs().sqrt()  # 0, with the slope 0 / 0
        return parabola(network, batch, g) + (root if state.step == 4 else 0.0)

    with pytest.raises(FlowError):
        train(None, loss, source, settings, state=state, save=lambda state: saved.append(state.network.w.item()))
    assert saved == []


# settings


@pytest.mark.parametrize(
    "wrong",
    [{"steps": -1}, {"lr": 0}, {"ema": 1.0}, {"clip": 0.0}, {"batch_size": 0}, {"schedule": "step"}, {"rate": 1.0}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_settings_that_make_no_run_are_refused_by_name(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Settings(**wrong)


# it learns


@pytest.mark.parametrize("path", [paths.linear(), paths.cosine()], ids=lambda path: path.name)
def test_a_linear_network_learns_the_exact_velocity_of_gaussian_data(path):
    """At one t, the intercept and the slope of the closed form, from the averaged weights."""
    m, S, t = -0.5, 0.6, 0.6

    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(1, 1, dtype=torch.float64)

    def loss(network, batch, g):
        field = Field(lambda x, time, condition: network.line(x), path)
        pairs = Pairs(path.draw_source(batch.x1, g), batch.x1)
        return matching_loss(field, pairs, torch.full((len(batch),), t, dtype=torch.float64))

    network = Line()
    settings = Settings(steps=300, batch_size=512, lr=0.05, schedule="cosine", ema=0.97)
    state = train(network, loss, Rows(m + S * normal(20_000, 1)), settings)
    line = state.ema.module.line
    exact = mixture(path, torch.tensor([[m]], dtype=torch.float64), S)
    at_zero, at_one = exact(torch.tensor([[0.0], [1.0]], dtype=torch.float64), t).flatten().tolist()
    assert line.weight.item() == pytest.approx(at_one - at_zero, abs=0.03)
    assert line.bias.item() == pytest.approx(at_zero, abs=0.03)
