"""What the tests of several processes start: train_net.py, with a fault in one rank. FAULT is KIND:RANK:ITERATION."""

import detr  # noqa: F401  first: else importing Detectron2 warns of torch.jit

# isort: split
import os
import signal
import time

from detectron2.engine import HookBase
from detectron2.utils import comm

from detr.engine import Trainer, command, parse_and_launch
from detr.errors import InputError

KIND, RANK, ITERATION = os.environ.get("FAULT", "none:0:0").split(":")


class Fault(HookBase):
    def after_step(self):
        """Before other ranks are waited for."""
        if (self.trainer.iter, comm.get_rank()) == (int(ITERATION), int(RANK)):
            if KIND == "kill" and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
                os.kill(os.getpid(), signal.SIGKILL)
            if KIND == "raise":
                raise ZeroDivisionError("this rank alone fails")


class FaultyTrainer(Trainer):
    def build_hooks(self):
        return [Fault(), *super().build_hooks()]

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        """Before other ranks are waited for in an evaluation."""
        if KIND == "evaluation" and comm.get_rank() == int(RANK):
            raise ZeroDivisionError("this rank alone fails")
        return super().build_test_loader(cfg, dataset_name)


def main(args):
    if KIND == "input":
        raise InputError("what all ranks say")
    if comm.get_rank() == int(RANK):
        time.sleep(1)  # the faulty rank is late, so that the other ones check and lock the folder before it
    command.Trainer = FaultyTrainer
    return command.main(args)


if __name__ == "__main__":
    parse_and_launch(main, __doc__)
