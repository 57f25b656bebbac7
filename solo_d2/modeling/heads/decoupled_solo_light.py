"""The light head of Decoupled SOLO, from the published code: one mask tower for both maps."""

from torch import Tensor

from solo_d2.modeling.heads.base import SOLO_HEAD_REGISTRY, resize
from solo_d2.modeling.heads.decoupled_solo import DecoupledSOLOHead


@SOLO_HEAD_REGISTRY.register()
class DecoupledSOLOLightHead(DecoupledSOLOHead):
    """`DecoupledSOLOHead` whose maps of columns and rows share a mask tower that sees x and y."""

    def _make_mask_towers(self, num_coord_convs: int) -> None:
        self.mask_tower = self._make_tower(coords="xy", num_coord_convs=num_coord_convs)

    def mask_features(self, feature: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The feature of both maps, twice; see `DecoupledSOLOHead.mask_features`."""
        shared = resize(self.mask_tower(feature), size)
        return shared, shared
