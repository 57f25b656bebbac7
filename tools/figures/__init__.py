"""Figures of the method, of activations and of published models."""
