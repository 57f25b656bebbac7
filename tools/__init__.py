"""Programs that set up, train, measure, convert and draw: `python tools/NAME.py`."""
