from dataclasses import replace

import pytest
import torch

from flowcore import paths
from flowcore.closed_form import mixture
from flowcore.field import Field, change_path
from flowcore.paths import PREDICTIONS, Product
from flowcore.seeds import generator
from flowcore.solvers import solve
from flowcore.state import leaves, tree_map

PATHS = {
    "linear": paths.linear(),
    "linear with floor": paths.linear(0.05),
    "polynomial": paths.polynomial(2.0),
    "cosine": paths.cosine(),
    "linear_vp": paths.linear_vp(),
    "vp": paths.vp(),
    "ve": paths.ve(),
    "general": paths.general(lambda t: t**3, lambda t: 1 - t),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
SHAPES = [(4,), (4, 3), (4, 4), (4, 2, 3, 3), {"a": (4, 4), "b": {"c": (4, 3)}}]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
PER_SAMPLE = torch.tensor([0.1, 0.35, 0.6, 0.9], dtype=torch.float64)
TIMES = {"number": 0.35, "scalar": torch.tensor(0.35, dtype=torch.float64), "per sample": PER_SAMPLE}
each_t = pytest.mark.parametrize("t", TIMES.values(), ids=TIMES.keys())


def normal(shape, seed=0):
    if isinstance(shape, dict):
        return {key: normal(one, seed + i) for i, (key, one) in enumerate(shape.items())}
    return torch.randn(shape, generator=generator(seed, "normal"), dtype=torch.float64)


def agree(a, b, rtol=1e-8, atol=1e-8):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=atol)


def bent(x, t, condition=None):
    """A network without parameters that depends on all of x and t."""
    return tree_map(lambda leaf: torch.sin(leaf) + t.reshape(-1, *(1,) * (leaf.ndim - 1)), x)


# one prediction, four readings


@each_path
@each_shape
@each_t
def test_a_field_gives_all_four_predictions_from_whichever_its_network_makes(path, shape, t):
    """The network knows the pair, so each answer must be the pair's own."""
    x0, x1 = normal(shape, 1), normal(shape, 11)
    x = path.interpolate(x0, x1, t)
    for predicts in PREDICTIONS:
        target = path.target(predicts, x0, x1, t)
        field = Field(lambda x, time, condition, target=target: target, path, predicts)
        answers = {"velocity": field.velocity, "x1": field.x1, "noise": field.noise, "score": field.score}
        for kind, answer in answers.items():
            agree(answer(x, t), path.target(kind, x0, x1, t))
        agree(field(x, t), path.target("velocity", x0, x1, t))
        assert field.calls == 1


def test_on_a_product_of_paths_each_leaf_is_converted_by_its_own():
    path = Product({"a": paths.cosine(), "b": paths.vp()})
    x0, x1 = normal({"a": (4, 3), "b": (4, 4)}, 1), normal({"a": (4, 3), "b": (4, 4)}, 11)
    field = Field(lambda x, t, condition: path.target("velocity", x0, x1, t), path)
    agree(field.x1(path.interpolate(x0, x1, PER_SAMPLE), PER_SAMPLE), x1)


# what the network is given


@pytest.mark.parametrize("t", [0.25, 1, torch.tensor(0.25)], ids=["float", "int", "tensor"])
@each_shape
def test_the_network_sees_one_time_a_sample_in_the_dtype_of_the_state(t, shape):
    seen = []
    field = Field(lambda x, time, condition: seen.append(time) or x, paths.linear())
    field.velocity(normal(shape), t)
    assert (seen[0].shape, seen[0].dtype) == ((4,), torch.float64)
    assert (seen[0] == float(t)).all()


def test_times_of_the_samples_reach_the_network_as_they_are():
    seen = []
    field = Field(lambda x, time, condition: seen.append(time) or x, paths.linear())
    field.velocity(normal((4, 4)), PER_SAMPLE)
    assert torch.equal(seen[0], PER_SAMPLE)


def test_in_a_ragged_batch_the_network_sees_a_time_a_sample_and_rows_are_converted_by_the_index():
    path, index = paths.cosine(), torch.tensor([0, 2, 2, 1, 0])
    x0, x1, seen = normal((5, 3), 1), normal((5, 3), 2), []

    def network(x, t, condition, told):
        seen.append(t)
        assert told is index
        return path.target("velocity", x0, x1, t, index)

    field = Field(network, path, index=index, samples=3)
    for t in (0.4, torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64)):
        x = path.interpolate(x0, x1, t, index)
        agree(field.x1(x, t), x1)
        assert torch.equal(seen[-1], torch.as_tensor(t, dtype=torch.float64).expand(3))


def test_the_condition_reaches_the_network():
    seen = []
    field = Field(lambda x, t, condition: seen.append(condition) or x, paths.linear(), condition="label")
    field.velocity(normal((4, 3)), 0.5)
    field.with_condition("other").velocity(normal((4, 3)), 0.5)
    assert seen == ["label", "other"]


def test_null_condition_repeats_the_null_of_one_sample_in_the_shape_and_dtype_of_the_condition():
    field = Field(bent, paths.linear(), condition=torch.tensor([3, 1, 4]), null=10)
    assert field.null_condition().tolist() == [10, 10, 10]
    assert field.null_condition().dtype == torch.int64
    square = Field(bent, paths.linear(), condition=torch.zeros(2, 2), null=torch.tensor([1.0, 2.0]))
    assert square.null_condition().tolist() == [[1, 2], [1, 2]]  # a null for each sample, also where B == d
    several = Field(
        bent,
        paths.linear(),
        condition={"label": torch.tensor([1, 2]), "image": torch.ones(2, 1, 3, 3)},
        null={"label": 7, "image": torch.zeros(1, 3, 3)},
    )
    null = several.null_condition()
    assert null["label"].tolist() == [7, 7]
    assert torch.equal(null["image"], torch.zeros(2, 1, 3, 3))


# what is remembered


def test_asking_again_at_the_same_place_costs_no_call():
    field, x, t = Field(bent, paths.cosine()), normal((4, 3)), PER_SAMPLE
    first = field.velocity(x, t)
    field.x1(x, t), field.noise(x, t), field.score(x, t)
    assert torch.equal(field.velocity(x, t), first)
    assert field.calls == 1
    assert field.predict(x, t) is not first  # always afresh
    assert field.calls == 2


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_velocity_once_is_the_velocity_evaluated_afresh_and_not_kept(predicts):
    field, x = Field(bent, paths.cosine(), predicts), normal((4, 3))
    for t in (0.35, PER_SAMPLE):
        calls, v = field.calls, field.velocity(x, t)
        assert torch.equal(field.velocity_once(x, t), v)
        assert field.calls == calls + 2
        field.velocity_once(normal((4, 3), 1), t)
        assert torch.equal(field.velocity(x, t), v)
        assert field.calls == calls + 3  # what was kept is still known


def fresh(field, x, t):
    """What a field without a memory answers."""
    return Field(field.network, field.path, field.predicts, field.condition).velocity(x, t)


MOVES = {
    "another state": lambda x, t: (x.clone() + 1, t),
    "an equal state changed in place": lambda x, t: (x.add_(1), t),
    "one entry changed in place": lambda x, t: (x.view(-1)[1].fill_(9.0) is not None and x, t),
    "another time": lambda x, t: (x, t + 0.1),
    "the time changed in place": lambda x, t: (x, t.mul_(0.5)),
    "a number for the time": lambda x, t: (x, 0.7),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
def test_a_change_of_place_is_noticed(move):
    field, x, t = Field(bent, paths.linear()), normal((4, 3)), torch.tensor(0.3, dtype=torch.float64)
    before = field.velocity(x, t).clone()
    x, t = move(x, t)
    after = field.velocity(x, t)
    agree(after, fresh(field, x, t), rtol=0, atol=0)
    assert not torch.equal(after, before)
    assert field.calls == 2


def test_another_number_for_the_time_is_noticed():
    field, x = Field(bent, paths.linear()), normal((4, 3))
    for t in (0.3, 0.4, 0, 1.0):
        agree(field.velocity(x, t), torch.sin(x) + t)
    assert field.calls == 4


def test_a_change_in_one_leaf_of_a_dict_is_noticed():
    field, x = Field(bent, paths.linear()), normal({"a": (4, 3), "b": {"c": (4, 2)}})
    field.velocity(x, 0.3)
    x["b"]["c"].zero_()
    agree(field.velocity(x, 0.3), fresh(field, x, 0.3))
    x["a"] = x["a"] + 1
    agree(field.velocity(x, 0.3), fresh(field, x, 0.3))
    assert field.calls == 3


def test_states_that_come_and_go_are_never_taken_for_each_other():
    """Tensors freed and made again often get the same address."""
    field = Field(bent, paths.linear())
    for seed in range(200):
        x = normal((4, 3), seed)
        assert torch.equal(field.velocity(x, 0.3), torch.sin(x) + 0.3)


def test_an_answer_without_a_graph_does_not_serve_where_gradients_are_wanted():
    field, x = Field(bent, paths.linear()), normal((4, 3)).requires_grad_()
    with torch.no_grad():
        field.velocity(x, 0.3)
    (gradient,) = torch.autograd.grad(field.velocity(x, 0.3).sum(), x)
    agree(gradient, torch.cos(x))
    with torch.no_grad():
        assert not field.velocity(x, 0.3).requires_grad


def test_a_state_that_begins_to_want_gradients_is_evaluated_again():
    field, x = Field(bent, paths.linear()), normal((4, 3))
    field.velocity(x, 0.3)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(field.velocity(x, 0.3).sum(), x)
    agree(gradient, torch.cos(x))


@pytest.mark.parametrize("frozen", [False, True], ids=["all learn", "the first is frozen"])
def test_a_network_that_has_learnt_is_evaluated_again(frozen):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.frequency = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64), requires_grad=not frozen)
            self.scale = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

        def forward(self, x, t, condition):
            return self.scale * torch.sin(self.frequency * x)

    network, x = Network(), normal((4, 3))
    field, optimizer = Field(network, paths.linear()), torch.optim.AdamW(network.parameters(), lr=0.1)
    with torch.no_grad():
        before = field.velocity(x, 0.3)
    field.predict(x, 0.3).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        agree(field.velocity(x, 0.3), network(x, 0.3, None))
        assert not torch.equal(field.velocity(x, 0.3), before)


def test_a_field_works_in_inference_mode():
    field, path, outside = Field(bent, paths.cosine()), paths.cosine(), normal((4, 3))
    with torch.inference_mode():
        t = torch.tensor(0.3, dtype=torch.float64)
        for x in (outside, normal((4, 3), 1)):
            v = field.velocity(x, t)
            agree(v, bent(x, t))
            agree(field.x1(x, t), path.convert(v, x, t, "velocity", "x1"))
            x.add_(1)
            agree(field.velocity(x, t), bent(x, t))
        agree(solve(field, x, 3), solve(lambda x, t: bent(x, t), x, 3))


def test_fields_told_something_else_share_the_count_and_not_the_memory():
    field = Field(lambda x, t, condition: condition * x, paths.linear(), condition=1.0)
    x = normal((4, 3))
    other = field.with_condition(2.0)
    agree(field.velocity(x, 0.3), x)
    agree(other.velocity(x, 0.3), 2 * x)
    agree(other.with_condition(3.0).velocity(x, 0.3), 3 * x)
    agree(field.velocity(x, 0.3), x)
    assert field.calls == other.calls == 3


def test_with_condition_keeps_everything_else():
    index, draws = torch.tensor([0, 1, 1]), generator(0, "draws")
    field = Field(bent, paths.vp(), "x1", condition=1, null=0, index=index, samples=2)
    field.draws = draws
    other = field.with_condition(5)
    assert (other.network, other.path, other.predicts, other.condition) == (field.network, field.path, "x1", 5)
    assert (other.null, other.samples) == (0, 2)
    assert other.index is index
    assert other.draws is draws
    wider = torch.tensor([0, 1, 1, 2])
    moved = field.with_condition(5, index=wider, samples=3)
    assert moved.index is wider
    assert moved.samples == 3


# the preconditioning of EDM


MEAN = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)


def exact_edm(std, sigma_data):
    """The F of data N(m, std^2), which need not be what sigma_data says: from the exact denoiser on ``ve``."""
    path = replace(paths.ve(1e4), sigma_data=sigma_data)
    exact = mixture(path, MEAN, std)

    def network(shown, told, condition):
        s = (1 - told) / told
        t = 1 - s / 1e4
        x = shown * (s**2 + sigma_data**2).sqrt()[:, None]
        return path.convert(exact.network.posterior(x, t), x, t, "x1", "edm")

    return network


@pytest.mark.parametrize("name", ["linear", "cosine", "vp", "ve"])
def test_the_weights_of_an_edm_network_are_a_velocity_field_on_any_path(name):
    """Trained on ``ve``, it is on another path what ``change_path`` makes of it, and the exact field of the data."""
    network, ve = exact_edm(0.6, 0.9), replace(paths.ve(1e4), sigma_data=0.9)
    path = replace(PATHS[name], sigma_data=0.9)
    own, moved = Field(network, path, "edm"), change_path(Field(network, ve, "edm"), path)
    wanted = mixture(path, MEAN, 0.6)
    x = normal((4, 3))
    for t in (0.05, 0.3, PER_SAMPLE, 0.95):
        agree(own.velocity(x, t), moved.velocity(x, t), rtol=1e-5, atol=1e-5)
        agree(own.velocity(x, t), wanted.velocity(x, t), rtol=1e-5, atol=1e-5)


def test_an_edm_network_on_linear_is_the_probability_flow_of_its_denoiser():
    """v = (D(x / t; s) - x) / (1 - t) with s = (1 - t) / t, the initialisation of 2-Rectified Flow++."""
    network = exact_edm(0.6, 0.9)
    field = Field(network, replace(paths.linear(), sigma_data=0.9), "edm")
    x, t, sd = normal((4, 3)), PER_SAMPLE[:, None], 0.9
    s = (1 - t) / t
    root = (s**2 + sd**2).sqrt()
    denoised = sd**2 / root**2 * (x / t) + s * sd / root * network(x / t / root, PER_SAMPLE, None)
    agree(field.velocity(x, PER_SAMPLE), (denoised - x) / (1 - t), rtol=1e-5)


def test_an_edm_network_is_told_one_noise_ratio():
    for kinds in ("edm", {"a": "edm", "b": "velocity"}):
        with pytest.raises(ValueError, match="one noise ratio"):
            Field(bent, Product({"a": paths.linear(), "b": paths.ve()}), kinds)


# another path for the same model


MEANS = torch.tensor([[2.0, -1.0], [-1.5, 0.5], [0.0, 3.0]], dtype=torch.float64)
R = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)


def ratio(path, t):
    return path.alpha(t) / path.sigma(t)


@pytest.mark.parametrize("old", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("new", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("predicts", ["velocity", "x1"])
def test_a_changed_path_has_the_exact_field_of_the_new_path(old, new, predicts):
    exact, wanted = mixture(old, MEANS, 0.6), mixture(new, MEANS, 0.6)
    model = exact
    if predicts == "x1":
        model = Field(lambda x, t, condition: exact.network.posterior(x, t), old, "x1")
    field = change_path(model, new)
    ends = torch.tensor([max(old.start, 1e-3), min(old.stop, 1 - 1e-3)], dtype=torch.float64)
    low, high = ratio(old, ends)
    within = R[(ratio(new, R) > low) & (ratio(new, R) < high)]
    assert len(within) >= 4
    for r in within:
        x = normal((5, 2)) * (new.alpha(r) + new.sigma(r))
        agree(field.velocity(x, r), wanted.velocity(x, r), rtol=1e-6)
        agree(field.x1(x, r), wanted.network.posterior(x, r), rtol=1e-6, atol=1e-7)
    x = normal((len(within), 2))
    agree(field.velocity(x, within), wanted.velocity(x, within), rtol=1e-6)  # a time for each sample


@pytest.mark.parametrize("shape", [(3, 3), (2, 2, 3, 3)], ids=str)
def test_a_change_of_path_there_and_back_changes_nothing(shape):
    exact = mixture(paths.linear(), normal((4, *shape[1:]), 3), 0.5)
    t = torch.linspace(0.2, 0.8, shape[0], dtype=torch.float64)
    x = normal(shape)
    for middle in (paths.cosine(), paths.linear_vp(), paths.vp(), paths.ve()):
        back = change_path(change_path(exact, middle), paths.linear())
        agree(back.velocity(x, t), exact.velocity(x, t))
    agree(change_path(exact, paths.linear()).velocity(x, t), exact.velocity(x, t))


@pytest.mark.parametrize("name", [name for name in PATHS if name != "general"])  # nothing says where that is singular
def test_a_changed_path_is_finite_at_both_ends(name):
    """Where the old path has no time of the ratio, or may not be asked, its nearest time answers."""
    field, wanted = change_path(mixture(PATHS[name], MEANS, 0.6), paths.linear()), mixture(paths.linear(), MEANS, 0.6)
    x = normal((5, 2))
    agree(field.velocity(x, 0.0), wanted.velocity(x, 0.0), rtol=0, atol=0.1)
    agree(field.velocity(x, 1.0), wanted.velocity(x, 1.0), rtol=0, atol=0.3)


@pytest.mark.parametrize("new", ["cosine", "polynomial", "linear with floor"])
def test_the_samples_of_a_changed_path_are_those_of_the_old_one(new):
    """The flow map from the source to the data does not depend on the path."""
    field, x0 = mixture(paths.linear(), MEANS, 0.6), normal((20, 2))
    new = replace(PATHS[new], stop=0.98)
    there = solve(change_path(field, new), x0, 400, "rk4")
    r = torch.tensor(new.stop, dtype=torch.float64)
    t = paths.linear().inverse(new.alpha(r), new.sigma(r))
    scale = (new.alpha(r) + new.sigma(r)) / 1.0  # alpha + sigma is 1 on the linear path
    times = torch.linspace(0, t.item(), 401, dtype=torch.float64)
    agree(there, scale * solve(field, x0, times, "rk4"), rtol=0, atol=1e-5)


def test_a_change_of_path_costs_one_call_of_the_network_and_keeps_the_condition():
    seen = []

    def network(x, t, condition):
        seen.append(condition)
        return x

    field = change_path(Field(network, paths.linear(), condition="told", null="nothing"), paths.cosine())
    field.velocity(normal((4, 3)), 0.4)
    assert seen == ["told"]
    field.with_condition("else").velocity(normal((4, 3)), 0.4)
    assert seen == ["told", "else"]
    assert (field.null, field.calls) == ("nothing", 2)


def test_only_tensors_on_affine_paths_change_path():
    field = Field(bent, Product({"a": paths.linear()}))
    with pytest.raises(ValueError, match="affine path"):
        change_path(field, paths.cosine())
    with pytest.raises(ValueError, match="tensor"):
        change_path(Field(bent, paths.linear()), paths.cosine()).velocity(normal({"a": (4, 3)}), 0.5)
