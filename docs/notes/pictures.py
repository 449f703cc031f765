"""Draws the pictures of the notes: python docs/notes/pictures.py [NAME ...]

Each function is a picture, docs/notes/pictures/NAME.webp. Those that show the embedded model at work are in
pictures_of_the_model.py. matplotlib is in the extra `docs`.
"""
import io
import pathlib
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
from PIL import Image

FOLDER = pathlib.Path(__file__).resolve().parent / "pictures"
COLOURS = "#2b6cb0", "#c2410c", "#2f855a", "#7c3aed", "#64748b"
GREY = "#94a3b8"
mpl.use("agg")
mpl.rcParams.update({
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False, "legend.fontsize": 9, "lines.linewidth": 1.8,
    "mathtext.fontset": "cm", "savefig.dpi": 110, "figure.constrained_layout.use": True})


def save(figure, name):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    FOLDER.mkdir(exist_ok=True)
    Image.open(buffer).convert("RGB").save(FOLDER / f"{name}.webp", quality=80, method=6)


def axes(columns=1, rows=1, width=8.0, height=2.8, **options):
    return plt.subplots(rows, columns, figsize=(width, height), **options)


def normal(x, mean=0.0, deviation=1.0):
    return np.exp(-((x - mean) / deviation)**2 / 2) / (deviation * np.sqrt(2 * np.pi))


# ---- 1, 2: probability, Gaussians

def averages():
    """Averages over more and more draws, ten times, and σ/√n"""
    figure, ax = axes()
    n = np.arange(1, 3001)
    for row in np.random.default_rng(0).standard_normal((10, n.size)):
        ax.plot(n, row.cumsum() / n, color=COLOURS[0], alpha=0.5, linewidth=0.9)
    for sign in (-1, 1):
        ax.plot(n, sign / np.sqrt(n), color=COLOURS[1], label=r"$\pm\sigma/\sqrt{n}$" if sign > 0 else None)
    ax.set(xscale="log", ylim=(-1.6, 1.6), xlabel="number of draws n", ylabel="average", title="ten averages of normal numbers")
    ax.legend()
    return figure


def shell():
    """How long noise is, in units of √n"""
    figure, ax = axes()
    length = np.linspace(0, 2.5, 1001)
    for n in (1, 4, 64, 16384):
        density = scipy.stats.chi.pdf(length, n, scale=1 / np.sqrt(n))
        ax.plot(length, density / density.max(), label=f"n = {n}")
    ax.set(xlabel=r"length of the noise / $\sqrt{n}$", yticks=[], title="how long noise in n dimensions is")
    ax.legend()
    return figure


def divergence():
    """KL to N(0, 1) over the mean and over the width"""
    figure, (left, middle, right) = axes(3)
    x = np.linspace(-4, 5, 300)
    left.plot(x, normal(x), label="p"), left.plot(x, normal(x, 1.5, 0.6), label="q")
    left.set(yticks=[], title="q = N(1.5, 0.6²), p = N(0, 1)"), left.legend()
    mean, width = np.linspace(-2, 2, 100), np.linspace(0.15, 3, 200)
    middle.plot(mean, mean**2 / 2, color=COLOURS[2])
    middle.set(xlabel="mean of q, as wide as p", title="KL(q ‖ p)")
    right.plot(width, (width**2 - 1) / 2 - np.log(width), label="KL(q ‖ p)")
    right.plot(width, (1 / width**2 - 1) / 2 + np.log(width), label="KL(p ‖ q)")
    right.set(xlabel="width σ of q, around 0", ylim=(0, 3)), right.legend()
    return figure


def main(names):
    made = {name: make for name, make in globals().items() if callable(make) and make.__module__ == "__main__"
            and name not in ("save", "axes", "normal", "main")}
    for name in names or made:
        save(made[name](), name)


if __name__ == "__main__":
    main(sys.argv[1:])
