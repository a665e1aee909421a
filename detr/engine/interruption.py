"""Ctrl-C and SIGTERM during a training: the step is finished, the state saved, and the process ends with a status."""

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from detectron2.checkpoint import Checkpointer
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from detr.checkpoint.files import damage

logger = logging.getLogger(__name__)

# Ctrl-C in a terminal reaches a rank twice, from the terminal and from the process that has started the ranks.
REPEAT = 1.0  # seconds within which a second SIGINT is the same one


class StoppedTraining(SystemExit):
    """A signal has ended the training. As SystemExit it ends a process silently, with status 128 + signal.

    That is 130 after SIGINT and 143 after SIGTERM, as a shell has it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class StopSignals:
    """While it is entered, SIGINT and SIGTERM do not end the process but ask the training to stop.

    Inside ``interruptible`` they raise StoppedTraining at once. A second SIGINT ends the process. Outside the main
    thread, which alone may handle signals, nothing changes. The earlier handlers come back at the end.

    On leaving it after a stop, the main process prints one line.
    """

    def __init__(self) -> None:
        self.requested = 0  # the signal
        self.saved = ""  # what was saved for it, or is there anyway
        self.in_evaluation = False  # it has come while all steps so far were done
        self._is_interruptible = False
        self._first_interrupt = 0.0
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self.requested, self.saved, self.in_evaluation = 0, "", False
        self._first_interrupt = 0.0
        if threading.current_thread() is threading.main_thread():
            _shield_workers()
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._earlier[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for signum, handler in self._earlier.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._earlier.clear()
        if self.requested and isinstance(error, Exception) and is_lost_connection(error):
            # Another rank has got the signal as well, and is gone; or torchrun ends this one after another's failure.
            if self.in_evaluation:
                self._report()
            raise StoppedTraining(self.requested) from None
        if isinstance(error, StoppedTraining):
            self._report()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, nothing is lost by an end at once: an evaluation, before which a checkpoint was written.

        Raises StoppedTraining.
        """
        self._is_interruptible = True
        try:
            if self.requested:
                raise StoppedTraining(self.requested)
            yield
        except BaseException:
            self.in_evaluation = bool(self.requested)
            raise
        finally:
            self._is_interruptible = False

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if signum == signal.SIGINT:
            self._first_interrupt = self._first_interrupt or now
            if now - self._first_interrupt > REPEAT:
                _write("interrupted again: this ends at once, without saving")
                os._exit(128 + signum)
        if self.requested:
            return
        self.requested = signum
        if self._is_interruptible:
            raise StoppedTraining(signum)
        again = "; Ctrl-C again ends at once" if signum == signal.SIGINT else ""
        _write(f"{signal.Signals(signum).name}: finishing the step, then saving{again}")

    def _report(self) -> None:
        name = signal.Signals(self.requested).name
        what = f"{self.saved} is saved" if self.saved else "nothing was to be saved"
        text = f"stopped by {name}: {what}; the same command with --resume goes on"
        logger.info(text)
        if comm.is_main_process():
            print(text, file=sys.stderr, flush=True)


class StopOnSignal(HookBase):
    """Stops after the step in which a rank has got a signal: saves as PeriodicCheckpointer does, and evaluates nothing.

    All ranks stop in the same step. It comes after the hook that saves, and before those that evaluate.
    """

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals
        self._group: Any = None

    def before_train(self) -> None:
        if comm.get_world_size() > 1 and dist.get_backend() == "nccl":
            self._group = dist.new_group(backend="gloo")  # the agreement must not wait for the GPU

    def after_step(self) -> None:
        """Raises StoppedTraining."""
        self.signals.requested = signum = self._agree(self.signals.requested)
        if not signum:
            return
        self._save()
        comm.all_gather(None)  # a rank that ends has the others ended: not while the main process saves
        raise StoppedTraining(signum)

    def after_train(self) -> None:
        if self.signals.in_evaluation:
            self._save()  # of other models than a Detr, no checkpoint is written before every evaluation
        elif self.trainer.iter == self.trainer.max_iter and (periodic := self._periodic()) is not None:
            self.signals.saved = _last_saved(periodic.checkpointer)  # for the last evaluation, which follows

    def _agree(self, signum: int) -> int:
        if comm.get_world_size() == 1:
            return signum
        highest = torch.tensor(signum)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=self._group)
        return int(highest)

    def _periodic(self) -> hooks.PeriodicCheckpointer | None:
        """The hook that saves; the main process has one."""
        return next((x for x in self.trainer._hooks if isinstance(x, hooks.PeriodicCheckpointer)), None)

    def _save(self) -> None:
        if (periodic := self._periodic()) is None:
            return
        iteration, prefix = self.trainer.iter, periodic.file_prefix
        name = f"{prefix}_final.pth" if iteration + 1 >= self.trainer.max_iter else f"{prefix}_{iteration:07d}.pth"
        last = _last_saved(periodic.checkpointer)
        # One of that name may also be what a training that went on from an earlier checkpoint has skipped as damaged.
        if os.path.basename(last) != name or damage(last):
            period, periodic.period = periodic.period, 1
            periodic.step(iteration)
            periodic.period = period
        self.signals.saved = _last_saved(periodic.checkpointer)


def _last_saved(checkpointer: Checkpointer) -> str:
    """The path in ``last_checkpoint``, "" where there is none."""
    path = os.path.join(checkpointer.save_dir, "last_checkpoint")
    if not checkpointer.path_manager.isfile(path):
        return ""
    with checkpointer.path_manager.open(path) as file:
        return os.path.join(checkpointer.save_dir, file.read().strip())


@functools.cache
def _shield_workers() -> None:
    """Data loaders' workers, which are forked, get the terminal's Ctrl-C too, and SIGTERM from Slurm and torchrun.

    They work on, since the step needs their images, and end where their loader tells them to.
    """
    signals = (signal.SIGINT, signal.SIGTERM)

    def shield() -> None:
        if isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), StopSignals):  # a training runs
            signal.pthread_sigmask(signal.SIG_BLOCK, signals)
            # Not by handlers of Python's: torch sets one in C, which obeys whoever sends a SIGTERM.
            threading.Thread(target=obey, args=(os.getppid(),), daemon=True).start()

    def obey(loader: int) -> None:
        while True:
            received = signal.sigwaitinfo(signals)
            if received.si_signo == signal.SIGTERM and received.si_pid == loader:
                os._exit(0)

    os.register_at_fork(after_in_child=shield)


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error says no more than that another rank is gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def _write(text: str) -> None:
    """On stderr of the main process; safe in a signal handler, where ``print`` may be in the middle of a print."""
    if comm.is_main_process():
        with contextlib.suppress(OSError):
            os.write(2, f"\n{text}\n".encode())
