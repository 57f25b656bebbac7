"""Tiny random models in files, with pictures for them, that find something in every image."""

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from PIL import Image

from solo_d2 import add_solo_config

ROOT = Path(__file__).resolve().parents[2]
TINY = """
MODEL.DEVICE cpu MODEL.RESNETS.DEPTH 50 MODEL.RESNETS.STEM_OUT_CHANNELS 8
MODEL.RESNETS.RES2_OUT_CHANNELS 16 MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.FPN.OUT_CHANNELS 32
MODEL.SOLO.NUM_CLASSES 7 MODEL.SOLO.HEAD.NUM_CONVS 1 MODEL.SOLO.HEAD.CONV_DIM 32
MODEL.SOLO.HEAD.PRIOR_PROB 0.7 MODEL.SOLO.MASK_FEATURE.CONV_DIM 32
MODEL.SOLO.MASK_FEATURE.OUT_CHANNELS 32 MODEL.SOLO.KEEP_THRESH_TEST 0.0
MODEL.SOLO.NMS.TYPE hard TEST.DETECTIONS_PER_IMAGE 5 INPUT.MIN_SIZE_TEST 48
INPUT.MAX_SIZE_TEST 64 MODEL.SOLO.NUM_GRIDS [8,6,5,4,3] MODEL.SOLO.PRE_NMS_TOPK 20
""".split()


NUM_LABELS = 4  # of the panoptic one


def make_cfg():
    cfg = get_cfg()
    add_solo_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/base/solov2_fpn.yaml"))
    cfg.merge_from_list([*TINY, "DATASETS.TEST", "('shapes_val',)", "DATASETS.TRAIN", "()"])
    return cfg


def panoptic_cfg():
    cfg = make_cfg()
    cfg.merge_from_file(str(ROOT / "configs/base/panoptic_fpn.yaml"))
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = NUM_LABELS
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 1
    return cfg


def save_model(folder, *, panoptic=False):
    """Write model.pth and config.yaml; returns the checkpoint."""
    cfg = panoptic_cfg() if panoptic else make_cfg()
    torch.manual_seed(0)
    built = build_model(cfg)
    if panoptic:
        torch.nn.init.normal_(built.semantic_branch.logits.weight)
        torch.nn.init.constant_(built.semantic_branch.logits.bias[2], 1.0)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": built.state_dict()}, folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "model.pth"


def arguments(checkpoint):
    """Of the demo's command line, that name the model."""
    return [
        "--config-file",
        str(checkpoint.parent / "config.yaml"),
        "--weights",
        str(checkpoint),
        "--device",
        "cpu",
    ]


def picture(height=48, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, array=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture() if array is None else array).save(path, **options)
    return path


def _png_of_size(width, height):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def bad_files(folder):
    """Name of each bad file, and what the message must say."""
    good = save(folder / "good.png").read_bytes()
    jpg = save(folder / "good.jpg", picture(200, 300)).read_bytes()
    nan = np.full((4, 4), np.nan, dtype=np.float32)
    Image.fromarray(nan).save(folder / "nan.tif")
    contents = {
        "empty.png": (b"", "empty"),
        "text.jpg": (b"no image at all", "not an image"),
        "half.png": (good[: len(good) // 2], "truncated"),
        "half.jpg": (jpg[: len(jpg) // 2], "truncated"),
        "bomb.png": (_png_of_size(20000, 20000), "limit"),
        "large.png": (_png_of_size(9000, 9000), "limit"),
        "start_a_program.png": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "not an image",
        ),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return {name: reason for name, (_, reason) in contents.items()} | {"nan.tif": "not finite"}
