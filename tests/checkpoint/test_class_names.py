"""Class names travel with the weights: written into checkpoints, read without a model, and what they do on loading."""

import json
import logging
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from torch import nn
from torch.optim.swa_utils import AveragedModel

from detr.checkpoint import DetrCheckpointer, read_card
from detr.checkpoint.class_rows import LABEL_KEY, coco_names
from detr.checkpoint.formats import to_detectron2
from detr.convert.conversion import Request, convert
from detr.errors import InputError
from detr.export import export
from detr.modeling.card import ModelCard
from tests.checkpoint.samples import small_original
from tests.checkpoint.test_checkpointer import small_config
from tests.checkpoint.test_nested import DetrWithTeacher
from tests.checkpoint.test_resume import Loop, changed
from tests.conftest import QUICKSTART, TINY, TRAINING_QUERIES
from tests.lively import build_lively, raw_outputs

SHAPES = ("disc", "square", "triangle", "star")
CLASSES = "MODEL.DETR.NUM_CLASSES"
HEAD = ("class_embed.weight", "class_embed.bias")


@pytest.fixture
def named(registered):
    """named(names): settings of a config whose data set has these classes."""

    def make(names):
        name = f"named_{len(registered)}"
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(thing_classes=list(names))
        registered.append(name)
        sets = {"DATASETS.TRAIN": f"('{name}',)", "DATASETS.TEST": f"('{name}',)"}
        return {**sets, CLASSES: len(names)}

    return make


@pytest.fixture
def trained(tmp_path):
    """trained(settings): a lively model of the shapes, and the path of its checkpoint."""

    def make(settings=None, **content):
        model = build_lively(QUICKSTART, {**TINY, **(settings or {})})
        DetrCheckpointer(model, str(tmp_path)).save("model", **content)
        return model, str(tmp_path / "model.pth")

    return make


def load(cfg, path, caplog):
    """The model with these weights and its checkpointer; ``caplog`` has the lines of this load alone."""
    torch.manual_seed(1)
    model = build_model(cfg)
    caplog.clear()
    caplog.set_level(logging.INFO)
    checkpointer = DetrCheckpointer(model)
    checkpointer.load(path)
    return model, checkpointer


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]


def fresh_state(cfg):
    torch.manual_seed(1)
    return {key: value.clone() for key, value in build_model(cfg).state_dict().items()}


def test_a_checkpoint_records_the_card(trained):
    model, path = trained()
    assert read_card(path) == model.card
    assert torch.load(path, weights_only=True)["detr"]["classes"] == list(SHAPES)
    model.card = replace(model.card, score_threshold=0.4)
    DetrCheckpointer(model, str(path.rpartition("/")[0])).save("model")
    assert read_card(path).score_threshold == 0.4


def test_the_same_classes_load_without_a_word(trained, tiny_config, named, caplog):
    model, path = trained()
    again, checkpointer = load(tiny_config(named(["Disc", "square", "tri_angle", "star"])), path, caplog)
    assert warnings_in(caplog) == checkpointer.reinitialized == []
    assert all(x.equal(y) for x, y in zip(raw_outputs(again), raw_outputs(model), strict=True))
    assert again.card.class_names[0] == "Disc"  # the data set's


@pytest.mark.parametrize("settings", [{}, TRAINING_QUERIES], ids=["plain", "training"])
def test_rows_of_shared_names_are_kept(settings, trained, tiny_config, named, caplog):
    model, path = trained(settings)
    cfg = tiny_config({**settings, **named(["hexagon", "star", "disc"])})
    again, checkpointer = load(cfg, path, caplog)
    (line,) = checkpointer.reinitialized
    assert line == (
        "class_embed: 5 rows in the weights, 4 wanted: kept are no-object and 2 classes of the same name (star, disc); "
        "re-initialized: 1 class (hexagon)"
    )
    assert warnings_in(caplog) == [line]
    state, saved, fresh = again.state_dict(), model.state_dict(), fresh_state(cfg)
    for key in HEAD:
        assert torch.equal(state[key][[1, 2, 3]], saved[key][[3, 0, 4]])
        assert torch.equal(state[key][0], fresh[key][0])
    if settings:
        assert torch.equal(state[LABEL_KEY][[1, 2]], saved[LABEL_KEY][[3, 0]])
        assert torch.equal(state[LABEL_KEY][0], fresh[LABEL_KEY][0])
    count = len([key for key in state if not key.startswith("training_queries") and "num_batches" not in key])
    assert f"loaded {count - 2} of the model's {count} tensors" in caplog.text


def test_a_part_of_the_classes_is_a_whole_model(trained, tiny_config, named, caplog):
    """Which --eval-only takes: no row is re-initialized."""
    model, path = trained()
    again, checkpointer = load(tiny_config(named(["star", "disc"])), path, caplog)
    assert checkpointer.reinitialized == warnings_in(caplog) == []
    assert "kept are no-object and 2 classes of the same name (star, disc)" in caplog.text
    torch.testing.assert_close(raw_outputs(again)[0], raw_outputs(model)[0][..., [3, 0, 4]])


@pytest.mark.parametrize("settings", [{}, TRAINING_QUERIES], ids=["plain", "training"])
def test_another_order_moves_rows(settings, trained, tiny_config, named, caplog):
    model, path = trained(settings)
    again, checkpointer = load(tiny_config({**settings, **named(SHAPES[::-1])}), path, caplog)
    (line,) = warnings_in(caplog)
    assert "star from 3 to 0, triangle from 2 to 1, square from 1 to 2, disc from 0 to 3" in line
    assert checkpointer.reinitialized == []
    torch.testing.assert_close(raw_outputs(again)[0], raw_outputs(model)[0][..., [3, 2, 1, 0, 4]])
    if settings:
        assert torch.equal(again.state_dict()[LABEL_KEY], model.state_dict()[LABEL_KEY].flip(0))


def test_another_name_is_warned_of(trained, tiny_config, named, caplog):
    model, path = trained()
    again, checkpointer = load(tiny_config(named(["disc", "hexagon", "triangle", "star"])), path, caplog)
    (line,) = warnings_in(caplog)
    assert "hexagon has that of square; that suits a fine-tuning on similar classes, and is a mistake" in line
    assert checkpointer.reinitialized == []
    assert torch.equal(raw_outputs(again)[0], raw_outputs(model)[0])


def test_unknown_names_become_those_of_the_weights(trained, tiny_config, named, caplog):
    model, path = trained()
    nameless = {"DATASETS.TRAIN": "()", "DATASETS.TEST": "()"}
    again, _ = load(tiny_config(nameless), path, caplog)
    assert again.card.class_names == SHAPES
    assert torch.equal(raw_outputs(again)[0], raw_outputs(model)[0])
    other, checkpointer = load(tiny_config({**nameless, CLASSES: 3}), path, caplog)
    assert other.card.class_names is None
    assert checkpointer.reinitialized == [
        "class_embed: 5 rows in the weights, 4 wanted: no-object is kept, the others are re-initialized"
    ]


def test_names_that_are_known_after_the_model_is_built(trained, tiny_config, named, tmp_path, caplog):
    """Detectron2 reads the classes of a COCO file when it loads the data."""
    _, path = trained()
    settings = named(["a", "b", "c", "d"])
    metadata = MetadataCatalog.get(settings["DATASETS.TRAIN"].split("'")[1])
    del metadata.thing_classes
    model, _ = load(tiny_config(settings), path, caplog)
    assert warnings_in(caplog) == []
    assert model.card.class_names == SHAPES
    metadata.thing_classes = ["a", "b", "c", "d"]
    assert model.card.class_names == ("a", "b", "c", "d")
    DetrCheckpointer(model, str(tmp_path)).save("trained")
    assert read_card(str(tmp_path / "trained.pth")).class_names == ("a", "b", "c", "d")


def test_a_second_load_forgets_the_names_of_the_first(trained, tiny_config, tmp_path, caplog):
    model, path = trained()
    again, checkpointer = load(tiny_config({"DATASETS.TRAIN": "()", "DATASETS.TEST": "()"}), path, caplog)
    model.card = replace(model.card, class_names=SHAPES[::-1])
    DetrCheckpointer(model, str(tmp_path)).save("other")
    checkpointer.load(str(tmp_path / "other.pth"))
    assert again.card.class_names == SHAPES[::-1]
    assert torch.equal(again.class_embed.bias, model.class_embed.bias)
    assert warnings_in(caplog) == []


def test_a_file_without_names_loads_by_number(trained, tiny_config, named, caplog):
    model, path = trained()
    changed(path, lambda content: content.update(detr={"dilation": False, "heads": 4}))
    assert read_card(path) is None
    again, _ = load(tiny_config(named(SHAPES[::-1])), path, caplog)
    assert warnings_in(caplog) == []
    assert torch.equal(raw_outputs(again)[0], raw_outputs(model)[0])


@pytest.mark.parametrize("note", [{"classes": 3}, {"classes": [1, 2, 3, 4]}, {"classes": ["a"]}, "text", {}])
def test_an_odd_note_counts_as_none(note, trained, tiny_config, caplog):
    _, path = trained()
    changed(path, lambda content: content.update(detr=note))
    load(tiny_config(), path, caplog)
    assert warnings_in(caplog) == []


def test_resume_refuses_other_classes(run_config, named):
    loop = Loop(run_config())
    loop.step()
    loop.checkpointer.save("model", iteration=1)
    before = loop.checkpointer.get_checkpoint_file()
    again = Loop(run_config(named(["disc", "hexagon", "triangle", "star"])))
    with pytest.raises(
        InputError, match=r"its classes have .*: class 1 is 'hexagon' here and 'square' in the check"
    ) as e:
        again.resume()
    assert f"start anew from its weights: without --resume, with MODEL.WEIGHTS {before}" in str(e.value)
    assert Loop(run_config(named(["disc", "Square", "triangle", "star"]))).resume()["iteration"] == 1
    changed(before, lambda content: content["detr"].pop("classes"))  # of an earlier version
    assert Loop(run_config(named(SHAPES[::-1]))).resume()["iteration"] == 1


def test_a_wrapped_head_keeps_rows_by_name(trained, tiny_config, named, caplog):
    saved, path = trained()
    model = build_model(tiny_config(named(SHAPES[::-1])))
    model.class_embed = nn.Sequential(OrderedDict(_orig_mod=model.class_embed))  # as torch.compile names it
    DetrCheckpointer(model).load(path)
    found = model.state_dict()["class_embed._orig_mod.bias"]
    assert torch.equal(found, saved.class_embed.bias[[3, 2, 1, 0, 4]])


def test_an_average_has_the_classes_of_its_file(trained, tiny_config, named, tmp_path, caplog):
    model, path = trained()
    average = AveragedModel(model)
    with torch.no_grad():
        average.module.class_embed.bias.add_(1)
    changed(path, lambda content: content.update(ema_state=average.state_dict()))
    again, _ = load(tiny_config(named(SHAPES[::-1])), path, caplog)
    assert torch.equal(again.class_embed.bias, average.module.class_embed.bias[[3, 2, 1, 0, 4]])
    assert read_card(path).class_names == SHAPES


def test_rows_of_a_teacher_inside_follow(tiny_config, named, tmp_path, caplog):
    architecture = {"MODEL.META_ARCHITECTURE": DetrWithTeacher.__name__}
    model = build_model(tiny_config(architecture))
    with torch.no_grad():
        model.teacher.class_embed.bias.add_(1)
    DetrCheckpointer(model, str(tmp_path)).save("model")
    assert read_card(str(tmp_path / "model.pth")).class_names == SHAPES
    again, _ = load(tiny_config({**architecture, **named(SHAPES[::-1])}), str(tmp_path / "model.pth"), caplog)
    for found, saved in ((again, model), (again.teacher, model.teacher)):
        assert torch.equal(found.class_embed.bias, saved.class_embed.bias[[3, 2, 1, 0, 4]])
    export(tiny_config({**architecture, "MODEL.WEIGHTS": tmp_path / "model.pth"}), str(tmp_path / "out"), "torchscript")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """COCO's 80 classes in the formats of the authors' code and of transformers."""
    folder = tmp_path_factory.mktemp("released")
    state = small_original()
    torch.save({"model": state}, folder / "original.pth")
    convert(Request(str(folder / "original.pth"), str(folder / "transformers"), to="transformers"))
    convert(Request(str(folder / "original.pth"), str(folder / "detectron2.pth")))
    return folder, state


@pytest.mark.parametrize("name", ["original.pth", "transformers", "detectron2.pth"])
def test_released_formats_have_cocos_names(name, released, named, caplog):
    folder, state = released
    path = str(folder / name)
    assert read_card(path) == ModelCard(coco_names(80))
    settings = {key.replace(".", "__"): value for key, value in named(["Car", "hexagon", "person"]).items()}
    model, checkpointer = load(small_config(**settings), path, caplog)
    assert (
        "2 classes of the same name (Car, person); re-initialized: 1 class (hexagon)" in checkpointer.reinitialized[0]
    )
    # In the authors' head the rows are COCO's ids: 1 is a person, 3 a car, 91 no-object.
    assert torch.equal(model.class_embed.bias[[0, 2, 3]], state["class_embed.bias"][[3, 1, 91]])


@pytest.fixture(scope="module")
def three(released, tmp_path_factory):
    """The path of a file with three classes of its own, in Detectron2's format."""
    state = torch.load(released[0] / "detectron2.pth", weights_only=True)["model"]
    three = state | {key: state[key][[0, 1, 2, 80]] for key in HEAD}
    path = tmp_path_factory.mktemp("three") / "three.pth"
    note = {"classes": ["ant", "bee", "cat"], "config": "VERSION: 2\n", "score_threshold": 0.3}
    torch.save({"model": three, "detr": note}, path)
    return str(path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ModelCard(("ant", "bee", "cat"), "VERSION: 2\n", 0.3)),
        ({"to": "original"}, ModelCard(("ant", "bee", "cat"), "VERSION: 2\n", 0.3)),
        ({"num_queries": 7}, ModelCard(("ant", "bee", "cat"), "", 0.3)),  # another config
        ({"num_classes": 2}, ModelCard(None, "", 0.3)),
    ],
    ids=["detectron2", "original", "queries", "classes"],
)
def test_the_converter_keeps_names_where_the_classes_are_the_same(options, expected, three, tmp_path):
    convert(Request(three, str(tmp_path / "converted.pth"), **options))
    assert read_card(str(tmp_path / "converted.pth")) == expected


def test_own_names_of_a_transformers_folder(three, tmp_path):
    convert(Request(three, str(tmp_path / "hf"), to="transformers"))
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["id2label"] == {"0": "ant", "1": "bee", "2": "cat"}
    assert read_card(str(tmp_path / "hf")) == ModelCard(("ant", "bee", "cat"))
    convert(Request(str(tmp_path / "hf"), str(tmp_path / "back.pth")))
    assert read_card(str(tmp_path / "back.pth")) == ModelCard(("ant", "bee", "cat"))


def test_cards_without_a_file_of_a_detr(tmp_path, monkeypatch):
    assert read_card("detr://detr_R_50") == ModelCard(coco_names(80))
    assert read_card("detr://detr_R_101_panoptic?weights=model").class_names == coco_names(133)
    with pytest.raises(InputError, match="did you mean"):
        read_card("detr://detr_R_5")
    with pytest.raises(InputError, match="there is no file or folder"):
        read_card(str(tmp_path / "missing.pth"))
    state = to_detectron2(small_original()).state
    torch.save({key: value for key, value in state.items() if key.startswith("backbone")}, tmp_path / "backbone.pth")
    assert read_card(str(tmp_path / "backbone.pth")) is None
    torch.save({"model": state}, tmp_path / "nameless.pth")  # 80 classes that may be anyone's
    assert read_card(str(tmp_path / "nameless.pth")) is None
