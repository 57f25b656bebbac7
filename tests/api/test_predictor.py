"""`Predictor`: every way to make one gives the same results, alone, in batches and in threads."""

import doctest
import inspect
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import solo_d2
from solo_d2 import ConfigError, Predictor, Tiles
from solo_d2.api.loading import find_config, make_config
from tests.api.models import ROOT, picture, save, save_model
from tests.pictures import write_video

pytestmark = pytest.mark.detectron2

# Pictures of different sizes, some of which the tiny model pads to one size.
SIZES = [(48, 64), (64, 48), (40, 60), (48, 64), (30, 90), (64, 48), (48, 63)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor(checkpoint, device="cpu", score_thresh=0.0)


def pictures():
    return [picture(*size, seed=index) for index, size in enumerate(SIZES)]


def same(a, b):
    """Whether two results are equal."""
    fields = ("pred_masks", "pred_classes", "scores")
    return all(torch.equal(a.instances.get(field), b.instances.get(field)) for field in fields)


def alike(a, b):
    """Whether they are equal but for the order of sums."""
    a, b = a.instances, b.instances
    return (
        torch.equal(a.pred_classes, b.pred_classes)
        and torch.allclose(a.scores, b.scores, atol=1e-5)
        and bool((a.pred_masks != b.pred_masks).float().mean() < 1e-3)
    )


def test_every_way_to_name_a_model(checkpoint, predictor):
    image = picture()
    expected = predictor(image)
    assert len(expected) > 0
    config = checkpoint.parent / "config.yaml"
    options = {"device": "cpu", "score_thresh": 0.0}
    for other in (
        Predictor(str(checkpoint), **options),
        Predictor(config, checkpoint, **options),
        Predictor(config, overrides=["MODEL.WEIGHTS", str(checkpoint)], **options),
        Predictor(make_config(config, checkpoint, device="cpu"), **options),
    ):
        assert same(other(image), expected)
        assert other.classes == predictor.classes
        assert other.classes.names[0] == "disc"


def test_a_config_of_the_checkpoints_name_comes_first(tmp_path):
    weights = tmp_path / "a.pth"
    with pytest.raises(ConfigError, match=r"a\.pth does not exist"):
        find_config(weights)
    weights.touch()
    with pytest.raises(ConfigError, match=r"neither a\.yaml nor config\.yaml"):
        Predictor(weights)
    (tmp_path / "config.yaml").touch()
    assert find_config(weights).name == "config.yaml"
    (tmp_path / "a.yaml").touch()
    assert find_config(weights).name == "a.yaml"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["gone.yaml"], {}, r"gone\.yaml does not exist"),
        (["gone.pth"], {}, r"gone\.pth does not exist"),
        (["gone.onnx"], {}, r"gone\.onnx does not exist"),
        (["a.onnx", "b.pth"], {}, "neither weights nor overrides"),
        (["a.onnx"], {"device": "cuda"}, "runs on the CPU"),
        (["a.pth", "b.pth"], {}, "are both weights"),
        (["a.pth"], {"batch_size": 0}, "batch_size is 0"),
        (["a.pth"], {"score_thresh": 30}, r"score_thresh is 30, .*\[0, 1\]"),
        (["."], {}, "are a folder: name a file in it"),
    ],
)
def test_what_cannot_be_a_model_says_why(arguments, options, message):
    with pytest.raises(ConfigError, match=message):
        Predictor(*arguments, **options)


def test_class_names_can_be_given(checkpoint):
    names = list("abcdefg")
    named = Predictor(checkpoint, device="cpu", class_names=names)
    assert named.classes.names == names
    assert named.classes.json_ids == list(range(1, 8))
    with pytest.raises(ConfigError, match="2 names, but the model has 7"):
        Predictor(checkpoint, device="cpu", class_names=["a", "b"])


def test_threshold_can_be_changed_and_none_is_the_configs(checkpoint, predictor):
    image = picture()
    scores = predictor(image).instances.scores
    middle = float(scores.sort().values[len(scores) // 2])
    own = Predictor(checkpoint, device="cpu", score_thresh=None)
    assert torch.equal(own(image).instances.scores, scores)  # 0 in this config
    own.score_thresh = middle
    assert torch.equal(own(image).instances.scores, scores[scores >= middle])
    own.score_thresh = None
    assert torch.equal(own(image).instances.scores, scores)


def test_a_threshold_below_the_configs_is_said(checkpoint, caplog):
    overrides = ["MODEL.SOLO.KEEP_THRESH_TEST", 0.2]
    for thresh in (None, 0.0, 0.2):
        Predictor(checkpoint, device="cpu", score_thresh=thresh, overrides=overrides)
    assert "KEEP_THRESH_TEST" not in caplog.text
    Predictor(checkpoint, device="cpu", score_thresh=0.1, overrides=overrides)
    assert "score_thresh is 0.1, but the model itself keeps scores from 0.2" in caplog.text


@pytest.mark.parametrize("panoptic", [False, True])
def test_a_threshold_of_a_call_leaves_the_model_as_it_is(tmp_path, panoptic):
    own = Predictor(save_model(tmp_path, panoptic=panoptic), device="cpu", score_thresh=0.99)
    image = torch.from_numpy(picture().transpose(2, 0, 1).copy())
    with torch.no_grad():
        (expected,) = own.model([{"image": image}])
        own(picture())
        (found,) = own.model([{"image": image}])
        (none,) = own.model([{"image": image}], score_thresh=1.0)
    assert len(expected["instances"]) > len(none["instances"]) == 0
    assert torch.equal(found["instances"].scores, expected["instances"].scores)
    assert (own(picture()).panoptic is not None) == panoptic
    if panoptic:
        assert found["panoptic_seg"][1] == expected["panoptic_seg"][1]
        assert any(segment["isthing"] for segment in found["panoptic_seg"][1])
        assert not any(segment["isthing"] for segment in none["panoptic_seg"][1])


def test_batches_of_mixed_sizes_equal_one_by_one(checkpoint, predictor):
    images = pictures()
    expected = [predictor(image) for image in images]
    batched = Predictor(checkpoint, device="cpu", score_thresh=0.0, batch_size=3)
    sizes = []
    run = batched.backend.run
    batched.backend.run = lambda batch, thresh: sizes.append(len(batch)) or run(batch, thresh)
    found = batched(images)
    assert max(sizes) > 1
    assert sum(sizes) == len(images)
    for result, alone, image in zip(found, expected, images, strict=True):
        assert result.image_size == image.shape[:2]
        assert len(result) > 0
        assert alike(result, alone)
    assert batched([]) == []


def test_streams_read_as_they_go_and_keep_names(predictor, tmp_path):
    files = [save(tmp_path / f"{index}.png") for index in range(3)]
    (tmp_path / "2.png").write_bytes(b"broken")
    stream = predictor.stream(tmp_path)
    assert [next(stream).name, next(stream).name] == [str(files[0]), str(files[1])]
    with pytest.raises(solo_d2.ImageError, match=r"2\.png"):
        next(stream)


def test_eight_threads_get_what_one_gets(predictor):
    images = pictures()
    expected = [predictor(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(predictor, images * 4))
    for index, result in enumerate(found):
        assert same(result, expected[index % len(images)])


def test_another_nms_shares_the_weights(checkpoint, predictor):
    image = picture()
    other = predictor.with_nms("matrix", kernel="linear")
    overrides = ["MODEL.SOLO.NMS.TYPE", "matrix", "MODEL.SOLO.NMS.KERNEL", "linear"]
    expected = Predictor(checkpoint, device="cpu", score_thresh=0.0, overrides=overrides)(image)
    before = predictor(image)
    assert same(other(image), expected)
    assert not torch.equal(other(image).instances.scores, before.instances.scores)
    assert same(predictor(image), before)
    assert other.model.head is predictor.model.head
    assert other.backend.lock is predictor.backend.lock
    with pytest.raises(ConfigError, match="unknown mask NMS 'best'"):
        predictor.with_nms("best")
    for params, named in (
        ({"tresh": 0.5}, "'tresh', but must be one of .*thresh"),
        ({"thresh": 5}, "MODEL.SOLO.NMS.THRESH is 5"),
        ({"sigma": "2"}, "MODEL.SOLO.NMS.SIGMA is '2'"),
    ):
        with pytest.raises(ConfigError, match=named):
            predictor.with_nms("soft", **params)


def test_predictors_are_pickled_with_their_weights_and_speed_options(checkpoint, predictor):
    image, options = picture(), ["TEST.SPEED.DTYPE", "bfloat16"]
    expected = predictor(image)
    fast = Predictor(checkpoint, device="cpu", score_thresh=0.0, overrides=options)
    assert not torch.equal(fast(image).instances.scores, expected.instances.scores)
    for original in (predictor, fast):
        copy = pickle.loads(pickle.dumps(original))
        assert same(copy(image), original(image))
        assert copy.model is not original.model


# ---------------------------------------------------------------- what the docs say


@pytest.fixture
def place(checkpoint, tmp_path, monkeypatch):
    """A folder with all that the examples name."""
    (tmp_path / "output").mkdir()
    for name in ("model_final.pth", "config.yaml"):
        source = checkpoint.parent / name.replace("model_final", "model")
        text = source.read_bytes()
        (tmp_path / "output" / name).write_bytes(text)
    save(tmp_path / "photo.jpg", picture(seed=3))
    save(tmp_path / "photos" / "a.png")
    save(tmp_path / "photos" / "b.png", picture(80, 40))
    write_video(tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_examples_of_the_docstring_hold(place):
    (found,) = doctest.DocTestFinder(recurse=False).find(Predictor, "Predictor", globs={})
    results = doctest.DocTestRunner().run(found)
    assert results.attempted >= 8
    assert results.failed == 0


def test_blocks_of_the_page_run(place, capsys):
    page = (ROOT / "docs" / "python_api.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    names = {}
    for block in blocks:
        exec(compile(block, "docs/python_api.md", "exec"), names)
    assert (place / "photo_overlay.png").is_file()


def test_public_names_are_loaded_on_first_use():
    for name in solo_d2.__all__:
        assert getattr(solo_d2, name) is not None
    assert "Predictor" in solo_d2.__all__
    assert inspect.isclass(solo_d2.Result)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        solo_d2.Nothing  # noqa: B018


def test_tiles_are_those_of_the_argument_or_the_config(checkpoint):
    options = {"device": "cpu", "score_thresh": 0.0}
    image = picture(60, 90)
    whole = Predictor(checkpoint, **options)(image)
    tiled = Predictor(checkpoint, **options, tiles=90)(image)
    assert torch.equal(tiled.instances.pred_masks.whole(), whole.instances.pred_masks)
    assert tiled.to_coco() == whole.to_coco()
    assert tiled.polygons() == whole.polygons()
    assert (tiled.label_map() == whole.label_map()).all()
    assert (tiled.draw(labels="always") == whole.draw(labels="always")).all()
    assert (tiled.draw(scale=1.5) == whole.draw(scale=1.5)).all()
    best, same_best = (x.filtered(float(x.instances.scores[1])) for x in (tiled, whole))
    assert best.to_coco() == same_best.to_coco()
    tiles = Tiles(40, 10, whole_image=True)
    found = Predictor(checkpoint, **options, tiles=tiles, batch_size=4)(image)
    keys = ["TEST.TILES.SIZE", 40, "TEST.TILES.OVERLAP", 10, "TEST.TILES.WHOLE_IMAGE", True]
    alone = Predictor(checkpoint, **options, overrides=keys)(image)
    assert len(found) == len(alone) > len(whole)
    assert found.instances.image_size == (60, 90)
    with pytest.raises(ConfigError, match="size of tiles is 0"):
        Predictor("gone.pth", tiles=0)
    panoptic = save_model(checkpoint.parent / "panoptic", panoptic=True)
    with pytest.raises(ConfigError, match="panoptic"):
        Predictor(panoptic, **options, tiles=40)
