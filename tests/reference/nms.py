"""Mask NMS in slow loops, written from the papers; the oracle of everything fast. Float64."""

import math

import numpy as np


def iou(a, b):
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0


def matrix_nms(masks, labels, scores, kernel="gaussian", sigma=2.0):
    """SOLOv2, equations 3 and 4, with sigma multiplied as in the published code."""

    def f(x):
        return math.exp(-sigma * x * x) if kernel == "gaussian" else 1 - x

    def same_class_iou(i, j):
        return iou(masks[i], masks[j]) if labels[i] == labels[j] else 0.0

    result = []
    for j in range(len(masks)):
        decay = 1.0
        for i in range(j):
            worst = max((same_class_iou(k, i) for k in range(i)), default=0.0)
            if f(worst) > 0:  # a mask that is itself removed removes nothing more
                decay = min(decay, f(same_class_iou(i, j)) / f(worst))
        result.append(scores[j] * decay)
    return np.array(result, dtype=np.float64)


def hard_nms(masks, labels, scores, thresh=0.5):
    """Greedy NMS."""
    kept = []
    result = np.zeros(len(masks))
    for j in range(len(masks)):
        if all(labels[i] != labels[j] or iou(masks[i], masks[j]) <= thresh for i in kept):
            kept.append(j)
            result[j] = scores[j]
    return result


def fast_nms(masks, labels, scores, thresh=0.5):
    """YOLACT, section 3.3: removed masks remove others too."""
    result = np.zeros(len(masks))
    for j in range(len(masks)):
        if all(labels[i] != labels[j] or iou(masks[i], masks[j]) <= thresh for i in range(j)):
            result[j] = scores[j]
    return result


def soft_nms(masks, labels, scores, kernel="gaussian", sigma=2.0, thresh=0.5):
    """Soft-NMS, the pseudo-code of figure 3, with sigma multiplied instead of divided by."""

    def f(x):
        if kernel == "gaussian":
            return math.exp(-sigma * x * x)
        return 1 - x if x > thresh else 1.0

    result = np.array(scores, dtype=np.float64)
    left = list(range(len(masks)))
    while left:
        best = max(left, key=lambda i: (result[i], -i))
        left.remove(best)
        for i in left:
            if labels[i] == labels[best]:
                result[i] *= f(iou(masks[best], masks[i]))
    return result
