"""SOLOv2 on ResNet-50-FPN: configs/base/solov2_fpn.yaml and the defaults of solo_d2/config."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from solo_d2.inference import build_nms
from solo_d2.losses import build_mask_loss
from solo_d2.modeling.heads import SOLOv2Head
from solo_d2.modeling.meta_arch import SOLO

model = L(SOLO)(
    backbone=L(FPN)(
        bottom_up=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
            stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=True, norm="FrozenBN"),
            out_features=["res2", "res3", "res4", "res5"],
            freeze_at=2,
        ),
        in_features="${.bottom_up.out_features}",
        out_channels=256,
        top_block=L(LastLevelMaxPool)(),
    ),
    head=L(SOLOv2Head)(
        in_features=["p2", "p3", "p4", "p5", "p6"],
        input_shape=L("builtins.dict")(
            p2=ShapeSpec(channels=256, stride=4),
            p3=ShapeSpec(channels=256, stride=8),
            p4=ShapeSpec(channels=256, stride=16),
            p5=ShapeSpec(channels=256, stride=32),
            p6=ShapeSpec(channels=256, stride=64),
        ),
        strides=[8, 8, 16, 32, 32],
        num_grids=[40, 36, 24, 16, 12],
        num_classes="${..num_classes}",
        num_convs=4,
        conv_dim=512,
        mask_in_features=["p2", "p3", "p4", "p5"],
        mask_conv_dim=128,
        mask_out_channels=256,
    ),
    num_classes=80,
    scale_ranges=[[1, 96], [48, 192], [96, 384], [192, 768], [384, 2048]],
    center_scale=0.2,
    cell_conflict="all",
    mask_target="mask",
    loss_params=L("builtins.dict")(
        mask_loss=L(build_mask_loss)(name="dice", params={}),
        cls_weight=1.0,
        mask_weight=3.0,
        focal_alpha=0.25,
        focal_gamma=2.0,
        memory_mib=None,
    ),
    decoder_params=L("builtins.dict")(
        nms=L(build_nms)(
            name="matrix",
            params=dict(kernel="gaussian", sigma=2.0, class_agnostic=False, backend="auto"),
        ),
        contours=False,
        backend="auto",
        score_thresh=0.1,
        mask_thresh=0.5,
        pre_nms_topk=500,
        keep_thresh=0.05,
        max_detections=100,
        lanes=1000,
    ),
    pixel_mean=[103.530, 116.280, 123.675],
    pixel_std=[1.0, 1.0, 1.0],
    input_format="BGR",
)
