"""The mapper: masks of every kind, images without objects, unreadable files."""

import copy
import pickle

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask
from torch._utils import ExceptionWrapper

from solo_d2.config import default_config
from solo_d2.data import SOLODatasetMapper
from solo_d2.utils.errors import ConfigError, DatasetError, UnreadableImageError

pytestmark = pytest.mark.detectron2

HEIGHT, WIDTH = 40, 60
POLYGON = [4.0, 4.0, 20.0, 4.0, 20.0, 16.0, 4.0, 16.0]


def bitmap():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4:16, 4:20] = 1
    return mask


def segmentations():
    rle = coco_mask.encode(np.asfortranarray(bitmap()))
    runs = np.diff(np.flatnonzero(np.diff(np.r_[2, bitmap().T.ravel(), 2]))).tolist()
    return {
        "polygon": [POLYGON],
        "polygon array": [np.array(POLYGON)],
        "RLE": rle,
        "RLE of text": {**rle, "counts": rle["counts"].decode()},
        "uncompressed RLE": {"size": [HEIGHT, WIDTH], "counts": runs},
        "bitmap": bitmap(),
        "bool bitmap": bitmap().astype(bool),
    }


def annotation(segmentation, **others):
    return {
        "bbox": [4.0, 4.0, 16.0, 12.0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 2,
        "iscrowd": 0,
        "segmentation": segmentation,
        **others,
    }


def config(mask_format="bitmask", size=HEIGHT, crop=False):
    cfg = default_config()
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.INPUT.MIN_SIZE_TRAIN = (size,)
    cfg.INPUT.MAX_SIZE_TRAIN = 10_000
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.CROP.ENABLED = crop
    return cfg


@pytest.fixture
def record(tmp_path):
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    return {
        "file_name": str(file),
        "height": HEIGHT,
        "width": WIDTH,
        "image_id": 1,
        "annotations": [],
    }


def test_every_kind_of_mask_gives_the_same_pixels(record):
    record["annotations"] = [annotation(segmentation) for segmentation in segmentations().values()]
    num = len(record["annotations"])
    before = copy.deepcopy(record)
    instances = SOLODatasetMapper(config())(record)["instances"]
    masks = instances.gt_masks.tensor
    assert masks.dtype == torch.bool
    assert all(np.array_equal(mask.numpy(), bitmap()) for mask in masks)
    assert instances.gt_boxes.tensor.tolist() == [[4, 4, 20, 16]] * num
    assert instances.gt_classes.tolist() == [2] * num
    assert repr(record) == repr(before)
    larger = SOLODatasetMapper(config(size=2 * HEIGHT))(record)["instances"].gt_masks.tensor
    assert larger.shape == (num, 2 * HEIGHT, 2 * WIDTH)
    assert (larger == larger[:1]).all()


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_arrays_of_annotations_are_left_as_they_are(record, mask_format):
    record["annotations"] = [
        annotation(
            [np.array(POLYGON)],
            bbox=np.array([4.0, 4.0, 20.0, 16.0]),
            bbox_mode=BoxMode.XYXY_ABS,
            keypoints=np.array([5.0, 6.0, 2.0]),
        )
    ]
    before = copy.deepcopy(record)
    cfg = config(mask_format, size=2 * HEIGHT)
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    mapper = SOLODatasetMapper(cfg)
    mapper.use_keypoint, mapper.keypoint_hflip_indices = True, np.array([0])
    for _ in range(4):
        assert mapper(record)["instances"].gt_keypoints.tensor.shape == (1, 1, 3)
        assert repr(record) == repr(before)


# A square ring of two parts, and the way in between them, as one polygon.
KEYHOLE = [*(10.0, 10, 40, 10, 40, 30, 10, 30, 10, 10), *(15, 15, 15, 25, 35, 25, 35, 15, 15, 15)]


def ring():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:30, 10:40] = 1
    mask[15:25, 15:35] = 0
    return coco_mask.encode(np.asfortranarray(mask))


def test_equals_detectron2s_mapper_where_that_works(record):
    cfg = config(size=3 * HEIGHT // 2)
    cfg.MODEL.MASK_ON = True
    triangle = [10.0, 5.5, 50.2, 20.0, 15.0, 39.0]
    kinds = segmentations()
    record["annotations"] = [annotation(kinds[key]) for key in ("polygon", "RLE", "RLE of text")]
    record["annotations"] += [annotation(s) for s in (ring(), [KEYHOLE], [POLYGON, triangle])]
    record["annotations"].append(annotation([triangle], bbox=[10.0, 5.5, 40.2, 33.5]))
    ours, theirs = SOLODatasetMapper(cfg)(record), DatasetMapper(cfg)(record)
    assert torch.equal(ours["image"], theirs["image"])
    for field in ("gt_masks", "gt_boxes"):
        found, expected = (getattr(r["instances"], field).tensor for r in (ours, theirs))
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("mask_format", "crop"), [("bitmask", False), ("bitmask", True), ("polygon", False)]
)
@pytest.mark.parametrize(
    "annotations",
    [
        None,
        [],
        [annotation([POLYGON], iscrowd=1)],
        [annotation([[1.0, 1.0, 5.0, 5.0]])],
        [annotation([[1.0, 1.0, 5.0, 5.0, 9.0, 9.0]])],
    ],
)
def test_an_image_without_objects_has_empty_instances(record, mask_format, crop, annotations):
    record["annotations"] = annotations
    if annotations is None:
        del record["annotations"]
    sample = SOLODatasetMapper(config(mask_format, crop=crop))(record)
    instances = sample["instances"]
    height, width = sample["image"].shape[1:]
    assert instances.image_size == (height, width)
    assert len(instances) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.dtype == torch.int64
    if mask_format == "bitmask":
        assert isinstance(instances.gt_masks, BitMasks)
        assert instances.gt_masks.tensor.shape == (0, height, width)
        assert instances.gt_masks.tensor.dtype == torch.bool
    else:
        assert isinstance(instances.gt_masks, PolygonMasks)


def test_cropped_polygons_and_bitmaps_agree_and_boxes_are_tight(record):
    outside = annotation([[value + 100 for value in POLYGON]], bbox=[104.0, 104.0, 16.0, 12.0])
    record["annotations"] = [annotation([POLYGON]), outside, annotation(bitmap())]
    mapper = SOLODatasetMapper(config(crop=True))
    mapper.augmentations = T.AugmentationList([T.CropTransform(10, 8, 30, 20)])
    instances = mapper(record)["instances"]
    for mask in instances.gt_masks.tensor:
        assert np.array_equal(mask.numpy(), bitmap()[8:28, 10:40])
    assert instances.gt_boxes.tensor.tolist() == [[0, 0, 10, 8]] * 2


def test_boxes_that_are_none_come_from_the_mask(record):
    record["annotations"] = [annotation([POLYGON], bbox=[4.0, 4.0, 0.0, 12.0])]
    del (without := annotation([POLYGON]))["bbox"]
    record["annotations"].append(without)
    instances = SOLODatasetMapper(config())(record)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[4, 4, 20, 16]] * 2


def test_in_inference_annotations_are_dropped(record):
    record["annotations"] = [annotation(7)]
    sample = SOLODatasetMapper(config(), is_train=False)(record)
    assert "instances" not in sample
    assert "annotations" not in sample


@pytest.mark.parametrize(
    ("others", "message"),
    [
        *(
            ({"segmentation": segmentation, "id": 31}, f"annotation 31: .*'{key}'")
            for segmentation, key in (
                (None, "segmentation"),
                (3, "segmentation"),
                ({"size": [9, 9], "counts": [81]}, "size"),
                (np.ones((9, 9), np.uint8), "size"),
            )
        ),
        ({"segmentation": 3}, "annotation number 1 of the image: "),
        ({"category_id": 10**30}, "the annotations cannot be used: "),
        ({"category_id": None}, "the annotations cannot be used: "),
        ({"bbox": "wide", "bbox_mode": 0}, "the annotations cannot be used: "),
    ],
)
def test_a_bad_annotation_is_named(record, others, message):
    record["annotations"] = [annotation([POLYGON]), {**annotation([POLYGON]), **others}]
    with pytest.raises(DatasetError, match=rf"a\.png: {message}"):
        SOLODatasetMapper(config())(record)


def truncated():
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    data = cv2.imencode(".jpg", pixels)[1].tobytes()
    return data[: len(data) // 2]


# What the message says of a content; all kinds: tests/utils/test_images.py.
DAMAGES = {"truncated": truncated(), "No such file": None}


@pytest.mark.parametrize("message", DAMAGES)
@pytest.mark.parametrize("is_train", [True, False])
def test_an_unreadable_image_is_named(record, tmp_path, message, is_train):
    (tmp_path / "a.png").unlink()
    if content := DAMAGES[message]:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadableImageError, match=rf"a\.png cannot be read: .*{message}") as error:
        SOLODatasetMapper(config(), is_train)(record)
    assert error.value.file == record["file_name"]
    assert message in error.value.reason
    assert str(error.value).count(record["file_name"]) == 1


def test_the_config_says_how_many_pixels_are_read(record):
    cfg = config()
    cfg.INPUT.MAX_PIXELS = HEIGHT * WIDTH
    SOLODatasetMapper(cfg)(record)
    cfg.INPUT.MAX_PIXELS -= 1
    with pytest.raises(UnreadableImageError, match=r"limit of 2399.* allow more by INPUT\.MAX_PIX"):
        SOLODatasetMapper(cfg)(record)


def test_an_image_of_another_size_is_another_error(record):
    cv2.imwrite(record["file_name"], np.zeros((WIDTH, HEIGHT, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"a\.png has 60 x 40 pixels .* says 40 x 60") as error:
        SOLODatasetMapper(config())(record)
    assert not isinstance(error.value, UnreadableImageError)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_channels_come_in_the_order_of_the_config(record, image_format):
    cv2.imwrite(record["file_name"], np.full((HEIGHT, WIDTH, 3), (10, 20, 30), np.uint8))  # BGR
    cfg = config()
    cfg.INPUT.FORMAT = image_format
    image = SOLODatasetMapper(cfg)(record)["image"]
    assert image[:, 0, 0].tolist() == ([10, 20, 30] if image_format == "BGR" else [30, 20, 10])


@pytest.mark.parametrize("image_format", ["L", "YUV-BT.601"])
def test_other_formats_are_refused(image_format):
    cfg = config()
    cfg.INPUT.FORMAT = image_format
    with pytest.raises(ConfigError, match=f"INPUT.FORMAT is '{image_format}'.*'BGR', 'RGB'"):
        SOLODatasetMapper(cfg)


def test_the_message_survives_a_worker_of_the_loader(record, tmp_path):
    (tmp_path / "a.png").write_bytes(truncated())
    with pytest.raises(DatasetError) as error:
        SOLODatasetMapper(config())(record)
    sent = pickle.dumps(ExceptionWrapper((error.type, error.value, error.tb), "in a worker"))
    with pytest.raises(DatasetError, match=r"a\.png cannot be read: truncated or damaged"):
        pickle.loads(sent).reraise()


# --- stuff maps


STUFF = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) // 7 % 6
STUFF[:, -4:] = 255


def panoptic_config(**options):
    cfg = config(**options)
    cfg.MODEL.META_ARCHITECTURE = "PanopticSOLO"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 6
    return cfg


@pytest.fixture
def panoptic_record(record, tmp_path):
    cv2.imwrite(str(tmp_path / "stuff.png"), STUFF.astype(np.uint8))
    # The image shows its labels, so that both can be compared after any transform.
    cv2.imwrite(record["file_name"], np.repeat(STUFF[..., None], 3, axis=2).astype(np.uint8))
    return {**record, "sem_seg_file_name": str(tmp_path / "stuff.png")}


def test_stuff_is_read_for_training_a_panoptic_model_alone(panoptic_record, tmp_path):
    sample = SOLODatasetMapper(panoptic_config())(panoptic_record)
    assert sample["sem_seg"].dtype == torch.int64
    assert np.array_equal(sample["sem_seg"].numpy(), STUFF)
    assert len(sample["instances"]) == 0
    (tmp_path / "stuff.png").unlink()
    for mapper in (SOLODatasetMapper(config()), SOLODatasetMapper(panoptic_config(), False)):
        assert "sem_seg" not in mapper(panoptic_record)


def test_stuff_is_moved_with_the_image(panoptic_record):
    transforms = [T.HFlipTransform(WIDTH), T.ResizeTransform(HEIGHT, WIDTH, 2 * HEIGHT, 2 * WIDTH)]
    transforms.append(T.CropTransform(11, 7, 50, 30))
    mapper = SOLODatasetMapper(panoptic_config())
    mapper.augmentations = T.AugmentationList(transforms)
    sample = mapper(panoptic_record)
    expected = STUFF[:, ::-1].repeat(2, axis=0).repeat(2, axis=1)[7:37, 11:61]
    assert np.array_equal(sample["sem_seg"].numpy(), expected)
    assert sample["sem_seg"].shape == sample["image"].shape[1:]


def test_exif_does_not_turn_a_stuff_map(panoptic_record):
    """Evaluation and conversion read label maps as they are stored, too."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    stuff = Image.fromarray(STUFF.astype(np.uint8))
    stuff.save(panoptic_record["sem_seg_file_name"], exif=exif)
    sample = SOLODatasetMapper(panoptic_config())(panoptic_record)
    assert np.array_equal(sample["sem_seg"].numpy(), STUFF)


def test_the_configs_own_augmentation_keeps_stuff_on_the_image(panoptic_record):
    halves = np.where(np.arange(WIDTH) < WIDTH // 2, 1, 4).astype(np.uint8)[None].repeat(HEIGHT, 0)
    cv2.imwrite(panoptic_record["sem_seg_file_name"], halves)
    cv2.imwrite(panoptic_record["file_name"], halves[..., None].repeat(3, axis=2))
    cfg = panoptic_config(crop=True)
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    mapper = SOLODatasetMapper(cfg)
    corners = set()
    for seed in range(8):
        np.random.seed(seed)
        sample = mapper(panoptic_record)
        # Only at the border are they interpolated differently.
        assert (sample["image"][0] == sample["sem_seg"]).float().mean() > 0.9
        corners.add(int(sample["sem_seg"][0, 0]))
    assert corners == {1, 4}  # flipped and not


def png(pixels):
    return cv2.imencode(".png", pixels.astype(np.uint8))[1].tobytes()


STUFF_DAMAGES = {
    "missing": (None, "stuff map of .*a.png, is missing"),
    "empty": (b"", "stuff map of .*a.png, cannot be read: Unident"),
    "truncated": (png(STUFF)[:90], "cannot be read: "),
    "size": (png(np.zeros((WIDTH, HEIGHT))), "has 60 x 40 pixels .* 40 x 60"),
    "colour": (png(np.zeros((HEIGHT, WIDTH, 3))), "has the mode 'RGB'"),
    "label": (png(np.full((HEIGHT, WIDTH), 6)), r"has the label 6, .* \(0 to 5, 255"),
}


@pytest.mark.parametrize("case", STUFF_DAMAGES)
def test_an_unusable_stuff_map_is_named(panoptic_record, tmp_path, case):
    content, message = STUFF_DAMAGES[case]
    (tmp_path / "stuff.png").unlink()
    if content is not None:
        (tmp_path / "stuff.png").write_bytes(content)
    with pytest.raises(DatasetError, match=rf"stuff\.png.*{message}") as caught:
        SOLODatasetMapper(panoptic_config())(panoptic_record)
    assert "\n" not in str(caught.value)
    del panoptic_record["sem_seg_file_name"]
    with pytest.raises(DatasetError, match=r"a\.png has no stuff map \(sem_seg_file_name\)"):
        SOLODatasetMapper(panoptic_config())(panoptic_record)


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
@pytest.mark.parametrize("size", [(1, 1), (5, 1), (1, 5)])
def test_images_one_pixel_wide_are_flipped(panoptic_record, size, mask_format):
    """NumPy takes such a mirrored array for contiguous, torch does not."""
    height, width = size
    cv2.imwrite(panoptic_record["file_name"], np.full((*size, 3), 90, np.uint8))
    cv2.imwrite(panoptic_record["sem_seg_file_name"], np.full(size, 3, np.uint8))
    square = [0.0, 0.0, width, 0.0, width, height, 0.0, height]
    masks = {"polygon": [square], "bitmask": np.ones(size, np.uint8)}
    thin = annotation(masks[mask_format], bbox=[0.0, 0.0, width, height])
    mapper = SOLODatasetMapper(panoptic_config(mask_format=mask_format))
    mapper.augmentations = T.AugmentationList([T.RandomFlip(prob=1.0)])
    sample = mapper({**panoptic_record, "height": height, "width": width, "annotations": [thin]})
    assert sample["image"].shape == (3, *size)
    assert (sample["sem_seg"] == 3).all()
    assert len(sample["instances"]) == 1
