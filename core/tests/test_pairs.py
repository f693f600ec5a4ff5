"""The pair store as its user meets it, on data whose flow is known in closed form.

The teacher is the exact field for data N(m, S^2 I), whose flow is x1 = m + S x0.
"""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flowcore import paths
from flowcore.closed_form import mixture
from flowcore.data import Batch, Rows, everything
from flowcore.errors import InputError, IntegrityError, MachineError, UsageError
from flowcore.field import Field
from flowcore.guidance import classifier_free
from flowcore.pairs import PairStore, Recipe, generate_pairs, invert_pairs, store_size
from flowcore.seeds import generator
from flowcore.solvers import rk4, solve

MEAN = torch.tensor([1.5, -0.5])
S = 1.3
EXACT = Recipe("teacher-hash", grid=20, method="rk4", dtype="float32", shard_size=10, batch_size=4)


def teacher(path: paths.Affine | None = None, mean: Tensor = MEAN) -> Field:
    return mixture(path or paths.linear(), mean[None], S)


def make(folder: Path, recipe: Recipe = EXACT, count: int = 25, seed: int = 7, **others) -> Path:
    generate_pairs(teacher(), recipe, folder, torch.empty(2), count, seed, **others)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip(path: Path) -> None:
    """Turn the last bit of a file, where its numbers are."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


# ---- pairs


@pytest.mark.parametrize("shape", [(2,), (1, 2, 2), (25,)], ids=["rows", "images", "B == d"])
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("float16", 4e-3)])
def test_pairs_lie_on_the_flow(tmp_path, shape, dtype, error):
    """x1 = m + S x0, x0 first: swapped, the difference from m would have the other sign and size."""
    mean = torch.linspace(-1, 2, math.prod(shape)).reshape(shape)
    generate_pairs(teacher(mean=mean), replace(EXACT, dtype=dtype), tmp_path, torch.empty(shape), 25, 7)
    pairs = everything(PairStore(tmp_path))
    assert pairs.x0.shape == pairs.x1.shape == (25, *shape)
    assert pairs.x0.dtype == pairs.x1.dtype == torch.float32
    torch.testing.assert_close(pairs.x1, mean + S * pairs.x0, atol=error, rtol=1e-3)
    assert pairs.condition is None


def test_order_of_the_pair(tmp_path):
    """A field that moves everything by +3 makes x1 = x0 + 3, and the x0 are the standard normal ones."""
    shift = Field(lambda x, t, condition: torch.full_like(x, 3.0), paths.linear())
    generate_pairs(shift, replace(EXACT, shard_size=1000, batch_size=500), tmp_path, torch.empty(4), 2000, 0)
    pairs = everything(PairStore(tmp_path))
    torch.testing.assert_close(pairs.x1 - pairs.x0, torch.full((2000, 4), 3.0))
    assert abs(pairs.x0.mean().item()) < 4 / math.sqrt(8000)
    assert abs(pairs.x0.var().item() - 1) < 4 * math.sqrt(2 / 8000)


def test_noise_is_its_seed(tmp_path):
    """x0 is what the recipe in meta.json says, bit for bit; the shards hold x1 and one row of noise to check it by."""
    store = PairStore(make(tmp_path))
    rows = torch.tensor([24, 3, 3, 11])
    expected = torch.stack([torch.randn(2, generator=generator(7, "pair", row)) for row in rows.tolist()])
    batch = store.batch(rows, generator(0))
    assert torch.equal(batch.x0, expected)
    assert torch.equal(batch.x1, everything(store).x1[rows])
    assert store.meta["x0"]["kind"] == "seed"
    assert len(torch.unique(everything(store).x0)) == 50
    # what is stored is what the teacher makes of it, chunk by chunk
    x0 = everything(store).x0
    for first, last in ((0, 4), (8, 10), (20, 24), (24, 25)):
        assert torch.equal(solve(teacher(), x0[first:last], 20, "rk4"), everything(store).x1[first:last])


def test_dict_state_and_condition(tmp_path):
    """Leaves of different shapes and dtypes, nested, each with its condition, in any order of rows."""
    labels = torch.arange(25) % 3
    condition = {"label": labels, "weight": torch.linspace(0, 1, 25)}

    def network(x, t, told):
        step = told["label"].to(x["inner"]["b"])
        return {"inner": {"b": step[:, None, None].expand_as(x["inner"]["b"])}, "a": told["weight"].expand_as(x["a"])}

    sample = {"inner": {"b": torch.empty(2, 2, dtype=torch.float64)}, "a": torch.empty(())}
    field = Field(network, paths.linear())
    generate_pairs(field, EXACT, tmp_path, sample, 25, 1, condition=condition)
    rows = torch.randperm(25, generator=generator(0))
    batch = PairStore(tmp_path).batch(rows, generator(0))
    assert torch.equal(batch.condition["label"], labels[rows])
    assert batch.condition["label"].dtype == torch.int64
    assert batch.x1["inner"]["b"].dtype == torch.float64
    moved = batch.x1["inner"]["b"] - batch.x0["inner"]["b"]
    torch.testing.assert_close(moved, labels[rows][:, None, None].expand(25, 2, 2).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(batch.x1["a"] - batch.x0["a"], condition["weight"][rows], atol=1e-5, rtol=0)


def test_path_that_sets_out_from_scaled_noise(tmp_path):
    """On ve() the sampler starts from sigma_max x0; the pair keeps x0, and inversion finds it again."""
    field = teacher(paths.ve(3.0), torch.zeros(2))
    recipe = replace(EXACT, grid=200)
    generate_pairs(field, recipe, tmp_path / "made", torch.empty(2), 5, 0)
    pairs = everything(PairStore(tmp_path / "made"))
    gain = 3.0 * S / math.hypot(3.0, S)
    torch.testing.assert_close(pairs.x1, gain * pairs.x0, atol=1e-4, rtol=0)
    invert_pairs(field, recipe, tmp_path / "inverted", Rows(pairs.x1))
    torch.testing.assert_close(everything(PairStore(tmp_path / "inverted")).x0, pairs.x0, atol=1e-4, rtol=0)


def test_source_that_is_stored(tmp_path):
    """Student t noise is stored in half precision, and x1 is exactly what the stored noise leads to."""
    path = replace(paths.linear(), source=paths.student_t(3.0))
    shift = Field(lambda x, t, condition: torch.full_like(x, 0.5), path)
    recipe = replace(EXACT, dtype="float16", grid=1, method="euler")
    generate_pairs(shift, recipe, tmp_path, torch.empty(2), 25, 7)
    store = PairStore(tmp_path)
    pairs = everything(store)
    assert store.meta["x0"]["kind"] == "stored"
    assert torch.equal((pairs.x0 + 0.5).half(), pairs.x1.half())
    assert not torch.allclose(pairs.x0, everything(PairStore(make(tmp_path / "normal"))).x0, atol=0.1)


def test_inversion_of_real_data(tmp_path):
    """x0 = (x1 - m) / S for given x1, which stays as it is with its condition; the flow leads from x0 back to x1."""
    x1 = MEAN + S * torch.randn(25, 2, generator=generator(0))
    invert_pairs(teacher(), EXACT, tmp_path, Rows(x1, torch.arange(25)))
    pairs = everything(PairStore(tmp_path))
    assert torch.equal(pairs.x1, x1)
    assert torch.equal(pairs.condition, torch.arange(25))
    torch.testing.assert_close(pairs.x0, (x1 - MEAN) / S, atol=1e-5, rtol=0)
    torch.testing.assert_close(solve(teacher(), pairs.x0, 20, "rk4"), x1, atol=1e-5, rtol=0)


def test_inversion_starts_from_what_is_stored(tmp_path):
    """Images in 256 levels come back exactly, and x0 is half precision of the inverse of those levels."""
    levels = torch.randint(0, 256, (25, 1, 2, 2), generator=generator(0))
    x1 = levels / 127.5 - 1
    invert_pairs(teacher(mean=torch.zeros(1, 2, 2)), replace(EXACT, dtype="uint8"), tmp_path, Rows(x1 + 1e-3))
    pairs = everything(PairStore(tmp_path))
    assert torch.equal(pairs.x1, x1)
    torch.testing.assert_close(pairs.x0, x1 / S, atol=1e-3, rtol=0)


def test_uint8_is_for_images(tmp_path):
    """x1 in [-1, 1] is kept to half a level and clamped there; numbers of another scale are refused, in float16 too."""
    recipe = replace(EXACT, dtype="uint8")
    squash = Field(lambda x, t, condition: 1.05 * torch.tanh(x) - x, paths.linear())
    generate_pairs(squash, replace(recipe, grid=1, method="euler"), tmp_path / "images", torch.empty(3, 2, 2), 25, 0)
    pairs = everything(PairStore(tmp_path / "images"))
    expected = (1.05 * torch.tanh(pairs.x0)).clamp(-1, 1)
    torch.testing.assert_close(pairs.x1, expected, atol=0.5 / 127.5 + 1e-6, rtol=0)
    assert pairs.x1.abs().max() == 1
    with pytest.raises(ValueError, match=r"uint8 holds images in \[-1, 1\].*float16"):
        make(tmp_path / "latents", recipe)
    huge = Field(lambda x, t, condition: torch.full_like(x, 1e6), paths.linear())
    with pytest.raises(ValueError, match=r"float16 cannot hold.*float32"):
        generate_pairs(huge, replace(EXACT, dtype="float16"), tmp_path / "huge", torch.empty(2), 5, 0)


class OfState(nn.Module):
    """A network of x alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, t: Tensor, condition: None) -> Tensor:
        return self.inner(x)


def test_no_dropout_in_pairs(tmp_path):
    """The teacher is evaluated in evaluation mode, and left as it was, part by part."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2))
    network[2].eval()
    field = Field(OfState(network), paths.linear())
    generate_pairs(field, EXACT, tmp_path / "a", torch.empty(2), 25, 0)
    assert [m.training for m in network] == [True, True, False]
    field.network.eval()
    generate_pairs(field, EXACT, tmp_path / "b", torch.empty(2), 25, 0)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_transform_meets_both_ends(tmp_path):
    """A flip of the batch turns x0 and x1 together, so a pair stays a pair."""

    def flipped(batch: Batch, draws: torch.Generator) -> Batch:
        return replace(batch, x0=batch.x0.flip(1), x1=batch.x1.flip(1))

    plain = everything(PairStore(make(tmp_path)))
    turned = everything(PairStore(tmp_path, flipped))
    assert torch.equal(turned.x0, plain.x0.flip(1))
    assert torch.equal(turned.x1, plain.x1.flip(1))


# ---- the store


def test_interrupted_is_straight_through(tmp_path):
    """Stopped between two shards and again within one, then resumed: the bytes of an uninterrupted run."""
    straight = contents(make(tmp_path / "straight"))
    assert sorted(straight) == ["meta.json", *(f"pairs-0000{n}.safetensors" for n in range(3))]

    def stop_after_first(done: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        make(folder, progress=stop_after_first)
    assert sorted(contents(folder)) == ["meta.json", "pairs-00000.safetensors"]
    with pytest.raises(IntegrityError, match=r"incomplete: 2 of 3 shards .* pairs-00001"):
        PairStore(folder)

    field = teacher()
    whole, evaluations = field.network, []

    def breaks(x, t, condition):
        evaluations.append(len(x))
        if len(evaluations) == 200:  # in the third chunk of the second shard
            raise KeyboardInterrupt
        return whole(x, t, condition)

    field.network = breaks
    with pytest.raises(KeyboardInterrupt):
        generate_pairs(field, EXACT, folder, torch.empty(2), 25, 7)
    (folder / ".pairs-00001.safetensors.tmp").write_bytes(b"half of a shard")  # as a kill while writing leaves it

    field, told = teacher(), []
    generate_pairs(field, EXACT, folder, torch.empty(2), 25, 7, progress=told.append)
    assert contents(folder) == straight
    assert field.calls == 5 * 80  # two shards of 3 and 2 chunks, 20 steps of rk4 each
    assert told == [10, 20, 25]


def test_finished_store_is_left_alone(tmp_path):
    before = contents(make(tmp_path))
    field = teacher()
    generate_pairs(field, EXACT, tmp_path, torch.empty(2), 25, 7)
    assert contents(tmp_path) == before
    assert field.calls == 0


@pytest.mark.parametrize("number", [0, 2])
def test_flipped_bit_is_found_and_named(tmp_path, number):
    """By the reader and by a resumed run; deleted, the shard is made again as it was."""
    before = contents(make(tmp_path))
    shard = tmp_path / f"pairs-0000{number}.safetensors"
    flip(shard)
    with pytest.raises(IntegrityError, match=f"{shard.name} is damaged.*delete it"):
        PairStore(tmp_path)
    with pytest.raises(IntegrityError, match=shard.name):
        make(tmp_path)
    shard.unlink()
    with pytest.raises(IntegrityError, match=shard.name):
        PairStore(tmp_path)
    assert contents(make(tmp_path)) == before


def test_exchanged_shards_are_found(tmp_path):
    """Two whole shards in each other's place are two wrong pairings."""
    make(tmp_path)
    one, other = tmp_path / "pairs-00000.safetensors", tmp_path / "pairs-00001.safetensors"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(IntegrityError, match=one.name):
        PairStore(tmp_path)


def seal(folder: Path, **changes) -> None:
    """Change meta.json as somebody would who can also compute its hash."""
    meta = json.loads((folder / "meta.json").read_text()) | changes
    meta.pop("sha256")
    digest = hashlib.sha256(json.dumps(meta).encode()).hexdigest()
    (folder / "meta.json").write_text(json.dumps({**meta, "sha256": digest}))


def test_wrong_meta_is_refused(tmp_path):
    meta = make(tmp_path) / "meta.json"
    content = meta.read_text()
    seal(tmp_path)
    assert len(PairStore(tmp_path)) == 25  # sealed again without a change

    meta.write_text(content.replace('"count": 25', '"count": 20'))
    with pytest.raises(IntegrityError, match=r"meta.json was changed since it was written"):
        PairStore(tmp_path)
    for broken in ("{", "[]", "{}", "3"):
        meta.write_text(broken)
        with pytest.raises(IntegrityError, match=r"meta.json cannot be read"):
            PairStore(tmp_path)

    meta.write_text(content)
    seal(tmp_path, format=2)
    with pytest.raises(IntegrityError, match="is of format 2, and this version reads 1"):
        PairStore(tmp_path)

    meta.write_text(content)
    seal(tmp_path, x0=json.loads(content)["x0"] | {"seed": 8})
    with pytest.raises(IntegrityError, match=r"pairs-00000.safetensors: its noise cannot be drawn again"):
        PairStore(tmp_path)

    meta.unlink()
    with pytest.raises(InputError, match=r"holds no pairs: there is no meta.json"):
        PairStore(tmp_path)
    with pytest.raises(UsageError, match=r"holds shards and no meta.json"):
        make(tmp_path)


@pytest.mark.parametrize(
    ("changed", "others", "key"),
    [
        ({"teacher": "another"}, {}, "teacher"),
        ({"grid": 21}, {}, "times"),
        ({"method": "heun"}, {}, "solver"),
        ({"dtype": "float16"}, {}, "dtype"),
        ({"batch_size": 5}, {}, "batch_size"),
        ({"record": {"note": "other"}}, {}, "record"),
        ({}, {"count": 26}, "count"),
        ({}, {"seed": 8}, "x0"),
        ({}, {"condition": torch.zeros(25)}, "condition"),
    ],
)
def test_old_and_new_pairs_never_mix(tmp_path, changed, others, key):
    before = contents(make(tmp_path))
    with pytest.raises(UsageError, match=f"was begun with another {key}"):
        make(tmp_path, replace(EXACT, **changed), **others)
    assert contents(tmp_path) == before


def test_conditions_and_leaves_never_mix(tmp_path):
    """Other labels of the same shape are other pairs; so is a state whose leaves are drawn in another order."""
    make(tmp_path / "labels", condition=torch.zeros(25))
    with pytest.raises(UsageError, match="another condition_sha256"):
        make(tmp_path / "labels", condition=torch.ones(25))
    field = Field(lambda x, t, condition: x, paths.linear())
    sample = {"a": torch.empty(1), "b": torch.empty(1)}
    generate_pairs(field, EXACT, tmp_path / "leaves", sample, 5, 0)
    with pytest.raises(UsageError, match="another state"):
        generate_pairs(field, EXACT, tmp_path / "leaves", dict(reversed(sample.items())), 5, 0)


def test_meta_says_how_pairs_were_made(tmp_path):
    recipe = replace(EXACT, method=rk4(), record={"solver": "rk4", "guidance": "classifier_free(2)"})
    meta = PairStore(make(tmp_path, recipe)).meta
    assert (meta["teacher"], meta["path"], meta["predicts"]) == ("teacher-hash", "linear", "velocity")
    assert (meta["solver"], meta["times"]) == ("rk4", torch.linspace(0, 1, 21, dtype=torch.float64).tolist())
    assert (meta["count"], meta["dtype"], meta["state"]) == (25, "float32", ["float32", [2]])
    assert [(shard["rows"], shard["nfe"]) for shard in meta["shards"].values()] == [(10, 80), (10, 80), (5, 80)]
    assert meta["record"]["guidance"] == "classifier_free(2)"
    for name, shard in meta["shards"].items():
        assert shard["sha256"] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_guided_pairs(tmp_path):
    """Classifier-free guidance at scale 2 of v = c against v = 0 moves x0 by 2 c."""
    field = Field(lambda x, t, c: c[:, None].expand_as(x), paths.linear(), null=torch.tensor(0.0))
    c, guidance = torch.linspace(-1, 1, 25), [classifier_free(2.0)]
    with pytest.raises(ValueError, match=r'describe the guidance in recipe.record\["guidance"\]'):
        generate_pairs(field, EXACT, tmp_path, torch.empty(3), 25, 0, c, guidance)
    generate_pairs(field, replace(EXACT, record={"guidance": 2.0}), tmp_path, torch.empty(3), 25, 0, c, guidance)
    pairs = everything(PairStore(tmp_path))
    torch.testing.assert_close(pairs.x1 - pairs.x0, 2 * c[:, None].expand(25, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "inverted"), [("float16", False), ("float32", True), ("uint8", True)])
def test_size_is_known_beforehand(tmp_path, dtype, inverted):
    """Within one percent of what is on the disk in the end."""
    sample, condition = torch.empty(3, 8, 8), torch.arange(400) % 10
    still = Field(lambda x, t, condition: -0.9 * x, paths.linear())
    recipe = replace(EXACT, dtype=dtype, shard_size=200, batch_size=200, grid=1, method="euler")
    if inverted:
        data = torch.randn(400, 3, 8, 8, generator=generator(0)) / 4
        invert_pairs(still, recipe, tmp_path, Rows(data, condition))
    else:
        generate_pairs(still, recipe, tmp_path, sample, 400, 0, condition)
    found = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert found == pytest.approx(store_size(400, sample, dtype, condition[0], noise=inverted), rel=0.02)


def test_disk_too_small(tmp_path):
    """Said before the first pair is made, with both figures, and nothing is left behind."""
    with pytest.raises(MachineError, match=r"the pairs need [\d,]+ bytes and the disk has [\d,]+ left"):
        make(tmp_path, count=10**15, progress=lambda done: pytest.fail("a shard was written"))
    assert contents(tmp_path) == {}
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot be made"):
        make(tmp_path / "file" / "pairs")


def test_arguments_that_make_no_store(tmp_path):
    with pytest.raises(ValueError, match="condition has 3 rows for 25 pairs"):
        make(tmp_path, condition=torch.zeros(3))
    with pytest.raises(ValueError, match="not 'bfloat16'"):
        make(tmp_path, replace(EXACT, dtype="bfloat16"))
    with pytest.raises(ValueError, match="at least 1"):
        make(tmp_path, count=0)
    with pytest.raises(ValueError, match=r'recipe.record\["solver"\]'):
        make(tmp_path, replace(EXACT, method=rk4()))
    with pytest.raises(ValueError, match="ascends"):
        make(tmp_path, replace(EXACT, grid=torch.linspace(1, 0, 5)))
    index = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="ragged"):
        generate_pairs(
            Field(lambda x, t, c, index: x, paths.linear(), index=index), EXACT, tmp_path, torch.empty(2), 5, 0
        )
    assert contents(tmp_path) == {}


class Two:
    """The second of two processes that take turns in one: what the other has made is already there."""

    def __init__(self, rank: int, table: list) -> None:
        self.rank, self.world, self.table = rank, 2, table

    def first(self, work):
        return work() if self.rank == 0 else {}

    def gather(self, mine):
        self.table.append(mine)
        return None if self.rank else [mine]


def test_shards_are_dealt_out_to_processes_and_no_two_make_the_same(tmp_path):
    """Ten pairs a shard, 25 pairs: the first process makes shards 0 and 2, the second shard 1, with the same bytes."""
    whole = contents(make(tmp_path / "whole"))
    made: list[list] = [[], []]
    for rank in (0, 1):
        make(tmp_path / str(rank), processes=Two(rank, made[rank]))
    assert [[entry and entry[0] for entry in mine] for mine in made] == [
        ["pairs-00000.safetensors", "pairs-00002.safetensors"],
        ["pairs-00001.safetensors", None],
    ]
    found = contents(tmp_path / "0") | contents(tmp_path / "1")
    assert all(found[name] == whole[name] for name in whole if name.endswith(".safetensors"))
