"""`Predictor`: a trained or exported model, ready for images of any kind.

B images, H and W rows and columns.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor

from solo_d2.api.backends import Backend, Image, OnnxBackend, TorchBackend
from solo_d2.api.classes import Classes
from solo_d2.api.inputs import OnError, Source, is_one_image, load_image, load_images
from solo_d2.api.loading import CONFIG_EXTENSIONS, complete_config, find_config, make_config
from solo_d2.api.results import Result, Segmentation
from solo_d2.modeling.meta_arch import SOLO
from solo_d2.ops.host_copies import to_host
from solo_d2.utils.errors import ConfigError

DEFAULT_SCORE_THRESH = 0.3
# Images that are looked at together for some of one size, in batches.
_BATCHES_AHEAD = 8


class Predictor:
    """Segments the instances in images, and with a panoptic model also the stuff.

    A training's checkpoint is enough: its config lies beside it.

    >>> from solo_d2 import Predictor
    >>> predictor = Predictor("output/model_final.pth", score_thresh=0.4)
    >>> result = predictor("photo.jpg")
    >>> result.image_size
    (48, 64)
    >>> len(result) == len(result.instances.scores)
    True
    >>> sorted(result.to_dicts()[0])
    ['box', 'category_id', 'class_index', 'class_name', 'mask', 'score']

    Arrays and tensors are BGR, as OpenCV and Detectron2 have them, unless `channels` says RGB.

    >>> import cv2
    >>> same = predictor(cv2.imread("photo.jpg"))
    >>> bool((same.label_map() == result.label_map()).all())
    True

    Several images, a folder or a video give a list; `stream` gives one result after another.

    >>> len(predictor(["photo.jpg", "photo.jpg"]))
    2
    >>> results = predictor(["photo.jpg", "gone.jpg"], on_error=print)
    gone.jpg: No such file or directory
    >>> for result in predictor.stream("photos/"):
    ...     print(result.name, result.draw().shape)
    photos/a.png (48, 64, 3)
    photos/b.png (80, 40, 3)

    One predictor can be called by several threads; they share the model, one batch at a time. It
    can be pickled, with its weights, or for an exported model with the name of its file.
    """

    def __init__(
        self,
        model: str | Path | CfgNode,
        weights: str | Path | None = None,
        *,
        device: str | None = None,
        score_thresh: float | None = DEFAULT_SCORE_THRESH,
        batch_size: int = 1,
        class_names: Sequence[str] | None = None,
        overrides: Sequence[Any] = (),
        on_device: bool = False,
    ):
        """Load a model.

        Args:
            model: a config (.yaml), an exported model (.onnx) or else a checkpoint, whose config
                lies beside it as `config.yaml` or under its own name; or a config that was loaded.
            weights: checkpoint for a config; None: its MODEL.WEIGHTS.
            device: "cpu", "cuda", ...; None: CUDA where there is one. Exported models run on the
                CPU.
            score_thresh: least score of results; the config's MODEL.SOLO.KEEP_THRESH_TEST
                counts too. None: what the config says alone. May be changed at any time.
            batch_size: how many images are run at once, where many are given. Only images that the
                network pads to one size share a batch, so results are those of each image alone.
            class_names: instead of those saved with the model.
            overrides: KEY, VALUE, ... of the config.
            on_device: leave results on the model's device, rather than bring them to the CPU.

        Raises:
            ConfigError: something cannot be used; the message names it.
            DatasetError: the number of classes must be taken from a data set that cannot be read.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, but must be at least 1")
        self.backend = _make_backend(model, weights, device, overrides)
        self.score_thresh = score_thresh
        self.batch_size = batch_size
        self.on_device = on_device
        self.classes = _renamed(self.backend.classes, class_names)

    @property
    def stuff(self) -> Classes | None:
        """Names and ids of the labels of stuff; None if the model is not panoptic."""
        return self.backend.stuff

    @property
    def model(self) -> SOLO:
        """The model, if it is one of PyTorch; AttributeError for an exported one."""
        if not isinstance(self.backend, TorchBackend):
            raise AttributeError("an exported model has no torch module")
        return self.backend.model

    def __call__(self, source: Source, *, channels: str = "BGR", on_error: OnError = None) -> Any:
        """Find the instances in an image, or in several.

        Args:
            source: name of a file; array (H, W, 3) uint8; tensor (3, H, W), uint8 or of floats in
                [0, 255]; or an image of Pillow. Or many: a folder, a glob, a video file, or a list
                of all these.
            channels: order of the colours of arrays and tensors, "BGR" or "RGB".
            on_error: of many, called with the ImageError of each image that cannot be used; the
                image is left out. None: the error is raised.

        Returns:
            A `Result`; of many, a list of them in their order. Each holds masks of the size of its
            image: for long videos use `stream`.

        Raises:
            ImageError: an image cannot be used.
        """
        if is_one_image(source):
            return self.find(*load_image(source, channels))
        return list(self.stream(source, channels=channels, on_error=on_error))

    def stream(
        self, source: Source, *, channels: str = "BGR", on_error: OnError = None
    ) -> Iterator[Result]:
        """Find the instances in many images, read as they are needed.

        The arguments are those of `__call__`. Yields a result for each image, in their order.
        """
        images = load_images(source, channels, on_error)
        ahead = 1 if self.batch_size == 1 else self.batch_size * _BATCHES_AHEAD
        while chunk := list(islice(images, ahead)):
            yield from self._run(chunk)

    def find(self, image: Image, name: str = "") -> Result:
        """Find the instances in an image that is ready.

        Args:
            image: (H, W, 3) uint8 RGB.
            name: for the result.
        """
        return self._run([(image, name)])[0]

    def _run(self, images: Sequence[tuple[Image, str]]) -> list[Result]:
        """Run images, those of one padded size together, in batches."""
        prepared: list[Any] = [self.backend.prepare(image) for image, _ in images]
        groups: dict[tuple[int, int], list[int]] = {}
        for index, item in enumerate(prepared):
            groups.setdefault(self.backend.padded_size(item), []).append(index)
        results: dict[int, Result] = {}
        for group in groups.values():
            for start in range(0, len(group), self.batch_size):
                part = group[start : start + self.batch_size]
                outputs = self.backend.run([prepared[i] for i in part], self.score_thresh)
                for index, output in zip(part, outputs, strict=True):
                    results[index] = self._result(*images[index], output)
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
    """Instances, and segment ids if there are any, copied to the CPU."""
    fields = instances.get_fields()
    tensors = {
        name: field.tensor if isinstance(field, Boxes) else field
        for name, field in fields.items()
        if isinstance(field, Boxes | Tensor)
    }
    copies = to_host([*tensors.values(), *([] if ids is None else [ids])])
    found = Instances(instances.image_size, **fields)
    for name, copy in zip(tensors, copies, strict=False):
        found.set(name, Boxes(copy) if isinstance(fields[name], Boxes) else copy)
    return found.to("cpu"), None if ids is None else copies[-1]


def _make_backend(
    model: str | Path | CfgNode,
    weights: str | Path | None,
    device: str | None,
    overrides: Sequence[Any],
) -> Backend:
    if isinstance(model, CfgNode):
        if overrides:
            raise ConfigError("A loaded config takes no overrides: change the config itself")
        return TorchBackend(complete_config(model.clone(), weights, device=device))
    suffix = Path(model).suffix.lower()
    if suffix == ".onnx":
        if weights is not None or overrides:
            raise ConfigError(f"{model}: an exported model takes neither weights nor overrides")
        if device not in (None, "cpu"):
            raise ConfigError(f"{model}: an exported model runs on the CPU here, not on {device}")
        return OnnxBackend(model)
    if suffix in CONFIG_EXTENSIONS:
        return TorchBackend(make_config(model, weights, device=device, overrides=overrides))
    if weights is not None:
        raise ConfigError(f"{model} and {weights} are both weights: name a config (.yaml) first")
    config = find_config(model)
    return TorchBackend(make_config(config, model, device=device, overrides=overrides))


def _renamed(classes: Classes, names: Sequence[str] | None) -> Classes:
    if names is None:
        return classes
    if len(names) != len(classes.names):
        raise ConfigError(
            f"class_names has {len(names)} names, but the model has {len(classes.names)} classes"
        )
    return Classes(list(names), classes.json_ids)
