"""Matrix NMS with the signatures of AdelaiDet and mmdetection, for code written for them.

Scores come from `solo_d2.ops.matrix_nms`, so they are finite where the published functions divide
0 by 0 (empty masks, exact duplicates with the linear kernel).

Shape letters: M masks, N results, H and W rows and columns.
"""

from torch import Tensor

from solo_d2.ops import matrix_nms as ours


def matrix_nms(
    labels: Tensor,
    masks: Tensor,
    sum_masks: Tensor | None,
    scores: Tensor,
    sigma: float = 2.0,
    kernel: str = "gaussian",
) -> Tensor:
    """Run Matrix NMS with the signature of AdelaiDet's `matrix_nms`.

    Args:
        labels: (M,) integers.
        masks: (M, H, W), best first: bool, or numbers that are 0 outside the mask.
        sum_masks: (M,) areas; None: counted from the masks.
        scores: (M,) float, non-increasing.
        sigma: see `solo_d2.ops.matrix_nms`.
        kernel: "gaussian" or "linear"; anything else raises ValueError.

    Returns:
        (M,) float32, the new scores in input order; (0,) for no masks, where AdelaiDet returns [].

    Raises:
        ValueError: the numbers of labels, areas, scores and masks differ.
    """
    return ours.matrix_nms(masks != 0, labels, scores, kernel=kernel, sigma=sigma, areas=sum_masks)


def mask_matrix_nms(
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    filter_thr: float = -1,
    nms_pre: int = -1,
    max_num: int = -1,
    kernel: str = "gaussian",
    sigma: float = 2.0,
    mask_area: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run Matrix NMS with the signature of mmdetection's `mask_matrix_nms`.

    Args:
        masks: (M, H, W) in any order: bool, or numbers that are 0 outside the mask.
        labels: (M,) integers.
        scores: (M,) float.
        filter_thr: minimum new score of a result; no limit if not above 0.
        nms_pre: maximum number of masks that enter NMS, by score; no limit if not above 0.
        max_num: maximum number of results; no limit if not above 0.
        kernel: "gaussian" or "linear"; anything else raises ValueError.
        sigma: see `solo_d2.ops.matrix_nms`.
        mask_area: as `sum_masks` of `matrix_nms`.

    Returns:
        Best first: (N,) new scores, (N,) labels, (N, H, W) masks as given, and (N,) int64, the
        index of each in the input. Ties keep their order.

    Raises:
        ValueError: the numbers of labels, areas, scores and masks differ.
    """
    if not len(masks) == len(labels) == len(scores):
        raise ValueError(f"{len(masks)} masks, {len(labels)} labels, {len(scores)} scores")
    if mask_area is not None and len(mask_area) != len(masks):
        raise ValueError(f"{len(masks)} masks need as many areas, not {len(mask_area)}")
    index = scores.argsort(descending=True, stable=True)
    if nms_pre > 0:
        index = index[:nms_pre]
    new_scores = ours.matrix_nms(
        masks[index] != 0,
        labels[index],
        scores[index],
        kernel=kernel,
        sigma=sigma,
        areas=None if mask_area is None else mask_area[index],
    )
    if filter_thr > 0:
        keep = new_scores >= filter_thr
        index, new_scores = index[keep], new_scores[keep]
    new_scores, order = new_scores.sort(descending=True, stable=True)
    if max_num > 0:
        new_scores, order = new_scores[:max_num], order[:max_num]
    index = index[order]
    return new_scores, labels[index], masks[index], index
