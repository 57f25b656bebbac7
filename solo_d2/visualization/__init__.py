"""Overlays of results, and a tracker for consistent colours in video."""
