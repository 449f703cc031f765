"""A laboratory for samplers: a distribution whose denoiser is known exactly, so that every error is the sampler's own.

The toy is a mixture of K Gaussians N(m_k, s²) in the plane. For a state x = α x₀ + σ ε, with v = α² s² + σ²,

    D(x) = E[x₀ | x] = Σ w_k (m_k + α s² (x − α m_k) / v)      w_k ∝ exp(−|x − α m_k|² / 2v)

The path that samplers without noise follow is the probability flow dx/d log σ = x − D(x; σ) (Karras et al. 2022,
arXiv:2206.00364), which scipy solves to ten digits. With twice the steps, a sampler of order p has 1 / 2^p of the error.
"""
import math

import numpy as np

from npdiffusion.diffusion.samplers import SAMPLERS
from npdiffusion.diffusion.samplers.adams import lms
from npdiffusion.diffusion.schedules import NoiseSchedule
from npdiffusion.settings import Request

MEANS = np.array([[-1.2, -0.5], [1.1, -0.7], [0.1, 1.1]])
SPREAD = 0.25
STEPS = (8, 16, 32, 64, 128)
POINTS = 32
MODEL_STEPS, MODEL_REFERENCE = (4, 8, 16, 32), 64
MODEL_SAMPLERS = ("euler", "heun", "lms", "dpm++2m", "unipc")


def denoised(x, alpha, sigma):
    """D(x) of the mixture      x: (N, 2) → (N, 2), float64"""
    v = alpha**2 * SPREAD**2 + sigma**2
    away = x[:, None] - alpha * MEANS                                    # (N, K, 2)
    logits = -np.square(away).sum(axis=-1) / (2 * v)
    w = np.exp(logits - logits.max(axis=1, keepdims=True))
    w /= w.sum(axis=1, keepdims=True)
    return (w[..., None] * (MEANS + alpha * SPREAD**2 / v * away)).sum(axis=1)


def plan_of(name, steps):
    """The plan that a sampler walks in the laboratory: karras where it can, else the training's time steps"""
    return NoiseSchedule().plan(name, steps, "karras" if SAMPLERS[name].over_sigmas else None)


def walk(name, steps, noise, seed=0):
    """The states of a sampler on the mixture, on the scale x₀ + σ ε      noise: (N, 2), N(0, 1) → (1 + steps, N, 2), plan"""
    plan, random = plan_of(name, steps), np.random.default_rng(seed)
    x = plan.start(noise)
    first, *_ = plan.levels.values()
    states = [x / first.alpha]
    alphas = [level.alpha for level in plan.levels.values()][1:]
    for number, (state, _) in enumerate(plan.sample(lambda x, at: denoised(x, *plan.levels[at][1:]), x,
                                                    lambda: random.standard_normal(noise.shape))):
        states.append(state / (alphas[number] if number < len(alphas) else 1.0))
    return np.stack(states), plan


def exact(noise, plan):
    """Where the flow ends that starts where the plan does, brought to the scale on which its sampler ends      → (N, 2)"""
    from scipy.integrate import solve_ivp
    levels = list(plan.levels.values())
    last = plan.steps[-1]
    end = last if isinstance(last, float) else math.sqrt((1 - last[2]) / last[2])
    start, lowest = levels[0].sigma / levels[0].alpha, end or levels[-1].sigma / levels[-1].alpha
    if plan.sampler.function is lms:                                     # its last step goes on along its curve, not to D
        lowest = lowest / 1000
    x = plan.start(noise) / levels[0].alpha

    def slope(log_sigma, flat):
        x = flat.reshape(-1, 2)
        return (x - denoised(x, 1.0, math.exp(log_sigma))).ravel()

    found = solve_ivp(slope, (math.log(start), math.log(lowest)), x.ravel(), method="DOP853", rtol=1e-10, atol=1e-12)
    x = found.y[:, -1].reshape(-1, 2)
    return x / math.hypot(1, end) if end else denoised(x, 1.0, lowest)


def errors(name, steps=STEPS, points=POINTS, seed=0):
    """[root mean square distance to the exact end, ...] of a sampler that adds no noise, for each number of steps"""
    noise, found = np.random.default_rng(seed).standard_normal((points, 2)), []
    for count in steps:
        states, plan = walk(name, count, noise)
        found.append(float(np.sqrt(np.mean(np.square(states[-1] - exact(noise, plan)).sum(axis=1)))))
    return found


def order(steps, errors):
    """The slope of log error over log steps, by its last two points"""
    return -math.log(errors[-1] / errors[-2]) / math.log(steps[-1] / steps[-2])


def deterministic():
    """Names of the samplers that add no noise here and end where the flow does"""
    return [name for name, sampler in SAMPLERS.items() if sampler.noise is None or name == "ddim"]


def model_errors(pipeline, prompt, name, steps=MODEL_STEPS, reference=MODEL_REFERENCE, seed=1):
    """Root mean square distance of a model's latents to those of the same sampler in many steps, for each number of steps"""
    ends = []

    def keep(done, total, latents):
        if done == total:
            ends.append(latents)

    for count in (*steps, reference):
        asked = Request(prompt, steps=count, sampler=name, seed=seed, schedule="karras" if SAMPLERS[name].over_sigmas else None)
        pipeline.make(pipeline.resolve(asked), keep)
    return [float(np.sqrt(np.mean(np.square(end - ends[-1])))) for end in ends[:-1]]
