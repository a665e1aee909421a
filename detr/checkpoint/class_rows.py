"""Class rows by name: which rows of the weights are those of a model's classes.

K  classes without no-object, whose row is the last of the class head
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from detr.checkpoint.coco_categories import coco_categories
from detr.checkpoint.rows import CLASS_KEYS, PANOPTIC, THINGS, TRAINING_PREFIX, State

LABEL_KEY = f"{TRAINING_PREFIX}label_embed.weight"  # (K, d): the labels of denoising queries
_LISTED = 5  # names in a message


@dataclass(frozen=True)
class RowPlan:
    """What becomes of the class rows of weights in a model with other classes.

    rows: for each of the model's K classes the row of the weights, None where there is none
    line: which rows are kept and which are re-initialized, "" where all are kept and as many as there were
    warning: which rows are moved, and which were another class's, "" where there are none
    """

    rows: tuple[int | None, ...]
    line: str
    warning: str

    @property
    def complete(self) -> bool:
        """Whether no row is re-initialized."""
        return None not in self.rows


def coco_names(num_classes: int) -> tuple[str, ...] | None:
    """The names of COCO's 80 things or 133 things and stuff, in Detectron2's order; None for other numbers."""
    if num_classes not in (THINGS, PANOPTIC):
        return None
    categories = sorted(coco_categories(), key=lambda category: not category["isthing"])  # a stable sort
    return tuple(str(category["name"]) for category in categories)[:num_classes]


def simplified(name: str) -> str:
    """As names are compared: "Traffic_Light" and "traffic light" are one class."""
    return "".join(character for character in name.casefold() if character not in "_- ")


def differences(old: Sequence[str], new: Sequence[str], where: str = "the checkpoint") -> list[str]:
    """The classes with another name in two lists of equal length, in words.

    old: the names in ``where``; new: those here
    """
    return [
        f"class {index} is {here!r} here and {there!r} in {where}"
        for index, (there, here) in enumerate(zip(old, new, strict=True))
        if simplified(there) != simplified(here)
    ]


def listed(names: Sequence[str]) -> str:
    """The names as text; of many the first ones."""
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def match(old: Sequence[str], new: Sequence[str]) -> list[int | None]:
    """For each of the new names the index of the old one that it is; no old one is taken twice.

    Names that are equal to the letter go first, then those that are ``simplified``.
    """
    found: list[int | None] = [None] * len(new)
    taken: set[int] = set()
    for form in (str, simplified):
        places: dict[str, list[int]] = defaultdict(list)
        for row, name in enumerate(old):
            if row not in taken:
                places[form(name)].append(row)
        # Of several classes with one name each keeps its place where it can.
        for at_its_place in (True, False):
            for index, name in enumerate(new):
                rows = places[form(name)]
                if found[index] is None and rows and (index in rows or not at_its_place):
                    row = index if at_its_place else rows[0]
                    rows.remove(row)
                    taken.add(row)
                    found[index] = row
    return found


def plan_rows(old: Sequence[str], new: Sequence[str]) -> RowPlan | None:
    """What becomes of rows whose classes are called ``old`` in a model that calls its classes ``new``.

    None where they are the same classes in the same order.
    """
    same_number = len(old) == len(new)
    if same_number and not differences(old, new):
        return None
    rows = match(old, new)
    shared = [name for name, row in zip(new, rows, strict=True) if row is not None]
    moved, renamed = [], []
    if same_number:
        taken = set(rows)
        moved = [f"{new[i]} from {row} to {i}" for i, row in enumerate(rows) if row not in (None, i)]
        for i, row in enumerate(rows):
            if row is None and i not in taken:
                rows[i] = i
                renamed.append(f"{new[i]} has that of {old[i]}")
    fresh = [name for name, row in zip(new, rows, strict=True) if row is None]
    line = ""
    if not same_number:
        names = f" and {_count(shared)} of the same name ({listed(shared)})" if shared else ""
        others = f"; re-initialized: {_count(fresh)} ({listed(fresh)})" if fresh else ""
        line = (
            f"class_embed: {len(old) + 1} rows in the weights, {len(new) + 1} wanted: kept are no-object{names}{others}"
        )
    elif fresh:
        line = f"class_embed: re-initialized: {_count(fresh)} of {len(new)} ({listed(fresh)})"
    return RowPlan(tuple(rows), line, _warning(moved, renamed))


def _warning(moved: Sequence[str], renamed: Sequence[str]) -> str:
    texts = []
    if moved:
        texts.append(
            "the weights number the classes otherwise, so that rows are moved to the classes of the same name: "
            + listed(moved)
        )
    if renamed:
        texts.append(
            f"the weights do not have {_count(renamed)} by name, which begin with the row at their place: "
            f"{listed(renamed)}; that suits a fine-tuning on similar classes, and is a mistake if they are meant to be "
            "the same: then correct the names or their order in the data set"
        )
    return "; ".join(texts)


def _count(classes: Sequence[str]) -> str:
    return "1 class" if len(classes) == 1 else f"{len(classes)} classes"


def take_rows(state: State, initial: Mapping[str, Tensor], rows: Sequence[int | None], num_old: int) -> State:
    """``state`` with the class rows of a plan, in every class head in it, and alike those of denoising labels.

    initial: the model's tensors, with the values of rows that are new
    num_old: the number of classes of the weights. A head with another number of rows stays as it is
    """
    taken = dict(state)
    for key in initial:
        if key not in state or initial[key].shape[1:] != state[key].shape[1:]:
            continue  # of another width no row fits
        no_object = any(f".{key}".endswith(f".{name}") for name in CLASS_KEYS)
        if not no_object and not f".{key}".endswith(f".{LABEL_KEY}"):
            continue
        if (len(state[key]), len(initial[key])) != (num_old + no_object, len(rows) + no_object):
            continue
        values = initial[key].detach().to(state[key].device, state[key].dtype, copy=True)
        kept = [(index, row) for index, row in enumerate(rows) if row is not None]
        values[[index for index, _ in kept]] = state[key][[row for _, row in kept]]
        if no_object:
            values[-1] = state[key][-1]
        taken[key] = values
    return taken
