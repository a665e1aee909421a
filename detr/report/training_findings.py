"""What the metrics say of a training."""

import math

from detr.engine.metrics_files import Metrics
from detr.report.results import Finding


def training_findings(metrics: Metrics, dataset: str) -> list[Finding]:
    """dataset: of the evaluation, where there are several"""
    return [*overfitting(metrics), *unfinished(metrics, dataset), *constant_rate(metrics)]


def _values(metrics: Metrics, key: str) -> list[tuple[int, float]]:
    """(iteration, value), where the value is finite."""
    return [point for point in metrics.get(key, {}).items() if math.isfinite(point[1])]


def overfitting(metrics: Metrics) -> list[Finding]:
    """A validation loss that rose at the end by 2 % or more, while that of the training fell."""
    validation, training = _values(metrics, "val_loss"), _values(metrics, "total_loss")
    if len(validation) < 3:
        return []
    iteration, least = min(validation, key=lambda point: point[1])
    last = validation[-1][1]
    then = [value for at, value in training if at <= iteration]
    if last < 1.02 * least or not then or training[-1][1] >= then[-1]:
        return []
    text = (
        f"The model overfits: the validation loss was lowest at iteration {iteration} ({least:.2f}) and is {last:.2f} "
        f"at the end, while the training loss fell from {then[-1]:.2f} to {training[-1][1]:.2f}."
    )
    return [Finding(text, "Use model_best.pth, add images, or end earlier with SOLVER.PATIENCE.")]


def unfinished(metrics: Metrics, dataset: str) -> list[Finding]:
    """AP that still rises by a point or more at the end, or that was as much higher before."""
    points = _values(metrics, "bbox/AP") or _values(metrics, f"{dataset}/bbox/AP")
    if len(points) < 2:
        return []
    (before, earlier), (end, last) = points[-2:]
    best_at, best = max(points, key=lambda point: point[1])
    if last == best and last - earlier >= 1:
        text = f"AP was still rising at the end: from {earlier:.1f} % at iteration {before} to {last:.1f} % at {end}."
        return [Finding(text, "Train longer (SOLVER.MAX_EPOCHS).")]
    if best - last >= 1:
        text = f"AP was best at iteration {best_at}, {best:.1f} %, and is {last:.1f} % at the end."
        return [Finding(text, "Use model_best.pth.")]
    return []


def constant_rate(metrics: Metrics) -> list[Finding]:
    """A learning rate that is as high at the end as it ever was."""
    rates = _values(metrics, "lr")
    if len(rates) < 10 or rates[-1][1] < 0.99 * max(value for _, value in rates):
        return []
    text = f"The learning rate was never lowered: it is {rates[-1][1]:g} at the end, at iteration {rates[-1][0]}."
    action = "Lower it towards the end (SOLVER.DROP_EPOCHS, or LR_SCHEDULER_NAME WarmupCosineLR): AP mostly rises then."
    return [Finding(text, action)]
