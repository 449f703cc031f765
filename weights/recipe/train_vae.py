"""Train the autoencoder: picture x (3 × 128 × 128) ↔ latent z (4 × 16 × 16).

    loss = |x̂ − x| + |∇x̂ − ∇x| + 10 (x̂ − x)² + 10⁻⁴ KL(q(z|x) ‖ N(0, 1))

The gradient term asks for crisp edges, without the adversarial and perceptual networks of the paper (Esser et al.
2021, arXiv:2012.09841). The networks are convolutional, so they learn from 64 × 64 crops: of three random crops the
busiest, since plain ground teaches little. KL to N(0, 1): docs/notes/02-gaussians.md, and why it is there:
docs/notes/03-autoencoder.md

In a second part of the plan the encoder stays as it is, so that latents keep their meaning while the UNet learns
them, and the decoder alone is improved.

    python -m weights.recipe.train_vae [--minutes 29]        go on from where the last run stopped
"""

import numpy as np

from npdiffusion.training.precision import products_in_bfloat16

from . import settings
from .exam import psnr, unseen_scenes
from .models import new_vae
from .scenes import load_sprites, pictures
from .training import Clock, fill, learn, named, parser, prepared, rate_at, steps_behind

FROZEN = ("vae.encoder.", "vae.quant_conv.")                # in the second part
PSNR_EVERY = 200                                            # steps


def to_array(pictures):
    """(N, H, W, 3) uint8 → float32 in −1 … 1"""
    return pictures.astype(np.float32) * np.float32(1 / 127.5) - 1


def busiest_crop(picture, size, rng):
    corners = rng.integers(0, settings.PIXELS - size + 1, (3, 2))
    crops = [picture[top:top + size, left:left + size] for top, left in corners]
    return max(crops, key=np.var)


def loss_of(vae, x, noise, kl_weight, squared_weight):
    """x: (N, H, W, 3)      noise: ε of the latents, (N, H/8, W/8, 4)"""
    mean, logvar = vae.encode(x)
    difference = vae.decode(mean + np.exp(0.5 * logvar) * noise) - x
    down, right = difference[:, 1:] - difference[:, :-1], difference[:, :, 1:] - difference[:, :, :-1]
    edges = np.absolute(down).mean() + np.absolute(right).mean()
    kl = (0.5 * (np.square(mean) + np.exp(logvar) - 1 - logvar)).mean()
    return np.absolute(difference).mean() + edges + squared_weight * np.square(difference).mean() + kl_weight * kl


def batch_of(sprites, step):
    """Crops and noise of a step, which depend on the step alone      → (N, H, W, 3), (N, H/8, W/8, 4)"""
    plan, rng = settings.VAE_TRAINING, np.random.default_rng([settings.SEED, 2, step])
    source = pictures(sprites, rng)
    x = to_array(np.stack([busiest_crop(next(source), plan["crop"], rng) for _ in range(plan["batch"])]))
    side = plan["crop"] // 8
    return x, rng.standard_normal((len(x), side, side, settings.VAE["latent_channels"]), np.float32)


def reconstruct(vae, pictures):
    """(N, 128, 128, 3) uint8 → the same through the latent, with the posterior's mean"""
    out = []
    for batch in np.array_split(pictures, max(1, len(pictures) // 16)):
        y = vae.decode(vae.encode(to_array(batch))[0])
        out.append(((y.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8))
    return np.concatenate(out)


def main(arguments=None):
    options = parser(__doc__)
    options.add_argument("--until", choices=("encoder", "decoder"), default="decoder", help="part after which to stop")
    args = prepared(options.parse_args(arguments))
    clock, plan = Clock(args.minutes), settings.VAE_TRAINING
    ends = dict(vae=plan["steps"], decoder=plan["steps"] + plan["decoder_steps"])
    for part in ("vae", "decoder") if args.until == "decoder" else ("vae",):
        if steps_behind(part) < ends[part] and not train(part, load_sprites(args.font), ends, clock):
            return False
    return True


def train(part, sprites, ends, clock):
    """part: "vae", or "decoder" alone      → whether it is done"""
    plan, vae = settings.VAE_TRAINING, new_vae()
    learnt = named(fill(dict(vae=vae)))
    if part == "decoder":
        learnt = {name: value for name, value in learnt.items() if not name.startswith(FROZEN)}
    unseen = unseen_scenes(64, sprites)
    steps = plan["steps"] if part == "vae" else plan["decoder_steps"]

    def loss(step):
        x, noise = batch_of(sprites, step)
        with products_in_bfloat16(vae):
            return loss_of(vae, x, noise, plan["kl"], plan["squared"])

    def after(step, training):
        if step % PSNR_EVERY == 0 or step == ends[part]:
            training.average.swap()
            score = psnr(reconstruct(vae, unseen), unseen)
            training.average.swap()
            return {"psnr": score}

    return learn(part, learnt, loss, plan, lambda step, fresh: rate_at(step, ends[part], fresh, plan["warm_up"], steps),
                 ends[part], clock.left, after)


if __name__ == "__main__":
    main()
