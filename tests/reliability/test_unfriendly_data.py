"""Annotations and label images of strangers name no other files, crash nothing, cost no memory."""

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from solo_d2.data.coco_format import load_coco_format  # noqa: E402
from solo_d2.data.panoptic_json import read_panoptic_json, read_segment_ids  # noqa: E402
from solo_d2.data.problems import Refusal  # noqa: E402
from solo_d2.data.segmentations import clean_segmentation, to_rle  # noqa: E402
from solo_d2.utils.errors import DatasetError  # noqa: E402
from tests import panoptic_files  # noqa: E402
from tools.labels.labelled_folder import read_labelled_folder  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


# Memory for a process that has imported everything and reads files of a few kilobytes.
MEMORY = 8 * 2**30


def in_little_memory(code, *arguments):
    """Run Python code in a process that may crash or ask for too much; what it printed."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({MEMORY},) * 2)\n"
    done = subprocess.run(
        [sys.executable, "-c", limit + "import sys\n" + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def coco(root, *, name="a.jpg", segmentation=None, size=(20, 30)):
    """A data set of one image, and a file outside its folder."""
    image = {"id": 1, "file_name": name, "height": size[0], "width": size[1]}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 1}
    segmentation = [[0, 0, 9, 0, 9, 9]] if segmentation is None else segmentation
    content = {
        "images": [image],
        "annotations": [{**annotation, "iscrowd": 0, "segmentation": segmentation}],
        "categories": [{"id": 1, "name": "a"}],
    }
    (root / "images").mkdir(parents=True)
    for file in (root / "images" / "a.jpg", root / "outside.jpg"):
        file.write_bytes(b"")
    (root / "a.json").write_text(json.dumps(content))
    return root / "a.json", root / "images"


OUTSIDE = [
    "../outside.jpg",
    "x/../../outside.jpg",
    "/etc/passwd",
    "./../outside.jpg",
    "..",
    "a\0.jpg",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_path_of_a_json_leaves_the_image_folder(tmp_path, name):
    with pytest.raises(DatasetError, match="'file_name'"):
        load_coco_format("unfriendly", *coco(tmp_path, name=name))


@pytest.mark.parametrize("name", ["../1.png", "/etc/passwd", "x/../../1.png", "1\0.png"])
def test_no_path_of_a_panoptic_json_leaves_its_folder(tmp_path, name):
    def change(content):
        content["annotations"][0]["file_name"] = name

    root = panoptic_files.write(tmp_path / "data", change)
    with pytest.raises(DatasetError, match="'file_name' must be a PNG in the folder"):
        read_panoptic_json(root / "panoptic.json")


def test_links_of_ones_own_are_followed(tmp_path):
    """A json cannot make them; many keep their images elsewhere."""
    json_file, images = coco(tmp_path)
    (images / "a.jpg").unlink()
    (images / "a.jpg").symlink_to(tmp_path / "outside.jpg")
    assert len(load_coco_format("unfriendly", json_file, images)) == 1


JSONS = {
    "deep": '{"images": ' + "[" * 10**5,
    "huge number": '{"images": [{"id": ' + "9" * 5000 + "}]}",
    "huge size": json.dumps({"images": [{"id": 1, "file_name": "a.jpg", "height": 10**30,
        "width": 1}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}),
    "NaN": '{"images": [{"id": NaN}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
    "not text": "\udcff",
}  # fmt: skip


@pytest.mark.parametrize("kind", JSONS)
def test_jsons_that_would_break_a_parser(tmp_path, kind):
    file = tmp_path / "a.json"
    file.write_bytes(JSONS[kind].encode(errors="surrogateescape"))
    for read in (lambda: load_coco_format("unfriendly", file, tmp_path),
        lambda: read_panoptic_json(file)):  # fmt: skip
        with pytest.raises(DatasetError) as caught:
            read()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000


ZIGZAG = [float(v) for i in range(10**5) for v in (i % 2 * 190, 5 * (i % 40))]
SEGMENTATIONS = {
    "size of an RLE": {"size": [10**9, 10**9], "counts": "0"},
    "runs of gigabytes": {"size": [20, 30], "counts": "o" * 6 + "3"},
    "endless numbers": {"size": [20, 30], "counts": "o" * 1000},
    "cut off": {"size": [20, 30], "counts": "PPPo"},
    "no characters of an RLE": {"size": [20, 30], "counts": "\x01\xff"},
    "huge runs": {"size": [20, 30], "counts": [10**30, 1]},
    "runs below 0": {"size": [20, 30], "counts": [-600, 1200]},
    "points at the end of the world": [[0, 0, 1e18, 0, 1e18, 1e18]],
    "a line to and fro": [ZIGZAG],
}


@pytest.mark.parametrize("kind", SEGMENTATIONS)
def test_segmentations_that_break_pycocotools(kind):
    with pytest.raises(Refusal):
        clean_segmentation(SEGMENTATIONS[kind], 20, 30)


def test_ten_million_points(tmp_path):
    """An outline that goes round and round; drawn, it would take a long time and gigabytes."""
    turns = np.linspace(0, 2e6 * np.pi, 10**7)
    points = np.stack([100 + 90 * np.cos(turns), 100 + 90 * np.sin(turns)], axis=1).ravel()
    with pytest.raises(Refusal, match="outline of"):
        clean_segmentation([points], 200, 200)
    honest = np.linspace(0, 2 * np.pi, 1000)
    points = np.stack([100 + 90 * np.cos(honest), 100 + 90 * np.sin(honest)], axis=1).ravel()
    assert to_rle([points.tolist()], 200, 200)["size"] == [200, 200]


CRASHES = """
import json
from pycocotools import mask
mask.area(mask.frPyObjects(json.loads(sys.argv[1]), 20, 30))
"""


def test_pycocotools_does_crash():
    """Else the checks would not be needed."""
    far = json.dumps(SEGMENTATIONS["points at the end of the world"])
    done = subprocess.run([sys.executable, "-c", "import sys\n" + CRASHES, far], check=False)
    assert done.returncode < 0


PREDICTIONS = """
import contextlib, io
from pycocotools.coco import COCO
from solo_d2.utils.errors import DatasetError
from solo_d2.evaluation.error_analysis import analyze_errors, read_predictions
with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO(sys.argv[1])
for file in sys.argv[2:]:
    try:
        analyze_errors(truth, read_predictions(file, truth))
        print("used")
    except DatasetError as error:
        print("refused", str(error).count(chr(10)))
"""


def test_predictions_that_break_pycocotools(tmp_path):
    """In a process of its own, which would crash."""
    json_file, _ = coco(tmp_path)
    names = []
    for kind, segmentation in SEGMENTATIONS.items():
        names.append(tmp_path / f"{kind}.json")
        entry = {"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": segmentation}
        names[-1].write_text(json.dumps([entry]))
    lines = in_little_memory(PREDICTIONS, json_file, *names).splitlines()
    assert lines == ["refused 0"] * len(SEGMENTATIONS)


def labelme(root, **shape):
    image = root / "images"
    image.mkdir(parents=True)
    png(image / "a.png", 30, 20)
    base = {"label": "a", "shape_type": "polygon", "points": [[0, 0], [9, 0], [9, 9]]}
    (root / "labels").mkdir()
    content = json.dumps({"shapes": [{**base, **shape}], "imagePath": "/etc/passwd"})
    (root / "labels" / "a.json").write_text(content)
    return image, root / "labels"


def png(file, width, height, *, color=2, channels=3, data=None):
    """Write an image of zeros, of which the file has next to nothing."""

    def chunk(kind, content):
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    if data is None:
        data = zlib.compress(bytes((width * channels + 1) * height), 9)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    Path(file).write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def test_labels_that_crash_or_explode(tmp_path):
    far = labelme(tmp_path / "far", points=[[0, 0], [1e18, 0], [1e18, 1e18]])
    with pytest.raises(DatasetError, match="far outside the image"):
        read_labelled_folder(*far)
    images, labels = labelme(tmp_path / "deep")
    (labels / "a.json").write_text("[" * 10**5)
    with pytest.raises(DatasetError, match="no json of labelme"):
        read_labelled_folder(images, labels)
    images, labels = labelme(tmp_path / "bomb")
    (labels / "a").mkdir()
    png(labels / "a" / "thing_1.png", 60_000, 60_000, data=b"")
    with pytest.raises(DatasetError, match="cannot be read as a mask"):
        read_labelled_folder(images, labels)


def test_panoptic_pngs_that_explode(tmp_path):
    png(tmp_path / "a.png", 60_000, 60_000, data=b"")
    with pytest.raises(DatasetError, match=r"a\.png cannot be read: DecompressionBombError"):
        read_segment_ids(tmp_path / "a.png")
