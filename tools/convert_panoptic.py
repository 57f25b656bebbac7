#!/usr/bin/env python3
r"""Convert COCO's panoptic format to instances and stuff maps for training.

    python tools/convert_panoptic.py --json my/panoptic.json --png-dir my/panoptic
    python tools/convert_panoptic.py --json coco/annotations/panoptic_train2017.json \
        --png-dir coco/panoptic_train2017 --output coco/panoptic_stuff_train2017 --stuff-only

The first writes instances.json and stuff/*.png to a folder beside the PNGs. Training does this
automatically; the command also accepts other folders. The second writes the stuff maps of
Detectron2's coco_2017_train_panoptic_separated. Errors in the files are reported; then nothing is
written and the exit code is 2.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from solo_d2.data.panoptic_conversion import (  # noqa: E402
    STAMP,
    default_folder,
    ensure_converted,
    write_stuff_maps,
)
from tools.arguments import entry_point, plain_parser  # noqa: E402


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = plain_parser(__doc__)
    add = parser.add_argument
    add("--json", required=True, metavar="FILE", help="panoptic JSON")
    add("--png-dir", required=True, metavar="DIR", help="folder of its PNGs")
    add("--images", metavar="DIR", help="folder of the images, if they are in subfolders")
    add("--output", metavar="DIR", help="default: the PNG folder with suffix _converted")
    add("--force", action="store_true", help="convert again, for example after the PNGs changed")
    add(
        "--stuff-only",
        action="store_true",
        help="write only the stuff maps, directly into --output",
    )
    args = parser.parse_args(argv)
    if args.stuff_only and (not args.output or args.force or args.images):
        parser.error("--stuff-only needs --output, and excludes --force and --images")
    return args


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.stuff_only:
        folder = write_stuff_maps(args.json, args.png_dir, args.output)
    else:
        stamp = Path(args.output or default_folder(args.png_dir)) / STAMP
        before = stamp.stat().st_mtime_ns if stamp.is_file() else None
        folder = ensure_converted(
            args.json, args.png_dir, args.output, image_root=args.images, force=args.force
        )
        if before == stamp.stat().st_mtime_ns:
            print("The JSON is unchanged: nothing was converted. --force converts again")
    print(f"The conversion is in {folder.absolute()}")


main = entry_point("convert_panoptic", parse_args, run)

if __name__ == "__main__":
    sys.exit(main())
