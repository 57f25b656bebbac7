"""Results for COCO's evaluation are those of Detectron2."""

import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json as by_detectron2
from detectron2.structures import Boxes, Instances

from solo_d2.evaluation.coco_results import instances_to_coco_json

pytestmark = pytest.mark.detectron2


def instances(num, masks=True):
    generator = torch.Generator().manual_seed(num)
    found = Instances((30, 41))
    if masks:
        found.pred_masks = torch.rand(num, 30, 41, generator=generator) > 0.6
    found.pred_boxes = Boxes(40 * torch.rand(num, 4, generator=generator))
    found.scores = torch.rand(num, generator=generator)
    found.pred_classes = torch.randint(0, 80, (num,), generator=generator)
    return found


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("num", [0, 1, 5])
def test_equal_those_of_detectron2(num, masks):
    found = instances(num, masks)
    assert instances_to_coco_json(found, 7) == by_detectron2(found, 7)
