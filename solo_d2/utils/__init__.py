"""Errors, files, images and commands: what needs nothing of the rest of the project."""
