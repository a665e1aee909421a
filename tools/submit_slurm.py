#!/usr/bin/env python3
"""Submits a training to Slurm, and again whenever it is preempted or its time is over, until it is done.

python tools/submit_slurm.py --partition gpu --nodes 2 --processes 8 --hours 24 -- \
    --config-file configs/COCO-Detection/detr_R_50.yaml OUTPUT_DIR output/detr
python tools/submit_slurm.py --cluster local --processes 2 -- --config-file CFG OUTPUT_DIR output/try

What is behind -- goes to train_net.py. A new training needs an OUTPUT_DIR without checkpoints; --resume goes on.
"""

import detr  # noqa: F401  first: else importing Detectron2 warns of torch.jit

# isort: split
import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.engine import default_argument_parser

from detr.engine.defaults import check_output_folder, load_config
from detr.errors import InputError, OneLineParser, exit_with_one_line

ROOT = Path(__file__).resolve().parents[1]
REQUEUES = 1000  # after the end of --hours; submitit gives up after 3 by default
SAVING = 120  # seconds before its end in which a job is warned


class Training:
    """A job on one node: torchrun with the processes of this node, which meet those of the other nodes.

    It always runs with --resume: whoever starts the job again, and why, the training goes on from its last checkpoint.
    """

    def __init__(self, arguments: list[str], nodes: int, processes: int) -> None:
        """arguments: of train_net.py; processes: of a node"""
        self.arguments = arguments
        self.nodes, self.processes = nodes, processes
        self.torchrun: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Raises RuntimeError where the training fails."""
        from submitit import JobEnvironment

        job = JobEnvironment()
        meeting = ["--standalone"]
        if self.nodes > 1:
            number = int(job.job_id.split("_")[0])
            port = 20000 + number % 20000  # two jobs may share a node
            meeting = [
                "--nnodes", str(self.nodes), "--rdzv_backend", "c10d", "--rdzv_id", str(number),
                "--rdzv_endpoint", f"{job.hostnames[0]}:{port}",
            ]  # fmt: skip
        command = [sys.executable, "-m", "torch.distributed.run", *meeting, "--nproc_per_node", str(self.processes)]
        command += ["--shutdown_timeout", str(SAVING), str(ROOT / "train_net.py"), "--resume", *self.arguments]
        print(shlex.join(command), flush=True)
        # Slurm sends its warning to all processes, and it would end those of torch.
        warning = getattr(signal, f"SIG{job.USR_SIG}")
        self.torchrun = subprocess.Popen(command, preexec_fn=partial(signal.signal, warning, signal.SIG_IGN))
        try:
            while self.torchrun.poll() is None:  # and not wait(), whose lock `checkpoint` could not get
                time.sleep(0.5)
        finally:
            self.stop()
        if self.torchrun.returncode == 0:
            return
        if job.global_rank > 0:
            time.sleep(SAVING)  # the first node decides whether the job fails, or was stopped and starts again
        raise RuntimeError(f"the training has ended with status {self.torchrun.returncode}, see above")

    def stop(self) -> None:
        """Lets all processes, those of other nodes too, finish the step and save."""
        process = self.torchrun
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    def checkpoint(self) -> Any:
        """What submitit calls before the job ends, and runs in its next life."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(Training(self.arguments, self.nodes, self.processes))


def main() -> None:
    args = parse_args()
    train = default_argument_parser().parse_args(args.arguments)
    folder = load_config(train.config_file, train.opts).OUTPUT_DIR
    if train.eval_only:
        raise InputError("--eval-only: an evaluation has nothing to go on with; start it with srun")
    if train.num_gpus > 1 or train.num_machines > 1:
        raise InputError("leave out --num-gpus and --num-machines: --nodes and --processes are before the --")
    if not train.resume:
        check_output_folder(folder)
    try:
        import submitit
    except ImportError as error:
        raise InputError(f"submitit is needed ({error}): pip install 'detectron2-detr[slurm]'") from error
    logs = args.logs or os.path.join(folder, "slurm")
    try:
        executor = submitit.AutoExecutor(logs, cluster=args.cluster, slurm_max_num_timeout=REQUEUES)
    except RuntimeError as error:
        raise InputError(f"no Slurm here ({error}): run this where sbatch is, or with --cluster local") from error
    executor.update_parameters(name=args.name, timeout_min=round(60 * args.hours), **resources(args))
    given = [x for x in args.arguments if x != "--resume"]
    os.makedirs(logs, exist_ok=True)
    with starts_print_to(os.path.join(logs, "local.log")) if args.cluster == "local" else contextlib.nullcontext():
        job = executor.submit(Training(given, args.nodes, args.processes))
    cancel = f"scancel {job.job_id}" if args.cluster == "slurm" else f"kill -INT {job.job_id}"
    print(
        f"job {job.job_id} is submitted; it writes to {folder}\n"
        f"  {job.paths.stdout} and {job.paths.stderr.name}: what it prints\n"
        f"  {cancel} ends it, saved"
    )


@contextlib.contextmanager
def starts_print_to(path: str) -> Iterator[None]:
    """Inside, processes that are started print to a file: who reads a pipe waits for the end of all that hold it."""
    earlier = [(stream, os.dup(stream)) for stream in (1, 2)]
    with open(path, "ab") as file:
        for stream, _ in earlier:
            os.dup2(file.fileno(), stream)
    try:
        yield
    finally:
        for stream, copy in earlier:
            os.dup2(copy, stream)
            os.close(copy)


def resources(args: argparse.Namespace) -> dict[str, Any]:
    """What submitit asks Slurm for."""
    if args.cluster == "local":
        return {}
    wanted = {
        "nodes": args.nodes,
        "tasks_per_node": 1,
        "gpus_per_node": args.processes,
        "cpus_per_task": args.processes * args.cpus,
        "slurm_signal_delay_s": SAVING,
    }
    return wanted | ({"slurm_partition": args.partition} if args.partition else {})


def parse_args() -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--partition", default="", metavar="NAME", help="of Slurm; by default the cluster's")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines (%(default)s)")
    parser.add_argument("--processes", type=int, default=8, metavar="N", help="on each, one a GPU (%(default)s)")
    parser.add_argument("--cpus", type=int, default=5, metavar="N", help="cores of each process (%(default)s)")
    parser.add_argument("--hours", type=float, default=24, metavar="H", help="of one job, not of all (%(default)s)")
    parser.add_argument("--name", default="detr", help="of the job (%(default)s)")
    parser.add_argument("--logs", default="", metavar="FOLDER", help="of the job's output; by default OUTPUT_DIR/slurm")
    parser.add_argument(
        "--cluster", choices=("slurm", "local"), default="slurm", help="local: without Slurm, on this machine's CPU"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="-- ARGUMENT", help="those of train_net.py")
    args = parser.parse_args()
    if min(args.nodes, args.processes, args.cpus) < 1 or args.hours <= 0:
        parser.error("--nodes, --processes, --cpus and --hours must be above 0")
    if args.cluster == "local" and args.nodes > 1:
        parser.error("--cluster local has one node")
    args.arguments = [x for i, x in enumerate(args.arguments) if i or x != "--"]
    return args


if __name__ == "__main__":
    with exit_with_one_line():
        main()
