"""Overlays of contours: lines in the colour of each instance, and nothing filled."""

import numpy as np
import pytest

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

import torch  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402

from demo import drawing  # noqa: E402
from solo_d2.ops.contours import contour_masks  # noqa: E402

RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def test_contours_are_lines_not_areas():
    masks = torch.zeros(3, 200, 240, dtype=torch.bool)
    masks[0, 40:160, 30:150] = True
    masks[0, 70:130, 60:120] = False  # a hole has a line too
    masks[1, 100:180, 170:220] = True  # the third one has no pixel
    found = Instances(
        (200, 240),
        pred_masks=contour_masks(masks),
        pred_boxes=Boxes(torch.tensor([[30.0, 40, 150, 160], [170, 100, 220, 180], [0, 0, 0, 0]])),
        scores=torch.tensor([0.9, 0.8, 0.7]),
        pred_classes=torch.tensor([1, 0, 0]),
    )
    image = np.full((200, 240, 3), 128, dtype=np.uint8)
    drawn = drawing.draw_instances(
        image, found, ["a", "b"], scale=2, colors=[RED, BLUE, BLUE], contours=True
    )
    assert drawn.shape == (400, 480, 3)
    for row, column, channel in ((200, 61, 0), (200, 119, 0), (280, 341, 2)):  # left sides
        assert drawn[row, column, channel] > 200
        assert drawn[row, column, 2 - channel] < 60
    for row, column in ((200, 90), (200, 180), (280, 390)):  # object, hole, object
        assert (drawn[row, column] == 128).all()
