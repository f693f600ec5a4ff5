import pytest
import torch

from flowcore.data import Batch, Cuts, Rows, Share, batches, end_to_end, everything, head, rows_of_step
from flowcore.seeds import generator
from flowcore.state import leaves


def draws(seed=0):
    return generator(seed, "test")


def first(size, batch_size, steps, seed=0):
    return torch.cat([rows_of_step(size, batch_size, step, seed) for step in range(steps)])


# which rows


SIZES = [(12, 4), (12, 12), (12, 1), (10, 4), (10, 7), (7, 10), (3, 8), (1, 4)]


@pytest.mark.parametrize(("size", "batch_size"), SIZES)
def test_every_epoch_has_every_sample_exactly_once_and_every_batch_is_full(size, batch_size):
    epochs = 6
    steps = -(-epochs * size // batch_size)
    assert all(len(rows_of_step(size, batch_size, step, 0)) == batch_size for step in range(steps))
    rows = first(size, batch_size, steps)[: epochs * size].view(epochs, size)
    assert torch.equal(rows.sort(1).values, torch.arange(size).expand(epochs, size))


@pytest.mark.parametrize(("size", "batch_size"), SIZES)
def test_a_step_can_be_asked_for_in_any_order_and_alone(size, batch_size):
    steps = [rows_of_step(size, batch_size, step, 3) for step in range(40)]
    for step in (39, 0, 17, 18, 3, 17):
        assert torch.equal(rows_of_step(size, batch_size, step, 3), steps[step])
        assert rows_of_step(size, batch_size, step, 3).dtype == torch.int64


def test_the_rows_do_not_depend_on_the_batch_size():
    assert torch.equal(first(10, 4, 15), first(10, 6, 10))


def test_epochs_and_seeds_have_different_orders():
    epochs = first(50, 50, 20).view(20, 50)
    assert len(epochs.unique(dim=0)) == 20
    assert not torch.equal(first(50, 10, 5, seed=0), first(50, 10, 5, seed=1))


def test_the_order_of_an_epoch_is_a_uniform_permutation():
    """Every sample comes first about equally often: 4000 epochs of 8, within four standard errors."""
    firsts = torch.stack([rows_of_step(8, 8, epoch, 0)[0] for epoch in range(4000)])
    counts = torch.bincount(firsts, minlength=8).double()
    assert (counts - 500).abs().max() < 4 * (4000 / 8 * 7 / 8) ** 0.5


def test_rows_that_are_changed_by_a_caller_do_not_change_the_epoch():
    rows = rows_of_step(10, 5, 0, 0)
    wanted = rows.clone()
    rows.zero_()
    assert torch.equal(rows_of_step(10, 5, 0, 0), wanted)


def test_data_without_samples_are_refused():
    with pytest.raises(ValueError, match="no samples"):
        rows_of_step(0, 4, 0, 0)


# batches


def noisy(batch, g):
    return Batch(batch.x1 + torch.rand(batch.x1.shape, generator=g), batch.condition, extra=batch.extra)


def test_batches_do_not_depend_on_where_they_start():
    source = Rows(torch.arange(20.0).view(10, 2), torch.arange(10), {"name": torch.arange(10)}, transform=noisy)
    whole = list(batches(source, 4, 0, 12, seed=5))
    for start in (0, 3, 7, 11):
        for resumed, batch in zip(batches(source, 4, start, 12, seed=5), whole[start:], strict=True):
            assert torch.equal(resumed.x1, batch.x1)  # augmentation included
            assert torch.equal(resumed.condition, batch.condition)
            assert torch.equal(resumed.extra["name"], batch.extra["name"])


def test_the_augmentation_differs_between_steps_seeds_and_ranks_and_not_otherwise():
    source = Rows(torch.zeros(1, 3), transform=noisy)  # one sample, so only the augmentation can differ

    def drawn(seed, rank, start=0):
        return [batch.x1 for batch in batches(source, 2, start, 4, seed, Share(rank, 2))]

    several = [*drawn(0, 0), *drawn(1, 0), *drawn(0, 1)]
    assert len(torch.cat(several).unique(dim=0)) == 12
    assert all(torch.equal(a, b) for a, b in zip(drawn(0, 1, 2), drawn(0, 1)[2:], strict=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_makes_the_same_batches_in_the_same_order(workers):
    source = Rows(torch.arange(20.0).view(10, 2), torch.arange(10), {"name": torch.arange(10)}, transform=noisy)
    state = torch.get_rng_state()
    made = list(batches(source, 4, 3, 12, seed=5, workers=workers))
    assert torch.equal(torch.get_rng_state(), state)
    for batch, wanted in zip(made, batches(source, 4, 3, 12, seed=5), strict=True):
        assert torch.equal(batch.x1, wanted.x1)
        assert torch.equal(batch.condition, wanted.condition)
        assert torch.equal(batch.extra["name"], wanted.extra["name"])


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_batch_raises_reaches_the_run(workers):
    def broken(batch, g):
        raise ValueError("image 7 is damaged")

    with pytest.raises(ValueError, match="image 7 is damaged"):
        next(batches(Rows(torch.zeros(6), transform=broken), 2, 0, 3, seed=0, workers=workers))


def test_batches_hold_the_rows_of_their_step():
    source = Rows(torch.arange(10))
    for step, batch in enumerate(batches(source, 4, 0, 8, seed=5)):
        assert torch.equal(batch.x1, rows_of_step(10, 4, step, 5))


# rows held in memory


def test_rows_take_the_same_rows_of_everything():
    source = Rows(
        {"atoms": torch.arange(12.0).view(6, 2), "cell": {"a": torch.arange(6.0)}},
        condition={"label": torch.arange(6)},
        extra={"name": torch.arange(6) * 10},
    )
    rows = torch.tensor([4, 0, 4])
    batch = source.batch(rows, draws())
    assert len(source) == 6
    assert len(batch) == 3
    assert torch.equal(batch.x1["atoms"], torch.tensor([[8.0, 9], [0, 1], [8, 9]]))
    assert torch.equal(batch.x1["cell"]["a"], torch.tensor([4.0, 0, 4]))
    assert torch.equal(batch.condition["label"], rows)
    assert torch.equal(batch.extra["name"], rows * 10)
    assert batch.x0 is None


def test_rows_without_condition_have_none_and_are_not_changed_through_a_batch():
    x = torch.arange(6.0)
    batch = Rows(x).batch(torch.tensor([0, 1]), draws())
    assert batch.condition is None
    assert batch.extra == {}
    batch.x1.zero_()
    assert torch.equal(x, torch.arange(6.0))


def test_the_transform_sees_the_batch_and_draws_from_the_generator():
    source = Rows(torch.zeros(6, 3), transform=noisy)
    rows = torch.tensor([1, 2])
    assert torch.equal(source.batch(rows, draws()).x1, torch.rand(2, 3, generator=draws()))
    assert not torch.equal(source.batch(rows, draws(0)).x1, source.batch(rows, draws(1)).x1)


@pytest.mark.parametrize(("limit", "count"), [(None, 6), (4, 4), (6, 6), (100, 6)])
def test_everything_is_the_first_samples_in_order(limit, count):
    batch = everything(Rows(torch.arange(6), torch.arange(6) * 2), limit)
    assert torch.equal(batch.x1, torch.arange(count))
    assert torch.equal(batch.condition, torch.arange(count) * 2)


def test_everything_is_augmented_alike_each_time():
    source = Rows(torch.zeros(6, 3), transform=noisy)
    assert torch.equal(everything(source).x1, everything(source).x1)
    assert everything(source).x1.std() > 0


# a batch


def test_a_batch_counts_its_samples_also_when_ragged():
    assert len(Batch(torch.zeros(5, 3))) == 5
    assert len(Batch({"a": torch.zeros(5, 3), "b": torch.zeros(5)})) == 5
    assert len(Batch(torch.zeros(9, 3), index=torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3]), samples=4)) == 4


def test_to_moves_every_tensor_and_keeps_the_rest():
    batch = Batch(
        {"a": torch.zeros(2, 3), "b": {"c": torch.zeros(2)}},
        condition={"label": torch.zeros(2), "prompt": ["a", "b"]},
        x0={"a": torch.zeros(2, 3), "b": {"c": torch.zeros(2)}},
        index=torch.tensor([0, 1]),
        samples=2,
        weight=torch.ones(2),
        extra={"names": ["x", "y"], "mass": torch.zeros(2)},
    )
    moved = batch.to("meta")
    tensors = [moved.x1, moved.x0, moved.index, moved.weight, moved.condition["label"], moved.extra["mass"]]
    assert all(leaf.device.type == "meta" for state in tensors for leaf in leaves(state))
    assert moved.condition["prompt"] == ["a", "b"]
    assert moved.extra["names"] == ["x", "y"]
    assert moved.samples == 2
    assert batch.x1["a"].device.type == "cpu"
    assert Batch(torch.zeros(2)).to("cpu").condition is None


# batches cut and laid end to end


def ragged(seed, sizes=(2, 1, 3)):
    rows = sum(sizes)
    index = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    x1 = {"x": torch.randn(rows, 2, generator=draws(seed)), "whole": torch.arange(len(sizes)) + 10 * seed}
    return Batch(
        x1, torch.arange(len(sizes))[:, None] + seed, x1, {"x": index, "whole": torch.arange(len(sizes))}, len(sizes),
        extra={"number": torch.arange(len(sizes)), "calls": 7},
    )  # fmt: skip


def test_the_head_of_a_ragged_batch_is_its_first_samples_with_all_their_rows():
    batch = ragged(1)
    some = head(batch, 2)
    assert len(some) == some.samples == 2
    assert torch.equal(some.x1["x"], batch.x1["x"][:3])
    assert some.x1["whole"].tolist() == [10, 11]
    assert some.index["x"].tolist() == [0, 0, 1]
    assert some.condition.flatten().tolist() == [1, 2]
    assert some.extra["number"].tolist() == [0, 1]
    assert some.extra["calls"] == 7
    assert len(head(batch, 9)) == 3


def test_ragged_batches_laid_end_to_end_are_taken_apart_by_their_head():
    one, other = ragged(1), ragged(2, (4, 2))
    both = end_to_end([one, other])
    assert len(both) == 5
    assert both.index["x"].tolist() == [0, 0, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4]
    assert both.condition.flatten().tolist() == [1, 2, 3, 2, 3]
    again = head(both, 3)
    assert torch.equal(again.x1["x"], one.x1["x"])
    assert torch.equal(again.x0["x"], one.x1["x"])
    assert both.extra["number"].tolist() == [0, 1, 2, 0, 1]


def test_batches_of_rows_are_cut_and_laid_end_to_end_as_tensors():
    one, other = (Batch(torch.full((3, 2), float(k)), torch.full((3,), k), weight=torch.ones(3)) for k in (1, 2))
    both = end_to_end([one, head(other, 2)])
    assert both.x1[:, 0].tolist() == [1, 1, 1, 2, 2]
    assert both.condition.tolist() == [1, 1, 1, 2, 2]
    assert both.index is None


# batches by their weight


def test_a_weighed_batch_takes_the_next_rows_as_far_as_the_budget_goes():
    costs = torch.randint(1, 20, (37,), generator=draws())
    cuts = Cuts(costs, 60, 8, seed=0)
    taken = [cuts.rows(step) for step in range(60)]
    stream = first(37, 1, sum(map(len, taken)))
    assert torch.equal(torch.cat(taken), stream)
    place = 0
    for rows in taken:
        place += len(rows)
        assert 1 <= len(rows) <= 8
        assert costs[rows].sum() <= 60
        if len(rows) < 8 and place < len(stream):
            assert costs[rows].sum() + costs[stream[place]] > 60
    assert {len(rows) for rows in taken} > {8}
    again = Cuts(costs, 60, 8, seed=0)
    assert torch.equal(again.rows(41), taken[41])


def test_a_sample_heavier_than_the_budget_comes_alone_and_parts_stay_even():
    assert [len(Cuts(torch.full((5,), 9), 4, 3, 0).rows(step)) for step in range(4)] == [1, 1, 1, 1]
    assert [len(Cuts(torch.full((50,), 1), 7, 16, 0, parts=4).rows(step)) for step in range(3)] == [4, 4, 4]


class Heavy(Rows):
    """Rows that weigh something."""

    def __init__(self, x1, costs, budget):
        super().__init__(x1)
        self.costs, self.budget = costs, budget


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_weighed_source_keep_to_its_budget(workers):
    x, costs = torch.arange(40.0)[:, None], torch.arange(40) % 9 + 1
    found = list(batches(Heavy(x, costs, 20), 10, 3, 9, seed=0, workers=workers))
    cuts = Cuts(costs, 20, 10, 0)
    assert [batch.x1.flatten().long().tolist() for batch in found] == [cuts.rows(step).tolist() for step in range(3, 9)]
    assert [len(batch) for batch in batches(Heavy(x, costs, None), 10, 0, 2, seed=0)] == [10, 10]
