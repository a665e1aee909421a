"""How much of each metric's past stays in memory: Detectron2 keeps a million values, gigabytes in a long training."""

from detectron2.engine import HookBase
from fvcore.common.history_buffer import HistoryBuffer

LONGEST = 1000  # values of a metric; the writers use 20
WHOLE = ("total_loss",)  # the health checks compare the end with the beginning


class BoundedHistory(HookBase):
    """Lets the event storage of a training keep the last ``LONGEST`` values of each metric, but for ``WHOLE``."""

    def before_train(self) -> None:
        self.trainer.storage._history = _Histories()


class _Histories(dict[str, HistoryBuffer]):
    def __missing__(self, name: str) -> HistoryBuffer:
        history = self[name] = HistoryBuffer() if name in WHOLE else HistoryBuffer(max_length=LONGEST)
        return history
