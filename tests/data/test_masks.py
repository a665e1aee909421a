"""Masks of objects, from every notation and through every transform."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode
from PIL import Image

from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.masks import rasterize
from detr.data.transforms import ResizeShortestEdge, training_augmentations
from detr.errors import InputError

SIZE = (6, 8)  # height, width


@pytest.fixture
def pixels():
    """Two parts: columns 1..2 of the rows 2..4, and the last pixel."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[2:5, 1:3] = True
    mask[5, 7] = True
    return mask


def compressed(mask):
    return mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))


# Counted by hand, column by column, zeros first
UNCOMPRESSED = {"size": [6, 8], "counts": [8, 3, 3, 3, 30, 1]}
POLYGONS = [[1, 2, 3, 2, 3, 5, 1, 5], [7, 5, 8, 5, 8, 6, 7, 6]]


@pytest.mark.parametrize("kind", ["polygons", "arrays", "uncompressed", "bytes", "text", "bitmap", "bytes of a bitmap"])
def test_every_notation_gives_the_same_pixels(pixels, kind):
    rle = compressed(pixels)
    segmentation = {
        "polygons": POLYGONS,
        "arrays": [np.array(polygon) for polygon in POLYGONS],
        "uncompressed": UNCOMPRESSED,
        "bytes": rle,
        "text": {**rle, "counts": rle["counts"].decode()},
        "bitmap": pixels,
        "bytes of a bitmap": pixels.astype(np.uint8) * 255,
    }[kind]
    mask = rasterize(segmentation, SIZE, "x.jpg")
    assert mask.dtype == bool
    assert mask.tolist() == pixels.tolist()


def test_polygons_that_overlap_are_joined():
    mask = rasterize([[0, 0, 4, 0, 4, 4, 0, 4], [2, 2, 6, 2, 6, 6, 2, 6]], SIZE, "x.jpg")
    assert mask.sum() == 16 + 16 - 4


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 2]], "an object without a segmentation"),  # pycocotools would take a box
        ([[1, 2, 3, 2, 3, 5, 1]], "an object without a segmentation"),
        ([[1, 2, 3, 2, 3, float("nan")]], "cannot be read .*6 numbers"),
        ([[1, 2, 3, 2, 3, 1e8]], r"cannot be read .*a polygon reaches 100000000\.0"),  # pycocotools crashes
        ([[[1, 2, 0], [3, 2, 0], [3, 5, 0], [1, 5, 0]]], "cannot be read .*points that are no pairs"),
        ("RLE", "cannot be read"),
        ({"size": [6, 8]}, "cannot be read .*counts"),
        *[
            ({"size": [6, 8], "counts": x}, "cannot be read")
            for x in ([8, 300], [8, 9], [-8, 56], [8.5, 39.5], [], None)
        ],
        *[({"size": [6, 8], "counts": x}, "cannot be read") for x in ("", "~~~~", "PPPPPP", "0", b"\xff", "\u00e9")],
        *[({"size": x, "counts": [48]}, "cannot be read") for x in (None, ["six", 8], [6], 48, [6.5, 8], [True, 48])],
        ({"size": [8, 6], "counts": [48]}, r"is 8 x 6 pixels .*is for 6 x 8"),
        ({"size": [6, 8], "counts": [True] * 48}, "cannot be read"),
        *[(np.full(SIZE, x), "cannot be read .*a bitmap") for x in (float("nan"), 0.3, "a", None)],
        (np.zeros((6, 7)), r"is 8 x 6 pixels .*is for 7 x 6"),
    ],
    ids=str,
)
def test_a_bad_segmentation_names_the_file(segmentation, message):
    with pytest.raises(InputError, match=rf"x\.jpg .*{message}") as error:
        rasterize(segmentation, SIZE, "x.jpg")
    assert "\n" not in str(error.value)


def test_a_polygon_need_not_be_in_a_list_and_may_be_of_points():
    mask = rasterize([[0, 0, 4, 0, 4, 4, 0, 4]], SIZE, "x.jpg")
    assert mask.sum() == 16
    for notation in ([0, 0, 4, 0, 4, 4, 0, 4], [[[0, 0], [4, 0], [4, 4], [0, 4]]], ((0, 0, 4, 0, 4, 4, 0, 4),)):
        assert (rasterize(notation, SIZE, "x.jpg") == mask).all()
    assert (rasterize([[0, 0, 5, 5], [0, 0, 4, 0, 4, 4, 0, 4], [1]], SIZE, "x.jpg") == mask).all()


@pytest.mark.parametrize("seed", range(20))
def test_the_runs_of_a_compressed_rle_are_those_of_its_pixels(seed):
    random = np.random.default_rng(seed)
    mask = random.random((60, 700)) < random.choice([0.002, 0.5, 0.998])
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert (rasterize(rle, mask.shape, "x.jpg") == mask).all()
    with pytest.raises(InputError, match="cannot be read"):  # one run less
        rasterize({**rle, "counts": rle["counts"][:-1]}, mask.shape, "x.jpg")


def mapper(*augmentations):
    return DetrDatasetMapper(
        is_train=True, augmentations=list(augmentations), image_format="RGB", num_classes=4, masks=True
    )


def annotation(box, segmentation, **more):
    return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "segmentation": segmentation, **more}


@pytest.fixture
def image(tmp_path):
    """(dict, pixels): an L in white on black, 320 x 240 pixels; flipped or turned, an L looks another way."""
    mask = np.zeros((240, 320), dtype=bool)
    mask[90:150, 120:140] = mask[130:150, 120:180] = True
    path = tmp_path / "image.png"
    Image.fromarray(np.repeat(mask[..., None], 3, -1).astype(np.uint8) * 255).save(path)
    return {"file_name": str(path), "height": 240, "width": 320}, mask


L_SHAPE = [[120, 90, 140, 90, 140, 130, 180, 130, 180, 150, 120, 150]]


def test_masks_follow_the_pixels_through_all_augmentations(image):
    """Flip, both resizes and the crop: the mask lies where the white pixels do, but for their edge."""
    np.random.seed(0)
    x, _ = image
    x["annotations"] = [annotation([120, 90, 180, 150], L_SHAPE)]
    train = mapper(*training_augmentations((480, 640, 800), 1333))
    cut = 0
    for _ in range(30):
        out = train(x)
        white = out["image"][0] > 127
        if not len(out["instances"]):
            assert not white.any()
            continue
        masks = out["instances"].gt_masks
        assert isinstance(masks, BitMasks)
        assert masks.tensor.shape == (1, *out["image"].shape[1:])
        edge = (white[1:] != white[:-1]).sum() + (white[:, 1:] != white[:, :-1]).sum()
        assert (masks.tensor[0] != white).sum() <= 2 * edge
        cut += bool(white[0].any() or white[-1].any() or white[:, 0].any() or white[:, -1].any())
    assert cut  # by a crop


def test_a_flip_and_a_crop_move_masks_exactly(image):
    x, pixels = image
    x["annotations"] = [annotation([120, 90, 180, 150], pixels)]
    masks = mapper(T.RandomFlip(1.0), T.CropTransform(150, 100, 100, 60))(x)["instances"].gt_masks.tensor
    assert masks[0].tolist() == pixels[:, ::-1][100:160, 150:250].tolist()


def test_a_resize_takes_the_pixel_at_the_corner():
    """3 pixels of 10: the original takes 0, 3 and 6, the centers would be 1, 5 and 8."""
    mask = np.zeros((10, 10), dtype=bool)
    mask[[0, 3, 6]] = True
    transform = ResizeShortestEdge(3, 100).get_transform(np.zeros((10, 10, 3)))
    assert transform.apply_segmentation(mask).all()
    assert not transform.apply_segmentation(~mask).any()


def test_masks_are_made_before_the_crop(image):
    """A polygon cut by the crop's edge, and one object that is left out of it, without shapely."""
    x, pixels = image
    x["annotations"] = [annotation([120, 90, 180, 150], L_SHAPE), annotation([0, 0, 9, 9], [[0, 0, 9, 0, 9, 9]])]
    instances = mapper(T.CropTransform(130, 100, 100, 100))(x)["instances"]
    assert len(instances) == 1
    assert instances.gt_masks.tensor[0].tolist() == pixels[100:200, 130:230].tolist()


def test_an_object_whose_box_alone_reaches_into_the_crop_keeps_an_empty_mask(image):
    """As in the original: the L's box covers the crop, none of its pixels do."""
    x, pixels = image
    x["annotations"] = [annotation([120, 90, 180, 150], pixels)]
    instances = mapper(T.CropTransform(150, 95, 20, 20))(x)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[0, 0, 20, 20]]
    assert not instances.gt_masks.tensor.any()


def test_images_without_objects_have_masks_of_the_right_shape(image):
    x, _ = image
    for annotations in ([], [annotation([0, 0, 9, 9], [[0, 0, 9, 0, 9, 9]], iscrowd=1)]):
        instances = mapper(ResizeShortestEdge(120, 1333))({**x, "annotations": annotations})["instances"]
        assert instances.gt_masks.tensor.shape == (0, 120, 160)
        assert instances.gt_masks.tensor.dtype == torch.bool


@pytest.mark.parametrize("segmentation", [None, []])
def test_masks_without_segmentations_name_file_and_remedy(image, segmentation):
    x, _ = image
    x["annotations"] = [annotation([120, 90, 180, 150], segmentation)]
    message = r"image\.png has an object without a segmentation, .*MODEL\.MASK_ON False"
    with pytest.raises(InputError, match=message):
        mapper()(x)
    del x["annotations"][0]["segmentation"]
    with pytest.raises(InputError, match=message):
        mapper()(x)


def test_without_masks_segmentations_are_not_looked_at(image):
    x, _ = image
    x["annotations"] = [annotation([120, 90, 180, 150], "anything")]
    boxes = DetrDatasetMapper(is_train=True, augmentations=[], image_format="RGB", num_classes=4)
    assert not boxes(x)["instances"].has("gt_masks")
