"""Instances keep their number through a video."""

import torch

from solo_d2.visualization.tracker import MaskTracker


def square(x, y=10, side=12, size=(60, 80)):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[y : y + side, max(0, x) : x + side] = True
    return mask


def update(tracker, masks, classes=None):
    classes = [0] * len(masks) if classes is None else classes
    stacked = torch.stack(masks) if masks else torch.zeros(0, 60, 80, dtype=torch.bool)
    return tracker.update(stacked, torch.tensor(classes, dtype=torch.int64))


def test_moving_instances_keep_their_numbers_in_any_order():
    tracker = MaskTracker()
    first = update(tracker, [square(5), square(40), square(20, y=40)])
    assert first == [0, 1, 2]
    for step in range(1, 8):
        masks = [square(20 + step, y=40), square(5 + 3 * step), square(40 + 2 * step)]
        assert update(tracker, masks) == [2, 0, 1]


def test_a_new_instance_gets_a_new_number_and_each_number_is_used_once():
    tracker = MaskTracker()
    assert update(tracker, [square(5)]) == [0]
    assert update(tracker, [square(6), square(5), square(50)]) in ([0, 1, 2], [1, 0, 2])
    assert update(tracker, []) == []
    assert len(set(update(tracker, [square(6), square(5), square(50)]))) == 3


def test_a_lost_instance_is_known_again_for_a_while():
    tracker = MaskTracker(memory=3)
    assert update(tracker, [square(5)]) == [0]
    for _ in range(3):
        assert update(tracker, []) == []
    assert update(tracker, [square(5)]) == [0]
    for _ in range(4):
        update(tracker, [])
    assert update(tracker, [square(5)]) == [1]


def test_a_class_may_change_where_the_mask_says_the_same():
    tracker = MaskTracker()
    assert update(tracker, [square(5)], [0]) == [0]
    assert update(tracker, [square(6)], [3]) == [0]
    # Two that overlap the old one alike: that of its class is the old one.
    assert update(tracker, [square(6), square(6)], [1, 3]) == [1, 0]
    # A small overlap is not enough for another class.
    assert update(MaskTracker(), [square(5)], [0]) == [0]
    tracker = MaskTracker()
    update(tracker, [square(5)], [0])
    assert update(tracker, [square(11)], [0]) == [0]
    tracker = MaskTracker()
    update(tracker, [square(5)], [0])
    assert update(tracker, [square(11)], [1]) == [1]


def test_large_frames_are_thinned_out_and_another_size_starts_anew():
    tracker = MaskTracker()
    large = torch.zeros(1, 1100, 2000, dtype=torch.bool)
    large[0, 100:300, 200:600] = True
    classes = torch.zeros(1, dtype=torch.int64)
    assert tracker.update(large, classes) == [0]
    assert max(tracker._tracks[0].mask.shape) <= 480
    assert tracker.update(large.roll(20, dims=2), classes) == [0]
    assert update(tracker, [square(5)]) == [1]
