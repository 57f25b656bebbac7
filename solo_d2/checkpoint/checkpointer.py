"""Detectron2's checkpointer, extended by weights of other projects and atomic writes."""

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import ParseResult, parse_qs

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from torch import Tensor, nn

from solo_d2.checkpoint.formats import Format, recognise
from solo_d2.checkpoint.matching import load_matching
from solo_d2.checkpoint.reading import read_checkpoint
from solo_d2.checkpoint.saved_classes import KEY
from solo_d2.checkpoint.timm import convert_timm
from solo_d2.data.classes import Category
from solo_d2.modeling.backbones.timm import timm_backbone
from solo_d2.utils.errors import ConfigError, first_line, listed
from solo_d2.utils.files import naming, put_in_place, save_text, sweep, unfinished
from solo_d2.utils.user_code import from_user_code

# Errors of Detectron2, torch and the network for a file or URL that is no checkpoint.
_LOAD_ERRORS = (
    *(OSError, EOFError, ValueError, LookupError, AttributeError, TypeError),
    *(AssertionError, RuntimeError, MemoryError, pickle.UnpicklingError, ImportError),
)

# What `last_checkpoint` is called while a training that overwrites it has no checkpoint.
EARLIER = "last_checkpoint.earlier"

# Parameters of panoptic models that models of instances do not have.
STUFF_BRANCH = "semantic_branch."

# Backbones whose names are matched by Detectron2's heuristics; parameters may be missing.
BY_ENDS = Format("a backbone, by the ends of its names", (), (), whole=False, absent=(".*",))


class SOLOCheckpointer(DetectionCheckpointer):
    """Recognize the format of a file by its keys, rename them, and reject weights that do not fit.

    Loading runs no code from files (see `solo_d2.checkpoint.reading`). Weights of a whole model
    must match the model exactly, those of a backbone its backbone; `allow` names exceptions.
    Formats unknown to `solo_d2.checkpoint.formats` are matched by the ends of their names if the
    URL ends with `?matching_heuristics=True`, as in Detectron2, and used unchanged otherwise.

    `last_checkpoint` always names a complete checkpoint, even if a process is killed while saving.

    Attributes:
        restarted: parameters of the model that the last file did not contain.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        allow: Sequence[str] = (),
        whole: bool = False,
        classes: Sequence[Category] = (),
        **others: Any,
    ):
        """Create the checkpointer.

        Args:
            model: model to load and save.
            save_dir: folder of the checkpoints.
            allow: MODEL.WEIGHTS_ALLOW, patterns of parameters that may be missing, unexpected or of
                another shape.
            whole: reject the weights of a backbone alone, for inference.
            classes: classes of the model, saved with it; see `solo_d2.checkpoint.saved_classes`.
            **others: see Detectron2.
        """
        super().__init__(model, save_dir, **others)
        self.allow = tuple(allow)
        self.whole = whole
        self.restarted: list[str] = []
        self.classes = [dict(category) for category in classes]

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint from a file or URL, like Detectron2; "" loads nothing.

        Raises:
            ConfigError: the file is unavailable, no checkpoint, or does not fit the model, which is
                then unchanged.
        """
        try:
            return super().load(path, *args, **kwargs)
        except ConfigError as error:
            raise ConfigError(f"The weights {path} can't be used: {error}") from error
        except _LOAD_ERRORS as error:
            if from_user_code(error):
                raise
            raise ConfigError(f"The weights {path} can't be used: {first_line(error)}") from error
        finally:
            self._parsed_url_during_load = None

    def save(self, name: str, **kwargs: Any) -> None:
        """Save a checkpoint atomically, with `kwargs` as further content; `name` has no extension.

        Raises:
            OSError: the file cannot be written; an earlier one is kept.
        """
        kwargs = {KEY: self.classes, **kwargs}
        if "://" in self.save_dir:  # remote storage writes files atomically
            super().save(name, **kwargs)
            return
        if not self.save_dir or not self.save_to_disk:
            return
        self._file = Path(self.save_dir, f"{name}.pth")
        sweep(self._file.parent)
        temporary = unfinished(self._file)
        try:
            with naming(self._file, temporary):
                super().save(temporary.stem, **kwargs)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Give the file just written its final name, and record it as the last checkpoint."""
        if "://" in self.save_dir:
            super().tag_last_checkpoint(last_filename_basename)
            return
        put_in_place(Path(self.save_dir, last_filename_basename), self._file)
        save_text(Path(self.save_dir, "last_checkpoint"), self._file.name)

    def get_checkpoint_file(self) -> str:
        """Return the last checkpoint of the folder; "" if there is none.

        Raises:
            ConfigError: `last_checkpoint` names a file elsewhere, or none that exists.
        """
        note = os.path.join(self.save_dir, "last_checkpoint")
        try:
            file = super().get_checkpoint_file()
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{note} is damaged: write the file name of a checkpoint to it"
            ) from error
        if file and "://" not in self.save_dir:
            name = os.path.relpath(file, self.save_dir or os.curdir)
            if name != os.path.basename(file):
                raise ConfigError(
                    f"{note} names {name!r:.200}, which is not in its folder: write the file name "
                    "of a checkpoint in that folder to it"
                )
            if not os.path.isfile(file):
                found = sorted(path.name for path in Path(self.save_dir).glob("model_*.pth"))
                raise ConfigError(
                    f"{note} names {name!r:.200}, which does not exist: write the file name of "
                    f"another checkpoint to it ({listed(found) or 'the folder has none'})"
                )
        return file

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Read a file; "source" is its format, and "model" has our names if that is not None."""
        loaded = read_checkpoint(filename)
        state = loaded["model"]
        queries = parse_qs(cast(ParseResult, self._parsed_url_during_load).query)
        heuristics = queries.pop("matching_heuristics", ["False"]) == ["True"]
        if queries:
            raise ValueError(f"its URL has unknown options: {', '.join(queries)}")
        backbone = timm_backbone(self.model)
        of_timm = convert_timm(state, backbone) if backbone is not None else None
        source, state = (recognise(state), state) if of_timm is None else of_timm
        if source is not None and not source.whole and state.keys() >= set(self.model.state_dict()):
            source = None  # the model itself is such a detector
        if source is not None:
            self.logger.info(f"{filename} contains {source.title}")
            state = source.convert(state).state
        elif heuristics or filename.endswith(".pyth") or loaded.get("matching_heuristics"):
            source = BY_ENDS
            state = self._match_by_ends(state)
        return {**loaded, "model": state, "source": source}

    def _match_by_ends(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Match the backbone by Detectron2's heuristics; log parameters without a match."""
        model = {k: v for k, v in self.model.state_dict().items() if k.startswith("backbone.")}
        found = align_and_update_state_dicts(model, dict(state), c2_conversion=False)
        placed = {name: value for name, value in found.items() if name in model}
        unplaced = [name for name in found if name not in model]
        for name in unplaced:
            wanted = [own for own in model if own.endswith(f".{name}")]
            if len(wanted) == 1:
                shapes = f"{tuple(found[name].shape)} instead of {tuple(model[wanted[0]].shape)}"
                raise ConfigError(f"parameters have other shapes than the model's: {name} {shapes}")
        if not placed:
            raise ConfigError("none of their names is the end of a name of the model's backbone")
        for names, what in (
            (unplaced, "not loaded, since the backbone has no such parameters"),
            ([name for name in model if name not in placed], "not in the weights"),
        ):
            if names:
                self.logger.warning(f"{what}: {', '.join(names)}")
        return placed

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        """Load the weights if they fit, else raise a ConfigError and load nothing."""
        state, source = checkpoint.pop("model"), checkpoint.pop("source")
        allow: Sequence[str] | None = self.allow
        if self.whole:
            own, allow = self.model.state_dict(), self.allow or None
            # Instances of a panoptic model, predicted by MODEL.META_ARCHITECTURE SOLO.
            state = {k: v for k, v in state.items() if k in own or not k.startswith(STUFF_BRANCH)}
        required = None if self.whole else source
        self.restarted = load_matching(self.model, state, required, allow=allow)
        if self.restarted:
            modules = sorted({".".join(name.split(".")[:2]) for name in self.restarted})
            self.logger.info(
                f"{len(self.restarted)} parameters keep their initial values: {', '.join(modules)}"
            )
        # Shapes do not show whether the model's settings match the format.
        for key, wanted in source.settings.items() if source is not None else ():
            actual = _model_setting(self.model, key)
            if actual is not None and actual != wanted:
                self.logger.warning(
                    f"{source.title} goes with {key} {wanted}, but the model has {actual}: expect "
                    "worse results"
                )


def last_checkpoint(folder: str) -> str:
    """Return the last checkpoint of an OUTPUT_DIR; "" if there is none."""
    checkpointer = SOLOCheckpointer(nn.Module(), folder)
    return checkpointer.get_checkpoint_file() if checkpointer.has_checkpoint() else ""


def set_aside_last_checkpoint(folder: str) -> None:
    """Rename `last_checkpoint`, so that --resume never continues another training than the last."""
    note = Path(folder, "last_checkpoint")
    if note.is_file():
        note.replace(note.with_name(EARLIER))


def require_no_earlier(folder: str) -> None:
    """Raise a ConfigError if only a training that was overwritten has checkpoints in a folder."""
    if Path(folder, EARLIER).is_file() and not Path(folder, "last_checkpoint").exists():
        raise ConfigError(
            f"The last training in OUTPUT_DIR {folder} has no checkpoint to resume, only the one "
            f"before it has. To continue that one, rename {EARLIER} to last_checkpoint; otherwise "
            "start without --resume"
        )


def _model_setting(model: nn.Module, key: str) -> Any:
    """Return the setting of a built model for a key of `Format.settings`; None if unknown."""
    if key == "INPUT.FORMAT":
        return getattr(model, "input_format", None)
    if key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"):
        values = getattr(model, key.rpartition(".")[2].lower(), None)
        return None if values is None else [round(value, 3) for value in values.flatten().tolist()]
    try:  # MODEL.RESNETS.STRIDE_IN_1X1 of bottleneck blocks
        block = model.get_submodule("backbone.bottom_up.res3.0")
        return block.conv3 is not None and block.conv1.stride in (2, (2, 2))
    except AttributeError:
        return None
