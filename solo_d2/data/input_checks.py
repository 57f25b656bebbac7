"""Check the settings of INPUT, TEST and DATALOADER before images are read."""

from importlib.util import find_spec

from detectron2.config import CfgNode

from solo_d2.config.check import check_config
from solo_d2.config.rules import PROBABILITY, Rule, above, at_least, between, each, one_of, require

SECTIONS = ("INPUT", "TEST.AUG", "TEST.TILES", "DATALOADER", "MODEL.SEM_SEG_HEAD.IGNORE_VALUE")
# Samplers of Detectron2 that need no other keys than its defaults.
SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")

_PIXELS = at_least(1, " pixel")
_SHORT_SIDE = at_least(0, " pixels; 0 leaves images as they are")
RULES = {
    "INPUT.MIN_SIZE_TRAIN": each(_SHORT_SIDE),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": one_of(("choice", "range")),
    "INPUT.MAX_SIZE_TRAIN": _PIXELS,
    "INPUT.MIN_SIZE_TEST": _SHORT_SIDE,
    "INPUT.MAX_SIZE_TEST": _PIXELS,
    "INPUT.RANDOM_FLIP": one_of(("horizontal", "vertical", "none")),
    "INPUT.MAX_PIXELS": _PIXELS,
    "INPUT.FORMAT": one_of(("BGR", "RGB")),
    "INPUT.MASK_FORMAT": one_of(("bitmask", "polygon")),
    "INPUT.CROP.TYPE": one_of(("relative_range", "relative", "absolute", "absolute_range")),
    "INPUT.LSJ.SIZE": _PIXELS,
    "INPUT.LSJ.SCALE_RANGE": Rule(
        lambda scales: len(scales) == 2 and 0 < scales[0] <= scales[1],
        "two numbers above 0, the smaller first",
    ),
    "INPUT.COPY_PASTE.PROB": PROBABILITY,
    "INPUT.COPY_PASTE.INSTANCE_PROB": PROBABILITY,
    # Detectron2 cannot flip an image that is one pixel wide.
    "TEST.AUG.MIN_SIZES": each(at_least(2, " pixels"), empty=True),
    "TEST.AUG.MAX_SIZE": _PIXELS,
    "TEST.TILES.SIZE": at_least(0, " pixels; 0 for no tiles"),
    "DATALOADER.NUM_WORKERS": at_least(0),
    "DATALOADER.MAX_UNREADABLE_IMAGES": at_least(0),
    "DATALOADER.SAMPLER_TRAIN": one_of(SAMPLERS),
    "DATALOADER.REPEAT_THRESHOLD": between(0, 1),
}
_CROPS = {
    "relative": above(0, 1),
    "relative_range": above(0, 1),
    "absolute": Rule(lambda side: side >= 1 and side == int(side), "a whole number of pixels"),
}
_CROPS["absolute_range"] = _CROPS["absolute"]


def check_input_config(cfg: CfgNode) -> None:
    """Raise ConfigError for the first invalid key or combination of keys."""
    check_config(cfg, SECTIONS, RULES)
    given, views = cfg.INPUT, cfg.TEST.AUG
    test_sizes = views.MIN_SIZES if views.ENABLED else ()
    for key, value, largest, limit in (
        ("INPUT.MIN_SIZE_TRAIN", given.MIN_SIZE_TRAIN, "MAX_SIZE_TRAIN", given.MAX_SIZE_TRAIN),
        ("INPUT.MIN_SIZE_TEST", given.MIN_SIZE_TEST, "MAX_SIZE_TEST", given.MAX_SIZE_TEST),
        ("TEST.AUG.MIN_SIZES", test_sizes, "MAX_SIZE", views.MAX_SIZE),
    ):
        # The short side can never be longer than the limit of the long side.
        sides = [value] if isinstance(value, int) else value
        require(max(sides, default=0) <= limit, key, value, f"at most {largest} ({limit})")
    allowed = "one or more sizes with TEST.AUG.ENABLED, one for each view"
    require(not views.ENABLED or len(test_sizes) > 0, "TEST.AUG.MIN_SIZES", test_sizes, allowed)
    if given.MIN_SIZE_TRAIN_SAMPLING == "range":
        sides = given.MIN_SIZE_TRAIN
        ordered = len(sides) == 2 and sides[0] <= sides[1]
        allowed = "the least and the largest side with MIN_SIZE_TRAIN_SAMPLING 'range'"
        require(ordered, "INPUT.MIN_SIZE_TRAIN", sides, allowed)
    prob, mask_format = cfg.INPUT.COPY_PASTE.PROB, given.MASK_FORMAT
    allowed = f"'bitmask' with INPUT.COPY_PASTE.PROB {prob}: copy-paste needs bitmaps"
    require(prob == 0 or mask_format == "bitmask", "INPUT.MASK_FORMAT", mask_format, allowed)
    _check_crop(cfg)


def _check_crop(cfg: CfgNode) -> None:
    crop, jitter = cfg.INPUT.CROP, cfg.INPUT.LSJ
    rule = each(_CROPS[crop.TYPE], length=2)
    size = crop.SIZE
    allowed = f"{rule.allowed}, for CROP.TYPE {crop.TYPE!r}"
    ordered = crop.TYPE != "absolute_range" or size[0] <= size[1]
    require(rule.holds(size) and ordered, "INPUT.CROP.SIZE", size, allowed)
    require(
        not (jitter.ENABLED and crop.ENABLED),
        "INPUT.CROP.ENABLED",
        True,
        "False with INPUT.LSJ.ENABLED: large scale jitter crops by itself",
    )
    mask_format, is_cropped = cfg.INPUT.MASK_FORMAT, crop.ENABLED or jitter.ENABLED
    can_crop = mask_format == "bitmask" or find_spec("shapely") is not None
    allowed = "'bitmask' with crops: Detectron2 needs the package shapely to crop polygons"
    require(can_crop or not is_cropped, "INPUT.MASK_FORMAT", mask_format, allowed)
    ignored = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    require(
        not jitter.ENABLED or 0 <= ignored <= 255,
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE",
        ignored,
        "from 0 to 255 with INPUT.LSJ.ENABLED, which pads the stuff maps of 8 bits with it",
    )
