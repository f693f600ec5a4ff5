"""States of several kinds at once: what each leaf does on its own path is what it would do alone."""

import math

import pytest
import torch

from flowcore import masked, paths
from flowcore.field import Field
from flowcore.guidance import ClassifierFree, Guided
from flowcore.mixed import Mixed, Simplex
from flowcore.seeds import generator

F64 = torch.float64
INDEX = torch.tensor([0, 0, 1, 2, 2, 2])
TOKENS = torch.tensor([1, 0, 2, 2, 1, 0])
T = torch.tensor([0.2, 0.5, 0.9], dtype=F64)


def mixed():
    return Mixed({"x": paths.linear(), "a": masked.linear(3), "s": Simplex(3)})


def state(seed=0):
    x = torch.randn(6, 2, dtype=F64, generator=generator(seed, "x"))
    return {"x": x, "a": TOKENS, "s": TOKENS}


def test_each_leaf_is_sampled_as_alone():
    path, x1 = mixed(), state()
    x0 = path.draw_source(x1, generator(0, "source"))
    assert (x0["a"] == 3).all()
    x = path.sample(x0, x1, T, generator(0, "draw"), INDEX)
    assert torch.equal(x["x"], paths.linear().interpolate(x0["x"], x1["x"], T, INDEX))
    assert torch.equal(x["a"], masked.linear(3).sample(TOKENS, T, generator(0, "draw"), index=INDEX))
    t = T[INDEX, None].float()
    assert torch.allclose(x["s"], t * torch.eye(3)[TOKENS] + (1 - t) * x0["s"])


def test_the_source_of_a_simplex_is_uniform_on_it():
    """Of three corners: mean 1/3, variance 1/18 = Dirichlet(1, 1, 1), and all sums are 1."""
    x0 = Simplex(3).draw_source(torch.zeros(40_000, dtype=torch.long), generator(0, "simplex"))
    assert torch.allclose(x0.sum(-1), torch.ones(40_000))
    assert (x0.mean(0) - 1 / 3).abs().max() < 5 * math.sqrt(1 / 18 / 40_000)
    assert (x0.var(0) * 18 - 1).abs().max() < 0.05


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_an_exact_network_is_followed_to_its_answer(steps):
    path, x1, draws = mixed(), state(), generator(0, "steps")

    def network(x, t, condition, index):
        assert t.shape == (3,)
        hot = 1e3 * torch.eye(3, dtype=F64)[TOKENS]
        return {"x": x1["x"], "a": hot, "s": hot}

    x = path.draw_source(x1, draws)
    field = Field(network, path, "x1", index=INDEX, samples=3)
    for k in range(steps):
        t = k / steps
        x = path.step(x, field.velocity(x, t), t, (k + 1) / steps, draws, INDEX, remask=2.0)
    x = path.tokens(x)
    assert torch.allclose(x["x"], x1["x"])
    assert torch.equal(x["a"], TOKENS)
    assert torch.equal(x["s"], TOKENS)


def test_tokens_that_are_not_free_stay_and_nan_stays_masked():
    path = Mixed({"a": masked.linear(3)})
    x, logits = {"a": torch.tensor([0, 3, 3])}, torch.zeros(3, 3, dtype=F64)
    logits[2] = math.nan
    free = {"a": torch.tensor([False, True, True])}
    for seed in range(20):
        after = path.step(x, {"a": logits}, 0.5, 0.6, generator(seed, "free"), remask=9.0, free=free)["a"]
        assert after[0] == 0
        assert after[2] == 3
    assert path.step(x, {"a": logits}, 0.5, 1.0, generator(0, "free"))["a"].tolist()[2] == 3


def test_guidance_adds_up_velocities_and_log_probabilities():
    path, x1 = Mixed({"x": paths.linear(), "a": masked.linear(3)}), state()

    def network(x, t, condition, index):
        told = condition[index]
        return {
            "x": told[:, None] * x1["x"].repeat(2, 1),
            "a": told[:, None] * torch.tensor([2.0, 0.0, -1.0], dtype=F64),
        }

    x = {"x": torch.zeros(6, 2, dtype=F64), "a": torch.full((6,), 3)}
    null, told = torch.tensor(0.5, dtype=F64), torch.ones(3, dtype=F64)
    field = Field(network, path, "x1", told, null, INDEX, 3)
    v = Guided(field, ClassifierFree(3.0, (0.0, 1.0))).velocity(x, 0.5)
    assert torch.allclose(v["x"], (0.5 + 3 * 0.5) * x1["x"] / 0.5)
    p = v["a"].softmax(-1)[0]
    assert torch.allclose(p, (2.0 * torch.tensor([2.0, 0.0, -1.0], dtype=F64)).softmax(-1))
    assert field.calls == 1


def test_an_integer_leaf_first_does_not_round_the_time():
    seen = []
    path = Mixed({"a": masked.linear(3), "x": paths.linear()})
    x = {"a": TOKENS, "x": torch.zeros(6, 2, dtype=F64)}
    answers = {"a": torch.zeros(6, 3), "x": torch.zeros(6, 2, dtype=F64)}
    Field(lambda x, t, c, index: seen.append(t) or answers, path, "x1", index=INDEX, samples=3).velocity(x, 0.3)
    assert seen[0].tolist() == [0.3] * 3
