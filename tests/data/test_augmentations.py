"""Boxes and masks follow the pixels through any of Detectron2's augmentations."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.panoptic_mapper import DetrPanopticMapper
from detr.data.transforms import ResizeShortestEdge
from detr.errors import InputError

SIZE = (96, 128)  # height, width
DRAWS = 5  # of every augmentation
BRIGHT = 190
# Factors are close to 1, so that the brightest channel of a pixel still tells its object.
AUGMENTATIONS = {
    "none": [],
    "vertical flip": [T.RandomFlip(1.0, horizontal=False, vertical=True)],
    "transforms": [T.HFlipTransform(128), T.CropTransform(10, 5, 90, 70)],
    "Resize": [T.Resize((75, 200))],
    "ResizeShortestEdge of Detectron2": [T.ResizeShortestEdge((60, 150))],
    "ResizeScale": [T.ResizeScale(0.5, 2.0, 100, 90)],
    "RandomResize": [T.RandomResize([(50, 60), (130, 110)])],
    "ScaleTransform": [T.ScaleTransform(96, 128, 120, 100, "bilinear")],
    "RandomExtent": [T.RandomExtent((0.5, 1.5), (0.5, 0.5))],
    "RandomRotation": [T.RandomRotation((-60, 60))],
    "RandomRotation in place": [T.RandomRotation((20, 160), expand=False, center=((0.3, 0.3), (0.7, 0.7)))],
    "quarter turns": [T.RandomRotation([90, 180, 270], sample_style="choice")],
    "FixedSizeCrop that pads": [T.FixedSizeCrop((80, 200))],
    "FixedSizeCrop that pads with 1": [T.FixedSizeCrop((80, 200), seg_pad_value=1)],
    "FixedSizeCrop without padding": [T.FixedSizeCrop((50, 200), pad=False)],
    "RandomCrop": [T.RandomCrop("relative_range", (0.3, 0.3))],
    "RandomCrop_CategoryAreaConstraint": [T.RandomCrop_CategoryAreaConstraint("absolute", (50, 50), 0.7, 255)],
    "MinIoURandomCrop": [T.MinIoURandomCrop()],
    "RandomApply": [T.RandomApply(T.AugmentationList([T.RandomExtent((0.8, 0.8), (0, 0)), T.Resize((40, 40))]))],
    "RandomBrightness": [T.RandomBrightness(0.9, 1.1)],
    "RandomContrast": [T.RandomContrast(0.9, 1.1)],
    "RandomSaturation": [T.RandomSaturation(0.9, 1.1)],
    "RandomLighting": [T.RandomLighting(5.0)],
    "ColorTransform to float": [T.ColorTransform(lambda image: image[..., ::1] * np.float32(0.9))],
    "PILColorTransform": [T.PILColorTransform(lambda image: image.point(lambda value: value * 0.9))],
    "all at once": [
        T.RandomFlip(), T.RandomRotation((-30, 30)), T.RandomContrast(0.9, 1.1), T.RandomExtent((0.7, 1.2), (0.2, 0.2)),
        T.MinIoURandomCrop(), T.ResizeScale(0.5, 2.0, 100, 100),
        T.RandomCrop_CategoryAreaConstraint("relative", (0.8, 0.8), 0.9, 255), T.FixedSizeCrop((150, 150)),
        ResizeShortestEdge((90, 120), 200),
    ],
}  # fmt: skip
KEEP_GEOMETRY = {"none", "RandomBrightness", "RandomContrast", "RandomSaturation", "RandomLighting",
                 "ColorTransform to float", "PILColorTransform"}  # fmt: skip
ROTATED = {"RandomRotation", "RandomRotation in place", "all at once"}


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    """One dict for both mappers. Object k has class k, and channel k of the image is 255 where its pixels are."""
    masks = np.zeros((3, *SIZE), dtype=bool)
    masks[0, 20:60, 30:44] = masks[0, 48:60, 30:80] = True  # an L
    rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
    masks[1] = (rows - 30) ** 2 + (columns - 100) ** 2 < 18**2
    masks[2, 80:, :20] = True  # in the corner, which crops leave out
    folder = tmp_path_factory.mktemp("augmentations")
    Image.fromarray(np.moveaxis(masks, 0, -1).astype(np.uint8) * 255).save(folder / "image.png")
    ids = np.zeros((*SIZE, 3), dtype=np.uint8)
    ids[..., 0] = sum(mask * (k + 1) for k, mask in enumerate(masks))
    Image.fromarray(ids).save(folder / "panoptic.png")
    segmentations = [
        [[30, 20, 44, 20, 44, 48, 80, 48, 80, 60, 30, 60]],
        mask_util.encode(np.asfortranarray(masks[1].astype(np.uint8))),
        masks[2],
    ]
    boxes = [[30, 20, 80, 60], [83, 13, 118, 48], [0, 80, 20, 96]]
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": k, "segmentation": segmentation}
        for k, (box, segmentation) in enumerate(zip(boxes, segmentations, strict=True))
    ]
    crowd = {**annotations[0], "category_id": 3, "bbox": [0, 0, 128, 96], "iscrowd": 1}
    return {
        "file_name": str(folder / "image.png"),
        "annotations": [*annotations, crowd],
        "pan_seg_file_name": str(folder / "panoptic.png"),
        "segments_info": [{"id": k + 1, "category_id": k, "iscrowd": k == 1} for k in range(3)],
    }


def bounds(pixels):
    """x1, y1, x2, y2 around the pixels of a mask."""
    rows, columns = (torch.nonzero(pixels.any(dim)).flatten() for dim in (1, 0))
    return torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


def check(out, rotated):
    """Every object lies where the image shows it, and one that the image does not show is no target."""
    image, instances = out["image"], out["instances"]
    classes = instances.gt_classes.tolist()
    assert tuple(image.shape[1:]) == instances.image_size
    pixel = 2 * max(1, image.shape[1] / SIZE[0], image.shape[2] / SIZE[1])  # panoptic boxes end a pixel early
    for k in range(3):
        shown = image[k] > BRIGHT
        if k not in classes:
            assert shown.sum() <= max(image.shape)  # nothing but a blended edge
            continue
        i = classes.index(k)
        box, mask = instances.gt_boxes.tensor[i], instances.gt_masks.tensor[i]
        edge = (shown[1:] != shown[:-1]).sum() + (shown[:, 1:] != shown[:, :-1]).sum()
        assert (mask != shown).sum() <= 2 * edge
        for pixels in filter(torch.any, (shown, mask)):
            outside = (bounds(pixels) - box) * torch.tensor([-1, -1, 1, 1])
            assert outside.max() <= pixel
            if k == 2 and not rotated:  # what is left of a rectangle fills its box
                assert outside.min() >= -pixel


@pytest.mark.parametrize("mapper_class", [DetrDatasetMapper, DetrPanopticMapper])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_objects_follow_the_pixels(entry, mapper_class, name):
    def run(x, draw, masks=True):
        np.random.seed(draw)
        augmentations = AUGMENTATIONS[name]
        return mapper_class(is_train=True, augmentations=augmentations, image_format="RGB", num_classes=4, masks=masks)(
            x
        )

    before = torch.from_numpy(np.array(Image.open(entry["file_name"])).transpose(2, 0, 1))
    moved = []
    for draw in range(DRAWS):
        out = run(entry, draw)
        check(out, rotated=name in ROTATED)
        moved.append(not torch.equal(out["image"] > BRIGHT, before > BRIGHT))
    assert any(moved) == (name not in KEEP_GEOMETRY)

    with_masks, without = out["instances"], run(entry, draw, masks=False)["instances"]
    assert torch.equal(without.gt_boxes.tensor, with_masks.gt_boxes.tensor)
    assert not without.has("gt_masks")


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_images_without_objects(entry, name):
    mapper = DetrDatasetMapper(
        is_train=True, augmentations=AUGMENTATIONS[name], image_format="RGB", num_classes=4, masks=True
    )
    out = mapper({**entry, "annotations": []})
    assert out["instances"].gt_boxes.tensor.shape == (0, 4)
    assert out["instances"].gt_masks.tensor.shape == (0, *out["image"].shape[1:])


@pytest.mark.parametrize(
    ("transform", "left"),
    [
        (T.ExtentTransform((40, 0, 128, 96), (96, 88)), [0, 1]),
        (T.CropTransform(0, 50, 128, 46), [0, 2]),
        (T.RotationTransform(*SIZE, 180, expand=False, center=(40, 80)), [2]),  # x -> 80 - x, y -> 160 - y
        (T.RotationTransform(*SIZE, 180, expand=False, center=(128, 96)), []),
        (T.PadTransform(5, 5, 5, 5, seg_pad_value=1), [0, 1, 2]),
    ],
)
@pytest.mark.parametrize("mapper_class", [DetrDatasetMapper, DetrPanopticMapper])
def test_an_object_that_leaves_the_image_is_dropped_with_its_mask(entry, mapper_class, transform, left):
    mapper = mapper_class(is_train=True, augmentations=[transform], image_format="RGB", num_classes=4, masks=True)
    instances = mapper(entry)["instances"]
    assert instances.gt_classes.tolist() == left
    assert len(instances.gt_boxes) == len(instances.gt_masks) == len(left)
    assert instances.gt_masks.tensor.flatten(1).any(1).all()


class Recorder(T.Augmentation):
    """Keeps what it was given, and changes nothing."""

    def get_transform(self, image, boxes, sem_seg):
        self.boxes, self.sem_seg = boxes, sem_seg
        return T.NoOpTransform()


@pytest.mark.parametrize("kind", ["masks", "segmentations", "boxes", "panoptic"])
def test_augmentations_see_boxes_and_classes_as_they_are_by_then(entry, kind):
    """After a flip. Classes are those of masks, which are off here but for one kind, else of boxes."""
    recorder = Recorder()
    mapper_class = DetrPanopticMapper if kind == "panoptic" else DetrDatasetMapper
    if kind == "boxes":
        entry = {**entry, "annotations": [{**x, "segmentation": None} for x in entry["annotations"]]}
    mapper = mapper_class(
        is_train=True,
        augmentations=[T.HFlipTransform(128), recorder],
        image_format="RGB",
        num_classes=4,
        masks=kind == "masks",
    )
    mapper(entry)
    shown = np.array(Image.open(entry["file_name"]))[:, ::-1] > 0
    expected = np.full(SIZE, 255)
    if kind == "boxes":
        for k, (x1, y1, x2, y2) in enumerate([(48, 20, 98, 60), (10, 13, 45, 48), (108, 80, 128, 96)]):
            expected[y1:y2, x1:x2] = k
    else:
        expected[shown.any(-1)] = shown.argmax(-1)[shown.any(-1)]
    assert recorder.sem_seg.dtype == np.uint8
    assert (recorder.sem_seg == expected).all()
    assert recorder.boxes.dtype == np.float32
    end = 1 if kind == "panoptic" else 0  # the original's panoptic box ends at the last pixel
    assert recorder.boxes[2].tolist() == [108 + end, 80, 128, 96 - end]


def test_a_map_of_classes_holds_255_of_them(entry):
    mapper = DetrDatasetMapper(is_train=True, augmentations=[Recorder()], image_format="RGB", num_classes=300)
    annotations = [{**entry["annotations"][0], "category_id": 255}]
    with pytest.raises(InputError, match=r"image\.png has an object of category 255, but .* can tell 255 classes"):
        mapper({**entry, "annotations": annotations})


class FourChannels(DetrDatasetMapper):
    """Reads an RGB image with a fourth channel of its own: 0 on the left half, 200 on the right."""

    def read(self, x):
        image = super().read(x)
        fourth = np.zeros_like(image[..., :1])
        fourth[:, 64:] = 200
        return np.concatenate([image, fourth], axis=-1)


@pytest.mark.parametrize(
    "augmentations",
    [
        [ResizeShortestEdge(60, 1333)],
        [T.Resize((75, 200))],
        [T.ExtentTransform((10, 10, 100, 90), (90, 100))],
        [T.RotationTransform(*SIZE, 90)],
        [T.RandomFlip(1.0), T.FixedSizeCrop((120, 150))],
    ],
)
def test_channels_do_not_mix(entry, augmentations):
    """PIL would take the fourth for opacity, and blacken the others where it is 0."""
    arguments = {"is_train": True, "augmentations": augmentations, "image_format": "RGB", "num_classes": 4}
    rgb, four = DetrDatasetMapper(**arguments, masks=True)(entry), FourChannels(**arguments, masks=True)(entry)
    assert torch.equal(four["image"][:3], rgb["image"])
    assert {0, 200} <= set(four["image"][3].unique().tolist())
    assert torch.equal(four["instances"].gt_masks.tensor, rgb["instances"].gt_masks.tensor)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels(entry, channels):
    class Mapper(DetrPanopticMapper):
        def read(self, x):
            return np.repeat(super().read(x)[..., 1:2], channels, axis=-1)

    steps = [T.RandomRotation([90], sample_style="choice"), ResizeShortestEdge(60, 1333), T.Resize((75, 60))]
    mapper = Mapper(is_train=True, augmentations=steps, image_format="RGB", num_classes=4, masks=True)
    image = mapper(entry)["image"]
    assert image.shape == (channels, 75, 60)
    assert (image == image[:1]).all()
    assert image.max() > BRIGHT
