"""Fused final masks against the two resizes; without a GPU in Triton's interpreter."""

import pytest
import torch

from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.ops.paste_masks import paste_masks
from tests.ops.test_paste_masks import CASES, ROUNDING, blobs, resized

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check(probs, stride, image_size, output_size, thresh=0.5):
    # All of it is written, whatever was there.
    out = torch.ones(len(probs), *output_size, dtype=torch.bool, device=DEVICE)
    boxes = paste_masks(
        probs.to(DEVICE),
        stride=stride,
        image_size=image_size,
        thresh=thresh,
        out=out,
        backend="triton",
    )
    soft = resized(probs.cpu(), stride, image_size, output_size)
    wrong = out.cpu() != (soft > thresh)
    assert not wrong[(soft - thresh).abs() > ROUNDING].any()
    assert torch.equal(boxes, mask_boxes(out))


@pytest.mark.parametrize(("stride", "image_size", "output_size"), CASES)
def test_pasting_equals_the_two_resizes(stride, image_size, output_size):
    if DEVICE == "cpu":  # the interpreter takes its time
        output_size = min(output_size[0], 40), min(output_size[1], 140)
    check(blobs(5, 12, 16), stride, image_size, output_size)


@pytest.mark.parametrize("thresh", [0, 0.3, 1])
def test_thresholds(thresh):
    check(blobs(4, 7, 13), 4, (26, 49), (31, 60), thresh)


def test_strided_masks():
    check(blobs(6, 12, 20)[::2].transpose(1, 2), 4, (75, 47), (40, 30))
