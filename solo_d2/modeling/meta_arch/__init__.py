"""The meta-architectures."""

from solo_d2.modeling.meta_arch.panoptic import PanopticSOLO
from solo_d2.modeling.meta_arch.solo import SOLO

__all__ = ["SOLO", "PanopticSOLO"]
