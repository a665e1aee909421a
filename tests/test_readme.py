"""README.md and docs/: links, commands, config keys, names and snippets are what they claim to be."""

import ast
import contextlib
import importlib
import io
import json
import os
import re
import runpy
import shlex
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from omegaconf import OmegaConf
from PIL import Image

from detr.data.panoptic_mapper import DetrPanopticMapper
from detr.engine.defaults import load_config
from detr.errors import InputError
from detr.evaluation.evaluators import build_evaluator
from tests.conftest import ROOT
from tests.detectron2_tools import script as detectron2_script
from tests.source_tree import sources
from tools import analyze_model

PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
FOLDERS = {name: ROOT if name == "README.md" else ROOT / "docs" for name in PAGES}

CATEGORIES = [
    {"id": 1, "name": "cat", "isthing": 1},
    {"id": 2, "name": "dog", "isthing": 1},
    {"id": 7, "name": "sky", "isthing": 0},
]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Two images of 64 x 48: a cat on the left, a dog on the right, sky above; the files that the README names."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("images")
    os.mkdir("pngs")
    images, panoptic, instances = [], [], []
    for i in (1, 2):
        ids = np.full((48, 64), 300)
        ids[10:40, 5:25], ids[20:44, 40:60] = 100, 200
        rgb = np.stack([ids % 256, ids // 256, ids * 0], axis=-1).astype(np.uint8)
        Image.fromarray(rgb).save(f"images/{i}.jpg")
        Image.fromarray(rgb).save(f"pngs/{i}.png")
        images.append({"id": i, "file_name": f"{i}.jpg", "height": 48, "width": 64})
        segments = []
        for j, (segment, category) in enumerate(((100, 1), (200, 2), (300, 7))):
            rows, columns = np.nonzero(ids == segment)
            left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            box = [int(x) for x in (left, top, right - left, bottom - top)]
            common = {"category_id": category, "bbox": box, "area": len(rows), "iscrowd": 0}
            segments.append({"id": segment, **common})
            if category < 7:
                outline = [int(x) for x in (left, top, right, top, right, bottom, left, bottom)]
                instances.append({"id": 10 * i + j, "image_id": i, **common, "segmentation": [outline]})
        panoptic.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
    for name, annotations in (("mine.json", panoptic), ("mine_instances.json", instances)):
        (tmp_path / name).write_text(
            json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": CATEGORIES})
        )
    yield
    DatasetCatalog.remove("mine_panoptic")
    MetadataCatalog.remove("mine_panoptic")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """(page, command line) of all shell blocks, with continued lines joined."""
    return [
        (page, line)
        for page in PAGES
        for block in blocks(page, "bash")
        for line in block.replace("\\\n", " ").splitlines()
    ]


def test_the_readme_is_short():
    assert len(PAGES["README.md"].split()) < 1500


LINKS = [
    (page, link) for page, text in PAGES.items() for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link
]


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_linked_files_exist(page, link):
    assert (FOLDERS[page] / link).is_file()


def headings(path):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_linked_headings_exist():
    links = [(page, *x) for page, text in PAGES.items() for x in re.findall(r"\]\(((?!http)[^)#]*)#([^)]+)\)", text)]
    assert len(links) > 10
    assert [x for x in links if x[2] not in headings(FOLDERS[x[0]] / (x[1] or x[0].rpartition("/")[2]))] == []


PATHS = sorted({x for text in PAGES.values() for x in re.findall(r"`((?:detr|tools|tests|configs)/[\w/.-]+)`", text)})


@pytest.mark.parametrize("path", PATHS)
def test_named_files_exist(path):
    assert (ROOT / path).exists()


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = "\n".join(x for text in PAGES.values() for x in re.findall(r"`+[^`]+`+", text))
    assert sorted(set(re.findall(r"\bmake ([a-z][\w-]*)", code)) - targets) == []


def test_config_keys_exist():
    cfg = load_config("", [])
    unknown = set()
    for text in PAGES.values():
        for key in re.findall(r"\b(?:MODEL|SOLVER|TEST|INPUT|DATASETS|DATALOADER)(?:\.[A-Z][A-Z0-9_]*)+", text):
            node = cfg
            for part in key.split("."):
                node = node.get(part) if isinstance(node, CfgNode) else None
            if node is None:
                unknown.add(key)
    assert unknown == set()


NAMES = sorted({x for text in PAGES.values() for x in re.findall(r"(?<![\w.@/])detr(?:\.[A-Za-z_]\w*)+", text)})


@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_package_exist(name):
    found = importlib.import_module("detr")
    for part in name.split(".")[1:]:
        if not hasattr(found, part):
            importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)


def split_command(command: str) -> tuple[str, list[str]]:
    """The path of the script and its words; what `python -m detr.run` takes itself is left out."""
    launcher, *words = shlex.split(command)
    if launcher == "torchrun":
        words = words[words.index("train_net.py") :]
    if words[:2] == ["-m", "detr.run"]:
        words = words[4:] if words[2] == "--data" else words[2:]
    name = OF_THE_READER.get(words[0], words[0])
    path = detectron2_script(Path(name).stem) if name.startswith(".venv/detectron2-tools/") else ROOT / name
    return str(path), words[1:]


# Files that a page lets its reader make or bring along.
OF_THE_READER = {"train_mine.py": "train_net.py", "patches.py": "train_net.py"}


def options_of(script: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The options that its --help lists."""
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        runpy.run_path(script, run_name="__main__")
    return set(re.findall(r"(?<![\w-])--[\w-]+", printed.getvalue()))


@pytest.mark.parametrize(("page", "command"), [x for x in commands() if x[1].startswith(("python ", "torchrun "))])
def test_commands_name_options_and_keys_that_exist(page, command, monkeypatch):
    script, words = split_command(command)
    assert {x for x in words if x.startswith("--")} - options_of(script, monkeypatch) <= {"--"}
    config = words[words.index("--config-file") + 1] if "--config-file" in words else ""
    if config.endswith(".py"):
        lazy = LazyConfig.load(str(ROOT / config))
        assert [x for x in words if "=" in x and OmegaConf.select(lazy, x.partition("=")[0]) is None] == []
        return
    is_key = re.compile(r"[A-Z][A-Z0-9_]*([.][A-Z0-9_]+)*").fullmatch
    key = next((i for i, word in enumerate(words) if is_key(word.partition("=")[0])), len(words))
    load_config(str(ROOT / config) if config.startswith("configs/") else "", words[key:])  # raises where it is wrong


@pytest.mark.parametrize(
    "command",
    [
        "python train_net.py --config-file configs/COCO-Detection/detr_R_51.yaml",
        "python train_net.py MODEL.WEIGHT x",
        "python train_net.py --eval",
        "python -m detr.run .venv/detectron2-tools/visualize_data.py --sources annotation",
        "python .venv/detectron2-tools/lazyconfig_train_net.py --config-file configs/lazy/detr_R_50.py train.epochs=3",
    ],
)
def test_a_wrong_command_is_noticed(command, monkeypatch):
    with pytest.raises((AssertionError, InputError)):
        test_commands_name_options_and_keys_that_exist("", command, monkeypatch)


SNIPPETS = [(page, i) for page in PAGES for i in range(len(blocks(page, "python")))]


@pytest.mark.parametrize(("page", "index"), SNIPPETS)
def test_snippets_compile_and_import_what_exists(page, index):
    for node in ast.walk(ast.parse(blocks(page, "python")[index])):
        if isinstance(node, ast.Import):
            for name in node.names:
                importlib.import_module(name.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert [x.name for x in node.names if not hasattr(module, x.name)] == []


def test_the_snippets_on_extending_run(shapes_root, run_config, monkeypatch):
    monkeypatch.chdir(ROOT)
    first, *others = blocks("extending.md", "python")
    names = {"__name__": "docs"}
    exec(first, names)
    assert names["cfg"].SOLVER.MAX_ITER == 1000
    cfg = names["cfg"] = run_config()  # two iterations of a tiny model
    for snippet in others:
        exec(snippet, names)
    assert cfg.MODEL.META_ARCHITECTURE == "MyDetr"
    cfg.MODEL.META_ARCHITECTURE = "MyOtherDetr"
    assert isinstance(build_model(cfg).criterion, names["MyCriterion"])
    batch = next(iter(names["MyAugmentedTrainer"].build_train_loader(cfg)))
    assert all(x["image"].shape[1] >= 480 for x in batch)
    image = DatasetCatalog.get("shapes_train")[0]
    assert names["FourChannelMapper"](cfg, is_train=True)(image)["image"].shape[0] == 4


def test_the_snippets_on_detectron2_run(shapes_root, run_config, tmp_path, monkeypatch):
    config, loop, evaluator = blocks("detectron2.md", "python")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "docs"}
    load = "detr.engine.defaults.load_config"
    monkeypatch.setattr(load, lambda *_: run_config())  # two iterations of a tiny model
    exec(loop, names)
    assert all(torch.isfinite(x) for x in names["losses"].values())  # of the last step of the loop
    assert Path("mine.pth").exists()
    exec(evaluator, names)
    assert names["results"].keys() == {"bbox", "count"}
    monkeypatch.setattr("detr.register_any", lambda *_: None)
    monkeypatch.chdir(ROOT)
    (tmp_path / "mine.py").write_text(config)
    lazy = LazyConfig.load(str(tmp_path / "mine.py"))
    assert set(lazy) == {"dataloader", "model", "optimizer", "lr_multiplier", "train"}
    assert lazy.dataloader.evaluator.dataset_name == "mine_val"
    with torch.device("meta"):
        model = instantiate(lazy.model)
    assert (model.num_classes, len(model.transformer.decoder.layers)) == (3, 3)


def test_a_data_set_registered_as_the_page_says(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    names = {"__name__": "docs"}
    exec(blocks("own_data.md", "python")[0], names)
    try:
        assert MetadataCatalog.get("mine_train").json_file == "mine/train.json"
        assert MetadataCatalog.get("mine_val").evaluator_type == "coco"
        assert callable(names["main"])
    finally:
        for name in ("mine_train", "mine_val"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_a_panoptic_set_registered_as_the_page_says(mine):
    exec(blocks("panoptic.md", "python")[0], {})
    config = str(ROOT / "configs" / "COCO-PanopticSegmentation" / "detr_R_50.yaml")
    cfg = load_config(config, ["MODEL.DETR.NUM_CLASSES", "3", "INPUT.CROP.ENABLED", "False"])
    mapper = DetrPanopticMapper(cfg, is_train=True)
    dicts = DatasetCatalog.get("mine_panoptic")
    assert [mapper(x)["instances"].gt_classes.tolist() for x in dicts] == [[0, 1, 2], [0, 1, 2]]
    assert len(build_evaluator(cfg, "mine_panoptic")._evaluators) == 2  # AP and PQ


@pytest.mark.slow
def test_the_table_of_a_models_size_is_what_the_tool_prints(capsys):
    analyze_model.main(["--config-file", str(ROOT / "configs" / "COCO-Detection" / "detr_R_50.yaml")])
    assert textwrap.indent(capsys.readouterr().out, "    ") in PAGES["performance.md"]


def table_rows(page: str) -> list[list[str]]:
    return [line.strip("|").split("|") for line in PAGES[page].splitlines() if line.startswith("|")]


def code_spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_contributors_find_names_in_the_files_that_the_page_gives():
    lost, checked = [], 0
    for row in table_rows("contributing.md"):
        files = [name for name in code_spans(row[1]) if name.startswith("detr/")] if len(row) > 2 else []
        text = "".join((ROOT / name).read_text() for name in files)
        for name in code_spans(row[2]) if files else []:
            checked += 1
            lost += [] if re.search(rf"\b{name}\b", text) else [(files, name)]
    assert lost == []
    assert checked > 40


def test_the_tree_for_contributors_lists_every_module():
    listed = {code_spans(row[0])[0] for row in table_rows("contributing.md") if len(row) == 2 and code_spans(row[0])}
    modules = {path for path, text in sources().items() if not path.endswith("__init__.py") or len(text) > 1000}
    assert {x for x in listed if x.endswith(".py") and x not in scripts()} == modules - {"__init__.py"}
    assert scripts() <= listed


def scripts() -> set[str]:
    names = {*ROOT.glob("*.py"), *(ROOT / "tools").glob("*.py")} - {ROOT / "setup.py"}
    return {str(path.relative_to(ROOT)) for path in names}
