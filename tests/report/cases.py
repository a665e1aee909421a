"""Small runs made by hand: boxes that are counted in one's head."""

from detr.report.results import Run

CLASSES = ("cat", "dog", "cow")
CATEGORY_IDS = (3, 5, 9)


def thing(image, name, x, size=10, crowd=False):
    """An object whose left upper corner is at (x, 0)."""
    box = [x, 0, size, size]
    return {"image_id": image, "category_id": _id(name), "bbox": box, "area": size * size, "iscrowd": int(crowd)}


def detection(image, name, x, score, size=10):
    return {"image_id": image, "category_id": _id(name), "bbox": [x, 0, size, size], "score": score}


def content(*objects, images=2):
    return {
        "images": [{"id": i, "width": 1000, "height": 1000} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": name} for i, name in zip(CATEGORY_IDS, CLASSES, strict=True)],
        "annotations": [{**x, "id": i} for i, x in enumerate(objects, start=1)],
    }


def make_run(objects, detections, images=2, metrics=None):
    files = {i: f"{i}.jpg" for i in range(1, images + 1)}
    truth = content(*objects, images=images)
    return Run("run", {}, "", metrics or {}, "animals", truth, CLASSES, CATEGORY_IDS, detections, files)


def _id(name):
    return CATEGORY_IDS[CLASSES.index(name)]


def as_metrics(rows):
    """Rows of metrics.json to name -> {iteration: value}."""
    names = dict.fromkeys(name for row in rows for name in row if name != "iteration")
    return {name: {row["iteration"]: row[name] for row in rows if name in row} for name in names}
