"""Weights of this project and of Detectron2: its zoo has detectors and two kinds of ResNet."""

from solo_d2.checkpoint.renaming import Format

# Detectron2's own deformable blocks have the offsets beside the convolution.
OFFSETS = ((r"(backbone\.bottom_up\.res\d\.\d+\.conv2)_offset\.(.*)", "{1}.offset.{2}"),)

OWN = Format(
    title="a model of this project",
    marks=(r"head\.class_logits\.weight", r"backbone\..*"),
    names=(),  # the same since the first version
    ignored=(r"pixel_(mean|std)",),
    counters=True,
)

# A detector, such as Mask R-CNN, or a backbone that was converted by this project.
DETECTOR = Format(
    title="the backbone of a detector of Detectron2",
    marks=(r"backbone\.bottom_up\..*",),
    names=OFFSETS,
    ignored=(r"(?!backbone\.).*",),
    whole=False,
)

# As Detectron2 converts those of torchvision.
RESNET = Format(
    title="a ResNet of Detectron2",
    marks=(r"stem\.conv1\.weight", r"res2\.0\.conv1\.weight"),
    names=((r"(stem|res\d)\.(.*)", "backbone.bottom_up.{1}.{2}"),),
    ignored=(r"(?:stem\.)?(?:fc|linear)\..*",),
    whole=False,
)

_BRANCHES = (("1", "shortcut"), ("2a", "conv1"), ("2b", "conv2"), ("2c", "conv3"))
_CONVS = (
    ("conv1", "res_conv1", "stem.conv1"),
    *((rf"res(\d)_(\d+)_branch{a}",) * 2 + (f"res{{1}}.{{2}}.{b}",) for a, b in _BRANCHES),
)
# Older files have no statistics: they are part of scale and bias.
_STATISTICS = (r".*\.norm\.running_(?:mean|var)",)

# The original ones (MSRA), with the names of Caffe2.
CAFFE2 = Format(
    title="a ResNet of Caffe2",
    marks=("conv1_w", "res2_0_branch2a_w"),
    names=tuple(
        (theirs, f"backbone.bottom_up.{ours}")
        for conv, norm, name in _CONVS
        for theirs, ours in (
            (rf"{conv}_w", f"{name}.weight"),
            (rf"{norm}_[bg]n_(?:s|gamma)", f"{name}.norm.weight"),
            (rf"{norm}_[bg]n_(?:b|bias|beta)", f"{name}.norm.bias"),
            (rf"{norm}_bn_(?:rm|running_mean)", f"{name}.norm.running_mean"),
            (rf"{norm}_bn_(?:riv|running_var)", f"{name}.norm.running_var"),
        )
    ),
    ignored=("conv1_b", "(?:fc1000|pred|last_out)_[wb].*", ".*_momentum", "lr", "model_iter"),
    whole=False,
    absent=_STATISTICS,
)
