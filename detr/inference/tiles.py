"""Small objects in large images: the image in overlapping tiles and as a whole, through SAHI."""

from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from detr.errors import InputError
from detr.inference.predictor import Predictor

try:
    from sahi.models.detectron2 import Detectron2DetectionModel
    from sahi.predict import get_sliced_prediction
    from sahi.prediction import ObjectPrediction
except ModuleNotFoundError:
    raise InputError("tiles need SAHI, which is not installed: pip install -e '.[tiles]'") from None

OVERLAP = 0.2  # of a tile's side, as SAHI has it: an object up to that size is whole in one of two neighbors


class TileModel(Detectron2DetectionModel):  # type: ignore[misc]
    """SAHI's model of Detectron2, with a ``Predictor`` in it, which takes several tiles at once.

    It works with all of SAHI: TileModel(Predictor("detr_R_50")) is a ``detection_model`` for get_sliced_prediction.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.category_names = list(predictor.class_names or map(str, range(len(predictor.category_ids))))
        self._outputs: list[dict[str, Any]] = []
        super().__init__(
            model=predictor,
            device=str(predictor.cfg.MODEL.DEVICE),
            confidence_threshold=predictor.threshold,
            category_mapping={str(index): name for index, name in enumerate(self.category_names)},
        )

    def check_dependencies(self, packages: list[str] | None = None) -> None:
        """They are imported already; SAHI would look for a package of Detectron2's under its name in an index."""

    def set_model(self, model: Predictor, **kwargs: Any) -> None:
        self.model = model

    def perform_inference(self, image: np.ndarray) -> None:
        """image: (H, W, 3) uint8, RGB."""
        self.perform_batch_inference([image])

    def perform_batch_inference(self, images: list[np.ndarray]) -> None:
        """images: (H, W, 3) uint8 each, RGB."""
        self._outputs = list(self.model.predict(images, color="RGB"))

    def _create_object_prediction_list_from_original_predictions(
        self,
        shift_amount_list: list[Any] | None = None,
        full_shape_list: list[Any] | None = None,
    ) -> None:
        shifts = _one_each(shift_amount_list or [0, 0], len(self._outputs))
        shapes = _one_each(full_shape_list, len(self._outputs)) if full_shape_list else [None] * len(self._outputs)
        found: list[list[ObjectPrediction]] = []
        for output, shift, shape in zip(self._outputs, shifts, shapes, strict=True):
            self._original_predictions = output
            super()._create_object_prediction_list_from_original_predictions([shift], shape and [shape])
            found += self._object_prediction_list_per_image or []
        self._object_prediction_list_per_image = found


def _one_each(values: list[Any], count: int) -> list[Any]:
    """SAHI gives one pair for one image, or a list of pairs."""
    return values if isinstance(values[0], (list, tuple)) else [values] * count


def predict_in_tiles(predictor: Predictor, image: np.ndarray, tile: int) -> Instances:
    """The objects of an image, found in tiles of ``tile`` x ``tile`` pixels and in the whole image, and joined.

    image: (H, W, 3) uint8, RGB

    Returns what ``predictor(image)`` does, without panoptic map. A mask is that of SAHI's polygons, which fills holes.
    Raises InputError for a tile without pixels.
    """
    if tile < 1:
        raise InputError(
            f"the side of a tile is {tile} pixels: name at least 1, such as the side the model was trained on"
        )
    found = get_sliced_prediction(
        image,
        TileModel(predictor),
        slice_height=min(tile, image.shape[0]),
        slice_width=min(tile, image.shape[1]),
        overlap_height_ratio=OVERLAP,
        overlap_width_ratio=OVERLAP,
        batch_size=predictor.batch_size,
        verbose=0,
    ).object_prediction_list
    return _instances(found, image.shape[:2])


def _instances(found: list[ObjectPrediction], size: tuple[int, int]) -> Instances:
    instances = Instances(
        size,
        pred_boxes=Boxes(torch.tensor([x.bbox.to_xyxy() for x in found], dtype=torch.float32).reshape(-1, 4)),
        scores=torch.tensor([float(x.score.value) for x in found]),
        pred_classes=torch.tensor([x.category.id for x in found], dtype=torch.int64),
    )
    masks = [x.mask.bool_mask for x in found if x.mask is not None]
    if masks:
        instances.pred_masks = torch.from_numpy(np.stack(masks))
    return instances
