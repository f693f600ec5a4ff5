import hashlib

import pytest
import torch
from sklearn.datasets import load_digits

from flowcore.data import Batch
from flowcore.errors import IntegrityError
from flowcore.seeds import generator
from flowplat_images import features


def digits(count):
    found = load_digits()
    x = torch.from_numpy(found.images[:count]).float().div(8).sub(1).unsqueeze(1)
    return Batch(x, extra={"labels": torch.from_numpy(found.target[:count]).long()})


TRAINING = digits(400)
HELD = Batch(digits(600).x1[400:], extra={"labels": digits(600).extra["labels"][400:]})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    keep = tmp_path_factory.mktemp("run") / "eval" / "features.safetensors"
    return features.fit(TRAINING, HELD, 0, keep), keep


def test_the_classifier_knows_images_it_has_not_seen(fitted):
    network = fitted[0].network
    assert (network.classify(TRAINING.x1) == TRAINING.extra["labels"]).float().mean() > 0.99
    right = (network.classify(HELD.x1) == HELD.extra["labels"]).double().mean().item()
    assert right > 0.75
    assert fitted[0].labelled
    assert f"held-out accuracy {right:.4f}" in fitted[0].note
    assert "the data's own classes" in fitted[0].note


def test_the_weights_are_kept_and_named_by_their_hash(fitted):
    found, keep = fitted
    digest = hashlib.sha256(keep.read_bytes()).hexdigest()
    assert f"features.safetensors sha256 {digest[:16]}" in found.note
    again = features.fit(TRAINING, HELD, 123, keep)  # another seed: were it trained again, it would differ
    assert torch.equal(again.network(HELD.x1), found.network(HELD.x1))
    assert again.note == found.note
    assert hashlib.sha256(keep.read_bytes()).hexdigest() == digest


def test_one_seed_gives_one_network_and_leaves_the_global_generator_alone(tmp_path, fitted):
    few = Batch(TRAINING.x1[:64], extra={"labels": TRAINING.extra["labels"][:64]})
    before = torch.get_rng_state()
    one, same, other = (
        features.fit(few, None, seed, tmp_path / f"{i}.safetensors") for i, seed in enumerate([5, 5, 6])
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.network(HELD.x1), same.network(HELD.x1))
    assert not torch.allclose(one.network(HELD.x1), other.network(HELD.x1))
    assert "training accuracy" in one.note


@pytest.mark.parametrize("how", ["cut", "empty", "other shape"])
def test_damaged_weights_and_those_of_other_data_are_refused(tmp_path, fitted, how):
    keep = tmp_path / "features.safetensors"
    whole = fitted[1].read_bytes()
    keep.write_bytes({"cut": whole[:-100], "empty": b"", "other shape": whole}[how])
    x = TRAINING.x1[:, :, :4] if how == "other shape" else TRAINING.x1
    with pytest.raises(IntegrityError, match=r"features\.safetensors is damaged or belongs to other data; delete it"):
        features.fit(Batch(x, extra=TRAINING.extra), None, 0, keep)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 5), (1, 13, 13), (3, 28, 28), (1, 100, 70)])
def test_any_image_has_64_features_and_a_score_for_each_class(shape):
    network = features.Classifier(shape, 7)
    x = torch.rand(3, *shape, generator=generator(0))
    assert network(x).shape == (3, 64)
    assert network.head(network(x)).shape == (3, 7)
    assert network.classify(x).tolist() == network.head(network(x)).argmax(1).tolist()


def test_clusters_are_found_where_they_lie_apart():
    centres = 4 * torch.randn(3, 1, 20, 20, generator=generator(0))
    truth = torch.arange(60) % 3
    x = centres[truth] + 0.1 * torch.randn(60, 1, 20, 20, generator=generator(1))
    found = [features.clusters(x, 3, seed) for seed in range(6)]
    exact = [all(len(one[truth == k].unique()) == 1 for k in range(3)) and len(one.unique()) == 3 for one in found]
    assert any(exact)  # k-means from random centres may merge two; never does it split what lies together at random
    assert all(int(one.min()) >= 0 and int(one.max()) < 3 for one in found)


def test_clusters_settle_where_no_image_is_nearer_to_another_mean():
    x = TRAINING.x1
    found = features.clusters(x, 10, 0)
    means = torch.stack([x[found == k].mean(0) for k in range(10)]).flatten(1)
    moved = (torch.cdist(x.flatten(1), means).argmin(1) != found).float().mean()
    assert moved < 0.03


@pytest.mark.parametrize("extra", [{}, {"labels": torch.zeros(100, dtype=torch.int64)}], ids=["none", "one class"])
def test_clusters_stand_in_where_there_are_no_two_classes(tmp_path, extra):
    found = features.fit(Batch(TRAINING.x1[:100], extra=extra), None, 0, tmp_path / "features.safetensors")
    assert not found.labelled
    assert "10 clusters" in found.note
    assert len(found.network.classify(TRAINING.x1).unique()) > 5


def test_very_few_images_are_enough(tmp_path):
    found = features.fit(Batch(TRAINING.x1[:3]), None, 0, tmp_path / "features.safetensors")
    assert torch.isfinite(found.network(TRAINING.x1)).all()
