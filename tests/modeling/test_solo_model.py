"""The meta-architecture: batches of all kinds, gradients, empty results, state."""

import copy
import warnings

import pytest
import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks

from solo_d2.modeling import SOLO_HEAD_REGISTRY
from tests.modeling.tiny import (
    assert_all_learn,
    image,
    losses_of,
    panoptic_config,
    tiny_config,
    tiny_model,
    with_sem_seg,
)

pytestmark = pytest.mark.detectron2


HEADS = [name for name, _ in SOLO_HEAD_REGISTRY]
BATCHES = {
    "full": lambda: [image(num=3, seed=1), image(80, 100, num=4, seed=2)],
    "half empty": lambda: [image(num=0), image(num=2, seed=3)],
    "empty": lambda: [image(num=0), image(64, 64, num=0)],
    "no mask field": lambda: [without_masks(image(num=0))],
    "objects of a pixel": lambda: [pixels(image(num=5))],
}


def without_masks(sample):
    """What Detectron2's mapper makes of an image without annotations."""
    instances = Instances(sample["instances"].image_size)
    instances.gt_boxes = sample["instances"].gt_boxes
    instances.gt_classes = sample["instances"].gt_classes
    return {**sample, "instances": instances}


def pixels(sample):
    masks = sample["instances"].gt_masks.tensor
    masks.zero_()
    for n, mask in enumerate(masks):
        mask[10 * n, 20 * n] = True
    sample["instances"].gt_boxes = sample["instances"].gt_masks.get_bounding_boxes()
    return sample


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("batch", BATCHES)
def test_every_batch_trains_every_parameter(head, batch):
    model = tiny_model(tiny_config(head))
    losses, _ = losses_of(model, BATCHES[batch]())
    assert set(losses) == {"loss_cls", "loss_mask"}
    assert all(loss.isfinite() for loss in losses.values())
    assert_all_learn(model, losses)


def test_polygons_give_the_losses_of_their_bitmaps():
    sample = image(num=0)
    polygons = PolygonMasks([[[10.0, 10, 70, 10, 70, 60, 10, 60]], [[80.0, 5, 120, 5, 100, 80]]])
    instances = Instances(sample["instances"].image_size)
    instances.gt_boxes = polygons.get_bounding_boxes()
    instances.gt_classes = torch.tensor([0, 3])
    instances.gt_masks = polygons
    bitmaps = copy.deepcopy(instances)
    bitmaps.gt_masks = BitMasks.from_polygon_masks(polygons.polygons, *instances.image_size)
    model = tiny_model()
    first, _ = losses_of(model, [{**sample, "instances": instances}])
    second, _ = losses_of(model, [{**sample, "instances": bitmaps}])
    assert first == second
    assert first["loss_mask"] > 0


def test_counts_are_in_the_event_storage():
    sample = image(num=2, seed=1)
    twice = Instances.cat([sample["instances"], sample["instances"]])
    _, storage = losses_of(tiny_model(), [{**sample, "instances": twice}])
    latest = {name: value for name, (value, _) in storage.latest().items()}
    positive, samples = latest["targets/num_positive_cells"], latest["targets/num_mask_samples"]
    assert samples == 2 * positive > 0
    assert latest["targets/num_cell_conflicts"] == positive


@pytest.mark.parametrize("head", HEADS)
def test_padding_moves_no_mask(head):
    """An image in a batch gives what it gives alone, with its padding as part of the image."""
    model = tiny_model(tiny_config(head), sure=True).eval()
    small, large = image(64, 96, seed=1), image(128, 192, seed=2)
    whole = model.pixel_mean.expand(3, 128, 192).clone()
    whole[:, :64, :96] = small["image"]
    with torch.no_grad():
        batched = [x["instances"] for x in model([small, large])]
        padded, alone = (model([x])[0]["instances"] for x in ({"image": whole}, large))
    assert batched[0].image_size == (64, 96)
    assert len(batched[0]) > 0
    torch.testing.assert_close(batched[0].scores, padded.scores)
    assert (batched[0].pred_masks != padded.pred_masks[:, :64, :96]).float().mean() < 1e-4
    torch.testing.assert_close(batched[1].scores, alone.scores)
    assert (batched[1].pred_masks != alone.pred_masks).float().mean() < 1e-4


def test_nothing_found():
    model = tiny_model().eval()
    with torch.no_grad():
        instances = model([image(70, 90)])[0]["instances"]
    assert len(instances) == 0
    assert instances.pred_masks.shape == (0, 70, 90)
    assert instances.pred_masks.dtype == torch.bool
    assert instances.pred_boxes.tensor.shape == (0, 4)
    assert instances.pred_classes.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make_config", [tiny_config, panoptic_config])
def test_autocast(make_config, dtype):
    model, batch = tiny_model(make_config(), sure=True), [with_sem_seg(image(64, 64))]  # slow
    with torch.autocast("cpu", dtype=dtype), torch.no_grad():
        losses, _ = losses_of(model, batch)
        (result,) = model.eval()(batch)
    assert all(x.dtype == torch.float32 and x.isfinite() for x in losses.values())
    assert result["instances"].scores.dtype == torch.float32
    assert result.get("sem_seg", result["instances"].scores).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("head", HEADS)
def test_a_step_waits_for_the_device_once(head):
    cfg = tiny_config(head)
    cfg.MODEL.DEVICE = "cuda"
    model = tiny_model(cfg)
    batch = [x | {"instances": x["instances"].to("cuda")} for x in BATCHES["full"]()]
    for _ in range(2):  # the first step also sets things up
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            losses, _ = losses_of(model, batch)
            sum(losses.values()).backward()
            torch.cuda.set_sync_debug_mode("default")
    assert sum("called a synchronizing" in str(warning.message) for warning in caught) <= 1


def test_pictures_of_training():
    cfg = tiny_config()
    cfg.VIS_PERIOD = 1
    model = tiny_model(cfg, sure=True)
    for batch in (BATCHES["full"](), BATCHES["no mask field"]()):
        _, storage = losses_of(model, batch)
        name, picture, _ = storage._vis_data[0]
        assert picture.shape == (3, 96, 256)
        assert "ground truth" in name
