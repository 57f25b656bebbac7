"""Exporting models (torch, Detectron2) and running exported models (NumPy, OpenCV).

Nothing is imported here, so that `solo_d2.export.runner` needs neither torch nor Detectron2.
"""
