"""Rows of the class head and of the queries: what a conversion keeps, fills or re-initializes.

    K  classes without no-object, whose row is the last of the class head

The authors' heads count COCO's category ids, gaps included: 0..90 for boxes, 0..249 for panoptic. Detectron2
numbers the categories that exist: 80 things, then for panoptic 53 kinds of stuff.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from detr.checkpoint.coco_categories import coco_categories

State = dict[str, Tensor]

CLASS_KEYS = ("class_embed.weight", "class_embed.bias")
QUERY_KEY = "query_embed.weight"
TRAINING_PREFIX = "training_queries."  # of what a training has beside a plain DETR; in a DETR inside, behind its own
THINGS, PANOPTIC = 80, 133  # classes of COCO in Detectron2's order; the things come first in both
COCO_ROWS = {92: THINGS, 251: PANOPTIC}  # rows of a head that counts COCO's ids, and the classes that these are
NEVER = -1e4  # a class logit that no softmax lets win; finite in half precision too


def coco_rows(num_classes: int) -> Tensor:
    """Where Detectron2's 80 or 133 categories and no-object are in the original's head: (K + 1,) int64."""
    categories = sorted(coco_categories(), key=lambda category: not category["isthing"])  # a stable sort
    ids = [int(str(category["id"])) for category in categories]
    return torch.tensor({THINGS: [*ids[:THINGS], 91], PANOPTIC: [*ids, 250]}[num_classes])


def to_contiguous(state: State) -> State:
    """92 class rows -> 81, and 251 -> 134; a state dict with another number of rows is returned as it is."""
    num_classes = COCO_ROWS.get(num_rows(state))
    if num_classes is None:
        return state
    rows = coco_rows(num_classes)
    return state | {key: state[key][rows] for key in CLASS_KEYS}


def to_category_ids(state: State) -> State:
    """81 class rows -> 92, and 134 -> 251, with rows for unused ids that never win; others stay as they are."""
    num_classes = num_rows(state) - 1
    if num_classes not in (THINGS, PANOPTIC):
        return state
    rows = coco_rows(num_classes)
    filled = {}
    for key, fill in zip(CLASS_KEYS, (0.0, NEVER), strict=True):
        kept = state[key]
        filled[key] = kept.new_full((int(rows[-1]) + 1, *kept.shape[1:]), fill)
        filled[key][rows] = kept
    return state | filled


def num_rows(state: Mapping[str, Tensor]) -> int:
    """K + 1; 0 where there is no class head (a backbone alone)."""
    return state[CLASS_KEYS[1]].shape[0] if CLASS_KEYS[1] in state else 0


def fit(state: State, initial: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """``state`` with as many class rows and queries as ``initial`` has, and a line on each that did not fit.

    initial: has ``class_embed`` and ``query_embed`` in the wanted sizes, with the values for rows that are new

    The row of no-object means the same everywhere and is kept. Between COCO's 80 and 133 classes the things
    are kept too; otherwise class rows are re-initialized, since it is unknown which classes are the same. Of more
    queries the first are kept.
    """
    fitted = dict(state)
    lines: list[str] = []
    both = {CLASS_KEYS[0], QUERY_KEY} & state.keys() & initial.keys()
    if any(state[key].shape[1] != initial[key].shape[1] for key in both):
        return fitted, lines  # another width: no row fits
    old, new = num_rows(state), num_rows(initial)
    if old and new and old != new:
        shared = THINGS if {old, new} == {THINGS + 1, PANOPTIC + 1} else 0
        for key in CLASS_KEYS:
            rows = initial[key].detach().to(state[key].dtype, copy=True)
            rows[-1] = state[key][-1]
            rows[:shared] = state[key][:shared]
            fitted[key] = rows
        kept = f"no-object and the {shared} things are kept" if shared else "no-object is kept"
        lines.append(f"class_embed: {old} rows in the weights, {new} wanted: {kept}, the others are re-initialized")
    if QUERY_KEY in state and QUERY_KEY in initial:
        old, new = len(state[QUERY_KEY]), len(initial[QUERY_KEY])
        if old != new:
            queries = initial[QUERY_KEY].detach().to(state[QUERY_KEY].dtype, copy=True)
            queries[: min(old, new)] = state[QUERY_KEY][:new]
            fitted[QUERY_KEY] = queries
            rest = f"{new - old} more are initialized" if new > old else f"the first {new} are kept"
            lines.append(f"query_embed: {old} queries in the weights, {new} wanted: {rest}")
    return fitted, lines


def is_for_training(key: str) -> bool:
    return f".{TRAINING_PREFIX}" in f".{key}"


def fit_training_queries(state: State, own: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """``state`` with what fits ``own`` of that which a training has beside a plain DETR; and lines on the rest.

    The object queries are in ``query_embed`` in any case, so that a model without the rest is the same model. Anchors,
    their offsets and the perceptron that embeds boxes belong together.
    """
    saved, wanted = ({key for key in some if is_for_training(key)} for some in (state, own))
    fits = {key for key in saved & wanted if state[key].shape == own[key].shape}
    together = {key for key in wanted if not key.endswith(("label_embed.weight", "more_queries"))}
    if not together <= fits:
        fits -= together
    lines = []
    if left_out := saved - fits:
        lines.append(f"left out, for training alone and not of use here: {_listed(left_out)}")
    if missing := wanted - fits:
        lines.append(f"re-initialized, for training alone: {_listed(missing)}; the object queries are the weights'")
    return {key: value for key, value in state.items() if key not in left_out}, lines


def _listed(keys: set[str]) -> str:
    return min(keys) if len(keys) == 1 else f"{len(keys)} tensors like {min(keys)}"
