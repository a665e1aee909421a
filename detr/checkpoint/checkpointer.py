"""``DetrCheckpointer``: Detectron2's checkpointer that knows every format of DETR's."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from detr.checkpoint.class_rows import plan_rows, take_rows
from detr.checkpoint.compatibility import check_weights_fit
from detr.checkpoint.files import load_file, save_file, save_text, weights_in_folder
from detr.checkpoint.formats import DETECTRON2
from detr.checkpoint.hub import local_path
from detr.checkpoint.loaded_keys import part_of, report_keys
from detr.checkpoint.model_info import class_names, compare, heads_of, info_of
from detr.checkpoint.options import split_options
from detr.checkpoint.resume import check_resume
from detr.checkpoint.rows import fit, fit_training_queries, is_for_training
from detr.checkpoint.run_folder import LAST, checkpoint_to_resume, choose_for_all_ranks, holds_training
from detr.checkpoint.source import Source, as_note, source_of
from detr.checkpoint.wrappers import unwrapped_names
from detr.errors import InputError
from detr.modeling.card import ModelCard
from detr.modeling.meta_arch import Detr
from detr.modeling.timm_backbone import load_pretrained

logger = logging.getLogger(__name__)

_STEM = "backbone.stem.conv1.weight"


class DetrCheckpointer(DetectionCheckpointer):
    """Loads DETR checkpoints of every kind into a ``Detr``, besides all that Detectron2 loads.

    A path may be a file, a folder that transformers wrote, a URL, ``detr://NAME`` or ``torchvision://NAME``, with
    options behind a ``?``.
    What was loaded and what is re-initialized is logged; ``reinitialized`` holds the latter lines of the last load.
    """

    reinitialized: list[str]
    pretrained: list[str]  # timm's models whose weights were taken where no path was given
    _resumes = False  # whether a checkpoint without a part is an error
    _known_format = False  # of the file that is loaded
    card = ModelCard()  # what the file that was loaded last says of its model

    def __init__(self, model: nn.Module, save_dir: str = "", **kwargs: Any) -> None:
        """As Detectron2's, which unwraps DistributedDataParallel; a compiled model is unwrapped too."""
        super().__init__(_unwrapped(model), save_dir, **kwargs)

    def has_checkpoint(self) -> bool:
        """Whether a training has left checkpoints in the folder, also where ``last_checkpoint`` is missing."""
        return holds_training(self.save_dir, self.path_manager)

    def get_checkpoint_file(self) -> str:
        """The checkpoint to go on from: the one that ``last_checkpoint`` names, or the newest one that is whole.

        Raises InputError where there are checkpoints, and none is whole.
        """
        return checkpoint_to_resume(self.save_dir, self.path_manager)[0]

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As Detectron2's; warns where the last checkpoint is damaged or missing, and the one before is taken.

        Raises InputError where a checkpoint to resume from is another model's or lacks a part.
        """
        last = choose_for_all_ranks(self.save_dir, self.path_manager) if resume else ""
        self._resumes = bool(last)
        try:
            return self.load(last) if last else self.load(path, checkpointables=[])
        finally:
            self._resumes = False

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Raises InputError for weights that cannot be had or read, or that do not belong to this model.

        checkpointables: the names of the objects to restore besides the model; None for all that the file holds. An
            optimizer is restored only where its state fits; before it is known that it does, nothing is changed
        """
        known = self.checkpointables.items()
        self._restored = {name: part for name, part in known if checkpointables is None or name in checkpointables}
        # An exported model has its weights in its graph: there is nothing to load.
        self.reinitialized = [] if path or not self.model.state_dict() else ["there are no weights"]
        self.pretrained = [] if path else load_pretrained(self.model)
        path, self._options = split_options(path or "")
        if path:
            path = local_path(path)
        if path and os.path.isdir(path):
            path = weights_in_folder(path)
        if "?" in path:
            raise InputError(f"{path} has a ? in its name, where Detectron2 begins to read options: rename the file")
        self._path, self._known_format, self.card = path, False, ModelCard()
        if self._options.matching_heuristics:
            path += "?matching_heuristics=True"  # as Detectron2 reads it
        try:
            loaded: dict[str, Any] = super().load(path, checkpointables)
        finally:
            self._parsed_url_during_load = None  # else Detectron2 refuses the next attempt
        return loaded

    def save(self, name: str, **kwargs: Any) -> None:
        """As Detectron2's, with a note on what the tensors of a ``Detr`` do not show; the file is whole or not there.

        Raises InputError where it cannot be written, DiskError where the disk is full; all earlier files stay as they
        are, and ``last_checkpoint`` names the one before.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        note = as_note(info_of(self.model)) if isinstance(self.model, Detr) else {}
        parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        save_file({"model": self.model.state_dict(), **parts, **kwargs, **note}, path, self.path_manager)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """As Detectron2's, in one step."""
        save_text(last_filename_basename, os.path.join(self.save_dir, LAST), self.path_manager)

    def _load_file(self, filename: str) -> dict[str, Any]:
        # Detectron2 reads these two kinds with an unpickler that runs any code in them.
        if filename.endswith(".pkl"):
            return self._zoo_pickle(filename)
        if filename.endswith(".pyth"):
            weights = load_file(filename).get("model_state")
            if not isinstance(weights, dict):
                raise InputError(f"{filename} has no model_state: a .pyth file is read as one of pycls'")
            weights = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
            return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
        loaded: dict[str, Any] = super()._load_file(filename)
        return loaded

    def _zoo_pickle(self, filename: str) -> dict[str, Any]:
        """A pickle of arrays, of Detectron2's model zoo or of Caffe2's."""
        content = load_file(filename)
        if "model" in content and "__author__" in content:
            source = source_of(filename, content, self._options.weights)
            source.rest.clear()
            understood = self._understood(source) if isinstance(self.model, Detr) else None
            return understood or content
        blobs = content.get("blobs", content)
        weights = {key: value for key, value in blobs.items() if not key.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, f: str) -> dict[str, Any]:
        if not isinstance(self.model, Detr):
            if self._options.weights:
                raise InputError(f"{f}: ?weights={self._options.weights} is for weights of a Detr; leave it out")
            return load_file(f)
        content = load_file(f)
        # What goes on with an optimizer's state are the weights that it belongs to, never their average.
        goes_on = self._resumes or not self._restored.keys().isdisjoint(content)
        weights = "model" if self._resumes else self._options.weights or ("model" if goes_on else None)
        source = source_of(f, content, weights, self._is_own)
        return self._understood(source) or {**source.rest, "model": source.state}

    def _is_own(self, state: Mapping[str, Any]) -> bool:
        """Whether the model has exactly these tensors, but for those for training alone.

        To resume from, it would have to, and the check says how not.
        """
        own = self.model.state_dict()
        shapes = {name: getattr(own[key], "shape", None) for key, name in unwrapped_names(own).items()}
        if self._resumes:
            return not shapes.keys().isdisjoint(state)
        saved = {name: getattr(value, "shape", None) for name, value in state.items()}
        return _without_training(shapes) == _without_training(saved)

    def _understood(self, source: Source) -> dict[str, Any] | None:
        """The source in Detectron2's form; None where it is in no format of DETR's."""
        self._known_format, self.card = source.format is not None, source.card()
        if source.format is None:
            return None
        logger.info("%s: %s, %d tensors", source.path, source.format.title, len(source.state))
        for line in source.lines:
            logger.info(line)
        heads = heads_of(self.model)
        if self._resumes and None not in (source.info.heads, heads) and source.info.heads != heads:
            raise InputError(
                f"cannot resume from {source.path}: MODEL.DETR.NHEADS is {heads} here and {source.info.heads} in the "
                "checkpoint; set it back"
            )
        compare(source.info, self.model)
        if source.format is DETECTRON2:
            return {**source.rest, "model": source.state}
        conversion = source.to_detectron2()
        for line in conversion.lines:
            logger.info(line)
        if source.format.backbone_only and _STEM not in self.model.state_dict():
            # A backbone around the ResNet, such as FPN: Detectron2 finds the names by their ends.
            body = {key.removeprefix("backbone."): value for key, value in conversion.state.items()}
            return {"model": body, "matching_heuristics": True}
        if source.rest:
            logger.info("left out: %s, which are of another program's training", ", ".join(sorted(source.rest)))
        return {"model": conversion.state}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if isinstance(self.model, Detr):
            # Parts of the model may be wrapped, as by torch.compile, whether or not they were in the checkpoint.
            own_names = {name: key for key, name in unwrapped_names(self.model.state_dict()).items()}
            checkpoint["model"] = {own_names.get(name, name): value for name, value in checkpoint["model"].items()}
            self.model.names_of_weights = None  # those of an earlier load say nothing of the model
        goes_on = bool(self._restored) and (self._resumes or not self._restored.keys().isdisjoint(checkpoint))
        if goes_on:
            names = (self.card.class_names, class_names(self.model)) if isinstance(self.model, Detr) else (None, None)
            check_resume(self._path, checkpoint, self.model, self._restored, *names)
        if not isinstance(self.model, Detr):
            return super()._load_model(checkpoint)
        own = self.model.state_dict()
        by_heuristics = checkpoint.pop("matching_heuristics", False)
        if by_heuristics:
            self._convert_ndarray_to_tensor(checkpoint["model"])
            is_caffe2 = checkpoint.get("__author__") == "Caffe2"
            checkpoint["model"] = align_and_update_state_dicts(own, checkpoint["model"], c2_conversion=is_caffe2)
        checkpoint["model"] = self._fit(checkpoint["model"], own)
        known, partial = self._known_format or by_heuristics, self._options.partial
        try:
            check_weights_fit(checkpoint["model"], own, known=known, partial=partial)
        except InputError as error:
            raise InputError(f"{self._path}: {error}") from error
        for line in self.reinitialized:
            logger.warning(line)
        self.model.names_of_weights = self.card.class_names
        return super()._load_model(checkpoint)

    def _fit(self, state: dict[str, Any], own: Mapping[str, Tensor]) -> dict[str, Any]:
        """The weights with the model's numbers of rows, by the names of the classes where both know them."""
        names = unwrapped_names(own)
        plain = {name: own[key] for key, name in names.items()}
        state = {names.get(key, key): value for key, value in state.items()}
        old, new = self.card.class_names, class_names(self.model)
        plan = plan_rows(old, new) if old and new else None
        lines = []
        if plan is not None:
            state = take_rows(state, plain, plan.rows, len(old or ()))
            if plan.warning:
                logger.warning(plan.warning)
            if plan.complete and plan.line:
                logger.info(plan.line)
            elif plan.line:
                lines.append(plan.line)
        state, notes = fit_training_queries(state, plain)
        for line in notes:
            logger.info(line)
        state, more = fit(state, plain)
        lines += more
        parts = {line.partition(":")[0] for line in lines}
        self._partial = {key for key, name in names.items() if part_of(name) in parts}
        self.reinitialized += lines
        own_names = {name: key for key, name in names.items()}
        return {own_names.get(name, name): value for name, value in state.items()}

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        if not isinstance(self.model, Detr):
            super()._log_incompatible_keys(incompatible)
            return
        self.reinitialized += report_keys(self.model.state_dict(), incompatible, self._partial)


def holds_detr(model: Any) -> bool:
    """Whether it is a ``Detr``, wrapped or not."""
    return isinstance(_unwrapped(model), Detr)


def _without_training(shapes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: shape for name, shape in shapes.items() if not is_for_training(name)}


def _unwrapped(model: Any) -> Any:
    """The module that DataParallel, DistributedDataParallel and torch.compile are around."""
    while True:
        parallel = isinstance(model, (DataParallel, DistributedDataParallel))
        inner = model.module if parallel else getattr(model, "_orig_mod", None)
        if inner is None:
            return model
        model = inner
