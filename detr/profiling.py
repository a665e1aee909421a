"""Where the time of a model goes, by part, on this machine: measured by torch's profiler.

The parts are marked from outside, while they are measured: by hooks on modules, and by methods of single objects that
are replaced. The model's own code knows nothing of it.
"""

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from detr.analysis import part_names
from detr.config_checks import check_names
from detr.engine.solver import build_optimizer
from detr.engine.training_step import build_step
from detr.errors import InputError
from detr.modeling.meta_arch import Detr

PREFIX = "detr: "  # of the parts' names in a trace
WARM_UP = 2  # steps before, in which libraries choose their algorithms
OBJECTS = 10  # of a training image
# Method -> part. Its time is that without the parts inside it.
METHODS = {
    "preprocess": "preprocessing",
    "targets": "targets",
    "forward_network": "network, rest",
    "losses": "losses",
    "postprocess": "postprocessing",
}
REST = "rest"


@dataclass
class Time:
    """Of a part, a step. host: milliseconds; device: of kernels on a GPU, too; launches: how many kernels"""

    host: float = 0.0
    device: float = 0.0
    launches: float = 0.0


@dataclass
class Profile:
    """parts: by name, in the order in which they end; the last is what is in none of them
    total: milliseconds of a step under the profiler, which the parts add up to
    plain: median milliseconds of a step without the profiler
    recorded: torch's profiler, whose ``export_chrome_trace`` writes a trace
    """

    parts: dict[str, Time]
    total: float
    plain: float
    recorded: profile


def profile_model(
    cfg: CfgNode, *, size: tuple[int, int] = (800, 1066), batch: int = 1, training: bool = False, steps: int = 5
) -> Profile:
    """Measures the model of ``cfg`` on MODEL.DEVICE with random weights and images.

    size: (height, width) of the images in pixels; batch: images in a step
    training: whole training steps with the config's optimizer, instead of inference
    steps: how many are measured, of which the parts' times are means

    Raises InputError for a config whose model is no ``Detr``, for numbers below 1, and where a step fails.
    """
    for name, value in (("height", size[0]), ("width", size[1]), ("batch", batch), ("number of steps", steps)):
        if value < 1:
            raise InputError(f"the {name} is {value}: it must be at least 1")
    check_names(cfg)
    if not issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), Detr):
        raise InputError(f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}: only Detr can be profiled")
    model = build_model(cfg).train(training)
    inputs = [random_input(model, size, training) for _ in range(batch)]
    cuda = model.device.type == "cuda"
    try:
        with ExitStack() as stack:
            run = _training_step(cfg, model, inputs, stack) if training else functools.partial(model, inputs)
            stack.enter_context(nullcontext() if training else torch.no_grad())
            step = functools.partial(_timed, run, cuda)
            for _ in range(WARM_UP):
                step()
            plain = statistics.median(step() for _ in range(steps))
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
            with _marked(model), profile(activities=activities) as recorded:
                total = sum(step() for _ in range(steps)) / steps
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{cfg.MODEL.BACKBONE.NAME} at {size[0]} x {size[1]} cannot be profiled: {reason}") from error
    parts = _times(recorded, steps)
    parts[REST] = Time(total - sum(part.host for part in parts.values()), *_outside(parts))
    return Profile(parts, total, plain, recorded)


def _timed(run: Callable[[], Any], cuda: bool) -> float:
    """Milliseconds, until the GPU is done too."""
    start = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def random_input(model: Detr, size: tuple[int, int], training: bool) -> dict[str, Any]:
    """Noise as an image, on the host as from a loader; in training with ``OBJECTS`` objects, and masks if wanted."""
    height, width = size
    image = torch.randint(0, 256, (len(model.pixel_mean), height, width), dtype=torch.uint8)
    x: dict[str, Any] = {"image": image, "height": height, "width": width}
    if training:
        corner = torch.rand(OBJECTS, 2) * 0.5
        boxes = torch.cat([corner, corner + 0.4], dim=1) * torch.tensor([width, height, width, height])
        truth = Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.randint(0, model.num_classes, (OBJECTS,)))
        if model.mask_head is not None:
            truth.gt_masks = BitMasks(torch.rand(OBJECTS, height, width) < 0.5)
        x["instances"] = truth
    return x


def _training_step(cfg: CfgNode, model: Detr, inputs: list[dict[str, Any]], stack: ExitStack) -> Callable[[], None]:
    """As the Trainer's, with mixed precision and parts of a batch where cfg has them."""
    optimizer = build_optimizer(cfg, model)
    step = build_step(cfg, model, itertools.repeat(inputs), optimizer)
    step.iter = 0
    stack.enter_context(EventStorage())
    # What is inside it and in no other part is the backward pass.
    stack.enter_context(_marked_method(step, "_backward", "backward"))
    stack.enter_context(_marked_method(optimizer, "step", "clipping and optimizer"))
    return step.run_step


@contextmanager
def _marked(model: Detr) -> Iterator[None]:
    """Inside, the parts of the model are ranges of the profiler. What is compiled as one is one part."""
    modules = {} if model.compile_mode else part_names(model)
    modules |= {"criterion.matcher": "matching", "mask_head": "mask head", "training_queries": "queries for training"}
    found = dict(model.named_modules())
    with ExitStack() as stack:
        for name, part in modules.items():
            if name in found:
                stack.enter_context(_marked_module(found[name], part))
        for name, part in METHODS.items():
            stack.enter_context(_marked_method(model, name, part))
        yield


@contextmanager
def _marked_module(module: nn.Module, part: str) -> Iterator[None]:
    open_ranges: list[record_function] = []

    def begin(*_: Any) -> None:
        open_ranges.append(record_function(PREFIX + part))
        open_ranges[-1].__enter__()

    def end(*_: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    handles = module.register_forward_pre_hook(begin), module.register_forward_hook(end, always_call=True)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _marked_method(owner: Any, name: str, part: str) -> Iterator[None]:
    """Of this object alone."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(PREFIX + part):
            return method(*args, **kwargs)

    own = vars(owner).get(name)
    setattr(owner, name, marked)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _times(recorded: profile, steps: int) -> dict[str, Time]:
    """Means of a step, by part; a part's time is that of its ranges without the ranges inside them.

    A kernel belongs to the innermost range in which it was launched, by whichever thread: a GPU's backward pass has
    one of its own.
    """
    parts: dict[str, Time] = {"": Time()}
    ends: dict[str, float] = {"": 0.0}  # of a part's first range
    open_ranges: list[tuple[float, str]] = []  # (end, part)
    events = [x for x in recorded.events() or [] if x.device_type == DeviceType.CPU]
    for event in sorted(events, key=lambda x: (x.time_range.start, -x.time_range.end)):
        is_range = event.name.startswith(PREFIX)
        kernels = [x for x in event.kernels if not x.name.startswith(PREFIX)]
        if not is_range and not kernels:
            continue
        while open_ranges and open_ranges[-1][0] <= event.time_range.start:
            open_ranges.pop()
        around = open_ranges[-1][1] if open_ranges else ""
        if is_range:
            part, took = event.name.removeprefix(PREFIX), event.time_range.elapsed_us() / 1e3 / steps
            parts.setdefault(part, Time()).host += took
            if open_ranges:
                parts[around].host -= took
            open_ranges.append((event.time_range.end, part))
            ends.setdefault(part, event.time_range.end)
        parts[around].device += sum(x.duration for x in kernels) / 1e3 / steps
        parts[around].launches += len(kernels) / steps
    return {name: parts[name] for name in sorted(parts, key=ends.__getitem__)}


def _outside(parts: dict[str, Time]) -> tuple[float, float]:
    """What was launched in no range; takes it out of ``parts``."""
    outside = parts.pop("")
    return outside.device, outside.launches
