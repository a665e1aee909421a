"""Where to put the labels of objects in a picture: none over another, none beyond the edge.

Sizes are (width, height), positions (x, y) of a label's upper left corner, and boxes xyxy, all in pixels.
"""

from collections.abc import Sequence

import numpy as np

REACH = 8  # how many of its heights a label may be away from its object


def place_labels(
    sizes: np.ndarray, boxes: np.ndarray, image_size: tuple[float, float], centered: bool = False
) -> list[tuple[float, float] | None]:
    """Positions of M labels, one after the other: the first one gets its best place.

    sizes: (M, 2) of the labels
    boxes: (M, 4) of their objects, which may reach beyond the image
    image_size: (width, height)
    centered: whether a label belongs into the middle of its box, as for masks, and not to its corner

    None is for a label for which there is no room near its object: in a crowd, the objects that come first have labels.
    """
    width, height = image_size
    placed = np.empty((0, 4))
    positions: list[tuple[float, float] | None] = []
    for size, box in zip(np.asarray(sizes, dtype=float), np.asarray(boxes, dtype=float), strict=True):
        w, h = size
        if w > width or h > height:
            positions.append(None)
            continue
        x0, x1 = np.clip(box[[0, 2]], 0, width)
        y0, y1 = np.clip(box[[1, 3]], 0, height)
        near = _centered(x0, y0, x1, y1, w, h) if centered else _at_corners(x0, y0, x1, y1, w, h)
        corners = np.concatenate([near, _around(near[0], w, h)])
        corners = np.clip(corners, 0, [width - w, height - h])
        candidates = np.concatenate([corners, corners + size], axis=1)  # (C, 4)
        free = ~_overlap(candidates, placed).any(1)
        if not free.any():
            positions.append(None)
            continue
        chosen = candidates[free.argmax()]
        placed = np.concatenate([placed, chosen[None]])
        positions.append((float(chosen[0]), float(chosen[1])))
    return positions


def _at_corners(x0: float, y0: float, x1: float, y1: float, w: float, h: float) -> np.ndarray:
    """Outside above the box, as it hides least, then inside, below, and at the sides."""
    return np.array(
        [(x0, y0 - h), (x0, y0), (x0, y1), (x0, y1 - h)]
        + [(x1 - w, y0 - h), (x1 - w, y0), (x1 - w, y1), (x1 - w, y1 - h), (x1, y0), (x0 - w, y0)]
    )


def _centered(x0: float, y0: float, x1: float, y1: float, w: float, h: float) -> np.ndarray:
    return np.array([((x0 + x1 - w) / 2, (y0 + y1 - h) / 2)])


def _around(start: np.ndarray, w: float, h: float) -> np.ndarray:
    """Positions on a grid around ``start``, the nearest first."""
    steps = np.arange(-2 * REACH, 2 * REACH + 1) * h / 2
    columns = steps[np.abs(steps) <= REACH * h / 2 + w]
    grid = np.stack(np.meshgrid(columns, steps), axis=-1).reshape(-1, 2)
    return np.asarray(start + grid[np.hypot(grid[:, 0], grid[:, 1]).argsort(kind="stable")])


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(A, 4) and (B, 4) -> (A, B): whether they share more than an edge."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.asarray((high - low > 1e-6).all(-1))


def gap(position: tuple[float, float], size: Sequence[float], box: Sequence[float]) -> float:
    """How far a placed label is from its object's box; 0 where they touch."""
    dx = max(box[0] - position[0] - size[0], position[0] - box[2], 0)
    dy = max(box[1] - position[1] - size[1], position[1] - box[3], 0)
    return float(np.hypot(dx, dy))
