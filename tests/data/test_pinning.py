"""All tensors of a batch are pinned, and nothing else about it changes. No GPU is needed to see it."""

import pickle

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from detr.data import pinning
from detr.data.training_stream import Batches, SeededImages, TrainingLoader
from detr.engine import training_loader
from tests.conftest import SHORT, make_input, with_masks


@pytest.fixture
def pinned(monkeypatch):
    """Stands for what torch does with a GPU: the ids of what is pinned."""
    ids = []

    def pin(x):
        ids.append(id(copied := x.clone()))
        return copied

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return ids


def batch():
    inputs = [with_masks(make_input([[10.0, 12.0, 50.0, 60.0]], [1], size)) for size in [(96, 128), (60, 40)]]
    inputs[1]["instances"].gt_masks = PolygonMasks([[[1.0, 1.0, 5.0, 1.0, 5.0, 5.0]]])
    return inputs


def test_a_pinned_batch_is_the_same(pinned):
    inputs = batch()
    found = pinning.pinnable(list, inputs).pin_memory()
    assert type(found) is list
    for ours, theirs in zip(found, inputs, strict=True):
        assert ours.keys() == theirs.keys()
        assert (ours["height"], ours["width"]) == (theirs["height"], theirs["width"])
        truth, expected = ours["instances"], theirs["instances"]
        assert type(truth) is Instances
        assert truth.image_size == expected.image_size
        assert type(truth.gt_boxes) is Boxes
        pairs = [(ours["image"], theirs["image"]), (truth.gt_classes, expected.gt_classes)]
        pairs.append((truth.gt_boxes.tensor, expected.gt_boxes.tensor))
        if isinstance(expected.gt_masks, BitMasks):
            pairs.append((truth.gt_masks.tensor, expected.gt_masks.tensor))
        else:
            assert truth.gt_masks is expected.gt_masks
        for x, y in pairs:
            assert torch.equal(x, y)
            assert id(x) in pinned


def test_what_a_user_collates_is_left_alone():
    assert pinning.pinnable(tuple, [1, 2]) == (1, 2)
    assert isinstance(pinning.pinnable(list, [1, 2]), list)
    assert pinning.pinnable(list, [1, 2]).pin_memory() == [1, 2]
    assert pickle.loads(pickle.dumps(pinning.PinnableBatch([1]))) == [1]  # from a worker


def test_the_loader_pins_where_it_is_asked_to():
    loader = TrainingLoader(SeededImages([1, 2], 0), Batches([0, 1], 2, 0), collate_fn=list, pin_memory=True)
    assert isinstance(loader.collate_fn([1, 2]), pinning.PinnableBatch)
    plain = TrainingLoader(SeededImages([1, 2], 0), Batches([0, 1], 2, 0), collate_fn=list, pin_memory=False)
    assert type(plain.collate_fn([1, 2])) is list


@pytest.mark.parametrize(("device", "there", "expected"), [("cuda", True, True), ("cpu", True, False)])
def test_batches_for_a_gpu_are_pinned(monkeypatch, tiny_config, shapes_root, device, there, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    cfg = tiny_config({**SHORT, "MODEL.DEVICE": device, "DATALOADER.NUM_WORKERS": 0})
    loader = training_loader.build_detr_loader(cfg)
    assert loader.pin_memory is expected
