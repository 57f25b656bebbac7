"""The training loader: pinned memory (order and resume are tested with the trainer)."""

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from solo_d2.data.loader import PinnableBatch, make_train_loader
from solo_d2.utils.errors import DatasetError


def test_all_tensors_of_a_batch_are_pinned(monkeypatch):
    pinned = []

    def pin(tensor):
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    instances = Instances((4, 6))
    instances.gt_masks = BitMasks(torch.rand(2, 4, 6) > 0.5)
    instances.gt_boxes = Boxes(torch.rand(2, 4))
    instances.gt_classes = torch.tensor([3, 1])
    polygons = Instances((4, 6), gt_masks=PolygonMasks([[[0.0, 0, 5, 0, 5, 3]]]))
    error = DatasetError("no image")
    samples = [
        {"image": torch.rand(3, 4, 6), "file_name": "a.jpg", "instances": instances},
        {"sem_seg": torch.zeros(4, 6), "instances": polygons},
        error,
    ]
    found = pin_memory(PinnableBatch(samples))  # as the loader does
    assert type(found) is list
    assert found[2] is error
    own = found[0]["instances"]
    tensors = [found[0]["image"], found[1]["sem_seg"], own.gt_classes]
    tensors += [own.gt_boxes.tensor, own.gt_masks.tensor]
    assert {id(x) for x in tensors} == {id(x) for x in pinned}
    assert own.image_size == (4, 6)
    assert torch.equal(own.gt_masks.tensor, instances.gt_masks.tensor)
    assert found[0]["file_name"] == "a.jpg"
    assert found[1]["instances"].gt_masks.polygons[0][0].tolist() == [0, 0, 5, 0, 5, 3]


def test_images_without_a_size_are_named():
    with pytest.raises(DatasetError, match="no 'width'.*ASPECT_RATIO_GROUPING"):
        make_train_loader(
            [{"file_name": "a.jpg"}], None, total_batch_size=1, seed=0, max_unreadable=0
        )
