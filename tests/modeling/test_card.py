"""What a model is besides its tensors: read from cfg, enough to build the model again, in the way of no subclass."""

import copy

import pytest
from detectron2.config import CfgNode, configurable, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from detr import Detr, add_detr_config
from detr.errors import InputError
from detr.modeling.card import ModelCard
from tests.conftest import TINY, TRAINING_QUERIES
from tests.export.conftest import PANOPTIC
from tests.lively import assert_same, build_lively

CLASSES = "MODEL.DETR.NUM_CLASSES"


def from_card(card):
    """The model that a card's config builds, on the CPU."""
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.merge_from_other_cfg(CfgNode.load_cfg(card.config))
    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg)


def test_classes_are_those_of_the_first_data_set_that_has_so_many(tiny_config):
    shapes = ("disc", "square", "triangle", "star")
    assert build_model(tiny_config()).card.class_names == shapes
    assert build_model(tiny_config({CLASSES: 5})).card.class_names is None
    sets = {"DATASETS.TRAIN": "('unknown',)", "DATASETS.TEST": "('coco_2017_val', 'shapes_val')"}
    assert build_model(tiny_config(sets)).card.class_names == shapes
    assert len(build_model(tiny_config({**sets, CLASSES: 80})).card.class_names) == 80
    panoptic = tiny_config({"DATASETS.TRAIN": "('shapes_train_panoptic',)", CLASSES: 7})
    assert build_model(panoptic).card.class_names == (*shapes, "sky", "water", "grass")
    MetadataCatalog.remove("unknown")


def test_the_config_builds_the_plain_model(tiny_config):
    settings = {**TRAINING_QUERIES, "MODEL.DETR.DROPOUT": 0.25, "TEST.DETECTIONS_PER_IMAGE": 7}
    cfg = tiny_config({**settings, "INPUT.MIN_SIZE_TEST": 77, "MODEL.WEIGHTS": "a.pth", "OUTPUT_DIR": "/tmp/o"})
    card = build_model(cfg).card
    content = CfgNode.load_cfg(card.config)
    assert content.keys() == {"MODEL", "INPUT", "TEST", "VERSION"}
    assert content.INPUT.MIN_SIZE_TEST == 77
    assert not {"WEIGHTS", "DEVICE"} & content.MODEL.keys()
    model = from_card(card)
    assert model.training_queries is None
    assert model.transformer.decoder.layers[0].dropout.p == 0.25
    assert model.postprocessor.max_detections == 7
    assert model.state_dict().keys() == build_model(tiny_config()).state_dict().keys()


def test_a_panoptic_model_does_not_need_its_data_set():
    model = build_lively(PANOPTIC, {**TINY, "MODEL.DEVICE": "cpu", "MODEL.DETR.FREEZE_DETR": True})
    again = from_card(model.card)
    assert again.postprocessor.is_thing.tolist() == [True] * 4 + [False] * 3
    assert not again.freeze_detr
    again.load_state_dict(model.state_dict())
    assert assert_same(again.eval(), model, [(96, 128), (60, 40)]) > 0


@pytest.mark.parametrize("things", [-1, 5])
def test_more_things_than_classes_are_refused(things, tiny_config):
    with pytest.raises(InputError, match=rf"PANOPTIC\.THINGS is {things}: it must be from 0 to .*, 4"):
        build_model(tiny_config({"MODEL.DETR.PANOPTIC.THINGS": things}))


class OfAUser(Detr):
    """Its constructor names its own arguments, as it did before there were cards."""

    @configurable
    def __init__(self, *, backbone, in_feature, position_encoding, transformer, criterion, postprocessor, num_classes,
                 num_queries, deep_supervision, training_queries, mask_head, pyramid, freeze_detr, inference_dtype,
                 pixel_mean, pixel_std):  # fmt: skip
        super().__init__(
            backbone=backbone, in_feature=in_feature, position_encoding=position_encoding, transformer=transformer,
            criterion=criterion, postprocessor=postprocessor, num_classes=num_classes, num_queries=num_queries,
        )  # fmt: skip


class WithCfg(Detr):
    """Its constructor takes cfg itself."""

    def __init__(self, cfg):
        super().__init__(**self.from_config(cfg))


@pytest.mark.parametrize("cls", [OfAUser, WithCfg, Detr])
def test_subclasses_have_one_whatever_their_constructors_know(cls, tiny_config):
    cfg = tiny_config()
    for model in (cls(cfg), cls(cfg=cfg)):
        assert model.card.class_names == ("disc", "square", "triangle", "star")
        assert copy.deepcopy(model).card == model.card


def test_a_model_of_parts_has_the_card_that_it_is_given(tiny_config):
    parts = Detr.from_config(tiny_config())
    assert Detr(**parts).card == ModelCard()
    assert Detr(**parts, card=ModelCard(("a", "b", "c", "d"))).card.class_names == ("a", "b", "c", "d")


def test_the_threshold_of_the_config(tiny_config):
    assert build_model(tiny_config()).card.score_threshold is None
    assert build_model(tiny_config({"MODEL.DETR.INSTANCE_SCORE_THRESHOLD": 0.3})).card.score_threshold == 0.3
