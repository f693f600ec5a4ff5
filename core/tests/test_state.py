import pytest
import torch

from flowcore.seeds import generator
from flowcore.state import add, branch, expand, first_leaf, leaves, tree_map

SHAPES = [(4,), (4, 1), (4, 3), (4, 4), (4, 2, 5, 5)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed, "normal"), dtype=torch.float64)


def nested():
    return {"atoms": normal(4, 3), "cell": {"edges": normal(2, 3, seed=1), "angles": normal(2, 3, seed=2)}}


def test_leaves_come_in_the_order_of_the_keys_and_a_tensor_is_its_own_leaf():
    state = nested()
    assert [id(leaf) for leaf in leaves(state)] == [
        id(state["atoms"]), id(state["cell"]["edges"]), id(state["cell"]["angles"])
    ]  # fmt: skip
    assert first_leaf(state) is state["atoms"]
    x = normal(3)
    assert list(leaves(x)) == [x]
    assert first_leaf(x) is x


def test_tree_map_works_leaf_by_leaf_over_several_states_and_leaves_its_arguments_alone():
    x, y, z = nested(), tree_map(torch.ones_like, nested()), tree_map(lambda leaf: 2 * leaf, nested())
    before = [leaf.clone() for leaf in leaves(x)]
    out = tree_map(lambda a, b, c: a + b * c, x, y, z)
    assert out.keys() == x.keys()
    assert out["cell"].keys() == x["cell"].keys()
    for got, leaf, old in zip(leaves(out), leaves(x), before, strict=True):
        torch.testing.assert_close(got, 3 * leaf)
        assert torch.equal(leaf, old)


def test_tree_map_finds_leaves_by_key_and_not_by_place():
    x, y = {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, {"b": torch.tensor(20.0), "a": torch.tensor(10.0)}
    assert tree_map(torch.add, x, y) == {"a": 11.0, "b": 22.0}


@pytest.mark.parametrize("h", [0.25, torch.tensor(0.25)], ids=["float", "tensor"])
def test_add_is_x_plus_h_v_on_tensors_and_dicts(h):
    x, v = nested(), tree_map(torch.sin, nested())
    for got, a, b in zip(leaves(add(x, v, h)), leaves(x), leaves(v), strict=True):
        torch.testing.assert_close(got, a + 0.25 * b, rtol=0, atol=1e-15)


@each_shape
def test_a_time_for_each_sample_multiplies_whole_samples_also_where_the_batch_is_as_large_as_the_dimension(shape):
    x, t = normal(*shape), normal(4, seed=1)
    wanted = torch.stack([t[i] * x[i] for i in range(4)])
    assert torch.equal(expand(t, x) * x, wanted)
    assert torch.equal(expand(t[:, None], x) * x, wanted)  # (B, 1) is read as (B,)


@each_shape
@pytest.mark.parametrize("t", [0.3, 1, torch.tensor(0.3, dtype=torch.float64)], ids=["float", "int", "tensor"])
def test_a_scalar_time_stays_a_scalar_of_the_states_dtype(shape, t):
    x = normal(*shape).float()
    assert expand(t, x).shape == ()
    assert expand(t, x).dtype == torch.float32
    torch.testing.assert_close(expand(t, x) * x, float(t) * x)


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 2, 2)], ids=str)
def test_with_an_index_each_row_takes_the_time_of_its_sample(shape):
    x, t, index = normal(*shape), normal(3, seed=1), torch.tensor([0, 2, 2, 1, 0, 2])
    wanted = torch.stack([t[sample] * row for sample, row in zip(index, x, strict=True)])
    assert torch.equal(expand(t, x, index) * x, wanted)
    assert expand(0.5, x, index).shape == ()


def test_integer_rows_do_not_round_the_time():
    tokens = torch.tensor([[1, 2], [3, 4]])
    torch.testing.assert_close(expand(torch.tensor([0.25, 0.75]), tokens).flatten(), torch.tensor([0.25, 0.75]))


@pytest.mark.parametrize(
    ("t", "index", "message"),
    [
        (torch.rand(3), None, "3 values for 4 rows"),
        (torch.rand(1), None, "1 values for 4 rows"),
        (torch.rand(2), torch.tensor([0, 1, 1]), "3 values for 4 rows"),
        (torch.rand(4, 3), None, r"not \(4, 3\)"),
        (torch.rand(2, 2), None, r"not \(2, 2\)"),  # the right number of values, in no order one could trust
    ],
    ids=["too few", "one", "index", "matrix", "square"],
)
def test_times_that_do_not_match_the_rows_are_refused(t, index, message):
    with pytest.raises(ValueError, match=message):
        expand(t, normal(4, 3), index)


def test_branch_looks_a_dict_up_and_serves_a_single_value_to_every_leaf():
    index = torch.tensor([0, 1])
    assert branch(index, "a") is index
    assert branch("velocity", "a") == "velocity"
    assert branch({"a": index}, "a") is index
    assert branch({"a": index}, "b") is None
    assert branch(None, "a") is None
