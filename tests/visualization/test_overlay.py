"""Overlays for video and for print: same arguments, same meaning; what the fast one paints."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from solo_d2.ops.contours import contour_masks
from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.visualization import overlay, publication
from solo_d2.visualization.colors import instance_color
from solo_d2.visualization.labels import LabelRoom
from solo_d2.visualization.text import text_size, write, write_labels
from tests.evaluation.made_up import masks_of

RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def instances_of(masks, classes=None, scores=None):
    num = len(masks)
    return Instances(
        tuple(masks.shape[1:]),
        pred_masks=masks,
        pred_boxes=Boxes(mask_boxes(masks)),
        scores=torch.full((num,), 0.5) if scores is None else scores,
        pred_classes=torch.zeros(num).long() if classes is None else torch.as_tensor(classes),
    )


def gray(height, width):
    return np.full((height, width, 3), 128, np.uint8)


@pytest.mark.parametrize("drawing", [overlay, publication])
def test_contours_are_lines_not_areas(drawing):
    masks = masks_of((200, 240), (30, 40, 150, 160), (170, 100, 220, 180), (0, 0, 0, 0))
    masks[0, 70:130, 60:120] = False  # a hole has a line too
    found = instances_of(masks, [1, 0, 0])
    found.pred_masks = contour_masks(masks)
    colors = [RED, BLUE, BLUE]
    drawn = drawing.draw_instances(
        gray(200, 240), found, ["a", "b"], scale=2, colors=colors, contours=True
    )
    assert drawn.shape == (400, 480, 3)
    for row, column, channel in ((200, 61, 0), (200, 119, 0), (280, 341, 2)):  # left sides
        assert drawn[row, column, channel] > 200
        assert drawn[row, column, 2 - channel] < 60
    for row, column in ((200, 90), (200, 180), (280, 390)):  # object, hole, object
        assert (drawn[row, column] == 128).all()


@pytest.mark.parametrize("drawing", [overlay, publication])
def test_stuff_has_one_colour_in_every_image_and_things_lie_on_it(drawing):
    nothing, thing, everywhere, left = (
        instances_of(masks_of((40, 50), *boxes), [label] * len(boxes))
        for label, boxes in (
            *((0, []), (0, [(25, 20, 45, 38)])),
            *((2, [(0, 0, 50, 40)]), (2, [(0, 0, 20, 40)])),
        )
    )
    names = ["things", "", ""]  # without text over the pixels
    pictures = [
        drawing.draw_instances(gray(40, 50), found, ["a"], stuff=stuff, stuff_names=names)
        for found, stuff in ((nothing, everywhere), (nothing, left), (thing, left))
    ]
    assert (pictures[0][30, 5] == pictures[1][30, 5]).all()
    assert (pictures[1][30, 5] != 128).any()
    assert (pictures[1][30, 35] == 128).all()
    assert (pictures[2][30, 35] != 128).any()


@pytest.mark.parametrize("drawing", [overlay, publication])
def test_drawing_is_the_same_every_time_and_scales(drawing):
    masks = masks_of((40, 50), (5, 5, 30, 30), (0, 0, 0, 0))
    found, names = instances_of(masks, [1, 0], torch.tensor([0.9, 0.2])), ["a", "b"]
    first, second, boxes = (
        drawing.draw_instances(gray(40, 50), found, names, scale=3, draw_boxes=draw_boxes)
        for draw_boxes in (False, False, True)
    )
    assert first.shape == boxes.shape == (120, 150, 3)
    assert (first != boxes).any()
    np.testing.assert_array_equal(first, second)
    assert (first[100:, 120:] == 128).all()
    assert overlay.instance_labels(found, names) == ["b 90%", "a 20%"]


def test_a_label_of_stuff_stands_inside():
    mask = np.zeros((30, 40), dtype=bool)
    mask[:, :2] = mask[20:, :11] = True
    x, y = overlay.deepest_point(mask)
    assert 3 <= x <= 7
    assert 22 <= y <= 27


def test_pixels_are_mixed_edges_are_full_and_the_smaller_mask_is_on_top():
    masks = masks_of((80, 120), (60, 50, 70, 56), (5, 20, 115, 80))
    image = np.full((80, 120, 3), 100, np.uint8)
    before = image.copy()
    drawn = overlay.draw_instances(image, instances_of(masks), [""], colors=[RED, BLUE])
    np.testing.assert_array_equal(image, before)
    large, small = (0.5 * 100, 0.5 * 100, 0.5 * 355), (0.5 * 355, 50, 50)
    np.testing.assert_allclose(drawn[75, 100], large, atol=1)
    np.testing.assert_allclose(drawn[53, 65], small, atol=1)
    assert drawn[50, 65].tolist() == [255, 0, 0]  # the upper edge of the small one
    assert drawn[20, 90].tolist() == [0, 0, 255]
    assert drawn[79, 90].tolist() != [0, 0, 255]  # what goes on outside of the image has no edge
    assert (drawn[:20, 60:] == 100).all()


def test_more_instances_than_bytes_count():
    masks = torch.zeros(300, 20, 300, dtype=torch.bool)
    masks[torch.arange(300), :, torch.arange(300)] = True
    rng = np.random.default_rng(0)
    colors = [tuple(color) for color in rng.random((300, 3))]
    image = np.zeros((20, 300, 3), np.uint8)
    drawn = overlay.draw_instances(image, instances_of(masks), [""], colors=colors)
    # Masks of one column are all edge; the lower half is free of text.
    np.testing.assert_allclose(drawn[18:], np.array(colors)[None].repeat(2, 0) * 255, atol=1)


def test_no_instance_leaves_the_image():
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    nothing = instances_of(torch.zeros(0, 5, 7, dtype=torch.bool))
    np.testing.assert_array_equal(overlay.draw_instances(image, nothing, []), image)


def test_text_stays_inside_and_is_clipped_where_it_is_larger():
    picture = np.zeros((60, 200, 3), np.uint8)
    write(picture, "cat 87%", (190, 58), (1.0, 1.0, 1.0), 12)
    rows, columns = np.nonzero(picture.any(axis=2))
    assert rows.max() == 59
    assert columns.max() == 199
    assert columns.min() > 100
    ink = picture[rows.min() : 60, columns.min() : 200]
    assert (ink < 60).any()  # dark letters on a bright ground
    tiny = np.zeros((3, 4, 3), np.uint8)
    write(tiny, "a long word, \u0436\u00e9", (0, 0), (0.0, 0.0, 1.0), 20)
    assert tiny[:, :, 2].all()


def test_labels_stand_above_their_boxes_or_in_them():
    size = text_size(100, 100)
    for top, above in ((60, True), (0, False)):
        picture = np.zeros((100, 100, 3), np.uint8)
        write_labels(picture, ["a"], np.array([[10, top, 50, 90]], np.float32), [RED], size)
        rows = np.nonzero(picture.any(axis=2))[0]
        assert (rows.max() < top) == above
        assert rows.min() >= 0


def test_colours_of_neighbours_differ():
    colors = np.array([instance_color(index) for index in range(30)])
    assert np.abs(colors[1:] - colors[:-1]).max(axis=1).min() > 0.2


@pytest.mark.parametrize(("drawing", "num_classes"), [(overlay, 1), (overlay, 2), (publication, 2)])
def test_labels_do_not_hide_a_crowd(drawing, num_classes):
    corners = [(20 * (i % 10) + 2, 20 * (i // 10) + 2) for i in range(100)]
    masks = masks_of((204, 204), *((x, y, x + 17, y + 17) for x, y in corners))
    crowd = instances_of(masks, torch.arange(100) % num_classes, torch.linspace(1, 0.5, 100))
    image, names = gray(204, 204), ["nucleus", "other"][:num_classes]
    auto, always, never = (
        drawing.draw_instances(image, crowd, names, labels=labels)
        for labels in ("auto", "always", "never")
    )
    assert (auto == never).all()
    assert (always != never).any()
    with pytest.raises(ValueError, match="'some'"):
        drawing.draw_instances(image, crowd, names, labels="some")


def test_labels_shrink_before_they_go():
    def covered(side, fit):
        picture = np.zeros((400, 600, 3), np.uint8)
        box = np.array([[100, 100, 100 + side, 100 + side]], np.float32)
        room = LabelRoom(np.zeros((400, 600), np.uint8), []) if fit else None
        write_labels(picture, ["cat 87%"], box, [RED], 30, room=room)
        return int((picture[..., 0] > 0).sum())

    whole = covered(300, fit=True)
    assert covered(300, fit=False) == covered(10, fit=False) == whole
    assert 0 < covered(40, fit=True) < whole / 4
    assert covered(10, fit=True) == 0


def test_labels_move_where_they_would_hide_neighbours_or_each_other():
    on_top = np.zeros((120, 200), np.uint8)
    on_top[40:80, 20:120], on_top[10:40, 20:120] = 1, 2  # the second stands on the first
    room = LabelRoom(on_top, [4000, 3000])
    lower = np.array([20, 40, 120, 80], np.float32)
    assert room.take(lower, [(20, 50)]) == (0, 20, 80)  # not on the second, but below
    assert room.take(lower, [(20, 50)]) is None
    assert room.take(lower, [(20, 50), (5, 30)]) == (1, 20, 35)  # it covers little of the second
    assert room.take(np.array([180, 90, 220, 130], np.float32), [(12, 60)]) == (0, 140, 78)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_text_of_a_loose_crowd_covers_no_instance(num_classes):
    corners = [(200 * (i % 6) + 10, 140 * (i // 6) + 30) for i in range(24)]
    masks = masks_of((600, 1200), *((x, y, x + 60, y + 60) for x, y in corners))
    found = instances_of(masks, torch.arange(24) % num_classes)
    names = ["nucleus", "other", "third"][:num_classes]
    auto, never = (
        overlay.draw_instances(gray(600, 1200), found, names, labels=x) for x in ("auto", "never")
    )
    text = (auto != never).any(axis=2)
    assert text.any()
    assert not text[masks.any(dim=0).numpy()].any()
