"""Warnings of other packages that say nothing about the user's code or data, and which no user can act on."""

import logging
import warnings

# logger -> what is in the messages that are dropped. All other messages of these loggers stay.
_MESSAGES = {
    "torch.utils.cpp_extension": "No CUDA runtime is found",  # Detectron2 lists the machine's software
    "detectron2.data.datasets.coco": "Category ids in annotations are not in [1, #categories]",  # they need not be
    "detectron2.evaluation.coco_evaluation": "Fast COCO eval is not built",  # the results are the same
    "detectron2.config.compat": "has no VERSION. Assuming it to be compatible with latest",  # the only one for years
}


def hide_foreign_warnings() -> None:
    """Drops the messages, wherever they come from in this process; a second call changes nothing."""
    for name, text in _MESSAGES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Drop) for known in logger.filters):
            logger.addFilter(_Drop(text))
    # A class name in a script that matplotlib's font lacks is drawn as boxes.
    warnings.filterwarnings("ignore", message="Glyph .* missing from")
    # Detectron2 passes it to DistributedDataParallel, once a rank.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    # Detectron2's model zoo imports it, with setuptools older than 82.
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")


class _Drop(logging.Filter):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return self.text not in str(record.msg)
