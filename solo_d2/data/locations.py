"""Describe where Detectron2 looks for data sets. Does not import Detectron2."""

import os
from pathlib import Path

# What Detectron2 expects below DETECTRON2_DATASETS, by a part of the data set's name; first fit.
_LAYOUTS = {
    "lvis": "coco/{train,val}2017/*.jpg and lvis/lvis_v1_{train,val}.json",
    "cityscapes_fine_panoptic": (
        "cityscapes/leftImg8bit/{train,val}/, cityscapes/gtFine/{train,val}/ and, made by "
        "cityscapesscripts/preparation/createPanopticImgs.py, "
        "cityscapes/gtFine/cityscapes_panoptic_{train,val}.json and the folders of the same names"
    ),
    "cityscapes": "cityscapes/leftImg8bit/{train,val}/ and cityscapes/gtFine/{train,val}/",
    "coco_2014": "coco/annotations/instances_{train,val}2014.json and coco/{train,val}2014/*.jpg",
    "panoptic": (
        "coco/annotations/panoptic_{train,val}2017.json, coco/panoptic_{train,val}2017/*.png, "
        "coco/panoptic_stuff_{train,val}2017/*.png (made by tools/convert_panoptic.py "
        "--stuff-only), coco/annotations/instances_{train,val}2017.json and "
        "coco/{train,val}2017/*.jpg"
    ),
    "coco_2017": "coco/annotations/instances_{train,val}2017.json and coco/{train,val}2017/*.jpg",
}


def datasets_root() -> Path:
    """Return the root of Detectron2's built-in data sets: DETECTRON2_DATASETS, or `datasets`."""
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


def where_datasets_are(name: str) -> str:
    """Describe the search path of a data set and, if built in, its expected layout."""
    variable = os.environ.get("DETECTRON2_DATASETS")
    state = f"'{variable}'" if variable is not None else "not set (so it is 'datasets')"
    layout = next((text for key, text in _LAYOUTS.items() if key in name), None)
    if layout is None:
        return f"Relative paths start at {Path.cwd()}; DETECTRON2_DATASETS is {state}."
    return (
        f"DETECTRON2_DATASETS is {state}; in {datasets_root().absolute()} Detectron2 expects "
        f"{layout} (more in its datasets/README.md)."
    )
