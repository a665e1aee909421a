import pytest

from detr.engine.written_configs import keep_config, save_config


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.yaml").write_text("of the training")
    return tmp_path


def texts(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_config_of_a_training_survives_another_run(folder):
    with keep_config(str(folder), kept=True):
        (folder / "config.yaml").write_text("of an evaluation")
    assert texts(folder) == {"config.yaml": "of the training"}
    with keep_config(str(folder), kept=False):
        (folder / "config.yaml").write_text("of a new training")
    assert texts(folder) == {"config.yaml": "of a new training"}


def test_it_survives_a_run_that_fails(folder):
    def fail():
        with keep_config(str(folder), kept=True):
            (folder / "config.yaml").write_text("of an evaluation")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert texts(folder) == {"config.yaml": "of the training"}


def test_an_evaluation_alone_leaves_no_config_of_a_training(tmp_path):
    with keep_config(str(tmp_path), kept=True):
        (tmp_path / "config.yaml").write_text("of an evaluation")
    assert texts(tmp_path) == {}


def test_later_runs_write_their_own_where_it_differs(folder, tiny_config):
    cfg = tiny_config({"OUTPUT_DIR": folder})
    (folder / "config.yaml").write_text(cfg.dump())
    save_config(cfg, "resume")
    assert set(texts(folder)) == {"config.yaml"}  # the same settings
    longer = tiny_config({"OUTPUT_DIR": folder, "SOLVER.MAX_EPOCHS": 9})
    save_config(longer, "resume")
    save_config(longer, "resume")
    save_config(cfg, "resume")
    save_config(longer, "eval")
    found = texts(folder)
    assert set(found) == {"config.yaml", "config_resume_1.yaml", "config_resume_2.yaml", "config_eval.yaml"}
    assert found["config_resume_1.yaml"] == found["config_eval.yaml"] == longer.dump()
    assert found["config_resume_2.yaml"] == found["config.yaml"] == cfg.dump()
