"""Drawings of how SOLO works, for tools/draw_method.py and tools/draw_activations.py."""
