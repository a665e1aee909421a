import pytest
from detectron2.data import DatasetCatalog

from detr.engine.registration import register_datasets
from detr.engine.trainer import Trainer
from detr.errors import InputError
from tests.conftest import SHORT


@pytest.mark.parametrize("entries", ["('mine',)", "((1, 'a.json'),)", "('mine', 'a.json', 'train', 'more')"])
def test_a_wrong_entry_is_told(entries, tiny_config):
    with pytest.raises(InputError, match=r"DATASETS.REGISTER has the entry .*: it must be \(name, path\)"):
        register_datasets(tiny_config({"DATASETS.REGISTER": entries}))


def test_a_config_names_its_own_data(tiny_config, shapes_root, registered):
    path = shapes_root / "shapes" / "annotations" / "instances_val.json"
    cfg = tiny_config({"DATASETS.REGISTER": f"(('named_in_config', '{path}'),)"})
    register_datasets(cfg)
    registered.append("named_in_config")
    assert len(DatasetCatalog.get("named_in_config")) == 16
    register_datasets(cfg)  # a second time, as in a script that trains and evaluates


def test_evaluation_and_training_register_what_a_script_has_set(tiny_config, shapes_root, registered, tmp_path):
    """Detectron2's ``default_setup`` knows nothing of the key."""
    path = shapes_root / "shapes" / "annotations" / "instances_val.json"
    cfg = tiny_config({**SHORT, "OUTPUT_DIR": str(tmp_path), "TEST.EVAL_EPOCHS": 0})
    cfg.DATASETS.REGISTER = (("set_in_python", str(path)),)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("set_in_python",), ()
    registered.append("set_in_python")
    Trainer(cfg).train()
    assert (tmp_path / "model_final.pth").is_file()
