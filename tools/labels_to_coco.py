#!/usr/bin/env python3
"""Convert a folder of images and labels to train.json and val.json in COCO format.

    python tools/labels_to_coco.py --images my/images --labels my/labels --output my
    python tools/labels_to_coco.py --images stage1_train --class-name nucleus --output nuclei
    python tools/labels_to_coco.py --example 150 --images my/images --labels my/labels --output my

Labels are labelme JSON files (labels/street.json for street.jpg), or a PNG mask per object
(labels/street/car_1.png: class, _, anything), detected per image. The second command reads a folder
per image, with images/ and masks/, as in the 2018 Data Science Bowl; use the same --images for
training. The third one first fills both folders with generated images and masks. If a label cannot
be used, nothing is written and the exit code is 2.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image  # noqa: E402

from solo_d2.data.shapes.drawing import THING_CLASSES, draw_image  # noqa: E402
from solo_d2.data.whole_folder import only_writer, whole_folder  # noqa: E402
from solo_d2.utils.errors import ConfigError, DatasetError  # noqa: E402
from solo_d2.utils.images import write_image  # noqa: E402
from tools.arguments import entry_point, plain_parser  # noqa: E402
from tools.labels.labelled_folder import (  # noqa: E402
    class_names_of,
    has_folder_for_each_image,
    read_image_folders,
    read_labelled_folder,
    split_images,
    write_coco,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = plain_parser(__doc__)
    add = parser.add_argument
    add("--images", type=Path, required=True, metavar="DIR", help="folder of the images")
    add("--labels", type=Path, metavar="DIR", help="folder of the labels; default: --images")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the two JSON files")
    add("--val-fraction", type=float, default=0.2, metavar="F", help="share of val; default: 0.2")
    add("--class-name", metavar="NAME", help="class of all objects, for a folder per image")
    add("--example", type=int, metavar="N", help="generate N labelled images first")
    args = parser.parse_args(argv)
    if args.class_name and args.labels:
        parser.error("--class-name cannot be used with --labels")
    args.labels = args.labels or args.images
    if not 0 < args.val_fraction < 1:
        parser.error("--val-fraction must be between 0 and 1")
    if args.example is not None and args.example < 2:
        parser.error("--example must be at least 2")
    if args.example and args.labels == args.images:
        parser.error("--example needs a separate folder for --labels")
    return args


def write_example(images: Path, labels: Path, count: int) -> None:
    """Fill two new folders with generated images and a mask for each object."""
    for folder in (images, labels):
        if folder.exists():
            raise DatasetError(f"--example: {folder} exists; choose new folders")
    with (
        only_writer(images),
        only_writer(labels),
        whole_folder(images) as image_folder,
        whole_folder(labels) as label_folder,
    ):
        for index in range(count):
            drawing = draw_image(0, "train", index)
            name = f"photo_{index:04d}"
            write_image(image_folder / f"{name}.jpg", Image.fromarray(drawing.image), quality=95)
            (label_folder / name).mkdir()
            for number, mask in enumerate(drawing.masks):
                class_name = THING_CLASSES[drawing.classes[number]]
                file = label_folder / name / f"{class_name}_{number}.png"
                write_image(file, Image.fromarray(mask))


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.example:
        write_example(args.images, args.labels, args.example)
    if not args.images.is_dir():
        raise DatasetError(f"The folder {args.images.absolute()} does not exist")
    folders = args.labels == args.images and has_folder_for_each_image(args.images)
    if folders and not args.class_name:
        raise ConfigError(f"{args.images} has a folder per image: add --class-name")
    if args.class_name and not folders:
        raise ConfigError(
            f"--class-name: {args.images} must have a folder per image, and no image beside them"
        )
    if folders:
        images = read_image_folders(args.images, args.class_name)
    else:
        images = read_labelled_folder(args.images, args.labels)
    names = class_names_of(images)
    parts = split_images(images, args.val_fraction)
    for part, members in zip(("train", "val"), parts, strict=True):
        write_coco(args.output / f"{part}.json", members, names)
        count = sum(len(image.objects) for image in members)
        empty = sum(not image.objects for image in members)
        print(f"{args.output / part}.json: {len(members)} images, {empty} of them without objects, "
              f"{count} objects")  # fmt: skip
    print(f"classes: {', '.join(names)}")
    spellings = Counter(name.casefold() for name in names)
    if alike := [name for name in names if spellings[name.casefold()] > 1]:
        print(f"warning: classes that differ in upper and lower case only: {', '.join(alike)}")


main = entry_point("labels_to_coco", parse_args, run)

if __name__ == "__main__":
    sys.exit(main())
