import hashlib
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from flowcore.data import Batch, everything
from flowcore.errors import UsageError
from flowcore.plugin.contracts import Measured
from flowcore.seeds import generator
from flowplat_images import metrics, reference
from flowplat_images.data import Digits, DigitsConfig, Fixed, ImagesConfig, Loaded
from flowplat_images.metrics import class_accuracy, frechet, nearest
from flowplat_images.reference import gaussian_fit


class Identity(nn.Module):
    """Features that are the pixels themselves."""

    num_features = 2

    def forward(self, x):
        return x.flatten(1)


def exactly(count, mean, covariance, seed):
    """``count`` points (count, 2, 1, 1) whose sample mean and covariance are just these."""
    x = torch.randn(count, 2, dtype=torch.float64, generator=generator(seed))
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False)
    mean, covariance = (torch.tensor(v, dtype=torch.float64) for v in (mean, covariance))
    return (mean + (torch.linalg.cholesky(covariance) @ white).T).view(count, 2, 1, 1)


@pytest.mark.parametrize(
    ("mean", "covariance"),
    [
        ([0.0, 0.0], [[0.01, 0.0], [0.0, 0.02]]),
        ([0.1, -0.2], [[0.01, 0.0], [0.0, 0.02]]),
        ([0.0, 0.0], [[0.04, 0.0], [0.0, 0.0025]]),
        ([-0.1, 0.05], [[0.01, 0.006], [0.006, 0.02]]),
    ],
)
def test_the_distance_of_two_gaussians_has_a_closed_form(mean, covariance):
    """In two dimensions tr (A B)^(1/2) = (tr A B + 2 (det A B)^(1/2))^(1/2)."""
    other = [[0.01, 0.0], [0.0, 0.02]]
    real, drawn = exactly(900, [0.0, 0.0], other, 0), exactly(2500, mean, covariance, 1)
    A, B = torch.tensor(covariance).double(), torch.tensor(other).double()
    root = (torch.trace(A @ B) + 2 * torch.det(A @ B).sqrt()).sqrt()
    expected = torch.tensor(mean).square().sum() + torch.trace(A) + torch.trace(B) - 2 * root
    distance = reference.Frechet(Identity(), real)
    assert distance(drawn) == pytest.approx(expected.item(), abs=1e-8)
    assert distance(real) == pytest.approx(0, abs=1e-8)
    assert distance(drawn) == pytest.approx(expected.item(), abs=1e-8)  # the set before it is forgotten


def test_values_outside_the_range_of_pixels_are_clipped():
    real = exactly(900, [0.0, 0.0], [[0.01, 0.0], [0.0, 0.02]], 0)
    distance = reference.Frechet(Identity(), real)
    assert distance(100 * real) == pytest.approx(distance((100 * real).clamp(-1, 1)))


# ---------------------------------------------------------------- on the digits


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    data = Digits(DigitsConfig(conditional=True))
    return Measured(data, tmp_path_factory.mktemp("eval"), 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def training(measured):
    return everything(measured.data.train())


def gaussian(training, seed=9):
    return Batch(gaussian_fit(training.x1, len(training), generator(seed)))


def test_floor_and_baselines_have_the_known_size_on_digits(measured, training):
    """An MLP 64-128-64-10 gave another half 3.4, the Gaussian 25 and noise 700; ours is trained alike."""
    figure = frechet(gaussian(training), measured)["frechet"]
    assert 2 < figure.floor < 6
    assert 15 < figure.baselines["gaussian"] < 45
    assert 450 < figure.baselines["noise"] < 1300
    assert figure.value == pytest.approx(figure.baselines["gaussian"], rel=0.15)
    assert figure.better == "lower"


def test_the_training_images_themselves_are_at_distance_zero(measured, training):
    assert frechet(training, measured)["frechet"].value == pytest.approx(0, abs=1e-3)


def test_a_class_left_out_is_seen(measured, training):
    kept = training.x1[training.extra["labels"] != 4]
    figure = frechet(Batch(kept), measured)["frechet"]
    assert figure.value > 3 * figure.floor


def test_the_features_are_kept_with_the_run_and_named(measured, training):
    figure = frechet(training, measured)["frechet"]
    digest = hashlib.sha256((measured.folder / "features.safetensors").read_bytes()).hexdigest()
    assert digest[:16] in figure.note
    assert "one half of the training images against the other" in figure.note


def test_figures_repeat(measured, training):
    first = frechet(gaussian(training), measured)
    for cache in (reference.reference, reference.simpler, metrics._baselines, metrics._neighbours):
        cache.cache_clear()
    assert frechet(gaussian(training), measured) == first


def test_training_images_are_copies_and_gaussian_draws_are_not(measured, training):
    memorised = nearest(training, measured)
    assert memorised["nearest_distance"].value == 0
    assert memorised["copies"].value == 1
    blurred = nearest(gaussian(training), measured)
    assert blurred["copies"].value == 0
    assert blurred["nearest_distance"].value > blurred["nearest_distance"].floor
    for figure in memorised.values():
        assert figure.baselines.keys() == {"gaussian"}
    assert memorised["copies"].floor == pytest.approx(0.01, abs=0.002)


def test_a_copy_with_a_little_noise_is_still_a_copy(measured, training):
    noisy = training.x1 + 0.05 * torch.randn(training.x1.shape, generator=generator(0))
    assert nearest(Batch(noisy), measured)["copies"].value > 0.95


def test_class_accuracy_counts_samples_of_the_class_asked_for(measured, training):
    labels = training.extra["labels"]
    figure = class_accuracy(Batch(training.x1, labels), measured)["class_accuracy"]
    assert figure.value == figure.floor > 0.99
    assert figure.baselines == {"chance": 0.1}
    assert figure.better == "higher"
    assert class_accuracy(Batch(training.x1, (labels + 1) % 10), measured)["class_accuracy"].value < 0.01
    half = torch.where(torch.arange(len(labels)) % 2 == 0, labels, (labels + 1) % 10)
    assert class_accuracy(Batch(training.x1, half), measured)["class_accuracy"].value == pytest.approx(0.5, abs=0.01)
    with pytest.raises(UsageError, match="conditional samples"):
        class_accuracy(Batch(training.x1), measured)


# ---------------------------------------------------------------- other data


def fixed(folder, x, labels=None, **config):
    names = [] if labels is None else [str(i) for i in range(int(labels.max()) + 1)]
    return Measured(Fixed(ImagesConfig(**config), Loaded(x, labels, names)), Path(folder), 0, torch.device("cpu"))


def noise(count, shape=(1, 4, 4), seed=0):
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator(seed))


def test_distances_are_to_the_nearest_other(tmp_path):
    x = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 4, 4)  # greys -1, -0.6, 1
    found = nearest(Batch(torch.full((2, 1, 4, 4), -0.5)), fixed(tmp_path, x, holdout=0))
    assert found["nearest_distance"].value == pytest.approx(0.1 * 4)
    assert found["nearest_distance"].floor == pytest.approx((0.4 + 0.4 + 1.6) * 4 / 3)
    assert found["copies"].value == 1  # 0.4 from one, when the training images are 1.6 apart at least


def test_floors_are_of_held_out_images_where_there_are_any(tmp_path):
    run = fixed(tmp_path, noise(300), torch.arange(300) % 2, holdout=0.5, conditional=True)
    held, training = everything(run.data.val()), everything(run.data.train())
    found = nearest(held, run)
    for figure in found.values():
        assert figure.value == figure.floor
        assert "held-out images" in figure.note
    among = torch.cdist(training.x1.flatten(1), training.x1.flatten(1)).fill_diagonal_(math.inf).amin(1)
    assert nearest(training, run)["copies"].value == 1
    assert found["copies"].value == (
        torch.cdist(held.x1.flatten(1), training.x1.flatten(1)).amin(1) <= among.quantile(0.01)
    ).double().mean().item()  # fmt: skip
    labels = class_accuracy(held, run)["class_accuracy"]
    assert labels.value == labels.floor
    assert 0.3 < labels.value < 0.7  # nothing in noise to know a class by
    assert "on held-out images" in labels.note


def test_mirrored_training_images_are_copies_where_training_mirrors(tmp_path):
    x = noise(200)
    mirrored = Batch(everything(fixed(tmp_path, x, holdout=0).data.train()).x1.flip(-1))
    assert nearest(mirrored, fixed(tmp_path, x, holdout=0))["copies"].value < 0.05
    assert nearest(mirrored, fixed(tmp_path, x, holdout=0, flip=True))["copies"].value == 1


def test_duplicates_in_the_data_do_not_hide_copies(tmp_path):
    x = torch.cat([noise(100), noise(100)])
    run = fixed(tmp_path, x, holdout=0)
    assert nearest(everything(run.data.train()), run)["copies"].value == 1
    assert nearest(Batch(everything(run.data.train()).x1 + 0.1), run)["copies"].value == 0


def test_data_without_classes_still_tell_a_gaussian_from_themselves(tmp_path):
    digits = Digits(DigitsConfig()).loaded._replace(labels=None, names=[])
    digits = digits._replace(x=digits.x[:600])
    run = Measured(Fixed(ImagesConfig(holdout=0), digits), tmp_path, 0, torch.device("cpu"))
    figure = frechet(everything(run.data.train(), 300), run)["frechet"]
    assert figure.baselines["gaussian"] > 3 * figure.floor
    assert figure.baselines["noise"] > 10 * figure.baselines["gaussian"]
    with pytest.raises(UsageError, match="two classes"):
        class_accuracy(Batch(digits.x[:5] / 8 - 1, torch.zeros(5, dtype=torch.int64)), run)


def test_very_little_data_still_gives_figures(tmp_path):
    run = fixed(tmp_path / "three", noise(3), holdout=0)
    assert frechet(Batch(torch.zeros(4, 1, 4, 4)), run)["frechet"].floor is None
    found = nearest(everything(run.data.train()), run)
    assert (found["nearest_distance"].value, found["copies"].value) == (0, 1)
    with pytest.raises(UsageError, match="two training images"):
        frechet(Batch(torch.zeros(4, 1, 4, 4)), fixed(tmp_path / "one", noise(1), holdout=0))


@pytest.mark.parametrize("count", [10, 5000], ids=["fewer images than pixels", "more"])
def test_the_gaussian_baseline_has_the_mean_and_covariance_of_the_images(count):
    x = torch.rand(count, 1, 3, 5, generator=generator(0)).cumsum(-1)
    drawn = gaussian_fit(x, 40000, generator(1))
    assert drawn.shape == (40000, 1, 3, 5)
    assert torch.allclose(drawn.mean(0), x.mean(0), atol=0.03)
    assert torch.allclose(drawn.flatten(1).T.cov(), x.flatten(1).T.cov(), atol=0.03)
