"""Folders of images and labels become COCO files that training reads."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from solo_d2.data.coco_format import load_coco_format
from solo_d2.utils.errors import DatasetError
from tests.pictures import EXIF_ORIENTATION, picture, save
from tools import labels_to_coco
from tools.labels.labelled_folder import (
    class_names_of,
    read_image_folders,
    read_labelled_folder,
    split_images,
)

pytestmark = pytest.mark.detectron2

SIZE = (20, 30)


@pytest.fixture
def folders(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    for name in ("a.jpg", "b.png"):
        save(images / name, picture(*SIZE))
    labels.mkdir()
    return images, labels


def mask_image(box, mode="L"):
    mask = np.zeros(SIZE, np.uint8)
    left, top, right, bottom = box
    mask[top:bottom, left:right] = 255
    return Image.fromarray(mask).convert(mode)


def labelme(*shapes, height=SIZE[0], width=SIZE[1]):
    return json.dumps({"shapes": shapes, "imageHeight": height, "imageWidth": width})


def shape(label, points, kind="polygon", group=None, **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": group, **more}


SQUARE = [[2, 3], [10, 3], [10, 9], [2, 9]]


def test_classes_that_differ_in_case_only_are_warned_of(folders, tmp_path, capsys):
    images, labels = folders
    (labels / "a.json").write_text(labelme(shape("Car", SQUARE), shape("bus", SQUARE)))
    (labels / "b.json").write_text(labelme(shape("car", SQUARE)))
    options = ("--images", images, "--labels", labels, "--output", tmp_path / "out")
    assert labels_to_coco.main([str(option) for option in options]) == 0
    assert "warning: classes that differ in upper and lower case only: Car, car" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "LA", "RGBA", "P"])
def test_masks(folders, mode):
    images, labels = folders
    (labels / "b").mkdir()
    mask_image((4, 5, 14, 11), mode).save(labels / "b" / "red_car_1.png")
    mask_image((0, 0, 30, 20), mode).save(labels / "b" / "cat.png")
    empty, found = read_labelled_folder(images, labels)
    assert (empty.file_name, empty.objects) == ("a.jpg", [])
    (cat, whole), (car, fields) = found.objects
    assert (cat, car) == ("cat", "red_car")
    assert fields["bbox"] == [4, 5, 10, 6]
    assert (fields["area"], whole["area"]) == (60, 600)
    assert coco_mask.decode(fields["segmentation"])[5:11, 4:14].all()


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_what_is_transparent_or_black_is_outside(folders, mode):
    images, labels = folders
    mask = mask_image((4, 5, 14, 11))
    image = Image.new(mode[:-1], SIZE[::-1], "white") if mode != "P" else mask.convert("P")
    if mode == "P":  # black is color 1, as optimizers of PNGs may choose
        image = Image.fromarray(1 - np.asarray(mask) // 255, "P")
        image.putpalette([255, 255, 255, 0, 0, 0])
    else:
        image.putalpha(mask)
    put(image, labels / "b" / "cat_1.png")
    _, found = read_labelled_folder(images, labels)
    assert found.objects[0][1]["area"] == 60


def test_a_soft_border_is_inside(folders):
    images, labels = folders
    mask = np.asarray(mask_image((4, 5, 14, 11))).copy()
    mask[4, 4:14] = 99
    put(Image.fromarray(mask), labels / "b" / "cat_1.png")
    _, found = read_labelled_folder(images, labels)
    assert found.objects[0][1]["area"] == 70


def map_image(mode):
    ids = np.zeros(SIZE, np.uint8)
    ids[2:8, 3:9], ids[10:15, 3:9] = 1, 2
    image = Image.fromarray(ids, mode)
    if mode == "P":
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    return image


def test_labelme_shapes(folders):
    images, labels = folders
    png = io.BytesIO()
    Image.fromarray(np.ones((4, 6), bool)).save(png, "PNG")
    data = base64.b64encode(png.getvalue()).decode()
    shapes = [
        shape("dog", SQUARE),
        shape("dog", [[20, 15], [12, 5]], "rectangle"),
        shape("disc", [[15, 10], [15, 15]], "circle"),
        shape("cat", SQUARE, group=1),
        shape("cat", [[20, 10], [28, 10], [28, 18]], group=1),
        shape("blob", [[24, 1], [29, 4]], "mask", mask=data),
        shape("both", [[24, 1], [29, 4]], "mask", group=2, mask=data),
        shape("both", SQUARE, group=2),
    ]
    (labels / "a.json").write_text(labelme(*shapes))
    objects = read_labelled_folder(images, labels)[0].objects
    assert [name for name, _ in objects] == ["dog", "dog", "disc", "cat", "blob", "both"]
    dog, rectangle, disc, cat, blob, both = (fields for _, fields in objects)
    assert dog["segmentation"] == [[2, 3, 10, 3, 10, 9, 2, 9]]
    assert dog["bbox"] == [2, 3, 8, 6]
    assert rectangle["area"] == 80
    assert disc["area"] == pytest.approx(np.pi * 25, rel=0.1)
    assert len(cat["segmentation"]) == 2
    assert blob["bbox"] == [24, 1, 6, 4]
    assert both["area"] == dog["area"] + 24


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not a labelme JSON"),
        ("[]", "not a labelme JSON"),
        ('{"objects": []}', "no list 'shapes'"),
        (labelme({"points": SQUARE}), "shape 0: 'label'"),
        (labelme(shape(" ", SQUARE)), "shape 0: 'label'"),
        (labelme(shape(["a"], SQUARE)), "shape 0: 'label'"),
        (labelme(5), "shape 0: it must be an object"),
        (labelme(shape("a", SQUARE), height=SIZE[1], width=SIZE[0]), "EXIF"),
        (labelme(shape("a", SQUARE), height=10), "10 x 30 pixels"),
        (labelme(shape("a", SQUARE[:2])), "a polygon of 2 points, labelled 'a', has no area"),
        (labelme(shape("a", SQUARE[:2], "line")), "a line of 2 points"),
        (labelme(shape("a", SQUARE, "linestrip")), "a linestrip of 4 points, .* has no area"),
        (labelme(shape("a", SQUARE[:2], "ellipse")), "'ellipse' of 2 points, .* is not supported"),
        (labelme(shape("a", [[2, 3], [9, 9], [2, 3], [2, 3]])), "labelled 'a', it has no area"),
        (labelme(shape("a", SQUARE, group=1), shape("a", SQUARE[:2], group=1)), "shape 1: .* 2 p"),
        (labelme(shape("a", [[0, "x"]])), "points cannot be read"),
        (labelme(shape("a", [[0, float("nan")]] * 3)), "non-finite"),
        (labelme(shape("a", [[x + 100, y] for x, y in SQUARE])), "no pixels in the image"),
        (labelme(shape("a", SQUARE, "mask", mask="?")), "cannot be decoded"),
    ],
)
def test_refuses_labelme(folders, content, expected):
    images, labels = folders
    (labels / "a.json").write_text(content)
    with pytest.raises(DatasetError, match=expected) as error:
        read_labelled_folder(images, labels)
    assert "a.json" in str(error.value)


@pytest.mark.parametrize(
    "drawn",
    [
        shape("a", SQUARE, "rectangle"),
        shape("a", SQUARE, "rotation", direction=0.4),
        shape("a", [*SQUARE, SQUARE[0]]),
        shape("a", [[10, 9], [2, 3]], "rectangle"),
        shape("a", [[2, 9], [10, 3]], "rectangle"),
        shape("a", [[str(x), str(y)] for x, y in SQUARE]),
        shape(" a ", SQUARE, None, flags=None, description=None),
        {"label": "a", "points": SQUARE},
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_reads_what_forks_and_editors_write(folders, drawn, encoding):
    images, labels = folders
    content = {"shapes": [drawn], "imageHeight": "20", "imageWidth": 30.0, "imagePath": "..\\a.jpg"}
    (labels / "a.json").write_text(json.dumps(content), encoding=encoding)
    (labels / "._a.json").write_bytes(b"\0")  # of macOS
    (images / "._a.jpg").write_bytes(b"\0")
    [(label, fields)] = read_labelled_folder(images, labels)[0].objects
    assert (label, fields["bbox"], fields["area"]) == ("a", [2, 3, 8, 6], 48)


def test_other_files_among_the_labels_are_no_labels(folders):
    images, labels = folders
    for folder in folders:
        (folder / "train.json").write_text('{"images": []}')
    save(images / "more" / "z.png")
    assert len(read_labelled_folder(images, labels)) == 2
    assert len(read_labelled_folder(images, images)) == 2


def test_all_that_cannot_be_used_is_named_at_once(folders, tmp_path, capsys):
    images, labels = folders
    line, point = shape("a", SQUARE[:2], "line"), shape("b", SQUARE[:1], "point")
    (labels / "a.json").write_text(labelme(shape("a", SQUARE), line, shape("a", SQUARE), point))
    (labels / "b.json").write_text("{")
    (labels / "b").mkdir()
    mask_image((0, 0, 0, 0)).save(labels / "b" / "x_1.PNG")
    mask_image((0, 0, 4, 4)).save(labels / "b" / "x_2.bmp")
    (labels / "c.json").write_text(labelme())
    words = ["--images", str(images), "--labels", str(labels), "--output", str(tmp_path / "out")]
    assert labels_to_coco.main(words) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    assert "6 labels" in first
    parts = ["c.json", "a.json: shape 1", "a.json: shape 3", "b.json", "x_1.PNG", "x_2.bmp"]
    assert all(part in text for part, text in zip(parts, lines, strict=True))
    assert not (tmp_path / "out").exists()
    (labels / "a.json").write_text(labelme(*[line] * 200))
    assert labels_to_coco.main(words) == 2
    assert len(capsys.readouterr().err.splitlines()) < 60


def put(image, file):
    file.parent.mkdir(exist_ok=True)
    file.write_text("text") if image is None else image.save(file)


# What is said, and what is done to the folders before.
FOLDERS = {
    r"x_1\.png is an empty mask": lambda _, d: put(mask_image((0, 0, 0, 0)), d / "a/x_1.png"),
    r"x_1\.png has 5 x 5 .*20 x 30": lambda _, d: put(Image.new("L", (5, 5), 1), d / "a/x_1.png"),
    r"x_1\.png cannot be read": lambda _, d: put(None, d / "a/x_1.png"),
    "does not exist": lambda _, d: d.rmdir(),
    "has no images": lambda images, _: [file.unlink() for file in images.iterdir()],
    r"c\.json: no image has this name": lambda _, d: (d / "c.json").write_text(labelme()),
    "several images are called a": lambda images, _: save(images / "a.png"),
    r"a\.jpg: ": lambda images, _: put(None, images / "a.jpg"),
    "No image has": lambda *_: None,
    r"x_1\.png has several values": lambda _, d: put(map_image("L"), d / "a/x_1.png"),
    r"x_2\.png has several values": lambda _, d: put(map_image("P"), d / "a/x_2.png"),
    r"1\.png has no class .* CLASS_1\.png": lambda _, d: put(
        mask_image((0, 0, 4, 4)), d / "a/1.png"
    ),
    r"a\.png is not read: labels": lambda _, d: put(mask_image((0, 0, 4, 4)), d / "a.png"),
    r"b\.txt is not read: labels": lambda _, d: put(None, d / "b.txt"),
}


@pytest.mark.parametrize("reason", FOLDERS)
def test_refuses_folders(folders, reason):
    FOLDERS[reason](*folders)
    with pytest.raises(DatasetError, match=reason):
        class_names_of(read_labelled_folder(*folders))


def test_copies_of_images_are_no_labels(folders):
    images, labels = folders
    (labels / "a.jpg").write_bytes((images / "a.jpg").read_bytes())
    assert [image.objects for image in read_labelled_folder(images, labels)] == [[], []]


def test_image_that_exif_turns(folders):
    images, labels = folders
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    save(images / "a.jpg", picture(*SIZE[::-1]), exif=exif)  # 30 high, 20 wide, lying
    assert read_labelled_folder(images, labels)[0].size == SIZE


def test_split_stays_when_images_are_added(folders):
    images, labels = folders
    for index in range(60):
        save(images / f"{index}.png", picture(*SIZE))
    found = read_labelled_folder(images, labels)
    train, val = split_images(found, 0.2)
    assert (len(train), len(val)) == (50, 12)
    # Of half the images most keep their part: all but those at the border of the order.
    half_train, half_val = split_images(found[::2], 0.2)
    names = {image.file_name for image in val}
    assert sum(image.file_name in names for image in half_val) >= len(half_val) - 3
    assert [len(part) for part in split_images(found[:2], 0.01)] == [1, 1]
    with pytest.raises(DatasetError, match="two images"):
        split_images(found[:1], 0.5)


def test_command_makes_what_training_reads(tmp_path, capsys):
    images, labels, output = (tmp_path / name for name in ("images", "labels", "out"))
    command = ["--images", str(images), "--labels", str(labels), "--output", str(output)]
    assert labels_to_coco.main([*command, "--example", "6", "--val-fraction", "0.34"]) == 0
    train = load_coco_format("labelled_train", output / "train.json", images)
    val = load_coco_format("labelled_val", output / "val.json", images)
    assert (len(train), len(val)) == (4, 2)
    assert sum(len(record["annotations"]) for record in train) > 4
    first = json.loads((output / "train.json").read_text())["categories"]
    assert first == json.loads((output / "val.json").read_text())["categories"]
    before = (output / "train.json").read_bytes()
    assert labels_to_coco.main([*command, "--example", "6"]) == 2
    assert "exists" in capsys.readouterr().err
    next(labels.glob("*/*.png")).write_text("damaged")
    assert labels_to_coco.main(command) == 2
    assert (output / "train.json").read_bytes() == before


@pytest.fixture
def bowl(tmp_path):
    """Two images in the layout of the Data Science Bowl."""
    root = tmp_path / "stage1_train"
    for name, boxes in (("0a", [(1, 2, 9, 8), (12, 2, 20, 9)]), ("1b", [(0, 0, 5, 5)])):
        save(root / name / "images" / f"{name}.png", np.full((*SIZE, 4), 128, np.uint8))
        for number, box in enumerate(boxes):
            put(mask_image(box), root / name / "masks" / f"f_{number}.png")
    return root


def test_a_folder_for_each_image(bowl, tmp_path, capsys):
    arguments = ["--images", str(bowl), "--output", str(tmp_path / "out")]
    assert labels_to_coco.main([*arguments, "--class-name", "nucleus"]) == 0
    assert "classes: nucleus" in capsys.readouterr().out
    names = []
    for part in ("train", "val"):
        records = load_coco_format(f"bowl_{part}", tmp_path / "out" / f"{part}.json", bowl)
        names += [record["file_name"] for record in records]
        assert sum(len(x["annotations"]) for x in records) == (2 if "0a" in names[-1] else 1)
    assert sorted(names) == [str(bowl / "0a/images/0a.png"), str(bowl / "1b/images/1b.png")]
    for wrong in ([], ["--class-name", "nucleus", "--images", str(bowl / "0a")]):
        assert labels_to_coco.main([*arguments, *wrong]) == 2
        assert "--class-name" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        labels_to_coco.main([*arguments, "--class-name", "nucleus", "--labels", str(bowl)])


def test_masks_of_a_folder_may_overlap_or_be_missing(bowl):
    mask_image((5, 2, 15, 8)).save(bowl / "0a/masks/between.png")
    (bowl / "1b/masks/f_0.png").unlink()
    crowded, empty = read_image_folders(bowl, "nucleus")
    assert [fields["area"] for _, fields in crowded.objects] == [60, 48, 56]
    assert empty.objects == []


def test_faults_of_folders_are_listed(bowl, tmp_path, capsys):
    (bowl / "1b/images/1b.png").unlink()
    mask_image((0, 0, 0, 0)).save(bowl / "0a/masks/empty.png")
    Image.new("L", (10, 10), 255).save(bowl / "0a/masks/small.png")
    save(bowl / "2c/images/2c.png", picture(*SIZE))
    arguments = ["--images", str(bowl), "--output", str(tmp_path), "--class-name", "nucleus"]
    assert labels_to_coco.main(arguments) == 2
    printed = capsys.readouterr().err
    for words in (f"{bowl / '1b/images'} must have one image", "empty.png",
        "small.png has 10 x 10 pixels", "2c has no folder masks"):  # fmt: skip
        assert words in printed
    assert not (tmp_path / "train.json").exists()
