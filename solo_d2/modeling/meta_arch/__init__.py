"""The meta-architectures."""

from solo_d2.modeling.meta_arch.solo import SOLO

__all__ = ["SOLO"]
