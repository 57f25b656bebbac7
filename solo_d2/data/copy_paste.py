"""Copy-paste augmentation: paste instances of another training image (arXiv:2012.07177).

Pixels are copied without blending the borders; the paper reports the same AP for both.
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

# Label of all things in stuff maps.
THINGS_LABEL = 0


class CopyPaste:
    """A mapper that pastes instances of another image into the samples of a mapper.

    It uses NumPy's random numbers, which `solo_d2.data.loader.SeededDataset` seeds per sample, so
    that samples are the same after a resume.
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
            mapper: maps a dataset dict to a sample.
            dataset: dataset dicts from which the other image is drawn uniformly.
            prob: probability of pasting into an image.
            instance_prob: probability of pasting each instance of the other image.
        """
        self.mapper, self.dataset = mapper, dataset
        self.prob, self.instance_prob = prob, instance_prob

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map an image, and paste instances of another one with probability `prob`.

        If the other image is unreadable, nothing is pasted and the sample has `UNREADABLE`.
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
    """Add copy-paste to a mapper if the config enables it; ConfigError for invalid values."""
    check_input_config(cfg)
    keys = cfg.INPUT.COPY_PASTE
    if keys.PROB == 0:
        return mapper
    return CopyPaste(mapper, dataset, prob=keys.PROB, instance_prob=keys.INSTANCE_PROB)


def paste_instances(
    sample: dict[str, Any], source: dict[str, Any], chosen: torch.Tensor
) -> dict[str, Any]:
    """Paste instances of one image into another, with the upper left corners aligned.

    Covered pixels are removed from the other masks, and instances without pixels are dropped. Stuff
    labels of pasted pixels become "things". Pixels outside of either image are ignored.

    Args:
        sample: sample with `image` (3, H, W), `instances` with gt_boxes, gt_classes and gt_masks,
            and optionally `sem_seg` (H, W); not modified.
        source: sample of another image of any size.
        chosen: (N,) bool, which instances of the source to paste.

    Returns:
        The sample with new image, instances and stuff; pasted instances come last.
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
    # Instances that are not covered keep their boxes.
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
