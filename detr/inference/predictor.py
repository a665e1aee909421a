"""``Predictor``: from weights to ``Instances``.

predictor = Predictor("detr_R_50")
instances = predictor("photo.jpg")
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances

from detr.checkpoint import DetrCheckpointer, read_card
from detr.config_checks import check_names
from detr.data.metadata import class_names
from detr.data.transforms import AnnotatedImage, evaluation_augmentations
from detr.engine.defaults import check_weights, check_whole
from detr.errors import InputError
from detr.inference import image_inputs
from detr.inference.image_inputs import ImageInput
from detr.model_config import config_of
from detr.modeling.attention_maps import Attention, Point, attention
from detr.modeling.batches import Output, run_in_batches
from detr.modeling.card import HasCard
from detr.modeling.meta_arch import Detr
from detr.modeling.postprocessing import Postprocessor, box_instances

DEFAULT_THRESHOLD = 0.5


class Predictor:
    """Finds objects in images, as evaluation does: the same pixels, sizes and postprocessing, the same results.

    Images of one size after resizing share a batch, and no others: no image is padded, so that its results depend on
    its batch by rounding alone. (Padding changes what a network sees at the borders; for DC5 models that costs AP.)

    cfg: the model's config, frozen
    model: in evaluation mode
    class_names: of the K classes, in the order of their numbers; None where nothing names them
    category_ids: the K numbers that the data set has for these classes (COCO: 1 to 90); 0 to K - 1 where not known
    threshold: the least score of an object, in [0, 1]
    input_format: INPUT.FORMAT, under the name that Detectron2's DefaultPredictor has for it
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "",
        *,
        config_file: str = "",
        opts: Sequence[str] = (),
        classes: Sequence[str] | None = None,
        threshold: float | None = None,
        device: torch.device | str | None = None,
        batch_size: int = 1,
    ) -> None:
        """
        model: a released model (``detr_R_50`` or ``detr://detr_R_50``), a checkpoint's file or URL, or the folder of
            an exported model. A checkpoint's config is the one that was saved in it, else ``config.yaml`` beside it
        config_file: the config for any weights; ``model`` may be empty where ``opts`` set MODEL.WEIGHTS
        opts: config keys and values, as on the command line
        classes: the K classes' names; by default those that were saved with the weights, else those of the config's
            data sets
        threshold: the least score of an object, and of a query that takes part in a panoptic map; by default
            MODEL.DETR.INSTANCE_SCORE_THRESHOLD, else the one that was saved with the weights, else 0.5; for maps
            MODEL.DETR.PANOPTIC.SCORE_THRESHOLD
        device: by default the config's MODEL.DEVICE, and the CPU where there is no GPU
        batch_size: how many images at most the model sees at once

        Raises InputError for a model that is not there, without config, or without weights, and for wrong values.
        """
        if batch_size < 1:
            raise InputError(f"the batch size is {batch_size}: it must be at least 1")
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"the threshold is {threshold}: a score is in [0, 1]")
        cfg = config_of(os.fspath(model), config_file, list(opts))
        cfg.MODEL.DEVICE = _device(cfg, device)
        check_names(cfg)
        exported = bool(cfg.MODEL.DETR.EXPORTED)
        if not exported:
            _check_weights(cfg)
        cfg.freeze()
        self.cfg = cfg
        sizes = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        self.augmentations = T.AugmentationList(evaluation_augmentations(*sizes))
        self.model = build_model(cfg).eval()
        of_weights = None
        if not exported:
            _forget_other_classes(self.model, cfg)
            checkpointer = DetrCheckpointer(self.model)
            checkpointer.load(cfg.MODEL.WEIGHTS)
            check_whole(checkpointer.reinitialized, "this would predict with")
            of_weights = checkpointer.card.score_threshold
        card = getattr(self.model, "card", None)
        of_config = card.score_threshold if card is not None else None
        self.threshold = next(x for x in (threshold, of_config, of_weights, DEFAULT_THRESHOLD) if x is not None)
        _set_thresholds(self.model, self.threshold, threshold)
        self.class_names = _names(cfg, classes, card.class_names if card is not None else None)
        self.category_ids = _category_ids(cfg, self.class_names)
        self.batch_size = batch_size
        self.input_format: str = cfg.INPUT.FORMAT

    def __call__(
        self, images: ImageInput | Iterable[ImageInput], *, color: str | None = None
    ) -> Instances | list[Instances]:
        """The objects of one image; for several images a list with those of each.

        images: one image or several (see ``predict``)

        Returns Instances on the CPU with ``pred_boxes`` xyxy in pixels of the image, ``scores`` at or above the
        threshold, ``pred_classes`` in [0, K), and ``pred_masks`` (I, H, W) bool where the model has masks; in the
        order of the queries. Raises InputError as ``predict``.
        """
        if image_inputs.is_image(images):
            return next(self.predict([images], color=color))["instances"]  # type: ignore[list-item]
        return [output["instances"] for output in self.predict(images, color=color)]  # type: ignore[arg-type]

    def predict(self, images: Iterable[ImageInput], *, color: str | None = None) -> Iterator[dict[str, Any]]:
        """Detectron2's output of each image, in the order of the images, while they are read.

        images: paths, URLs, images of PIL's, or arrays (H, W, 3) uint8; an iterator of any length. At most
            ``detr.modeling.batches.BATCHES_AHEAD`` batches are kept in memory
        color: of arrays, "RGB" or "BGR"

        Yields dicts on the CPU: ``instances`` as ``__call__`` describes them, and where the model has it
        ``panoptic_seg``, ids (H, W) int32 with a list of segments. Raises InputError for an image that cannot be read.
        """
        return self._in_batches(images, color, self._run)

    def predict_queries(self, images: Iterable[ImageInput], *, color: str | None = None) -> Iterator[Instances]:
        """What each of the Q object queries predicts in each image, however low its score, in the order of the queries.

        images, color: as for ``predict``

        Yields Instances on the CPU with ``pred_boxes`` xyxy in pixels of the image, ``scores`` and ``pred_classes``.
        Raises InputError as ``predict``, and for an exported model.
        """
        if not isinstance(self.model, Detr):
            raise InputError(
                f"a {type(self.model).__name__} does not tell what each query predicts: name the checkpoint of a Detr, "
                "as the one that it was exported from"
            )
        return self._in_batches(images, color, self._run_queries)

    def attention(
        self,
        image: ImageInput,
        *,
        color: str | None = None,
        points: Sequence[Point] | None = None,
        decoder_layers: Sequence[int] = (-1,),
        encoder_layers: Sequence[int] = (-1,),
    ) -> Attention:
        """Where the model looks in one image, with what ``predict`` yields for it as ``output``.

        image, color: as for ``predict``; points: x and y in pixels of the image; all else as in ``attention_maps``

        Raises InputError as ``predict`` and ``attention_maps.attention``.
        """
        found = attention(
            self.model,
            [self._prepare(image, color)],
            points=None if points is None else [points],
            threshold=self.threshold,
            decoder_layers=decoder_layers,
            encoder_layers=encoder_layers,
        )[0]
        return dataclasses.replace(found, output=self._finish(found.output))

    def _in_batches(
        self, images: Iterable[ImageInput], color: str | None, run: Callable[[list[dict[str, Any]]], Sequence[Output]]
    ) -> Iterator[Output]:
        return run_in_batches((self._prepare(image, color) for image in images), run, self.batch_size)

    def _prepare(self, image: ImageInput, color: str | None) -> dict[str, Any]:
        """What the mapper makes of a dataset dict in evaluation."""
        pixels = image_inputs.read(image, self.input_format, color)
        annotated = AnnotatedImage(pixels, None, lambda: np.empty(0))
        self.augmentations(annotated)
        tensor = torch.from_numpy(np.ascontiguousarray(annotated.image.transpose(2, 0, 1)))
        height, width = pixels.shape[:2]
        return {"image": tensor, "height": height, "width": width, "file_name": image_inputs.describe(image)}

    def _run(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        with torch.no_grad():
            outputs = self.model(batch)
        return [self._finish(output) for output in outputs]

    @torch.no_grad()
    def _run_queries(self, batch: list[dict[str, Any]]) -> list[Instances]:
        outputs = self.model.forward_network(self.model.preprocess(batch), return_intermediate=False)
        found = zip(outputs.logits[-1], outputs.boxes[-1], batch, strict=True)
        return [box_instances(logits, boxes, (x["height"], x["width"])).to("cpu") for logits, boxes, x in found]

    def _finish(self, output: dict[str, Any]) -> dict[str, Any]:
        instances = output["instances"].to("cpu")
        finished = {**output, "instances": instances[instances.scores >= self.threshold]}
        if "panoptic_seg" in output:
            segmentation, segments = output["panoptic_seg"]
            finished["panoptic_seg"] = segmentation.to("cpu"), segments
        return finished


def _device(cfg: CfgNode, device: torch.device | str | None) -> str:
    wanted = str(device or cfg.MODEL.DEVICE)
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        if device is not None:
            raise InputError(f"the device is {wanted}, but CUDA is not available here: leave it out, or name cpu")
        return "cpu"
    return wanted


def _check_weights(cfg: CfgNode) -> None:
    if not cfg.MODEL.WEIGHTS:
        raise InputError("no weights are named: name a model, or set MODEL.WEIGHTS")
    check_weights(cfg.MODEL.WEIGHTS)


def _forget_other_classes(model: torch.nn.Module, cfg: CfgNode) -> None:
    """Where the weights name the model's classes, these count: a config file may be that of another data set."""
    if not isinstance(model, HasCard) or not (cfg.DATASETS.TRAIN or cfg.DATASETS.TEST):
        return
    saved = read_card(cfg.MODEL.WEIGHTS)
    if saved is not None and len(saved.class_names or ()) == model.num_classes:
        model.forget_classes()


def _set_thresholds(model: torch.nn.Module, threshold: float, wanted: float | None) -> None:
    """Where the model is ours, masks of objects below the threshold are not computed."""
    postprocessor = getattr(model, "postprocessor", None)
    if not isinstance(postprocessor, Postprocessor):
        return
    postprocessor.score_threshold = threshold
    if postprocessor.panoptic is not None and wanted is not None:
        postprocessor.panoptic = dataclasses.replace(postprocessor.panoptic, score_threshold=wanted)


def _names(cfg: CfgNode, given: Sequence[str] | None, saved: Sequence[str] | None) -> tuple[str, ...] | None:
    count = cfg.MODEL.DETR.NUM_CLASSES
    if given is not None:
        if len(given) != count:
            raise InputError(
                f"{len(given)} class names are given, but the model has {count} classes: name each of them"
            )
        return tuple(given)
    if saved is not None:
        return tuple(saved)
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        names = class_names(name) if name in MetadataCatalog.list() else None
        if names is not None and len(names) == count:
            return tuple(names)
    return None


def _category_ids(cfg: CfgNode, names: tuple[str, ...] | None) -> tuple[int, ...]:
    count = cfg.MODEL.DETR.NUM_CLASSES
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if name not in MetadataCatalog.list() or names is None or class_names(name) != list(names):
            continue
        metadata = MetadataCatalog.get(name)
        ids: dict[int, int] = {}
        for kind in ("thing", "stuff"):  # a panoptic set numbers both in one space
            ids |= metadata.get(f"{kind}_dataset_id_to_contiguous_id") or {}
            by_class = {index: category for category, index in ids.items()}
            if set(by_class) == set(range(count)):
                return tuple(by_class[index] for index in range(count))
    return tuple(range(count))
