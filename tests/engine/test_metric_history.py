"""What a long training keeps of its metrics."""

from types import SimpleNamespace

from detectron2.utils.events import EventStorage

from detr.engine.metric_history import LONGEST, BoundedHistory


def test_memory_for_metrics_is_bounded():
    hook = BoundedHistory()
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(storage=storage)
        hook.before_train()
        for i in range(LONGEST + 500):
            storage.put_scalars(loss_ce=i, total_loss=i)
            storage.step()
    assert len(storage.history("loss_ce").values()) == LONGEST
    assert len(storage.history("total_loss").values()) == LONGEST + 500  # the health checks look at its beginning
    assert storage.latest_with_smoothing_hint(20)["loss_ce"] == (LONGEST + 489.5, LONGEST + 499)
    assert storage.history("loss_ce").global_avg() == (LONGEST + 499) / 2
