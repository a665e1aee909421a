"""A small original to convert, and `converter.py` as a user calls it."""

import argparse
from typing import Any

import pytest
import torch

import converter
from tests.checkpoint.samples import small_original


def run(source: Any, output: Any, *options: Any) -> None:
    """converter.py, as from the command line."""
    arguments = ["--source_model", source, "--output_model", output, *options]
    converter.main([str(argument) for argument in arguments])


@pytest.fixture(scope="package")
def original():
    return small_original()


@pytest.fixture
def source(original, tmp_path):
    path = str(tmp_path / "original.pth")
    torch.save({"model": original, "args": argparse.Namespace(dilation=True, nheads=8), "epoch": 3}, path)
    return path


@pytest.fixture
def output(tmp_path):
    return str(tmp_path / "new" / "output.pth")
