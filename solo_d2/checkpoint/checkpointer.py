"""Detectron2's checkpointer, which also reads other projects' weights and writes files whole."""

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
from solo_d2.utils.errors import ConfigError, first_line
from solo_d2.utils.files import naming, put_in_place, save_text, sweep, unfinished
from solo_d2.utils.user_code import from_user_code

# What a file or address that is no checkpoint makes Detectron2, torch and the network raise.
_LOAD_ERRORS = (
    *(OSError, EOFError, ValueError, LookupError, AttributeError, TypeError),
    *(AssertionError, RuntimeError, MemoryError, pickle.UnpicklingError, ImportError),
)

# Backbones whose names are matched by Detectron2's heuristics; they may lack parameters.
BY_ENDS = Format("a backbone, by the ends of its names", (), (), whole=False, absent=(".*",))


class SOLOCheckpointer(DetectionCheckpointer):
    """Recognises by its keys what a file holds, renames it, and refuses what does not fit.

    Files run no code (see `solo_d2.checkpoint.reading`). Weights of a whole model must fill the
    model exactly, those of a backbone its backbone; `allow` names what may differ. Formats that
    `solo_d2.checkpoint.formats` does not know are matched by the ends of their names where the
    address says so (`?matching_heuristics=True`), as Detectron2 does, or are taken as they are.

    Whenever a process that saves is killed, `last_checkpoint` names a checkpoint that is whole.

    Attributes:
        restarted: parameters of the model that the last file did not fill, which keep their start.
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
        """Make the checkpointer.

        Args:
            model: what is loaded and saved.
            save_dir: where to.
            allow: MODEL.WEIGHTS_ALLOW, patterns of parameters that may be missing, left over or of
                another shape.
            whole: refuse the weights of a backbone alone, for a model that is only run.
            classes: of the model, saved with it; see `solo_d2.checkpoint.saved_classes`.
            **others: as Detectron2's.
        """
        super().__init__(model, save_dir, **others)
        self.allow = tuple(allow)
        self.whole = whole
        self.restarted: list[str] = []
        self.classes = [dict(category) for category in classes]

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint, as Detectron2 does, from a file or URL; "" loads nothing.

        Raises:
            ConfigError: it cannot be had, is no checkpoint, or does not fit the model, which then
                is as it was; the message names it.
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
        """Save a checkpoint with more content, atomically; `name` is without ending.

        Raises:
            OSError: it cannot be written; what was there before stays.
        """
        kwargs = {KEY: self.classes, **kwargs}
        if "://" in self.save_dir:  # stores behind an address show whole files alone
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
        """Put the file that has just been written in its place, and note that it is the last."""
        if "://" in self.save_dir:
            super().tag_last_checkpoint(last_filename_basename)
            return
        put_in_place(Path(self.save_dir, last_filename_basename), self._file)
        save_text(Path(self.save_dir, "last_checkpoint"), self._file.name)

    def get_checkpoint_file(self) -> str:
        """Return the last checkpoint of the folder; "" if there is none.

        Raises:
            ConfigError: `last_checkpoint` names a file elsewhere.
        """
        note = os.path.join(self.save_dir, "last_checkpoint")
        try:
            file = super().get_checkpoint_file()
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{note} is damaged: write the name of a checkpoint into it"
            ) from error
        if file and "://" not in self.save_dir:
            name = os.path.relpath(file, self.save_dir or os.curdir)
            if name != os.path.basename(file):
                raise ConfigError(
                    f"{note} names {name!r:.200}, which is not in its folder: write the name of a "
                    "checkpoint there into it"
                )
        return file

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Read a file; "source" is its format, and "model" has our names if that is known."""
        loaded = read_checkpoint(filename)
        state = loaded["model"]
        queries = parse_qs(cast(ParseResult, self._parsed_url_during_load).query)
        heuristics = queries.pop("matching_heuristics", ["False"]) == ["True"]
        if queries:
            raise ValueError(f"its address has unknown options: {', '.join(queries)}")
        backbone = timm_backbone(self.model)
        of_timm = convert_timm(state, backbone) if backbone is not None else None
        source, state = (recognise(state), state) if of_timm is None else of_timm
        if source is not None and not source.whole and state.keys() >= set(self.model.state_dict()):
            source = None  # the model is such a detector itself
        if source is not None:
            self.logger.info(f"{filename} holds {source.title}")
            state = source.convert(state).state
        elif heuristics or filename.endswith(".pyth") or loaded.get("matching_heuristics"):
            source = BY_ENDS
            state = self._match_by_ends(state)
        return {**loaded, "model": state, "source": source}

    def _match_by_ends(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Detectron2's heuristics, for the backbone; what finds no place is left out and logged."""
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
            (unplaced, "left out, since the backbone has no such name"),
            ([name for name in model if name not in placed], "not in the weights, so at its start"),
        ):
            if names:
                self.logger.warning(f"{what}: {', '.join(names)}")
        return placed

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        """Check the weights and load them; nothing is loaded if they don't fit."""
        state, source = checkpoint.pop("model"), checkpoint.pop("source")
        required = None if self.whole else source
        self.restarted = load_matching(self.model, state, required, allow=self.allow)
        if self.restarted:
            modules = sorted({".".join(name.split(".")[:2]) for name in self.restarted})
            self.logger.info(
                f"{len(self.restarted)} parameters keep their start: {', '.join(modules)}"
            )
        # Nothing else would show that the model has other settings than the format.
        for key, wanted in source.settings.items() if source is not None else ():
            actual = _model_setting(self.model, key)
            if actual is not None and actual != wanted:
                self.logger.warning(
                    f"{source.title} goes with {key} {wanted}, but the model has {actual}: results "
                    "will be worse"
                )


def _model_setting(model: nn.Module, key: str) -> Any:
    """What a built model has for a key of `Format.settings`; None if it is unknown."""
    if key == "INPUT.FORMAT":
        return getattr(model, "input_format", None)
    if key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"):
        values = getattr(model, key.rpartition(".")[2].lower(), None)
        return None if values is None else [round(value, 3) for value in values.flatten().tolist()]
    try:  # MODEL.RESNETS.STRIDE_IN_1X1, of bottlenecks
        block = model.get_submodule("backbone.bottom_up.res3.0")
        return block.conv3 is not None and block.conv1.stride in (2, (2, 2))
    except AttributeError:
        return None
