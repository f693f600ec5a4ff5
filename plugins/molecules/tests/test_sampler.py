"""A network that knows the answer is followed to it, sizes are those of the property, and nothing is left undone."""

import math

import numpy as np
import pytest
import torch

from flowcore.guidance import classifier_free
from flowcore.plugin.contracts import Parts
from flowcore.seeds import generator
from flowplat_molecules.graphs import centred, joined, split
from flowplat_molecules.objective import path_of
from flowplat_molecules.sampler import draw, draw_sizes
from flowplat_molecules.spec import Property, spec_of

MU = Property("mu", "D", "GFN2-xTB", 2.0, 1.0, 0.0, 4.0)
SIZES = torch.tensor([3, 5, 1, 4])


def molecules(sizes=SIZES, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [
        {
            "positions": torch.randn(n, 3, generator=draw),
            "atoms": torch.randint(5, (n,), generator=draw),
            "charges": torch.randint(6, (n,), generator=draw),
            "bonds": torch.randint(5, (n * (n - 1) // 2,), generator=draw),
        }
        for n in sizes.tolist()
    ]


def spec(counts=(5, 9), values=((1.0,), (3.0,))):
    return spec_of(5, 6, 5, (MU,), np.array(counts), np.array(values))


def parts(**more):
    return Parts(spec(), None, torch.device("cpu"), **more)


class Oracle:
    """Returns one batch of molecules, whatever it is shown, turned to no molecule's disadvantage."""

    def __init__(self, batch):
        self.batch, self.centres = batch, []

    def __call__(self, x, t, condition, index):
        self.centres.append(centred(x["positions"], index["positions"], len(t)).sub(x["positions"]).abs().max().item())
        classes = {"atoms": 5, "charges": 6, "bonds": 5}
        hot = {n: 1e3 * torch.nn.functional.one_hot(self.batch.x1[n], k).float() for n, k in classes.items()}
        return {"positions": self.batch.x1["positions"], **hot}


@pytest.fixture
def truth():
    batch = joined(molecules(SIZES.sort().values))  # as the sampler groups them
    batch.x1["positions"] = centred(batch.x1["positions"], batch.index["positions"], 4)
    return batch


@pytest.mark.parametrize("categories", ["masked", "simplex"])
@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_an_oracle_is_followed_to_its_molecules(truth, steps, categories):
    oracle = Oracle(truth)
    drawn = draw(parts(), oracle, SIZES, None, steps, generator(0, "draw"), categories)
    assert max(oracle.centres) < 1e-5
    by_size = {len(one["atoms"]): one for one in split(truth)}
    for n, one in zip(SIZES.tolist(), split(drawn), strict=True):
        assert (one["positions"] - by_size[n]["positions"]).abs().max() < 1e-5
        assert all(torch.equal(one[name], by_size[n][name]) for name in ("atoms", "charges", "bonds"))
    assert (drawn.extra["masked"], drawn.extra["calls"]) == (0, steps)


def test_molecules_come_back_in_the_order_they_were_asked_for_whatever_the_groups():
    sizes = torch.tensor([9, 2, 30, 4, 2, 17])

    def tells_sizes(x, t, condition, index):
        n = torch.bincount(index["positions"])[index["positions"]]
        return {
            "positions": torch.zeros_like(x["positions"]),
            "atoms": torch.nn.functional.one_hot(n % 5, 5) * 1e3,
            "charges": torch.zeros(len(n), 6),
            "bonds": torch.zeros(len(index["bonds"]), 5),
        }

    for edges in (1, 40, 10_000):
        drawn = draw(parts(), tells_sizes, sizes, None, 2, generator(0, "draw"), edges=edges)
        assert [len(one["atoms"]) for one in split(drawn)] == sizes.tolist()
        assert all(bool((one["atoms"] == len(one["atoms"]) % 5).all()) for one in split(drawn))


def test_a_formula_is_kept(truth):
    given = torch.randint(5, (int(SIZES.sum()),), generator=torch.Generator().manual_seed(1))
    drawn = draw(parts(), Oracle(truth), SIZES, None, 5, generator(0, "draw"), atoms=given)
    assert torch.equal(drawn.x1["atoms"], given)


def test_answers_that_are_not_finite_are_told(truth):
    truth.x1["positions"] = truth.x1["positions"] * math.nan
    with pytest.raises(FloatingPointError):
        draw(parts(), Oracle(truth), SIZES, None, 2, generator(0, "draw"))


def test_guidance_mixes_positions_and_log_probabilities(truth):
    """At w = 2: x1 = 2 x1(c) - x1(null), p ~ p(c)^2 / p(null); of a network that says other things to NaN."""

    def network(x, t, condition, index):
        told = torch.where(condition.isnan(), 0.0, 1.0)[index["positions"]]
        logits = torch.cat([told, 1 - told, torch.full((len(told), 3), -50.0)], 1)
        pairs = torch.zeros(len(index["bonds"]), 5)
        return {
            "positions": told * truth.x1["positions"].repeat(2, 1),  # under the condition, and under none
            "atoms": logits,
            "charges": torch.zeros(len(told), 6),
            "bonds": pairs,
        }

    sizes = torch.tensor([200] * 5)
    count = int(sizes.sum())
    truth.x1["positions"] = centred(torch.randn(count, 3), torch.arange(5).repeat_interleave(sizes), 5)
    drawn = draw(
        parts(guidance=(classifier_free(2.0),)), network, sizes, torch.ones(5, 1), 1, generator(0, "draw"),
        temperature=1.0, edges=10**9,
    )  # fmt: skip
    assert (drawn.x1["positions"] - 2 * truth.x1["positions"]).abs().max() < 1e-5
    share = 1 / (1 + math.exp(-3.0))  # logits 2 (1, 0) - (0, 1) = (2, -1)
    assert abs((drawn.x1["atoms"] == 0).double().mean().item() - share) < 4 * (share * (1 - share) / count) ** 0.5


def test_where_nothing_is_asked_guidance_is_the_identity(truth):
    plain = draw(parts(), Oracle(truth), SIZES, None, 3, generator(0, "draw"))
    guided = draw(parts(guidance=(classifier_free(3.0),)), Oracle(truth), SIZES, None, 3, generator(0, "draw"))
    assert torch.equal(plain.x1["positions"], guided.x1["positions"])
    assert torch.equal(plain.x1["bonds"], guided.x1["bonds"])


def test_a_size_is_drawn_among_molecules_of_that_property():
    told = spec((4, 8, 20), ((1.0,), (1.05,), (3.0,)))
    sizes = draw_sizes(told, torch.tensor([[1.0]] * 2000), 2000, generator(0, "sizes"))
    weight = math.exp(-((0.05 / 0.1) ** 2) / 2)
    share = weight / (1 + weight)
    assert set(sizes.tolist()) == {4, 8}
    assert abs((sizes == 8).double().mean().item() - share) < 4 * (share * (1 - share) / 2000) ** 0.5


def test_far_from_all_molecules_the_nearest_speak_and_without_a_property_all_do():
    counts, values = np.arange(1, 501), np.arange(500.0)[:, None]
    far = draw_sizes(spec(counts, values), torch.tensor([[1e6]] * 4000), 4000, generator(0, "sizes"))
    assert (far.min().item(), len(far.unique())) == (301, 200)
    for nothing in (None, torch.full((4000, 1), math.nan)):
        assert draw_sizes(spec(counts, values), nothing, 4000, generator(0, "sizes")).float().mean() == pytest.approx(
            250.5, abs=10
        )


@pytest.mark.parametrize("eta", [0.0, 10.0])
def test_tokens_of_molecules_have_the_marginals_of_the_exact_answer(eta):
    """Three tokens each, independent with known p, which the network gives at T = 1: all within 4 sigma."""
    p = torch.tensor([0.5, 0.3, 0.1, 0.07, 0.03])
    seen = []

    def network(x, t, condition, index):
        seen.append((x["atoms"] == 5).double().mean().item())
        n = len(x["atoms"])
        return {
            "positions": torch.zeros(n, 3),
            "atoms": p.log().expand(n, 5),
            "charges": torch.zeros(n, 6),
            "bonds": torch.zeros(len(x["bonds"]), 5),
        }

    count, steps = 10_000, 40
    drawn = draw(
        parts(),
        network,
        torch.full((count,), 3),
        None,
        steps,
        generator(0, "draw"),
        eta=eta,
        temperature=1.0,
        edges=10**9,
    )
    share = torch.bincount(drawn.x1["atoms"], minlength=5).double() / (3 * count)
    assert (share - p).abs().lt(4 * (p * (1 - p) / (3 * count)).sqrt()).all()
    assert drawn.extra["masked"] == 0
    for k, hidden in enumerate(seen):
        t = k / steps
        if k and (1 + eta * (t - 1 / steps)) / steps > 1 - (t - 1 / steps):
            break  # no chance is above 1, and masked ones are late by the last steps
        assert abs(hidden - (1 - t)) <= 4 * (t * (1 - t) / (3 * count)) ** 0.5 + 1e-12


def test_the_path_is_of_all_four_leaves():
    assert set(path_of(spec().state, "masked").paths) == {"positions", "atoms", "charges", "bonds"}
