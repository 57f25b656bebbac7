"""Unique class names, for data sets with several classes of one name."""

from collections.abc import Sequence
from typing import Any


def unique_names(names: Sequence[str], ids: Sequence[Any]) -> list[str]:
    """Append the category id to repeated names, as in "cat (id 12)"."""
    found: list[str] = []
    taken = set(names)
    for name, key in zip(names, ids, strict=True):
        unique = name
        while unique in found or (unique != name and unique in taken):
            unique = f"{unique} (id {key})"
        found.append(unique)
    return found


def unique_class_names(metadata: Any, kind: str = "thing") -> list[str]:
    """Return unique class names of a data set's metadata, of `kind` "thing" or "stuff"."""
    names = list(metadata.get(f"{kind}_classes"))
    indices = metadata.get(f"{kind}_dataset_id_to_contiguous_id") or {}
    ids = {index: key for key, index in indices.items()}
    return unique_names(names, [ids.get(index, index) for index in range(len(names))])
