"""Copy-paste of instances from another training image (arXiv:2012.07177).

The paper blends borders by default and reports the same AP without; pixels are copied here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances

from solo_d2.data.cropped_masks import crop_tensor
from solo_d2.data.input_checks import check_input_config
from solo_d2.data.unreadable import UNREADABLE
from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.utils.errors import UnreadableImageError

# The label of all things in the stuff maps of panoptic models.
THINGS_LABEL = 0


class CopyPaste:
    """A mapper that pastes instances of another image over what a mapper makes.

    Random numbers are NumPy's, so a loader that seeds them for each sample
    (`solo_d2.data.loader.SeededDataset`) gets the same samples after a resume.
    """

    def __init__(
        self,
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        dataset: Sequence[dict[str, Any]],
        *,
        prob: float,
        instance_prob: float,
    ):
        """Wrap a mapper whose training samples have bitmask instances.

        Args:
            mapper: makes a sample of a dataset dict.
            dataset: where the other images come from, all equally often.
            prob: probability that anything is pasted over an image.
            instance_prob: probability that an instance of the other image is pasted.
        """
        self.mapper, self.dataset = mapper, dataset
        self.prob, self.instance_prob = prob, instance_prob

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map an image and maybe paste instances of another one; see the mapper.

        Nothing is pasted from a file that cannot be read; the sample says so (`UNREADABLE`).
        """
        sample = self.mapper(dataset_dict)
        if np.random.random() >= self.prob:
            return sample
        try:
            source = self.mapper(self.dataset[np.random.randint(len(self.dataset))])
        except UnreadableImageError as error:
            return {**sample, UNREADABLE: {error.file: error.reason}}
        chosen = np.random.random(len(source["instances"])) < self.instance_prob
        return paste_instances(sample, source, torch.from_numpy(chosen))


def wrap_with_copy_paste(
    cfg: CfgNode,
    mapper: Callable[[dict[str, Any]], dict[str, Any]],
    dataset: Sequence[dict[str, Any]],
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The mapper, with copy-paste if the config asks for it; ConfigError for unusable values."""
    check_input_config(cfg)
    keys = cfg.INPUT.COPY_PASTE
    if keys.PROB == 0:
        return mapper
    return CopyPaste(mapper, dataset, prob=keys.PROB, instance_prob=keys.INSTANCE_PROB)


def paste_instances(
    sample: dict[str, Any], source: dict[str, Any], chosen: torch.Tensor
) -> dict[str, Any]:
    """Paste instances of one image over another, both at their upper left corner.

    What is hidden loses its pixels, what is hidden entirely its annotation. Labels of stuff become
    "things" where something is pasted. Where the images differ in size, only what both have counts.

    Args:
        sample: with `image` (3, H, W), `instances` with gt_boxes, gt_classes and gt_masks, and
            maybe `sem_seg` (H, W); left as it is.
        source: the same of another image of any size.
        chosen: (N,) bool, which of the source's instances are pasted.

    Returns:
        The sample with changed image, instances and stuff; pasted instances come last.
    """
    target, pasted = sample["instances"], source["instances"][chosen]
    height, width = target.image_size
    rows, columns = min(height, pasted.image_size[0]), min(width, pasted.image_size[1])
    masks = torch.zeros((len(pasted), height, width), dtype=torch.bool)
    masks[:, :rows, :columns] = pasted.gt_masks.tensor[:, :rows, :columns]
    over = masks.any(dim=0)
    if not over.any():
        return sample
    result = {**sample, "image": sample["image"].clone()}
    inside = over[:rows, :columns]
    result["image"][:, :rows, :columns][:, inside] = source["image"][:, :rows, :columns][:, inside]
    if "sem_seg" in sample:
        result["sem_seg"] = sample["sem_seg"].masked_fill(over, THINGS_LABEL)
    # Instances that nothing hides keep their boxes.
    old = target.gt_masks.tensor
    visible = torch.cat([old & ~over, masks])
    boxes = mask_boxes(visible)
    whole = ~(old & over).flatten(1).any(dim=1)
    boxes[: len(target)][whole] = target.gt_boxes.tensor[whole].to(boxes.dtype)
    instances = Instances(
        target.image_size,
        gt_boxes=Boxes(boxes),
        gt_classes=torch.cat([target.gt_classes, pasted.gt_classes]),
        gt_masks=crop_tensor(visible),
    )
    result["instances"] = instances[instances.gt_masks.nonempty()]
    return result
