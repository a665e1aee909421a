"""The table's rows: what is done, what is wanted, and what exactly was run."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import (
    denoising,
    evaluation,
    inference,
    int8,
    loading,
    panoptic,
    startup,
    training,
    whole_evaluation,
)
from benchmarks.timing import Result, Settings


@dataclass(frozen=True)
class Goal:
    """A ratio to reach, or not to go beyond; None where a row only reports. For times it is the peer's over ours, for
    points of AP or PQ what ours has more, else ours over the peer's.

    unit: "x" or "points"; with "s" it is no ratio, but the time that ours may take
    """

    ratio: float | None
    at_most: bool = False
    unit: str = "x"

    def reached(self, ratio: float) -> bool | None:
        if self.ratio is None:
            return None
        return ratio <= self.ratio if self.at_most else ratio >= self.ratio

    def __str__(self) -> str:
        return "reported:" if self.ratio is None else f"{'<=' if self.at_most else '>='} {self.ratio:g} {self.unit}"


@dataclass(frozen=True)
class Part:
    """work: the row's title; how: what a reader needs to judge it"""

    work: str
    goal: Goal
    how: str
    run: Callable[[Settings], Result]


PARTS: dict[str, Part] = {
    "inference": Part(
        "inference 800 x 1066, batch 1, float32",
        Goal(1.8),
        "R50. From a photograph in memory to 100 boxes. Ours: Detectron2's DefaultPredictor, built from the config and "
        "the weights, without any special call. The original: its validation transform, model and PostProcess, as its "
        "evaluation runs them. transformers: DetrImageProcessor, DetrForObjectDetection and "
        "post_process_object_detection with their defaults. OpenVINO of the original: the original's network, traced "
        "at this very size and compiled for latency in float32, between the original's transform and PostProcess.",
        inference.inference,
    ),
    "bfloat16": Part(
        "the same, opt-in bfloat16",
        Goal(3.5),
        "As above with MODEL.DETR.INFERENCE_DTYPE bfloat16, against the original in float32. Random weights magnify "
        "rounding, so that only the means of the differences are bounded; what counts is box AP, see the note.",
        inference.bfloat16,
    ),
    "dc5": Part(
        "DC5 inference, float32",
        Goal(1.8),
        "As the first row, with res5 dilated; transformers on timm's backbone, the only one that it can dilate.",
        inference.dc5,
    ),
    "openvino": Part(
        "inference exported to OpenVINO, float32",
        Goal(2.6),
        "As the first row; ours is exported by tools/export_model.py, loaded by detr.export and put into the same "
        "DefaultPredictor.",
        inference.openvino,
    ),
    "int8": Part(
        "inference in int8, OpenVINO",
        Goal(4.0),
        "As the first row; ours is exported by tools/export_model.py --int8, calibrated on drawn photographs of half "
        "the sides, and put into the same DefaultPredictor. Only the means of the differences are bounded.",
        int8.openvino_to_original,
    ),
    "int8-openvino": Part(
        "inference in int8 by OpenVINO, against float32",
        Goal(2.0),
        "The same graph beside the one that it was made from.",
        int8.openvino,
    ),
    "int8-onnx": Part(
        "inference in int8, ONNX Runtime",
        Goal(None),
        "The same by ONNX Runtime and its own quantizer, beside our float32 in ONNX Runtime.",
        int8.onnx,
    ),
    "int8-ap": Part(
        "box AP in int8, OpenVINO",
        Goal(-0.5, unit="points"),
        "The quickstart's model on shapes_val, calibrated with 300 images of shapes_train, measured by the export "
        "itself: `--evaluate`.",
        int8.box_ap,
    ),
    "int8-pq": Part(
        "PQ in int8, OpenVINO",
        Goal(-0.5, unit="points"),
        "The same of the panoptic quickstart on shapes_val_panoptic. Both graphs are in int8, the mask decoder too.",
        int8.pq,
    ),
    "panoptic-100": Part(
        "panoptic inference, all 100 queries kept",
        Goal(2.5),
        "R50 panoptic, 800 x 1066, with weights that never say no-object and a score threshold of 0. Ours: "
        "DefaultPredictor (boxes, instance masks, panoptic map), and then the PNG that the original's map ends as. The "
        "original: its model, PostProcess, PostProcessSegm and PostProcessPanoptic, as its evaluation runs them. "
        "transformers: DetrForSegmentation, boxes and its own panoptic map, without instance masks; its map follows "
        "other rules, so that its boxes alone are compared.",
        panoptic.all_queries,
    ),
    "panoptic-20": Part(
        "panoptic inference, 20 queries kept",
        Goal(6.5),
        "The same with a score threshold that 20 queries pass; MODEL.DETR.INSTANCE_SCORE_THRESHOLD is set to it too, "
        "so that ours gives 20 instance masks at most. The original has no threshold for instance masks and gives 100; "
        "it is timed without them as well. transformers, too, makes all masks: see the row above.",
        panoptic.twenty_queries,
    ),
    "training-step": Part(
        "training step, batch 2, 512 x 640",
        Goal(None),
        "R50 in training mode with dropout, 10 objects an image: forward, matching and losses of six layers, backward, "
        "clipping of the whole gradient to 0.1, AdamW with two groups. Ours: our trainer's step, with its log "
        "of losses; it normalizes the images too. The original: as its training loop, from normalized images. "
        "Losses are compared before, without dropout.",
        training.training_step,
    ),
    "training-step-bf16": Part(
        "the same in bfloat16 mixed precision",
        Goal(1.3),
        "As above, ours with SOLVER.AMP.DTYPE bfloat16, the original with torch.autocast around its model and its "
        "criterion. Weights are random, so that rounding shows: losses are compared with a wide bound.",
        training.mixed_training_step,
    ),
    "memory": Part(
        "peak memory of the step in float32",
        Goal(0.75, at_most=True),
        "Each measurement in a fresh process: the highest resident memory after three such steps (VmHWM), less its "
        "highest value after all imports. That is weights, gradients, AdamW's averages, activations and what the "
        "allocator keeps. The note has torch's exact count of what tensors alone rise by during one step.",
        training.peak_memory,
    ),
    "denoising-r50": Part(
        "training step with anchors and denoising, R50, against one without",
        Goal(0.87),
        "The training step in float32, with 4 copies of 10 objects an image and as many negatives beside the 100 "
        "queries; a goal of 0.87 x is a step of at most 1.15 x. Before, the object queries' outputs are compared.",
        denoising.r50,
    ),
    "denoising-shapes": Part(
        "the same of the quickstart",
        Goal(0.87),
        "The quickstart's model and batches of 8 images with 3.5 objects each, 16 of them a turn. It has 20 queries "
        "and a small backbone, so that denoising queries are a larger share of its work.",
        denoising.quickstart,
    ),
    "losses": Part(
        "matching and losses, batch 16, six layers",
        Goal(3.0),
        "100 queries, 7 objects an image (COCO's mean): matching, losses, metrics, and the gradients at the model's "
        "outputs. On COCO the original has 92 classes with no-object, and ours 81: each has its own.",
        training.losses,
    ),
    "evaluation": Part(
        "COCO box and mask evaluation, 1,000 images x 100 detections",
        Goal(10.0),
        "Made-up objects and detections of 80 classes, masks as RLE. From the ground truth's dict and the list of "
        "results to the 12 numbers of boxes and the 12 of masks, by pycocotools and by what our evaluator counts "
        "with. Both take time in proportion to the images.",
        evaluation.coco,
    ),
    "eval-only": Part(
        "train_net.py --eval-only, 40 photographs, boxes",
        Goal(1.3),
        "R50, shortest side 800, the whole command with its start: ours in batches of up to 4 images of one size, and "
        "the code of commit e010a83, which evaluates single images. Weights are random. Detections are compared.",
        whole_evaluation.boxes,
    ),
    "eval-only-panoptic": Part(
        "the same with panoptic maps, 16 photographs",
        Goal(1.5),
        "R50 panoptic, with a score threshold that about 20 queries pass, for instance masks too. The maps to compare "
        "with have the annotated objects and one kind of stuff.",
        whole_evaluation.panoptic,
    ),
    "loading": Part(
        "data loading for training, a worker",
        Goal(1.0),
        "JPEG files through flip, crop and resize with the original's odds, one thread, as in a worker. Ours: "
        "DetrDatasetMapper with R50's config. The original: CocoDetection with make_coco_transforms('train'). Ours "
        "leaves normalization to the model, which the rows of inference and training include.",
        loading.loading,
    ),
    "import": Part(
        'python -c "import detr", beyond torch',
        Goal(1.5, at_most=True, unit="s"),
        "Whole processes: `import torch, detr` less `import torch`, turn by turn. What `import detr` registers is "
        "imported when Detectron2's own part is; how long that takes is in the note.",
        startup.imports,
    ),
    "converter": Part(
        "converter.py on an R50 file",
        Goal(4.0, at_most=True, unit="s"),
        "The whole command: random weights in the authors' format, 160 MB, to ours.",
        startup.converter,
    ),
    "demo": Part(
        "the demo, from the command to its first step",
        Goal(8.0, at_most=True, unit="s"),
        "tools/quickstart.py with the data set drawn, until its first training step is done: imports, checks of the "
        "data, the evaluation of one image, the loader's workers.",
        startup.demo,
    ),
}

# Counted, not timed.
TRANSFERS = (
    "host transfers that matching costs in a training step, all layers and images",
    "1",
    "counted in tests/modeling/test_transfers.py",
)
