"""Rerun the ablation tables of the papers; `tools/ablate.py` is the command."""
