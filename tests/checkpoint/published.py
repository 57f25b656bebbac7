"""Names and shapes of published checkpoints, of narrow networks, filled with random values.

The names are those of the published files, written out here again, not made from our tables.
"""

import torch

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
FPN = HEAD = 32  # channels; GroupNorm has 32 groups
GRIDS = [40, 36, 24, 16, 12]
CLASSES = 80
NORM = ("weight", "bias", "running_mean", "running_var")


def values(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
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
    width, expansion = (64, 1) if depth < 50 else (8, 4)
    channels = 64 if depth < 50 else 16
    for stage, blocks in enumerate(BLOCKS[depth], 1):
        mid = width * 2 ** (stage - 1)
        out = mid * expansion
        for block in range(blocks):
            if depth < 50:
                convs = [(mid, channels, 3, 3), (mid, mid, 3, 3)]
            else:
                convs = [(mid, channels, 1, 1), (mid, mid, 3, 3), (out, mid, 1, 1)]
            yield stage, block, convs, (out, channels, 1, 1) if channels != out else None
            channels = out


def batch_norm(name, channels):
    return {f"{name}.{part}": (channels,) for part in NORM} | {f"{name}.num_batches_tracked": ()}


def torchvision_resnet(depth, prefix="", offsets=0, beside=False):
    """torchvision's and mmcv's; with `offsets` channels in the deformable layer2 to layer4."""
    stem = 64 if depth < 50 else 16
    shapes = {f"{prefix}conv1.weight": (stem, 3, 7, 7)} | batch_norm(f"{prefix}bn1", stem)
    for stage, block, convs, down in resnet_convs(depth):
        at = f"{prefix}layer{stage}.{block}."
        for i, shape in enumerate(convs, 1):
            shapes[f"{at}conv{i}.weight"] = shape
            shapes |= batch_norm(f"{at}bn{i}", shape[0])
        if offsets and stage > 1:
            name = f"{at}conv2_offset" if beside else f"{at}conv2.conv_offset"
            shapes[f"{name}.weight"] = (offsets, convs[1][1], 3, 3)
            shapes[f"{name}.bias"] = (offsets,)
        if down:
            shapes[f"{at}downsample.0.weight"] = down
            shapes |= batch_norm(f"{at}downsample.1", down[0])
    return shapes


def detectron2_resnet(depth, prefix=""):
    shapes = {f"{prefix}stem.conv1.weight": (16, 3, 7, 7)}
    shapes |= {f"{prefix}stem.conv1.norm.{part}": (16,) for part in NORM}
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


def outputs_of(depth):
    return [64, 128, 256, 512] if depth < 50 else [32, 64, 128, 256]


def neck(depth):
    shapes = {}
    for i, channels in enumerate(outputs_of(depth)):
        shapes[f"neck.lateral_convs.{i}.conv.weight"] = (FPN, channels, 1, 1)
        shapes[f"neck.fpn_convs.{i}.conv.weight"] = (FPN, FPN, 3, 3)
        shapes[f"neck.lateral_convs.{i}.conv.bias"] = shapes[f"neck.fpn_convs.{i}.conv.bias"] = (
            FPN,
        )
    return shapes


def conv_module(name, shape, offsets=0, beside=False):
    """mmcv's convolution with GroupNorm, perhaps deformable."""
    shapes = {f"{name}.conv.weight": shape}
    shapes |= {f"{name}.gn.weight": shape[:1], f"{name}.gn.bias": shape[:1]}
    if offsets:
        channels = offsets // 9 * shape[2] ** 2
        at = f"{name}.conv_offset" if beside else f"{name}.conv.conv_offset"
        shapes[f"{at}.weight"], shapes[f"{at}.bias"] = (channels, *shape[1:]), (channels,)
    return shapes


def tower(name, num, coords, offsets=0, num_deform=0, beside=False):
    shapes = {}
    for i in range(num):
        shape = (HEAD, (FPN if i == 0 else HEAD) + coords * (i == 0), 3, 3)
        deform = offsets if i >= num - num_deform else 0
        shapes |= conv_module(f"{name}.{i}", shape, deform, beside)
    return shapes


def predictor(name, channels, side=3):
    return {f"{name}.weight": (channels, HEAD, side, side), f"{name}.bias": (channels,)}


def predictors(name, channels, side=3):
    return {
        key: shape
        for k, number in enumerate(channels)
        for key, shape in predictor(f"{name}.{k}", number, side).items()
    }


def mask_feature(prefix, last, offsets=0):
    shapes = {}
    for level in range(4):
        for j in range(max(level, 1)):
            channels = FPN + 2 * (level == 3) if j == 0 else HEAD
            name = f"{prefix}.convs_all_levels.{level}.conv{j}"
            shapes |= conv_module(name, (HEAD, channels, 3, 3), offsets)
    return shapes | conv_module(f"{prefix}.{last}", (HEAD, HEAD, 1, 1), offsets)


AUTHORS = {  # names of the authors' code
    "classes": "bbox_head.cate_convs",
    "masks": "bbox_head.ins_convs",
    "kernels": "bbox_head.kernel_convs",
    "solo_logits": "bbox_head.solo_cate",
    "decoupled_logits": "bbox_head.dsolo_cate",
    "mask_list": "bbox_head.solo_ins_list",
    "decoupled_list": "bbox_head.dsolo_ins_list",
    "kernel": "bbox_head.solo_kernel",
    "feature": ("mask_feat_head", "conv_pred.0"),
}
MMDET = {  # names of mmdetection 2 and 3
    "classes": "mask_head.cls_convs",
    "masks": "mask_head.mask_convs",
    "kernels": "mask_head.kernel_convs",
    "solo_logits": "mask_head.conv_cls",
    "decoupled_logits": "mask_head.conv_cls",
    "mask_list": "mask_head.conv_mask_list",
    "decoupled_list": "mask_head.conv_mask_list",
    "kernel": "mask_head.conv_kernel",
    "feature": ("mask_head.mask_feature_head", "conv_pred"),
}


def mm_head(kind, names, num, offsets=0, num_deform=0, beside=False):
    deform = {"offsets": offsets, "num_deform": num_deform, "beside": beside}
    shapes = tower(names["classes"], num, 0, **deform)
    if kind == "solov2":
        shapes |= tower(names["kernels"], num, 2, **deform)
        shapes |= predictor(names["solo_logits"], CLASSES) | predictor(names["kernel"], HEAD)
    elif kind == "solo":
        shapes |= tower(names["masks"], num, 2, **deform)
        shapes |= predictor(names["solo_logits"], CLASSES)
        shapes |= predictors(names["mask_list"], [side**2 for side in GRIDS], side=1)
    else:
        if kind == "decoupled":
            for axis in "xy":
                shapes |= tower(f"{names['masks']}_{axis}", num, 1, **deform)
        else:
            shapes |= tower(names["masks"], num, 2, **deform)
        shapes |= predictor(names["decoupled_logits"], CLASSES)
        for axis in "xy":
            shapes |= predictors(f"{names['decoupled_list']}_{axis}", GRIDS)
    return shapes


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


def mm_model(model, names=AUTHORS, beside=False):
    """Shapes of backbone, neck, head and mask feature."""
    kind, depth, num, offsets, num_deform, feature_offsets, _ = MODELS[model]
    return (
        torchvision_resnet(depth, "backbone.", offsets, beside),
        neck(depth),
        mm_head(kind, names, num, offsets, num_deform, beside),
        mask_feature(*names["feature"], feature_offsets) if kind == "solov2" else {},
    )


def mm_state(model, names=AUTHORS, beside=False, seed=0):
    shapes = {}
    for part in mm_model(model, names, beside):
        shapes |= part
    return values(shapes, seed)


def adelaidet(depth=50):
    shapes = detectron2_resnet(depth, "backbone.bottom_up.")
    for n, channels in enumerate(outputs_of(depth), 2):
        shapes[f"backbone.fpn_lateral{n}.weight"] = (FPN, channels, 1, 1)
        shapes[f"backbone.fpn_output{n}.weight"] = (FPN, FPN, 3, 3)
        shapes[f"backbone.fpn_lateral{n}.bias"] = shapes[f"backbone.fpn_output{n}.bias"] = (FPN,)
    for name, coords in (("cate", 0), ("kernel", 2)):
        for i in range(4):
            channels = FPN + coords if i == 0 else HEAD
            shapes[f"ins_head.{name}_tower.{3 * i}.weight"] = (HEAD, channels, 3, 3)
            shapes[f"ins_head.{name}_tower.{3 * i + 1}.weight"] = (HEAD,)
            shapes[f"ins_head.{name}_tower.{3 * i + 1}.bias"] = (HEAD,)
    shapes |= predictor("ins_head.cate_pred", CLASSES) | predictor("ins_head.kernel_pred", HEAD)
    for level in range(4):
        for j in range(max(level, 1)):
            channels = FPN + 2 * (level == 3) if j == 0 else HEAD
            name = f"mask_head.convs_all_levels.{level}.conv{j}"
            shapes[f"{name}.0.weight"] = (HEAD, channels, 3, 3)
            shapes[f"{name}.1.weight"] = shapes[f"{name}.1.bias"] = (HEAD,)
    shapes["mask_head.conv_pred.0.weight"] = (HEAD, HEAD, 1, 1)
    shapes["mask_head.conv_pred.1.weight"] = shapes["mask_head.conv_pred.1.bias"] = (HEAD,)
    return shapes
