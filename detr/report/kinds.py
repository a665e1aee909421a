"""What the page calls each kind of detection, and its color, the same in pictures and text."""

from dataclasses import dataclass

from detr.report import results

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Kind:
    """label: in a picture; meaning: half a sentence; css: #rrggbb, seen on photographs and on light and dark pages"""

    label: str
    meaning: str
    css: str

    @property
    def rgb(self) -> Color:
        """In [0, 1]."""
        red, green, blue = (int(self.css[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return red, green, blue


KINDS = {
    results.CORRECT: Kind("correct", "on an object of its class, IoU of 0.5 or more", "#2fa84f"),
    results.CLASSIFICATION: Kind("wrong class", "on an object of another class", "#e8731a"),
    results.LOCALIZATION: Kind("wrong place", "beside an object of its class, IoU 0.1 to 0.5", "#3d8be0"),
    results.BOTH: Kind("wrong class and place", "beside an object of another class", "#9b59d0"),
    results.DUPLICATE: Kind("duplicate", "on an object that a better detection of its class has", "#e3c21c"),
    results.BACKGROUND: Kind("background", "on no object", "#dd4f9a"),
    results.MISSED: Kind("missed", "an object without any detection at it", "#e0383e"),
    results.IGNORED: Kind("crowd", "in a crowd, where nothing is counted", "#8d8d88"),
}
