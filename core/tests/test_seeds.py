import torch

from flowcore.seeds import derive, generator


def draw(*labels):
    return torch.rand(8, generator=generator(*labels), dtype=torch.float64)


def test_the_same_labels_give_the_same_draws_whatever_was_drawn_before():
    first = draw(0, "loss", 3)
    torch.rand(100, generator=generator(0, "loss", 2))
    torch.manual_seed(7)
    assert torch.equal(draw(0, "loss", 3), first)


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    draw(0, "loss", 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_do_not_change_between_processes_and_versions():
    """A run resumed tomorrow must draw what it would have drawn today; Python's own hash is salted for each process."""
    assert (derive(0), derive(0, "loss", 1)) == (9183883414534618160, 8908984489198994616)


def test_labels_that_could_be_confused_are_told_apart():
    labels = [
        (0,), (1,), (0, "a"), (0, "b"), (0, 1), (0, "1"), (1, 0), (0, 0), (0, "a", 1), (0, "a1"), (0, "a", "1"),
        (0, 1, "a"), (0, 11), (0, 1, 1), (11, 0), (0, -1), (-1, 0), (0, ""), (0, "a', 'b"), (0, "a", "b"),
        (2**63, 0), (2**64, 0),
    ]  # fmt: skip
    seeds = [derive(*one) for one in labels]
    assert len(set(seeds)) == len(labels)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_streams_of_neighbouring_steps_are_uncorrelated_and_uniform():
    n, steps = 2000, 50
    x = torch.stack([torch.rand(n, generator=generator(0, "loss", s), dtype=torch.float64) for s in range(steps)])
    centred = (x - 0.5) * 12**0.5
    correlation = centred @ centred.T / n - torch.eye(steps, dtype=torch.float64)
    off = correlation - torch.diag(correlation.diagonal())
    assert off.abs().max() < 5 / n**0.5  # 1225 pairs: five standard errors is a chance of one in a thousand
    assert abs(off.sum().item() / 2 / (steps * (steps - 1) / 2) ** 0.5) < 4 / n**0.5


def test_the_bits_of_derived_seeds_are_balanced():
    n = 4000
    seeds = torch.tensor([derive(0, "step", step) for step in range(n)])
    ones = torch.stack([(seeds >> bit) & 1 for bit in range(63)], 1).double().mean(0)
    assert (ones - 0.5).abs().max() < 4.5 * 0.5 / n**0.5
