"""Cropped masks behave as Detectron2's bitmasks, and training with them gives the same numbers."""

import copy
import pickle

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from torch.utils.data import DataLoader

from solo_d2.data.cropped_masks import CroppedMasks, crop_masks, crop_tensor
from tests.modeling.tiny import image, losses_of, tiny_model

pytestmark = pytest.mark.detectron2

SIZE = 17, 23


def whole(num=6):
    """Masks of all kinds; the third has no pixels."""
    masks = torch.zeros(6, *SIZE, dtype=torch.bool)
    masks[0, 3:9, 4:20] = True
    masks[1] = torch.rand(SIZE, generator=torch.Generator().manual_seed(0)) < 0.1
    masks[3] = True
    masks[4, -1, -1] = True
    masks[5, 0, :] = masks[5, :, 0] = True
    return masks[:num]


def assert_cropped(found, expected):
    assert isinstance(found, CroppedMasks)
    assert len(found) == len(expected)
    assert len(pickle.dumps(found)) < 2000 + int(found.pixels.numel())  # before `tensor` is read
    bitmasks = BitMasks(expected)
    assert found.nonempty().tolist() == bitmasks.nonempty().tolist()
    assert torch.equal(found.get_bounding_boxes().tensor, bitmasks.get_bounding_boxes().tensor)
    assert found.image_size == expected.shape[1:]
    assert torch.equal(found.tensor, expected)


@pytest.mark.parametrize("num", [6, 1, 0])
@pytest.mark.parametrize(
    "way",
    [
        crop_tensor,
        lambda masks: crop_masks(((0, 0, mask.numpy()) for mask in masks), SIZE),
        lambda masks: crop_tensor(masks).to("cpu", non_blocking=True),
        lambda masks: copy.deepcopy(crop_tensor(masks)),
        lambda masks: pickle.loads(pickle.dumps(crop_tensor(masks))),
    ],
)
def test_the_masks_come_back(way, num):
    assert_cropped(way(whole(num)), whole(num))


def test_parts_are_placed_and_trimmed():
    part = np.zeros((4, 5), bool)
    part[1:3, 2:4] = True
    found = crop_masks([(18, 13, part), (0, 0, np.zeros((0, 0), bool))], SIZE)
    expected = torch.zeros(2, *SIZE, dtype=torch.bool)
    expected[0, 14:16, 20:22] = True
    assert found.pixels.numel() == 4
    assert_cropped(found, expected)


@pytest.mark.parametrize(
    "item",
    [
        *(0, -1, slice(1, 4), slice(0, 0), [2, 0], torch.tensor([5, 5, 1])),
        torch.tensor([True, False, True, False, False, True]),
        torch.zeros(6, dtype=torch.bool),
    ],
)
def test_selection(item):
    expected = BitMasks(whole())[item].tensor
    assert_cropped(crop_tensor(whole())[item], expected)
    read = crop_tensor(whole())
    assert torch.equal(read.tensor, whole())
    assert torch.equal(read[item].tensor, expected)


@pytest.mark.parametrize("window", [(4, 3, 10, 9), (0, 0, 23, 17), (22, 16, 23, 17), (5, 5, 5, 9)])
def test_clipping(window):
    left, top, right, bottom = window
    expected = torch.zeros_like(whole())
    expected[:, top:bottom, left:right] = whole()[:, top:bottom, left:right]
    assert_cropped(crop_tensor(whole()).clip(window), expected)


def test_what_is_changed_in_place_counts():
    masks, expected = crop_tensor(whole()), whole()
    masks.tensor[2, 5, 6] = expected[2, 5, 6] = True
    for found in (masks, masks.to("cpu"), copy.deepcopy(masks), masks[:]):
        assert torch.equal(found.tensor, expected)
    assert masks.nonempty().all()
    assert masks.get_bounding_boxes().tensor[2].tolist() == [6, 5, 7, 6]
    masks.tensor = whole(2)
    assert len(masks) == 2


def test_concatenation_with_bitmasks():
    parts = crop_tensor(whole()), BitMasks(whole(2))
    for order in (parts, parts[::-1]):
        found = type(order[0]).cat(list(order))
        assert torch.equal(found.tensor, torch.cat([part.tensor for part in order]))


class Samples:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        masks = crop_tensor(whole())
        return Instances(SIZE, gt_masks=masks, gt_boxes=Boxes(torch.rand(6, 4)))


def test_they_stay_cropped_between_processes():
    for instances in DataLoader(Samples(), batch_size=None, num_workers=1):
        assert_cropped(instances[:].gt_masks, whole())
        assert_cropped(instances.to("cpu").gt_masks, whole())


def test_targets_and_losses_are_those_of_bitmasks():
    samples = [image(num=5, seed=1), image(num=0), image(80, 100, num=3, seed=2)]
    cropped = copy.deepcopy(samples)
    for sample in cropped:
        sample["instances"].gt_masks = crop_tensor(sample["instances"].gt_masks.tensor)
    model = tiny_model()
    padded = ImageList(torch.zeros(3, 3, 128, 128), [(128, 128)] * 3)
    expected, targets = (
        model.assign_targets([sample["instances"] for sample in batch], padded)
        for batch in (samples, cropped)
    )
    for name in ("classes", "cells", "instances"):
        assert torch.equal(getattr(targets, name), getattr(expected, name))
    assert targets.masks.keys() == expected.masks.keys()
    for stride, masks in targets.masks.items():
        assert torch.equal(masks, expected.masks[stride])
    assert losses_of(model, samples)[0] == losses_of(model, cropped)[0]
    # Training reads them on its device alone, so a batch stays small.
    assert all(sample["instances"].gt_masks._tensor is None for sample in cropped)
