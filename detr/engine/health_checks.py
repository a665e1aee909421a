"""What is wrong with a training that is stuck, in words, with the value to set."""

from collections.abc import Sequence

import numpy as np

from detr.engine.matching_statistics import WINDOW, Sums

FIRST = 100  # iterations at most at the start, whose mean loss later ones are compared with
FLAT, RISEN = 0.97, 1.2  # mean loss relative to that of the start
GOOD = 0.5  # mean IoU and share of right classes of a model that has learned something, as one that is fine-tuned
NONE = 0.01  # predicted objects, relative to true ones
BETTER_THAN_CHANCE = 0.1  # of what is between chance and all
FEWEST_OBJECTS = 200  # in a comparison with chance
LATE = 0.25  # of the training: from there on the matching should have settled
MOST_DEAD = 0.8  # of the queries


def health_warnings(
    sums: Sums,
    *,
    steps: int,
    losses: Sequence[float],
    dead: float | None,
    progress: float,
    learning_rate: float | None,
) -> dict[str, str]:
    """A name and a sentence for each thing that is wrong, none for a training that learns.

    sums: of the last ``steps`` iterations
    losses: the total loss of all iterations from the first one; empty where the beginning is unknown
    dead: share of dead queries, None where it is unknown
    progress: how much of the training is over, in [0, 1]
    learning_rate: the highest one now; None where it is unknown
    """
    rate = (
        "SOLVER.BASE_LR" if learning_rate is None else f"SOLVER.BASE_LR (the learning rate is {learning_rate:.2g} now)"
    )
    found: dict[str, str] = {}
    if not sums.matched:
        return found
    found |= _losses(sums, steps, losses, rate)
    if found:
        return found  # what else is wrong follows from it
    if sums.predicted < NONE * sums.objects:
        found["no-object"] = (
            f"nearly all queries answer no-object: {sums.predicted} objects are predicted in {steps} iterations, where "
            f"{sums.objects} are. If the losses still fall, wait; else change {rate}, lower "
            "MODEL.DETR.NO_OBJECT_WEIGHT, or start from trained weights (MODEL.WEIGHTS)"
        )
    found |= _classes(sums)
    if progress >= LATE:
        found |= _stability(sums, rate)
        if dead is not None and dead > MOST_DEAD:
            number = len(sums.by_query)
            found["dead queries"] = (
                f"{round(dead * number)} of {number} queries are dead: in the last {WINDOW} images they neither were "
                f"matched to an object nor predicted one. An image has up to {sums.most_objects} objects: a new "
                f"training could do with MODEL.DETR.NUM_OBJECT_QUERIES {enough_queries(sums.most_objects, number)}"
            )
    return found


def enough_queries(objects: int, number: int) -> int:
    """Queries for images of up to so many objects, at most ``number``: three times as many, in tens."""
    return min(max(-(-3 * objects // 10) * 10, 10), number)


def _losses(sums: Sums, steps: int, losses: Sequence[float], rate: str) -> dict[str, str]:
    start = min(FIRST, len(losses) // 4)
    if not start:
        return {}
    first, last = float(np.mean(losses[:start])), float(np.mean(losses[-max(steps // 2, 1) :]))
    numbers = f"total_loss was {first:.2f} at first and is {last:.2f}"
    if not last < RISEN * first:
        return {
            "loss": f"the loss has risen ({numbers}): lower {rate}, and check that SOLVER.CLIP_GRADIENTS is on; start "
            "anew, since these weights are spoiled"
        }
    if last > FLAT * first and min(sums.iou, sums.right) < GOOD * sums.matched:
        return {
            "loss": f"nothing is learned: {numbers}. Raise {rate}; SOLVER.WARMUP_ITERS may keep it low for too long. "
            "Or are the parameters frozen?"
        }
    return {}


def _classes(sums: Sums) -> dict[str, str]:
    most = sums.by_class.max() / sums.matched
    if sums.named < FEWEST_OBJECTS or sums.iou < GOOD * sums.matched or most > 1 - BETTER_THAN_CHANCE:
        return {}
    right = sums.right / sums.named
    if right >= above_chance(most):
        return {}
    return {
        "classes": f"boxes are learned and classes are not: the boxes have a mean IoU of {sums.iou / sums.matched:.2f} "
        f"with their objects, but {right:.0%} of the classes are right, and {most:.0%} would be if all were the most "
        "frequent one. Look at the labels: tools/browse_data.py draws them"
    }


def _stability(sums: Sums, rate: str) -> dict[str, str]:
    if sums.compared < FEWEST_OBJECTS:
        return {}
    chance = float(((sums.by_query / sums.matched) ** 2).sum())
    share = sums.same / sums.compared
    if share >= above_chance(chance):
        return {}
    return {
        "stability": f"the matching has not settled: {share:.0%} of the objects have the query that they had when "
        f"their image was seen before, and {chance:.0%} would by chance. Lower {rate}, train longer, or stabilize it "
        "with MODEL.DETR.DENOISING.ENABLED True"
    }


def above_chance(chance: float) -> float:
    """The least share that counts as better than chance."""
    return chance + BETTER_THAN_CHANCE * (1 - chance)
