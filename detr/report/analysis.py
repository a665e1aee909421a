"""From a run to its report: AP, errors, confusions, the images that cost most, and what follows from them."""

from detr.report.results import Report, Run


def analyze(run: Run, worst: int = 24) -> Report:
    """worst: how many images, at most, to give with all their objects and detections"""
    raise NotImplementedError
