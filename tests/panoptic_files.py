"""A hand-made data set in COCO's panoptic format: two images of 4 x 6 pixels, one all sky."""

import copy
import json

import numpy as np
from PIL import Image

CATEGORIES = [
    {"id": 21, "name": "sky", "isthing": 0},
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 5, "name": "dog", "isthing": 1},
    {"id": 9, "name": "grass", "isthing": 0},
]
# Ids that need one, two and all three channels; 0 is void.
SKY, CAT, CROWD = 300, 70_000, 4
IDS = np.array(
    [
        [SKY, SKY, SKY, SKY, SKY, SKY],
        [SKY, SKY, SKY, SKY, SKY, SKY],
        [CAT, CAT, CAT, CROWD, CROWD, 0],
        [CAT, CAT, CAT, CROWD, CROWD, 0],
    ]
)
# Classes by id: grass 1, sky 2; 0 all things.
STUFF_MAP = np.array([[2] * 6] * 2 + [[0] * 5 + [255]] * 2)
SEGMENTS = [
    {"id": SKY, "category_id": 21, "iscrowd": 0, "area": 12, "bbox": [0, 0, 6, 2]},
    {"id": CAT, "category_id": 3, "iscrowd": 0, "area": 6, "bbox": [0, 2, 3, 2]},
    {"id": CROWD, "category_id": 5, "iscrowd": 1, "area": 4, "bbox": [3, 2, 2, 2]},
]


def content():
    """The json: images 1 and 2."""
    return copy.deepcopy(
        {
            "images": [
                {"id": key, "file_name": f"{key}.jpg", "height": 4, "width": 6} for key in (1, 2)
            ],
            "annotations": [
                {"image_id": 1, "file_name": "1.png", "segments_info": SEGMENTS},
                {
                    "image_id": 2,
                    "file_name": "2.png",
                    "segments_info": [
                        {"id": 8, "category_id": 21, "iscrowd": 0, "area": 24, "bbox": [0, 0, 6, 4]}
                    ],
                },
            ],
            "categories": CATEGORIES,
        }
    )


def id_pixels(ids):
    """(H, W, 3) uint8 of a panoptic PNG."""
    ids = np.asarray(ids)
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def write(root, change=None):
    """Write the data set to a folder; `change(content)` edits the json first."""
    for name in ("panoptic", "images"):
        (root / name).mkdir(parents=True)
    for name, ids in (("1", IDS), ("2", np.full((4, 6), 8))):
        Image.fromarray(id_pixels(ids)).save(root / "panoptic" / f"{name}.png")
        Image.new("RGB", (6, 4), (40, 80, 120)).save(root / "images" / f"{name}.jpg")
    json_content = content()
    if change is not None:
        change(json_content)
    (root / "panoptic.json").write_text(json.dumps(json_content))
    return root
