"""Runs a script that knows nothing of DETR with its configs: python -m detr.run SCRIPT [ARGUMENT ...].

Detectron2's own scripts make their config with ``get_cfg``, and build optimizer and data from it. What is changed for
them, in this process alone, is in ``detr.engine.foreign_scripts``. The script itself stays as it is.
"""

import argparse
import json
import os
import sys
from types import CodeType

from detr.engine.defaults import load_config
from detr.engine.foreign_scripts import serve_scripts
from detr.engine.registration import register_datasets
from detr.errors import InputError, OneLineParser, exit_with_one_line

RUN = "DETR_RUN"  # hands script and data on to the ranks that a training spawns: two strings, as JSON


def prepare(arguments: list[str]) -> None:
    """Takes the launcher's own options out of the command line; ``sys.argv`` is then the script's.

    arguments: without the name of the program
    """
    parser = OneLineParser(
        prog="python -m detr.run",
        description="Runs a script of Detectron2's, or one of your own, with the configs of DETR.",
    )
    parser.add_argument("--data", metavar="CONFIG", help="a config whose DATASETS.REGISTER names data sets to register")
    parser.add_argument("script", metavar="SCRIPT", help="such as detectron2/tools/visualize_data.py")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="those of the script")
    options = parser.parse_args(arguments)
    os.environ[RUN] = json.dumps([options.script, options.data or ""])
    sys.argv = [options.script, *options.arguments]


def load_script(path: str, data: str = "") -> CodeType:
    """The script, ready to be executed, and everything that it needs.

    data: a config whose data sets are registered; "" for none

    Raises InputError where there is no script, and for bad data sets.
    """
    if not os.path.isfile(path):
        raise InputError(f"there is no script {path}: name a file, such as detectron2/tools/visualize_data.py")
    serve_scripts()
    if data:
        register_datasets(load_config(data, []))
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))  # as Python does it
    with open(path, "rb") as file:
        return compile(file.read(), path, "exec", dont_inherit=True)


# A rank that Detectron2's `launch` spawns imports this file again, as `__mp_main__`, and looks for the script's
# functions in it. So the script's names are those of this module.
if __name__ in ("__main__", "__mp_main__"):
    with exit_with_one_line():
        if __name__ == "__main__":
            prepare(sys.argv[1:])
        __file__, _data = json.loads(os.environ[RUN])
        exec(load_script(__file__, _data), globals())
