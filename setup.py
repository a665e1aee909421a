"""What an environment for `detr` needs. tools/setup_env.sh builds one from these lists."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# What detr/ itself imports. An environment that has these is left as it is, so most lower bounds are old.
# Detectron2 is missing here because no package index has it for current torch.
INSTALL_REQUIRES = [
    "torch>=2.14,<3",  # the oldest that the tests passed with; in 2.6.0 a training step on a CPU crashed
    "torchvision>=0.29,<1",
    "numpy>=1.26,<3",
    "scipy>=1.11,<2",
    "Pillow>=10.1,<14",
    "PyYAML>=6,<7",
    "fvcore>=0.1.5.post20221221,<0.2",
    "iopath>=0.1.9,<0.1.11",
    "matplotlib>=3.8,<4",
    "portalocker>=2.7,<5",
    "pycocotools>=2.0.7,<3",
    "safetensors>=0.4,<1",
    "tabulate>=0.9,<1",
]

# What Detectron2's own Python sources import: its list caps numpy below 2, so it cannot be used.
DETECTRON2 = [
    "cloudpickle>=2.2,<4",
    "hydra-core>=1.3,<1.4",
    "omegaconf>=2.3,<2.4",
    "opencv-python-headless>=4.8,<6",  # not on Detectron2's list, but its visualizer imports cv2
    "packaging>=23",
    "tensorboard>=2.15,<3",
    "termcolor>=2.3,<4",
    "tqdm>=4.66,<5",
    "yacs>=0.1.8,<0.2",
]

# Backbones by name, of which there are hundreds.
TIMM = ["timm>=1,<2"]

# What `converter.py --verify` runs transformers' models with; timm gives some of them their backbone.
TRANSFORMERS = [
    *TIMM,
    "transformers>=5,<6",
]

# Counts COCO's matches in Rust, with pycocotools' numbers; without it pycocotools itself does.
EVALUATION = ["hotcoco>=1.3,<2"]

# What tools/export_model.py writes besides torch's own formats, and what runs it. nncf makes OpenVINO's graphs int8.
EXPORT = [
    "nncf>=3,<4",
    "onnx>=1.18,<2",
    "onnxruntime>=1.20,<2",
    "onnxscript>=0.5,<1",
    "openvino>=2025,<2027",
]

# What reads YOLO's, Pascal VOC's and Roboflow's data sets.
DATA = ["supervision>=0.31,<0.32"]

# What demo.py reads and writes videos with; FFmpeg's libraries come with it.
VIDEO = ["av>=14.2,<19"]

# What tools/report.py writes its page with.
REPORT = ["jinja2>=3.1,<4"]

# What cuts a large image into tiles and joins their detections.
TILES = ["sahi>=0.12,<0.13"]

# What follows an object through a video.
TRACKING = ["supervision>=0.31,<0.32", "trackers>=2.6,<3"]

# Where a training may log to besides TensorBoard.
WANDB = ["wandb>=0.19,<1"]
MLFLOW = ["mlflow-skinny>=3,<4"]

# What submits a training to Slurm, and again after it was preempted.
SLURM = ["submitit>=1.5,<2"]

DEV = [
    *TRANSFORMERS,  # the parity tests' second oracle
    *EVALUATION,
    *EXPORT,
    *DATA,
    *VIDEO,
    *REPORT,
    *WANDB,
    *MLFLOW,
    *SLURM,
    # tools/setup_env.sh adds sahi and trackers, whose opencv-python would write over the headless one of Detectron2's
    # list; this is what else they import.
    "click>=8,<9",
    "fire>=0.7,<1",
    "requests>=2.32,<3",
    "rich>=13.3,<16",
    "shapely>=2,<3",
    "hypothesis>=6.100,<7",  # generates damaged files and odd settings
    "ipykernel>=6.29,<8",  # runs the notebooks
    "mypy>=2.1,<3",
    "nbclient>=0.10,<0.12",
    "psutil>=5.9,<8",  # Detectron2's benchmark.py imports it
    "pytest>=9,<10",
    "pytest-xdist>=3.6,<4",
    "ruff>=0.15,<0.18",  # the formatter's style may change with the middle number
]


def read_version() -> str:
    text = (ROOT / "detr" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError('detr/__init__.py has no line `__version__ = "..."`')
    return found.group(1)


def read_readme() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


if __name__ == "__main__":  # the tests read the lists above without building anything
    setup(
        name="detectron2-detr",
        version=read_version(),
        description="DETR, end-to-end object detection with transformers, as a plugin for Detectron2",
        long_description=read_readme(),
        long_description_content_type="text/markdown",
        license="Apache-2.0",
        license_files=["LICENSE"],
        # An installed detr.model_zoo finds the configs in the package.
        packages=[*find_packages(include=["detr", "detr.*"]), "detr.configs"],
        package_dir={"detr.configs": "configs"},
        package_data={
            "detr.configs": ["*.yaml", "*/*.yaml", "lazy/*.py", "lazy/common/*.py"],
            "detr.report": ["templates/*"],
        },
        python_requires=">=3.10,<3.14",
        install_requires=INSTALL_REQUIRES,
        extras_require={
            "data": DATA,
            "detectron2": DETECTRON2,
            "dev": DEV,
            "evaluation": EVALUATION,
            "export": EXPORT,
            "mlflow": MLFLOW,
            "report": REPORT,
            "slurm": SLURM,
            "tiles": TILES,
            "timm": TIMM,
            "tracking": TRACKING,
            "transformers": TRANSFORMERS,
            "video": VIDEO,
            "wandb": WANDB,
        },
        classifiers=[
            "Development Status :: 4 - Beta",
            "Intended Audience :: Science/Research",
            "Operating System :: POSIX :: Linux",
            "Programming Language :: Python :: 3",
            "Programming Language :: Python :: 3.11",
            "Programming Language :: Python :: 3.13",
            "Topic :: Scientific/Engineering :: Image Recognition",
        ],
    )
