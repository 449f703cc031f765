"""Further equations of docstrings: gradients in compiled kernels, training, files of weights, pictures, a look inside.

As in docstring_equations.py: file, text as it stands there, Python that binds its letters, left side where there is none.
"""
from tests.docstring_equations import ATTENTION, ELEMENTS, MATRICES, STEP, STEPS, Bound

QUERY = """
from npdiffusion.kernels import gradients
Q, K, V, g = rng.normal(size=(1, 6)), rng.normal(size=(5, 6)), rng.normal(size=(5, 6)), rng.normal(size=(1, 6))
S = (Q @ K.T / math.sqrt(6))[0]
P = kernels.softmax(S)
out = (P @ V)[None]
l, delta, dP = math.log(np.exp(S).sum()), float((g * out).sum()), (g @ V.T)[0]
dS = gradient(lambda s: np.sum(g * (kernels.softmax(s) @ V)), S)
G, Y, tolerance = g[0], out[0], 1e-7
"""
ROWS = """
from npdiffusion.kernels import gradients
values, gamma, d, epsilon, mean = rng.normal(1, 2, 6), rng.normal(size=6), rng.normal(size=6), 1e-3, np.mean
mu, sigma = values.mean(), values.std()
r = 1 / np.sqrt(sigma**2 + epsilon)
x, x_hat = values, (values - mu) * r
m_1, m_2 = mean(gamma * d), mean(gamma * d * x_hat)
dx = gradients.layer_norm.x(d[None], values[None], gamma, epsilon)[0]
"""
SLOPE = ELEMENTS + """
from npdiffusion.kernels import gradients
g = rng.normal(size=9)
"""
ADAM = """
from npdiffusion.training.optimizers import Adam, AdamW
beta, t, eta, epsilon = {1: 0.8, 2: 0.9}, 3, 0.05, 0.01
history, start = rng.normal(size=(3, 4)), rng.normal(size=4)
def run(kind, steps=3, decay=0.0):
    optimizer = kind({"w": start.copy()}, betas=(0.8, 0.9), eps=epsilon, decay=decay)
    optimizer.memory = {name: np.zeros(4) for name in optimizer.memory}
    for gradient_now in history[:steps]:
        optimizer.step({"w": gradient_now}, eta)
    return optimizer.parameters["w"], optimizer.memory["mean.w"], optimizer.memory["square.w"]
theta, m, v = run(Adam, 2)
after, m_next, v_next = run(Adam)
g = history[2]
"""
LORA = """
from npdiffusion.models.layers import Linear
from npdiffusion.training.lora_layers import LinearLoRA
layer, alpha, r, tolerance = Linear(4, 5, bias=False), 3.0, 2, 1e-5
layer.weight[:] = rng.normal(size=(5, 4))
low = LinearLoRA(layer, r, alpha, rng)
low.up[:] = rng.normal(size=(5, 2))
W, A, B, x = layer.weight.astype(float), low.down.astype(float), low.up.astype(float), rng.normal(size=(4, 1))
g = rng.normal(size=(5, 1))
y = low(x.T.astype('f4')).astype(float).T
"""
LOSS = """
from npdiffusion.diffusion.schedules import NoiseSchedule
from npdiffusion.training.denoising import Denoising
time = np.array([300])
def loss(kind):
    return Denoising(NoiseSchedule(prediction_type=kind), gamma=GAMMA)
GAMMA = gamma = 5
alpha_bar = float(NoiseSchedule().alphas_cumprod[300])
SNR, tolerance = alpha_bar / (1 - alpha_bar), 1e-5
x_0, epsilon = rng.normal(size=(1, 2, 2, 3)), rng.normal(size=(1, 2, 2, 3))
"""
BLOCK = """
from npdiffusion.checkpoints import quantized
d, m, scale = 0.5, -0.25, lambda x: np.array([x], '<f2').view(np.uint8)
low, high = rng.integers(0, 16, 16).astype(np.uint8), rng.integers(0, 16, 16).astype(np.uint8)
numbers, packed = np.concatenate([low, high]).astype(float), low | high << 4
def decoded(kind, *parts):
    return getattr(quantized, kind)(np.concatenate(parts)[None])[0].astype(float)
fifth = rng.integers(0, 2, 32)
bits = np.packbits(fifth.astype(np.uint8), bitorder='little')
"""
PRODUCT = """
a, b, g = rng.normal(size=(3, 4)), rng.normal(size=(4, 5)), rng.normal(size=(3, 5))
da = gradient(lambda a: np.sum(g * (a @ b)), a)
db = gradient(lambda b: np.sum(g * (a @ b)), b)
tolerance = 1e-7
"""

FURTHER = [
    Bound("kernels/activations.py", "1 − erf(z) = (a₁t + a₂t² + a₃t³ + a₄t⁴ + a₅t⁵) e^(−z²)", """
from scipy.special import erf
from npdiffusion.kernels import activations as code
z = np.array([0.1, 0.7, 1.9])
t = 1 / (1 + float(code._P) * z)
a_1, a_2, a_3, a_4, a_5 = (float(getattr(code, f"_A{i}")) for i in range(1, 6))
tolerance = 2e-7
"""),
    Bound("kernels/backward/attention.py", "P = e^(S − l)", QUERY),
    Bound("kernels/backward/attention.py", "l = ln Σ e^S", QUERY),
    Bound("kernels/backward/attention.py", "δ = Σ G Y", QUERY + """
delta = float((P * dP).sum())
"""),
    Bound("kernels/backward/attention.py", "dP = G Vᵀ", ATTENTION + """
dP = gradient(lambda p: np.sum(G * (p @ V)), P)
tolerance = 1e-7
"""),
    Bound("kernels/backward/attention.py", "dS = P (dP − δ)", QUERY),
    Bound("kernels/backward/attention.py", "dK = dSᵀ Q / √D", ATTENTION + "D = 6\n"),
    Bound("kernels/backward/attention.py", "dQ = dS K / √D", ATTENTION + "D = 6\n"),
    Bound("kernels/backward/elementwise.py", "dx = g σ (1 + x (1 − σ))", SLOPE + """
dx, sigma = gradients.silu.x(g, x), sigma(x)
"""),
    Bound("kernels/backward/elementwise.py", "dx = g (Φ(x) + x φ(x))", SLOPE + """
dx = gradients.gelu.x(g, x)
"""),
    Bound("kernels/backward/normalization.py", "x̂ = (x − μ) r", ROWS),
    Bound("kernels/backward/normalization.py", "r = 1 / √(σ² + ε)", ROWS),
    Bound("kernels/backward/normalization.py", "dx = r (γ d − m₁ − x̂ m₂)", ROWS),
    Bound("kernels/backward/normalization.py", "m₂ = mean(γ d x̂)", ROWS + """
m_2 = mean(gamma * d * (values - mu) / np.sqrt(values.var() + epsilon))
"""),
    Bound("kernels/gradients.py", "dx = g (σ + x σ (1 − σ))", SLOPE + """
dx, sigma = gradients.silu.x(g, x), sigma(x)
"""),
    Bound("kernels/gradients.py", "dx = g (σ + a x σ (1 − σ))", SLOPE + """
dx, a = gradients.quick_gelu.x(g, x), 1.702
sigma = sigma(a * x)
"""),
    Bound("kernels/gradients.py", "Y = P V", ATTENTION + """
Y = kernels.attention(Q[None], K[None], V[None], 1)[0]
"""),
    Bound("npdiffusion/models/layers.py", "y = x Wᵀ + b", MATRICES + """
from npdiffusion.models.layers import Linear
layer = Linear(4, 5)
layer.weight, layer.bias = W.astype('f4'), b
y = layer(x)
"""),
    Bound("npdiffusion/models/attention.py", "softmax(q kᵀ / √D) v", """
from npdiffusion.models.attention import SelfAttention
layer = SelfAttention(6, 1)
for each in (layer.to_q, layer.to_k, layer.to_v, layer.to_out[0]):
    each.weight, each.bias = np.eye(6, dtype='f4'), None
q = k = v = rng.normal(size=(5, 6))
D, softmax, y, tolerance = 6, kernels.softmax, layer(q[None], np.zeros((1, 5, 6)))[0], 1e-6
k, v = k.copy(), v.copy()
""", "y"),
    Bound("npdiffusion/models/tiling.py", "y = (1 − k/n) · previous + k/n · next", """
from npdiffusion.models.tiling import _fade
first, second, n, k = rng.normal(size=(1, 8, 1, 1)), rng.normal(size=(1, 8, 1, 1)), 4, 3
previous, next = first[0, 8 - n + k, 0, 0], second[0, k, 0, 0]
_fade(first, second, n)
y = second[0, k, 0, 0]
"""),
    Bound("npdiffusion/models/flops.py", "2 · H·W · k² · I · O", """
from collections import Counter
from npdiffusion.models import flops
H, W, I, O, k, count = 6, 5, 7, 8, 3, Counter()
flops._convolution(count, (H, W), I, O)
operations = count["3×3"]
""", "operations"),
    Bound("npdiffusion/models/flops.py", "2 · (2 · T · S · C)", """
from npdiffusion.study.tracing import flop
T, S, C = 5, 7, 6
arguments = {"k": np.zeros((1, S, C))}
operations = flop("attention", arguments, np.zeros((1, T, C)))
""", "operations"),
    Bound("npdiffusion/models/unet.py", "v = √ᾱ ε − √(1−ᾱ) x₀", LOSS + """
v = loss("v_prediction").target(x_0, time, epsilon)
"""),
    Bound("npdiffusion/diffusion/denoiser.py", "x = α x₀ + σ ε", STEPS + """
plan = schedule.plan('ddim', steps=12, strength=0.5)
level = next(iter(plan.levels.values()))
alpha, sigma = level.alpha, level.sigma
x_0, epsilon = rng.normal(size=(2, 3))
x = plan.start(epsilon, x_0)
"""),
    Bound("npdiffusion/diffusion/denoiser.py", "α = √ᾱ", STEPS + """
level = next(iter(schedule.plan('ddim', steps=12).levels.values()))
alpha, alpha_bar = level.alpha, float(schedule.alphas_cumprod[int(level.t)])
"""),
    Bound("npdiffusion/diffusion/denoiser.py", "σ = √(1 − ᾱ)", STEPS + """
level = next(iter(schedule.plan('ddim', steps=12).levels.values()))
sigma, alpha_bar = level.sigma, float(schedule.alphas_cumprod[int(level.t)])
"""),
    Bound("npdiffusion/diffusion/schedules/plan.py", "x = alpha · x₀ + sigma · ε", STEPS + """
plan = schedule.plan('ddim', steps=12, strength=0.5)
level = next(iter(plan.levels.values()))
alpha, sigma = level.alpha, level.sigma
x_0, epsilon = rng.normal(size=(2, 3))
x = plan.start(epsilon, x_0)
"""),
    Bound("npdiffusion/diffusion/samplers/dpm_solver.py", "e^{−h} = σ_next/σ", STEP + """
(state, told), = samplers.dpmpp_2m(lambda x, level: 0.0, 1.0, [sigma, sigma_next])
h = -math.log(state)
"""),
    Bound("npdiffusion/diffusion/samplers/pndm.py", "x_{t−1} = √ᾱ_{t−1} x̂₀(ε̄) + √(1 − ᾱ_{t−1}) ε̄", STEPS + """
from npdiffusion.diffusion.samplers.pndm import pndm
a, t, start, picture = {1: 0.55, 2: 0.4}, 2, rng.normal(size=4), rng.normal(size=4)
(state, told), = pndm(lambda *_: picture, start, [(2, 0.4, 0.55)])
epsilon_bar = (start - math.sqrt(0.4) * picture) / math.sqrt(0.6)
x, alpha_bar, x_hat = {1: state}, a, {0: lambda slope: (start - math.sqrt(0.6) * slope) / math.sqrt(0.4)}
"""),
    Bound("npdiffusion/diffusion/samplers/unipc.py", "x_next = e^{−h} x + (1 − e^{−h}) (D + Σ ρ_k (D_k − D) / r_k)", """
from npdiffusion.diffusion.samplers.unipc import _predicted
h, x, D, before, r = 0.7, 1.3, 0.4, -0.6, -0.8
x_next = _predicted(2.0, 2.0 * math.exp(-h), x, D, before, r)
rho_k, D_k, r_k = np.array([0.5]), np.array([before]), np.array([r])
"""),
    Bound("npdiffusion/painting/inpainting.py", "m x + (1 − m)(α z + σ ε)", """
from npdiffusion.painting.inpainting import Known
m, x, z, epsilon = rng.random(6), *rng.normal(size=(3, 6))
alpha, sigma = 0.8, 0.6
y = Known(m, z, epsilon).under_noise(x, alpha, sigma)
""", "y"),
    Bound("npdiffusion/painting/inpainting.py", "m x̂₀ + (1 − m) z", """
from npdiffusion.painting.inpainting import Known
m, picture, z = rng.random(6), *rng.normal(size=(2, 6))
y, x_hat = Known(m, z, None).clean(picture), {0: picture}
""", "y"),
    Bound("npdiffusion/pictures/images.py", "x = 2 · level / 255 − 1", """
from PIL import Image
from npdiffusion.pictures.images import to_array
levels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
level, x, tolerance = levels.astype(float), to_array(Image.fromarray(levels), 5, 4).reshape(4, 5, 3), 1e-6
"""),
    Bound("npdiffusion/pictures/images.py", "level = round(255 · clip(x / 2 + 1/2, 0, 1))", """
from npdiffusion.pictures.images import to_images
x, round, clip = rng.normal(size=(4, 5, 3)), np.round, np.clip
level = np.asarray(to_images(x[None].astype('f4'))[0], float)
"""),
    Bound("npdiffusion/checkpoints/quantized.py", "w = d · (q − 8)", BLOCK + """
w, q = decoded("q4_0", scale(d), packed), numbers
"""),
    Bound("npdiffusion/checkpoints/quantized.py", "w = d · q + m", BLOCK + """
w, q = decoded("q4_1", scale(d), scale(m), packed), numbers
"""),
    Bound("npdiffusion/checkpoints/quantized.py", "w = d · (q − 16)", BLOCK + """
w, q = decoded("q5_0", scale(d), bits, packed), numbers + 16 * fifth
"""),
    Bound("npdiffusion/checkpoints/quantized.py", "d · s · q − d′ · m", BLOCK + """
q, s, m, d_prime = rng.integers(0, 4, 256).astype(float), rng.integers(0, 64, 8).astype(float), rng.random(8), 0.3
w = quantized.grouped(q[None], np.array([[d]]), s[None], np.array([[d_prime]]), m[None])[0]
s, m, tolerance = np.repeat(s, 32), np.repeat(m, 32), 1e-6
""", "w"),
    Bound("npdiffusion/training/averages.py", "δ a + (1 − δ) θ", """
from npdiffusion.training.averages import Average
values = {"w": rng.normal(size=4)}
kept = Average(values, decay=0.9)
for _ in range(4):
    a = kept.values["w"].copy()
    values["w"] += rng.normal(size=4)
    kept.update()
theta, y, delta = values["w"], kept.values["w"], (1 + 3) / (10 + 3)
""", "y"),
    Bound("npdiffusion/training/denoising.py", "x_t = √ᾱ x₀ + √(1−ᾱ) ε", LOSS + """
t = 300
x = {t: loss("epsilon").noised(x_0, time, epsilon)}
"""),
    Bound("npdiffusion/training/denoising.py", "v = √ᾱ ε − √(1−ᾱ) x₀", LOSS + """
v = loss("v_prediction").target(x_0, time, epsilon)
"""),
    Bound("npdiffusion/training/denoising.py", "min(SNR, γ) / SNR", LOSS + """
times = np.array([50, 300, 700])
alpha_bar = NoiseSchedule().alphas_cumprod[times]
SNR, w = alpha_bar / (1 - alpha_bar), loss("epsilon").weight(times)
""", "w"),
    Bound("npdiffusion/training/denoising.py", "min(SNR, γ) / (SNR + 1)", LOSS + """
times = np.array([50, 300, 700])
alpha_bar = NoiseSchedule().alphas_cumprod[times]
SNR, w = alpha_bar / (1 - alpha_bar), loss("v_prediction").weight(times)
""", "w"),
    Bound("npdiffusion/training/denoising.py", "SNR = ᾱ / (1−ᾱ)", LOSS + """
share = float(loss("v_prediction").weight(np.array([700]))[0])             # SNR / (SNR + 1) below the cap
SNR = share / (1 - share)
alpha_bar = float(NoiseSchedule().alphas_cumprod[700])
"""),
    Bound("npdiffusion/training/digit_vae.py", "½ (μ² + σ² − 1 − log σ²)", """
from scipy.stats import norm
mu, sigma = 0.7, 0.6
nodes, average = standard_normal(nodes=60)
kl = average(norm.logpdf(mu + sigma * nodes, mu, sigma) - norm.logpdf(mu + sigma * nodes))
""", "kl"),
    Bound("npdiffusion/training/lora_layers.py", "y = W x + (α / r) B A x", LORA),
    Bound("npdiffusion/training/lora_layers.py", "dB = (α/r) g (A x)ᵀ", LORA + """
dB, tolerance = gradient(lambda b: np.sum(g * (W @ x + alpha / r * b @ (A @ x))), B), 1e-7
"""),
    Bound("npdiffusion/training/lora_layers.py", "dA = (α/r) Bᵀ g xᵀ", LORA + """
dA, tolerance = gradient(lambda a: np.sum(g * (W @ x + alpha / r * B @ (a @ x))), A), 1e-7
"""),
    Bound("kernels/steps.py", "β₁ m + (1 − β₁) g", ADAM, "m_next"),
    Bound("kernels/steps.py", "β₂ v + (1 − β₂) g²", ADAM, "v_next"),
    Bound("kernels/steps.py", "θ − η m̂ / (√v̂ + ε)", ADAM + """
m_hat, v_hat = m_next / (1 - 0.8**3), v_next / (1 - 0.9**3)
""", "after"),
    Bound("kernels/steps.py", "(1 − η λ) θ", ADAM + """
history = np.zeros((3, 4))
theta, lambda_ = start, 0.3
after, *_ = run(AdamW, 1, decay=0.3)
""", "after"),
    Bound("npdiffusion/training/optimizers.py", "θ − η (g + μ m)", """
from npdiffusion.training.optimizers import SGD
theta, g, eta, mu = rng.normal(size=4), rng.normal(size=4), 0.1, 0.9
optimizer = SGD({"w": theta.copy()}, momentum=mu, nesterov=True)
optimizer.memory = {"momentum.w": rng.normal(size=4)}
optimizer.step({"w": g}, eta)
m, after = optimizer.memory["momentum.w"], optimizer.parameters["w"]
""", "after"),
    Bound("npdiffusion/training/variable.py", "da = g bᵀ", PRODUCT),
    Bound("npdiffusion/training/variable.py", "db = aᵀ g", PRODUCT),
    Bound("npdiffusion/study/attention.py", "P = softmax(q kᵀ / √D)", """
from npdiffusion.study.attention import probabilities
q, k, D, softmax = rng.normal(size=(3, 6)), rng.normal(size=(5, 6)), 6, kernels.softmax
P, used, score = probabilities(q, k)
"""),
    Bound("npdiffusion/study/lab.py", "Σ w_k (m_k + α s² (x − α m_k) / v)", """
from npdiffusion.study import lab
alpha, sigma, s = 0.6, 0.8, lab.SPREAD
place = rng.normal(size=2)
v = alpha**2 * s**2 + sigma**2
w_k = np.exp(-np.square(place - alpha * lab.MEANS).sum(axis=1) / (2 * v))
w_k, m_k, x = w_k / w_k.sum(), lab.MEANS[:, 0], place[0]
y = lab.denoised(place[None], alpha, sigma)[0, 0]
""", "y"),
]
