"""Panoptic targets: every segment is an object, and files that contradict each other are errors."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from PIL import Image

from detr.data.panoptic_mapper import DetrPanopticMapper
from detr.data.transforms import training_augmentations
from detr.errors import InputError

THING, CROWD, STUFF = 7, 256 * 3 + 1, 65536 * 2 + 5  # ids that need every channel


def mapper(*augmentations, masks=True, is_train=True):
    return DetrPanopticMapper(
        is_train=is_train,
        augmentations=list(augmentations),
        image_format="RGB",
        num_classes=7,
        masks=masks,
    )


def write_png(path, ids):
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    Image.fromarray(rgb.astype(np.uint8)).save(path)


@pytest.fixture
def ids():
    """20 x 10 pixels: a thing, a crowd in two parts, stuff on the right, and void."""
    ids = np.zeros((10, 20), dtype=np.int64)
    ids[2:6, 3:8] = THING
    ids[0, 0:2] = ids[8:10, 4:6] = CROWD
    ids[:, 12:] = STUFF
    return ids


@pytest.fixture
def entry(tmp_path, ids):
    """The dict of that image as Detectron2 loads it, without a size."""
    Image.fromarray(np.where(ids[..., None] == THING, 255, 0).repeat(3, -1).astype(np.uint8)).save(tmp_path / "x.bmp")
    write_png(tmp_path / "x.png", ids)
    return {
        "file_name": str(tmp_path / "x.bmp"),
        "image_id": 5,
        "pan_seg_file_name": str(tmp_path / "x.png"),
        "segments_info": [
            {"id": THING, "category_id": 2, "isthing": True, "iscrowd": 0},
            {"id": CROWD, "category_id": 2, "isthing": True, "iscrowd": 1},
            {"id": STUFF, "category_id": 6, "isthing": False, "iscrowd": 0},
        ],
    }


def test_every_segment_is_an_object_with_its_pixels_and_their_box(entry, ids):
    out = mapper()(entry)
    instances = out["instances"]
    assert instances.gt_classes.tolist() == [2, 2, 6]
    assert instances.gt_masks.tensor.tolist() == [(ids == i).tolist() for i in (THING, CROWD, STUFF)]
    # First and last column and row, as the original has it, not the end of the last
    assert instances.gt_boxes.tensor.tolist() == [[3, 2, 7, 5], [0, 0, 5, 9], [12, 0, 19, 9]]
    assert out.keys() == {"file_name", "image_id", "height", "width", "image", "instances"}
    assert (out["height"], out["width"]) == (10, 20)


def test_boxes_alone_for_the_first_stage(entry):
    instances = mapper(masks=False)(entry)["instances"]
    assert instances.gt_classes.tolist() == [2, 2, 6]
    assert not instances.has("gt_masks")


def test_masks_and_boxes_move_together(entry, ids):
    instances = mapper(T.RandomFlip(1.0), T.CropTransform(4, 1, 14, 6))(entry)["instances"]
    cropped = ids[:, ::-1][1:7, 4:18]
    assert instances.gt_masks.tensor.tolist() == [(cropped == i).tolist() for i in (THING, CROWD, STUFF)]
    # The boxes are those of before, mirrored (x -> 20 - x) and cut; the crowd's, whose pixels are gone, too
    assert instances.gt_boxes.tensor.tolist() == [[9, 1, 13, 4], [11, 0, 14, 6], [0, 0, 4, 6]]


def test_a_segment_that_a_crop_leaves_out_is_no_target(entry):
    instances = mapper(T.CropTransform(0, 0, 10, 10))(entry)["instances"]
    assert instances.gt_classes.tolist() == [2, 2]
    assert len(instances.gt_masks) == 2


def test_a_segment_of_one_row_is_no_target(entry, ids):
    """Its box has no area in the original's convention."""
    ids[ids == CROWD] = 0
    ids[9, 2:9] = CROWD
    write_png(entry["pan_seg_file_name"], ids)
    assert mapper()(entry)["instances"].gt_classes.tolist() == [2, 6]


def test_an_image_without_segments_is_void(entry, ids):
    write_png(entry["pan_seg_file_name"], ids * 0)
    instances = mapper()({**entry, "segments_info": []})["instances"]
    assert instances.gt_masks.tensor.shape == (0, 10, 20)
    assert instances.gt_boxes.tensor.shape == (0, 4)


def test_masks_follow_the_pixels_of_shapes_through_all_augmentations(shapes_root):
    """Segments do not overlap, and together they cover all but the void, wherever they are moved."""
    np.random.seed(0)
    train = mapper(*training_augmentations((128, 160), 300, crop=("absolute_range", (40, 100))))
    for x in DatasetCatalog.get("shapes_train_panoptic")[:20]:
        instances = train(x)["instances"]
        assert instances.gt_masks.tensor.shape[1:] == instances.image_size
        covered = instances.gt_masks.tensor.sum(0)
        assert covered.max() == 1
        assert (covered == 1).float().mean() > 0.85


def test_evaluation_has_no_targets(entry):
    out = mapper(is_train=False)(entry)
    assert out.keys() == {"file_name", "image_id", "height", "width", "image"}


def remove_stuff(entry, ids):
    entry["segments_info"].pop()


def add_segment(entry, ids):
    entry["segments_info"].append({"id": 99, "category_id": 0})


def cut_png(entry, ids):
    write_png(entry["pan_seg_file_name"], ids[:, 1:])


def damage_png(entry, ids):
    Path(entry["pan_seg_file_name"]).write_bytes(b"no image at all")


def remove_png(entry, ids):
    Path(entry["pan_seg_file_name"]).unlink()


def make_png_gray(entry, ids):
    Image.new("L", (20, 10)).save(entry["pan_seg_file_name"])


def change_category(entry, ids):
    entry["segments_info"][0]["category_id"] = 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove_stuff, rf"x\.png has pixels of the segments {STUFF}, which its JSON does not list"),  # void is allowed
        (add_segment, r"x\.png has no pixel of the segment 99 that its JSON lists"),
        (cut_png, r"x\.png is 19 x 10 pixels .*but its image .*x\.bmp is 20 x 10"),
        (damage_png, r"cannot read the panoptic PNG .*x\.png \(UnidentifiedImageError"),
        (remove_png, r"cannot read the panoptic PNG .*x\.png \(FileNotFoundError"),
        (make_png_gray, r"x\.png is a PNG of the mode L, not RGB"),
        (change_category, r"x\.bmp has an object of category 7, outside \[0, 7\)"),
    ],
)
def test_a_mistake_names_the_file(entry, ids, change, message):
    change(entry, ids)
    with pytest.raises(InputError, match=message) as error:
        mapper()(entry)
    assert "\n" not in str(error.value)
