"""Check a data set before training; `tools/check_dataset.py` is the command."""
