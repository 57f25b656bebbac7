#!/usr/bin/env python3
"""Rerun the ablation tables of the papers; see tools/ablations."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.ablations.command import main, parse_args  # noqa: E402, F401

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
