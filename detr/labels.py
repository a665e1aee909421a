"""Where to put the labels of objects in a picture: none over another, none beyond the edge.

M objects, C candidate positions of a label. Sizes are (width, height), positions (x, y) of a label's upper left corner,
and boxes xyxy, all in pixels.
"""

from collections.abc import Sequence

import numpy as np

REACH = 5.0  # how many of its heights a label may be away from its best place
# The cost of a place, against 1 for being a label's height farther away.
LATER_CORNER = 0.1  # than the one before in the order of preference
HIDING = 4.0  # another object altogether, by its share

Position = tuple[float, float]


def place_labels(
    sizes: np.ndarray, boxes: np.ndarray, image_size: tuple[float, float], centered: bool = False
) -> list[Position | None]:
    """Positions of M labels, one after the other: the first one has all of the image to choose from.

    sizes: (M, 2) of the labels
    boxes: (M, 4) of their objects, which may reach beyond the image
    image_size: (width, height)
    centered: whether a label belongs into the middle of its box, as for masks, and not to its corner

    None is for a label for which there is no room near its object: in a crowd, the objects that come first have labels.
    """
    width, height = image_size
    visible = np.clip(boxes, 0, [width, height, width, height]).astype(float)
    placed = np.empty((0, 4))
    positions: list[Position | None] = []
    for size, box in zip(np.asarray(sizes, dtype=float), visible, strict=True):
        if size[0] > width or size[1] > height:
            positions.append(None)
            continue
        corners, costs = _candidates(box, size, centered)
        corners = np.clip(corners, 0, [width - size[0], height - size[1]])
        candidates = np.concatenate([corners, corners + size], axis=1)  # (C, 4)
        costs = costs + HIDING * _hidden_share(candidates, visible)
        costs[(_intersection(candidates, placed) > 0).any(1)] = np.inf
        best = costs.argmin()
        if np.isinf(costs[best]):
            positions.append(None)
            continue
        placed = np.concatenate([placed, candidates[best][None]])
        positions.append((float(corners[best][0]), float(corners[best][1])))
    return positions


def _candidates(box: np.ndarray, size: np.ndarray, centered: bool) -> tuple[np.ndarray, np.ndarray]:
    """(C, 2) positions and their costs (C,): at the box, and on a grid around the first of these."""
    (x0, y0, x1, y1), (w, h) = box, size
    if centered:
        near = [((x0 + x1 - w) / 2, (y0 + y1 - h) / 2)]
    else:  # above, inside, below; first on the left, where a reader begins
        near = [(x, y) for x in (x0, x1 - w) for y in (y0 - h, y0, y1, y1 - h)]
        near += [(x1, y0), (x0 - w, y0)]
    steps = np.arange(-REACH, REACH + 0.5, 0.5) * h
    grid = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    positions = np.concatenate([np.array(near), near[0] + grid])
    return positions, np.concatenate([LATER_CORNER * np.arange(len(near)), 1 + np.hypot(*grid.T) / h])


def _hidden_share(candidates: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(C,): the share of an object that a label there hides, of the object of which it hides most."""
    areas = np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1)
    return np.asarray((_intersection(candidates, boxes) / areas).max(1, initial=0))


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(A, 4) and (B, 4) -> (A, B) areas, 0 where they share no more than an edge."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = high - low
    return np.asarray(np.where(sides > 1e-6, sides, 0).prod(-1))


def gap(position: Position, size: Sequence[float], box: Sequence[float]) -> float:
    """How far a placed label is from its object's box; 0 where they touch."""
    dx = max(box[0] - position[0] - size[0], position[0] - box[2], 0)
    dy = max(box[1] - position[1] - size[1], position[1] - box[3], 0)
    return float(np.hypot(dx, dy))
