"""Repeat a training step that produced non-finite values, and locate their origin.

    python tools/replay_step.py output/bad_step_0001234.pth

The training writes the file when it stops; no code in it is run. Prints the loss terms, the first
module with a non-finite output, and the parameters with non-finite gradients. Exit codes: 0 all
values were finite this time, 1 some were not, 2 the file cannot be used.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from solo_d2.utils.commands import share_cores

    share_cores()  # before torch is imported

from solo_d2.engine.bad_step import read_bad_step  # noqa: E402
from solo_d2.engine.replay import rebuild_model, replay_step  # noqa: E402
from tools.arguments import command_parser, entry_point  # noqa: E402


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("file", help="bad_step_*.pth in OUTPUT_DIR of the training")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    parser.add_argument("--lazy-config", metavar="FILE", help="config.yaml or .py file of "
        "a training by tools/lazyconfig_train_net.py; run as code")  # fmt: skip
    return parser.parse_args(argv)


def replay(args: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    content = read_bad_step(args.file)
    print(f"Iteration {content['iteration']}, {content['precision']}: {content['message']}")
    is_finite = True
    for process in content["batches"]:
        found = replay_step(rebuild_model(content, args.device, args.lazy_config), content, process)
        first = found["outputs"][0] if found["outputs"] else "none"
        print(f"Process {process}:")
        print(f"  weights that were not finite before the step: {_some(found['weights'])}")
        for name, loss in found["losses"].items():
            print(f"  {name}: {loss:g}")
        print(f"  first module whose output is not finite: {first or 'the model itself'}")
        print(f"  gradients that are not finite: {_some(found['gradients'])}")
        losses_are_finite = all(map(math.isfinite, found["losses"].values()))
        is_finite &= losses_are_finite and not found["outputs"] and not found["gradients"]
    return 0 if is_finite else 1


def _some(names: Sequence[str], most: int = 10) -> str:
    listed = ", ".join(names[:most]) + ", ..." * (len(names) > most)
    return f"{len(names)}: {listed}" if names else "none"


main = entry_point("replay_step", parse_args, replay)

if __name__ == "__main__":
    sys.exit(main())
