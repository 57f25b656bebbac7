r"""Find instances in image files with an exported model; save overlays and COCO results.

    python -m solo_d2.export.predict --onnx model.onnx --input photos/ --output overlays \
        --json results.json

Requires only NumPy, OpenCV and ONNX Runtime or OpenVINO. Exit codes: 0 for success, 1 if some files
failed (the others are processed), 2 if the command could not start.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from solo_d2.export.overlay import coco_results, draw_instances
from solo_d2.export.reading import read_image
from solo_d2.export.runner import Detector
from solo_d2.export.runtimes import RUNTIMES
from solo_d2.utils.commands import probability, run_command
from solo_d2.utils.files import save_text, whole_file

# Extensions of images in a folder; files named explicitly may have any extension.
EXTENSIONS = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--onnx", required=True, metavar="FILE", help="model file of tools/export_model.py")
    add("--input", nargs="+", required=True, metavar="PATH", help="image files and folders")
    add("--output", type=Path, metavar="DIR", help="folder for overlays, as PNG")
    add("--json", type=Path, metavar="FILE", help="write all results in COCO format")
    add("--confidence-threshold", type=probability, default=0.3, metavar="P", help="minimum score")
    add("--runtime", choices=RUNTIMES, default="onnxruntime", help="default: %(default)s")
    add("--providers", nargs="+", metavar="NAME", help="of ONNX Runtime, best first, such as "
        "CUDAExecutionProvider; default: the CPU's")  # fmt: skip
    add("--threads", type=int, default=0, metavar="N", help="CPU threads; default: one per core")
    args = parser.parse_args(argv)
    if not (args.output or args.json):
        parser.error("specify an output: --output or --json")
    return args


def find_files(paths: Sequence[str]) -> list[Path]:
    """Return the images of files and folders, each once; ValueError for a path without images."""
    files: dict[Path, None] = {}
    for name in paths:
        path = Path(name)
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        inside = [x for x in inside if x.is_file()]
        if path.is_dir():
            # Not the ._photo.jpg that macOS adds for each photo.jpg.
            named = [x for x in inside if not x.name.startswith(".")]
            inside = [x for x in named if x.suffix.lower() in EXTENSIONS]
        if not inside:
            raise ValueError(f"--input {name}: no image file")
        files.update(dict.fromkeys(inside))
    return list(files)


def overlay_names(files: Sequence[Path], folder: Path) -> list[Path]:
    """Return the path of each overlay; ValueError if it would replace an image or another one."""
    overlays = [folder / f"{file.stem}.png" for file in files]
    if len(set(overlays)) < len(files):
        raise ValueError("--output: images with equal names need separate runs and output folders")
    inputs = {file.resolve() for file in files}
    for overlay in overlays:
        if overlay.resolve() in inputs:
            raise ValueError(f"--output {folder} would replace the image {overlay}")
    return overlays


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    files = find_files(args.input)
    overlays = overlay_names(files, args.output) if args.output else [None] * len(files)
    if args.json and (args.json.is_dir() or args.json.resolve() in {x.resolve() for x in files}):
        raise ValueError(f"--json {args.json} is a folder or an image: name another file")
    detector = Detector.load(
        args.onnx, args.runtime, providers=args.providers, threads=args.threads
    )
    thresh = args.confidence_threshold
    results: list[dict[str, Any]] = []
    failures = []
    for image_id, (file, overlay) in enumerate(zip(files, overlays, strict=True)):
        try:
            image = read_image(file)
            (found,) = detector([image], channel_order="BGR", score_thresh=thresh)
        except ValueError as error:
            failures.append(f"{file}: " + str(error).removeprefix(f"{file}: "))
            continue
        if overlay is not None:
            with whole_file(overlay) as path:
                drawn = draw_instances(image, found, detector.info.class_names)
                path.write_bytes(cv2.imencode(".png", drawn)[1].tobytes())
        results += coco_results(found, image_id, str(file), detector.info.class_ids)
    if args.json:
        save_text(args.json, json.dumps(results, allow_nan=False))
    print(f"{len(files) - len(failures)} of {len(files)} images, {len(results)} instances")
    for line in failures:
        print(f"predict: skipped {line}", file=sys.stderr)
    return 1 if failures else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; return the exit code."""
    args = parse_args(argv)
    return run_command("predict", lambda: run(args), errors=(ValueError,))


if __name__ == "__main__":
    sys.exit(main())
