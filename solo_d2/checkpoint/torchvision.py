"""ResNets and ResNeXts of torchvision and timm (ImageNet): their names in Detectron2's ResNet.

mmcv names its ResNets alike. Deeper stems and other additions of timm's ResNets ("d", "se", ...)
are no part of Detectron2's ResNet, and are refused as unknown names.
"""

from solo_d2.checkpoint.renaming import RGB_INPUTS, Format, Names


def resnet_names(prefix: str) -> Names:
    """The table for a ResNet whose names start with a prefix.

    The offsets of deformable convolutions stand inside `conv2`, and beside it in older files.
    """
    theirs, ours = prefix.replace(".", r"\."), "backbone.bottom_up."
    block = rf"{theirs}layer(\d)\.(\d+)\."
    return (
        (rf"{theirs}conv1\.weight", f"{ours}stem.conv1.weight"),
        (rf"{theirs}bn1\.(.*)", f"{ours}stem.conv1.norm.{{1}}"),
        (rf"{block}conv(\d)\.weight", f"{ours}res{{1+1}}.{{2}}.conv{{3}}.weight"),
        (rf"{block}conv2(?:\.conv)?_offset\.(.*)", f"{ours}res{{1+1}}.{{2}}.conv2.offset.{{3}}"),
        (rf"{block}bn(\d)\.(.*)", f"{ours}res{{1+1}}.{{2}}.conv{{3}}.norm.{{4}}"),
        (rf"{block}downsample\.0\.weight", f"{ours}res{{1+1}}.{{2}}.shortcut.weight"),
        (rf"{block}downsample\.1\.(.*)", f"{ours}res{{1+1}}.{{2}}.shortcut.norm.{{3}}"),
    )


TORCHVISION = Format(
    title="a ResNet of torchvision or timm",
    marks=(r"conv1\.weight", r"bn1\.running_mean", r"layer1\.0\.conv1\.weight"),
    names=resnet_names(""),
    ignored=(r"fc\..*",),
    whole=False,
    settings=RGB_INPUTS,
)
