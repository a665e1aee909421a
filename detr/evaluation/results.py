"""The numbers of an evaluation: one table for the log, one for the terminal."""

import math
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from detr.evaluation.evaluators import TASK_NAMES

MOST_CLASSES = 20  # whose AP the terminal shows; of more, the log has it
ROWS = 7  # of the table of classes, before it gets another column

# data set -> task -> metric -> number, as evaluators return them; a percentage each
Results = Mapping[str, Mapping[str, Any]]


def results_table(results: Results) -> str:
    """All numbers of an evaluation but those of single classes: a row per metric, a column per data set.

    results: a percentage each
    """
    rows: dict[str, dict[str, float]] = {}
    for dataset, tasks in results.items():
        for task, metrics in tasks.items():
            if not isinstance(metrics, Mapping):  # of an evaluator that returns numbers, not dicts
                rows.setdefault(task, {})[dataset] = metrics
                continue
            for metric, value in metrics.items():
                if "-" not in metric:  # as in "AP-person"
                    name = TASK_NAMES.get(task, f"{task} ") + metric
                    rows.setdefault(name, {})[dataset] = value
    body = [[name, *(values.get(dataset) for dataset in results)] for name, values in rows.items()]
    return str(tabulate(body, headers=["", *results], tablefmt="pipe", floatfmt=".2f"))


def results_text(results: Results) -> str:
    """The same for the terminal, a row per task, with the AP of the classes where there are at most `MOST_CLASSES`."""
    blocks = []
    for dataset, tasks in results.items():
        groups: dict[tuple[str, ...], list[list[str]]] = {}  # metrics -> rows of the tasks that have them
        for task, metrics in tasks.items():
            if not isinstance(metrics, Mapping):
                metrics = {"": metrics}
            whole = {name: value for name, value in metrics.items() if "-" not in name}
            row = [TASK_NAMES.get(task, task).strip() or "panoptic", *map(_percent, whole.values())]
            groups.setdefault(tuple(whole), []).append(row)
        tables = [
            tabulate(rows, headers=["", *names], tablefmt="plain", disable_numparse=True, stralign="right")
            for names, rows in groups.items()
        ]
        classes = _classes(tasks)
        blocks.append("\n".join([f"Results on {dataset}, in percent", *tables, *([classes] if classes else [])]))
    return "\n".join(blocks)


def _classes(tasks: Mapping[str, Any]) -> str:
    """AP by class, in as many columns as keep it short; "" where there is none, or there are too many."""
    by_task = {
        task: {name.removeprefix("AP-"): value for name, value in metrics.items() if name.startswith("AP-")}
        for task, metrics in tasks.items()
        if isinstance(metrics, Mapping)
    }
    by_task = {task: values for task, values in by_task.items() if values}
    names = list(dict.fromkeys(name for values in by_task.values() for name in values))
    if not 0 < len(names) <= MOST_CLASSES:
        return ""
    cells = [[name, *(_percent(values.get(name, math.nan)) for values in by_task.values())] for name in names]
    columns = -(-len(cells) // ROWS)
    height = -(-len(cells) // columns)
    rows = [[cell for line in cells[i::height] for cell in line] for i in range(height)]
    headers = ["class", *(f"{TASK_NAMES.get(task, task + ' ')}AP" for task in by_task)] * columns
    aligned = ("left", *("right",) * len(by_task)) * columns
    return str(tabulate(rows, headers=headers, tablefmt="plain", disable_numparse=True, colalign=aligned))


def _percent(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, (int, float)) and math.isfinite(value) else "-"
