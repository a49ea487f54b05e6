import io
import math

import numpy as np
from PIL import Image

from bpexp.dashboard import heatmap


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_heatmap_has_the_colour_of_each_value_in_its_place():
    grid = np.array([[1e-8, 1e-20, 0.0], [1e4, 1e9, math.nan], [1e-2, 1.0, math.inf]])
    picture, table = pixels(heatmap.draw("title", grid, (0, 1, 2))), heatmap.palette()
    ends = {0: 0, 1: heatmap.COLOURS - 1}
    colours = [
        [ends[0], ends[0], heatmap.ZERO],
        [ends[1], ends[1], heatmap.NOT_FINITE],
        [round(0.5 * ends[1]), round(8 / 12 * ends[1]), heatmap.NOT_FINITE],
    ]
    left, top, right, bottom = heatmap._LEFT, heatmap._TOP, heatmap._RIGHT, heatmap._BOTTOM
    for layer in range(3):
        for step in range(3):
            x, y = left + (step + 0.5) * (right - left) / 3, bottom - (layer + 0.5) * (bottom - top) / 3
            assert (picture[int(y), int(x)] == table[colours[layer][step]]).all(), (layer, step)


def test_colours_rise_evenly_in_lightness():
    ramp = heatmap.palette()[: heatmap.COLOURS] / 255
    linear = np.where(ramp <= 0.04045, ramp / 12.92, ((ramp + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = 116 * np.cbrt(luminance) - 16  # of CIELAB, another scale than the one the ramp is made in
    rises = np.diff(lightness[::8])
    assert rises.min() > 0.5 * rises.mean()
    assert rises.max() < 1.5 * rises.mean()


def test_ticks_are_evenly_apart_with_both_ends():
    expected = {(1, 8): [0], (5, 8): [0, 1, 2, 3, 4], (11, 6): [0, 2, 4, 6, 8, 10], (65, 8): [*range(0, 55, 9), 64]}
    for (count, most), places in expected.items():
        assert heatmap._ticks(count, most) == places
