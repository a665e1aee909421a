"""``DetrCheckpointer``: Detectron2's checkpointer that knows DETR's formats."""

import logging
from typing import Any
from urllib.error import URLError

from detectron2.checkpoint import DetectionCheckpointer

from detr.checkpoint.files import load_file
from detr.checkpoint.formats import (
    is_original_detection,
    is_torchvision_resnet,
    original_to_detectron2,
    torchvision_to_detectron2,
)
from detr.errors import InputError

logger = logging.getLogger(__name__)


class DetrCheckpointer(DetectionCheckpointer):
    """Loads the authors' detection checkpoints and torchvision's ResNets besides all that Detectron2 loads."""

    def _torch_load(self, f: str) -> dict[str, Any]:
        content = load_file(f)
        state = content.get("model", content)
        if is_original_detection(state):
            logger.info("%s is an original DETR checkpoint: converting its %d tensors", f, len(state))
            # Optimiser, epoch and args of the original's training mean nothing here.
            return {"model": original_to_detectron2(state)}
        if is_torchvision_resnet(state):
            logger.info("%s is a torchvision ResNet: loading it as the backbone alone", f)
            return {"model": torchvision_to_detectron2(state)}
        return content

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Raises InputError for a file that cannot be downloaded or read, or that holds nothing for this model."""
        try:
            loaded: dict[str, Any] = super().load(path, *args, **kwargs)
        except URLError as error:
            raise InputError(
                f"cannot download the weights {path} ({error.reason}): check the network, or fetch the file by other "
                'means and name it in MODEL.WEIGHTS; MODEL.WEIGHTS "" starts from random weights'
            ) from error
        return loaded

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        state, own = checkpoint["model"], self.model.state_dict()
        if not checkpoint.get("matching_heuristics") and not any(key.removeprefix("module.") in own for key in state):
            raise InputError(
                f"the weights hold nothing for this model: their first keys are {', '.join(list(state)[:3])}; is it a "
                "checkpoint of another kind or version?"
            )
        return super()._load_model(checkpoint)
