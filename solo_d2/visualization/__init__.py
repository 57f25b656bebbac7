"""Pictures: overlays of results, and how the method works, drawn by the code that does it."""
