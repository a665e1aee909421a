"""``DetrCheckpointer``: Detectron2's checkpointer that knows DETR's formats."""

import logging
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer

from detr.checkpoint.files import load_file
from detr.checkpoint.formats import is_original_detection, original_to_detectron2

logger = logging.getLogger(__name__)


class DetrCheckpointer(DetectionCheckpointer):
    """Loads the authors' detection checkpoints besides all that Detectron2 loads."""

    def _torch_load(self, f: str) -> dict[str, Any]:
        content = load_file(f)
        state = content.get("model", content)
        if not is_original_detection(state):
            return content
        logger.info("%s is an original DETR checkpoint: converting its %d tensors", f, len(state))
        # Optimiser, epoch and args of the original's training mean nothing here.
        return {"model": original_to_detectron2(state)}
