"""What a user may ask for besides float32: int8, or weights of half the size, and what an export must then show."""

from dataclasses import dataclass

from detr.errors import InputError

HALF_WEIGHTS = {"onnx": ("float16", "bfloat16"), "openvino": ("float16",)}  # by format
INT8 = ("onnx", "openvino")
CONTROLLED = ("openvino",)  # where layers may be given back until the drop holds


@dataclass(frozen=True)
class Reduction:
    """How a graph becomes smaller or faster than in float32.

    int8: whether layers compute in int8; box and class heads and softmax stay in float
    calibration: the data set whose images show the range of each layer's inputs
    images: how many of them at most
    weights: "float32", or the type that weights are stored in; computation stays in float32
    evaluate: a data set to measure the graph on before and after; "" for none
    max_drop: points of the main metric (PQ, mask AP or box AP on ``evaluate``) that int8 may cost: layers go back to
        float until it holds
    """

    int8: bool = False
    calibration: str = ""
    images: int = 300
    weights: str = "float32"
    evaluate: str = ""
    max_drop: float | None = None

    @property
    def dtype(self) -> str:
        return "int8" if self.int8 else self.weights

    def check(self, format: str) -> None:
        """Raises InputError for what does not go together, or not with the format."""
        if self.int8 and format not in INT8:
            raise InputError(f"--int8 is for the formats {' and '.join(INT8)}, not {format}")
        if self.int8 and not self.calibration:
            raise InputError(
                "--int8 needs images like those that the model will see: name a registered data set with --calibration"
            )
        if self.calibration and not self.int8:
            raise InputError("--calibration is for --int8: give both or none")
        if self.images < 1:
            raise InputError(f"--images is {self.images}: calibrate with one image at least, better with 300")
        if self.weights != "float32" and self.int8:
            raise InputError("--weights is for float graphs, and --int8 stores weights in int8: give one of them")
        if self.weights not in ("float32", *HALF_WEIGHTS.get(format, ())):
            known = "; ".join(f"{name}: {', '.join(types)}" for name, types in HALF_WEIGHTS.items())
            raise InputError(f"--weights {self.weights} is not for the format {format}; there are {known}")
        if self.evaluate and self.dtype == "float32":
            raise InputError("--evaluate compares --int8 or --weights with float32: give one of them")
        if self.max_drop is None:
            return
        if not self.int8 or not self.evaluate:
            raise InputError("--max-drop bounds what --int8 costs on a data set: give --int8 and --evaluate too")
        if format not in CONTROLLED:
            raise InputError(f"--max-drop is for the format {' and '.join(CONTROLLED)}, not {format}: leave it out")
        if not 0 <= self.max_drop < float("inf"):
            raise InputError(f"--max-drop is {self.max_drop}: give points of the metric, such as 0.5")


FLOAT32 = Reduction()
