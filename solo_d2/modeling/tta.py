"""Test-time augmentation: results for several sizes of an image and its mirror image are merged.

Detectron2's TTA merges boxes and predicts masks with a second head. Here the instances of each view
are resampled to a common frame and merged by `ViewFusion`, which averages masks and scores. The
alternative, one NMS over the instances of all views, selects the best of several masks instead; it
gains little (docs/training.md) and needs memory for all views at once.
"""

from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA
from fvcore.transforms import HFlipTransform
from torch import Tensor, nn

from solo_d2.modeling.meta_arch.solo import SOLO, to_instances
from solo_d2.ops.candidates import class_probabilities
from solo_d2.ops.view_fusion import ViewFusion, to_frame
from solo_d2.utils.errors import ConfigError


class SOLOWithTTA(nn.Module):
    """Wrapper of a SOLO model, panoptic or not, for inference with the views of TEST.AUG.

    Inputs and outputs are those of the model; the `sem_seg` of a panoptic model is the logarithm of
    the mean probabilities over views. Masks are merged at the finest stride of the largest view.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module):
        """Wrap a model, with the views of TEST.AUG.

        Raises:
            ConfigError: the model is no SOLO model, or TEST.AUG has no views.
        """
        super().__init__()
        if not isinstance(model, SOLO):
            raise ConfigError(
                f"TEST.AUG.ENABLED is True, but must be False for a {type(model).__name__}: only "
                "SOLO models have test-time augmentation"
            )
        if not cfg.TEST.AUG.MIN_SIZES:
            raise ConfigError("TEST.AUG.MIN_SIZES is empty, but must have a size for each view")
        self.model = model
        self.make_views = DatasetMapperTTA(cfg)
        self.training = model.training  # of this wrapper: parts of the model may have other modes

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Infer, on Detectron2's standard inputs.

        Views are made from "image", which should have its original size (INPUT.MIN_SIZE_TEST 0).
        """
        return [self._infer(sample) for sample in batched_inputs]

    @torch.no_grad()
    def _infer(self, sample: dict[str, Any]) -> dict[str, Any]:
        height, width = sample["image"].shape[-2:]
        output_size = (sample.get("height", height), sample.get("width", width))
        views = self.make_views(
            {"image": sample["image"].cpu(), "height": output_size[0], "width": output_size[1]}
        )
        decoder = self.model.decoder
        stride = min(decoder.head.mask_strides)
        largest = max((view["image"].shape[-2:] for view in views), key=lambda size: size.numel())
        frame_size = (-(-largest[0] // stride), -(-largest[1] // stride))
        fusion = ViewFusion(frame_size, mask_thresh=decoder.mask_thresh, device=self.model.device)
        semantic_probs: Tensor | float = 0.0  # the mean over the views
        for view in views:
            images = self.model.preprocess_image([view])
            outputs = self.model.network(images.tensor)
            in_frame = partial(
                to_frame,
                image_size=images.image_sizes[0],
                frame_size=frame_size,
                flipped=any(isinstance(t, HFlipTransform) for t in view["transforms"].transforms),
            )
            found = decoder.find(outputs.head, 0, class_probabilities(outputs.head.class_logits)[0])
            masks = [
                in_frame(probs, stride) for probs in decoder.masks(outputs.head, 0, found.cells)
            ]
            fusion.add(found.scores, found.classes, torch.cat([fusion.mask_sums[:0], *masks]))
            if outputs.semantic_logits is not None:
                probs = outputs.semantic_logits[0].float().softmax(dim=0)
                probs = in_frame(probs, self.model.semantic_branch.stride)
                semantic_probs = semantic_probs + probs / len(views)
        scores, classes, probs = fusion.result(
            keep_thresh=decoder.keep_thresh, most=decoder.max_detections
        )
        # The frame has no padding.
        input_size = (frame_size[0] * stride, frame_size[1] * stride)
        merged = decoder.paste(scores, classes, [probs], input_size, output_size)
        instances = to_instances(merged, output_size)
        if not isinstance(semantic_probs, Tensor):
            return {"instances": instances}
        stride = self.model.semantic_branch.stride
        input_size = (frame_size[0] * stride, frame_size[1] * stride)
        return self.model.combine(instances, semantic_probs.log(), input_size)
