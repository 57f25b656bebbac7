"""Copy-paste: exact small cases, what is drawn at random, and the same samples after a resume."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BitMasks, Boxes, Instances

from solo_d2.config import default_config
from solo_d2.data import SOLODatasetMapper
from solo_d2.data.copy_paste import CopyPaste, paste_instances, wrap_with_copy_paste
from solo_d2.engine.training_data import build_train_loader
from solo_d2.utils.errors import ConfigError, DatasetError
from tests.evaluation.made_up import rectangle
from tests.pictures import picture, save

pytestmark = pytest.mark.detectron2


def sample(rows, masks, boxes, classes, value, **others):
    """A training sample: masks as pictures, one text for each."""
    shape = len(rows), len(rows[0])
    tensor = torch.tensor([[[c == "x" for c in row] for row in mask] for mask in masks])
    instances = Instances(
        shape,
        gt_masks=BitMasks(tensor.reshape(-1, *shape).bool()),
        gt_boxes=Boxes(torch.tensor(boxes).float().reshape(-1, 4)),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
    )
    image = torch.full((3, *shape), value, dtype=torch.uint8)
    return {"image": image, "instances": instances, **others}


def below(**others):
    masks = [["xx..", "xx..", "...."], ["....", "...x", "...x"], ["..x.", "....", "...."]]
    boxes = [[0, 0, 2, 2], [2.9, 1.1, 4, 3], [2, 0, 3, 1]]
    return sample(["...."] * 3, masks, boxes, [5, 6, 7], 10, **others)


def above():
    first, second = [".xx", ".xx", "...", "xxx"], ["...", "...", "...", "x.."]
    masks = [first, second, ["x..", "...", ".x.", "..."]]
    boxes = [[0, 0, 3, 4], [0, 3, 1, 4], [0, 0, 2, 3]]
    return sample(["..."] * 4, masks, boxes, [1, 2, 3], 90)


def test_a_case_by_hand():
    target, source = below(), above()
    before = target["image"].clone(), target["instances"].gt_masks.tensor.clone()
    result = paste_instances(target, source, torch.tensor([True, True, False]))
    instances = result["instances"]
    # The object of class 7 is hidden, the pasted one of class 2 is below the image; what is left of
    # class 5 has a new box, the untouched one of class 6 keeps its own.
    assert instances.gt_classes.tolist() == [5, 6, 1]
    boxes = torch.tensor([[0, 0, 1, 2], [2.9, 1.1, 4, 3], [1, 0, 3, 2]])
    assert torch.equal(instances.gt_boxes.tensor, boxes)
    expected = [["x...", "x...", "...."], ["....", "...x", "...x"], [".xx.", ".xx.", "...."]]
    found = [
        ["".join(".x"[v] for v in row) for row in mask] for mask in instances.gt_masks.tensor.int()
    ]
    assert found == expected
    pasted = instances.gt_masks.tensor[2]
    assert (result["image"][:, pasted] == 90).all()
    assert (result["image"][:, ~pasted] == 10).all()
    assert instances.image_size == (3, 4)
    # What came in is as it was.
    assert torch.equal(target["image"], before[0])
    assert torch.equal(target["instances"].gt_masks.tensor, before[1])


def test_stuff_below_becomes_things():
    stuff = torch.full((3, 4), 7)
    result = paste_instances(below(sem_seg=stuff), above(), torch.tensor([False, False, True]))
    expected = stuff.clone()
    expected[0, 0] = expected[2, 1] = 0
    assert torch.equal(result["sem_seg"], expected)
    assert (stuff == 7).all()


@pytest.mark.parametrize("chosen", [[False] * 3, [False, True, False]])
def test_nothing_to_see_changes_nothing(chosen):
    target = below()
    assert paste_instances(target, above(), torch.tensor(chosen)) is target


def test_onto_and_from_images_without_objects():
    empty = sample(["..."] * 4, [], [], [], 3)
    assert len(empty["instances"]) == 0
    result = paste_instances(empty, above(), torch.ones(3, dtype=torch.bool))
    assert result["instances"].gt_classes.tolist() == [1, 2, 3]
    target = below()
    assert paste_instances(target, empty, torch.zeros(0, dtype=torch.bool)) is target


def test_probabilities_and_the_choice_of_the_other_image():
    others = []

    def mapper(index):
        if index < 0:
            return below()
        others.append(index)
        return above()

    np.random.seed(0)
    paste = CopyPaste(mapper, range(5), prob=0.6, instance_prob=0.25)
    pasted = [x for _ in range(400) for x in paste(-1)["instances"].gt_classes.tolist()]
    assert 200 < len(others) < 280
    assert set(others) == set(range(5))
    assert 40 < pasted.count(1) < 80  # a quarter of 240
    assert 40 < pasted.count(3) < 80


def config(*overrides):
    cfg = default_config()
    cfg.INPUT.MIN_SIZE_TRAIN = (32, 40)
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2, "SEED", 3])
    cfg.merge_from_list(list(overrides))
    return cfg


def test_off_by_default_and_checked():
    assert wrap_with_copy_paste(config(), len, []) is len
    with pytest.raises(ConfigError, match="INPUT.COPY_PASTE.PROB is 1.5"):
        wrap_with_copy_paste(config("INPUT.COPY_PASTE.PROB", 1.5), len, [])


@pytest.fixture
def dataset(tmp_path):
    """A registered data set of four small images with two objects each."""
    records = []
    for index in range(4):
        file = save(tmp_path / f"{index}.png", picture(32, 48, seed=index))
        boxes = [(2 + 3 * index, 4, 14 + 3 * index, 14), (20, 8 + index, 40, 23 + index)]
        annotations = [rectangle(1, box, 1, key, bbox_mode=1) for key, box in enumerate(boxes)]
        common = {"file_name": str(file), "height": 32, "width": 48, "image_id": index}
        records.append({**common, "annotations": annotations})
    DatasetCatalog.register("test_copy_paste", lambda: records)
    return "test_copy_paste"


def batches(cfg, start, count):
    loader = build_train_loader(cfg, SOLODatasetMapper(cfg, is_train=True))
    loader.batch_sampler.start_batch = start
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


def assert_same(found, expected):
    for ours, theirs in zip(sum(found, []), sum(expected, []), strict=True):
        assert torch.equal(ours["image"], theirs["image"])
        for key in ("gt_masks", "gt_boxes"):
            mine, other = (sample["instances"].get(key).tensor for sample in (ours, theirs))
            assert torch.equal(mine, other)


@pytest.mark.parametrize(("jitter", "workers"), [(False, 2), (True, 0)])
def test_a_resumed_loader_goes_on_with_the_same_samples(dataset, jitter, workers):
    cfg = config("INPUT.COPY_PASTE.PROB", 0.7, "INPUT.LSJ.ENABLED", jitter, "INPUT.LSJ.SIZE", 64)
    cfg.DATASETS.TRAIN = (dataset,)
    whole = batches(cfg, 0, 6)
    cfg.DATALOADER.NUM_WORKERS = workers
    assert_same(batches(cfg, 3, 3), whole[3:])
    cfg.merge_from_list(["INPUT.COPY_PASTE.PROB", 0.0, "DATALOADER.NUM_WORKERS", 0])
    most = max(len(s["instances"]) for batch in whole for s in batch)
    assert most > 2 >= max(len(s["instances"]) for batch in batches(cfg, 0, 6) for s in batch)


def test_a_data_set_without_objects_is_named(dataset):
    cfg = config()
    cfg.DATASETS.TRAIN = (dataset,)
    for record in DatasetCatalog.get(dataset):
        record["annotations"] = []
    with pytest.raises(DatasetError, match="'test_copy_paste': none of the 4 images has an"):
        batches(cfg, 0, 1)
