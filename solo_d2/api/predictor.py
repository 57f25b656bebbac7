"""`Predictor`: run a trained or exported model on images of any kind.

B images, H and W rows and columns.
"""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from torch import Tensor

from solo_d2.api.backends import Backend, Image, OnnxBackend, TorchBackend
from solo_d2.api.classes import Classes
from solo_d2.api.inputs import OnError, Source, is_one_image, load_image, load_images
from solo_d2.api.loading import CONFIG_EXTENSIONS, complete_config, find_config, make_config
from solo_d2.api.results import Result, Segmentation
from solo_d2.config import default_config
from solo_d2.config.check import check_config
from solo_d2.config.rules import PROBABILITY, require
from solo_d2.modeling.checks import RULES
from solo_d2.modeling.meta_arch import SOLO
from solo_d2.modeling.tiles import Tiles, find_in_tiles, require_mergeable
from solo_d2.ops.host_copies import to_host
from solo_d2.utils.errors import ConfigError

logger = logging.getLogger(__name__)

DEFAULT_SCORE_THRESH = 0.3
# Number of batches to read ahead, to group images of one size.
_BATCHES_AHEAD = 8


class Predictor:
    """Segment the instances in images, and the stuff with a panoptic model.

    A checkpoint of a training is enough: its config is in the same folder.

    A predictor can be shared by threads; the model runs one batch at a time. A pickled predictor
    contains its weights or, for an exported model, the path of its file.

    Examples:
        >>> from solo_d2 import Predictor
        >>> predictor = Predictor("output/model_final.pth", score_thresh=0.4)
        >>> result = predictor("photo.jpg")
        >>> result.image_size
        (48, 64)
        >>> len(result) == len(result.instances.scores)
        True
        >>> sorted(result.to_dicts()[0])
        ['box', 'category_id', 'class_index', 'class_name', 'mask', 'score']

        Arrays and tensors are BGR, as in OpenCV and Detectron2, unless `channels` is "RGB".

        >>> import cv2
        >>> same = predictor(cv2.imread("photo.jpg"))
        >>> bool((same.label_map() == result.label_map()).all())
        True

        For several images, a folder or a video, a call returns a list; `stream` yields the results.

        >>> len(predictor(["photo.jpg", "photo.jpg"]))
        2
        >>> results = predictor(["photo.jpg", "gone.jpg"], on_error=print)
        gone.jpg: No such file or directory
        >>> for result in predictor.stream("photos/"):
        ...     print(result.name, result.draw().shape)
        photos/a.png (48, 64, 3)
        photos/b.png (80, 40, 3)
    """

    def __init__(
        self,
        model: str | Path | CfgNode,
        weights: str | Path | None = None,
        *,
        device: str | None = None,
        runtime: str | None = None,
        score_thresh: float | None = DEFAULT_SCORE_THRESH,
        batch_size: int = 1,
        class_names: Sequence[str] | None = None,
        overrides: Sequence[Any] = (),
        on_device: bool = False,
        tiles: Tiles | int | None = None,
    ):
        """Load a model.

        Args:
            model: config (.yaml), exported model (.onnx) or checkpoint, whose config is in the same
                folder as `config.yaml` or under the name of the checkpoint; or a loaded config.
            weights: checkpoint for a config; None for its MODEL.WEIGHTS.
            device: "cpu", "cuda", ...; None for CUDA if available. Exported models run on the CPU.
            runtime: runtime of an exported model, "onnxruntime" (None) or "openvino".
            score_thresh: minimum score of results, in addition to MODEL.SOLO.KEEP_THRESH_TEST; None
                for the config's alone. May be changed at any time.
            batch_size: maximum batch size if many images are given. Only images that the network
                pads to the same size share a batch, so results do not depend on it.
            class_names: names that replace those saved with the model.
            overrides: KEY, VALUE, ... for the config.
            on_device: leave results on the model's device instead of copying them to the CPU.
            tiles: search each image in tiles, for small objects in large images; an int is the side
                of a tile in pixels (see `solo_d2.modeling.tiles`). `pred_masks` of the results is
                then a `MaskCrops` on the CPU. None for TEST.TILES of the config.

        Raises:
            ConfigError: an argument cannot be used; the message names it.
            DatasetError: the number of classes depends on a data set that cannot be read.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, but must be at least 1")
        if score_thresh is not None:
            held = PROBABILITY.holds(score_thresh)
            require(held, "score_thresh", score_thresh, PROBABILITY.allowed)
        tiles = Tiles(tiles) if isinstance(tiles, int) else tiles
        self.backend = _make_backend(model, weights, device, runtime, overrides)
        if 0 < (score_thresh or 0) < self.backend.keep_thresh:
            logger.warning(
                "score_thresh is %g, but the model itself keeps scores from %g on "
                "(MODEL.SOLO.KEEP_THRESH_TEST)",
                *(score_thresh, self.backend.keep_thresh),
            )
        self.score_thresh = score_thresh
        self.batch_size = batch_size
        self.on_device = on_device
        self.tiles = tiles or self.backend.tiles
        if self.tiles is not None:
            contours = self.backend.contours
            require_mergeable(panoptic=self.stuff is not None, contours=contours)
        self.classes = _renamed(self.backend.classes, class_names)

    @property
    def stuff(self) -> Classes | None:
        """Names and ids of the stuff labels; None if the model is not panoptic."""
        return self.backend.stuff

    @property
    def model(self) -> SOLO:
        """The PyTorch model; AttributeError for an exported model."""
        if not isinstance(self.backend, TorchBackend):
            raise AttributeError("an exported model has no torch module")
        return self.backend.model

    def with_nms(self, name: str, **params: Any) -> "Predictor":
        """Return a predictor that shares the model's weights but uses another mask NMS.

        Args:
            name: "matrix", "hard", "soft" or "fast".
            **params: of that NMS, such as kernel, sigma and thresh, see `solo_d2.inference.NMS`;
                those that it does not take are ignored.

        Raises:
            ConfigError: the NMS is unknown, a parameter is unknown to all NMS or invalid, or the
                model is an exported one, whose NMS is fixed.
        """
        if not isinstance(self.backend, TorchBackend):
            raise ConfigError("The NMS of an exported model cannot be changed: export it again")
        _check_nms(params)
        other = copy.copy(self)
        try:
            other.backend = self.backend.with_nms(name, params)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return other

    def __call__(self, source: Source, *, channels: str = "BGR", on_error: OnError = None) -> Any:
        """Find the instances in one or many images.

        Args:
            source: path of a file; array (H, W, 3) uint8; tensor (3, H, W), uint8 or float in
                [0, 255]; or a Pillow image. For many images: a folder, a glob, a video file, or an
                iterable of these.
            channels: channel order of arrays and tensors, "BGR" or "RGB".
            on_error: if many images are given, called with the ImageError of each unusable image,
                which is skipped. None to raise it.

        Returns:
            A `Result`, or a list of them for many images. Each has masks of the size of its image;
            use `stream` for long videos.

        Raises:
            ImageError: an image cannot be used.
        """
        if is_one_image(source):
            return self.find(*load_image(source, channels))
        return list(self.stream(source, channels=channels, on_error=on_error))

    def stream(
        self, source: Source, *, channels: str = "BGR", on_error: OnError = None
    ) -> Iterator[Result]:
        """Yield the results of many images in order, reading them lazily; see `__call__`."""
        images = load_images(source, channels, on_error)
        ahead = 1 if self.batch_size == 1 else self.batch_size * _BATCHES_AHEAD
        while chunk := list(islice(images, ahead)):
            yield from self._run(chunk)

    def find(self, image: Image, name: str = "") -> Result:
        """Find the instances in an image (H, W, 3) uint8 RGB; `name` is that of the result."""
        return self._run([(image, name)])[0]

    def _run(self, images: Sequence[tuple[Image, str]]) -> list[Result]:
        if self.tiles is None:
            outputs = self._infer([image for image, _ in images])
        else:
            outputs = [{"instances": self._find_in_tiles(image)} for image, _ in images]
        return [self._result(*both, output) for both, output in zip(images, outputs, strict=True)]

    def _find_in_tiles(self, image: Image) -> Instances:
        assert self.tiles is not None
        return find_in_tiles(
            image,
            self.tiles,
            lambda parts: [output["instances"] for output in self._infer(parts)],
            T.ResizeShortestEdge(self.backend.min_size, self.backend.max_size),
            batch_size=self.batch_size,
        )

    def _infer(self, images: Sequence[Image]) -> list[dict[str, Any]]:
        """Run images in batches of one padded size."""
        prepared: list[Any] = [self.backend.prepare(image) for image in images]
        groups: dict[tuple[int, int], list[int]] = {}
        for index, item in enumerate(prepared):
            groups.setdefault(self.backend.padded_size(item), []).append(index)
        results: dict[int, dict[str, Any]] = {}
        for group in groups.values():
            for start in range(0, len(group), self.batch_size):
                part = group[start : start + self.batch_size]
                outputs = self.backend.run([prepared[i] for i in part], self.score_thresh)
                results.update(zip(part, outputs, strict=True))
        return [results[index] for index in range(len(images))]

    def _result(self, image: Image, name: str, output: dict[str, Any]) -> Result:
        instances, panoptic = output["instances"], None
        ids, segments = output["panoptic_seg"] if self.stuff is not None else (None, [])
        if not self.on_device:
            instances, ids = _on_host(instances, ids)
        if ids is not None:
            panoptic = Segmentation(ids, segments)
        names = self.classes, self.stuff
        return Result(instances, image, name, *names, panoptic, contours=self.backend.contours)


def _on_host(instances: Instances, ids: Tensor | None) -> tuple[Instances, Tensor | None]:
    """Copy instances, and segment ids if any, to the CPU."""
    fields = instances.get_fields()
    tensors = {
        name: field.tensor if isinstance(field, Boxes) else field
        for name, field in fields.items()
        if isinstance(field, Boxes | Tensor)
    }
    copies = to_host([*tensors.values(), *([] if ids is None else [ids])])
    found = Instances(instances.image_size, **fields)
    for name, copied in zip(tensors, copies, strict=False):
        found.set(name, Boxes(copied) if isinstance(fields[name], Boxes) else copied)
    return found.to("cpu"), None if ids is None else copies[-1]


def _make_backend(
    model: str | Path | CfgNode,
    weights: str | Path | None,
    device: str | None,
    runtime: str | None,
    overrides: Sequence[Any],
) -> Backend:
    exported = not isinstance(model, CfgNode) and Path(model).suffix.lower() == ".onnx"
    if exported:
        if weights is not None or overrides:
            raise ConfigError(f"{model}: an exported model takes neither weights nor overrides")
        if device not in (None, "cpu"):
            raise ConfigError(f"{model}: an exported model runs on the CPU here, not on {device}")
        return OnnxBackend(model, runtime or "onnxruntime")
    if runtime is not None:
        raise ConfigError(f"runtime is {runtime!r}, but only exported models (.onnx) have one")
    if isinstance(model, CfgNode):
        if overrides:
            raise ConfigError("A loaded config takes no overrides: change the config itself")
        return TorchBackend(complete_config(model.clone(), weights, device=device))
    if Path(model).suffix.lower() in CONFIG_EXTENSIONS:
        return TorchBackend(make_config(model, weights, device=device, overrides=overrides))
    if weights is not None:
        raise ConfigError(f"{model} and {weights} are both weights: name a config (.yaml) first")
    config = find_config(model)
    return TorchBackend(make_config(config, model, device=device, overrides=overrides))


def _check_nms(params: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a parameter that is no key of MODEL.SOLO.NMS, or is invalid."""
    section, cfg = "MODEL.SOLO.NMS", default_config()
    known = sorted(key.lower() for key in cfg.MODEL.SOLO.NMS if key != "TYPE")
    for name, value in params.items():
        require(name in known, "A parameter of the NMS", name, f"one of {', '.join(known)}")
        cfg.MODEL.SOLO.NMS[name.upper()] = value
    rules = {key: rule for key, rule in RULES.items() if key.startswith(section)}
    check_config(cfg, (section,), rules)


def _renamed(classes: Classes, names: Sequence[str] | None) -> Classes:
    if names is None:
        return classes
    if len(names) != len(classes.names):
        raise ConfigError(
            f"class_names has {len(names)} names, but the model has {len(classes.names)} classes"
        )
    return Classes(list(names), classes.json_ids)
