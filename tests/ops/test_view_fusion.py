"""Bringing views to one frame, and merging what they show."""

import pytest
import torch

from solo_d2.ops.view_fusion import ViewFusion, to_frame

FRAME = (6, 8)


def fusion_of(*views):
    fusion = ViewFusion(FRAME, mask_thresh=0.5, device=torch.device("cpu"))
    for view in views:
        scores, classes, masks = zip(*view, strict=True) if view else ((), (), ())
        masks = torch.stack(masks) if masks else torch.zeros(0, *FRAME)
        fusion.add(torch.tensor(scores), torch.tensor(classes, dtype=torch.int64), masks)
    return fusion


def box(top, left, bottom, right, prob=1.0):
    mask = torch.zeros(FRAME)
    mask[top:bottom, left:right] = prob
    return mask


def result(*views, keep_thresh=0.0, most=100):
    scores, classes, masks = fusion_of(*views).result(keep_thresh=keep_thresh, most=most)
    return [round(score, 4) for score in scores.tolist()], classes.tolist(), masks


def test_frame_of_the_same_size_is_the_map():
    maps = torch.rand(3, *FRAME)
    found = to_frame(maps, 1, image_size=FRAME, frame_size=FRAME, flipped=False)
    torch.testing.assert_close(found, maps)
    mirrored = to_frame(maps.flip(2), 1, image_size=FRAME, frame_size=FRAME, flipped=True)
    torch.testing.assert_close(mirrored, maps)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("image_size", [(24, 32), (17, 22)])
def test_points_of_the_image_stay_where_they_are(image_size, flipped):
    """Maps that hold their own coordinates, relative to the image, in a view with padding."""
    rows = 4 * (torch.arange(7) + 0.5) / image_size[0]
    columns = 4 * (torch.arange(10) + 0.5) / image_size[1]
    maps = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    found = to_frame(maps, 4, image_size=image_size, frame_size=(12, 20), flipped=flipped)
    expected_rows = (torch.arange(12) + 0.5) / 12
    expected_columns = (torch.arange(20) + 0.5) / 20
    if flipped:
        expected_columns = 1 - expected_columns
    inside = (slice(None), slice(1, -1), slice(2, -2))  # at the border the nearest value is taken
    expected = torch.stack(torch.meshgrid(expected_rows, expected_columns, indexing="ij"))
    torch.testing.assert_close(found[inside], expected[inside])


def test_scores_and_masks_are_averaged():
    scores, classes, masks = result(
        [(0.9, 1, box(0, 0, 4, 4))], [(0.3, 1, box(0, 0, 4, 4, 0.6) + box(4, 0, 5, 4, 0.8))]
    )
    assert scores == [0.6]
    assert classes == [1]
    expected = box(0, 0, 4, 4, 0.9 / 1.2 + 0.6 * 0.3 / 1.2) + box(4, 0, 5, 4, 0.8 * 0.3 / 1.2)
    torch.testing.assert_close(masks[0], expected)


def test_what_is_one_and_what_is_not():
    other_class = result([(0.8, 1, box(0, 0, 4, 4))], [(0.6, 2, box(0, 0, 4, 4))])
    elsewhere = result([(0.8, 1, box(0, 0, 4, 4))], [(0.6, 1, box(2, 0, 6, 4))])  # IoU 1/3
    once = result([(0.8, 1, box(0, 0, 4, 4))], [], [], [])
    assert other_class[:2] == ([0.4, 0.3], [1, 2])
    assert elsewhere[:2] == ([0.4, 0.3], [1, 1])
    assert once[0] == [0.2]


def test_the_best_of_each_view_are_one_though_duplicates_overlap_more():
    """Each view has an object and a duplicate that NMS has left with a low score."""
    first = [(0.8, 0, box(0, 0, 6, 4)), (0.2, 0, box(0, 0, 5, 4))]
    second = [(0.7, 0, box(0, 0, 5, 4)), (0.1, 0, box(0, 0, 6, 4))]
    assert result(first, second)[0] == [0.75, 0.15]


def test_weak_instances_are_cut():
    views = [(0.9, 0, box(0, 0, 2, 2)), (0.5, 0, box(2, 2, 4, 4)), (0.2, 0, box(4, 4, 6, 6))]
    assert result(views, keep_thresh=0.5)[0] == [0.9, 0.5]
    assert result(views, most=1)[0] == [0.9]


def test_views_without_instances():
    scores, classes, masks = result([], [])
    assert (scores, classes) == ([], [])
    assert masks.shape == (0, *FRAME)
