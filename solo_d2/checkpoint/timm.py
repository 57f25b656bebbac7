"""Weights of timm: the URL "timm://NAME", and the names in its files.

A file of timm does not name its model, so it can only be loaded into a timm backbone.
"""

import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from torch import Tensor

from solo_d2.checkpoint.formats import Format
from solo_d2.modeling.backbones.pyramid import require_timm
from solo_d2.modeling.backbones.timm import TimmBackbone
from solo_d2.utils.errors import ConfigError, first_line

PREFIX = "timm://"
# Files of a model on the hub, in order of preference.
_FILES = ("model.safetensors", "pytorch_model.bin")


class TimmHub(PathHandler):
    """Download the weights of "timm://NAME" once; NAME as in MODEL.TIMM.NAME."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **others: Any) -> str:
        name = path.removeprefix(PREFIX)
        require_timm(path)
        from timm.models import get_pretrained_cfg

        config = get_pretrained_cfg(name)
        if config is None or not (config.hf_hub_id or config.url):
            raise ConfigError(f"timm has no weights for the model {name!r}")
        if not config.hf_hub_id:
            return str(PathManager.get_local_path(config.url, force=force))
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        files = (config.hf_hub_filename,) if config.hf_hub_filename else _FILES
        for file in files:
            try:
                return str(hf_hub_download(config.hf_hub_id, file, force_download=force))
            except EntryNotFoundError:
                continue
            except Exception as error:  # of the network
                raise ConfigError(f"{config.hf_hub_id}: {first_line(error)}") from error
        raise ConfigError(f"{config.hf_hub_id} has none of the files {', '.join(files)}")


PathManager.register_handler(TimmHub(), allow_override=True)


def convert_timm(
    state: Mapping[str, Tensor], backbone: TimmBackbone
) -> tuple[Format, dict[str, Tensor]] | None:
    """Recognize weights of a timm backbone.

    They may have timm's names, names of the model's authors that timm converts, or those of
    EfficientNet-PyTorch, which has the same parameters in the same order.

    Args:
        state: weights by their names in the file.
        backbone: the model's backbone.

    Returns:
        Their format and the weights by timm's names; None for weights of another model.
    """
    import timm

    if any(name.startswith("backbone.") for name in state):
        return None
    with torch.device("meta"):
        whole = timm.create_model(backbone.name)
    theirs = whole.state_dict()
    if "_conv_stem.weight" in state and len(state) == len(theirs):
        state = dict(zip(theirs, state.values(), strict=True))
    module = sys.modules[timm.models.model_entrypoint(backbone.name).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is not None and not state.keys() >= backbone.net.state_dict().keys():
        state = convert(dict(state), whole)
    if not state.keys() & backbone.net.state_dict().keys():
        return None
    left_out = theirs.keys() - backbone.net.state_dict().keys()
    source = Format(
        title=f"{backbone.name} of timm",
        marks=(),
        names=((r"(.*)", "backbone.bottom_up.net.{1}"),),
        ignored=tuple(re.escape(name) for name in sorted(left_out)),
        whole=False,
    )
    return source, dict(state)
