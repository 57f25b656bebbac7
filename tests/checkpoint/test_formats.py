"""Every source format: recognised, and renamed one to one.

tests/modeling/test_solo_heads.py has what converted heads compute.
"""

import pytest
import torch

from solo_d2.checkpoint.formats import (
    ADELAIDET,
    FORMATS,
    MMDETECTION,
    OWN,
    SOLO_AUTHORS,
    TORCHVISION,
    recognise,
)
from tests.checkpoint import published


@pytest.mark.parametrize("model", published.MODELS)
def test_all_generations_of_mmdetection_give_one_model(model):
    backbone, neck, head, feature = map(len, published.authors_model(model))
    assert (backbone, head, feature) == published.MODELS[model][-1]
    assert neck == 16
    state = published.authors(model)
    assert recognise(state) is SOLO_AUTHORS
    conversion = SOLO_AUTHORS.convert(state)
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert sorted(conversion.ignored) == sorted(counters)
    assert len(conversion.state) == len(state) - len(counters)
    assert all(name.startswith(("backbone.", "head.")) for name in conversion.state)
    assert not any("layer" in name or "conv_offset" in name for name in conversion.state)
    newer = published.newer(state)
    assert recognise(newer) is MMDETECTION
    older_files = published.authors(model, beside=True)
    for other in (MMDETECTION.convert(newer), SOLO_AUTHORS.convert(older_files)):
        assert set(other.state) == set(conversion.state)


PAIRS = {  # theirs and ours, by the tables of the golden values
    "backbone.conv1.weight": "backbone.bottom_up.stem.conv1.weight",
    "backbone.bn1.bias": "backbone.bottom_up.stem.conv1.norm.bias",
    "backbone.layer3.5.bn2.running_var": "backbone.bottom_up.res4.5.conv2.norm.running_var",
    "backbone.layer4.0.downsample.0.weight": "backbone.bottom_up.res5.0.shortcut.weight",
    "backbone.layer1.0.downsample.1.weight": "backbone.bottom_up.res2.0.shortcut.norm.weight",
    "backbone.layer2.3.conv2.conv_offset.bias": "backbone.bottom_up.res3.3.conv2.offset.bias",
    "neck.lateral_convs.0.conv.weight": "backbone.fpn_lateral2.weight",
    "neck.fpn_convs.3.conv.bias": "backbone.fpn_output5.bias",
    "bbox_head.cate_convs.3.conv.weight": "head.class_tower.3.weight",
    "bbox_head.kernel_convs.0.gn.bias": "head.kernel_tower.0.norm.bias",
    "bbox_head.kernel_convs.2.conv.conv_offset.weight": "head.kernel_tower.2.offset.weight",
    "bbox_head.solo_cate.bias": "head.class_logits.bias",
    "bbox_head.solo_kernel.weight": "head.kernel_params.weight",
    "mask_feat_head.convs_all_levels.3.conv2.gn.weight": "head.mask_feature.levels.3.2.norm.weight",
    "mask_feat_head.conv_pred.0.conv.conv_offset.bias": "head.mask_feature.output.offset.bias",
}


def test_names_of_the_authors_code():
    origins = SOLO_AUTHORS.convert(published.authors("solov2_dcn")).origins
    assert {theirs: ours for ours, theirs in origins.items() if theirs in PAIRS} == PAIRS


def test_names_of_adelaidet():
    state = published.adelaidet()
    assert recognise(state) is ADELAIDET
    conversion = ADELAIDET.convert(state | {"pixel_mean": torch.zeros(3)})
    assert conversion.ignored == ("pixel_mean",)
    assert len(conversion.state) == 333
    origins = conversion.origins
    assert origins["head.kernel_tower.3.norm.bias"] == "ins_head.kernel_tower.10.bias"
    assert origins["head.class_tower.2.weight"] == "ins_head.cate_tower.6.weight"
    name = "mask_head.convs_all_levels.2.conv1.1.weight"
    assert origins["head.mask_feature.levels.2.1.norm.weight"] == name
    # It is the model that the authors' code gives, whose names are ours.
    converted = SOLO_AUTHORS.convert(published.authors("solov2")).state
    assert set(origins) == set(converted)
    assert recognise(converted) is OWN
    assert list(OWN.convert(converted).state) == list(converted)


def test_what_belongs_to_nothing_keeps_its_name_and_nothing_is_written_twice():
    state = {**published.torchvision_resnet(50), "layer1.0.se.fc1.weight": 0}
    assert "layer1.0.se.fc1.weight" in TORCHVISION.convert(state).state
    twice = {"backbone.layer2.0.conv2_offset.bias": torch.zeros(18)}
    with pytest.raises(ValueError, match=r"conv2_offset\.bias .*res3\.0\.conv2\.offset\.bias"):
        SOLO_AUTHORS.convert(published.authors("decoupled_light_dcn") | twice)
    assert recognise({"weight": 0}) is None
    assert len({source.title for source in FORMATS}) == len(FORMATS)
