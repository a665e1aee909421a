"""The folder of an evaluated run: its config, its metrics, and the detections beside the ground truth."""

from detr.report.results import Run


def read_run(folder: str, dataset: str = "", predictions: str = "", annotations: str = "", images: str = "") -> Run:
    """What is in the folder of a run of ``train_net.py``, or of Detectron2's own, that was evaluated.

    dataset: which data set of DATASETS.TEST; by default the one that the results are of
    predictions: a results file elsewhere than in inference/
    annotations, images: a file in COCO's format and the folder of its images, in the place of a registered data set

    Raises InputError.
    """
    raise NotImplementedError
