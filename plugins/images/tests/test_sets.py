"""Figures of sets: on points where the answer can be written down, and on the digits."""

import math

import pytest
import torch

from flowcore.data import Batch, everything
from flowcore.errors import UsageError
from flowcore.plugin.contracts import Measured
from flowcore.seeds import generator
from flowplat_images import sets
from flowplat_images.data import Digits, DigitsConfig, Fixed, ImagesConfig, Loaded
from flowplat_images.reference import gaussian_fit
from flowplat_images.sets import entropy, kernel, kernel_distance, precision_recall, supported, w2


def normal(count, size, seed, shift=0.0):
    return torch.randn(count, size, dtype=torch.float64, generator=generator(seed)) + shift


# ---------------------------------------------------------------- kernel distance


def test_the_kernel_distance_of_two_points_repeated_is_that_of_their_kernels():
    a, b = torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, -1.0]).double()
    k = lambda x, y: (x @ y / 2 + 1) ** 3  # noqa: E731
    expected = (k(a, a) + k(b, b) - 2 * k(a, b)).item()
    assert kernel_distance(a.expand(3, 2), b.expand(5, 2)) == pytest.approx(expected)


def test_the_kernel_distance_is_the_sum_over_all_pairs_but_those_of_one():
    x, y = normal(4, 3, 0), normal(6, 3, 1)
    k = ((torch.cat([x, y]) @ torch.cat([x, y]).T) / 3 + 1) ** 3
    within = [(block.sum() - block.trace()) / (n * (n - 1)) for block, n in ((k[:4, :4], 4), (k[4:, 4:], 6))]
    assert kernel_distance(x, y) == pytest.approx((sum(within) - 2 * k[:4, 4:].mean()).item())


@pytest.mark.parametrize("count", [5, 40])
def test_the_kernel_distance_is_zero_on_average_whatever_the_size(count):
    drawn = torch.tensor([kernel_distance(normal(count, 4, 2 * s), normal(20, 4, 2 * s + 1)) for s in range(400)])
    assert abs(drawn.mean()) < 3.5 * drawn.std() / 20
    assert bool((drawn < 0).any())


def test_the_kernel_distance_of_shifted_normals_has_a_closed_form():
    """E (x y + 1)^3 = E x^3 E y^3 + 3 E x^2 E y^2 + 3 E x E y + 1 in one dimension; the second set is shifted."""
    m = 0.7
    moments = {0: (0.0, 1.0, 0.0), 1: (m, 1 + m * m, 3 * m + m**3)}
    mixed = lambda p, q: sum(c * a * b for c, a, b in zip((3, 3, 1), moments[p], moments[q], strict=True))  # noqa: E731
    expected = mixed(0, 0) + mixed(1, 1) - 2 * mixed(0, 1)
    drawn = torch.tensor([kernel_distance(normal(400, 1, 2 * s), normal(400, 1, 2 * s + 1, m)) for s in range(100)])
    assert abs(drawn.mean() - expected) < 3.5 * drawn.std() / 10


# ---------------------------------------------------------------- precision and recall

MODES = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0], [100.0, 100.0]]).double()


def clouds(modes, seed, each=50):
    return torch.cat([mode + normal(each, 2, seed + i) for i, mode in enumerate(modes)])


def test_a_set_supports_itself_wholly():
    x = clouds(MODES, 0)
    assert supported(x, x) == (1.0, 1.0)
    assert supported(x[:4].expand(4, 2), x[:4].expand(4, 2)) == (1.0, 1.0)


def test_half_of_the_modes_are_half_of_the_recall():
    real = clouds(MODES, 0)
    kept = real[:100]
    assert supported(kept, real) == (1.0, 0.5)
    assert supported(real, kept) == (0.5, 1.0)
    precision, recall = supported(clouds(MODES[:2], 9), real)
    assert precision > 0.9
    assert 0.4 < recall <= 0.5


def test_what_lies_elsewhere_is_supported_by_nothing():
    assert supported(clouds(MODES, 0) + 1000, clouds(MODES, 0)) == (0.0, 0.0)


def test_reach_is_the_distance_of_the_third_nearest_other():
    line = torch.arange(5.0).double()[:, None]  # reach of 0, 1, 2, 3, 4: 3, 2, 2, 2, 3
    asked = torch.tensor([[-3.0], [-3.1], [7.0], [7.1], [2.5]]).double()
    assert supported(asked, line)[0] == pytest.approx(3 / 5)


def test_equal_images_are_within_no_distance_of_each_other():
    x = torch.full((6, 3), 0.1).double()
    assert supported(x, x) == (1.0, 1.0)
    assert supported(x + 1e-9, x)[0] == 0.0


# ---------------------------------------------------------------- entropy and W2


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    data = Digits(DigitsConfig(conditional=True))
    return Measured(data, tmp_path_factory.mktemp("eval"), 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def training(measured):
    return everything(measured.data.train())


def test_entropy_is_that_of_the_classes_that_are_there(measured, training):
    labels = training.extra["labels"]
    rows = torch.cat([(labels == k).nonzero().flatten()[:40] for k in range(10)])
    even = entropy(Batch(training.x1[rows]), measured)["entropy"]
    assert even.value == pytest.approx(math.log(10), abs=0.02)
    two = entropy(Batch(training.x1[rows[:80]]), measured)["entropy"]
    assert two.value == pytest.approx(math.log(2), abs=0.06)
    assert two.floor > 2.2
    assert entropy(Batch(training.x1[rows[:40]]), measured)["entropy"].value < 0.15
    assert even.baselines.keys() == {"gaussian", "noise"}
    assert (even.better, even.unit) == ("higher", "nats")


@pytest.fixture
def plain(tmp_path):
    """A data set of noise, of which the halves are known, in four pixels."""
    x = torch.randint(60, 190, (80, 1, 2, 2), dtype=torch.uint8, generator=generator(0))
    return Measured(Fixed(ImagesConfig(holdout=0), Loaded(x, None, [])), tmp_path, 0, torch.device("cpu"))


@pytest.mark.parametrize("components", [0, 4])
def test_w2_of_a_shifted_set_is_the_shift(plain, components):
    half = sets.reference(plain).halves[0]
    for shift in (0.0, 0.1, 0.25):
        found = w2(Batch(half + shift), plain, components=components)["w2"]
        assert found.value == pytest.approx(2 * shift, abs=1e-5)  # |(shift, shift, shift, shift)|
    assert "40 images against 40" in found.note
    assert 0 < found.floor < found.baselines["noise"]


def test_w2_in_one_component_is_that_of_the_sorted_projections(plain):
    one, other = (half.flatten(1).double() for half in sets.reference(plain).halves)
    axis = torch.linalg.svd(one - one.mean(0)).Vh[0]
    apart = (one @ axis).sort().values - (other @ axis).sort().values
    figure = w2(Batch(other.float().view(-1, 1, 2, 2)), plain, components=1)["w2"]
    assert figure.value == pytest.approx(apart.square().mean().sqrt().item(), abs=1e-6)
    assert figure.value == pytest.approx(figure.floor, abs=1e-9)


# ---------------------------------------------------------------- on the digits


def test_all_figures_tell_the_digits_from_a_gaussian_and_from_half_of_themselves(measured, training):
    gaussian = Batch(gaussian_fit(training.x1, 900, generator(9)))
    kept = Batch(training.x1[training.extra["labels"] < 5])
    distance, blurred, few = (kernel(samples, measured)["kernel"] for samples in (training, gaussian, kept))
    assert abs(distance.value) < 0.1 * distance.baselines["gaussian"]
    assert abs(distance.floor) < 0.1 * distance.baselines["gaussian"]
    assert blurred.value == pytest.approx(blurred.baselines["gaussian"], rel=0.15)
    assert few.value > 10 * abs(few.floor)
    assert distance.baselines["noise"] > 10 * distance.baselines["gaussian"]

    whole, half = precision_recall(training, measured), precision_recall(kept, measured)
    assert whole["precision"].value == whole["recall"].value == 1
    assert half["precision"].value == 1
    assert half["recall"].value == pytest.approx(0.5, abs=0.05)
    assert half["recall"].floor > 0.85
    assert whole["precision"].baselines["noise"] < whole["precision"].baselines["gaussian"] < 0.9
    assert {figure.better for figure in whole.values()} == {"higher"}

    near, far = (w2(samples, measured)["w2"] for samples in (Batch(training.x1[:900]), gaussian))
    assert near.value < 1.2 * near.floor
    assert far.value > 1.2 * near.floor
    assert far.baselines["noise"] > far.baselines["gaussian"] > near.floor


def test_figures_repeat(measured, training):
    samples = Batch(training.x1[:100])
    first = [metric(samples, measured) for metric in (kernel, precision_recall, entropy, w2)]
    for cache in (sets.reference, sets.simpler, sets._beside, sets._beside_w2, sets._axes):
        cache.cache_clear()
    assert [metric(samples, measured) for metric in (kernel, precision_recall, entropy, w2)] == first


@pytest.mark.parametrize("metric", [kernel, precision_recall, entropy, w2])
def test_too_little_is_told_in_one_line_and_little_is_enough(plain, metric, tmp_path):
    with pytest.raises(UsageError, match=f"{metric.__name__} needs two samples"):
        metric(Batch(torch.zeros(1, 1, 2, 2)), plain)
    for figure in metric(Batch(torch.zeros(2, 1, 2, 2)), plain).values():
        assert math.isfinite(figure.value)
