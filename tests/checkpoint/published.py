"""Names and shapes of published checkpoints, filled with random values.

The names are those of the published files, written out here again, not made from our tables.
Networks are narrow, or as wide as the published ones within `width_of`.
"""

import contextlib
from types import SimpleNamespace

import torch

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# Channels of stem, first bottleneck (inside and out), pyramid, towers, mask feature, E; groups of
# the 3x3 convolutions of bottlenecks. GroupNorm has 32 groups.
NARROW = {
    "stem": 16,
    "mid": 8,
    "out": 32,
    "fpn": 32,
    "head": 32,
    "feature": 32,
    "e": 32,
    "groups": 1,
}
WIDTH = SimpleNamespace(**NARROW)
GRIDS = [40, 36, 24, 16, 12]
CLASSES = 80
NORM = ("weight", "bias", "running_mean", "running_var")


@contextlib.contextmanager
def width_of(**widths):
    """As wide as published: towers of SOLO by default."""
    wide = {"stem": 64, "mid": 64, "out": 256, "fpn": 256, "head": 256, "feature": 128, "e": 256}
    WIDTH.__dict__.update(wide | widths)
    try:
        yield
    finally:
        WIDTH.__dict__.update(NARROW)


def values(shapes):
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(1000)
        elif len(shape) == 4:
            state[name] = 0.1 * torch.randn(shape, generator=generator)
        else:
            state[name] = 0.5 + torch.rand(shape, generator=generator)
    return state


def resnet_convs(depth):
    """(stage from 1, block, convolution, shape, shape of the downsampling or None)."""
    channels = 64 if depth < 50 else WIDTH.stem
    for stage, blocks in enumerate(BLOCKS[depth], 1):
        mid, out = (
            x * 2 ** (stage - 1) for x in ((64, 64) if depth < 50 else (WIDTH.mid, WIDTH.out))
        )
        for block in range(blocks):
            if depth < 50:
                convs = [(mid, channels, 3, 3), (mid, mid, 3, 3)]
            else:
                grouped = (mid, mid // WIDTH.groups, 3, 3)
                convs = [(mid, channels, 1, 1), grouped, (out, mid, 1, 1)]
            yield stage, block, convs, (out, channels, 1, 1) if channels != out else None
            channels = out


def batch_norm(name, channels):
    return {f"{name}.{part}": (channels,) for part in NORM} | {f"{name}.num_batches_tracked": ()}


def torchvision_resnet(depth, prefix="", offsets=0, beside=False):
    """torchvision's and mmcv's; with `offsets` channels in the deformable layer2 to layer4."""
    stem = 64 if depth < 50 else WIDTH.stem
    shapes = {f"{prefix}conv1.weight": (stem, 3, 7, 7)} | batch_norm(f"{prefix}bn1", stem)
    for stage, block, convs, down in resnet_convs(depth):
        at = f"{prefix}layer{stage}.{block}."
        for i, shape in enumerate(convs, 1):
            shapes[f"{at}conv{i}.weight"] = shape
            shapes |= batch_norm(f"{at}bn{i}", shape[0])
        if offsets and stage > 1:
            name = f"{at}conv2_offset" if beside else f"{at}conv2.conv_offset"
            shapes[f"{name}.weight"] = (offsets, convs[0][0], 3, 3)
            shapes[f"{name}.bias"] = (offsets,)
        if down:
            shapes[f"{at}downsample.0.weight"] = down
            shapes |= batch_norm(f"{at}downsample.1", down[0])
    return shapes


def detectron2_resnet(depth, prefix=""):
    shapes = {f"{prefix}stem.conv1.weight": (WIDTH.stem, 3, 7, 7)}
    shapes |= {f"{prefix}stem.conv1.norm.{part}": (WIDTH.stem,) for part in NORM}
    for stage, block, convs, down in resnet_convs(depth):
        named = {f"conv{i}": shape for i, shape in enumerate(convs, 1)}
        for conv, shape in {**named, **({"shortcut": down} if down else {})}.items():
            name = f"{prefix}res{stage + 1}.{block}.{conv}"
            shapes[f"{name}.weight"] = shape
            shapes |= {f"{name}.norm.{part}": shape[:1] for part in NORM}
    return shapes


def caffe2_resnet(depth):
    shapes = {"conv1_w": (16, 3, 7, 7), "res_conv1_bn_s": (16,), "res_conv1_bn_b": (16,)}
    shapes |= {"conv1_b": (16,), "fc1000_w": (1000, 256), "fc1000_b": (1000,)}
    for stage, block, convs, down in resnet_convs(depth):
        named = dict(zip(("2a", "2b", "2c"), convs, strict=True)) | ({"1": down} if down else {})
        for branch, shape in named.items():
            name = f"res{stage + 1}_{block}_branch{branch}"
            shapes |= {f"{name}_w": shape, f"{name}_bn_s": shape[:1], f"{name}_bn_b": shape[:1]}
    return shapes


def conv(name, shape, norm=""):
    """A convolution with a bias, or with GroupNorm of another name."""
    weights = {f"{name}.weight": shape, f"{norm or name}.bias": shape[:1]}
    return weights | ({f"{norm}.weight": shape[:1]} if norm else {})


def neck(depth, lateral="neck.lateral_convs.{}.conv", output="neck.fpn_convs.{}.conv", first=0):
    shapes = {}
    narrowest = 64 if depth < 50 else WIDTH.out
    for level in range(4):
        channels = narrowest * 2**level
        shapes |= conv(lateral.format(level + first), (WIDTH.fpn, channels, 1, 1))
        shapes |= conv(output.format(level + first), (WIDTH.fpn, WIDTH.fpn, 3, 3))
    return shapes


def conv_module(name, shape, offsets=0, beside=False):
    """mmcv's convolution with GroupNorm, perhaps deformable."""
    shapes = conv(f"{name}.conv", shape, f"{name}.gn")
    if offsets:
        channels = offsets // 9 * shape[2] ** 2
        at = f"{name}.conv_offset" if beside else f"{name}.conv.conv_offset"
        shapes |= conv(at, (channels, *shape[1:]))
    return shapes


def tower(name, num, coords, offsets=0, num_deform=0, beside=False):
    shapes = {}
    for i in range(num):
        shape = (WIDTH.head, WIDTH.fpn + coords if i == 0 else WIDTH.head, 3, 3)
        deform = offsets if i >= num - num_deform else 0
        shapes |= conv_module(f"{name}.{i}", shape, deform, beside)
    return shapes


def predictor(name, channels, side=3):
    return conv(name, (channels, WIDTH.head, side, side))


def predictors(name, channels, side=3):
    shapes = {}
    for level, number in enumerate(channels):
        shapes |= predictor(f"{name}.{level}", number, side)
    return shapes


def mask_feature(module, last):
    """Convolutions of SOLOv2's mask feature, each made by `module(name, shape)`."""
    shapes = {}
    for level in range(4):
        for j in range(max(level, 1)):
            channels = WIDTH.fpn + 2 * (level == 3) if j == 0 else WIDTH.feature
            shapes |= module(f"convs_all_levels.{level}.conv{j}", (WIDTH.feature, channels, 3, 3))
    return shapes | module(last, (WIDTH.e, WIDTH.feature, 1, 1))


def head(kind, num, **deform):
    """Heads of the authors' code."""
    shapes = tower("bbox_head.cate_convs", num, 0, **deform)
    if kind in ("solo", "solov2"):
        shapes |= predictor("bbox_head.solo_cate", CLASSES)
    else:
        shapes |= predictor("bbox_head.dsolo_cate", CLASSES)
        for axis in "xy":
            shapes |= predictors(f"bbox_head.dsolo_ins_list_{axis}", GRIDS)
    if kind == "solov2":
        shapes |= tower("bbox_head.kernel_convs", num, 2, **deform)
        shapes |= predictor("bbox_head.solo_kernel", WIDTH.e)
    elif kind == "decoupled":
        for axis in "xy":
            shapes |= tower(f"bbox_head.ins_convs_{axis}", num, 1, **deform)
    else:
        shapes |= tower("bbox_head.ins_convs", num, 2, **deform)
    if kind == "solo":
        shapes |= predictors("bbox_head.solo_ins_list", [side**2 for side in GRIDS], side=1)
    return shapes


# Names of the authors' code, and those of mmdetection 2 and 3.
_NEWER = {
    "bbox_head.cate_convs": "mask_head.cls_convs",
    "bbox_head.ins_convs": "mask_head.mask_convs",
    "bbox_head.kernel_convs": "mask_head.kernel_convs",
    "bbox_head.solo_cate": "mask_head.conv_cls",
    "bbox_head.dsolo_cate": "mask_head.conv_cls",
    "bbox_head.solo_ins_list": "mask_head.conv_mask_list",
    "bbox_head.dsolo_ins_list": "mask_head.conv_mask_list",
    "bbox_head.solo_kernel": "mask_head.conv_kernel",
    "mask_feat_head.conv_pred.0": "mask_head.mask_feature_head.conv_pred",
    "mask_feat_head": "mask_head.mask_feature_head",
}


def newer(state):
    """A state of the authors' code under the names of mmdetection 2 and 3."""
    for theirs, new in _NEWER.items():
        state = {key.replace(theirs, new): value for key, value in state.items()}
    return state


# kind, depth, convolutions, offset channels, deformable convolutions of towers, the same in the
# mask feature, entries of backbone, head and mask feature as published.
MODELS = {
    "solo": ("solo", 50, 7, 0, 0, 0, (318, 54, 0)),
    "decoupled": ("decoupled", 50, 7, 0, 0, 0, (318, 85, 0)),
    "decoupled_light": ("light", 50, 4, 0, 0, 0, (318, 46, 0)),
    "decoupled_light_dcn": ("light", 50, 4, 18, 1, 0, (344, 50, 0)),
    "solov2": ("solov2", 50, 4, 0, 0, 0, (318, 28, 24)),
    "solov2_dcn": ("solov2", 101, 4, 27, 4, 27, (684, 44, 40)),
    "solov2_light_448": ("solov2", 18, 2, 0, 0, 0, (120, 16, 24)),
    "solov2_light_512_dcn": ("solov2", 50, 3, 18, 1, 0, (344, 26, 24)),
}


def authors_model(model, beside=False):
    """Shapes of backbone, neck, head and mask feature of one of `MODELS`, or of what it describes.

    Older versions of mmcv have the convolution of the offsets beside the one that uses them.
    """
    kind, depth, num, offsets, num_deform, of_feature, *_ = MODELS.get(model, model)

    def module(name, shape):
        return conv_module(f"mask_feat_head.{name}", shape, of_feature)

    return (
        torchvision_resnet(depth, "backbone.", offsets, beside),
        neck(depth),
        head(kind, num, offsets=offsets, num_deform=num_deform, beside=beside),
        mask_feature(module, "conv_pred.0") if kind == "solov2" else {},
    )


def authors_shapes(model, beside=False):
    return {k: v for part in authors_model(model, beside) for k, v in part.items()}


def authors(model, beside=False):
    return values(authors_shapes(model, beside))


def adelaidet(depth=50):
    return values(adelaidet_shapes(depth))


def adelaidet_shapes(depth):
    def module(name, shape):
        return conv(f"mask_head.{name}.0", shape, f"mask_head.{name}.1")

    shapes = detectron2_resnet(depth, "backbone.bottom_up.")
    shapes |= neck(depth, "backbone.fpn_lateral{}", "backbone.fpn_output{}", 2)
    for name, coords in (("cate", 0), ("kernel", 2)):
        for i in range(4):
            shape = (WIDTH.head, WIDTH.fpn + coords if i == 0 else WIDTH.head, 3, 3)
            at = f"ins_head.{name}_tower."
            shapes |= conv(f"{at}{3 * i}", shape, f"{at}{3 * i + 1}")
    shapes |= predictor("ins_head.cate_pred", CLASSES) | predictor("ins_head.kernel_pred", WIDTH.e)
    return shapes | mask_feature(module, "conv_pred")
