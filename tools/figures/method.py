"""Draw how SOLO processes an image, step by step, with the functions of training and inference.

L levels, S grid side, T cells of all levels, K classes, N instances, M candidates, E channels of
the mask feature, H W rows and columns. Images are (H, W, 3) uint8 RGB.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solo_d2.api.activations import cell_panels, class_colors
from solo_d2.modeling.meta_arch.solo import SOLO
from solo_d2.ops.candidates import class_probabilities, filter_scores
from solo_d2.ops.mask_geometry import mask_centers
from solo_d2.structures import Candidates, GridTargets, HeadOutputs
from solo_d2.utils.errors import ConfigError
from solo_d2.visualization.canvas import (
    GRID,
    Color,
    Panel,
    Plate,
    arrange,
    heat_map,
)

PALE, WHITE, GREY = (190, 190, 190), (255, 255, 255), (128, 128, 128)
# Colours of a candidate that NMS keeps and of one that it removes.
LEFT, TAKEN = (60, 200, 90), (235, 60, 50)
# Candidates of the NMS picture.
NUM_CANDIDATES = 12


@dataclass(frozen=True)
class Scene:
    """An annotated image and the outputs of a model for it."""

    image: NDArray[np.uint8]  # the network's input, padded in grey
    instances: Any  # ground truth: N instances of Detectron2 at the size without padding
    targets: GridTargets  # of training
    outputs: HeadOutputs


@torch.no_grad()
def make_scene(model: SOLO, sample: dict[str, Any]) -> Scene:
    """Assign targets of a training sample and run the model in evaluation mode on it."""
    if len(sample["instances"]) == 0:
        raise ConfigError(
            f"{sample.get('file_name', 'The image')} has no instance: choose another image"
        )
    images = model.preprocess_image([sample])
    pixels = sample["image"].flip(0) if model.input_format == "BGR" else sample["image"]
    rgb = pixels.permute(1, 2, 0).numpy().clip(0, 255).astype(np.uint8)
    padded = np.full((*images.tensor.shape[-2:], 3), GREY, dtype=np.uint8)
    padded[: rgb.shape[0], : rgb.shape[1]] = rgb
    return Scene(
        image=padded,
        instances=sample["instances"].to("cpu"),
        targets=model.assign_targets([sample["instances"]], images),
        outputs=model.head(model.backbone(images.tensor)),
    )


def draw_targets(model: SOLO, scene: Scene, *, size: int = 400) -> NDArray[np.uint8]:
    """Draw for each level its grid, the instances of its scale range, and positive cells."""
    panels = []
    for level, (low, high) in enumerate(model.scale_ranges):
        claims = _claims(scene.targets, model.head.num_grids, level)
        chosen = {instance for _, instance in claims}
        plate = _level_plate(model, scene, level, size, claims)
        side = model.head.num_grids[level]
        panels.append(
            Panel(
                plate.picture,
                f"{model.head.in_features[level]}: {side} x {side} cells",
                f"objects of {low:g} to {high:g} px: {len(chosen)} of {len(scene.instances)}\n"
                f"{len({cell for cell, _ in claims})} positive cells",
            )
        )
    return arrange([panels[start : start + 2] for start in range(0, len(panels), 2)])


def draw_center(
    model: SOLO, scene: Scene, *, instance: int | None = None, size: int = 520
) -> NDArray[np.uint8]:
    """Draw one instance: box, mass centre, centre region and cells of its first level."""
    grouped: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for level in range(len(model.head.num_grids)):
        for cell, index in _claims(scene.targets, model.head.num_grids, level):
            if instance in (None, index):
                grouped.setdefault((index, level), []).append(cell)
    samples = [(cells, *key) for key, cells in grouped.items()]
    if not samples:
        raise ConfigError("No instance is in the scale range of a level: change SCALE_RANGES")
    cells, index, level = max(samples, key=lambda sample: (len(sample[0]), -sample[2]))
    box = scene.instances.gt_boxes.tensor[index].tolist()
    margin = 0.35 * max(box[2] - box[0], box[3] - box[1])
    height, width = scene.image.shape[:2]
    crop = np.array([box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin])
    crop = crop.clip(0, [width, height, width, height])
    scale = size / max(crop[2] - crop[0], crop[3] - crop[1])
    claims = [(cell, index) for cell in cells]
    plate = _level_plate(model, scene, level, round(scale * max(height, width)), claims)
    plate.rectangle(box, WHITE, 2)
    left, top, right, bottom = (round(value * plate.scale) for value in crop)
    extent = (box[2] - box[0]) * (box[3] - box[1])
    side = model.head.num_grids[level]
    panel = Panel(
        plate.picture[top:bottom, left:right],
        f"scale {extent**0.5:.0f} px: level {model.head.in_features[level]}, {side} x {side} cells",
        f"thin: box; thick: centre region, {model.center_scale:g} of the box, about\n"
        f"the mass centre (dot); filled: the {len(cells)} positive cells",
    )
    return arrange([[panel]])


def draw_scores(model: SOLO, scene: Scene, *, size: int = 250) -> NDArray[np.uint8]:
    """Draw the highest class probability of each cell, before and after point NMS, by level."""
    thresh = model.decoder.score_thresh
    sides = model.head.num_grids
    kept = class_probabilities(scene.outputs.class_logits)[0].amax(dim=1)
    after = kept.split([side * side for side in sides])
    rows: list[list[Panel]] = [[], []]
    for level, side in enumerate(sides):
        logits = scene.outputs.class_logits[level][0].float()
        for row, scores in enumerate((logits.sigmoid().amax(dim=0), after[level])):
            title = f"{model.head.in_features[level]}: {side} x {side}" if row == 0 else ""
            count = int((scores > thresh).sum())
            words = f"{count} above {thresh:g}" + (", point NMS" if row else "")
            picture = heat_map(scene.image, scores.view(side, side).cpu().numpy(), size)
            rows[row].append(Panel(picture, title, words))
    return arrange(rows)


def draw_kernels(
    model: SOLO, scene: Scene, *, count: int = 3, size: int = 210
) -> NDArray[np.uint8]:
    """Draw from cell to mask for the best cells: kernel, its strongest channels, mask.

    Heads whose masks are no product of a kernel and a feature show the cell and its mask.
    """
    found = model.decoder.suppress(_candidates(model, scene))
    levels = model.cell_levels[found.cells].tolist()
    rows = []
    for index in range(min(count, len(found))):
        cell, level = found.cells[index : index + 1], levels[index]
        first = sum(side * side for side in model.head.num_grids[:level])
        row_column = divmod(int(cell) - first, model.head.num_grids[level])
        rows.append(cell_panels(model.head, scene.outputs, scene.image, level, row_column, size))
    if not rows:
        raise ConfigError(
            "The model has no detections in this image: choose another, or train longer"
        )
    return arrange(rows)


def draw_nms(
    model: SOLO, scene: Scene, class_names: Sequence[str], *, size: int = 190
) -> NDArray[np.uint8]:
    """Draw the best candidates with their scores before and after mask NMS."""
    decoder = model.decoder
    found = _candidates(model, scene)
    if len(found) == 0:
        raise ConfigError(
            "The model has no detections in this image: choose another, or train longer"
        )
    assert found.masks is not None
    new_scores = decoder.nms(found.masks, found.classes, found.scores)
    probs = class_probabilities(scene.outputs.class_logits)[0][found.cells, found.classes]
    panels = []
    for index in range(min(NUM_CANDIDATES, len(found))):
        score, new_score = float(found.scores[index]), float(new_scores[index])
        maskness, decay = score / float(probs[index]), new_score / score
        panels.append(
            Panel(
                _candidate_picture(scene, found.masks[index], size, decay),
                class_names[int(found.classes[index])],
                f"{probs[index]:.2f} x {maskness:.2f} = {score:.2f}\n"
                f"NMS: x {decay:.2f} = {new_score:.2f}"
                + ("" if new_score >= decoder.keep_thresh else ", removed"),
            )
        )
    return arrange([panels[start : start + 4] for start in range(0, len(panels), 4)], font_size=15)


# Name of each picture -> what draws it of a model, a scene and the names of the classes.
PICTURES: dict[str, Callable[[SOLO, Scene, Sequence[str]], NDArray[np.uint8]]] = {
    "targets": lambda model, scene, _: draw_targets(model, scene),
    "center": lambda model, scene, _: draw_center(model, scene),
    "scores": lambda model, scene, _: draw_scores(model, scene),
    "kernels": lambda model, scene, _: draw_kernels(model, scene),
    "nms": draw_nms,
}


def _claims(
    targets: GridTargets, num_grids: Sequence[int], level: int
) -> list[tuple[tuple[int, int], int]]:
    """Return ((row, column), instance) of each mask sample of a level, for one image."""
    start = sum(targets.num_samples[0][:level])
    part = slice(start, start + targets.num_samples[0][level])
    side = num_grids[level]
    first = [0, *accumulate(s * s for s in num_grids)][level]
    cells = (targets.cells[part] - first).tolist()
    instances = targets.instances[part].tolist()
    return [(divmod(cell, side), instance) for cell, instance in zip(cells, instances, strict=True)]


def _level_plate(
    model: SOLO,
    scene: Scene,
    level: int,
    size: int,
    claims: Sequence[tuple[tuple[int, int], int]],
) -> Plate:
    """Draw the image with a level's grid, positive cells, and their instances."""
    height, width = scene.image.shape[:2]
    side = model.head.num_grids[level]
    pitch = height / side, width / side
    plate = Plate(scene.image, size / max(height, width))
    plate.picture[:] = np.rint(0.55 * plate.picture + 0.45 * 60)
    colors: list[Color] = [tuple(color) for color in class_colors(len(scene.instances)).tolist()]
    for (row, column), instance in claims:
        left, top = column * pitch[1], row * pitch[0]
        plate.fill((left, top, left + pitch[1], top + pitch[0]), colors[instance], 0.75)
    plate.grid(pitch, side, GRID)
    chosen = {instance for _, instance in claims}
    masks = scene.instances.gt_masks.tensor
    centers, _ = mask_centers(masks)
    padding = (0, width - masks.shape[2], 0, height - masks.shape[1])
    padded = torch.nn.functional.pad(masks, padding).numpy()
    for index, mask in enumerate(padded):
        plate.outline(mask, colors[index] if index in chosen else PALE, 2 if index in chosen else 1)
    for index in sorted(chosen):
        left, top, right, bottom = scene.instances.gt_boxes.tensor[index].tolist()
        x, y = centers[index].tolist()
        half_w, half_h = (0.5 * model.center_scale * e for e in (right - left, bottom - top))
        plate.rectangle((x - half_w, y - half_h, x + half_w, y + half_h), WHITE, 3)
        plate.dot((x, y), colors[index], 4)
    return plate


@torch.no_grad()
def _candidates(model: SOLO, scene: Scene) -> Candidates:
    decoder = model.decoder
    probs = class_probabilities(scene.outputs.class_logits)[0]
    return decoder.score_masks(
        scene.outputs, 0, Candidates(*filter_scores(probs, decoder.score_thresh))
    )


def _candidate_picture(scene: Scene, mask: Tensor, size: int, decay: float) -> NDArray[np.uint8]:
    """Draw a candidate's mask, from green to red as NMS lowers its score."""
    height, width = scene.image.shape[:2]
    plate = Plate(scene.image, size / max(height, width))
    red, green, blue = (decay * a + (1 - decay) * b for a, b in zip(LEFT, TAKEN, strict=True))
    color = round(red), round(green), round(blue)
    large = cv2.resize(mask.cpu().numpy().astype(np.uint8), (width, height)) > 0
    plate.tint(large, color, 0.5)
    plate.outline(large, color, 2)
    return plate.picture
