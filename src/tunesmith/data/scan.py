"""A picture of a page -> words where they stand on the straightened page, and its ruled lines.

Which way the lines of text run, and how far they lean, is seen in how sharply the rows of dark pixels alternate with light
ones; the page is turned before anything is recognised, because OCR engines lose words on leaning lines and all of them on
pages that lie on their side. Upside down is a guess, by which edge of the lines is the sharper one, and tried the other way
when the engine is unsure. Angles are degrees counterclockwise, as Pillow turns pictures; lengths come in pixels and leave in points.

What this does not do: recognise (`ocr.py`) or find blocks (`layout.py`).

Source: Baird 1987, The Skew Angle of Printed Documents (the projection profile).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tunesmith.data.blocks import Box, Rule, Word

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from tunesmith.data.ocr import Ocr

POINTS_PER_INCH = 72.0
SURE = 0.75
"""Mean confidence from which a page counts as read the right way up."""
_MOST_LEAN = 8.0  # degrees


class Turn(NamedTuple):
    """How a picture is made upright: first by quarters, then by the lean; both counterclockwise."""

    quarters: int
    lean: float

    def apply(self, image: Image) -> Image:
        """Turn a picture; it grows so that no corner is cut, and new corners are white."""
        from PIL import Image as Pillow

        upright = image.transpose(Pillow.Transpose(_QUARTERS[self.quarters])) if self.quarters else image
        return upright.rotate(self.lean, resample=Pillow.Resampling.BILINEAR, expand=True, fillcolor="white") if self.lean else upright


_QUARTERS = {1: 2, 2: 3, 3: 4}  # Pillow's Transpose.ROTATE_90, ROTATE_180, ROTATE_270


class Scan(NamedTuple):
    """What was read of a picture; boxes and rules in points of the straightened page."""

    words: list[Word]
    rules: list[Rule]
    width: float
    height: float
    turn: Turn


def read_scan(image: Image, resolution: float, ocr: Ocr) -> Scan:
    """Straighten a picture of a page and recognise its words.

    Args:
        image: Any mode.
        resolution: Pixels per inch.
        ocr: The engine.

    Raises:
        BackendError: the engine failed.
    """
    grey = flat_grey(image)
    turn = find_turn(grey)
    tries = [_try(grey, turn, ocr)]
    # Upside down first; on its side last, should the profile have been wrong.
    for further in (2, 1, 3):
        if max(_sureness(words) for _, _, words in tries) >= SURE or not tries[0][2]:
            break
        tries.append(_try(grey, Turn((turn.quarters + further) % 4, turn.lean if further == 2 else 0.0), ocr))
    turn, upright, words = max(tries, key=lambda each: _sureness(each[2]) * sum(len(word.text) for word in each[2]))
    scale = POINTS_PER_INCH / resolution
    rules = [Rule(*(scale * value for value in rule)) for rule in find_rules(_dark(upright), int(resolution * 0.5))]
    placed = [word._replace(box=Box(*(scale * value for value in word.box))) for word in words]
    return Scan(placed, rules, upright.width * scale, upright.height * scale, turn)


def _try(grey: Image, turn: Turn, ocr: Ocr) -> tuple[Turn, Image, list[Word]]:
    upright = turn.apply(grey)
    return turn, upright, ocr.recognise(upright)


def flat_grey(image: Image) -> Image:
    """Make a picture grey, transparent parts white."""
    from PIL import Image as Pillow

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Pillow.alpha_composite(Pillow.new("RGBA", image.size, "white"), image)
    return image.convert("L")


def find_turn(grey: Image) -> Turn:
    """Find by what a page is made upright.

    Args:
        grey: Mode L.

    Returns:
        Quarters, and the lean that is left, within 8 degrees. Upside down is a guess: letters rise above small ones (b, d, f, T)
        more often than they hang below the line (g, p), so the lower edge of a line of text is the sharper one.
    """
    small = grey.copy()
    small.thumbnail((1000, 1000))
    ys, xs = np.nonzero(_dark(small))
    if len(xs) < 50:
        return Turn(0, 0.0)
    upright, lean = _lean(xs, ys)
    # A quarter counterclockwise takes (x, y) to (y, -x).
    lying, lean_lying = _lean(ys, -xs)
    quarters = 0
    if lying > 1.2 * upright:
        quarters, lean, xs, ys = 1, lean_lying, ys, -xs
    profile = _profile(xs, ys, lean)
    edges = np.diff(np.minimum(profile, np.quantile(profile[profile > 0], 0.9)))  # ruled lines would outweigh all letters
    return Turn(quarters + 2 if (edges**3).sum() > 0 else quarters, lean)


def _lean(xs: NDArray[np.int64], ys: NDArray[np.int64]) -> tuple[float, float]:
    """Return how sharp the sharpest profile is, and the turn (degrees counterclockwise) that makes it so."""
    coarse = max((_sharpness(xs, ys, angle), -abs(angle), angle) for angle in np.arange(-_MOST_LEAN, _MOST_LEAN + 0.01, 0.5))
    fine = max((_sharpness(xs, ys, angle), -abs(angle), angle) for angle in np.arange(coarse[2] - 0.5, coarse[2] + 0.51, 0.1))
    return fine[0], 0.0 if abs(fine[2]) < 0.15 else round(float(fine[2]), 1)


def _sharpness(xs: NDArray[np.int64], ys: NDArray[np.int64], angle: float) -> float:
    return float(np.square(np.diff(_profile(xs, ys, angle))).sum() / len(xs))


def _profile(xs: NDArray[np.int64], ys: NDArray[np.int64], angle: float) -> NDArray[np.float64]:
    """Return how many dark pixels each row has, from the top, after a turn."""
    rows = np.rint(ys - xs * np.tan(np.deg2rad(angle))).astype(np.int64)
    return np.bincount(rows - rows.min()).astype(np.float64)


def _dark(grey: Image) -> NDArray[np.bool_]:
    """Return the pixels darker than the threshold that parts the grey values best (Otsu 1979)."""
    pixels = np.asarray(grey)
    counts = np.bincount(pixels.ravel(), minlength=256).astype(np.float64)
    below = np.cumsum(counts)
    above = below[-1] - below
    mass = np.cumsum(counts * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    dark: NDArray[np.bool_] = pixels <= int(np.nanargmax(between)) if np.isfinite(between).any() else np.zeros(pixels.shape, dtype=bool)
    return dark if dark.mean() < 0.5 else ~dark


def _sureness(words: list[Word]) -> float:
    letters = sum(len(word.text) for word in words)
    return sum(word.confidence * len(word.text) for word in words) / letters if letters else 0.0


def find_rules(dark: NDArray[np.bool_], shortest: int) -> list[Rule]:
    """Find horizontal and vertical ruled lines.

    Args:
        dark: Pixels of the straightened page, shape (height, width).
        shortest: Pixels that a line must have; letters have fewer.

    Returns:
        Lines in pixels, horizontal ones first.
    """
    across = [Rule(start, at, end, at) for at, start, end in _runs(dark, shortest)]
    down = [Rule(at, start, at, end) for at, start, end in _runs(dark.T, shortest)]
    return across + down


def _runs(dark: NDArray[np.bool_], shortest: int) -> Iterator[tuple[float, int, int]]:
    """Yield the middle row and the first and last column of each long dark run; rows within three pixels are one line."""
    if dark.shape[1] < shortest:
        return
    # A lean of a tenth of a degree crosses a row within a line's length, so three rows count as one.
    thick = dark.copy()
    thick[1:] |= dark[:-1]
    thick[:-1] |= dark[1:]
    # Few rows can have a run, and these are told by their wholly dark bytes: of those in a run each light pixel spoils one at most.
    least = (shortest - 7) // 8 - (shortest - int(np.ceil(0.97 * shortest)))
    rows = np.flatnonzero((np.packbits(thick, axis=1) == 255).sum(axis=1) >= least)
    sums = np.zeros((len(rows), dark.shape[1] + 1), dtype=np.int32)
    np.cumsum(thick[rows], axis=1, out=sums[:, 1:])
    full = sums[:, shortest:] - sums[:, :-shortest] >= 0.97 * shortest
    rows, full = rows[full.any(axis=1)], full[full.any(axis=1)]
    for at in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) > 3) + 1):
        group = rows[at]
        if not len(group) or len(group) > shortest / 4:  # a dark area, not a line
            continue
        columns = np.flatnonzero(full[at].any(axis=0))
        for run in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1):
            yield float(group.mean()), int(run[0]), int(run[-1]) + shortest
