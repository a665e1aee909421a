"""``ExportedDetr``: a DETR whose network is a graph in a file, and all else as in ``Detr``.

N  images, H x W their padded size in pixels
Q  object queries, K classes without no-object
"""

import functools
import json
import os
from dataclasses import asdict, dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from torch import Tensor

from detr.config import EXPORT_DESCRIPTION
from detr.errors import InputError
from detr.export.runtimes import FORMATS, SUFFIXES, Graph, open_graph
from detr.modeling.batches import run_in_batches
from detr.modeling.card import ModelCard, make_card
from detr.modeling.mask_head import ROWS_AT_ONCE, SharedMaps
from detr.modeling.postprocessing import PanopticSettings, Postprocessor
from detr.modeling.preprocessing import BaseDetr, normalize_images

LAYOUT = 1  # of that folder; another number is a later version's
NETWORK, MASK_DECODER = "network", "mask_decoder"


@dataclass
class Description:
    """The description of an exported model, in a file beside its config.

    format: one of ``FORMATS``
    device: where a TorchScript graph runs, "cpu" or "cuda"; the other formats run anywhere
    masks: whether there is a mask decoder
    is_thing: for each of the K classes
    size_divisibility, padding_constraints: of the backbone
    files: the size in bytes of each file of the graphs
    dtype: float32; int8, in which most layers compute; or float16 or bfloat16, in which weights are stored. Images,
        logits, boxes and masks are float32
    weights: the name of what was exported
    versions: of the packages that took part
    checked: for each batch that the graphs were compared on, the images' sizes and the largest differences
    calibration: "dataset" and "images", how many, of an int8 graph
    measured: "dataset", and AP and PQ before ("float32") and after (``dtype``), where it was asked for
    class_names, score_threshold, preprocessing: as in ``make_metadata``; None in a folder of an earlier version
    """

    format: str
    device: str
    masks: bool
    is_thing: list[bool]
    size_divisibility: int
    padding_constraints: dict[str, int]
    files: dict[str, int]
    dtype: str
    weights: str
    versions: dict[str, str]
    checked: list[dict[str, Any]]
    class_names: list[str] | None = None
    score_threshold: float | None = None
    preprocessing: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    measured: dict[str, Any] | None = None
    layout: int = LAYOUT

    def write(self, folder: str) -> None:
        with open(os.path.join(folder, EXPORT_DESCRIPTION), "w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=2)
            file.write("\n")

    def card(self, cfg: CfgNode) -> ModelCard:
        """cfg: of the exported folder."""
        made = make_card(cfg)  # has the names in the metadata of a data set, for a folder of an earlier version
        names = made.class_names if self.class_names is None else tuple(self.class_names)
        return ModelCard(names, made.config, self.score_threshold or made.score_threshold)

    @classmethod
    def read(cls, folder: str) -> "Description":
        """Raises InputError for a folder that is missing, is no exported model, or is not whole."""
        path = os.path.join(folder, EXPORT_DESCRIPTION)
        if not os.path.isfile(path):
            raise InputError(
                f"MODEL.DETR.EXPORTED {folder!r} is no exported model, for it has no {EXPORT_DESCRIPTION}: name the "
                "folder that tools/export_model.py wrote; was it moved?"
            )
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            if content.get("layout") != LAYOUT:
                raise InputError(f"{path} has the layout {content.get('layout')}, not {LAYOUT}: export the model again")
            found = cls(**content)
            if found.format not in FORMATS:
                raise ValueError(f"the format is {found.format}")
        except InputError:
            raise
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged ({error}): export the model again") from error
        for name, size in found.files.items():
            file_path = os.path.join(folder, name)
            if not os.path.isfile(file_path):
                raise InputError(f"{folder} lacks {name}: copy the whole folder, or export the model again")
            if os.path.getsize(file_path) != size:
                raise InputError(
                    f"{file_path} has {os.path.getsize(file_path)} bytes, not the {size} that were written: copy it "
                    "again, or export the model again"
                )
        return found


@META_ARCH_REGISTRY.register()
class ExportedDetr(BaseDetr):
    """Runs the graphs of an exported ``Detr`` behind Detectron2's contract; it has no parameters of torch's."""

    @configurable
    def __init__(
        self,
        *,
        network: Graph,
        mask_decoder: Graph | None,
        postprocessor: Postprocessor,
        size_divisibility: int,
        padding_constraints: dict[str, int],
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        images_alone: bool = False,
        card: ModelCard | None = None,
    ) -> None:
        """network: images (N, 3, H, W) and sizes (N, 2) -> logits (N, Q, K + 1), boxes (N, Q, 4) and, with masks, the
            five tensors of ``SharedMaps``
        mask_decoder: the rows' maps (see ``SharedMaps.rows``) -> mask logits (R, h, w); None for boxes only
        size_divisibility, padding_constraints: of the backbone
        pixel_mean, pixel_std, images_alone: see ``BaseDetr``
        card: class names, how images are prepared, and the threshold
        """
        super().__init__(pixel_mean, pixel_std, images_alone)
        self.num_classes = len(postprocessor.is_thing)
        if card is not None:
            self.card = card
        self.network = network
        self.mask_decoder = mask_decoder
        self.postprocessor = postprocessor
        self.size_divisibility = size_divisibility
        self.padding_constraints = padding_constraints

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Opens the folder ``MODEL.DETR.EXPORTED``. Raises InputError where it does not fit the config."""
        folder, keys = cfg.MODEL.DETR.EXPORTED, cfg.MODEL.DETR
        description = Description.read(folder)
        if cfg.MODEL.WEIGHTS:
            raise InputError(
                f"MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS}, but an exported model has its weights in its graph: leave it "
                "empty, and export other weights anew"
            )
        if keys.COMPILE:
            raise InputError(
                f"MODEL.DETR.COMPILE is {keys.COMPILE!r}, but an exported graph is compiled: leave it empty"
            )
        for key, value, exported in (
            ("MODEL.MASK_ON", cfg.MODEL.MASK_ON, description.masks),
            ("MODEL.DETR.NUM_CLASSES", keys.NUM_CLASSES, len(description.is_thing)),
        ):
            if value != exported:
                raise InputError(f"{key} is {value}, but {folder} was exported with {exported}: leave it so")
        if keys.PANOPTIC.ENABLED and not description.masks:
            raise InputError(f"MODEL.DETR.PANOPTIC.ENABLED is True, which needs masks, but {folder} has boxes only")
        device = torch.device(description.device if description.format == "torchscript" else cfg.MODEL.DEVICE)
        if description.device == "cuda" and not torch.cuda.is_available():
            raise InputError(
                f"{folder} was traced on a GPU, and there is none: export it again with MODEL.DEVICE cpu, or in "
                "another format"
            )

        def graph(name: str) -> Graph:
            return open_graph(description.format, os.path.join(folder, name + SUFFIXES[description.format]), device)

        panoptic = PanopticSettings(keys.PANOPTIC.SCORE_THRESHOLD, keys.PANOPTIC.MIN_AREA, keys.PANOPTIC.STUFF_MERGE)
        return {
            "network": graph(NETWORK),
            "mask_decoder": graph(MASK_DECODER) if description.masks else None,
            "postprocessor": Postprocessor(
                is_thing=description.is_thing,
                score_threshold=keys.INSTANCE_SCORE_THRESHOLD,
                max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
                panoptic=panoptic if keys.PANOPTIC.ENABLED else None,
            ),
            "size_divisibility": description.size_divisibility,
            "padding_constraints": description.padding_constraints,
            "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
            "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
            "images_alone": keys.IMAGES_ALONE,
            "card": description.card(cfg),
        }

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As ``Detr.forward`` in inference. Raises InputError in training mode."""
        if self.training:
            raise InputError("an exported model cannot be trained: call eval() on it, or train what it comes from")
        if self.must_part(batched_inputs):
            forward = functools.partial(ExportedDetr.forward, self)
            return list(run_in_batches(batched_inputs, forward, len(batched_inputs)))
        images = self.preprocess(batched_inputs)
        logits, boxes, *maps = self.forward_network(images)
        predict_masks = None
        if self.mask_decoder is not None:
            predict_masks = functools.partial(self.masks, SharedMaps(*maps))
        return self.postprocessor.postprocess(logits, boxes, predict_masks, batched_inputs, images)

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """The normalized and padded batch (see ``normalize_images``)."""
        return normalize_images(
            batched_inputs, self.pixel_mean, self.pixel_std, self.size_divisibility, self.padding_constraints
        )

    def forward_network(self, images: ImageList) -> tuple[Tensor, ...]:
        """The network's outputs: logits (N, Q, K + 1), boxes (N, Q, 4) and, with masks, the shared maps."""
        sizes = torch.tensor(images.image_sizes).to(images.device, non_blocking=True)
        return self.network(images.tensor, sizes)

    def masks(self, maps: SharedMaps, index: int, queries: Tensor) -> Tensor:
        """Mask logits (R, h, w) of queries (R,) of one of the images."""
        assert self.mask_decoder is not None
        if not len(queries):
            return maps.fine.new_empty(0, *maps.fine.shape[-2:])
        of_image = SharedMaps(*(x[index : index + 1] for x in maps))
        chunks = queries.split(ROWS_AT_ONCE)
        return torch.cat([self.mask_decoder(*of_image.rows(torch.zeros_like(x), x))[0] for x in chunks])
