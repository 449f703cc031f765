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
import scipy.special
import scipy.stats
from PIL import Image

from npdiffusion.diffusion.schedules import NoiseSchedule
from npdiffusion.diffusion.schedules.betas import zero_terminal_snr

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


# ---- 3: the autoencoder

def bound():
    """log p(x) and the ELBO in the model x = w z + noise, whose posterior is known"""
    figure, (left, right) = axes(2, sharey=True)
    w, s, x = 1.4, 0.6, 0.8
    mean, variance = w * x / (w**2 + s**2), s**2 / (w**2 + s**2)
    truth = np.log(normal(x, 0, np.hypot(w, s)))

    def elbo(m, v):
        fit = -((x - w * m)**2 + w**2 * v) / (2 * s**2) - np.log(2 * np.pi * s**2) / 2
        return fit - (m**2 + v - 1 - np.log(v)) / 2

    m, v = np.linspace(mean - 1, mean + 1, 200), np.geomspace(0.03, 0.7, 200)
    for ax, at, line in ((left, m, elbo(m, variance)), (right, v, elbo(mean, v))):
        ax.axhline(truth, color=COLOURS[1], label="log p(x)")
        ax.plot(at, line, label="ELBO")
        ax.fill_between(at, line, truth, color=GREY, alpha=0.25)
    left.axvline(mean, color=GREY, linestyle=":"), right.axvline(variance, color=GREY, linestyle=":")
    left.set(xlabel="mean of q", ylim=(-4, -1), title="shaded: KL(q ‖ true posterior)")
    right.set(xlabel="variance of q")
    left.legend(loc="lower right")
    return figure


def blur():
    """A disc at eight places, and the mean"""
    figure, panels = axes(5, height=1.9)
    y, x = np.mgrid[:96, :96]
    rng = np.random.default_rng(2)
    discs = [np.hypot(x - 48 - dx, y - 48 - dy) < 28 for dx, dy in 5 * rng.standard_normal((64, 2))]
    titles = ["it could be this", "or this", "or this", "or this", "best answer: their mean"]
    for ax, picture, title in zip(panels, [*discs[:4], np.mean(discs, axis=0)], titles):
        ax.imshow(picture, cmap="Blues", vmin=0, vmax=1.3)
        ax.set(xticks=[], yticks=[]), ax.set_title(title, fontsize=9)
    return figure


# ---- 4, 5: the forward process and its posterior

def schedule():
    """√ᾱ, √(1 − ᾱ) and the signal-to-noise ratio of Stable Diffusion v1"""
    figure, (left, right) = axes(2)
    abar, t = NoiseSchedule().alphas_cumprod, np.arange(1000)
    left.plot(t, np.sqrt(abar), label=r"$\sqrt{\bar\alpha_t}$: the picture")
    left.plot(t, np.sqrt(1 - abar), label=r"$\sqrt{1-\bar\alpha_t}$: the noise")
    left.set(xlabel="time step t", title="sizes"), left.legend()
    right.plot(t, abar / (1 - abar), label="as trained")
    fixed = zero_terminal_snr(abar)[:-1]
    right.plot(t[:-1], fixed / (1 - fixed), linestyle="--", label="zero at the end (Lin et al.)")
    right.set(xlabel="time step t", yscale="log", title="signal-to-noise ratio"), right.legend()
    return figure


def posterior():
    """What x_t says about x_{t−1}, what x_0 says, and both together"""
    figure, panels = axes(2)
    x0, beta = 1.5, 0.12
    for ax, before, x_t in zip(panels, (0.25, 0.85), (-0.4, 0.9)):
        now, a = before * (1 - beta), 1 - beta
        x = np.linspace(-3, 3.5, 500)
        variance = (1 - before) / (1 - now) * beta
        mean = np.sqrt(before) * beta / (1 - now) * x0 + np.sqrt(a) * (1 - before) / (1 - now) * x_t
        ax.plot(x, normal(x, x_t / np.sqrt(a), np.sqrt(beta / a)), label=r"what $x_t$ says")
        ax.plot(x, normal(x, np.sqrt(before) * x0, np.sqrt(1 - before)), label=r"what $x_0$ says")
        ax.fill_between(x, normal(x, mean, np.sqrt(variance)), color=COLOURS[2], alpha=0.4, label="together")
        ax.set(yticks=[], xlabel=r"$x_{t-1}$", title=("in much noise" if before < 0.5 else "in little noise"))
    panels[0].legend(loc="upper left")
    return figure


# ---- 6, 7: the loss and the score

def weights():
    """What an error in x̂₀ weighs at each time step, over its mean"""
    figure, ax = axes()
    abar = NoiseSchedule().alphas_cumprod
    snr, t = abar / (1 - abar), np.arange(1000)
    lines = {"the bound": snr[:-1] - snr[1:], "simple loss, on ε: SNR": snr, "on v: SNR + 1": snr + 1,
             "the recipe: min(SNR + 1, 5)": np.minimum(snr + 1, 5), "on the picture: 1": np.ones(1000)}
    for (label, weight), colour in zip(lines.items(), COLOURS):
        ax.plot(t[-len(weight):], weight / weight.mean(), label=label, color=colour)
    ax.set(yscale="log", ylim=(1e-4, 200), xlabel="time step t", title="what an error in the picture weighs (over its mean)")
    ax.legend(fontsize=8)
    return figure


def scores():
    """Arrows of the score around two points, under three sizes of noise"""
    figure, panels = axes(3, height=2.9, sharey=True)
    points = np.array([[-1.0, 0.0], [1.0, 0.4]])
    x = np.stack(np.meshgrid(np.linspace(-2.4, 2.4, 15), np.linspace(-1.9, 1.9, 12)), axis=-1)
    for ax, sigma in zip(panels, (1.5, 0.6, 0.25)):
        away = points - x[:, :, None]                                         # (rows, columns, points, 2)
        weight = scipy.special.softmax(-np.square(away).sum(-1) / (2 * sigma**2), axis=-1)
        step = (weight[..., None] * away).sum(-2)                             # σ² · score, by Tweedie
        ax.quiver(x[..., 0], x[..., 1], step[..., 0], step[..., 1], color=COLOURS[0], angles="xy", scale_units="xy", scale=4)
        ax.plot(*points.T, "o", color=COLOURS[1])
        ax.set(xticks=[], yticks=[], aspect="equal", title=f"σ = {sigma}")
    return figure


def main(names):
    helpers = "save", "axes", "normal", "main", "NoiseSchedule"
    made = {name: make for name, make in globals().items()
            if callable(make) and make.__module__ == __name__ and name not in helpers}
    for name in names or made:
        save(made[name](), name)


if __name__ == "__main__":
    main(sys.argv[1:])
