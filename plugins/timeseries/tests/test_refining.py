import pytest
import torch

from flowcore import paths
from flowcore.closed_form import correlated
from flowcore.data import Batch
from flowcore.plugin.contracts import Parts
from flowcore.seeds import generator
from flowplat_timeseries.priors import covariance
from flowplat_timeseries.refining import closest_to_mean, energy, filled, refine, representative_time
from flowplat_timeseries.spec import spec_of

LENGTH, CONTEXT, SEASON = 24, 16, 12
S = covariance("periodic", LENGTH, SEASON, jitter=0.05)
EXACT = correlated(paths.linear(), torch.tensor(0.5), S.float()).network


def parts_of():
    return Parts(
        spec_of(CONTEXT, LENGTH - CONTEXT), None, torch.device("cpu"), path=paths.linear(), predicts="velocity"
    )


def known_context(batch):
    mask = torch.zeros(batch, 1, LENGTH)
    mask[..., :CONTEXT] = 1
    return mask


def series(count, seed=3):
    z = torch.randn(LENGTH, count, generator=generator(seed), dtype=torch.float64)
    return (0.5 + torch.linalg.cholesky(S) @ z).T.float()[:, None]


OBSERVED = series(4, 7)
TRUTH = OBSERVED[:, 0]


def test_the_representative_time_is_the_one_whose_loss_is_nearest_the_mean():
    assert closest_to_mean(torch.tensor([1.0, 2.0, 4.5, 9.0])) == 2
    tau = representative_time(parts_of(), EXACT, Batch(OBSERVED.repeat(20, 1, 1)), generator(0))
    assert tau in [pytest.approx((i + 0.5) / 20) for i in range(20)]


def test_what_the_model_knows_has_less_energy_than_what_it_does_not():
    usual = series(20)
    rough = 0.5 + torch.randn(20, 1, LENGTH, generator=generator(4))
    known = torch.ones(20, 1, LENGTH)
    found = [energy(parts_of(), EXACT, x, known, generator(0), tau=0.5) for x in (usual, rough)]
    assert found[0].max() < found[1].min()


def test_energy_does_not_look_at_what_is_masked():
    x, known = series(3), torch.ones(3, 1, LENGTH)
    known[..., 20:] = 0
    wild = torch.where(known.bool(), x, 0.0)
    one = energy(parts_of(), EXACT, wild, known, generator(0), tau=0.5)
    assert one.shape == (3,)
    assert one.isfinite().all()


@pytest.mark.parametrize("likelihood", ["mse", "quantile"])
@pytest.mark.parametrize("method", ["ml", "langevin"])
def test_refinement_lowers_the_energy_of_a_rough_guess_and_brings_it_nearer(method, likelihood):
    rough = OBSERVED + 0.5 * torch.randn(4, 8, LENGTH, generator=generator(5))
    better = refine(
        parts_of(), EXACT, OBSERVED, known_context(4), rough, method=method, likelihood=likelihood, iterations=40,
        scale=0.2, tau=0.6, generator=generator(0),
    )  # fmt: skip
    assert better.shape == rough.shape
    ahead = torch.ones(32, 1, LENGTH)

    def cost(guess):
        x = torch.cat([OBSERVED[:, :, :CONTEXT].expand(4, 8, CONTEXT), guess[..., CONTEXT:]], 2)
        return energy(parts_of(), EXACT, x.reshape(32, 1, LENGTH), ahead, generator(1), tau=0.6).view(4, 8).mean(1)

    assert (cost(better) < cost(rough)).all()
    error = [(one - OBSERVED)[..., CONTEXT:].square().mean() for one in (better, rough)]
    assert error[0] < error[1]


def test_rows_become_quantiles_where_the_likelihood_is_of_quantiles():
    guess = torch.randn(4, 5, LENGTH, generator=generator(6))
    out = refine(parts_of(), EXACT, OBSERVED, known_context(4), guess, iterations=0, tau=0.5, generator=generator(0))
    torch.testing.assert_close(out[..., CONTEXT:], guess.sort(1).values[..., CONTEXT:])
    torch.testing.assert_close(out[..., :CONTEXT], OBSERVED[..., :CONTEXT].expand(4, 5, CONTEXT))
    with pytest.raises(ValueError, match="'langevin' or 'ml'"):
        refine(parts_of(), EXACT, OBSERVED, known_context(4), guess, method="hmc", tau=0.5, generator=generator(0))


def test_lags_are_filled_from_the_guess_as_far_as_they_reach_into_it():
    """Series 0..5 of which 0..3 are known, lags 2 and 9: exact integers."""
    observed = torch.tensor([[[1.0, 2, 3, 4, 0, 0], [-1, 0, 1, 2, 3, 4], [-8, -7, 0, 0, 0, 0]]])
    mask = torch.tensor([[[1.0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]])
    guess = torch.tensor([[10.0, 20, 30, 40, 50, 60]])
    wanted = observed.clone()
    wanted[0, 0, 4:] = torch.tensor([50.0, 60])
    assert torch.equal(filled(observed, mask, guess, (2, 9)), wanted)
    mask[0, 1, 3:] = 0
    wanted[0, 1, 3:] = torch.tensor([20.0, 30, 40])
    assert torch.equal(filled(observed, mask, guess, (2, 9)), wanted)
