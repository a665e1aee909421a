"""The maps on their own; tests/parity/test_conversion.py holds them against the authors' code and transformers."""

import pytest
import torch

from detr.checkpoint import formats
from detr.checkpoint.architecture import missing_keys
from detr.checkpoint.formats import from_detectron2, recognize, target_format, to_detectron2
from detr.checkpoint.rows import NEVER, PANOPTIC, THINGS, coco_rows
from detr.errors import InputError
from tests.checkpoint.samples import as_wrapper
from tests.parity.oracle import build_original, original_checkpoint


@pytest.fixture(scope="module")
def original():
    return original_checkpoint(build_original("detr_R_50")[0])["model"]


@pytest.fixture(scope="module")
def ours(original):
    return to_detectron2(original).state


@pytest.fixture(scope="module")
def wrapped(original):
    return {key: value for key, value in as_wrapper(original).items() if key != "criterion.empty_weight"}


def test_every_tensor_arrives_once_and_unchanged(original, ours):
    assert len(ours) == len(original)
    pairs = {
        "backbone.0.body.conv1.weight": "backbone.stem.conv1.weight",
        "backbone.0.body.bn1.running_var": "backbone.stem.conv1.norm.running_var",
        "backbone.0.body.layer1.0.downsample.0.weight": "backbone.res2.0.shortcut.weight",
        "backbone.0.body.layer4.0.downsample.1.bias": "backbone.res5.0.shortcut.norm.bias",
        "backbone.0.body.layer3.5.conv2.weight": "backbone.res4.5.conv2.weight",
        "backbone.0.body.layer3.5.bn3.running_mean": "backbone.res4.5.conv3.norm.running_mean",
        "transformer.decoder.norm.weight": "transformer.decoder.norm.weight",
        "query_embed.weight": "query_embed.weight",
    }
    for old, new in pairs.items():
        assert torch.equal(ours[new], original[old])
    assert torch.equal(ours["class_embed.weight"], original["class_embed.weight"][coco_rows(THINGS)])


def test_another_number_of_classes_is_kept(original):
    own = original | {"class_embed.weight": torch.randn(8, 256), "class_embed.bias": torch.randn(8)}
    assert torch.equal(to_detectron2(own).state["class_embed.bias"], own["class_embed.bias"])


def test_ninety_one_classes_of_another_data_set_are_kept(original):
    assert len(to_detectron2(original, coco=False).state["class_embed.bias"]) == 92


@pytest.mark.parametrize(
    "key",
    [
        "mask_head.lay1.weight",
        "backbone.0.body.layer1.0.gn1.weight",
        "transformer.encoder.layers.0.extra.weight",
        "query_embed.scale",
        "optimizer",
    ],
)
def test_a_key_without_a_rule_is_named(original, key):
    with pytest.raises(InputError, match=f"1 key is not of the kind original detection; the first: {key}"):
        to_detectron2(original | {key: torch.zeros(1)})


def test_a_key_without_a_name_in_the_target_is_named(ours):
    pre_norm = ours | {"transformer.encoder.norm.weight": torch.ones(256)}
    assert "transformer.encoder.norm.weight" in from_detectron2(pre_norm, formats.ORIGINAL).state
    with pytest.raises(InputError, match=r"the first: transformer\.encoder\.norm\.weight"):
        from_detectron2(pre_norm, formats.TRANSFORMERS_TIMM)
    with pytest.raises(InputError, match=r"the first: backbone\.bottom_up\.stem"):
        from_detectron2(ours | {"backbone.bottom_up.stem.conv1.weight": torch.ones(1)}, formats.ORIGINAL)


@pytest.mark.parametrize("key", ["backbone.0.body.layer3.2.conv2.weight", "transformer.decoder.layers.1.linear1.bias",
                                 "transformer.encoder.layers.0.norm1.weight", "bbox_embed.layers.2.bias",
                                 "query_embed.weight", "backbone.0.body.layer2.0.downsample.1.bias"])  # fmt: skip
def test_a_missing_key_is_listed(original, ours, key):
    assert missing_keys(ours) == []
    (lost,) = missing_keys(to_detectron2({k: v for k, v in original.items() if k != key}).state)
    assert torch.equal(ours[lost], original[key])


def test_half_a_class_head_is_refused(original):
    with pytest.raises(InputError, match=r"class_embed\.weight and class_embed\.bias do not fit each other"):
        to_detectron2({key: value for key, value in original.items() if key != "class_embed.bias"})


def test_an_unknown_key_of_our_own_format_is_named(ours):
    assert to_detectron2(ours | {"backbone.bottom_up.anything": torch.zeros(1)})
    with pytest.raises(InputError, match=r"the first: head\.weight"):
        to_detectron2(ours | {"head.weight": torch.zeros(1)})


def test_ignored_keys_are_reported(original):
    conversion = to_detectron2(original | {"backbone.0.body.bn1.num_batches_tracked": torch.tensor(5)})
    assert len(conversion.state) == len(original)
    assert any("left out: backbone.0.body.bn1.num_batches_tracked" in line for line in conversion.lines)


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_weights_of_the_wrapper(ours, wrapped, masks):
    if masks:
        wrapped = {f"detr.{key}": value for key, value in wrapped.items()}
        wrapped |= {"detr.bbox_attention.q_linear.bias": torch.ones(256), "detr.mask_head.lay1.bias": torch.ones(264)}
    conversion = to_detectron2(wrapped | {"criterion.empty_weight": torch.ones(81)})
    assert conversion.source is (formats.WRAPPER_MASKS if masks else formats.WRAPPER)
    assert conversion.state.keys() - ours.keys() == (
        {"mask_head.attention.q_linear.bias", "mask_head.lay1.bias"} if masks else set()
    )
    assert all(torch.equal(conversion.state[key], value) for key, value in ours.items())
    assert [line for line in conversion.lines if "criterion.empty_weight" in line]


def test_formats_are_recognized(original, ours, wrapped):
    assert recognize(original) is formats.ORIGINAL
    assert recognize({f"detr.{key}": 0 for key in original}) is formats.ORIGINAL_MASKS
    assert recognize(ours) is formats.DETECTRON2
    assert recognize(wrapped) is formats.WRAPPER
    assert recognize({key.removeprefix("backbone."): 0 for key in ours}) is formats.RESNET
    assert recognize({key.removeprefix("backbone.0.body."): 0 for key in original}) is formats.TORCHVISION
    for name in ("TRANSFORMERS_TIMM", "TRANSFORMERS_RESNET"):
        target = getattr(formats, name)
        assert recognize(from_detectron2(ours, target).state) is target
        masks = getattr(formats, f"{name}_MASKS")
        assert (
            recognize(from_detectron2(ours | {"mask_head.lay1.bias": ours["class_embed.bias"]}, masks).state) is masks
        )
    assert recognize({}) is None
    assert recognize({"head.weight": 0}) is None
    with pytest.raises(InputError, match=r"no format that is known here: the first keys are head\.weight"):
        to_detectron2({"head.weight": torch.ones(1)})


@pytest.mark.parametrize("num_classes", [THINGS, PANOPTIC, 7])
@pytest.mark.parametrize("to", ["original", "transformers"])
@pytest.mark.parametrize("timm", [False, True])
def test_a_round_trip_is_the_identity(ours, num_classes, to, timm):
    rows = {"class_embed.weight": torch.randn(num_classes + 1, 256), "class_embed.bias": torch.randn(num_classes + 1)}
    start = ours | rows
    conversion = from_detectron2(start, target_format(start, to, timm=timm))
    assert bool(conversion.lines) == (num_classes != 7)
    back = to_detectron2(conversion.state).state
    assert back.keys() == start.keys()
    assert all(torch.equal(back[key], start[key]) for key in start)


@pytest.mark.parametrize(("num_classes", "num_rows"), [(THINGS, 92), (PANOPTIC, 251)])
def test_filled_rows_never_win(ours, num_classes, num_rows):
    rows = {"class_embed.weight": torch.randn(num_classes + 1, 256), "class_embed.bias": torch.randn(num_classes + 1)}
    state = from_detectron2(ours | rows, formats.ORIGINAL).state
    assert state["class_embed.bias"].shape == (num_rows,)
    logits = torch.randn(50, 256) @ state["class_embed.weight"].T + state["class_embed.bias"]
    unused = torch.ones(num_rows, dtype=torch.bool)
    unused[coco_rows(num_classes)] = False
    assert unused.sum() == num_rows - num_classes - 1
    assert (state["class_embed.bias"][unused] == NEVER).all()
    assert (logits.softmax(-1)[:, unused] == 0).all()


def test_a_projection_that_lacks_a_part_is_named(ours):
    state = from_detectron2(ours, formats.TRANSFORMERS_RESNET).state
    del state["model.decoder.layers.2.encoder_attn.k_proj.bias"]
    with pytest.raises(InputError, match=r"decoder\.layers\.2\.multihead_attn\.: of the query, key and value"):
        to_detectron2(state)
