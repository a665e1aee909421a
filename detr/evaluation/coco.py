"""AP with the numbers of pycocotools, counted by hotcoco where it is installed: in seconds, not minutes."""

import contextlib
import copy
import importlib
import io
import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO

from detr.data.ground_truth import GroundTruth, load_truth
from detr.errors import InputError
from detr.evaluation.encoding import EncodingEvaluator

BACKENDS = ("auto", "hotcoco", "pycocotools")

logger = logging.getLogger(__name__)


def choose_backend(name: str) -> str:
    """What TEST.COCO_BACKEND comes to here: "hotcoco" or "pycocotools".

    Raises InputError for a name that is none of `BACKENDS`, and where hotcoco is asked for and cannot be imported.
    """
    if name not in BACKENDS:
        raise InputError(f"TEST.COCO_BACKEND is {name!r}: set it to auto, hotcoco or pycocotools")
    if name == "pycocotools":
        return name
    try:
        importlib.import_module("hotcoco")
    except ImportError as error:
        if name == "auto":
            return "pycocotools"
        raise InputError(
            f"TEST.COCO_BACKEND is hotcoco, which cannot be imported ({error}): pip install 'hotcoco>=1.3,<2', "
            "or set the key to auto"
        ) from error
    return "hotcoco"


class FastCOCOEvaluator(EncodingEvaluator, COCOEvaluator):
    """Detectron2's COCOEvaluator, with the same files and results, and another package that counts and encodes masks.

    With ``tasks`` of boxes and masks, as ``Detr`` has them, the ground truth is ``load_truth``'s: what the file or the
    dicts hold now, without what training drops. Other models have Detectron2's own. What hotcoco would count otherwise
    than pycocotools, or not at all, is left to Detectron2: keypoints, predictions that are not finite.
    """

    truth: GroundTruth | None = None

    def __init__(self, dataset_name: str, *, backend: str = "auto", **options: Any) -> None:
        """backend: one of `BACKENDS`; options: of COCOEvaluator.

        Raises InputError as `choose_backend` and `load_truth` do.
        """
        self.backend = choose_backend(backend)
        tasks = options.get("tasks")
        if tasks is None or not set(tasks) <= {"bbox", "segm"}:
            # For a set of plain dicts Detectron2 writes a file; one from an earlier evaluation may be stale.
            super().__init__(dataset_name, **{"allow_cached_coco": False, **options})
            return
        self.truth = load_truth(dataset_name, masks="segm" in tasks)
        with _without_truth(dataset_name) as name:
            super().__init__(name, **options)
        self._coco_api = COCO()
        self._coco_api.dataset = self.truth.content
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api.createIndex()
        self._do_evaluation = "annotations" in self.truth.content
        self._metadata = copy.copy(MetadataCatalog.get(dataset_name))
        vars(self._metadata)["thing_dataset_id_to_contiguous_id"] = self.truth.contiguous

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """As COCOEvaluator's. Raises InputError for an image without an ``image_id``."""
        for x in inputs:
            if "image_id" not in x:
                raise InputError(
                    f"{x.get('file_name', 'an image')} of the data set {self._metadata.name} has no image_id: number "
                    "the images where they are loaded"
                )
        if self.truth is None:
            super().process(inputs, outputs)
            return
        for x, output in zip(inputs, outputs, strict=True):
            self.encode_later(x, self._encode, output["instances"].to("cpu"))

    def _encode(self, image_id: Any, instances: Instances) -> dict[str, Any]:
        """The prediction that COCOEvaluator makes of an image; with hotcoco its masks take half the time."""
        if self.backend == "pycocotools" or not instances.has("pred_masks"):
            return {"image_id": image_id, "instances": instances_to_coco_json(instances, image_id)}
        fields = instances.get_fields()
        masks = fields["pred_masks"].numpy().transpose(1, 2, 0)  # (H, W, I)
        others = {name: value for name, value in fields.items() if name != "pred_masks"}
        results = instances_to_coco_json(Instances(instances.image_size, **others), image_id)
        for result, rle in zip(results, _hotcoco().mask.encode(masks), strict=True):
            result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
        return {"image_id": image_id, "instances": results}

    def _eval_predictions(self, predictions: Sequence[dict[str, Any]], img_ids: Sequence[int] | None = None) -> None:
        """predictions: per image {"image_id", "instances": results in COCO's format with contiguous classes}."""
        predictions = [self._clipped(x) for x in predictions]
        found = [result for x in predictions for result in x["instances"]]
        tasks = sorted(self._tasks or self._tasks_from_predictions(found))
        # Without predictions or annotations there is nothing to count, and Detectron2 logs that.
        if self.backend == "pycocotools" or not found or not self._do_evaluation or "keypoints" in tasks:
            logger.info("COCO evaluation by Detectron2, with pycocotools")
            super()._eval_predictions(predictions, img_ids=img_ids)
            return
        try:
            # Copies, because Detectron2 needs its own class numbers if it has to count after all.
            results = self._with_ids_of_the_data_set(found)
            max_dets = self._max_dets_per_image
            counts = {task: count(self._coco_api.dataset, results, task, max_dets, img_ids) for task in tasks}
        except ValueError as reason:
            logger.warning("COCO evaluation by Detectron2, with pycocotools, for hotcoco cannot: %s", reason)
            super()._eval_predictions(predictions, img_ids=img_ids)
            return
        if self._output_dir:
            with PathManager.open(os.path.join(self._output_dir, "coco_instances_results.json"), "w") as file:
                file.write(json.dumps(results))  # json.dump, to a file, is several times slower
        for task, counted in counts.items():
            summary = "\n".join(_summarized(counted))
            logger.info("COCO evaluation of %s by hotcoco %s:\n%s", task, _hotcoco().__version__, summary)
            names = self._metadata.get("thing_classes")
            self._results[task] = self._derive_coco_results(counted, task, class_names=names)

    def _clipped(self, prediction: dict[str, Any]) -> dict[str, Any]:
        """With boxes inside the image, where those of the ground truth have been clipped."""
        if self.truth is None or prediction["image_id"] not in self.truth.clipped:
            return prediction
        image = self._coco_api.imgs[prediction["image_id"]]
        right, bottom = (image.get(key, math.inf) for key in ("width", "height"))  # unknown for some remote files
        clipped = []
        for result in prediction["instances"]:
            x, y, width, height = result["bbox"]
            x1, y1 = min(max(x, 0.0), right), min(max(y, 0.0), bottom)
            x2, y2 = min(max(x + width, x1), right), min(max(y + height, y1), bottom)
            clipped.append({**result, "bbox": [x1, y1, x2 - x1, y2 - y1]})
        return {**prediction, "instances": clipped}

    def _with_ids_of_the_data_set(self, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if contiguous is None:
            return [dict(result) for result in found]
        ids = {index: key for key, index in contiguous.items()}
        # Detectron2 raises its own error for classes that the data set lacks, and for classes with gaps.
        if sorted(ids) != list(range(len(contiguous))) or not {x["category_id"] for x in found} <= ids.keys():
            raise ValueError("the classes of predictions and data set do not fit")
        return [{**result, "category_id": ids[result["category_id"]]} for result in found]


@contextlib.contextmanager
def _without_truth(dataset_name: str) -> Iterator[str]:
    """The name of a data set without annotations, for the time in which COCOEvaluator reads its file.

    For a data set of plain dicts it would write a file and later take that, however old it is.
    """
    name = f"{dataset_name} (no annotations)"
    with tempfile.TemporaryDirectory(prefix="detr-truth-") as folder:
        path = os.path.join(folder, "empty.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"images": [], "categories": [], "annotations": []}, file)
        MetadataCatalog.get(name).json_file = path
        try:
            yield name
        finally:
            MetadataCatalog.remove(name)


def count(
    dataset: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    task: str,
    max_dets: Sequence[int] = (1, 10, 100),
    image_ids: Sequence[int] | None = None,
) -> Any:
    """hotcoco's COCOeval of detections, evaluated, accumulated and summarized, without printing.

    dataset: a COCO file's content; results: in COCO's format, as pycocotools' loadRes takes them
    task: "bbox" or "segm"; the area of a mask is that of its pixels, not of the result's box
    max_dets: of an image and category, by score; AP is over the largest
    image_ids: where not all images count

    Its ``stats``, ``eval["precision"]`` (thresholds, recalls, classes, areas, max_dets) and ``eval["recall"]`` are
    pycocotools'. Raises ValueError, with the reason, where they would not be.
    """
    _check_truth(dataset, task)
    _check_results(dataset, results, task)
    if task == "segm":
        results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    hotcoco = _hotcoco()
    truth = hotcoco.COCO(dataset)
    counted = hotcoco.COCOeval(truth, truth.loadRes(results), task)
    counted.params.maxDets = sorted(max_dets)  # as pycocotools sorts them, wherever AP's own limit then stands
    if image_ids is not None:
        counted.params.imgIds = sorted(set(image_ids))
    counted.evaluate()
    counted.accumulate()
    _summarized(counted)
    return counted


def _summarized(counted: Any) -> list[str]:
    """The twelve lines that ``summarize`` would print; fills ``counted.stats``, as it does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "hotcoco: max_dets differ", UserWarning)  # they were asked for
        return [str(line) for line in counted.summary_lines()]


def _hotcoco() -> Any:
    return importlib.import_module("hotcoco")  # an optional package: this module can be imported without it


def _check_truth(dataset: Mapping[str, Any], task: str) -> None:
    """Raises ValueError for ground truth that pycocotools refuses, or counts otherwise than hotcoco."""
    for kind in ("images", "categories", "annotations"):
        ids = [x.get("id") for x in dataset.get(kind, ())]
        if not ids and kind == "images":
            raise ValueError("the ground truth has no images")
        if None in ids or len(set(ids)) < len(ids):
            raise ValueError(f"ids of {kind} are missing or occur twice in the ground truth")
    for x in dataset["annotations"]:
        if not x["id"]:  # pycocotools takes a match with it for none
            raise ValueError("an annotation has the id 0: number them from 1")
        if any(x.get(key) is None for key in ("image_id", "category_id", "bbox", "area", "iscrowd")):
            raise ValueError(f"annotation {x['id']} lacks one of image_id, category_id, bbox, area and iscrowd")
        if not math.isfinite(sum(x["bbox"])):
            raise ValueError(f"the box of annotation {x['id']} is not finite")
        if task == "segm" and not _is_mask(x.get("segmentation")):
            raise ValueError(f"annotation {x['id']} has no mask")


def _is_mask(segmentation: Any) -> bool:
    """RLE, or polygons of three corners or more; hotcoco takes a box in the place of anything else."""
    if isinstance(segmentation, list):
        return bool(segmentation) and all(isinstance(polygon, list) and len(polygon) >= 6 for polygon in segmentation)
    return isinstance(segmentation, dict)


def _check_results(dataset: Mapping[str, Any], results: Sequence[Mapping[str, Any]], task: str) -> None:
    """Raises ValueError for results that pycocotools refuses, or counts otherwise than hotcoco."""
    for key, kind in (("image_id", "images"), ("category_id", "categories")):
        if not {result[key] for result in results} <= {x["id"] for x in dataset[kind]}:
            raise ValueError(f"the {key} of a prediction is not in the ground truth")
    if task == "segm" and not all("segmentation" in result for result in results):
        raise ValueError("predictions lack masks")
    # A sum is finite only if all its numbers are. With pycocotools, a box of NaN matches everything.
    if not all(math.isfinite(result["score"] + sum(result["bbox"])) for result in results):
        raise ValueError("predictions have scores or boxes that are not finite")
