"""Running the network of a model faster in training: `SOLVER.CHANNELS_LAST`, `SOLVER.COMPILE`."""

import torch
from torch import nn

from solo_d2.modeling.speed import COMPILE

# Values of SOLVER.COMPILE. Of those of TEST.SPEED.COMPILE, CUDA graphs are not for training: the
# outputs of one step live on while the next one is recorded.
TRAINING_COMPILE = {name: COMPILE[name] for name in ("", "dynamic", "static")}


def speed_up_training(model: nn.Module, *, channels_last: bool, compile: str) -> nn.Module:
    """Change how a model's network runs; what it computes and its state dict stay.

    Copies of the model, such as averaged ones, are not compiled.

    Args:
        model: any model of Detectron2's, before it is wrapped and before its optimizer is made.
        channels_last: keep the channels of a pixel next to each other in memory. A convolution does
            so with its input too where its weights lie like this.
        compile: a key of `TRAINING_COMPILE`, for torch.compile of each part of the model that
            is called with tensors: backbone, head and semantic branch.

    Returns:
        The model.
    """
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compile:
        for part in model.children():
            part.compile(**TRAINING_COMPILE[compile])
    return model
