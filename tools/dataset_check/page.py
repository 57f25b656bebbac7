"""A page of samples as training sees them; objects that no cell is assigned are red."""

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb
from numpy.typing import NDArray

from solo_d2.utils.errors import DatasetError
from solo_d2.visualization.colors import instance_color
from solo_d2.visualization.text import write_labels
from tools.dataset_check.objects import ASSIGNED, OUTCOMES, Inspector
from tools.dataset_check.run import Findings
from tools.figures.canvas import Panel, Plate, arrange

COLUMNS = 3
# Height of a picture on the page, and of its letters, in pixels.
HEIGHT, LETTERS = 320, 12
RED = (1.0, 0.0, 0.0)


def draw_page(found: Findings, *, count: int = 12, seed: int = 0) -> NDArray[np.uint8] | None:
    """Draw samples: at most half of them those with the most lost objects, the others at random.

    Args:
        found: of a check that opened images.
        count: how many.
        seed: of the draw.

    Returns:
        (H, W, 3) uint8, RGB; None if no image can be drawn.
    """
    if found.inspector is None or found.objects is None:
        return None
    drawn = [
        _panel(found.inspector, found.records[index], found.class_names)
        for index in _choose(found, count, seed)
    ]
    panels = [panel for panel in drawn if panel is not None]
    if not panels:
        return None
    return arrange([panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS)])


def _choose(found: Findings, count: int, seed: int) -> list[int]:
    """Indices of images."""
    assert found.objects is not None
    lost = np.bincount(
        found.objects.images[found.objects.outcomes != ASSIGNED], minlength=len(found.records)
    )
    worst = [int(index) for index in np.argsort(-lost, kind="stable")[: count // 2] if lost[index]]
    others = [index for index in range(len(found.records)) if index not in worst]
    random.Random(seed).shuffle(others)
    return (worst + others)[:count]


def _panel(
    inspector: Inspector, record: dict[str, object], class_names: Sequence[str]
) -> Panel | None:
    try:
        sample, names, _ = inspector.sample(record)
    except DatasetError:
        return None  # it is among the problems
    instances = sample["instances"]
    image = sample["image"].permute(1, 2, 0).numpy()
    plate = Plate(
        convert_image_to_rgb(image, inspector.mapper.image_format), HEIGHT / image.shape[0]
    )
    layout = inspector.rule.layout(instances) if len(instances) else None
    all_outcomes, inside = inspector.outcomes(instances, layout, len(names))
    outcomes = all_outcomes[instances.gt_names.numpy()].tolist()
    colors = [
        instance_color(i) if outcome == ASSIGNED else RED for i, outcome in enumerate(outcomes)
    ]
    labels = []
    for mask, color, label in zip(
        instances.gt_masks.tensor.numpy(), colors, instances.gt_classes.tolist(), strict=False
    ):
        red, green, blue = (round(255 * part) for part in color)
        paint = red, green, blue
        plate.tint(mask, paint, 0.4)
        plate.outline(mask, paint, 1)
        labels.append("lost: " * (color is RED) + class_names[label])
    boxes = instances.gt_boxes.tensor.numpy() * plate.scale
    write_labels(plate.picture, labels, boxes, colors, LETTERS)
    return Panel(
        plate.picture, str(record.get("image_id", "")), _caption(all_outcomes[inside].tolist())
    )


def _caption(outcomes: list[int]) -> str:
    lost = Counter(outcome for outcome in outcomes if outcome != ASSIGNED)
    return "\n".join(
        [
            f"{len(outcomes)} objects",
            *(f"{count} {OUTCOMES[outcome]}" for outcome, count in lost.items()),
        ]
    )
