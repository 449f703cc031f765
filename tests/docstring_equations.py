"""One-line equations of docstrings, and what their letters are: the code that the docstring speaks of gives one side.

    file, text     where the equation stands, and how; it must still stand there, word for word
    where          Python that binds its letters, run with the names of tests/notes.py
    left           what it is equal to, where the docstring has only one side
"""
from typing import NamedTuple


class Bound(NamedTuple):
    """A docstring's equation"""
    file: str
    text: str
    where: str
    left: str = ""


MATRICES = """
x, W, b = rng.normal(size=(3, 4)), rng.normal(size=(5, 4)).astype('f4').astype(float), rng.normal(size=5)
tolerance = 1e-6
"""
NORM = """
values, gamma, beta, epsilon = rng.normal(1, 2, 8), rng.normal(size=8), rng.normal(size=8), 1e-3
tolerance = 1e-6
"""
ELEMENTS = """
x = rng.normal(size=9)
from scipy.special import erf, expit as sigma
from scipy.stats import norm
Phi, phi = norm.cdf, norm.pdf
"""
LEVEL = """
import types
from npdiffusion.diffusion.denoiser import Denoiser
alpha, sigma = 0.8, 0.6
x_0, epsilon = rng.normal(size=5), rng.normal(size=5)
x = alpha * x_0 + sigma * epsilon
def denoised(kind, output):
    levels = types.SimpleNamespace(levels={0: (0, alpha, sigma)}, prediction_type=kind)
    return Denoiser(lambda *_: output, levels)(x, 0)
"""
STEP = """
from npdiffusion.diffusion import samplers
sigma, sigma_next, h = 3.0, 1.1, math.log(3 / 1.1)
x, D, D_prev, z = rng.normal(size=(4, 3))
def last(sampler, levels, pictures, *noise):
    pictures = iter(pictures)
    states = [x for x, _ in sampler(lambda x, level: next(pictures), x, levels, *noise)]
    return states[-1], [x, *states][-2]
"""
TWO_M = STEP + """
h_prev = math.log(4 / 3)
x_next, x = last(samplers.dpmpp_2m, [4.0, sigma, sigma_next], [D_prev, D])
"""
STEPS = """
from npdiffusion.diffusion import samplers
from npdiffusion.diffusion.schedules import NoiseSchedule, betas
schedule, t = NoiseSchedule(), 400
alpha_bar, beta = schedule.alphas_cumprod, betas.betas("scaled_linear", 0.00085, 0.012, 1000)
"""
BOX = """
from npdiffusion.diffusion.noise.torch_numbers import TorchGenerator
words = TorchGenerator(7)
u_2, distance = (words._double_uniform() for _ in range(2))
u_1 = 1 - distance
z_1, z_2 = TorchGenerator(7).normal(2).astype(float)
r, theta, tolerance = math.hypot(z_1, z_2), math.atan2(z_2, z_1) % (2 * math.pi), 1e-6
"""
SPREAD = """
values = rng.normal(2, 1, 12)
m = 1.7
x, n, mu = values, 12, values.mean()
d = x - m
"""
GRADIENT = MATRICES + """
from npdiffusion.kernels import gradients
g = rng.normal(size=(3, 5))
"""
ATTENTION = """
from npdiffusion.kernels import gradients
Q, K, V, G = rng.normal(size=(3, 6)), rng.normal(size=(5, 6)), rng.normal(size=(5, 6)), rng.normal(size=(3, 6))
s = 1 / math.sqrt(6)
P = kernels.softmax(s * Q @ K.T)
dP = G @ V.T
dS = P * (dP - (dP * P).sum(axis=1, keepdims=True))
dQ, dK, dV = (each[0] for each in gradients.attention.q_k_v(G[None], (P @ V)[None], Q[None], K[None], V[None], 1, False))
"""

BOUND = [
    Bound("kernels/reference.py", "y = x Wᵀ + b", MATRICES + """
y = kernels.linear(x, W.astype('f4'), b)
"""),
    Bound("kernels/reference.py", "y = γ (x − μ) / √(σ² + ε) + β, with μ and σ²", NORM + """
y = kernels.group_norm(values.reshape(1, 1, 1, 8), gamma, beta, 1, epsilon).ravel()
x, mu, sigma = values, values.mean(), values.std()
"""),
    Bound("kernels/reference.py", "y = γ (x − μ) / √(σ² + ε) + β over the last axis", NORM + """
y = kernels.layer_norm(values, gamma, beta, epsilon)
x, mu, sigma = values, values.mean(), values.std()
"""),
    Bound("kernels/reference.py", "x · σ(x)", ELEMENTS + """
y = kernels.silu(x)
""", "y"),
    Bound("kernels/reference.py", "x · Φ(x) = x/2 · (1 + erf(x/√2))", ELEMENTS + """
y = kernels.gelu(x)
""", "y"),
    Bound("kernels/reference.py", "x · σ(1.702 x)", ELEMENTS + """
y = kernels.quick_gelu(x)
""", "y"),
    Bound("kernels/reference.py", "max(x, 0)", ELEMENTS + """
y = kernels.relu(x)
""", "y"),
    Bound("kernels/reference.py", "eˣ / Σ eˣ", ELEMENTS + """
y = kernels.softmax(x)
""", "y"),
    Bound("kernels/reference.py", "softmax(Q Kᵀ / √D) V", """
Q, K, V = rng.normal(size=(3, 6)), rng.normal(size=(5, 6)), rng.normal(size=(5, 6))
D, softmax = 6, kernels.softmax
y = kernels.attention(Q[None], K[None], V[None], 1)[0]
""", "y"),
    Bound("kernels/reference.py", "y[i, j] = x[⌊i · H / height⌋, ⌊j · W / width⌋]", """
image = rng.normal(size=(1, 3, 4, 1))
large = kernels.upsample_nearest(image, 7, 9)
H, W, height, width = 3, 4, 7, 9
y, x = (lambda i, j: large[0, i, j, 0]), (lambda i, j: image[0, int(i), int(j), 0])
i, j = 5, 7
"""),
    Bound("kernels/reference.py", "ωᵢ = 10000^(−i / (dim/2 − freq_shift))", """
dim, freq_shift, i, tolerance = 12, 1, 3, 1e-5
found = kernels.timestep_embedding([1.0], dim, True, freq_shift)[0]
omega = {i: math.atan2(found[dim // 2 + i], found[i])}
"""),
    Bound("kernels/gradients.py", "dx = g W", GRADIENT + """
dx = gradients.linear.x(g, W.astype('f4'))
"""),
    Bound("kernels/gradients.py", "dW = gᵀ x", GRADIENT + """
dW = gradients.linear.weight(g, x)
"""),
    Bound("kernels/gradients.py", "dx = r (d − mean(d) − x̂ mean(d x̂))", """
from npdiffusion.kernels import gradients
mean, r = np.mean, 1.4
x_hat, d = rng.normal(size=(2, 6))
dx = gradients.before_normalizing(d, x_hat, r, -1)
"""),
    Bound("kernels/gradients.py", "dx = y (g − Σ g y)", """
from npdiffusion.kernels import gradients
y, g = kernels.softmax(rng.normal(size=7)), rng.normal(size=7)
dx = gradients.softmax.x(g, y)
"""),
    Bound("kernels/gradients.py", "dV = Pᵀ G", ATTENTION),
    Bound("kernels/gradients.py", "dQ = s dS K", ATTENTION),
    Bound("kernels/gradients.py", "dK = s dSᵀ Q", ATTENTION),
    Bound("kernels/activations.py", "silu(x) = x / (1 + e⁻ˣ)", ELEMENTS + """
silu = kernels.silu
"""),
    Bound("kernels/activations.py", "quick_gelu(x) = x / (1 + e^(−1.702 x))", ELEMENTS + """
quick_gelu = kernels.quick_gelu
"""),
    Bound("kernels/activations.py", "gelu(x) = x/2 · (1 + erf(x/√2))", ELEMENTS + """
gelu = kernels.gelu
"""),
    Bound("kernels/normalization.py", "μ = m + Σd / n", SPREAD),
    Bound("kernels/normalization.py", "M₂ = Σ (x − μ)² = Σd² − (Σd)² / n", SPREAD + """
M_2 = values.var() * 12
"""),
    Bound("kernels/normalization.py", "M₂ = M₂ₐ + M₂ᵦ + (μᵦ − μₐ)² nₐ nᵦ / n", SPREAD + """
first, second = values[:5], values[5:]
M_2, M_2a, M_2b = (len(v) * v.var() for v in (values, first, second))
mu_a, mu_b, n_a, n_b = first.mean(), second.mean(), 5, 7
"""),
    Bound("kernels/products/winograd_transforms.py", "Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A", """
from npdiffusion.kernels.products import winograd_transforms as code
matrix = lambda transform, n: np.stack([np.array(transform(list(unit)), float) for unit in np.eye(n)], axis=1)
A, B, G = matrix(code.output_transform, 6).T, matrix(code.input_transform, 6).T, matrix(code.weight_transform, 3)
d, g, tolerance = rng.normal(size=(6, 6)), rng.normal(size=(3, 3)), 1e-6
Y = kernels.conv2d(d[None, :, :, None], g.astype('f4')[None, None])[0, :, :, 0]
"""),
    Bound("npdiffusion/diffusion/schedules/betas.py", "x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε", STEPS + """
plan = schedule.plan('ddim', steps=50, strength=0.6)
level = next(iter(plan.levels.values()))
t = int(level.t)
x_0, epsilon = rng.normal(size=(2, 3))
x = {t: plan.start(epsilon, x_0)}
"""),
    Bound("npdiffusion/diffusion/schedules/betas.py", "ᾱ_t = ∏ (1 − β_s)", STEPS + """
beta_s, beta = beta[:t + 1], None
alpha_bar = betas.alphas_cumprod(betas.betas('scaled_linear', 0.00085, 0.012, 1000))
"""),
    Bound("npdiffusion/diffusion/schedules/__init__.py", "σ_t = √((1 − ᾱ_t) / ᾱ_t)", STEPS + """
sigma = schedule.sigmas
"""),
    Bound("npdiffusion/diffusion/schedules/sigmas.py", "σ_i = (σ_max^{1/ρ} + i/(n−1) (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ", """
from npdiffusion.diffusion.schedules import karras_sigmas
sigma_max, sigma_min, n, rho, i = 14.6, 0.03, 12, 7.0, 5
sigma = karras_sigmas(sigma_max, sigma_min, n)
"""),
    Bound("npdiffusion/diffusion/guidance.py", "ε̂ = ε(∅) + s (ε(c) − ε(∅))", """
from npdiffusion.diffusion.guidance import guide
without, wanted = rng.normal(size=(2, 1, 2, 2, 3))
s = 7.5
epsilon_hat, epsilon = guide(without, wanted, s), {'varnothing': without, 'c': wanted}
"""),
    Bound("npdiffusion/diffusion/guidance.py", "φ σ_c/σ ε̂ + (1 − φ) ε̂", """
from npdiffusion.diffusion.guidance import rescaled
epsilon_hat, wanted = rng.normal(size=(2, 1, 2, 2, 3))
phi = 0.7
y, sigma_c, sigma = rescaled(epsilon_hat, wanted, phi), wanted.std(), epsilon_hat.std()
""", "y"),
    Bound("npdiffusion/diffusion/denoiser.py", "x̂₀ = (x − σ ε) / α", LEVEL + """
epsilon = rng.normal(size=5)
x_hat = {0: denoised('epsilon', epsilon)}
"""),
    Bound("npdiffusion/diffusion/denoiser.py", "v = α ε − σ x₀", LEVEL + """
v = rng.normal(size=5)
x_0 = denoised('v_prediction', v)
epsilon = (x - alpha * x_0) / sigma
"""),
    Bound("npdiffusion/diffusion/denoiser.py", "x̂₀ = α x − σ v", LEVEL + """
v = rng.normal(size=5)
x_hat = {0: denoised('v_prediction', v)}
"""),
    Bound("npdiffusion/diffusion/noise/torch_numbers.py", "r = √(−2 ln u₁)", BOX),
    Bound("npdiffusion/diffusion/noise/torch_numbers.py", "θ = 2π u₂", BOX),
    Bound("npdiffusion/diffusion/noise/torch_numbers.py", "z₁ = r cos θ", BOX + """
r, theta = math.sqrt(-2 * math.log(u_1)), 2 * math.pi * u_2
"""),
    Bound("npdiffusion/diffusion/noise/torch_numbers.py", "z₂ = r sin θ", BOX + """
r, theta = math.sqrt(-2 * math.log(u_1)), 2 * math.pi * u_2
"""),
    Bound("npdiffusion/diffusion/noise/brownian.py", "W(m) = (W(a) + W(b)) / 2 + √((b − a) / 4) z", """
from npdiffusion.diffusion.noise.brownian import BrownianPath
drawn = []
path = BrownianPath(1.0, 5.0, 3, lambda seed: drawn.append(math.sin(seed)) or np.array(drawn[-1]))
at = {m: float(path.at(m)) for m in (3.0, 5.0, 4.0)}
a, b, m, z, W = 3.0, 5.0, 4.0, drawn[-1], lambda m: at[m]
"""),
    Bound("npdiffusion/diffusion/noise/latents.py", "sin((1 − s) ω) / sin ω · low + sin(s ω) / sin ω · high", """
from npdiffusion.diffusion.noise.latents import slerp
low, high = rng.normal(size=(2, 1, 5, 1))
s = 0.3
omega = math.acos((low * high).sum() / np.linalg.norm(low) / np.linalg.norm(high))
y = slerp(s, low, high)
""", "y"),
    Bound("npdiffusion/diffusion/samplers/ddpm.py", "x_{t−1} = √ᾱ_{t−1} x̂₀ + √(1 − ᾱ_{t−1} − σ²) ε̂ + σ z", STEPS + """
x_t, picture, z = rng.normal(size=(3, 4))
alpha_bar, eta, t = {1: 0.55, 2: 0.4}, 0.6, 2
sigma = eta * math.sqrt((1 - 0.55) / (1 - 0.4) * (1 - 0.4 / 0.55))
x_hat = {0: picture}
epsilon_hat = (x_t - math.sqrt(0.4) * picture) / math.sqrt(0.6)
(state, _), = samplers.ddim(lambda *_: picture, x_t, [(2, 0.4, 0.55)], lambda: z, eta)
x = {1: state}
"""),
    Bound("npdiffusion/diffusion/samplers/ancestral.py", "σ_next² = σ_down² + σ_up²", """
from npdiffusion.diffusion.samplers.ancestral import ancestral_step
sigma_next = 1.9
sigma_down, sigma_up = ancestral_step(3.0, sigma_next)
"""),
    Bound("npdiffusion/diffusion/samplers/dpm_solver.py", "x_next = (σ_next/σ) x + (1 − σ_next/σ) D", STEP + """
x_next, x = last(samplers.dpmpp_2m, [sigma, sigma_next], [D])
"""),
    Bound("npdiffusion/diffusion/samplers/dpm_solver.py", "x_next = (σ_next/σ) x − (e^{−h} − 1) D̄", TWO_M + """
D_bar = D + h / (2 * h_prev) * (D - D_prev)
"""),
    Bound("npdiffusion/diffusion/samplers/dpm_solver.py", "D̄ = D + (h / 2h_prev)(D − D_prev)", TWO_M + """
D_bar = (x_next - sigma_next / sigma * x) / (1 - sigma_next / sigma)
"""),
    Bound("npdiffusion/diffusion/samplers/dpm_solver.py",
          "x_next = e^{−2h} x + (1 − e^{−2h}) D̄ + σ_next √(1 − e^{−2h}) z", STEP + """
x_next, x = last(samplers.dpmpp_2m_sde, [sigma, sigma_next], [D], lambda *_: z)
D_bar, D = D, None
"""),
    Bound("npdiffusion/diffusion/samplers/pndm.py", "ε̄ = (55 ε_t − 59 ε_{t+1} + 37 ε_{t+2} − 9 ε_{t+3}) / 24", """
from npdiffusion.diffusion.samplers.pndm import ADAMS_BASHFORTH
epsilon, t = dict(enumerate(rng.normal(size=9))), 3
epsilon_bar = sum(w * epsilon[t + k] for k, w in enumerate(ADAMS_BASHFORTH[3]))
"""),
    Bound("npdiffusion/diffusion/samplers/consistency.py", "c_skip(t) x + c_out(t) D(x, t)", STEP + """
t, s, sigma_d, picture = 31, 310.0, 0.5, D
c_skip, c_out = (lambda t: 0.25 / (s**2 + 0.25)), (lambda t: s / math.sqrt(s**2 + 0.25))
(y, _), = samplers.lcm(lambda *_: picture, x, [(t, 0.5, 1.0)], None)
D = lambda x, t: picture
""", "y"),
    Bound("npdiffusion/diffusion/samplers/two_stage.py", "x_mid = x + (σ_mid − σ) d(x, σ)", STEP + """
seen = []
list(samplers.dpm2(lambda x, level: seen.append((x, float(level))) or D, x, [sigma, sigma_next]))
(_, _), (x_mid, sigma_mid) = seen
d = lambda x, sigma: (x - D) / sigma
"""),
    Bound("npdiffusion/diffusion/samplers/two_stage.py", "σ_mid = √(σ σ_next)", STEP + """
seen = []
list(samplers.dpm2(lambda x, level: seen.append(float(level)) or D, x, [sigma, sigma_next]))
sigma_mid = seen[1]
"""),
    Bound("npdiffusion/text/emphasis.py", "z' = w z · mean(z) / mean(w z)", """
from npdiffusion.text.emphasis import emphasise
states, weights = rng.normal(0.5, 1, (1, 4, 3)), np.array([[1, 1.3, 1, 1]])
z_prime, z, w, mean = emphasise(states, weights), states, weights[:, :, None], np.mean
"""),
    Bound("npdiffusion/models/conditioning.py", "f_i = 10000^(−i/(n−1))", """
from npdiffusion.models.conditioning import guidance_embedding
n, i, tolerance = 6, 3, 1e-4
found = guidance_embedding(1.001, 2 * n)[0]
f = {i: math.atan2(found[i], found[n + i])}
"""),
]
