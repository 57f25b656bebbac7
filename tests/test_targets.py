"""Target assignment: published values, the slow reference, and the cases that go wrong."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from solo_d2.ops.candidates import flatten_levels
from solo_d2.targets import assign_grid_targets
from tests.golden import levels, load_golden
from tests.reference.targets import downsample_as_published
from tools.benchmarks.plain_training import assign_level

GOLDEN = load_golden("solov2_targets")
GRID = {
    "num_grids": [10, 8, 6, 5, 4],
    "scale_ranges": [[1, 24], [12, 48], [24, 96], [48, 160], [96, 512]],
    "mask_strides": [4] * 5,
    "num_classes": 5,
    "padded_size": (128, 160),
}


def golden_images():
    images = [0, 1, 2]
    names = ("gt_boxes", "gt_classes", "gt_masks")
    return [[GOLDEN[f"img{b}.{name}"] for b in images] for name in names]


def published_masks():
    masks = golden_images()[2]
    return torch.cat([downsample_as_published(m, GRID["padded_size"]) for m in masks])


def samples_of(targets, image, level):
    """Cells (in the level) and instances of an image's samples at a level."""
    counts = [c for row in targets.num_samples for c in row]
    at = image * len(targets.num_samples[0]) + level
    part = slice(sum(counts[:at]), sum(counts[: at + 1]))
    offset = sum(s * s for s in GRID["num_grids"][:level])
    return targets.cells[part] - offset, targets.instances[part]


def blobs(num, height=100, width=140, seed=0, largest=60):
    """Random rectangles with corners knocked out: boxes, classes, masks of one image."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((num, height, width), dtype=bool)
    boxes = np.zeros((num, 4), dtype=np.float32)
    for n in range(num):
        w, h = rng.integers(1, largest, 2)
        x, y = rng.integers(0, max(width - w, 1)), rng.integers(0, max(height - h, 1))
        masks[n, y : y + h, x : x + w] = rng.random((h, w)) > 0.2
        boxes[n] = x, y, x + w, y + h
    classes = torch.from_numpy(rng.integers(0, 5, num))
    return torch.from_numpy(boxes), classes, torch.from_numpy(masks)


def test_classes_and_cells_equal_published():
    targets = assign_grid_targets(*golden_images(), **GRID)
    for image in range(3):
        expected = torch.cat([m.flatten() for m in levels(GOLDEN, f"img{image}.cate_label")])
        assert torch.equal(targets.classes[image], expected)
        for level, order in enumerate(levels(GOLDEN, f"img{image}.grid_order")):
            cells, _ = samples_of(targets, image, level)
            assert torch.equal(cells, order)
    assert len(targets.cells) == load_golden("solov2_loss")["num_entries"]
    assert targets.num_positive_cells == load_golden("solov2_loss")["num_ins"]
    assert targets.num_conflicts == len(targets.cells) - targets.num_positive_cells


@pytest.mark.parametrize("image", [0, 1, 2])
def test_masks_equal_published(image):
    targets, masks = assign_grid_targets(*golden_images(), **GRID), published_masks()
    for level, expected in enumerate(levels(GOLDEN, f"img{image}.ins_label")):
        _, instances = samples_of(targets, image, level)
        assert torch.equal(masks[instances], expected)


def test_padded_masks_equal_published_where_sizes_divide():
    # Image 1 is 128x140, so padding changes nothing; image 0 is 119x151, where the published
    # AdelaiDet code stretches the mask to 120x152 (README, Deviations).
    exact, published = assign_grid_targets(*golden_images(), **GRID).masks[4], published_masks()
    image = torch.tensor([i for i in range(3) for _ in GOLDEN[f"img{i}.gt_classes"]])
    same = (exact == published).all(dim=(1, 2))
    assert same[image == 1].all()
    assert not same[image == 0].all()
    assert (exact == published).float().mean() > 0.99


@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    seed=st.integers(0, 999),
    largest=st.sampled_from([4, 60]),
)
@example(counts=[0], seed=0, largest=60)
@example(counts=[0, 2], seed=3, largest=60)
@example(counts=[250], seed=5, largest=4)  # more than there are cells
@settings(deadline=None, max_examples=40)
def test_equals_slow_loops(counts, seed, largest):
    images = [blobs(n, seed=seed + i, largest=largest) for i, n in enumerate(counts)]
    targets = assign_grid_targets(*zip(*images, strict=True), **GRID)
    first = 0
    for image, (boxes, classes, masks) in enumerate(images):
        expected = []
        grids = zip(GRID["num_grids"], GRID["scale_ranges"], strict=True)
        for level, grid in enumerate(grids):
            arrays = boxes.numpy(), masks.numpy()
            samples = assign_level(*arrays, GRID["padded_size"], *grid, 0.2)
            cells, instances = samples_of(targets, image, level)
            pairs = list(zip(cells.tolist(), (instances - first).tolist(), strict=True))
            assert pairs == samples
            class_map = [GRID["num_classes"]] * grid[0] ** 2
            for cell, n in samples:
                class_map[cell] = int(classes[n])
            expected += class_map
        assert targets.classes[image].tolist() == expected
        first += len(boxes)
    assert targets.masks[4].shape == (sum(counts), 32, 40)


def one_square(x, y, side, *, height=128, width=160):
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[0, y : y + side, x : x + side] = True
    return torch.tensor([[x, y, x + side, y + side]]).float(), torch.tensor([3]), mask


def test_one_square_by_hand():
    # A 40 px square about (79.5, 59.5); of these ranges only 24-96 and 12-48 hold 40 px.
    targets = assign_grid_targets(*zip(one_square(60, 40, 40), strict=True), **GRID)
    assert targets.num_samples == ((0, 2, 2, 0, 0),)
    # Level 1 has 8x8 cells of 20x16 px: centre region x 75.5..83.5, y 55.5..63.5 touches columns
    # 3 and 4 of row 3. Level 2 has 6x6 cells of 26.7x21.3 px: columns 2 and 3 of row 2.
    assert samples_of(targets, 0, 1)[0].tolist() == [3 * 8 + 3, 3 * 8 + 4]
    assert samples_of(targets, 0, 2)[0].tolist() == [2 * 6 + 2, 2 * 6 + 3]
    assert targets.masks[4][0].sum() == 100


def test_nearest_gives_each_cell_to_one_instance():
    boxes, classes, masks = blobs(40, largest=40, seed=7)
    published = assign_grid_targets([boxes], [classes], [masks], **GRID)
    nearest = assign_grid_targets([boxes], [classes], [masks], **GRID, cell_conflict="nearest")
    assert published.num_conflicts == nearest.num_conflicts > 0
    assert len(nearest.cells.unique()) == len(nearest.cells) == nearest.num_positive_cells
    assert torch.equal(nearest.classes < 5, published.classes < 5)
    assert torch.equal(nearest.classes[0, nearest.cells], classes[nearest.instances])
    # Brute force: of all that claim a cell, the nearest centre has it.
    sides = [s for s in GRID["num_grids"] for _ in range(s * s)]
    starts = [n for n, s in enumerate(GRID["num_grids"]) for _ in range(s * s)]
    offsets = [sum(s * s for s in GRID["num_grids"][:n]) for n in starts]
    for cell, winner in zip(nearest.cells.tolist(), nearest.instances.tolist(), strict=True):
        side, within = sides[cell], cell - offsets[cell]
        center = np.array([(within % side + 0.5) * 160 / side, (within // side + 0.5) * 128 / side])
        claimants = published.instances[published.cells == cell].tolist()
        keys = []
        for n in claimants:
            y, x = masks[n].nonzero(as_tuple=True)
            mass = np.array([x.double().mean(), y.double().mean()])
            keys.append((round(((mass - center) ** 2).sum(), 3), int(masks[n].sum()), n))
        assert min(keys)[2] == winner


def test_strides_of_several_levels():
    grid = {**GRID, "mask_strides": [4, 4, 8, 16, 16]}
    targets = assign_grid_targets(*zip(one_square(60, 40, 40), strict=True), **grid)
    assert {s: tuple(m.shape) for s, m in targets.masks.items()} == {
        4: (1, 32, 40),
        8: (1, 16, 20),
        16: (1, 8, 10),
    }


@pytest.mark.parametrize("option", [{"cell_conflict": "first"}, {"mask_target": "edge"}])
def test_unknown_options(option):
    with pytest.raises(ValueError, match=repr(*option.values())):
        assign_grid_targets(*golden_images(), **GRID, **option)


def test_flattened_levels_count_cells_as_the_targets_do():
    maps = [torch.arange(s * s).view(1, 1, s, s) for s in (3, 2)]
    assert flatten_levels(maps)[0, :, 0].tolist() == [*range(9), *range(4)]
