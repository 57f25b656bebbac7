"""The Python API: `from solo_d2 import Predictor`.

Nothing is imported here, so that `solo_d2.api.images` needs neither torch nor Detectron2.
"""
