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

from npdiffusion.diffusion.samplers import SAMPLERS, euler
from npdiffusion.diffusion.schedules import NoiseSchedule, karras_sigmas
from npdiffusion.diffusion.schedules.betas import zero_terminal_snr
from npdiffusion.kernels import reference
from npdiffusion.models import flops
from npdiffusion.models.configs import UNetConfig

FOLDER = pathlib.Path(__file__).resolve().parent / "pictures"
COLOURS = "#2b6cb0", "#c2410c", "#2f855a", "#7c3aed", "#64748b", "#db2777"
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
    right.legend(loc="lower right")
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


# ---- 8: samplers

def flow():
    """The probability flow from noise to two points in one dimension, and five steps of Euler along it"""
    figure, ax = axes(height=3.2)
    points = np.array([-1.0, 1.0])

    def denoise(x, sigma):
        return (scipy.special.softmax(-np.square(np.subtract.outer(x, points)) / (2 * sigma**2), axis=-1) * points).sum(-1)

    start = np.linspace(-2, 2, 14)
    for levels, style in ((np.geomspace(1.5, 0.01, 400), {"color": COLOURS[0]}),
                          (np.array([1.5, 0.9, 0.5, 0.2, 0.01]), {"color": COLOURS[1], "marker": ".", "alpha": 0.6})):
        states = np.array([start, *(x for x, _ in euler(denoise, start, levels.tolist()))])
        ax.plot(levels, states, linewidth=1, **style)
    ax.set(xlabel="σ, from noise (left) to pictures (right)", ylabel="x",
           title="blue: the flow to two pictures, ±1; red: four steps of Euler")
    ax.invert_xaxis()
    return figure


def orders():
    """Errors against calls of the model for Gaussian pictures, for which the flow is known"""
    figure, ax = axes(height=3.2)
    wanted = np.hypot(1, 0.05) / np.hypot(1, 14.6)
    for name in ("euler", "heun", "dpm2", "dpm++2m", "unipc", "lms"):
        calls, errors = [], []
        for steps in (6, 8, 12, 16, 24, 32, 48, 64, 96, 128):
            levels = karras_sigmas(14.6, 0.05, steps + 1).tolist()
            *_, (x, _) = SAMPLERS[name].function(lambda x, sigma: x / (1 + float(sigma)**2), 1.0, levels)
            calls.append(steps * SAMPLERS[name].calls), errors.append(abs(x / wanted - 1))
        ax.plot(calls, errors, marker=".", label=f"{name}, order {SAMPLERS[name].order}")
    ax.set(xscale="log", yscale="log", xlabel="calls of the model", ylabel="relative error", xticks=[10, 20, 50, 100, 200],
           xticklabels=[10, 20, 50, 100, 200], title="twice the calls: error ÷ 2, ÷ 4, …")
    ax.legend(fontsize=8)
    return figure


# ---- 9, 10: attention, convolution

def softmax():
    """Sorted weights of a query over sixteen keys, by width of the head"""
    figure, panels = axes(2, sharey=True)
    rng = np.random.default_rng(1)
    for ax, scaled in zip(panels, (False, True)):
        for width in (4, 40, 160):
            q, k = rng.standard_normal((500, 1, width)), rng.standard_normal((500, 16, width))
            weights = scipy.special.softmax((q * k).sum(-1) / (np.sqrt(width) if scaled else 1), axis=-1)
            ax.plot(range(1, 17), np.sort(weights, axis=-1)[:, ::-1].mean(axis=0), marker=".", label=f"D = {width}")
        ax.set(xlabel="keys, the best first", title="divided by √D" if scaled else "scores as they are")
    panels[0].set(ylabel="weight, on average"), panels[0].legend()
    return figure


def toeplitz():
    """A convolution of one line as a matrix, and its transpose"""
    figure, panels = axes(2, height=3.0)
    matrix = np.zeros((8, 10))
    for row in range(8):
        matrix[row, row:row + 3] = 1, 2, 3
    titles = "A: three weights, shifted", "its transpose: turned round, with a border"
    for ax, each, title in zip(panels, (matrix, matrix.T), titles):
        ax.imshow(np.where(each, each, np.nan), cmap="Blues", vmin=0, vmax=4)
        for (i, j), number in np.ndenumerate(each):
            if number:
                ax.text(j, i, f"$w_{int(number) - 1}$", ha="center", va="center")
        ax.set(xticks=[], yticks=[], title=title)
        plt.setp(ax.spines.values(), visible=True)
    return figure


# ---- 11 to 14: activations, contrast, guidance, sizes

def activations():
    """SiLU, GELU, quick GELU and their slopes"""
    figure, panels = axes(2)
    x = np.linspace(-4, 4, 401)
    for name, function in (("SiLU", reference.silu), ("GELU", reference.gelu), ("quick GELU", reference.quick_gelu)):
        panels[0].plot(x, function(x), label=name)
        panels[1].plot(x, np.gradient(function(x), x), label=name)
    panels[0].set(title="activations"), panels[1].set(title="their slopes"), panels[0].legend()
    return figure


def contrast():
    """Eight random pairs of vectors, moved along the gradient of CLIP's loss"""
    figure, panels = axes(4, height=2.3)
    rng, n, tau, rate = np.random.default_rng(0), 8, 10.0, 0.5
    a, b = rng.standard_normal((2, n, 6))
    for step in range(241):
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
        scores = tau * a @ b.T
        if step in (0, 20, 80, 240):
            ax = panels[(0, 20, 80, 240).index(step)]
            ax.imshow(scores, cmap="RdBu_r", vmin=-tau, vmax=tau)
            ax.set(xticks=[], yticks=[], title=f"after {step} steps")
        slope = (scipy.special.softmax(scores, axis=1) + scipy.special.softmax(scores, axis=0) - 2 * np.eye(n)) / 2
        a, b = a - rate * slope @ b, b - rate * slope.T @ a
    panels[0].set(ylabel="pictures", xlabel="texts")
    return figure


def guided():
    """p(x)^(1−s) p(x | c)^s for Gaussians"""
    figure, ax = axes()
    x, m, v = np.linspace(-3, 4, 400), 1.0, 0.5
    ax.plot(x, normal(x), color=GREY, linestyle="--", label="all pictures")
    for s in (1, 2, 3, 7.5):
        variance = 1 / (1 - s + s / v)
        ax.plot(x, normal(x, variance * s * m / v, np.sqrt(variance)), label=f"s = {s}")
    ax.axvline(m, color=GREY, linewidth=1)
    ax.set(yticks=[], title="pictures for a prompt, whose mean is the grey line")
    ax.legend()
    return figure


def budget():
    """Operations of SD v1's UNet by the size of the picture, and what they are"""
    figure, panels = axes(2)
    kinds = {"3×3 convolutions": ("3×3", "3×3 stride 2"), "1×1, linear": ("1×1", "linear"), "attention": ("attention",)}
    sides = [256, 512, 768, 1024]
    counts = [flops.unet(UNetConfig(), side // 8, side // 8) for side in sides]
    bottom = np.zeros(len(sides))
    for label, names in kinds.items():
        height = np.array([sum(count[name] for name in names) / 1e9 for count in counts])
        panels[0].bar([str(side) for side in sides], height, bottom=bottom, label=label)
        panels[1].plot(sides, height / [sum(count.values()) / 1e9 for count in counts], marker="o", label=label)
        bottom += height
    panels[0].set(title="10⁹ operations of a call, by side in pixels"), panels[0].legend()
    panels[1].set(title="shares", ylim=(0, 0.75), xlabel="side in pixels", xticks=sides)
    return figure


def main(names):
    made = {name: make for name, make in globals().items() if callable(make) and make.__module__ == __name__
            and name not in ("save", "axes", "normal", "main")}
    for name in names or made:
        save(made[name](), name)


if __name__ == "__main__":
    main(sys.argv[1:])
