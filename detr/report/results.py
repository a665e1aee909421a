"""What is known of an evaluated run: as read from its folder (``Run``), and as worked out from that (``Report``).

K classes, in the order of their contiguous ids. Shares, precision, recall, F1 and AP are fractions in [0, 1], and NaN
where there is nothing to measure, as for a class without objects. Boxes are (n, 4) float64, xyxy in pixels of the image
file. Crowds are no objects: what lies in them is neither right nor wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detr.engine.metrics_files import Metrics
from detr.evaluation.operating_point import ClassCounts

# What a detection is. The wrong ones are TIDE's error kinds (Bolya et al., ECCV 2020, section 3.1).
CORRECT = "correct"
CLASSIFICATION = "classification"  # on an object of another class
LOCALIZATION = "localization"  # beside an object of its class, IoU 0.1 to 0.5
BOTH = "both"  # beside an object of another class
DUPLICATE = "duplicate"  # on an object of its class that a better detection has
BACKGROUND = "background"  # on nothing
MISSED = "missed"  # of an object, not a detection: none has it, and no classification or localization error is at it
IGNORED = "ignored"  # in a crowd of its class
ERRORS = (CLASSIFICATION, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND, MISSED)
SIZES = ("small", "medium", "large")  # areas below 32 x 32 pixels, below 96 x 96, and above


@dataclass(frozen=True)
class Run:
    """An evaluated run.

    folder: as the user named it
    config: the config of the evaluation, or else of the training, as nested plain dicts: config["MODEL"]["WEIGHTS"]
    config_file: its path
    metrics: of metrics.json, name -> {iteration: value}; empty where nothing was trained here
    dataset: the name of the data set
    truth: ground truth in COCO's format; "images" with id, height and width; where the detections have masks, each
        annotation has an RLE
    class_names: (K,); category_ids: (K,), of the same classes
    detections: in COCO's format of results, with the ids of ``truth``
    files: image id -> the image file
    warnings: a sentence each, of what may be wrong with the results, such as weights that are newer
    """

    folder: str
    config: Mapping[str, Any]
    config_file: str
    metrics: Metrics
    dataset: str
    truth: Mapping[str, Any]
    class_names: tuple[str, ...]
    category_ids: tuple[Any, ...]
    detections: Sequence[Mapping[str, Any]]
    files: Mapping[Any, str]
    warnings: tuple[str, ...] = ()

    @property
    def has_masks(self) -> bool:
        """Whether every detection has a mask."""
        return bool(self.detections) and all(isinstance(x.get("segmentation"), dict) for x in self.detections)


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's numbers: AP over the IoU thresholds 0.5 to 0.95, at 0.5, at 0.75, and of objects by their size."""

    ap: float
    ap50: float
    ap75: float
    small: float
    medium: float
    large: float


@dataclass(frozen=True)
class Curve:
    """Precision and recall at IoU 0.5, as COCO interpolates them: precision (101,) at recalls 0, 0.01, ..., 1, the most
    that is had at that recall or a higher one; 0 where the recall is not reached, NaN without objects.

    scores: (101,), the threshold at which each recall is reached; NaN where it is not
    """

    precision: np.ndarray
    scores: np.ndarray

    @property
    def recall(self) -> np.ndarray:
        """(101,)"""
        return np.linspace(0, 1, 101)


@dataclass(frozen=True)
class ClassReport:
    """
    box, mask: AP; mask is None where the detections have no masks
    objects, images: annotated objects, and images with one
    sizes: the objects of each of `SIZES`, by their annotated area
    best_threshold: the score threshold with the best F1 of this class alone; None where nothing of it is found
    at_best: the counts at that threshold; None as above
    counts: at the report's threshold; ``found`` are the correct detections
    errors: kind of `ERRORS` -> number of them at the report's threshold, by the class of the detection, or of the
        object where it is missed
    """

    name: str
    box: AveragePrecision
    mask: AveragePrecision | None
    curve: Curve
    objects: int
    images: int
    sizes: tuple[int, int, int]
    best_threshold: float | None
    at_best: ClassCounts | None
    counts: ClassCounts
    errors: Mapping[str, int]


@dataclass(frozen=True)
class ErrorReport:
    """One kind of error.

    count: at the report's threshold
    count_all: of all detections, whatever their score; the AP counts them all
    ap50_gain: by how much AP50 would rise if these errors, and only these, were mended (TIDE's delta AP, section 3.3)
    """

    kind: str
    count: int
    count_all: int
    ap50_gain: float


@dataclass(frozen=True)
class MissedObjects:
    """What the objects that are missed at the report's threshold have in common.

    count: of them; of these the following
    lower_score: are found by a detection with a score below the threshold
    overlapping: another object's box covers a fifth or more of their box
    small: are small by their annotated area
    all_overlapping, all_small: the same of all objects
    """

    count: int
    lower_score: int
    overlapping: int
    small: int
    all_overlapping: int
    all_small: int


@dataclass(frozen=True)
class ImageReport:
    """An image, its objects, and the detections at the report's threshold, by falling score.

    cost: the number of wrong detections and missed objects
    truth_boxes: (M, 4); truth_classes: (M,) contiguous ids; truth_crowd: (M,) bool
    truth_kinds: for each object `CORRECT` where a detection has it, `CLASSIFICATION` or `LOCALIZATION` where only such
        a wrong detection is at it, `MISSED`, or `IGNORED` for a crowd
    boxes: (D, 4); classes: (D,); scores: (D,)
    kinds: for each detection `CORRECT`, one of `ERRORS`, or `IGNORED`
    """

    image_id: Any
    file: str
    cost: int
    truth_boxes: np.ndarray
    truth_classes: np.ndarray
    truth_crowd: np.ndarray
    truth_kinds: tuple[str, ...]
    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """One thing to know of the run: what the numbers show, and what to do about it; a sentence or two each."""

    text: str
    action: str


@dataclass(frozen=True)
class Report:
    """
    images, objects: of the data set; most_objects: in one image
    detections: of all scores, at most 100 of an image and class, as COCO counts them
    box, mask: AP over all classes with objects; mask is None where the detections have no masks
    threshold: the score threshold with the best F1 over all classes; 0.5 where no detection is correct
    classes: (K,)
    counts: of all classes at the threshold
    confusion: (K + 1, K + 1) int, at the threshold and IoU 0.5: row i are the objects of class i, column j what was
        predicted for them. The last row counts detections that get no object, the last column objects that get none
    errors: one for each of `ERRORS`, in that order
    missed: what the missed objects have in common
    worst: the images with the highest cost, the worst first; none without a cost
    findings: the most important first
    warnings: those of the run
    """

    dataset: str
    images: int
    objects: int
    most_objects: int
    detections: int
    box: AveragePrecision
    mask: AveragePrecision | None
    threshold: float
    classes: tuple[ClassReport, ...]
    counts: ClassCounts
    confusion: np.ndarray
    errors: tuple[ErrorReport, ...]
    missed: MissedObjects
    worst: tuple[ImageReport, ...]
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]
