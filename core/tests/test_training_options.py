"""What a run can be asked for besides its steps: parts, clipping, schedules, validation, precision, the compiler."""

import json

import pytest
import torch
from torch import nn

from flowcore import paths
from flowcore.couplings import Pairs
from flowcore.data import Resident, Rows, Share, batches
from flowcore.errors import IntegrityError, MachineError, UsageError
from flowcore.field import Field
from flowcore.losses import matching_loss
from flowcore.seeds import generator
from flowcore.training import checkpoints
from flowcore.training.engine import Engine, needs_start
from flowcore.training.loop import begin, fit, rate
from flowcore.training.settings import EngineSettings, TrainSettings

DATA = Rows(torch.randn(37, 2, generator=generator(0, "data")))
CPU = EngineSettings(accelerator="cpu")


class Net(nn.Module):
    """Two layers on (x, t), with dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.SELU(), nn.Dropout(dropout), nn.Linear(16, 2))

    def forward(self, x, t, condition=None):
        return self.layers(torch.cat([x, t[:, None]], 1))


def network(dropout=0.0):
    torch.manual_seed(0)
    return Net(dropout)


def flow_loss(network, batch, draws):
    path = paths.linear()
    x0 = path.draw_source(batch.x1, draws)
    return matching_loss(Field(network, path), Pairs(x0, batch.x1), torch.rand(len(batch), generator=draws))


def fixed_loss(network, batch, draws):
    """No draws: the same for a batch and for its parts."""
    return (network(batch.x1, batch.x1[:, 0]) - batch.x1.flip(1)).square().mean(1)


def train(settings, loss=flow_loss, engine=CPU, net=None, source=DATA, **hooks):
    engine = Engine(engine)
    state = begin(net or network(), settings, engine)
    quiet = {"log": lambda row: None, "save": lambda state: None}
    return fit(state, loss, source, settings, 0, engine=engine, **(quiet | hooks))


def weights(state):
    return torch.cat([p.detach().flatten() for p in state.network.parameters()])


# parts of a batch


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_has_the_gradient_of_the_batch(parts):
    whole, cut = (
        weights(train(TrainSettings(steps=10, batch_size=8, lr=0.01, accumulate=n), fixed_loss)) for n in (1, parts)
    )
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-5)


def test_the_loss_of_parts_is_the_loss_of_the_batch():
    rows = {}
    for parts in (1, 4):
        found = rows[parts] = []
        train(TrainSettings(steps=6, batch_size=8, accumulate=parts, log_every=3), fixed_loss, log=found.append)
    for one, other in zip(rows[1], rows[4], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_shares_of_a_batch_are_its_rows_and_no_row_twice():
    whole = next(batches(DATA, 12, 3, 4, 5)).x1
    cut = [batch.x1 for rank in range(2) for batch in batches(DATA, 12, 3, 4, 5, Share(rank, 2, 3))]
    assert [len(part) for part in cut] == [2] * 6
    assert torch.equal(torch.cat(cut), whole)


def test_a_batch_that_cannot_be_cut_evenly_is_refused():
    with pytest.raises(ValueError, match="batch of 8 cannot be cut into 3 x 1"):
        next(batches(DATA, 8, 0, 1, 0, Share(0, 3)))


# clipping and schedules


def test_clipping_by_value_bounds_every_entry_and_by_norm_their_norm():
    seen = {}
    for by in ("norm", "value"):
        net = network()

        def after(step, by=by, net=net):
            seen[by] = torch.cat([p.grad.flatten() for p in net.parameters()])

        train(TrainSettings(steps=1, batch_size=8, clip=0.01, clip_by=by), fixed_loss, net=net, after_step=after)
    free = network()
    train(TrainSettings(steps=1, batch_size=8, clip=None), fixed_loss, net=free)
    gradient = torch.cat([p.grad.flatten() for p in free.parameters()])
    assert gradient.norm() > 0.01
    torch.testing.assert_close(seen["norm"], 0.01 * gradient / gradient.norm(), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(seen["value"], gradient.clamp(-0.01, 0.01))


def test_the_linear_schedule_falls_in_a_line_from_the_end_of_the_warm_up():
    settings = TrainSettings(steps=110, lr=0.8, warmup=10, schedule="linear")
    rates = [rate(settings, step) for step in range(111)]
    assert rates[10] == max(rates) == pytest.approx(0.8)
    assert rates[60] == pytest.approx(0.4)
    assert rates[110] == pytest.approx(0, abs=1e-12)


# validation


def test_validation_is_logged_and_the_best_is_saved_and_the_rest_stays_as_it_was():
    scores = iter([0.5, 0.3, 0.4, 0.2])
    rows, saved = [], []
    settings = TrainSettings(steps=8, batch_size=4, validate_every=2, log_every=4, checkpoint_every=100)
    state = train(
        settings, validate=lambda network: next(scores), log=rows.append,
        save=lambda state: saved.append((state.step, state.score)),
    )  # fmt: skip
    assert [(row["step"], row["val_loss"]) for row in rows] == [(2, 0.5), (4, 0.3), (6, 0.4), (8, 0.2)]
    assert ["loss" in row for row in rows] == [False, True, False, True]
    assert saved == [(2, 0.5), (4, 0.3), (8, 0.2)]
    assert (state.best, state.stale) == (0.2, 0)
    plain = train(settings.model_copy(update={"validate_every": None}))
    assert torch.equal(weights(plain), weights(state))


def test_patience_ends_training_when_nothing_improves():
    scores, saved = iter([0.5, 0.3, 0.4, 0.3, 0.9, 0.1]), []
    settings = TrainSettings(steps=100, batch_size=4, validate_every=5, patience=3)
    state = train(settings, validate=lambda network: next(scores), save=lambda state: saved.append(state.step))
    assert (state.step, state.best, state.stale) == (25, 0.3, 3)
    assert saved == [5, 10, 25]
    engine = Engine(CPU)
    fit(state, flow_loss, DATA, settings, 0, lambda row: None, lambda state: None, engine=engine)
    assert state.step == 25  # and gone on with, it is still at its end


def test_validation_sees_the_averaged_weights():
    seen = []
    settings = TrainSettings(steps=4, batch_size=4, lr=0.1, validate_every=4, ema=0.5)
    state = train(settings, validate=lambda network: seen.append([*network.parameters()]) or 0.0)
    assert all(a is b for a, b in zip(seen[0], state.ema.module.parameters(), strict=True))


# which checkpoints stay


def folder_of(tmp_path, scores, engine=None):
    state = begin(network(), TrainSettings(), Engine(CPU))
    for step, score in enumerate(scores, 1):
        state.step, state.score = step, score
        checkpoints.save(tmp_path, state)
    return tmp_path


def names(found):
    return [int(path.name.removeprefix("step-")) for path in found]


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path):
    folder = folder_of(tmp_path, [0.5, 0.1, None, 0.3, 0.2, None])
    assert names(checkpoints.best(folder)) == [2, 5, 4, 1]
    checkpoints.prune(folder, None, 0)
    assert len(checkpoints.found(folder)) == 6
    checkpoints.prune(folder, 2, 1)
    assert names(checkpoints.found(folder)) == [6, 5, 2]
    assert not list(folder.glob(".*"))


def test_with_patience_the_best_is_the_model_and_otherwise_the_latest(tmp_path):
    folder = folder_of(tmp_path, [0.5, 0.1, 0.3])
    patient = TrainSettings(validate_every=1, patience=1)
    assert names([checkpoints.chosen(folder, patient), checkpoints.chosen(folder, TrainSettings())]) == [2, 3]
    (folder / "step-00000002" / "ema.safetensors").write_bytes(b"")
    with pytest.raises(IntegrityError, match="step-00000002"):
        checkpoints.chosen(folder, patient)


def test_a_validated_run_goes_on_with_its_count_of_validations(tmp_path):
    state = begin(network(), TrainSettings(), Engine(CPU))
    state.step, state.best, state.stale, state.losses = 7, 0.25, 2, [1.5, 0.1]
    other = begin(network(), TrainSettings(), Engine(CPU))
    assert checkpoints.load(checkpoints.save(tmp_path, state, config={"seed": 3}), other) == {"seed": 3}
    assert (other.step, other.best, other.stale, other.losses) == (7, 0.25, 2, [1.5, 0.1])
    record = json.loads((tmp_path / "step-00000007" / "state.json").read_text())
    assert record["processes"] == 1


def test_a_checkpoint_of_another_network_is_refused_by_name(tmp_path):
    final = checkpoints.save(tmp_path, begin(network(), TrainSettings(), Engine(CPU)))
    torch.manual_seed(0)
    other = begin(nn.Linear(3, 2), TrainSettings(), Engine(CPU))
    with pytest.raises(UsageError, match="step-00000000 does not fit the network"):
        checkpoints.load(final, other)


# interrupted


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_that_an_observer_returns_is_raised_when_the_state_is_saved(tmp_path, parts, workers):
    settings = TrainSettings(steps=20, batch_size=8, log_every=5, accumulate=parts, schedule="cosine")
    whole_rows, rows, saved = [], [], []
    whole = train(settings, net=network(0.3), log=whole_rows.append)

    def save(state):
        saved.append(state.step)
        checkpoints.save(tmp_path, state)

    engine = EngineSettings(accelerator="cpu", workers=workers)
    with pytest.raises(KeyboardInterrupt):
        train(
            settings, engine=engine, net=network(0.3), log=rows.append, save=save,
            after_step=lambda step: KeyboardInterrupt() if step == 13 else None,
        )  # fmt: skip
    assert saved == [13]
    state = begin(network(), settings, Engine(engine))
    state.network.layers[2].p = state.ema.module.layers[2].p = 0.3
    checkpoints.load(checkpoints.latest(tmp_path), state)
    fit(state, flow_loss, DATA, settings, 0, rows.append, save, engine=Engine(engine))
    assert torch.equal(weights(state), weights(whole))
    assert [row | {"samples_per_s": 0} for row in rows] == [row | {"samples_per_s": 0} for row in whole_rows]


# precision and compiler


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_computes_in_16_bits_and_leaves_the_time_alone(precision):
    """1/512 apart, two times are one in bfloat16."""
    seen = []

    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(2, 2)

        def forward(self, x, t, condition=None):
            y = self.line(x)
            seen.append((x.dtype, t.clone(), y.dtype))
            return y

    def loss(network, batch, draws):
        t = torch.full((len(batch),), 0.5 + 1 / 512)
        out = network(batch.x1, t, None)
        assert out.dtype == torch.float32
        return (out - batch.x1).square().mean(1)

    train(TrainSettings(steps=2, batch_size=4), loss, EngineSettings(accelerator="cpu", precision=precision), Watch())
    x, t, y = seen[0]
    assert (x, y) == (torch.float32, torch.bfloat16 if precision == "bf16-mixed" else torch.float16)
    assert t.tolist() == [0.5 + 1 / 512] * 4


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_trains_and_goes_on_to_the_last_bit(precision, tmp_path):
    engine = EngineSettings(accelerator="cpu", precision=precision)
    settings = TrainSettings(steps=30, batch_size=8, lr=0.01)
    rows = []
    whole = train(settings, fixed_loss, engine, log=rows.append)
    first, again = Engine(engine), Engine(engine)
    begun, state = (begin(network(), settings, one) for one in (first, again))
    part = settings.model_copy(update={"steps": 11})
    fit(begun, fixed_loss, DATA, part, 0, lambda row: None, lambda state: None, engine=first)
    checkpoints.load(checkpoints.save(tmp_path, begun, first), state, again)
    fit(state, fixed_loss, DATA, settings, 0, lambda row: None, lambda state: None, engine=again)
    assert torch.equal(weights(state), weights(whole))
    full = train(settings, fixed_loss)
    torch.testing.assert_close(weights(state), weights(full), rtol=0, atol=0.05)


def test_a_compiled_network_trains_the_weights_of_the_network_itself(tmp_path):
    settings = TrainSettings(steps=3, batch_size=8)
    state = train(settings, fixed_loss, EngineSettings(accelerator="cpu", compile=True))
    torch.testing.assert_close(weights(state), weights(train(settings, fixed_loss)), rtol=1e-4, atol=1e-5)
    final = checkpoints.save(tmp_path, state)
    plain = network()
    checkpoints.load_weights(final, plain, averaged=False)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), state.network.parameters(), strict=True))


# where it runs


def test_rows_can_be_held_on_a_device_unless_something_is_drawn_on_the_cpu():
    assert isinstance(DATA, Resident)
    assert DATA.nbytes == 37 * 2 * 4
    assert Rows(torch.zeros(2, 2), transform=lambda batch, draws: batch).to(torch.device("cpu")) is None
    held = DATA.to(torch.device("cpu"))
    assert torch.equal(held.batch(torch.arange(3), generator(0)).x1, DATA.all.x1[:3])


def test_one_process_speaks_to_itself():
    engine = Engine(CPU)
    engine.launch()
    assert (engine.rank, engine.world, engine.sharded) == (0, 1, False)
    assert engine.first(lambda: 7) == 7
    assert engine.gather("mine") == ["mine"]
    assert [engine.agree(0), engine.agree(15)] == [0, 15]
    assert engine.mean(torch.tensor(3.0)).item() == 3.0
    with pytest.raises(ZeroDivisionError):
        engine.first(lambda: 1 / 0)
    engine.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_what_the_machine_has_not_is_told_with_the_way_out():
    with pytest.raises(MachineError, match=r"engine\.accelerator=cuda: this machine has none; auto"):
        Engine(EngineSettings(accelerator="cuda"))
    with pytest.raises(UsageError, match=r"engine\.devices=\[1\] names GPUs"):
        Engine(EngineSettings(devices=[1]))


def test_processes_are_started_only_where_nothing_has_started_them(monkeypatch):
    for name in ("LOCAL_RANK", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    assert not needs_start(CPU)
    several = EngineSettings(accelerator="cpu", devices=2)
    assert needs_start(several)
    assert needs_start(EngineSettings(accelerator="cpu", num_nodes=2))
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not needs_start(several)
