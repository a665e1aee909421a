import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from PIL import Image

from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.transforms import ResizeShortestEdge, training_augmentations
from detr.errors import InputError


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


def test_a_label_outside_the_classes_names_the_file(image):
    image["annotations"] = [annotation([10, 10, 50, 50], 4)]
    with pytest.raises(InputError, match=r"image\.png has an object of category 4, outside \[0, 4\)"):
        mapper()(image)


def test_a_file_that_is_no_image_is_named(tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no image at all")
    with pytest.raises(InputError, match=r"cannot read the image .*broken\.jpg \(UnidentifiedImageError"):
        mapper()({"file_name": str(path)})


def test_a_wrong_size_names_file_and_sizes(image):
    with pytest.raises(InputError, match=r"image\.png is 320 x 240 pixels .* says 321 x 240"):
        mapper()({**image, "width": 321})
