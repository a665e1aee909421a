"""Keys set by files, on the command line and in Python: the later setting wins."""

import copy
import pickle

import pytest
from detectron2.config import CfgNode, get_cfg

from detr import add_detr_config
from detr.engine.defaults import load_config
from detr.engine.solver import schedule_in_iterations
from detr.errors import InputError
from tests.conftest import ROOT


def coco_config():
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / "COCO-Detection" / "detr_R_50.yaml"))
    return cfg


def settled(cfg, images=118287):
    cfg = schedule_in_iterations(cfg, images)
    return cfg.SOLVER.MAX_ITER, tuple(cfg.SOLVER.STEPS), cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD


EPOCH = 118287 // 16


def test_keys_set_in_python_win_over_the_files():
    cfg = coco_config()
    assert settled(cfg) == (300 * EPOCH, (200 * EPOCH,), 5 * EPOCH, 5 * EPOCH)
    cfg.SOLVER.MAX_ITER = 300
    cfg.SOLVER.STEPS = (200,)
    cfg.SOLVER.CHECKPOINT_PERIOD = 50
    cfg.TEST.EVAL_PERIOD = 100
    assert settled(cfg) == (300, (200,), 50, 100)
    cfg.SOLVER.MAX_EPOCHS = 2
    cfg.TEST.EVAL_EPOCHS = 1
    assert settled(cfg) == (2 * EPOCH, (200,), 50, EPOCH)


def test_whole_configs_are_merged_with_what_was_set_in_them():
    cfg, other = coco_config(), coco_config()
    other.SOLVER.MAX_ITER = 300
    cfg.merge_from_other_cfg(other)
    assert settled(cfg)[0] == 300
    cfg.SOLVER.update(MAX_EPOCHS=250)
    assert settled(cfg)[0] == 250 * EPOCH


@pytest.mark.parametrize(
    ("section", "key"), [("SOLVER", "MAX_ITER"), ("SOLVER", "CHECKPOINT_PERIOD"), ("TEST", "EVAL_PERIOD")]
)
def test_an_overruled_key_cannot_be_read(section, key):
    cfg = coco_config()
    with pytest.raises(InputError, match=f"{key} is not known, since the schedule is in epochs"):
        getattr(cfg[section], key)
    setattr(cfg[section], key, 7)
    assert getattr(cfg[section], key) == 7


def test_a_value_equal_to_the_default_counts_as_set():
    cfg = coco_config()
    cfg.SOLVER.MAX_ITER = get_cfg().SOLVER.MAX_ITER
    assert settled(cfg)[:2] == (40000, ())


def test_a_copy_remembers_what_was_set_last():
    cfg = coco_config()
    cfg.SOLVER.MAX_ITER = 300
    for copied in (cfg.clone(), copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg))):
        assert settled(copied)[0] == 300
        copied.SOLVER.MAX_EPOCHS = 250
        assert settled(copied)[0] == 250 * EPOCH
    assert settled(cfg)[0] == 300


@pytest.mark.parametrize("iterations", [None, 300])
def test_a_written_config_is_read_with_the_same_schedule(iterations, tmp_path):
    cfg = coco_config()
    if iterations:
        cfg.SOLVER.MAX_ITER = iterations
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert settled(load_config(str(tmp_path / "config.yaml"), [])) == settled(cfg)


def test_the_leaf_of_a_chain_of_files_wins(tmp_path):
    """Epochs in the base, iterations in the file between, epochs again in the leaf, and back."""
    for name, base, key in (("b", "a", "MAX_EPOCHS: 9"), ("c", "b", "MAX_ITER: 7"), ("d", "c", "MAX_EPOCHS: 5")):
        (tmp_path / f"{name}.yaml").write_text(f"_BASE_: {base}.yaml\nSOLVER: {{{key}}}\nVERSION: 2\n")
    (tmp_path / "a.yaml").write_text("SOLVER: {MAX_ITER: 3, IMS_PER_BATCH: 1}\nVERSION: 2\n")
    found = {name: settled(load_config(str(tmp_path / f"{name}.yaml"), []), images=10)[0] for name in "abcd"}
    assert found == {"a": 3, "b": 90, "c": 7, "d": 50}


def test_a_base_may_be_a_url(tmp_path, monkeypatch):
    """fvcore opens a base by Detectron2's path manager, which downloads; here the download is already in its cache."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    cached = tmp_path / "cache" / "configs" / "base.yaml"
    cached.parent.mkdir(parents=True)
    cached.write_text("SOLVER: {MAX_ITER: 7}\nVERSION: 2\n")
    (tmp_path / "leaf.yaml").write_text("_BASE_: https://example.com/configs/base.yaml\nVERSION: 2\n")
    assert load_config(str(tmp_path / "leaf.yaml"), []).SOLVER.MAX_ITER == 7


def test_other_plugins_keys_can_be_added_afterwards(tmp_path):
    cfg = coco_config()
    cfg.MODEL.OTHER = CfgNode({"KEY": 1})
    (tmp_path / "other.yaml").write_text("MODEL: {OTHER: {KEY: 2}}\nSOLVER: {MAX_ITER: 5}\nVERSION: 2\n")
    cfg.merge_from_file(str(tmp_path / "other.yaml"))
    cfg.merge_from_list(["MODEL.OTHER.KEY", "3"])
    assert (cfg.MODEL.OTHER.KEY, cfg.SOLVER.MAX_ITER) == (3, 5)
