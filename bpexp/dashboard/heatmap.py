"""A heatmap, layer by step, as a small PNG: drawn by numpy and pillow in about a millisecond, with no plotting library.

What does not change with the values (axes, ticks, words, colour bar) is drawn once for each shape and kept. The range
of colours is fixed, so that pictures of different networks can be compared.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 350, 215
"""What a card of TensorBoard has room for; it scales a larger picture by leaving out pixels, letters included."""
LOW, HIGH = -8, 4
"""The decades that the colours span; what is beyond has the colour of the end."""

COLOURS, GREYS = 192, 32
"""Sizes of the palette's two ramps: values first, then the greys that the words are drawn in."""
ZERO, NOT_FINITE = COLOURS + GREYS, COLOURS + GREYS + 1
ZERO_RGB, NOT_FINITE_RGB = (200, 200, 200), (214, 39, 40)

_LEFT, _TOP, _RIGHT, _BOTTOM = 40, 19, WIDTH - 52, HEIGHT - 36
_BAR = (WIDTH - 43, WIDTH - 33)
_LEGEND = {_LEFT: ("exactly 0", ZERO), _LEFT + 80: ("not finite", NOT_FINITE)}


@functools.cache
def palette() -> NDArray[np.uint8]:
    """Return the colours of a picture, (256, 3): a dark violet to bright yellow ramp of evenly rising lightness first.

    Math:    a line through the cylinder (lightness, chroma, hue) of Oklab, back to linear and then to gamma-coded sRGB
    Source:  Oklab: Ottosson 2020, https://bottosson.github.io/posts/oklab; sRGB: IEC 61966-2-1
    """
    place = np.linspace(0, 1, COLOURS)
    lightness, hue = 0.26 + 0.66 * place, np.deg2rad(300 - 195 * place)
    chroma = 0.10 + 0.06 * place
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    to_cones = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.291485548]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.707614701],
        ]
    )
    linear = np.clip((np.stack([lightness, a, b], 1) @ to_cones.T) ** 3 @ to_rgb.T, 0, 1)
    coded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    table = np.zeros((256, 3), np.uint8)
    table[:COLOURS] = np.rint(255 * coded)
    table[COLOURS : COLOURS + GREYS] = np.rint(np.linspace(0, 255, GREYS))[:, None]
    table[ZERO], table[NOT_FINITE] = ZERO_RGB, NOT_FINITE_RGB
    return table


def indices(grid: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the palette's index for each value: by its log10; zero and what is not finite have their own."""
    with np.errstate(divide="ignore", invalid="ignore"):
        place = (np.log10(np.abs(grid)) - LOW) / (HIGH - LOW)
    found = np.rint(np.clip(np.nan_to_num(place), 0, 1) * (COLOURS - 1)).astype(np.uint8)
    found[grid == 0] = ZERO
    found[~np.isfinite(grid)] = NOT_FINITE
    return found


def draw(title: str, grid: NDArray[np.float64], steps: Sequence[int]) -> bytes:
    """Return the PNG of a heatmap with layer 1 at the bottom.

    Shapes:  grid: (layers, steps), the values themselves; their log10 is drawn
    """
    canvas = _template(title, grid.shape[0], tuple(steps)).copy()
    rows, columns = _cells(*grid.shape)
    canvas[_TOP:_BOTTOM, _LEFT:_RIGHT] = indices(grid).take(columns, 1).take(rows, 0)
    image = Image.fromarray(canvas)
    image.putpalette(palette().tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


@functools.lru_cache(64)
def _cells(layers: int, steps: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the layer of each row of pixels and the step of each column."""
    rows = layers - 1 - np.arange(_BOTTOM - _TOP) * layers // (_BOTTOM - _TOP)
    return rows, np.arange(_RIGHT - _LEFT) * steps // (_RIGHT - _LEFT)


@functools.lru_cache(64)
def _template(title: str, layers: int, steps: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the indices of a picture without values."""
    image = Image.new("L", (WIDTH, HEIGHT), 255)
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(12)
    pen.text((_LEFT, 2), title, 0, font)
    pen.rectangle((_LEFT - 1, _TOP - 1, _RIGHT, _BOTTOM), outline=0)
    for layer in _ticks(layers, 8):
        y = _BOTTOM - (layer + 0.5) * (_BOTTOM - _TOP) / layers
        pen.line((_LEFT - 4, y, _LEFT - 1, y), 0)
        pen.text((_LEFT - 6, y), str(layer + 1), 0, font, "rm")
    for step in _ticks(len(steps), 6):
        x = _LEFT + (step + 0.5) * (_RIGHT - _LEFT) / len(steps)
        pen.line((x, _BOTTOM, x, _BOTTOM + 3), 0)
        pen.text((x, _BOTTOM + 5), str(steps[step]), 0, font, "ma")
    pen.text((_RIGHT, HEIGHT - 8), "step", 0, font, "rm")
    side = Image.new("L", (_BOTTOM - _TOP, 14), 255)
    ImageDraw.Draw(side).text((side.width / 2, 6), f"layer ({layers} = output)", 0, font, "mm")
    image.paste(side.rotate(90, expand=True), (1, _TOP))
    pen.rectangle((_BAR[0] - 1, _TOP - 1, _BAR[1], _BOTTOM), outline=0)
    for power in range(LOW, HIGH + 1, 2):
        y = _BOTTOM - (power - LOW) * (_BOTTOM - _TOP) / (HIGH - LOW)
        pen.line((_BAR[1], y, _BAR[1] + 3, y), 0)
        pen.text((_BAR[1] + 5, y), f"1e{power}", 0, font, "lm")
    for left, (word, _) in _LEGEND.items():
        pen.rectangle((left, HEIGHT - 13, left + 10, HEIGHT - 3), outline=0)
        pen.text((left + 15, HEIGHT - 8), word, 0, font, "lm")
    greys = COLOURS + np.rint(np.asarray(image) * ((GREYS - 1) / 255)).astype(np.uint8)
    ramp = np.linspace(COLOURS - 1, 0, _BOTTOM - _TOP).astype(np.uint8)
    greys[_TOP:_BOTTOM, _BAR[0] : _BAR[1]] = ramp[:, None]
    for left, (_, colour) in _LEGEND.items():
        greys[HEIGHT - 12 : HEIGHT - 3, left + 1 : left + 10] = colour
    return greys


def _ticks(count: int, most: int) -> list[int]:
    """Return about `most` places out of `count`, evenly apart, the first and the last among them."""
    stride = -(-count // most)
    places = list(range(0, count, stride))
    # The last place is always named, in place of one that stands too near to it.
    return [place for place in places if count - 1 - place >= stride / 2] + [count - 1]
