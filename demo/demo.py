r"""Find the instances in images, videos or camera streams; save overlays and COCO results.

    python demo/demo.py --weights output/quickstart/model_final.pth \
        --input photos/ "more/*.png" --output overlays
    python demo/demo.py --config-file config.yaml --weights model.pth --video-input a.mp4 \
        --output b.mp4 --json b.json
    python demo/demo.py --onnx model.onnx --webcam

Exit codes: 0 success, 1 some files failed (the others are processed) or a video was damaged, 2
nothing could be started or written, 130 after Ctrl-C.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # find the checkout first: in this folder `demo` would be this file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from solo_d2.utils.allocator import keep_freed_memory
    from solo_d2.utils.commands import share_cores

    share_cores()  # before torch is imported
    keep_freed_memory()  # before there are threads

# Set before OpenCV is imported: the demo reports broken videos and missing codecs itself, and does
# not use the fonts that Qt misses.
for variable, value in (
    ("OPENCV_LOG_LEVEL", "OFF"),
    ("OPENCV_FFMPEG_LOGLEVEL", "-8"),
    ("QT_LOGGING_RULES", "default.warning=false"),
):
    os.environ.setdefault(variable, value)

from demo import live, stills  # noqa: E402
from demo.arguments import read_arguments  # noqa: E402
from solo_d2 import ImageError  # noqa: E402
from solo_d2.api.images import limit_pixels  # noqa: E402
from solo_d2.utils.commands import run_command  # noqa: E402


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    return read_arguments(__doc__ or "", argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    args = parse_args(argv)
    limit_pixels(args.max_pixels)
    work = stills.run if args.input else live.run
    return run_command("demo", lambda: min(work(args), 1), errors=(ImageError,))


if __name__ == "__main__":
    sys.exit(main())
