import pytest
import torch

from flowcore.seeds import generator
from flowplat_timeseries.priors import covariance, gaussian_process

KERNELS = ["iso", "se", "ou", "periodic"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_draws_have_the_covariance_of_the_kernel(kernel):
    """Each entry of the covariance of n draws within 4 of its standard errors sqrt((K_ij^2 + K_ii K_jj) / n)."""
    n, length, season = 100_000, 12, 6
    path = gaussian_process(kernel, season)
    x0 = path.draw_source(torch.empty(n // 2, 2, length, dtype=torch.float64), generator(0)).flatten(0, 1)
    K = covariance(kernel, length, season)
    error = ((K.square() + 1) / n).sqrt()
    assert ((x0.T @ x0 / n - K).abs() < 4 * error).all()
    assert x0.mean(0).abs().max() < 4 / n**0.5


def test_kernels_are_their_formulas():
    K = {kernel: covariance(kernel, 49, 24, 2.0, 0.5) for kernel in KERNELS}
    d = torch.pi / 24 * torch.arange(49, dtype=torch.float64)
    torch.testing.assert_close(K["se"][0, 1:], (torch.exp(-2 * d**2) / 1.5)[1:])
    torch.testing.assert_close(K["ou"][0, 1:], (torch.exp(-2 * d) / 1.5)[1:])
    torch.testing.assert_close(K["periodic"][0, 24], torch.tensor(1 / 1.5, dtype=torch.float64))
    assert K["periodic"][0, 12] < 0.1
    for kernel in KERNELS:
        torch.testing.assert_close(K[kernel].diagonal(), torch.ones(49, dtype=torch.float64))


def test_channels_are_drawn_apart():
    x0 = gaussian_process("ou", 6).draw_source(torch.empty(20_000, 2, 5), generator(1))
    assert abs((x0[:, 0] * x0[:, 1]).mean().item()) < 4 / (20_000 * 5) ** 0.5 * 2


def test_the_source_says_its_covariance_and_a_score_knows_it():
    """x_t of no data is sigma x0 with covariance sigma^2 K: its score is -K^-1 x / sigma^2."""
    path, K = gaussian_process("se", 6), covariance("se", 10, 6)
    x = torch.randn(3, 2, 10, generator=generator(0), dtype=torch.float64)
    torch.testing.assert_close(path.source.covariance(x), x @ K)
    torch.testing.assert_close(path.source.precision(path.source.covariance(x)), x)
    score = path.convert(torch.zeros_like(x), x, 0.25, "x1", "score")
    torch.testing.assert_close(score, -x @ torch.linalg.inv(K) / 0.75**2, atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(path.convert(score, x, 0.25, "score", "velocity"), -x / 0.75, atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(path.target("score", x, 0 * x, 0.25), -x @ torch.linalg.inv(K) / 0.75)


def test_noise_like_the_data_has_less_way_to_go():
    """E|u|^2 of pairs by optimal transport is smaller from Ornstein-Uhlenbeck noise to AR(1) series than from white."""
    from flowcore.couplings import exact

    K, n = covariance("ou", 48, 12, jitter=0.01), 256
    x1 = torch.randn(n, 1, 48, generator=generator(2), dtype=torch.float64) @ torch.linalg.cholesky(K).T

    def way(kernel):
        x0 = gaussian_process(kernel, 12).draw_source(x1, generator(3))
        pairs = exact()(x0, x1, None, generator(4))
        return (pairs.x1 - pairs.x0).square().mean().item()

    assert way("ou") < 0.9 * way("iso")
