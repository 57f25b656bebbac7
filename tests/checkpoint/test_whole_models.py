"""Every published checkpoint, as deep and wide as it was released, fits the model of its config."""

import pytest
import torch
from detectron2.modeling import build_model

import solo_d2.modeling  # noqa: F401  (registers the models)
from solo_d2.checkpoint.checkpointer import SOLOCheckpointer
from solo_d2.checkpoint.formats import recognise
from solo_d2.checkpoint.matching import match
from solo_d2.config import load_config
from tests.checkpoint import published

V2, LIGHT_V2 = {"head": 512}, {"head": 256, "e": 128}
X101 = {**V2, "mid": 256, "groups": 64}
# Config: kind of head, depth, convolutions, channels of offsets, deformable convolutions of towers,
# channels of offsets in the mask feature; widths.
AUTHORS = {
    "solo_R50_1x": (("solo", 50, 7, 0, 0, 0), {}),
    "solo_R101_3x": (("solo", 101, 7, 0, 0, 0), {}),
    "solo_R101_dcn_6x": (("solo", 101, 7, 27, 0, 0), {}),
    "decoupled_solo_R50_3x": (("decoupled", 50, 7, 0, 0, 0), {}),
    "decoupled_solo_R101_3x": (("decoupled", 101, 7, 0, 0, 0), {}),
    "decoupled_solo_light_512_R50_3x": (("light", 50, 4, 0, 0, 0), {}),
    "decoupled_solo_light_512_R50_dcn_3x": (("light", 50, 4, 18, 1, 0), {}),
    "solov2_R50_1x": (("solov2", 50, 4, 0, 0, 0), V2),
    "solov2_R101_3x": (("solov2", 101, 4, 0, 0, 0), V2),
    "solov2_R101_dcn_3x": (("solov2", 101, 4, 27, 4, 27), V2),
    "solov2_X101_dcn_3x": (("solov2", 101, 4, 27, 4, 27), X101),
    "solov2_light_448_R18_3x": (("solov2", 18, 2, 0, 0, 0), LIGHT_V2),
    "solov2_light_448_R34_3x": (("solov2", 34, 2, 0, 0, 0), LIGHT_V2),
    "solov2_light_448_R50_3x": (("solov2", 50, 2, 0, 0, 0), LIGHT_V2),
    "solov2_light_512_R50_dcn_3x": (("solov2", 50, 3, 18, 1, 0), LIGHT_V2),
}
CHECKPOINTS = {
    **{f"published/{name}": (published.authors_shapes, *rest) for name, rest in AUTHORS.items()},
    "coco/solov2_R50_3x": (published.adelaidet_shapes, 50, V2),
    "coco/solov2_R101_3x": (published.adelaidet_shapes, 101, V2),
}


def shapes_of(config):
    make, model, widths = CHECKPOINTS[config]
    with published.width_of(**widths):
        return make(model)


def configuration(config, device="cpu"):
    overrides = ["MODEL.DEVICE", device, "MODEL.SOLO.NUM_CLASSES", 80, "MODEL.WEIGHTS", ""]
    return load_config(f"configs/{config}.yaml", overrides)


@pytest.mark.parametrize("config", CHECKPOINTS)
def test_names_and_shapes_are_those_of_the_model(config):
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes_of(config).items()}
    with torch.device("meta"):
        model = build_model(configuration(config, "meta")).state_dict()
    source = recognise(state)
    found = match(source.convert(state).state, model, source)
    assert found.problem() == ""
    assert found.fresh == []
    counters = {name for name in model if name.endswith("num_batches_tracked")}
    assert set(found.loadable) >= set(model) - counters


def run(config, tmp_path):
    torch.save({"state_dict": published.values(shapes_of(config))}, tmp_path / "weights.pth")
    model = build_model(configuration(config)).eval()
    SOLOCheckpointer(model, whole=True).load(str(tmp_path / "weights.pth"))
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    with torch.no_grad():
        (result,) = model([{"image": image, "height": 48, "width": 64}])
    assert result["instances"].pred_masks.shape[1:] == (48, 64)


def test_a_whole_model_runs(tmp_path):
    run("published/solov2_light_448_R18_3x", tmp_path)


@pytest.mark.reliability
@pytest.mark.parametrize("config", CHECKPOINTS)
def test_every_whole_model_runs(config, tmp_path):
    run(config, tmp_path)
