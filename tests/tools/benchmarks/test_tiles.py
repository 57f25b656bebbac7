"""The pictures of `benchmark.py tiles` and their ground truth."""

import argparse
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from solo_d2.utils.errors import ConfigError
from tests.evaluation.made_up import images_of, rectangle
from tests.pictures import save
from tools.benchmarks.tiles import lay_out

pytestmark = pytest.mark.detectron2


def arguments(folder, **more):
    """Two images with a white object each, and one of another size."""
    annotations = []
    for key in (1, 2):
        pixels = np.zeros((20, 30, 3), np.uint8)
        pixels[5:13, 3 * key : 3 * key + 10] = 255
        save(folder / f"{key}.png", pixels)
        annotations.append(rectangle(key, (3 * key, 5, 3 * key + 10, 13), key, 4))
    images = images_of((20, 30), 1, 2, extension="png") + images_of((9, 9), 3, extension="png")
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 4, "name": "blob"}]
    (folder / "truth.json").write_text(json.dumps(content))
    options = {"cell": (20, 30), "size": (45, 65), "pictures": 2, "seed": 0, **more}
    return argparse.Namespace(truth=folder / "truth.json", images=folder, **options)


def test_objects_lie_where_their_images_are(tmp_path):
    pictures, truth = lay_out(arguments(tmp_path))
    assert [picture.shape for picture in pictures] == [(45, 65, 3)] * 2
    assert len(truth["annotations"]) == 8
    assert len({item["id"] for item in truth["annotations"]}) == 8
    for image, picture in zip(truth["images"], pictures, strict=True):
        mine = [x for x in truth["annotations"] if x["image_id"] == image["id"]]
        masks = [coco_mask.decode(item["segmentation"]) for item in mine]
        np.testing.assert_array_equal(np.max(masks, axis=0) * 255, picture[:, :, 0])
        assert [mask.sum() for mask in masks] == [item["area"] for item in mine]


def test_a_size_without_images_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--cell"):
        lay_out(arguments(tmp_path, cell=(7, 7)))
