"""The demo on images, from the command line, with a tiny random model."""

import io
import json
import re
import runpy
import sys
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from demo import demo, records, stills
from demo.arguments import load_predictor
from solo_d2.api import images as api_images
from solo_d2.data.panoptic_json import read_segment_ids
from solo_d2.evaluation.average_precision import index_coco
from solo_d2.visualization import overlay as overlays
from tests.api.models import NUM_LABELS, ROOT, bad_files, picture, save
from tests.api.models import run_demo as run

pytestmark = pytest.mark.detectron2


def test_overlays_and_json(model, tmp_path):
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "b.jpg", picture(80, 40, seed=1))
    args = ("--input", tmp_path / "in", "--output", tmp_path / "out")
    assert run(model, *args, "--json", tmp_path / "all.json") == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.jpg"]
    with Image.open(tmp_path / "out" / "b.jpg") as overlay:
        assert overlay.size == (40, 80)
    drawn = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    assert np.abs(drawn.astype(int) - picture()).mean() > 5

    results = json.loads((tmp_path / "all.json").read_text())
    assert {r["image_id"] for r in results} == {0, 1}
    assert {Path(r["file_name"]).name for r in results} == {"a.png", "b.jpg"}
    assert {r["category_id"] for r in results} <= set(range(1, 8))  # ids of shapes start at 1
    images = [{"id": 0, "height": 48, "width": 64}, {"id": 1, "height": 80, "width": 40}]
    categories = [{"id": i} for i in range(1, 8)]
    truth = index_coco({"images": images, "categories": categories, "annotations": []})
    loaded = truth.loadRes(results)
    for annotation in loaded.loadAnns(loaded.getAnnIds()):
        assert loaded.annToMask(annotation).any()
        box = coco_mask.toBbox(annotation["segmentation"])
        np.testing.assert_allclose(annotation["bbox"], box, atol=1e-4)


def test_threshold_filters_results_and_overlays(model, tmp_path):
    file = save(tmp_path / "a.png")
    assert run(model, "--input", file, "--json", tmp_path / "all.json") == 0
    scores = sorted(r["score"] for r in json.loads((tmp_path / "all.json").read_text()))
    assert len(scores) >= 2
    middle = (scores[0] + scores[-1]) / 2
    args = ("--input", file, "--json", tmp_path / "some.json", "--output", tmp_path / "none.png")
    assert run(model, *args, threshold=str(middle)) == 0
    kept = [r["score"] for r in json.loads((tmp_path / "some.json").read_text())]
    assert sorted(kept) == pytest.approx([s for s in scores if s >= middle])
    assert run(model, *args, threshold="1") == 0
    assert json.loads((tmp_path / "some.json").read_text()) == []
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "none.png")), picture())


def test_tiles(model, tmp_path, capsys):
    args = ("--input", save(tmp_path / "a.png", picture(60, 90)), "--json", tmp_path / "a.json")
    tiles = ("--tiles", 40, "--tile-overlap", 10, "--whole-image")
    assert run(model, *args) == 0
    whole = json.loads((tmp_path / "a.json").read_text())
    more = ("--save-masks", tmp_path / "masks", "--output", tmp_path / "o.png")
    assert run(model, *args, *tiles, *more) == 0
    assert len(json.loads((tmp_path / "a.json").read_text())) > len(whole)
    assert run(model, *args, "--tiles", 40, "--tile-overlap", 40) == 2
    assert "overlap of tiles is 40" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run(model, *args, "--whole-image")


def test_a_list_on_standard_input_and_masks(model, tmp_path, monkeypatch, capsys):
    files = [save(tmp_path / "in" / name) for name in ("a b.png", "c.jpg")]
    lines = "\n".join([*map(str, files), "", "gone.png"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    masks, results = tmp_path / "masks", tmp_path / "all.json"
    assert run(model, "--input", "-", "--save-masks", masks, "--json", results) == 1
    assert "gone.png: no image file matches" in capsys.readouterr().err
    assert sorted(file.name for file in masks.iterdir()) == ["a b.png", "c.png"]
    found = [r for r in json.loads(results.read_text()) if r["image_id"] == 0]
    labels = cv2.imread(str(masks / "a b.png"), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint16
    best = coco_mask.decode(found[0]["segmentation"]).astype(bool)
    assert (labels[best] == 1).all()
    assert (labels > 0).sum() == sum(coco_mask.decode(r["segmentation"]) for r in found).astype(
        bool
    ).sum()
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert run(model, "--input", "-", "--json", results) == 2


def test_a_checkpoint_alone_and_overlays_for_print(model, tmp_path):
    file = save(tmp_path / "a.png", picture(200, 300))
    weights = model[model.index("--weights") :]
    for name, option in (("fast.png", ()), ("print.png", ("--publication",))):
        assert run(weights, "--input", file, "--output", tmp_path / name, *option) == 0
    pictures = [np.asarray(Image.open(tmp_path / name)) for name in ("fast.png", "print.png")]
    assert pictures[0].shape == pictures[1].shape == (200, 300, 3)
    assert (pictures[0] != pictures[1]).any()


def test_what_is_done_with_is_forgotten(model, tmp_path):
    args = demo.parse_args([*model, "--input", "a", "--json", str(tmp_path / "a.json")])
    files = [save(tmp_path / f"{index}.png") for index in range(3)]
    planned = stills.plan(args, files)
    predictor = load_predictor(args)
    found = stills.Stills(args, predictor, records.Records(args, predictor.classes, None))
    found.run(planned)
    assert found.records.results
    assert all(still.image is still.result is None for still in planned)


def test_bad_files_are_skipped_and_listed(model, tmp_path, capsys):
    folder = tmp_path / "in"
    bad = bad_files(folder)
    output = tmp_path / "out"
    args = ("--input", folder, tmp_path / "gone.png", "--output", output)
    assert run(model, *args, "--json", tmp_path / "all.json") == 1
    assert sorted(p.name for p in output.iterdir()) == ["good.jpg", "good.png"]
    assert len({r["image_id"] for r in json.loads((tmp_path / "all.json").read_text())}) == 2
    out, err = capsys.readouterr()
    assert "2 of 11 images" in out
    summary = err[err.index("9 failed:") :]
    assert all(name in summary for name in [*bad, "gone.png"])


def test_other_images_go_on_when_drawing_or_saving_fails(model, tmp_path, monkeypatch, capsys):
    files = [save(tmp_path / f"{name}.png") for name in "abc"]
    # Raised inside unittest.mock: an error of code outside the libraries would end the demo.
    drawn = [RuntimeError("no more ink"), DEFAULT, DEFAULT]
    written = [OSError(28, "No space left on device"), DEFAULT]
    draw = Mock(wraps=overlays.draw_instances, side_effect=drawn)
    write = Mock(wraps=api_images.write_image, side_effect=written)
    monkeypatch.setattr(overlays, "draw_instances", draw)
    monkeypatch.setattr(api_images, "write_image", write)
    args = ("--input", *files, "--output", tmp_path / "out", "--json", tmp_path / "all.json")
    assert run(model, *args) == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["c.png"]
    assert {r["image_id"] for r in json.loads((tmp_path / "all.json").read_text())} == {2}
    err = capsys.readouterr().err
    assert "no more ink" in err
    assert "No space left" in err


@pytest.mark.parametrize("kind", ["model", "panoptic_model"])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (2, 3), (1, 300), (300, 1)])
def test_odd_sizes(request, tmp_path, size, kind):
    file = save(tmp_path / "a.png", picture(*size))
    more = ("--json", tmp_path / "b.json") if kind == "model" else ("--panoptic", tmp_path / "p")
    args = ("--boxes", "--output", tmp_path / "b.png", *more)
    assert run(request.getfixturevalue(kind), "--input", file, *args) == 0
    with Image.open(tmp_path / "b.png") as overlay:
        assert overlay.size == size[::-1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config-file", "gone.yaml"], "config file gone.yaml does not exist"),
        (["--weights", "gone.pth"], "weights file gone.pth does not exist"),
        (["--weights", "bad.pth"], "bad.pth can't be used"),
        (["--input", "*.gif"], "No image file matches"),
        (["--device", "tpu9"], "tpu9"),
        (["--opts", "MODEL.SOLO.NO_SUCH_KEY", "1"], "NO_SUCH_KEY"),
        (["--opts", "MODEL.SOLO.NUM_CLASSES"], "odd length"),
        (["--opts", "MODEL.SOLO.NUM_CLASSES", "9"], r"7 classes.*has 9.*NUM_CLASSES to 7"),
        (["--opts", "MODEL.META_ARCHITECTURE", "Nope"], "Nope"),
        (["--opts", "MODEL.SOLO.MASK_FEATURE.CONV_DIM", "64"], "other shapes"),
        (["--opts", "MODEL.SOLO.HEAD.NUM_CONVS", "2"], "are not in them"),
    ],
)
def test_what_cannot_start_says_so_in_one_line(model, tmp_path, monkeypatch, capsys, args, message):
    file = save(tmp_path / "a.png")
    command = [*model, "--input", str(file), "--output", str(tmp_path / "out"), *args]
    (tmp_path / "bad.pth").write_bytes(b"these are no weights")
    monkeypatch.chdir(tmp_path)
    assert demo.main(command) == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err


def test_output_that_cannot_be(model, tmp_path, capsys):
    first, second = save(tmp_path / "a.png"), save(tmp_path / "b.png")
    before = first.read_bytes()
    assert run(model, "--input", first, second, "--output", tmp_path / "c.png") == 2
    assert run(model, "--input", first, "--output", tmp_path) == 2
    assert run(model, "--input", first, "--output", tmp_path / "c.gif") == 2
    assert run(model, "--input", first, "--output", first / "below") == 2
    err = capsys.readouterr().err
    for part in ("is a file, but there are 2", "would replace", "PNG or JPG", "cannot be created"):
        assert part in err
    assert first.read_bytes() == before


def test_outputs_replace_neither_images_nor_each_other(model, tmp_path, capsys):
    file = save(tmp_path / "in" / "a.png")
    before, out = file.read_bytes(), tmp_path / "out"
    for args in (
        ("--save-masks", file.parent),
        ("--json", file),
        ("--output", out, "--save-masks", out),
        ("--save-masks", out, "--json", out / "a.png"),
    ):
        assert run(model, "--input", file, *args) == 2
        assert "would replace" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert not out.exists() or not list(out.iterdir())


def test_a_folder_for_json_is_refused_before_the_work(model, tmp_path, capsys):
    assert run(model, "--input", save(tmp_path / "a.png"), "--json", tmp_path) == 2
    assert "is a folder" in capsys.readouterr().err


def test_a_video_among_images_says_which_option_reads_it(model, tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(b"video")
    args = ("--input", tmp_path / "a.mp4", save(tmp_path / "b.png"), "--json", tmp_path / "c.json")
    assert run(model, *args) == 1
    assert "a.mp4: is a video: use --video-input" in capsys.readouterr().err


def test_without_a_display_show_says_so_and_goes_on(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    args = ("--input", save(tmp_path / "a.png"), "--output", tmp_path / "b.png", "--show")
    assert run(model, *args) == 0
    assert "no display" in capsys.readouterr().err
    assert (tmp_path / "b.png").exists()


def test_runs_as_a_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["demo.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / "demo" / "demo.py"), run_name="__main__")
    assert "--confidence-threshold" in capsys.readouterr().out


# ---------------------------------------------------------------- panoptic models


def test_panoptic_overlays_and_segments(panoptic_model, tmp_path):
    files = [
        save(tmp_path / "x" / "a.png"),
        save(tmp_path / "y" / "a.png", picture(80, 40, seed=1)),
    ]
    outputs = ("--output", tmp_path / "out", "--panoptic", tmp_path / "segments")
    assert run(panoptic_model, "--input", *files, *outputs) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["x_a.png", "y_a.png"]
    content = json.loads((tmp_path / "segments" / "panoptic.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [str(file) for file in files]
    known = {category["id"]: category["isthing"] for category in content["categories"]}
    assert len(known) == 7 + NUM_LABELS - 1
    kinds = set()
    for image, entry in zip(content["images"], content["annotations"], strict=True):
        ids = read_segment_ids(tmp_path / "segments" / "panoptic" / entry["file_name"])
        assert ids.shape == (image["height"], image["width"])
        listed = {segment["id"] for segment in entry["segments_info"]}
        assert set(np.unique(ids)) - {0} == listed
        assert Path(entry["file_name"]).stem == Path(image["file_name"]).parent.name + "_a"
        for segment in entry["segments_info"]:
            assert ("score" in segment) == bool(known[segment["category_id"]])
            kinds.add(known[segment["category_id"]])
    assert kinds == {0, 1}


def test_a_model_without_stuff_has_no_segments(model, tmp_path, capsys):
    args = ("--input", save(tmp_path / "a.png"), "--panoptic", tmp_path / "out")
    assert run(model, *args) == 2
    assert "--panoptic needs a panoptic model" in capsys.readouterr().err
    assert not (tmp_path / "out" / "panoptic.json").exists()


def test_json_and_overlays_of_earlier_runs_survive_a_failing_one(model, tmp_path, monkeypatch):
    old = tmp_path / "all.json"
    old.write_text("old")
    monkeypatch.setattr(records.json, "dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(model, "--input", save(tmp_path / "a.png"), "--json", old)
    assert old.read_text() == "old"


def test_panoptic_threshold_is_that_of_things(panoptic_model, tmp_path):
    args = ("--input", save(tmp_path / "a.png"), "--panoptic", tmp_path / "out")
    assert run(panoptic_model, *args, threshold="1") == 0
    (entry,) = json.loads((tmp_path / "out" / "panoptic.json").read_text())["annotations"]
    assert entry["segments_info"]
    assert not any("score" in segment for segment in entry["segments_info"])
