"""A made-up COCO data set, with results of a detector that is sometimes right, and what pycocotools says of them."""

import contextlib
import copy
import io

import numpy as np
import pycocotools.mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

HEIGHT, WIDTH = 150, 200


def encoded(polygon):
    """Compressed RLE, its counts as text."""
    (rle,) = pycocotools.mask.frPyObjects([polygon], HEIGHT, WIDTH)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def uncompressed(polygon):
    (rle,) = pycocotools.mask.frPyObjects([polygon], HEIGHT, WIDTH)
    pixels = np.asarray(pycocotools.mask.decode(rle)).reshape(-1, order="F")
    edges = np.flatnonzero(np.diff(pixels, prepend=0, append=2))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(edges, prepend=0).tolist()}


def random_case(seed):
    """(dataset, results): crowds, ties of scores, masks of no pixel, images with nothing, classes without objects."""
    random = np.random.default_rng(seed)

    def ellipse(x, y, w, h):
        angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        points = [x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))]
        return np.stack(points, axis=1).reshape(-1).tolist()

    def box():
        w, h = np.exp(random.uniform(np.log(6), np.log(140), 2))
        return [random.uniform(0, WIDTH - w), random.uniform(0, HEIGHT - h), w, h]

    annotations, results = [], []
    for image in range(1, 31):
        labels = random.choice([2, 3, 7], 0 if image % 7 == 0 else 6)
        for label in labels.tolist():
            bbox, crowd = box(), random.random() < 0.15
            x, y, w, h = bbox
            polygon = ellipse(*bbox)
            annotation = {"id": 3 * len(annotations) + 5, "image_id": image, "category_id": label, "bbox": bbox}
            annotation |= {"area": w * h * 0.7, "iscrowd": int(crowd), "attributes": {"more": None}}
            annotations.append(annotation | {"segmentation": uncompressed(polygon) if crowd else [polygon]})
            if image % 5 == 0:
                continue  # found nothing here
            for spread in (0.03, 0.15):
                shaken = (np.array([x, y, w, h]) + spread * random.normal(0, 1, 4) * [w, h, w, h]).tolist()
                results.append((image, random.choice([label, label, 9]) if label != 7 else 9, shaken))
        results += [(image, random.choice([2, 3, 9]), box()) for _ in range(15 * (image % 5 != 0))]
    found = []
    for image, label, bbox in results:
        mask = encoded([0.0] * 6 if random.random() < 0.05 else ellipse(*bbox))
        score = round(float(random.random()), 1)
        found.append({"image_id": image, "category_id": int(label), "bbox": bbox, "score": score, "segmentation": mask})
    categories = [{"id": i, "name": f"class {i}"} for i in (9, 2, 7, 3)]  # 9: no object; 7: no detection
    images = [{"id": i, "height": HEIGHT, "width": WIDTH, "file_name": f"{i}.jpg"} for i in range(40, 0, -1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}, found


def expected(dataset, results, task, max_dets=(1, 10, 100), image_ids=None, evaluation=COCOeval):
    """pycocotools' COCOeval, as Detectron2 calls it."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = copy.deepcopy(dataset)
        ground_truth.createIndex()
        results = copy.deepcopy(results)
        if task == "segm":
            for result in results:
                result.pop("bbox", None)
        counted = evaluation(ground_truth, ground_truth.loadRes(results), task)
        counted.params.maxDets = list(max_dets)
        if image_ids is not None:
            counted.params.imgIds = image_ids
        counted.evaluate()
        counted.accumulate()
        counted.summarize()
    return counted
