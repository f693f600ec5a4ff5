"""Cutting volumes: frames there and back, and a batch that says of each slice what inference says of it."""

import numpy as np
import pytest
import torch

from flowplat_mri import slices
from flowplat_mri.blocks import Blocks
from flowplat_mri.slices import Slices

RNG = np.random.default_rng(0)
MASK = np.zeros((9, 11, 10), bool)
MASK[1:8, 2:10, 3:9] = True
X = np.where(MASK, RNG.random(MASK.shape), 0).astype(np.float32)


@pytest.mark.parametrize("shape", [(0, 0, 0), (24, 8, 16)])
def test_a_frame_holds_the_brain_and_gives_it_back(shape):
    begin, size = slices.frame(MASK, shape)
    assert all(n % 8 == 0 and n >= s for n, s in zip(size, shape, strict=True))
    part = slices.framed(X, begin, size)
    assert part.shape == size
    assert part.sum() == pytest.approx(X.sum(), rel=1e-6)
    assert np.array_equal(slices.unframed(part, begin, X.shape), X)


def test_coordinates_run_from_one_end_of_the_brain_to_the_other():
    x, y, z = slices.coordinates(MASK)
    assert (x[1], x[7]) == (-1, 1)
    assert (y[2], y[9]) == (-1, 1)
    assert z[6] == pytest.approx(0.2)


def test_slices_with_hardly_any_brain_are_not_shown():
    mask = MASK.copy()
    mask[4, 4, 1] = True
    assert list(slices.shown(mask, 2)) == [3, 4, 5, 6, 7, 8]


def source(axes=(0, 1, 2), mirror=False, guises=2):
    size = (8, 8, 8)
    mask = torch.from_numpy(MASK[:8, 2:10, 2:10])[None].expand(2, -1, -1, -1).clone()
    targets, views = torch.randn(2, *size), torch.randn(2, guises, *size)
    lines = [torch.from_numpy(one)[None].expand(2, -1) for one in slices.coordinates(mask[0].numpy())]
    return Slices(targets * mask, views * mask[:, None], mask, lines, axes, 1, mirror)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_batch_tells_of_a_slice_what_inference_tells(axis):
    made = source((axis,))
    rows = torch.arange(len(made))
    batch = made.batch(rows, torch.Generator().manual_seed(0))
    places = [one[0] for one in made.places]
    for row, (subject, guise, _, number) in enumerate(made.rows.tolist()):
        told = slices.conditions(made.views[subject, guise], made.masks[subject], places, axis, 1)[number]
        assert torch.equal(batch.condition[row], told)
        assert torch.equal(batch.x1[row, 0], slices.planes(made.targets[subject], axis)[number])


def test_every_slice_has_its_neighbours_and_nothing_beyond_the_last():
    made = source((2,))
    last = (made.rows[:, 3] == made.rows[:, 3].max()).nonzero()[0]
    told = made.batch(last, torch.Generator()).condition[0]
    subject, guise, _, number = made.rows[last].flatten().tolist()
    assert torch.equal(told[0], made.views[subject, guise, :, :, number - 1])
    assert torch.equal(told[1], made.views[subject, guise, :, :, number])
    assert number == 6
    assert torch.equal(told[2], made.views[subject, guise, :, :, 7])


def test_mirrored_slices_are_the_others_from_right_to_left_and_coordinates_stay():
    made = source((2,), mirror=True, guises=1)
    rows = torch.arange(len(made))
    batch = made.batch(rows, torch.Generator().manual_seed(1))
    made.mirror = False
    straight = made.batch(rows, torch.Generator().manual_seed(1))
    flipped = [not torch.equal(a, b) for a, b in zip(batch.x1, straight.x1, strict=True)]
    assert 0 < sum(flipped) < len(rows)
    for row, turned in enumerate(flipped):
        want = straight.x1[row].flip(-2) if turned else straight.x1[row]
        assert torch.equal(batch.x1[row], want)
    inside = batch.condition[:, 3:4] * straight.condition[:, 3:4]
    assert torch.equal(batch.condition[:, 4:] * inside, straight.condition[:, 4:] * inside)


def test_blocks_lie_within_the_volume_and_show_one_place_in_every_channel():
    made = source(guises=2)
    cubes = Blocks(made.targets, made.targets[:, None].repeat(1, 2, 1, 1, 1), made.masks, made.places, 4, True)
    batch = cubes.batch(torch.arange(len(cubes)), torch.Generator().manual_seed(0))
    assert batch.x1.shape == (len(cubes), 1, 4, 4, 4)
    assert batch.condition.shape == (len(cubes), 5, 4, 4, 4)
    assert torch.equal(batch.condition[:, :1], batch.x1)
    small = Blocks(made.targets, None, made.masks, made.places, 12, False)
    assert small.batch(torch.arange(2), torch.Generator()).x1.shape == (2, 1, 12, 12, 12)


def test_what_is_held_on_a_device_gives_the_same_batches():
    made = source()
    cubes = Blocks(made.targets, made.views, made.masks, made.places, 4, True)
    for one in (made, cubes):
        rows = torch.arange(0, len(one), 3)
        there = one.to(torch.device("cpu"))
        a, b = (held.batch(rows, torch.Generator().manual_seed(0)) for held in (one, there))
        assert torch.equal(a.x1, b.x1)
        assert torch.equal(a.condition, b.condition)
        assert there.nbytes == one.nbytes > 0
