"""Whether a config needs stuff, and how many classes of it there are."""

from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from solo_d2.config.models import is_panoptic
from solo_d2.data.panoptic_format import fill_metadata
from solo_d2.utils.errors import ConfigError, DatasetError

# Of stuff maps, with "things"; 255 is no label.
MOST_LABELS = 255
_KEY = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"


def resolve_num_stuff_classes(cfg: CfgNode, names: Iterable[str]) -> None:
    """Make MODEL.SEM_SEG_HEAD.NUM_CLASSES of a panoptic model agree with the data sets, in place.

    0 is replaced by the number of the first data set that has stuff, with the class "things". Data
    sets to evaluate on need none: then instances alone are evaluated.

    Args:
        cfg: not frozen. Nothing is done if its model is not panoptic.
        names: registered data sets that count.

    Raises:
        ConfigError: one of DATASETS.TRAIN has no stuff, the number differs from the data set's, or
            there is nothing to take the number from.
        DatasetError: a data set's categories cannot be read or trained on.
    """
    if not is_panoptic(cfg):
        return
    model = cfg.MODEL.META_ARCHITECTURE
    classes = {}
    for name in names:
        if MetadataCatalog.get(name).get("sem_seg_root") is not None:
            fill_metadata(name)
            classes[name] = list(MetadataCatalog.get(name).stuff_classes)
            _require_stuff(name, len(classes[name]), trained=name in cfg.DATASETS.TRAIN)
        elif name in cfg.DATASETS.TRAIN:
            raise ConfigError(
                f"MODEL.META_ARCHITECTURE is {model}, but data set '{name}' of DATASETS.TRAIN has "
                "no stuff to train on. Name one with stuff, as coco_2017_train_panoptic_separated "
                "or shapes_train_panoptic, or register it by DATASETS.COCO_PANOPTIC_FORMAT"
            )
    number = int(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    if not classes:
        if number < 1:
            raise ConfigError(
                "No data set of DATASETS.TRAIN and DATASETS.TEST has stuff, so the number of its "
                f"classes is unknown: name one, or set {_KEY}"
            )
        return
    first = next(iter(classes))
    wanted = len(classes[first])
    if number not in (0, wanted):
        raise ConfigError(
            f"{_KEY} is {number}, but data set '{first}' has {wanted}: {wanted - 1} stuff classes "
            f"and one for all things. Set it to {wanted}, or to 0 to take it from the data set"
        )
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = wanted


def _require_stuff(name: str, num_labels: int, *, trained: bool) -> None:
    """Check the number of stuff classes of a data set, with the class "things"."""
    source = MetadataCatalog.get(name).get("panoptic_json")
    described = f"Data set '{name}'" + (f" ({source})" if source else "")
    if trained and num_labels < 2:
        raise DatasetError(
            f"{described} has no stuff category ('isthing' 0), so there is no stuff to train a "
            "panoptic model on. Train an instance model on it: an instance config such as "
            "configs/coco/solov2_R50_1x.yaml, or MODEL.META_ARCHITECTURE SOLO"
        )
    if num_labels > MOST_LABELS:
        raise DatasetError(
            f"{described} has {num_labels - 1} stuff categories, but a stuff map of 8 bits has "
            f"room for {MOST_LABELS - 1}"
        )
