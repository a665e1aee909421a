"""Which photographs are trained on, the weights' names, and the files. Nothing is trained."""

import pytest
import timm
import torch

from benchmarks import photos

WHERE = {"cpu": "a CPU", "versions": {"torch": "1"}, "date": "today"}


@pytest.mark.parametrize(
    ("theirs", "timms"),
    [
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_bn1.running_var", "bn2.running_var"),
        ("_fc.bias", "classifier.bias"),
        ("_blocks.0._project_conv.weight", "blocks.0.0.conv_pw.weight"),
        ("_blocks.1._expand_conv.weight", "blocks.1.0.conv_pw.weight"),
        ("_blocks.4._depthwise_conv.weight", "blocks.2.1.conv_dw.weight"),
        ("_blocks.15._bn2.bias", "blocks.6.0.bn3.bias"),
    ],
)
def test_names_of_the_weights_become_timms(theirs, timms):
    assert photos.to_timm({theirs: 1}) == {timms: 1}
    with torch.device("meta"):
        assert timms in timm.create_model("tf_efficientnet_lite0").state_dict()


def test_an_unknown_tensor_is_an_error():
    with pytest.raises(KeyError):
        photos.to_timm({"_blocks.1._no_such.weight": 1})


def test_photographs_are_the_first_with_objects_that_are_no_crowds():
    images = [{"id": index} for index in range(60, 0, -1)]
    annotations = [{"image_id": index, "iscrowd": int(index == 2)} for index in range(1, 61) if index != 3]
    chosen = photos.choose_photos({"images": images, "annotations": annotations, "categories": ["a"]})
    expected = [1, *range(4, 43)]
    assert [image["id"] for image in chosen["images"]] == expected
    assert [x["image_id"] for x in chosen["annotations"]] == expected
    assert chosen["categories"] == ["a"]


def test_a_training_that_is_behind_has_a_gap_in_the_table(tmp_path):
    points = [{"step": 150 * i, "seconds": 60.0 * i, "AP": 2.0 * i, "AP50": 5.0 * i} for i in (1, 2, 3)]
    photos.write({"recipes": {"plain": points[:2], "denoising": points}, **WHERE}, tmp_path)
    rows = [line for line in (tmp_path / "PHOTOS.md").read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells == [
        ["recipe", "150", "300", "450", "a step"],
        ["plain", "2.0 (5.0)", "4.0 (10.0)", "-", "400 ms"],
        ["denoising", "2.0 (5.0)", "4.0 (10.0)", "6.0 (15.0)", "400 ms"],
    ]
    assert (tmp_path / "photos.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "photos.json").is_file()
