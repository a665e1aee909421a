"""Training targets are those of the original's data sets: boxes, labels and masks, for the same transforms."""

import contextlib
import io
import json
from pathlib import Path

import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json

from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.panoptic_mapper import DetrPanopticMapper
from detr.data.transforms import ResizeShortestEdge, evaluation_augmentations
from tests.conftest import ROOT
from tests.parity.oracle import load_oracle

TINY = ROOT.parent / "shared" / "datasets" / "tiny" / "coco"
IMAGES = 12  # of a set


def fixed(ours, *theirs):
    """A chain of transforms with nothing left to chance, as ours and as the original's."""

    def original(image, target):
        for transform in theirs:
            image, target = transform(image, target)
        transforms = load_oracle().transforms
        image, target = transforms.ToTensor()(image, target)
        return transforms.Normalize([0.5] * 3, [0.5] * 3)(image, target)

    return ours, original


def resize(size, bound):
    return lambda image, target: load_oracle().transforms.resize(image, target, size, bound)


def crop(x, y, width, height):
    return lambda image, target: load_oracle().transforms.crop(image, target, (y, x, height, width))


def hflip(image, target):
    return load_oracle().transforms.hflip(image, target)


# Crops of the middle: they cut objects, leave some out, and leave masks of others empty within their box.
CHAINS = {
    "test": lambda: fixed(evaluation_augmentations(800, 1333), load_oracle().transforms.RandomResize([800], 1333)),
    "flip and resize": lambda: fixed([T.RandomFlip(1.0), ResizeShortestEdge(512, 1333)], hflip, resize(512, 1333)),
    "crop": lambda: fixed(
        [ResizeShortestEdge(400, float("inf")), T.CropTransform(101, 57, 250, 231), ResizeShortestEdge(480, 600)],
        resize(400, None), crop(101, 57, 250, 231), resize(480, 600),
    ),
    "flip and a small crop": lambda: fixed(
        [T.RandomFlip(1.0), ResizeShortestEdge(600, float("inf")), T.CropTransform(270, 290, 61, 83),
         ResizeShortestEdge(128, 200)],
        hflip, resize(600, None), crop(270, 290, 61, 83), resize(128, 200),
    ),
}  # fmt: skip


def uncompressed(json_file: Path, folder: Path) -> Path:
    """A copy of the annotations as the original can read them: it knows compressed RLEs of crowds alone."""
    content = json.loads(json_file.read_text())
    for annotation in content["annotations"]:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
            pixels = torch.from_numpy(mask_util.decode(segmentation)).T.flatten()  # column by column
            changes = torch.nonzero(torch.diff(pixels)).flatten() + 1
            edges = torch.cat([torch.tensor([0]), changes, torch.tensor([len(pixels)])])
            first = [0] if pixels[0] else []  # counts start with zeros
            segmentation["counts"] = [*first, *torch.diff(edges).tolist()]
    path = folder / json_file.name
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(params=["shapes", "COCO"])
def detection(request, tmp_path, shapes_root):
    """(dicts, the original's data set for given transforms, COCO id of every class)"""
    if request.param == "COCO":
        if not TINY.is_dir():
            pytest.skip(f"no real images in {TINY}")
        folder, json_file, name = TINY / "val2017", TINY / "annotations" / "instances_val2017.json", "coco_2017_val"
        dicts = load_coco_json(str(json_file), str(folder), name)
    else:
        folder, json_file, name = *(Path(getattr(MetadataCatalog.get("shapes_val"), key))
                                    for key in ("image_root", "json_file")), "shapes_val"  # fmt: skip
        dicts = DatasetCatalog.get(name)
    path = uncompressed(json_file, tmp_path)

    def original(transforms):
        with contextlib.redirect_stdout(io.StringIO()):
            return load_oracle().CocoDetection(str(folder), str(path), transforms, return_masks=True)

    return dicts, original, list(MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id)


@pytest.fixture(params=["shapes", "COCO"])
def panoptic(request, shapes_root):
    """The same for a panoptic set."""
    name = request.getfixturevalue("coco_panoptic") if request.param == "COCO" else "shapes_val_panoptic"
    dicts, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)

    def original(transforms):
        folders = metadata.image_root, metadata.panoptic_root
        return load_oracle().CocoPanoptic(*folders, metadata.panoptic_json, transforms, return_masks=True)

    ids = [*metadata.thing_dataset_id_to_contiguous_id, *metadata.stuff_dataset_id_to_contiguous_id]
    return dicts, original, ids


def compare(mapper_class, chain, dicts, original, category_ids):
    """Both on the same images; returns the numbers of objects before and after, and of empty masks."""
    ours, theirs = CHAINS[chain]()
    mapper = mapper_class(
        is_train=True, augmentations=ours, image_format="RGB", num_classes=len(category_ids), masks=True
    )
    category_ids = torch.tensor(category_ids)
    by_id = {x["image_id"]: x for x in dicts}
    before, whole = 0, original(None)
    after, empty = 0, 0
    for index, (image, target) in zip(range(IMAGES), original(theirs), strict=False):
        x = mapper(by_id[int(target["image_id"])])
        instances = x["instances"]
        height, width = instances.image_size
        assert image.shape[1:] == (height, width)
        assert torch.equal(x["image"], ((image * 0.5 + 0.5) * 255).round().byte())
        center, size = target["boxes"].split(2, dim=-1)
        boxes = torch.cat([center - size / 2, center + size / 2], -1) * torch.tensor([width, height, width, height])
        torch.testing.assert_close(instances.gt_boxes.tensor, boxes, atol=1e-3, rtol=0)
        assert torch.equal(category_ids[instances.gt_classes], target["labels"])
        assert torch.equal(instances.gt_masks.tensor, target["masks"].bool())
        before += len(whole[index][1]["labels"])
        after += len(instances)
        empty += int((~instances.gt_masks.tensor.flatten(1).any(1)).sum())
    return before, after, empty


@pytest.mark.parametrize("chain", CHAINS)
def test_instances(detection, chain):
    before, after, empty = compare(DetrDatasetMapper, chain, *detection)
    assert before >= 40
    assert after == before if "crop" not in chain else 0 < after < before
    if chain == "crop":
        assert empty  # in the original's targets too: the box decides whether a crop leaves an object


@pytest.mark.parametrize("chain", CHAINS)
def test_panoptic_segments(panoptic, chain):
    before, after, _ = compare(DetrPanopticMapper, chain, *panoptic)
    assert before >= 20
    assert after == before if "crop" not in chain else 0 < after < before
