"""Numbers and names as the findings write them."""

from collections.abc import Sequence

MOST_NAMES = 5


def percent(share: float | None) -> str:
    """0.123 as "12.3 %"; "-" for None."""
    return "-" if share is None else f"{100 * share:.1f} %"


def points(share: float) -> str:
    """A difference of percentages: 0.123 as "12.3 points"."""
    return f"{100 * share:.1f} points"


def threshold(score: float) -> str:
    """0.7 as "0.70", and 0.5002 with all of its digits."""
    return f"{score:.2f}" if round(score, 2) == score else f"{score:g}"


def amount(number: int, what: str) -> str:
    """Three of "box" as "3 boxes"."""
    plural = f"{what}es" if what.endswith(("x", "s")) else f"{what}s"
    return f"{number} {what if number == 1 else plural}"


def joined(names: Sequence[str]) -> str:
    """The first names in a list that reads on, and how many more there are."""
    shown = list(names[:MOST_NAMES])
    if len(names) > MOST_NAMES:
        shown.append(f"{len(names) - MOST_NAMES} more")
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
