"""Draw samples as in training; objects without a cell are red."""

import random
from collections import Counter

import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb
from numpy.typing import NDArray

from solo_d2.utils.errors import DatasetError
from solo_d2.visualization.canvas import Panel, Plate, arrange
from solo_d2.visualization.colors import instance_color
from solo_d2.visualization.text import write_labels
from tools.dataset_check.objects import ASSIGNED, OUTCOMES
from tools.dataset_check.run import Findings

COLUMNS = 3
# Height of a picture on the page, and of its letters, in pixels.
HEIGHT, LETTERS = 320, 12
RED = (1.0, 0.0, 0.0)


def draw_page(found: Findings, *, count: int = 12, seed: int = 0) -> NDArray[np.uint8] | None:
    """Draw samples: up to half of them those with the most lost objects, the others at random.

    Returns (H, W, 3) uint8, RGB; None if no image can be drawn.
    """
    if found.inspector is None or found.objects is None:
        return None
    losses = found.objects["image"][found.objects["outcome"] != ASSIGNED]
    lost = np.bincount(losses, minlength=len(found.records))
    worst = [int(index) for index in np.argsort(-lost, kind="stable")[: count // 2] if lost[index]]
    others = [index for index in range(len(found.records)) if index not in worst]
    random.Random(seed).shuffle(others)
    drawn = [_panel(found, found.records[index]) for index in (worst + others)[:count]]
    panels = [panel for panel in drawn if panel is not None]
    if not panels:
        return None
    return arrange([panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS)])


def _panel(found: Findings, record: dict[str, object]) -> Panel | None:
    assert found.inspector is not None
    try:
        sample, objects, _ = found.inspector.follow(record)
    except DatasetError:
        return None  # it is among the problems
    instances, mapper = sample["instances"], found.inspector.mapper
    image = sample["image"].permute(1, 2, 0).numpy()
    plate = Plate(convert_image_to_rgb(image, mapper.image_format), HEIGHT / image.shape[0])
    drawn = objects[instances.gt_names.numpy()]
    colors, labels = [], []
    for index, (mask, row) in enumerate(zip(instances.gt_masks.tensor.numpy(), drawn, strict=True)):
        is_lost = bool(row["outcome"] != ASSIGNED)
        colors.append(RED if is_lost else instance_color(index))
        labels.append("lost: " * is_lost + found.class_names[row["label"]])
        red, green, blue = (round(255 * part) for part in colors[-1])
        plate.tint(mask, (red, green, blue), 0.4)
        plate.outline(mask, (red, green, blue), 1)
    write_labels(plate.picture, labels, drawn["box"] * plate.scale, colors, LETTERS)
    counts = Counter(objects["outcome"][objects["outcome"] >= ASSIGNED].tolist())
    lines = [f"{counts.total()} objects"]
    lines += [f"{n} {OUTCOMES[outcome]}" for outcome, n in counts.items() if outcome != ASSIGNED]
    return Panel(plate.picture, str(record.get("image_id", "")), "\n".join(lines))
