"""Predictions in COCO's result format, with masks encoded on the device they are on.

Detectron2 copies all masks of an image to the host and encodes them one by one. The results are the
same here.
"""

from typing import Any

from detectron2.evaluation import COCOEvaluator, LVISEvaluator
from detectron2.structures import BoxMode, Instances

from solo_d2.ops.rle import encode_masks


def instances_to_coco_json(instances: Instances, image_id: int) -> list[dict[str, Any]]:
    """The function of that name in Detectron2, less keypoints.

    Args:
        instances: with pred_boxes, scores, pred_classes and maybe pred_masks, on any device.
        image_id: of the image.

    Returns:
        One annotation for each instance, in order; boxes are XYWH. Empty for no instances.
    """
    boxes = BoxMode.convert(
        instances.pred_boxes.tensor.cpu(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
    ).tolist()
    results = [
        {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
        for category, box, score in zip(
            instances.pred_classes.tolist(), boxes, instances.scores.tolist(), strict=True
        )
    ]
    if instances.has("pred_masks"):
        rles = encode_masks(instances.pred_masks.bool())
        for result, rle in zip(results, rles, strict=True):
            # JSON has no bytes.
            result["segmentation"] = {**rle, "counts": rle["counts"].decode("ascii")}
    return results


class _EncodesOnDevice:
    """Comes before an evaluator of Detectron2 that turns instances into COCO's results."""

    _predictions: list[dict[str, Any]]

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take the predictions of some images; see the evaluator's own method."""
        for image, output in zip(inputs, outputs, strict=True):
            found = output.get("instances")
            if found is None or "proposals" in output or found.has("pred_keypoints"):
                super().process([image], [output])  # type: ignore[misc]
                continue
            results = instances_to_coco_json(found, image["image_id"])
            self._predictions.append({"image_id": image["image_id"], "instances": results})


class FastCOCOEvaluator(_EncodesOnDevice, COCOEvaluator):
    """`COCOEvaluator` with the same results."""


class FastLVISEvaluator(_EncodesOnDevice, LVISEvaluator):
    """`LVISEvaluator` with the same results."""
