"""What an evaluated run gets right and wrong, in numbers and in words; pictures and pages are made of it by others."""

from detr.report.analysis import analyze
from detr.report.results import Report, Run
from detr.report.run import read_run

__all__ = ["Report", "Run", "analyze", "read_run"]
