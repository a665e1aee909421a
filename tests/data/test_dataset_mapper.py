import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from PIL import Image

from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.transforms import ResizeShortestEdge, training_augmentations
from detr.engine.defaults import load_config
from detr.errors import InputError
from tests.conftest import ROOT, as_opts


def annotation(box, category=0, **more):
    return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": category, **more}


def mapper(augmentations=(), is_train=True):
    return DetrDatasetMapper(is_train=is_train, augmentations=list(augmentations), image_format="RGB", num_classes=4)


@pytest.fixture
def image(tmp_path):
    """Black, with a white box at x 120..180, y 90..150 of 320 x 240 pixels."""
    pixels = np.zeros((240, 320, 3), dtype=np.uint8)
    pixels[90:150, 120:180] = 255
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    return {"file_name": str(path), "height": 240, "width": 320}


def test_boxes_follow_the_pixels_through_all_augmentations(image):
    """Flip, both resizes and the crop: the box ends where the white pixels do."""
    np.random.seed(0)
    image["annotations"] = [annotation([120, 90, 180, 150])]
    train = mapper(training_augmentations((480, 640, 800), 1333))
    boxes, lost = [], 0
    for _ in range(40):
        out = train(image)
        white = out["image"][0] > 127
        if not len(out["instances"]):
            assert not white.any()
            lost += 1
            continue
        rows, columns = (torch.nonzero(white.any(dim)).flatten() for dim in (1, 0))
        expected = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
        torch.testing.assert_close(out["instances"].gt_boxes.tensor[0], expected, atol=2.0, rtol=0)
        assert out["instances"].image_size == tuple(out["image"].shape[1:])
        boxes.append(expected)
    assert len({tuple(box.tolist()) for box in boxes}) > 10
    assert lost < 20


def test_boxes_of_integers_are_not_cut_off(image):
    """320 x 240 becomes 133 x 100: Detectron2 would write 49.875 back into an array of integers."""
    image["annotations"] = [annotation([120, 90, 180, 150])]
    boxes = mapper([ResizeShortestEdge(100, 1333)])(image)["instances"].gt_boxes.tensor
    torch.testing.assert_close(boxes, torch.tensor([[120 * 133 / 320, 37.5, 180 * 133 / 320, 62.5]]))


def test_crowds_and_degenerate_boxes_are_no_targets(image):
    image["annotations"] = [
        annotation([10, 10, 50, 50], 1),
        annotation([0, 0, 300, 200], 2, iscrowd=1),
        annotation([30, 30, 30, 60], 3),
        annotation([400, 10, 420, 50], 3),  # outside of the image
    ]
    instances = mapper()(image)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[10, 10, 50, 50]]
    assert instances.gt_classes.tolist() == [1]


def test_an_image_without_objects_has_no_targets_of_the_right_shape(image):
    instances = mapper()({**image, "annotations": []})["instances"]
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.dtype == torch.int64


def test_the_dict_of_the_data_set_is_left_alone(image):
    image["annotations"] = [annotation([10, 10, 50, 50])]
    before = repr(image)
    mapper(training_augmentations((480,), 1333))(image)
    assert repr(image) == before


def test_evaluation_has_no_targets(image):
    out = mapper(is_train=False)({**image, "annotations": [annotation([10, 10, 50, 50])]})
    assert out.keys() == {"file_name", "height", "width", "image"}


MISTAKES = [
    ([annotation([10, 10, 50, 50], 4)], {}, r"image\.png has an object of category 4, outside \[0, 4\)"),
    ([{"bbox": [1, 2, 3, 4], "category_id": 0}], {}, r"image\.png has an object without 'bbox_mode'"),
    ([annotation([10, 10, float("nan"), 50])], {}, r"image\.png has an object with the bbox .* 4 finite numbers"),
    ([{**annotation([0, 0, 1, 1]), "bbox_mode": BoxMode.XYWHA_ABS}], {}, r"image\.png has .*bbox_mode .*XYXY_ABS or"),
    ([], {"width": 321}, r"image\.png is 320 x 240 pixels .* says 321 x 240"),
    ([], {"file_name": __file__}, r"cannot read the image .*test_dataset_mapper\.py \(UnidentifiedImageError"),
    ([], {"file_name": "gone.jpg"}, r"cannot read the image gone\.jpg \(FileNotFoundError"),
]


@pytest.mark.parametrize(("annotations", "keys", "message"), MISTAKES)
def test_mistakes_name_the_file(image, annotations, keys, message):
    with pytest.raises(InputError, match=message) as error:
        mapper()({**image, "annotations": annotations, **keys})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"RANDOM_FLIP": "diagonal"}, "RANDOM_FLIP is 'diagonal': it must be one of none, horizontal, vertical"),
        ({"MIN_SIZE_TRAIN_SAMPLING": "any"}, "SAMPLING is 'any': it must be one of choice, range"),
        ({"MIN_SIZE_TRAIN": ()}, r"MIN_SIZE_TRAIN is \(\): it must hold at least one size"),
        ({"MIN_SIZE_TRAIN": (96, -1)}, r"MIN_SIZE_TRAIN is \(96, -1\) and .* must be 0 \(no resizing\) or more"),
        ({"MAX_SIZE_TRAIN": 0}, "MAX_SIZE_TRAIN is 0: .* bound at least 1"),
        ({"MIN_SIZE_TRAIN": (480,), "MIN_SIZE_TRAIN_SAMPLING": "range"}, "it must hold the smallest and the largest"),
        ({"CROP.TYPE": "square"}, "TYPE is 'square': it must be one of relative, relative_range, absolute, absolute_r"),
        ({"CROP.TYPE": "relative"}, r"SIZE is \(384, 600\): with .* relative it must be .* fractions"),
        ({"CROP.SIZE": (600, 384)}, "absolute_range it must be the smallest and the largest side"),
        ({"CROP.SIZE": (0.9, 0.9)}, "absolute_range it must be .*in whole pixels"),
        ({"CROP.TYPE": "absolute", "CROP.SIZE": (0, 9)}, "absolute it must be height and width in whole pixels"),
    ],
)
def test_impossible_keys_are_named(settings, message):
    with pytest.raises(InputError, match=message) as error:
        DetrDatasetMapper(config(settings), is_train=True)
    assert str(error.value).startswith("INPUT.")


def config(settings):
    opts = as_opts({f"INPUT.{key}": value for key, value in settings.items()})
    return load_config(str(ROOT / "configs" / "COCO-Detection" / "detr_R_50.yaml"), opts)


def test_a_vertical_flip_of_every_second_image(image):
    image["annotations"] = [annotation([120, 90, 180, 150])]
    train = DetrDatasetMapper(config({"RANDOM_FLIP": "vertical", "CROP.ENABLED": False, "MIN_SIZE_TRAIN": (0,)}))
    np.random.seed(0)
    seen = [tuple(train(image)["instances"].gt_boxes.tensor[0].tolist()) for _ in range(20)]
    assert set(seen) == {(120, 90, 180, 150), (120, 240 - 150, 180, 240 - 90)}


@pytest.mark.parametrize(
    ("kind", "size", "expected"),
    [
        ("relative", (0.5, 0.25), {(200, 133), (250, 167), (300, 200)}),  # of 400 x 533, 500 x 666 and 600 x 800
        ("absolute", (100, 700), {(100, 533), (100, 666), (100, 700)}),
        ("relative_range", (1.0, 1.0), {(400, 533), (500, 666), (600, 800)}),
        ("absolute_range", (50, 50), {(50, 50)}),
    ],
)
def test_crops_of_every_type_in_every_second_image(image, kind, size, expected):
    settings = {"CROP.TYPE": kind, "CROP.SIZE": size, "MIN_SIZE_TRAIN": (0,)}  # 0: no resize after the crop
    train = DetrDatasetMapper(config(settings))
    np.random.seed(0)
    shapes = [tuple(train({**image, "annotations": []})["image"].shape[1:]) for _ in range(40)]
    assert set(shapes) == expected | {(240, 320)}
    assert 10 <= shapes.count((240, 320)) <= 30


class FourChannels(DetrDatasetMapper):
    def read(self, x):
        image = super().read(x)
        return np.concatenate([image, 255 - image[..., :1]], axis=-1)


def test_a_model_trains_on_four_channels_with_masks(image, tiny_config):
    """The mapper reads them, and the first convolution has a gradient for each."""
    cfg = tiny_config({"MODEL.MASK_ON": True, "MODEL.PIXEL_MEAN": [120.0] * 4, "MODEL.PIXEL_STD": [60.0] * 4})
    image["annotations"] = [annotation([120, 90, 180, 150], segmentation=[[120, 90, 180, 90, 180, 150, 120, 150]])]
    batch = [FourChannels(cfg, is_train=True, augmentations=[ResizeShortestEdge(96, 1333)])(image)]
    assert torch.equal(batch[0]["image"][3], 255 - batch[0]["image"][0])
    torch.manual_seed(0)
    model = build_model(cfg).train()
    with EventStorage():
        losses = model(batch)
    assert {"loss_mask", "loss_dice"} <= losses.keys()
    sum(losses.values()).backward()
    first = next(p for p in model.backbone.parameters() if p.ndim == 4)
    assert first.shape[1] == 4
    assert (first.grad.abs().sum(dim=(0, 2, 3)) > 0).all()
