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

    None is for a label without space near its object: in a crowd, the objects that come first have labels.
    """
    width, height = image_size
    visible = np.clip(boxes, 0, [width, height, width, height]).astype(float)
    placed = np.empty((0, 4))
    positions: list[Position | None] = []
    for size, box in zip(np.asarray(sizes, dtype=float), visible, strict=True):
        if size[0] > width or size[1] > height:
            positions.append(None)
            continue
        near = _at_box(box, size, centered)
        best, cost = _cheapest(near, LATER_CORNER * np.arange(len(near)), size, placed, visible, image_size)
        if cost > 1:  # no place away from the box costs less than that
            steps = np.arange(-REACH, REACH + 0.5, 0.5) * size[1]
            grid = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
            costs = 1 + np.hypot(*grid.T) / size[1]
            away, cost_away = _cheapest(near[0] + grid, costs, size, placed, visible, image_size)
            best, cost = (away, cost_away) if cost_away < cost else (best, cost)
        if np.isinf(cost):
            positions.append(None)
            continue
        placed = np.concatenate([placed, [[*best, *(best + size)]]])
        positions.append((float(best[0]), float(best[1])))
    return positions


def _at_box(box: np.ndarray, size: np.ndarray, centered: bool) -> np.ndarray:
    """(C, 2) positions, the best first."""
    (x0, y0, x1, y1), (w, h) = box, size
    if centered:
        return np.array([((x0 + x1 - w) / 2, (y0 + y1 - h) / 2)])
    # above, inside, below; first on the left, where a reader begins
    corners = [(x, y) for x in (x0, x1 - w) for y in (y0 - h, y0, y1, y1 - h)]
    return np.array([*corners, (x1, y0), (x0 - w, y0)])


def _cheapest(
    positions: np.ndarray,
    costs: np.ndarray,
    size: np.ndarray,
    placed: np.ndarray,
    boxes: np.ndarray,
    image_size: tuple[float, float],
) -> tuple[np.ndarray, float]:
    """Of C positions, moved into the image, the one of least cost; that is infinite where labels would overlap."""
    positions = np.clip(positions, 0, np.array(image_size) - size)
    labels = np.concatenate([positions, positions + size], axis=1)  # (C, 4)
    costs = costs + HIDING * _hidden_share(labels, boxes)
    costs[(_intersection(labels, placed) > 0).any(1)] = np.inf
    best = costs.argmin()
    return positions[best], float(costs[best])


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
