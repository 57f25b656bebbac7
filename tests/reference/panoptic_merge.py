"""The panoptic merge in slow loops, written from Panoptic FPN (arXiv:1901.02446), section 4.1."""


def merge_panoptic(
    masks, scores, classes, semantic, overlap_thresh, stuff_area_limit, score_thresh
):
    """Pixels by pixel on nested lists; segments as (isthing, category, index or area)."""
    height, width = len(semantic), len(semantic[0])
    result = {(y, x): 0 for y in range(height) for x in range(width)}
    segments = []
    # "we sort the instances by confidence and remove those of low score"
    for score, n in sorted(((-score, n) for n, score in enumerate(scores))):
        if -score < score_thresh:
            continue
        pixels = {(y, x) for y, x in result if masks[n][y][x]}
        free = {pixel for pixel in pixels if result[pixel] == 0}
        # "if a sufficient share remains, accept the rest"
        if not free or (len(pixels) - len(free)) / len(pixels) > overlap_thresh:
            continue
        segments.append((True, classes[n], n))
        result.update(dict.fromkeys(free, len(segments)))
    # "resolve overlaps between instances and stuff in favour of instances", drop small stuff
    for label in sorted({label for row in semantic for label in row} - {0}):
        free = {(y, x) for (y, x), i in result.items() if i == 0 and semantic[y][x] == label}
        if len(free) >= max(stuff_area_limit, 1):
            segments.append((False, label, len(free)))
            result.update(dict.fromkeys(free, len(segments)))
    return [[result[y, x] for x in range(width)] for y in range(height)], segments
