"""Metrics on molecules with known answers, and against the closed form of a model that listens to nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch

from flowcore.plugin.contracts import Measured
from flowplat_molecules import evaluators, metrics
from flowplat_molecules.builtin import Builtin, BuiltinConfig
from flowplat_molecules.chemistry import tensors
from flowplat_molecules.graphs import joined, split
from flowplat_molecules.metrics import marginals, shuffled, sound, spearman, structure


def measured(data, folder, trained=None):
    return Measured(data, folder, 0, torch.device("cpu"), trained)


def some(data, count=40):
    return data.train().batch(torch.arange(0, 20 * count, 20), torch.Generator())


def test_real_molecules_are_sound_and_marginal_draws_are_not(small, tmp_path) -> None:
    figures = structure(small.val().batch(torch.arange(60), torch.Generator()), measured(small, tmp_path))
    for name in (
        "valid",
        "valid_largest",
        "atom_stable",
        "molecule_stable",
        "closed_shell",
        "geometry",
        "unique",
        "novel",
    ):
        assert figures[name].value == figures[name].floor == 1.0
    assert figures["fragments"].value == 1
    assert figures["net_charge"].value == figures["left_masked"].value == 0
    base = {name: one.baselines["marginals"] for name, one in figures.items()}
    assert base["valid"] < 0.2
    assert base["molecule_stable"] < 0.05
    assert base["geometry"] < 0.05
    assert base["fragments"] > 1.5
    trained_on = structure(some(small), measured(small, tmp_path))
    assert trained_on["novel"].value == 0


def test_shares_of_a_batch_with_known_faults(small, embedded, tmp_path) -> None:
    """Ten molecules: one ion, one radical, one in pieces, one of five bonds, two the same, one with a masked bond."""
    states = [tensors(embedded(smiles), small.vocabulary) for smiles in ("CO", "CO", "CF", "CC", "C#C", "[NH4+]")]
    ethane = tensors(embedded("CC"), small.vocabulary)
    radical = dict(tensors(embedded("C"), small.vocabulary).items())
    radical = {"positions": radical["positions"][:4], "atoms": radical["atoms"][:4], "charges": radical["charges"][:4],
               "bonds": torch.tensor([1, 1, 1, 0, 0, 0])}  # fmt: skip
    pieces = {**ethane, "bonds": ethane["bonds"].clone()}
    pieces["bonds"][0] = 0
    five = {**ethane, "bonds": ethane["bonds"].clone()}
    five["bonds"][0] = 3
    masked = {**ethane, "bonds": ethane["bonds"].clone()}
    masked["bonds"][3] = 5
    batch = joined([*states, radical, pieces, five, masked])
    found = {name: one.value for name, one in structure(batch, measured(small, tmp_path)).items()}
    assert found["valid"] == 0.8  # not the one of five bonds, nor the masked one
    assert found["valid_largest"] == 0.8
    assert found["molecule_stable"] == 0.5
    assert found["net_charge"] == 0.1
    assert found["closed_shell"] == 0.9
    assert found["left_masked"] == 0.1
    assert found["fragments"] == 1.2  # two halves of an ethane; and the masked bond holds nothing
    assert found["unique"] == pytest.approx(0.7)
    # not stable: one carbon of the radical, two of the pieces, two of the five bonds, carbon and hydrogen of the mask
    atoms = sum(len(one["atoms"]) for one in [*states, radical, pieces, five, masked])
    assert found["atom_stable"] == pytest.approx((atoms - 7) / atoms)


def test_positions_that_do_not_fit_the_graph_are_told(embedded) -> None:
    molecule = embedded("CCO")
    assert sound(molecule)
    places = molecule.GetConformer().GetPositions()
    for factor in (0.5, 1.6):
        molecule.GetConformer().SetPositions(np.ascontiguousarray(places * factor))
        assert not sound(molecule)
    molecule.GetConformer().SetPositions(np.full_like(places, math.nan))
    assert not sound(molecule)


def test_marginal_draws_have_the_shares_of_the_training_data(small) -> None:
    batch = marginals(small, torch.full((300,), 12), 0)
    for name in ("atoms", "charges", "bonds"):
        real = torch.bincount(small.train().x1[name]).double()
        drawn = torch.bincount(batch.x1[name], minlength=len(real)).double()
        n = len(batch.x1[name])
        share = real / real.sum()
        assert ((drawn / n - share).abs() <= 4 * (share * (1 - share) / n).sqrt() + 1e-12).all()
    assert split(batch)[0]["positions"].mean(0).abs().max() < 1e-5


def test_rank_correlation_and_the_error_of_shuffled_targets_are_their_closed_forms() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randint(9, (700,), generator=draw).double(), torch.randn(700, generator=draw, dtype=torch.float64)
    b += a
    assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a.numpy(), b.numpy()).statistic, abs=1e-12)
    assert shuffled(a, b) == pytest.approx((a[:, None] - b[None]).abs().mean().item(), abs=1e-12)
    assert math.isnan(spearman(a, torch.ones(700, dtype=torch.float64)))


def test_size_only_is_what_training_molecules_of_that_size_would_score(small) -> None:
    known = small.outline
    asked, sizes = torch.tensor([3.0, 0.0]).double(), torch.tensor([12, 99])
    like = torch.from_numpy(known.values[known.counts == 12, 0])
    wanted = ((like - 3).abs().mean() + torch.from_numpy(known.values[:, 0]).abs().mean()) / 2
    assert metrics.size_only(asked, sizes, small, 0) == pytest.approx(float(wanted))


def test_xtb_finds_what_the_data_have_and_what_was_not_listened_to(small, tmp_path) -> None:
    pytest.importorskip("tblite")
    pytest.importorskip("dftd4")
    batch = some(small)
    figures = metrics.xtb_error(batch, measured(small, tmp_path))
    assert figures["mu_xtb"].value < 1e-3
    assert figures["mu_xtb"].floor < 1e-3
    assert figures["mu_xtb_rank"].value > 0.999
    assert figures["xtb_counted"].value == 1
    assert figures["mu_xtb"].baselines["shuffled"] > 0.9
    other = metrics.xtb_error(replace(batch, condition=batch.condition.roll(7, 0)), measured(small, tmp_path))
    assert other["mu_xtb"].value == pytest.approx(other["mu_xtb"].baselines["shuffled"], rel=0.3)
    assert abs(other["mu_xtb_rank"].value) < 0.5
    half = joined([{**one, "bonds": one["bonds"] * (n % 2)} for n, one in enumerate(split(batch))], batch.condition)
    assert metrics.xtb_error(half, measured(small, tmp_path))["xtb_counted"].value == 0.5


def test_the_judge_is_trained_once_and_kept_and_told_beside_its_own_error(small, tmp_path) -> None:
    told = measured(small, tmp_path)
    first = metrics.judge_error(some(small), told, steps=3)
    before = (tmp_path / "judge" / "judge.safetensors").stat().st_mtime_ns
    again = metrics.judge_error(some(small), told, steps=3)
    assert (tmp_path / "judge" / "judge.safetensors").stat().st_mtime_ns == before
    assert first["mu_judge"].value == again["mu_judge"].value
    assert first["mu_judge"].floor is not None
    assert set(first["mu_judge"].baselines) == {"shuffled", "size_only"}
    masked = split(some(small, 3))
    masked[1]["atoms"][0] = 5
    values = evaluators.by_judge(
        evaluators.trained(small, tmp_path / "judge", 0, "cpu"), joined(masked), [True, False, True]
    )
    assert values.isnan().flatten().tolist() == [False, True, False]


def test_far_targets_are_asked_of_the_model_itself(small, tmp_path) -> None:
    pytest.importorskip("tblite")
    pytest.importorskip("dftd4")
    target = float(np.percentile(small.outline.values[:, 0], 99))
    wishes = []

    class Drawing:
        def sample(self, count, steps=None, seed=None, condition=None):
            wishes.append(condition)
            best = small.train().condition[:, 0].argsort(descending=True)[:count]
            batch = small.train().batch(best, torch.Generator())
            return replace(batch, condition=small.condition(count, condition))

    figures = metrics.out_of_distribution(some(small, 2), measured(small, tmp_path, Drawing()), count=9, by="xtb")
    best = small.train().condition[:, 0].sort(descending=True).values[:9]
    assert wishes == [f"mu={target!r}"]
    assert figures["mu_far"].value == pytest.approx((best - target).abs().mean().item(), abs=1e-3)
    assert figures["mu_far"].baselines["training_data"] > 3


def test_where_nothing_was_asked_there_is_no_error_to_tell_but_a_word(small, tmp_path, caplog) -> None:
    plain = Builtin(BuiltinConfig(properties=[]))
    for data, condition in ((small, None), (small, torch.full((3, 1), math.nan)), (plain, None)):
        batch = replace(some(small, 3), condition=condition)
        for metric in (metrics.judge_error, metrics.xtb_error):
            assert metric(batch, measured(data, tmp_path)) == {}
    assert metrics.out_of_distribution(some(small, 2), measured(small, tmp_path)) == {}  # files draw nothing
    told = [one.message.partition(":")[0] for one in caplog.records]
    assert told == ["metric judge is left out", "metric xtb is left out"] * 3 + ["metric ood is left out"]


@pytest.mark.slow
def test_posebusters_passes_real_molecules_and_no_heap_of_atoms(small, tmp_path) -> None:
    pytest.importorskip("posebusters")
    batch = some(small, 12)
    figure = metrics.posebusters(batch, measured(small, tmp_path))["posebusters"]
    assert figure.value > 0.9
    assert figure.floor > 0.9
    assert figure.baselines["marginals"] < 0.1
    heap = joined([{**one, "positions": one["positions"] * 0.3} for one in split(batch)], batch.condition)
    assert metrics.posebusters(heap, measured(small, tmp_path))["posebusters"].value < 0.2
