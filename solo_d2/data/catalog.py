"""Data sets of a config: registration, number of classes, checks before training."""

import difflib
import functools
import inspect
import os
from collections.abc import Callable, Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from solo_d2.config.models import is_panoptic
from solo_d2.data.classes import (
    Category,
    dataset_categories,
    difference,
    model_categories,
    stuff,
    things,
)
from solo_d2.data.coco_format import register_coco_format
from solo_d2.data.ignored import log_ignored
from solo_d2.data.locations import where_datasets_are
from solo_d2.data.own_loaders import use_own_loaders
from solo_d2.data.panoptic_format import fill_metadata, register_panoptic_format
from solo_d2.utils.errors import ConfigError, DatasetError
from solo_d2.utils.user_code import from_user_code, note_part

# Keys of DATASETS that are lists of data sets -> function that registers one. It takes the strings
# of an entry, the name first, and does nothing if the same files are registered.
DATASET_FORMATS: dict[str, Callable[..., None]] = {
    "COCO_FORMAT": register_coco_format,
    "COCO_PANOPTIC_FORMAT": register_panoptic_format,
}


def register_datasets_of_config(cfg: CfgNode) -> None:
    """Register the data sets of the keys of `DATASET_FORMATS`; may be called again.

    Those in DATASETS.TRAIN and TEST get our loaders, see `use_own_loaders`. Raises ConfigError if
    an entry is invalid, or its name is registered for other files.
    """
    for key, register in DATASET_FORMATS.items():
        signature = inspect.signature(register)
        for entry in cfg.DATASETS.get(key, ()):
            try:
                if isinstance(entry, str) or not all(isinstance(part, str) for part in entry):
                    raise TypeError("all parts must be strings")
                signature.bind(*entry)
            except TypeError as error:
                parts = signature.parameters.values()
                names = [x.name for x in parts if x.kind is x.POSITIONAL_OR_KEYWORD]
                raise ConfigError(
                    f"DATASETS.{key} must be a list of [{', '.join(names)}]; one entry is "
                    f"{entry!r}: {error}"
                ) from None
            register(*entry)
    use_own_loaders((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))


def resolve_num_classes(cfg: CfgNode, names: Iterable[str] | None = None) -> int:
    """Set or check MODEL.SOLO.NUM_CLASSES by the data sets, in place.

    0 is replaced by the number of thing classes of the first training (else test) data set. A
    config without data sets, as for inference, keeps its number. For panoptic models the same
    applies to MODEL.SEM_SEG_HEAD.NUM_CLASSES, the stuff classes and the class "things". Data sets
    for evaluation need no stuff; then only instances are evaluated.

    Args:
        cfg: config with this project's keys; may be frozen, and stays so.
        names: data sets to use; None for DATASETS.TRAIN, then DATASETS.TEST. To evaluate without
            the training data, pass those of DATASETS.TEST.

    Returns:
        The number of thing classes.

    Raises:
        ConfigError: a number differs from the data set's, the data sets differ, a number is 0
            without a data set, or a panoptic model has no stuff to train on.
        DatasetError: a data set is not registered, or its categories cannot be read.
    """
    register_datasets_of_config(cfg)
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if names is None else tuple(names)
    classes = {f"data set '{name}'": categories(name) for name in names}
    number = int(cfg.MODEL.SOLO.NUM_CLASSES)
    if classes:
        _require_equal_classes(classes, with_stuff=is_panoptic(cfg))
        first = next(iter(classes))
        wanted = len(things(classes[first]))
        if wanted < 1:
            raise DatasetError(
                f"Data set '{names[0]}' has no categories, so there is nothing to train on"
            )
        if number not in (0, wanted):
            raise ConfigError(
                f"MODEL.SOLO.NUM_CLASSES is {number}, but {first} has {wanted} classes. "
                f"Set it to {wanted}, or to 0 to take the number from the data set"
            )
        number = wanted
    if number < 1:
        raise ConfigError(
            "MODEL.SOLO.NUM_CLASSES is 0 and DATASETS.TRAIN and DATASETS.TEST are empty: "
            "set one of them, so that the number of classes is known"
        )
    num_labels = _num_stuff_labels(cfg, names) if is_panoptic(cfg) else None
    frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.MODEL.SOLO.NUM_CLASSES = number
    if num_labels is not None:
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = num_labels
    if frozen:
        cfg.freeze()
    return number


def _num_stuff_labels(cfg: CfgNode, names: Iterable[str]) -> int:
    """Return the number of stuff classes of a panoptic model, including the class "things"."""
    key, number = "MODEL.SEM_SEG_HEAD.NUM_CLASSES", int(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    labels: dict[str, int] = {}
    for name in names:
        trained = name in cfg.DATASETS.TRAIN
        if MetadataCatalog.get(name).get("sem_seg_root") is not None:
            labels[name] = _count_labels(name, trained)
        elif trained:
            raise ConfigError(
                f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, but data set '{name}' "
                "of DATASETS.TRAIN has no stuff to train on. Name one with stuff, as "
                "coco_2017_train_panoptic_separated or shapes_train_panoptic, or register it by "
                "DATASETS.COCO_PANOPTIC_FORMAT"
            )
    if not labels:
        if number < 1:
            raise ConfigError(
                "No data set of DATASETS.TRAIN and DATASETS.TEST has stuff, so the number of its "
                f"classes is unknown: name one, or set {key}"
            )
        return number
    first, wanted = next(iter(labels.items()))
    if number not in (0, wanted):
        raise ConfigError(
            f"{key} is {number}, but data set '{first}' has {wanted}: {wanted - 1} stuff classes "
            f"and one for all things. Set it to {wanted}, or to 0 to take it from the data set"
        )
    return wanted


def _count_labels(name: str, trained: bool) -> int:
    """Return the number of stuff classes of a data set, including the class "things"."""
    fill_metadata(name)
    metadata = MetadataCatalog.get(name)
    num_labels, source = len(metadata.stuff_classes), metadata.get("panoptic_json")
    described = f"Data set '{name}'" + (f" ({source})" if source else "")
    if trained and num_labels < 2:
        raise DatasetError(
            f"{described} has no stuff category ('isthing' 0), so there is no stuff to train a "
            "panoptic model on. Train an instance model on it: an instance config such as "
            "configs/coco/solov2_R50_1x.yaml, or MODEL.META_ARCHITECTURE SOLO"
        )
    return num_labels


def class_names(name: str) -> list[str]:
    """Return the thing classes of a registered data set by index; see `categories`."""
    return [category["name"] for category in things(categories(name))]


def categories(name: str) -> list[Category]:
    """Return the classes of a registered data set: things, then stuff if it has stuff maps.

    Raises DatasetError if it is not registered, or its categories cannot be read.
    """
    _require_usable(name)
    found = dataset_categories(name)
    if not found and MetadataCatalog.get(name).get("thing_classes") is None:
        raise DatasetError(
            f"The metadata of data set '{name}' has no thing_classes, so it has no instances to "
            f"train on. Set them by MetadataCatalog.get('{name}').thing_classes = [...]"
        )
    return found


def training_categories(cfg: CfgNode) -> list[Category]:
    """Return MODEL.CLASSES for training: the classes of DATASETS.TRAIN[0], empty without one.

    Stuff is included only for a panoptic model.
    """
    found = categories(cfg.DATASETS.TRAIN[0]) if cfg.DATASETS.TRAIN else []
    return found if is_panoptic(cfg) else things(found)


def require_model_classes(cfg: CfgNode, names: Iterable[str]) -> None:
    """Check that data sets have the classes of the model, MODEL.CLASSES, unless that is empty.

    Category ids may differ. Raises ConfigError that lists the differences, or DatasetError if a
    data set cannot be used.
    """
    own = model_categories(cfg)
    if own:
        classes = {f"data set '{name}'": categories(name) for name in names}
        _require_equal_classes({"the model": own, **classes}, with_stuff=is_panoptic(cfg))


def _require_equal_classes(classes: dict[str, list[Category]], *, with_stuff: bool) -> None:
    """Compare the first list with the others; ignore stuff if one of both has none."""
    (first, expected), *others = classes.items()
    for name, found in others:
        pair = (expected, found)
        if not (with_stuff and stuff(expected) and stuff(found)):
            pair = (things(expected), things(found))
        differs = difference(*pair, (first, name))
        if differs:
            raise ConfigError(f"The classes of {first} and {name} differ: {differs}")


def check_datasets(names: Iterable[str]) -> None:
    """Check that data sets are registered and their files exist, without loading them.

    Raises DatasetError with the data set, its expected location and layout. From then on, loading
    the data set raises DatasetError for all errors, too.
    """
    for name in names:
        _require_usable(name)
        _require_paths(name, MetadataCatalog.get(name))
        use_own_loaders([name])
        _report_load_errors(name)


def _require_usable(name: str) -> None:
    """Raise DatasetError for unregistered data sets, and those of Detectron2 without instances."""
    if name not in DatasetCatalog:
        close = difflib.get_close_matches(name, DatasetCatalog.list(), n=4, cutoff=0.5)
        hint = f" Close names: {', '.join(close)}." if close else ""
        raise DatasetError(
            f"Data set '{name}' is not registered.{hint} Register a folder in COCO format by the "
            f"config: DATASETS.COCO_FORMAT \"[['{name}', 'annotations.json', 'images']]\""
        )
    if MetadataCatalog.get(name).get("label_divisor") is not None:
        separated = f"{name}_separated"
        cure = "name one with instances and stuff maps"
        if separated in DatasetCatalog:
            cure = f"name '{separated}'"
        raise DatasetError(
            f"Data set '{name}' is in Detectron2's standard panoptic format, which numbers things "
            f"and stuff together and lists no instances; SOLO needs both apart: {cure}"
        )


# Metadata keys of files and folders in Detectron2's registration functions.
_PATH_KEYS = {
    "json_file": "annotation file",
    "image_root": "image folder",
    "image_dir": "image folder",
    "gt_dir": "annotation folder",
    "dirname": "folder",
    "panoptic_json": "panoptic annotation file",
    "panoptic_root": "folder of panoptic PNGs",
    "sem_seg_root": "folder of semantic PNGs",
}


def _require_paths(name: str, metadata: Any) -> None:
    """Check the paths of the metadata, except those in `made_on_first_use` (True for all)."""
    made = metadata.get("made_on_first_use", ())
    for key, meaning in _PATH_KEYS.items():
        value = metadata.get(key)
        if value is None or made is True or key in made or "://" in value or os.path.exists(value):
            continue
        raise DatasetError(
            f"The {meaning} of data set '{name}' is missing: looked for {os.path.abspath(value)}. "
            + where_datasets_are(name)
        )


def _report_load_errors(name: str) -> None:
    """Make the catalog's loader raise DatasetError, and log once what training ignores."""
    loader = DatasetCatalog[name]
    if getattr(loader, "reports_errors", False):
        return
    logged = False

    def load() -> list[dict[str, Any]]:
        nonlocal logged
        metadata = MetadataCatalog.get(name)
        try:
            records = loader()
        except DatasetError:
            raise
        except Exception as error:
            if from_user_code(error):
                note_part(error, f"Data set '{name}' cannot be loaded")
                raise
            source = metadata.get("json_file") or metadata.get("image_root") or "its files"
            raise DatasetError(
                f"Data set '{name}' cannot be loaded from {source}: "
                f"{type(error).__name__}: {error}. " + where_datasets_are(name)
            ) from error
        if not logged and isinstance(records, list):
            log_ignored(name, records, metadata.get("thing_classes"))
            logged = True
        return records

    functools.update_wrapper(load, loader, updated=())
    load.reports_errors = True  # type: ignore[attr-defined]
    DatasetCatalog[name] = load
