"""Models for other runtimes: making them (torch, Detectron2), and running them (NumPy, OpenCV).

Nothing is imported here, so that `solo_d2.export.runner` needs neither torch nor Detectron2.
"""
