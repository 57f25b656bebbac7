#!/usr/bin/env python3
r"""Try a model in a browser: images, videos, the visitor's camera, and what the network predicts.

    python demo/app.py --weights output/quickstart/model_final.pth
    python demo/app.py --onnx model.onnx --port 8000

The page is for this machine alone unless --host says otherwise. The files of visitors lie in a
temporary folder, which is removed at the end. Needs `pip install -e ".[app]"`.
"""

import argparse
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from solo_d2.utils.commands import share_cores

    share_cores()  # before torch is imported

from demo.arguments import add_model, add_model_options, check_model, load_predictor  # noqa: E402
from solo_d2 import ConfigError  # noqa: E402
from solo_d2.config import add_import_argument  # noqa: E402
from solo_d2.utils.commands import positive, run_command  # noqa: E402

# Visitors that may wait.
MAX_WAITING = 32


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_import_argument(parser)
    add_model(parser)
    add = parser.add_argument_group("page").add_argument
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all networks of "
        "this machine; default: %(default)s")  # fmt: skip
    add("--port", type=positive, help="default: the first free one from 7860")
    add("--max-upload", type=positive, default=50, metavar="MB", help="maximum size of an "
        "uploaded file; default: %(default)s")  # fmt: skip
    add("--max-pixels", type=positive, default=16_000_000, metavar="N",
        help="maximum size of an image or a frame; default: %(default)s")  # fmt: skip
    add("--max-frames", type=positive, default=300, metavar="N", help="frames of a video that are "
        "processed; default: %(default)s")  # fmt: skip
    add_model_options(parser)
    args = parser.parse_args(argv)
    check_model(parser, args)
    return args


def serve(args: argparse.Namespace, folder: Path) -> Any:
    """Load the model and start to serve it in threads, with all files in `folder`.

    Returns:
        gradio's page, which has `block_thread` and `close`.
    """
    import gradio as gr

    from demo.page import Page

    page = Page(load_predictor(args), args, folder).build()
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=2)
    page.launch(
        server_name=args.host,
        server_port=args.port,
        max_file_size=f"{args.max_upload}mb",
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        footer_links=[],
        run_history=False,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    print(f"Serving {args.onnx or args.weights or args.config_file} at {page.local_url}")
    return page


def require_address(host: str, port: int | None) -> None:
    """Raise a ConfigError if nothing can be served at an address, before the model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port or 0), family=family).close()
    except (OSError, OverflowError) as error:
        given = f"--host {host}" + (f" --port {port}" if port else "")
        raise ConfigError(f"{given} cannot be used: {error}") from error


def run(args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C or SIGTERM."""
    if find_spec("gradio") is None:
        raise ConfigError("The package gradio is missing: pip install 'solo_d2[app]'")
    require_address(args.host, args.port)
    with tempfile.TemporaryDirectory(prefix="solo_d2_app_") as folder:
        # gradio reads both when it is imported.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        page = serve(args, Path(folder))
        try:
            page.block_thread()
        finally:
            page.close(verbose=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parse_args(argv)
    return run_command("app", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
