"""What DATASETS.* of a config names: registration, number of classes, checks before training."""

import contextlib
import difflib
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
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
from solo_d2.data.panoptic_format import register_panoptic_format
from solo_d2.data.stuff_classes import resolve_num_stuff_classes
from solo_d2.utils.errors import ConfigError, DatasetError
from solo_d2.utils.user_code import from_user_code, note_part

# Keys of DATASETS that are lists of data sets, with the function that registers one. It is called
# with the texts of an entry, the name first, and does nothing if the same files are registered.
DATASET_FORMATS: dict[str, Callable[..., None]] = {
    "COCO_FORMAT": register_coco_format,
    "COCO_PANOPTIC_FORMAT": register_panoptic_format,
}


def register_datasets_of_config(cfg: CfgNode) -> None:
    """Register the data sets of the keys of `DATASET_FORMATS`; again is harmless.

    Detectron2's LVIS data sets in DATASETS.TRAIN and TEST get a loader that needs no other package.

    Raises:
        ConfigError: an entry has another form, or its name already means other files.
    """
    for key, register in DATASET_FORMATS.items():
        signature = inspect.signature(register)
        for entry in cfg.DATASETS.get(key, ()):
            try:
                if isinstance(entry, str) or not all(isinstance(part, str) for part in entry):
                    raise TypeError("all parts must be texts")
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
    """Make MODEL.SOLO.NUM_CLASSES agree with the data sets, in place.

    0 is replaced by the number of thing classes of the first training (else test) data set. A
    config that names no data set, as for inference, keeps its number. The number of stuff classes
    of a panoptic model is treated likewise, see `resolve_num_stuff_classes`.

    Args:
        cfg: with this project's keys; may be frozen, and is again afterwards.
        names: data sets that count; None: those of DATASETS.TRAIN, then of DATASETS.TEST. To
            evaluate where the training data is not, name those of DATASETS.TEST.

    Returns:
        The number of thing classes.

    Raises:
        ConfigError: the number differs from the data set's, data sets differ from each other, or
            there is nothing to take the number from.
        DatasetError: a data set is unknown, or its categories cannot be read.
    """
    register_datasets_of_config(cfg)
    if names is None:
        names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    names = tuple(names)
    classes = {f"data set '{name}'": categories(name) for name in names}
    number = int(cfg.MODEL.SOLO.NUM_CLASSES)
    if not classes:
        if number < 1:
            raise ConfigError(
                "MODEL.SOLO.NUM_CLASSES is 0 and DATASETS.TRAIN and DATASETS.TEST are empty: "
                "set one of them, so that the number of classes is known"
            )
        with _defrosted(cfg):
            resolve_num_stuff_classes(cfg, names)
        return number
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
    with _defrosted(cfg):
        resolve_num_stuff_classes(cfg, names)
        cfg.MODEL.SOLO.NUM_CLASSES = wanted
    return wanted


@contextlib.contextmanager
def _defrosted(cfg: CfgNode) -> Iterator[None]:
    frozen = cfg.is_frozen()
    cfg.defrost()
    try:
        yield
    finally:
        if frozen:
            cfg.freeze()


def class_names(name: str) -> list[str]:
    """Thing classes of a registered data set, in the order of their indices; see `categories`."""
    return [category["name"] for category in things(categories(name))]


def categories(name: str) -> list[Category]:
    """Classes of a registered data set: things, then stuff where it has stuff maps.

    Raises:
        DatasetError: it is unknown, or its categories cannot be read.
    """
    _require_known(name)
    _refuse_unseparated(name)
    found = dataset_categories(name)
    if not found and MetadataCatalog.get(name).get("thing_classes") is None:
        raise DatasetError(
            f"The metadata of data set '{name}' has no thing_classes, so it has no instances to "
            f"train on. Set them by MetadataCatalog.get('{name}').thing_classes = [...]"
        )
    return found


def training_categories(cfg: CfgNode) -> list[Category]:
    """What MODEL.CLASSES of a model that is trained is: the classes of DATASETS.TRAIN[0].

    Args:
        cfg: DATASETS.TRAIN and MODEL.META_ARCHITECTURE are read.

    Returns:
        The categories, of stuff only for a panoptic model; empty without a training data set.

    Raises:
        DatasetError: see `categories`.
    """
    found = categories(cfg.DATASETS.TRAIN[0]) if cfg.DATASETS.TRAIN else []
    return found if is_panoptic(cfg) else things(found)


def require_model_classes(cfg: CfgNode, names: Iterable[str]) -> None:
    """Check that data sets to evaluate on have the classes of the model, MODEL.CLASSES.

    Category ids may differ. Nothing is checked if MODEL.CLASSES is empty.

    Args:
        cfg: of the model.
        names: registered data sets.

    Raises:
        ConfigError: they have other classes; the message names those that only one of them has.
        DatasetError: see `categories`.
    """
    own = model_categories(cfg)
    if own:
        classes = {f"data set '{name}'": categories(name) for name in names}
        _require_equal_classes({"the model": own, **classes}, with_stuff=is_panoptic(cfg))


def _require_equal_classes(classes: dict[str, list[Category]], *, with_stuff: bool) -> None:
    """Compare the first with the others; stuff only with those that have some."""
    (first, expected), *others = classes.items()
    for name, found in others:
        pair = (expected, found)
        if not (with_stuff and stuff(expected) and stuff(found)):
            pair = (things(expected), things(found))
        differs = difference(*pair, (first, name))
        if differs:
            raise ConfigError(f"The classes of {first} and {name} differ: {differs}")


def check_datasets(names: Iterable[str]) -> None:
    """Check, without loading anything, that data sets are registered and their files are there.

    What goes wrong later, while one of them is loaded, is reported as a DatasetError too.

    Args:
        names: of DATASETS.TRAIN and DATASETS.TEST.

    Raises:
        DatasetError: naming the data set, where it was looked for and what belongs there.
    """
    for name in names:
        _require_known(name)
        _refuse_unseparated(name)
        _require_paths(name, MetadataCatalog.get(name))
        use_own_loaders([name])
        _report_load_errors(name)


def _refuse_unseparated(name: str) -> None:
    """Detectron2's "standard" panoptic data sets list no instances: name those that do."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("label_divisor") is None:
        return
    separated = f"{name}_separated"
    cure = "name one with instances and stuff maps"
    if separated in DatasetCatalog:
        cure = f"name '{separated}'"
    raise DatasetError(
        f"Data set '{name}' is in Detectron2's standard panoptic format, which numbers things and "
        f"stuff together and lists no instances; SOLO needs both apart: {cure}"
    )


def _require_known(name: str) -> None:
    if name in DatasetCatalog:
        return
    close = difflib.get_close_matches(name, DatasetCatalog.list(), n=4, cutoff=0.5)
    hint = f" Close names: {', '.join(close)}." if close else ""
    raise DatasetError(
        f"Data set '{name}' is not registered.{hint} Register a folder in COCO format by the "
        f"config: DATASETS.COCO_FORMAT \"[['{name}', 'annotations.json', 'images']]\""
    )


# Metadata keys that name files and folders, in Detectron2's registration functions.
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
    """Check paths of the metadata, less those that `made_on_first_use` names (True: all)."""
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
    """Make the catalog's entry raise DatasetError where Detectron2's loader fails."""
    loader = DatasetCatalog[name]
    if not isinstance(loader, _ReportingLoader):
        DatasetCatalog[name] = _ReportingLoader(name, loader)


class _ReportingLoader:
    """A data set's loader whose errors name the data set, and that logs once what is ignored."""

    def __init__(self, name: str, loader: Callable[[], list[dict[str, Any]]]) -> None:
        self.name = name
        self.loader = loader
        self.logged = False
        functools.update_wrapper(self, loader, updated=())

    def __call__(self) -> list[dict[str, Any]]:
        try:
            records = self.loader()
        except DatasetError:
            raise
        except Exception as error:
            if from_user_code(error):
                note_part(error, f"Data set '{self.name}' cannot be loaded")
                raise
            metadata = MetadataCatalog.get(self.name)
            source = metadata.get("json_file") or metadata.get("image_root") or "its files"
            raise DatasetError(
                f"Data set '{self.name}' cannot be loaded from {source}: "
                f"{type(error).__name__}: {error}. " + where_datasets_are(self.name)
            ) from error
        if not self.logged and isinstance(records, list):
            log_ignored(self.name, records, MetadataCatalog.get(self.name).get("thing_classes"))
            self.logged = True
        return records
