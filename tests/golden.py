"""Golden values: small random inputs with the outputs of the published implementations.

`NAME.k` belongs to pyramid level k, `imgB.NAME` to image B; `NAME_bits` and `NAME_shape` are a
packed boolean array.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"


def load_golden(name: str) -> dict[str, Tensor]:
    """Read a file of golden values; bits are unpacked, text and flags of errors are left out."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    values = {}
    for key, array in arrays.items():
        if "_bits" in key:
            # Masks of other runs of the same instances have no shape of their own.
            shape = arrays[key.replace("_bits", "_shape").replace("stride4", "pred")]
            bits = np.unpackbits(array)[: int(np.prod(shape))].astype(bool)
            values[key.replace("_bits", "")] = torch.from_numpy(bits.reshape(shape))
        elif array.dtype.kind != "U" and key.replace("_shape", "_bits") not in {*arrays} - {key}:
            values[key] = torch.from_numpy(np.atleast_1d(array)).reshape(array.shape)
    return values


def levels(values: dict[str, Tensor], name: str) -> list[Tensor]:
    """`name.0`, `name.1`, ... as far as they go."""
    found = []
    while f"{name}.{len(found)}" in values:
        found.append(values[f"{name}.{len(found)}"])
    return found
