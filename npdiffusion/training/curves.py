"""The curves of a run, drawn with Pillow alone: what its log holds, against the step.

    thin and pale     each step's value          thick     the mean of the neighbourhood, 1/50 of the run
    dots              values that are there for some steps only, such as those on held-out pictures
"""
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, MARGIN = 640, 240, 56
PAPER, INK, GRID, PALE, LINE = "white", "#202020", "#e4e4e4", "#a8c4e0", "#1f5f9f"
HIDDEN = ("step", "seconds")
MOST_POINTS = 2000                 # of a curve that are drawn


def curves(lines):
    """Lines of a log, [{"step": …, name: number}, ...] → PIL image (RGB) with a panel for each name"""
    names = [name for name in dict.fromkeys(name for line in lines for name in line) if name not in HIDDEN]
    picture = Image.new("RGB", (WIDTH, max(1, len(names)) * HEIGHT), PAPER)
    last = max(line["step"] for line in lines)
    for row, name in enumerate(names):
        points = np.array([(line["step"], line[name]) for line in lines if math.isfinite(line.get(name, math.nan))])
        if len(points):
            panel(ImageDraw.Draw(picture), row * HEIGHT, name, points, last, sparse=len(points) < len(lines) / 2)
    return picture


def panel(draw, top, name, points, last, sparse):
    """One curve in its frame; points: (n, 2), steps and values; top: where the panel begins, in pixels"""
    font = ImageFont.load_default(size=12)
    left, right, high, low = MARGIN, WIDTH - 16, top + 28, top + HEIGHT - 28
    shown = points if sparse else thinned(points)
    bottom, upper = np.percentile(shown[:, 1], (0, 99.5)) if len(shown) > 200 else (shown[:, 1].min(), shown[:, 1].max())
    marks = ticks(bottom, upper)
    bottom, upper = min(bottom, marks[0]), max(upper, marks[-1])
    span = (upper - bottom) or 1.0

    def place(point):
        return (left + (right - left) * point[0] / max(1, last),
                low - (low - high) * (min(max(point[1], bottom), upper) - bottom) / span)
    for mark in marks:
        y = place((0, mark))[1]
        draw.line((left, y, right, y), GRID)
        draw.text((left - 6, y), f"{mark:g}", INK, font, anchor="rm")
    for mark in ticks(0, last):
        draw.text((place((mark, bottom))[0], low + 4), f"{mark:g}", INK, font, anchor="ma")
    draw.text((left, top + 8), name, INK, font)
    if sparse:
        for point in shown:
            x, y = place(point)
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), LINE)
    else:
        draw.line([place(point) for point in shown], PALE)
    draw.line([place(point) for point in (shown if sparse else smoothed(shown))], LINE, 2)
    draw.line((left, high, left, low, right, low), INK)


def thinned(points):
    """At most MOST_POINTS of them: means of neighbours"""
    size = math.ceil(len(points) / MOST_POINTS)
    return np.array([points[i:i + size].mean(axis=0) for i in range(0, len(points), size)])


def smoothed(points):
    """Each value as the mean of those around it, fewer at both ends"""
    half = len(points) // 100
    return np.array([(x, points[max(0, i - half):i + half + 1, 1].mean()) for i, (x, _) in enumerate(points)])


def ticks(bottom, top):
    """About four round numbers from bottom to top: 1, 2 or 5 times a power of ten apart"""
    raw = (top - bottom) / 4 or max(abs(top), 1.0)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    return [round(i * step, 12) for i in range(math.ceil(bottom / step - 1e-9), math.floor(top / step + 1e-9) + 1)] or [bottom]
