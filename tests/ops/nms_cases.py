"""Input for the tests of mask NMS."""

import torch

from solo_d2.ops.fast_nms import fast_nms
from solo_d2.ops.hard_nms import hard_nms
from solo_d2.ops.matrix_nms import matrix_nms
from solo_d2.ops.soft_nms import soft_nms
from tests.golden import load_golden
from tests.reference import nms as reference

GOLDEN = load_golden("matrix_nms")
# Of Matrix NMS, by the names of their published scores.
VARIANTS = {
    "gaussian": {"kernel": "gaussian", "sigma": 2.0},
    "gaussian_sigma0.5": {"kernel": "gaussian", "sigma": 0.5},
    "linear": {"kernel": "linear"},
}
# Function, its reference, its parameters.
FAMILY = {
    "matrix-gaussian": (matrix_nms, reference.matrix_nms, {"kernel": "gaussian", "sigma": 1.5}),
    "matrix-linear": (matrix_nms, reference.matrix_nms, {"kernel": "linear"}),
    "hard": (hard_nms, reference.hard_nms, {"thresh": 0.3}),
    "soft-gaussian": (soft_nms, reference.soft_nms, {"kernel": "gaussian", "sigma": 1.5}),
    "soft-linear": (soft_nms, reference.soft_nms, {"kernel": "linear", "thresh": 0.3}),
    "fast": (fast_nms, reference.fast_nms, {}),
}


def golden_case(case):
    return [GOLDEN[f"{case}_{name}"] for name in ("masks", "labels", "scores")]


def random_case(num, seed, height=13, width=7, classes=2):
    """Overlapping diamonds, some of them empty, some identical, some scores equal."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(num, 2, generator=generator) * torch.tensor([height, width])
    radius = torch.rand(num, 1, 1, generator=generator) * height / 2
    y = (torch.arange(height) - centers[:, :1]).abs()[:, :, None]
    x = (torch.arange(width) - centers[:, 1:]).abs()[:, None, :]
    masks = y + x < radius
    if num:
        again = torch.rand(num, generator=generator) < 0.2
        masks[again] = masks[torch.randint(num, (int(again.sum()),), generator=generator)]
    labels = torch.randint(classes, (num,), generator=generator)
    scores = torch.rand(num, generator=generator)
    tied = torch.rand(num, generator=generator) < 0.2
    scores[tied] = (scores[tied] * 4).round() / 4
    return masks, labels, scores.sort(descending=True).values
