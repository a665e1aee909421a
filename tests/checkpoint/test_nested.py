"""A subclass of ``Detr`` with a second DETR inside, such as a teacher or an average of itself."""

import copy
import logging
import re

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model

from detr import Detr
from detr.checkpoint import DetrCheckpointer
from detr.checkpoint.source import read
from detr.errors import InputError
from tests.checkpoint.test_resume import Loop, refused

ARCHITECTURE = "MODEL.META_ARCHITECTURE"


@META_ARCH_REGISTRY.register()
class DetrWithTeacher(Detr):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher = copy.deepcopy(self).requires_grad_(False)


@META_ARCH_REGISTRY.register()
class DetrWithAverage(Detr):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.ema = copy.deepcopy(self).requires_grad_(False)


@META_ARCH_REGISTRY.register()
class DetrWithTeacherAndOtherNames(DetrWithTeacher):
    """Only the teacher has the names of a DETR."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.head = self.class_embed
        del self.class_embed


ALL = ["DetrWithTeacher", "DetrWithAverage", "DetrWithTeacherAndOtherNames"]


def build(cfg):
    """A model whose queries are all 0, and those of the DETR inside 1."""
    model = build_model(cfg)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("query_embed.weight"):
                value.fill_(0 if name == "query_embed.weight" else 1)
    return model


def equal(model, state):
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(value, state[key]) for key, value in own.items())


@pytest.fixture
def saved(tiny_config, tmp_path):
    """saved("DetrWithTeacher"): the path of such a model's checkpoint, and the model."""

    def make(name):
        model = build(tiny_config({ARCHITECTURE: name}))
        DetrCheckpointer(model, str(tmp_path)).save("nested")
        return str(tmp_path / "nested.pth"), model

    return make


@pytest.mark.parametrize("name", ALL)
def test_it_loads_its_own_checkpoint_whole(name, saved, tiny_config):
    path, model = saved(name)
    fresh = build_model(tiny_config({ARCHITECTURE: name}))
    checkpointer = DetrCheckpointer(fresh)
    checkpointer.load(path)
    assert checkpointer.reinitialized == []
    assert equal(fresh, model.state_dict())


@pytest.mark.parametrize("name", ["DetrWithTeacher", "DetrWithAverage"])
def test_it_resumes(name, run_config):
    cfg = run_config({ARCHITECTURE: name})
    loop, again = Loop(cfg), Loop(cfg)
    loop.step()
    loop.checkpointer.save("model_0000000", iteration=1)
    assert again.resume()["iteration"] == 1
    assert equal(again.model, loop.model.state_dict())
    again.step()
    refused(Loop(run_config({ARCHITECTURE: name, "MODEL.DETR.ENC_LAYERS": 2})), "ENC_LAYERS is 2 here and 1 in the ch")
    refused(Loop(run_config()), r"this model does not have \w+\.backbone\.stem\.conv1\.weight and \d+ more tensors")


def test_a_plain_model_takes_the_outer_one(saved, tiny_config, caplog):
    caplog.set_level(logging.INFO)
    path, _ = saved("DetrWithTeacher")
    model = build_model(tiny_config())
    checkpointer = DetrCheckpointer(model)
    for options, value in (("", 0), ("?weights=teacher", 1), ("?weights=model", 0), ("?weights=model.teacher", 1)):
        checkpointer.load(path + options)
        assert checkpointer.reinitialized == []
        assert (model.query_embed.weight == value).all()
    assert (
        "the file holds model, model.teacher: model is taken, no average; ?weights=model.teacher behind the path"
    ) in caplog.text
    with pytest.raises(InputError, match=r"has no weights 'pupil': it holds model, model\.teacher; name one of these"):
        checkpointer.load(f"{path}?weights=pupil")


def test_a_plain_model_takes_the_average_inside(saved, tiny_config):
    path, _ = saved("DetrWithAverage")
    assert (read(path).state["query_embed.weight"] == 1).all()
    assert (read(path, weights="model").state["query_embed.weight"] == 0).all()


def test_the_one_inside_may_be_chosen_for_the_outer_one(saved, tiny_config):
    path, _ = saved("DetrWithTeacher")
    model = build(tiny_config({ARCHITECTURE: "DetrWithTeacher"}))
    checkpointer = DetrCheckpointer(model)
    checkpointer.load(f"{path}?weights=teacher")
    assert (model.query_embed.weight == 1).all()
    assert [re.split(":| is ", line)[0] for line in checkpointer.reinitialized] == ["teacher"]


def test_for_other_classes_the_outer_one_is_taken(saved, tiny_config):
    path, _ = saved("DetrWithTeacher")
    model = build(tiny_config({ARCHITECTURE: "DetrWithTeacher", "MODEL.DETR.NUM_CLASSES": 2}))
    checkpointer = DetrCheckpointer(model)
    checkpointer.load(path)
    assert [re.split(":| is ", line)[0] for line in checkpointer.reinitialized] == ["class_embed", "teacher"]


def test_an_average_of_the_whole_is_taken_whole(saved, tiny_config, tmp_path):
    _, model = saved("DetrWithTeacher")
    average = {key: value + 1 if value.is_floating_point() else value for key, value in model.state_dict().items()}
    torch.save({"model": model.state_dict(), "model_ema": average}, tmp_path / "both.pth")
    fresh = build_model(tiny_config({ARCHITECTURE: "DetrWithTeacher"}))
    for options, expected in (("", average), ("?weights=ema", average), ("?weights=model", model.state_dict())):
        DetrCheckpointer(fresh).load(f"{tmp_path}/both.pth{options}")
        assert equal(fresh, expected)
