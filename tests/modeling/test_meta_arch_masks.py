"""Masks and panoptic maps of a whole ``Detr``."""

import pytest
import torch
from detectron2.modeling import build_model

from detr.engine.defaults import load_config
from detr.errors import InputError
from tests.conftest import make_input, with_masks
from tests.engine.test_defaults import WRAPPER_YAML
from tests.lively import enliven
from tests.modeling.test_meta_arch import BACKBONES, BOXES, MASKS, build


@pytest.mark.parametrize("backbone", BACKBONES)
def test_masks_are_of_the_whole_image_at_output_size(tiny_config, backbone):
    model = build(tiny_config, {**BACKBONES[backbone], **MASKS}).eval()
    inputs = [make_input([], [], (96, 128)), make_input([], [], (90, 101))]
    inputs[1].update(height=180, width=303)
    with torch.no_grad():
        first, second = (x["instances"] for x in model(inputs))
    assert first.pred_masks.dtype == torch.bool
    assert first.pred_masks.shape == (20, 96, 128)
    assert second.pred_masks.shape == (20, 180, 303)
    assert 0 < first.pred_masks.float().mean() < 1
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == ({"fpn_output5"} if "FPN" in backbone else set())  # masks read p3 and p2 too


def test_masks_do_not_depend_on_the_batch(tiny_config):
    """Of two images of one size, which no padding changes; the logits are equal up to rounding."""
    model = build(tiny_config, MASKS).eval()
    inputs = [make_input([], [], (96, 128), seed=seed) for seed in (0, 1)]
    with torch.no_grad():
        together = [x["instances"].pred_masks for x in model(inputs)]
        alone = [model([x])[0]["instances"].pred_masks for x in inputs]
    assert (together[0] != together[1]).float().mean() > 0.02
    for first, second in zip(together, alone, strict=True):
        assert (first != second).float().mean() < 1e-4


def test_the_mask_head_changes_no_box_and_reads_the_last_layer(tiny_config):
    model = build(tiny_config, MASKS).eval()
    images = model.preprocess([make_input([], [], (96, 128)), make_input([], [], (90, 101))])
    with torch.no_grad():
        every, last = (model.forward_network(images, return_intermediate=flag) for flag in (True, False))
        model.mask_head = None
        without = model.forward_network(images, return_intermediate=False)
    torch.testing.assert_close(every.mask_features.queries, last.mask_features.queries)
    assert without.mask_features is None
    assert torch.equal(without.logits, last.logits)
    assert torch.equal(without.boxes, last.boxes)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("objects", [[2, 1], [0, 2], [0, 0]], ids=str)
def test_masks_train_with_any_backbone_and_with_empty_images(tiny_config, backbone, objects):
    model = build(tiny_config, {**BACKBONES[backbone], **MASKS}).train()
    sizes = [(96, 128), (90, 101)]
    batch = [with_masks(make_input(BOXES[:n], [1, 3][:n], size)) for n, size in zip(objects, sizes, strict=True)]
    losses = model(batch)
    assert len(losses) == 8  # three losses, two decoder layers, and two of masks, of the last layer alone
    assert (losses["loss_mask"] > 0) == (losses["loss_dice"] > 0) == (sum(objects) > 0)
    sum(losses.values()).backward()
    trainable = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, gradient in trainable.items() if gradient is None]
    assert all(torch.isfinite(gradient).all() for gradient in trainable.values())


def test_mask_losses_are_of_the_last_layers_matches(tiny_config):
    model = build(tiny_config, MASKS).train()
    with torch.no_grad():
        model.query_embed.weight.mul_(5)
        batch = [with_masks(make_input(BOXES, [0, 1], size, seed)) for seed, size in enumerate([(96, 128), (90, 101)])]
        outputs = model.forward_network(model.preprocess(batch), return_intermediate=True)
        targets = model.targets(batch, (96, 128))
        losses = model.losses(outputs, targets)
        matches = model.criterion.matcher(outputs.logits[-1:], outputs.boxes[-1:], targets)
        masks = model.mask_head(outputs.mask_features, matches.image, matches.query)
        expected = model.criterion.mask_losses(masks, targets, matches)
        first = model.criterion.matcher(outputs.logits[:1], outputs.boxes[:1], targets)
    assert first.query.tolist() != matches.query.tolist()  # else the first layer's would do as well
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)


def test_masks_train_in_mixed_precision(tiny_config):
    """The head runs in half precision, its losses do not."""
    model = build(tiny_config, MASKS).train()
    batch = [with_masks(make_input(BOXES, [0, 1], size, seed)) for seed, size in enumerate([(96, 128), (90, 101)])]
    plain = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    for name in ("loss_mask", "loss_dice"):
        torch.testing.assert_close(losses[name], plain[name], rtol=0.1, atol=0)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.mask_head.parameters())


def test_targets_are_padded_with_the_batch(tiny_config):
    model = build(tiny_config, MASKS)
    batch = [with_masks(make_input(BOXES, [0, 1], size)) for size in [(90, 101), (96, 128)]]
    masks = model.targets(batch, (96, 128)).masks
    assert masks.shape == (4, 96, 128)
    assert torch.equal(masks[:2, :90, :101], batch[0]["instances"].gt_masks.tensor)
    assert not masks[:2, 90:].any()
    assert not masks[:2, :, 101:].any()
    assert torch.equal(masks[2:], batch[1]["instances"].gt_masks.tensor)


def test_targets_without_masks_are_reported(tiny_config):
    message = r"MODEL\.MASK_ON is True, but the training targets have nothing as gt_masks, and not BitMasks"
    with pytest.raises(InputError, match=message):
        build(tiny_config, MASKS).train()([make_input(BOXES, [0, 1])])


@pytest.mark.parametrize("key", ["MODEL.DETR.FREEZE_DETR", "MODEL.DETR.FROZEN_WEIGHTS"])
def test_training_masks_leaves_a_frozen_box_model_unchanged(tiny_config, key):
    """Steps on the masks change no box by a bit, and leave no gradient and no statistic of a norm behind."""
    value = True if key.endswith("DETR") else "boxes.pth"
    model = build(tiny_config, {**MASKS, key: value, "MODEL.DETR.DROPOUT": 0.1})
    image = make_input([], [], (96, 128))
    with torch.no_grad():
        before = model.eval()([image])[0]["instances"]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    assert model.transformer.training  # dropout, as in the original
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    for seed in range(2):
        losses = model([with_masks(make_input(BOXES, [0, 1], seed=seed))])
        assert losses.keys() == {"loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice"}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"mask_head"}
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    assert changed == {"mask_head"}
    with torch.no_grad():
        after = model.eval()([image])[0]["instances"]
    assert torch.equal(before.pred_boxes.tensor, after.pred_boxes.tensor)
    assert torch.equal(before.scores, after.scores)
    assert not torch.equal(before.pred_masks, after.pred_masks)


PANOPTIC = {**MASKS, "MODEL.DETR.PANOPTIC.ENABLED": True, "MODEL.DETR.NUM_CLASSES": 7}  # shapes: 4 things, 3 stuff


def test_panoptic_maps_and_the_instances_of_things(tiny_config):
    model = enliven(build(tiny_config, {**PANOPTIC, "MODEL.DETR.PANOPTIC.SCORE_THRESHOLD": 0.3}))
    inputs = [make_input([], [], (96, 128)), make_input([], [], (90, 101), seed=1)]
    inputs[1].update(height=180, width=303)
    with torch.no_grad():
        outputs = model(inputs)
        logits = model.forward_network(model.preprocess(inputs), return_intermediate=False).logits[-1]
    for output, x, logit in zip(outputs, inputs, logits, strict=True):
        best = logit[:, :-1].argmax(-1)
        assert output["instances"].pred_classes.tolist() == best[best < 4].tolist()
        assert 0 < len(output["instances"]) < 20
        segmentation, segments = output["panoptic_seg"]
        assert segmentation.dtype == torch.int32
        assert segmentation.shape == (x["height"], x["width"]) == output["instances"].pred_masks.shape[1:]
        assert {segment["id"] for segment in segments} == set(segmentation.unique().tolist()) - {0}
        assert all(segment["isthing"] == (segment["category_id"] < 4) for segment in segments)
    assert any(output["panoptic_seg"][1] for output in outputs)


def test_the_mask_head_runs_for_confident_queries_only(tiny_config, monkeypatch):
    """Stuff and low scores are no instances; the map wants those above its threshold: the rest costs nothing."""
    model = enliven(build(tiny_config, {**PANOPTIC, "MODEL.DETR.INSTANCE_SCORE_THRESHOLD": 0.5}))
    rows = []
    forward = model.mask_head.forward

    def counted(features, image_of, query_of):
        rows.append(query_of.tolist())
        return forward(features, image_of, query_of)

    monkeypatch.setattr(model.mask_head, "forward", counted)
    x = make_input([], [], (96, 128))
    with torch.no_grad():
        (output,) = model([x])
        probability = model.forward_network(model.preprocess([x]), return_intermediate=False).logits[-1, 0].softmax(-1)
    scores, best = probability[:, :-1].max(-1)
    in_map = (scores > 0.85) & (scores > probability[:, -1])
    expected = (in_map | ((scores >= 0.5) & (best < 4))).nonzero().squeeze(1).tolist()
    assert rows == [expected]
    assert 0 < len(expected) < 20
    assert output["instances"].scores.min() >= 0.5


def test_a_wrapper_yaml_for_masks_evaluates(tmp_path):
    text = WRAPPER_YAML.replace("MASK_ON: False", "MASK_ON: True").replace("  DETR:", '  DETR:\n    FROZEN_WEIGHTS: ""')
    assert text.count("MASK_ON: True") == text.count("FROZEN_WEIGHTS") == 1
    path = tmp_path / "wrapper.yaml"
    path.write_text(text)
    model = build_model(load_config(str(path), ["MODEL.DEVICE", "cpu"])).eval()
    with torch.no_grad():
        (output,) = model([make_input([], [], (64, 96))])
    assert output["instances"].pred_masks.shape == (100, 64, 96)
