"""The final resize of semantic scores: to the input, without its padding, then to the output.

Shape letters: C classes, H and W rows and columns of the scores, H' and W' of the output.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

# Most float32 elements that are held at once between the two steps (64 MiB), or one class.
CHUNK_ELEMENTS = 1 << 24


def resize_scores(
    scores: Tensor, *, stride: int, image_size: tuple[int, int], output_size: tuple[int, int]
) -> Tensor:
    """Bring scores to the output size, as Detectron2's semantic heads do, some classes at a time.

    Both steps are bilinear. The result is all that is held for all classes at once.

    Args:
        scores: (C, H, W) float over the padded input.
        stride: input pixels of one pixel of the scores.
        image_size: height and width of the image in the padded input.
        output_size: H' and W'.

    Returns:
        (C, H', W') float32.
    """
    height, width = (side * stride for side in scores.shape[1:])
    resized = torch.empty(len(scores), *output_size, device=scores.device)
    chunk = max(1, CHUNK_ELEMENTS // max(height * width, 1))
    for start in range(0, len(scores), chunk):
        part = scores[None, start : start + chunk].float()
        part = F.interpolate(part, size=(height, width), mode="bilinear", align_corners=False)
        part = part[:, :, : image_size[0], : image_size[1]]
        if output_size != image_size:
            part = F.interpolate(part, size=output_size, mode="bilinear", align_corners=False)
        resized[start : start + chunk] = part[0]
    return resized
