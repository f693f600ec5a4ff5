import math
from dataclasses import replace

import pytest
import torch

from flowcore import paths
from flowcore.closed_form import mixture
from flowcore.couplings import Pairs
from flowcore.field import Field
from flowcore.losses import l2, matching_loss, pseudo_huber
from flowcore.paths import PREDICTIONS, Product
from flowcore.seeds import generator
from flowcore.state import tree_map

PATHS = {
    "linear": paths.linear(),
    "linear with floor": paths.linear(0.05),
    "polynomial": paths.polynomial(2.0),
    "cosine": paths.cosine(),
    "linear_vp": paths.linear_vp(),
    "vp": paths.vp(),
    "ve": paths.ve(3.0),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
SHAPES = [(4,), (4, 3), (4, 4), (4, 2, 3, 3)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def double(value):
    return torch.as_tensor(value, dtype=torch.float64)


def normal(shape, seed=0):
    if isinstance(shape, dict):
        return {key: normal(one, seed + i) for i, (key, one) in enumerate(shape.items())}
    return torch.randn(shape, generator=generator(seed, "normal"), dtype=torch.float64)


PER_SAMPLE = double([0.1, 0.35, 0.6, 0.9])


def pairs_of(shape):
    return Pairs(normal(shape, 1), normal(shape, 11))


def returning(value, path=None, predicts="velocity"):
    """A field whose network says ``value`` whatever it is asked."""
    return Field(lambda x, t, condition: value, path or paths.linear(), predicts)


# metrics


@each_shape
def test_l2_is_the_mean_square_of_each_sample(shape):
    a, b = normal(shape, 1), normal(shape, 2)
    wanted = double([((a[i] - b[i]) ** 2).mean().item() for i in range(4)])
    torch.testing.assert_close(l2()(a, b), wanted)


@each_shape
@pytest.mark.parametrize("c", [0.00054, 1.0])
def test_pseudo_huber_is_the_root_of_the_summed_square_less_its_offset_a_dimension(shape, c):
    a, b = normal(shape, 1), normal(shape, 2)
    n = math.prod(shape[1:])
    wanted = [(math.sqrt(((a[i] - b[i]) ** 2).sum().item() + (c * n) ** 2) - c * n) / n for i in range(4)]
    torch.testing.assert_close(pseudo_huber(c)(a, b), double(wanted))


@each_shape
def test_the_elementwise_pseudo_huber_is_a_mean_over_elements(shape):
    a, b, c = normal(shape, 1), normal(shape, 2), 0.03
    wanted = [(((a[i] - b[i]) ** 2 + c**2).sqrt() - c).mean().item() for i in range(4)]
    torch.testing.assert_close(pseudo_huber(c, elementwise=True)(a, b), double(wanted))


@each_shape
def test_pseudo_huber_is_l2_over_2_c_n_near_zero_and_the_norm_over_n_far_away(shape):
    a, n, c = normal(shape, 1), math.prod(shape[1:]), 0.01
    d = normal(shape, 2)
    near = pseudo_huber(c)(a + 1e-7 * d, a)
    torch.testing.assert_close(near, l2()(a + 1e-7 * d, a) / (2 * c * n), rtol=1e-6, atol=0)
    norm = d.reshape(4, -1).norm(dim=1)
    torch.testing.assert_close(pseudo_huber(c)(a + 1e6 * d, a), 1e6 * norm / n, rtol=1e-5, atol=0)


def test_pseudo_huber_keeps_its_digits_and_its_gradient_at_small_differences():
    d = torch.full((1, 4), 1e-6, requires_grad=True)  # single precision: the difference of the roots would be zero
    loss = pseudo_huber(0.25)(d, torch.zeros(1, 4))
    assert loss.item() == pytest.approx(4e-12 / (2 * 0.25 * 16), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss.sum(), d)
    torch.testing.assert_close(gradient, torch.full((1, 4), 1e-6 / (0.25 * 4 * 4)), rtol=1e-5, atol=0)
    zero = torch.zeros(1, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(pseudo_huber()(zero, torch.zeros(1, 4)).sum(), zero)
    assert torch.equal(gradient, torch.zeros(1, 4))


# the loss of a sample


@each_path
@each_shape
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_a_network_that_says_the_target_has_no_loss_and_one_that_is_off_has_its_distance(path, shape, predicts):
    pairs = pairs_of(shape)
    target = path.target(predicts, pairs.x0, pairs.x1, PER_SAMPLE)
    zero = matching_loss(returning(target, path, predicts), pairs, PER_SAMPLE)
    assert torch.equal(zero, torch.zeros(4, dtype=torch.float64))
    off = target + normal(shape, 5)
    for metric in (None, l2(), pseudo_huber(0.1)):
        got = matching_loss(returning(off, path, predicts), pairs, PER_SAMPLE, metric)
        torch.testing.assert_close(got, (metric or l2())(off, target))


def test_the_network_is_asked_once_at_x_t_with_the_condition():
    seen = []

    def network(x, t, condition):
        seen.append((x, t, condition))
        return x

    path, pairs = paths.cosine(), pairs_of((4, 4))
    field = Field(network, path, condition="told")
    matching_loss(field, pairs, PER_SAMPLE)
    ((x, t, condition),) = seen
    assert torch.equal(x, path.interpolate(pairs.x0, pairs.x1, PER_SAMPLE))
    assert torch.equal(t, PER_SAMPLE)
    assert condition == "told"
    assert field.calls == 1


def test_the_gradient_reaches_the_network_and_nothing_else():
    network = torch.nn.Linear(3, 3).double()
    pairs = pairs_of((4, 3))
    matching_loss(Field(lambda x, t, c: network(x), paths.linear()), pairs, PER_SAMPLE).mean().backward()
    x = paths.linear().interpolate(pairs.x0, pairs.x1, PER_SAMPLE)
    wanted = 2 / 12 * (network(x) - (pairs.x1 - pairs.x0)).T @ x
    torch.testing.assert_close(network.weight.grad, wanted)


# what is compared


@each_path
@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("compares", ["velocity", "x1", "noise"])
def test_what_is_compared_may_be_another_kind_than_the_network_says(path, predicts, compares):
    pairs, off = pairs_of((4, 3)), normal((4, 3), 5)
    field = returning(off, path, predicts)
    got = matching_loss(field, pairs, PER_SAMPLE, pseudo_huber(0.1), compares=compares)
    said = path.convert(off, path.interpolate(pairs.x0, pairs.x1, PER_SAMPLE), PER_SAMPLE, predicts, compares)
    torch.testing.assert_close(got, pseudo_huber(0.1)(said, path.target(compares, pairs.x0, pairs.x1, PER_SAMPLE)))
    if compares == predicts:
        assert torch.equal(got, matching_loss(field, pairs, PER_SAMPLE, pseudo_huber(0.1)))


def test_the_velocity_of_an_edm_network_is_compared_at_the_weight_of_its_preconditioning():
    """|v - u|^2 = sd^2 / R^2 |F - F*|^2 on the linear path, where the Wronskian is 1."""
    path, pairs, off = paths.linear(), pairs_of((4, 3)), normal((4, 3), 5)
    field = returning(off, path, "edm")
    got, plain = (matching_loss(field, pairs, PER_SAMPLE, compares=kind) for kind in ("velocity", None))
    sd, t = path.sigma_data, PER_SAMPLE
    torch.testing.assert_close(got, plain * sd**2 / ((1 - t) ** 2 + t**2 * sd**2))


# weights


def test_weights_multiply_and_those_of_the_pairs_count_over_their_mean():
    pairs, off = pairs_of((4, 3)), normal((4, 3), 5)
    plain = matching_loss(returning(off), pairs, PER_SAMPLE)
    importance, w = double([0.5, 1.0, 2.0, 3.0]), double([1.0, 2.0, 0.0, 5.0])
    torch.testing.assert_close(matching_loss(returning(off), pairs, PER_SAMPLE, weight=importance), plain * importance)
    coupled = pairs._replace(weight=w)
    torch.testing.assert_close(matching_loss(returning(off), coupled, PER_SAMPLE), plain * w / 2)
    both = matching_loss(returning(off), coupled, PER_SAMPLE, weight=importance)
    torch.testing.assert_close(both, plain * importance * w / 2)


@pytest.mark.parametrize("scale", [1e-3, 7.0])
def test_the_scale_of_the_weights_of_the_pairs_is_of_no_matter(scale):
    pairs, off, w = pairs_of((4, 3)), normal((4, 3), 5), double([1.0, 2.0, 0.5, 5.0])
    one = matching_loss(returning(off), pairs._replace(weight=w), PER_SAMPLE)
    torch.testing.assert_close(matching_loss(returning(off), pairs._replace(weight=scale * w), PER_SAMPLE), one)
    equal = matching_loss(returning(off), pairs._replace(weight=torch.full((4,), scale).double()), PER_SAMPLE)
    torch.testing.assert_close(equal, matching_loss(returning(off), pairs, PER_SAMPLE))


# dicts and ragged batches


def test_the_loss_of_a_dict_is_the_sum_of_the_losses_of_its_leaves():
    shape = {"a": (4, 4), "b": {"c": (4, 3), "d": (4, 2, 2)}}
    pairs, off = pairs_of(shape), normal(shape, 31)
    wanted = sum(
        matching_loss(returning(o), Pairs(x0, x1), PER_SAMPLE)
        for o, x0, x1 in (
            (off["a"], pairs.x0["a"], pairs.x1["a"]),
            (off["b"]["c"], pairs.x0["b"]["c"], pairs.x1["b"]["c"]),
            (off["b"]["d"], pairs.x0["b"]["d"], pairs.x1["b"]["d"]),
        )
    )
    torch.testing.assert_close(matching_loss(returning(off), pairs, PER_SAMPLE), wanted)


def test_on_a_product_each_leaf_is_compared_with_the_target_of_its_own_path_and_kind():
    path = Product({"a": paths.cosine(), "b": paths.vp()})
    kinds = {"a": "velocity", "b": "x1"}
    pairs = pairs_of({"a": (4, 3), "b": (4, 5)})
    told = path.target(kinds, pairs.x0, pairs.x1, PER_SAMPLE)
    field = Field(lambda x, t, condition: told, path, kinds)
    assert matching_loss(field, pairs, PER_SAMPLE).abs().max() < 1e-20
    off = tree_map(lambda leaf: leaf + 1, told)
    field = Field(lambda x, t, condition: off, path, kinds)
    torch.testing.assert_close(matching_loss(field, pairs, PER_SAMPLE), double([2.0] * 4))


INDEX = torch.tensor([1, 0, 1, 1, 2, 1, 1, 0, 1, 1])  # two, seven and one rows
RAGGED_T = double([0.2, 0.5, 0.9])


def test_a_large_molecule_weighs_as_much_as_a_small_one():
    pairs, off = pairs_of((10, 3)), normal((10, 3), 5)
    rows = (off - (pairs.x1 - pairs.x0)).square().mean(1)
    wanted = torch.stack([rows[sample == INDEX].mean() for sample in range(3)])
    torch.testing.assert_close(matching_loss(returning(off), pairs, RAGGED_T, index=INDEX), wanted)
    one_off = pairs.x1 - pairs.x0 + 1.0  # every atom as wrong as every other
    torch.testing.assert_close(matching_loss(returning(one_off), pairs, RAGGED_T, index=INDEX), double([1.0] * 3))


def test_the_rows_of_a_ragged_batch_are_at_the_time_of_their_sample():
    path, pairs = paths.vp(), pairs_of((10, 3))
    target = path.target("velocity", pairs.x0, pairs.x1, RAGGED_T[INDEX])
    seen = []
    field = Field(lambda x, t, c, index: seen.append((x, t)) or target, path, index=INDEX, samples=3)
    assert matching_loss(field, pairs, RAGGED_T, index=INDEX).abs().max() < 1e-20
    assert torch.equal(seen[0][0], path.interpolate(pairs.x0, pairs.x1, RAGGED_T[INDEX]))
    assert torch.equal(seen[0][1], RAGGED_T)  # one time a sample for the network


def test_the_loss_of_a_sample_does_not_depend_on_what_it_is_batched_with():
    pairs, off = pairs_of((10, 3)), normal((10, 3), 5)
    together = matching_loss(returning(off), pairs, RAGGED_T, index=INDEX)
    for sample in range(3):
        rows = sample == INDEX
        alone = Pairs(pairs.x0[rows], pairs.x1[rows])
        none = torch.zeros(int(rows.sum()), dtype=torch.int64)
        got = matching_loss(returning(off[rows]), alone, RAGGED_T[sample : sample + 1], index=none)
        torch.testing.assert_close(got, together[sample : sample + 1])


def test_a_dict_may_be_ragged_in_some_leaves_only_and_a_sample_without_rows_adds_nothing():
    index = {"atoms": torch.tensor([0, 2, 2]), "cell": None}  # sample 1 has no atoms
    pairs = pairs_of({"atoms": (3, 3), "cell": (3, 6)})
    off = tree_map(lambda a, b: b - a + 2.0, pairs.x0, pairs.x1)
    got = matching_loss(returning(off), pairs, RAGGED_T, index=index)
    torch.testing.assert_close(got, double([8.0, 4.0, 8.0]))


def test_weights_of_the_pairs_are_one_a_sample_in_a_ragged_batch():
    pairs, off, w = pairs_of((10, 3)), normal((10, 3), 5), double([3.0, 1.0, 2.0])
    plain = matching_loss(returning(off), pairs, RAGGED_T, index=INDEX)
    got = matching_loss(returning(off), pairs._replace(weight=w), RAGGED_T, index=INDEX)
    torch.testing.assert_close(got, plain * w / 2)


# the perceptual hook


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("shape", [(4, 2, 3, 3), {"a": (4, 3), "b": (4, 4)}], ids=str)
def test_the_perceptual_distance_compares_the_predicted_data_with_the_data_and_is_added(predicts, shape):
    path, pairs, seen = paths.cosine(), pairs_of(shape), []
    target = path.target(predicts, pairs.x0, pairs.x1, PER_SAMPLE)

    def distance(predicted, data, t):
        seen.append((predicted, data, t))
        return 10 * t

    got = matching_loss(returning(target, path, predicts), pairs, PER_SAMPLE, perceptual=distance)
    torch.testing.assert_close(got, 10 * PER_SAMPLE)
    predicted, data, t = seen[0]
    torch.testing.assert_close(predicted, pairs.x1, rtol=1e-9, atol=1e-9)  # a perfect network predicts the data
    assert data is pairs.x1
    assert t is PER_SAMPLE


def test_the_perceptual_distance_is_differentiated_through_the_network_and_weighed_with_its_pair():
    pairs, w = pairs_of((4, 3))._replace(weight=double([1.0, 2.0, 0.0, 5.0])), double([1.0, 2.0, 0.0, 5.0])
    v = normal((4, 3), 5).requires_grad_()
    loss = matching_loss(
        returning(v), pairs, PER_SAMPLE, metric=lambda p, t: torch.zeros(len(p)).double(),
        perceptual=lambda predicted, data, t: predicted.sum(1),
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(loss.sum(), v)
    torch.testing.assert_close(gradient, ((1 - PER_SAMPLE) * w / 2)[:, None].expand(4, 3))  # x1 = x + (1 - t) v


# errors


@pytest.mark.parametrize(
    ("said", "asked"),
    [((4, 1), (4, 3)), ((4,), (4, 3)), ((4, 3), (4,)), ((1, 3), (4, 3)), ((4, 1, 3, 3), (4, 2, 3, 3))],
)
@pytest.mark.parametrize("compares", [None, "x1"])
def test_an_output_of_another_shape_is_refused_rather_than_broadcast(said, asked, compares):
    with pytest.raises(ValueError, match="returned") as error:
        matching_loss(returning(normal(said)), pairs_of(asked), PER_SAMPLE, compares=compares)
    assert str(said) in str(error.value)
    assert str(asked) in str(error.value)


def test_an_output_of_another_shape_in_one_leaf_is_refused():
    off = normal({"a": (4, 3), "b": (4, 1)})
    with pytest.raises(ValueError, match=r"\(4, 1\) for a state of \(4, 2\)"):
        matching_loss(returning(off), pairs_of({"a": (4, 3), "b": (4, 2)}), PER_SAMPLE)


# what minimises it


@each_path
@pytest.mark.parametrize("predicts", ["velocity", "x1", "noise"])
def test_the_regression_optimum_is_the_conditional_expectation(path, predicts):
    """Least squares of the target on (1, x), n = 1e5: intercept and slope of the exact Gaussian field."""
    m, S, t, n = -0.5, 0.6, 0.6, 100_000
    pairs = Pairs(normal((n, 1), 1), m + S * normal((n, 1), 2))
    x = path.interpolate(pairs.x0, pairs.x1, t)
    target = path.target(predicts, pairs.x0, pairs.x1, t)
    fit = torch.linalg.lstsq(torch.cat([torch.ones_like(x), x], 1), target).solution.flatten()
    field = replace_kind(mixture(path, double([[m]]), S), predicts)
    at = field(double([[0.0], [1.0]]), t).flatten()
    torch.testing.assert_close(fit, torch.stack([at[0], at[1] - at[0]]), rtol=0, atol=0.02)


def replace_kind(field, predicts):
    return {"velocity": field.velocity, "x1": field.x1, "noise": field.noise}[predicts]


@pytest.mark.parametrize("name", ["linear", "cosine", "vp"])
def test_any_other_field_has_a_higher_loss_by_its_squared_distance(name):
    """E loss(v + d) - E loss(v) = d^2: the cross term vanishes at the exact field and nowhere else."""
    path, n = replace(PATHS[name]), 100_000
    means = double([[-2.0], [1.0]])
    exact = mixture(path, means, 0.5)
    which = torch.randint(2, (n,), generator=generator(0, "which"))
    pairs = Pairs(normal((n, 1), 1), means[which] + 0.5 * normal((n, 1), 2))
    t = 0.1 + 0.8 * torch.rand(n, generator=generator(0, "t"), dtype=torch.float64)
    best = matching_loss(exact, pairs, t)
    for d in (lambda x, t: 0.5, lambda x, t: 0.3 * torch.sin(2 * x), lambda x, t: 0.4 * t[:, None]):
        other = Field(lambda x, t, c, d=d: exact.network(x, t) + d(x, t), path)
        rise = matching_loss(other, pairs, t) - best
        x = path.interpolate(pairs.x0, pairs.x1, t)
        squared = torch.as_tensor(d(x, t), dtype=torch.float64).square().mean()
        assert abs(rise.mean() - squared) < 4 * rise.std() / n**0.5


# what is known of the data


@pytest.mark.parametrize("predicts", ["velocity", "noise", "x1"])
def test_under_a_mask_the_loss_is_the_mean_over_what_is_known(predicts):
    pairs, value = pairs_of((4, 2, 3)), normal((4, 2, 3), 5)
    mask = (normal((4, 2, 3), 6) > 0).double()
    mask[3] = 0
    field = returning(value, predicts=predicts)
    found = matching_loss(field, pairs, PER_SAMPLE, mask=mask)
    squares = (value - field.path.target(predicts, *pairs[:2], PER_SAMPLE)).square()
    wanted = double([squares[i][mask[i] == 1].mean().item() for i in range(3)] + [0])
    torch.testing.assert_close(found, wanted)


def test_a_mask_of_ones_changes_nothing_and_masks_may_be_of_truths():
    pairs, field = pairs_of((4, 3)), returning(normal((4, 3), 5))
    plain = matching_loss(field, pairs, PER_SAMPLE)
    torch.testing.assert_close(matching_loss(field, pairs, PER_SAMPLE, mask=torch.ones(4, 3, dtype=torch.bool)), plain)


def test_what_is_unknown_gives_no_gradient_even_where_the_data_are_nonsense():
    value = normal((4, 3), 5).requires_grad_()
    x0, x1 = pairs_of((4, 3))[:2]
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[:, 1] = False
    x1[:, 1] = 1e30
    matching_loss(returning(value), Pairs(x0, x1), PER_SAMPLE, mask=mask).sum().backward()
    assert (value.grad[:, 1] == 0).all()
    assert (value.grad[:, [0, 2]] != 0).all()


def test_leaves_have_masks_of_their_own_and_one_of_another_shape_is_refused():
    value = {"a": normal((4, 3), 1), "b": normal((4,), 2)}
    pairs = Pairs({"a": normal((4, 3), 3), "b": normal((4,), 4)}, {"a": normal((4, 3), 5), "b": normal((4,), 6)})
    field = Field(lambda x, t, condition: value, Product({"a": paths.linear(), "b": paths.linear()}))
    mask = {"a": torch.zeros(4, 3), "b": torch.ones(4)}
    wanted = (value["b"] - (pairs.x1["b"] - pairs.x0["b"])).square()
    torch.testing.assert_close(matching_loss(field, pairs, PER_SAMPLE, mask=mask), wanted)
    with pytest.raises(ValueError, match=r"the mask has the shape \(4, 2\), the state \(4, 3\)"):
        matching_loss(returning(value["a"]), pairs_of((4, 3)), PER_SAMPLE, mask=torch.ones(4, 2))
