"""SOLOv2 on ResNet-50-FPN, 12 epochs of COCO: what configs/coco/solov2_R50_1x.yaml is.

python tools/lazyconfig_train_net.py --config-file configs/lazy/solov2_R50_1x.py --num-gpus 8
"""

import torch
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler

from .common.coco import dataloader
from .common.solov2_fpn import model
from .common.train import train

optimizer = L(torch.optim.SGD)(
    params=L(get_default_optimizer_params)(weight_decay_norm=0.0),
    lr=0.01,
    momentum=0.9,
    weight_decay=1e-4,
)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01],
        milestones=[60000, 80000, 90000],  # as fractions of train.max_iter
    ),
    warmup_factor=0.01,
    warmup_length=1000 / 90000,
    warmup_method="linear",
)

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]
