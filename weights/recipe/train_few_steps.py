"""Train a LoRA by which four steps without guidance do: latent consistency distillation of the UNet.

    f(x, t) = c_skip x + c_out x̂₀          x̂₀ = √ᾱ x − √(1−ᾱ) v̂(x, t)       c_skip, c_out: diffusion/samplers/consistency.py
    x′      = √ᾱ′ x̂₀ + √(1−ᾱ′) ε̂          one step of DDIM from t to t′ = t − 100, by the UNet without the LoRA, with guidance:
                                           v̂ = v(∅) + w (v(words) − v(∅)),  ε̂ = √(1−ᾱ) x + √ᾱ v̂
    loss    = √(‖f(x, t) − f(x′, t′)‖² + c²) − c          f(x, 0) = x; no gradient to f(x′, t′)

(Luo et al. 2023, arXiv:2310.04378, algorithm 1, and arXiv:2311.05556 for the LoRA.) On a path of the flow all f shall be the
same, and at its end f is x, so f learns to jump there. The target f(x′, t′) is that of the newest weights, not of their
average, and the loss is the pseudo-Huber one, both as of Song & Dhariwal 2023, arXiv:2310.14189. Time steps t are those 50
that the sampler `lcm` visits, and t′ is five of them below ("skipping-step" k): what f says of the end of a path has to
travel all the way up it, and so it takes a tenth of the path each time. Each jump of the sampler guides anew, so w is below
the scale that is best without the LoRA.

    python -m weights.recipe.train_few_steps [--minutes 40]  go on from where the last run stopped
"""

import numpy as np

import npdiffusion
from npdiffusion import kernels
from npdiffusion.checkpoints import families
from npdiffusion.checkpoints.safetensors_file import read_file
from npdiffusion.diffusion.samplers.consistency import SIGMA_DATA
from npdiffusion.training import lora_layers

from . import settings
from .captions import caption
from .encode import Bank
from .exam import exam, figures_of
from .models import new_text_encoder, new_unet, token_ids
from .recognition import Judge
from .scenes import load_sprites
from .train_unet import denoising
from .training import Clock, fill, fill_from_runs, learn, newest_model, parser, prepared, rate_at, shipped_steps, steps_behind

PART = "few_steps"
FILE = "lora/lcm.safetensors"                               # in the model's folder
FEW = dict(steps=4, sampler="lcm", guidance_scale=1)


def attach(unet):
    """Put a LoRA beside the layers of a UNet      → {name: array} of what is trained, with its newest weights"""
    plan, rng = settings.FEW_STEPS_TRAINING, np.random.default_rng([settings.SEED, *PART.encode()])
    learnt = lora_layers.trained({"unet": lora_layers.attach(unet, plan["layers"], plan["rank"], plan["rank"], rng)})
    if shipped_steps(PART):
        file, before = read_file(settings.MODEL / FILE), names().dotted[0]
        for name, value in learnt.items():
            layer, _, role = name.removeprefix("unet.").rpartition(".")
            value[...] = file[f"{before}{layer}.lora_{'A' if role == 'down' else 'B'}.weight"]()
    fill_from_runs(learnt)
    return learnt


def names():
    """How the layers of a UNet are called in files of adapters, see checkpoints/families.py"""
    return families.FAMILIES[0].parts["unet"].lora


def spelled(learnt):
    """{name as in a file of PEFT: array}"""
    return lora_layers.spelled(learnt, {"unet": names()}, settings.FEW_STEPS_TRAINING["rank"], "peft")


class Consistency:
    """The two networks, and how states at two time steps of a path come about; t: (N,)"""

    def __init__(self, student, teacher, guidance):
        self.student, self.teacher, self.guidance, self.noising = student, teacher, guidance, denoising()
        self.stride = self.noising.schedule.num_train_timesteps // settings.FEW_STEPS_TRAINING["solver_steps"]

    def draw(self, shape, rng):
        """Time steps among those of the solver, and noise      → t (N,), ε (N, H, W, C)"""
        return (rng.integers(settings.FEW_STEPS_TRAINING["solver_steps"], size=shape[0]) + 1) * self.stride - 1, \
            rng.standard_normal(shape, np.float32)

    def ends(self, x, t, v):
        """What a prediction says of both ends of the path: x̂₀, ε̂"""
        signal, sigma = self.noising.levels(t)
        return signal * x - sigma * v, sigma * x + signal * v

    def jump(self, x, t, states):
        """f"""
        s = self.noising.schedule.timestep_scaling * t.reshape(-1, 1, 1, 1).astype(np.float32)
        size = s ** 2 + np.float32(SIGMA_DATA ** 2)
        return np.float32(SIGMA_DATA ** 2) / size * x + s / np.sqrt(size) * self.ends(x, t, self.student(x, t, states))[0]

    def before(self, x, t, states, wordless):
        """x′, t′; wordless: hidden states of an empty prompt, (1, 77, X)"""
        said, unsaid = np.split(self.teacher(x, t, np.concatenate([states, np.repeat(wordless, len(x), axis=0)])), 2)
        x0, noise = self.ends(x, t, unsaid + np.float32(self.guidance) * (said - unsaid))
        earlier = np.maximum(t - settings.FEW_STEPS_TRAINING["skip"] * self.stride, 0)
        signal, sigma = self.noising.levels(earlier)
        return signal * x0 + sigma * noise, earlier

    def loss(self, z0, t, noise, states, wordless):
        """z0, noise: (N, H, W, C)      states: (N, 77, X)"""
        x, c = self.noising.noised(z0, t, noise), np.float32(settings.FEW_STEPS_TRAINING["huber"])
        with kernels.recorded(None):                       # on no tape
            target = self.jump(*self.before(x, t, states, wordless), states)
        return (np.sqrt(np.square(self.jump(x, t, states) - target) + c * c) - c).mean()


def examples(bank, step):
    """The batch of a step, which depends on the step alone.     → (N, 16, 16, 4) latents, (N, 77) token ids"""
    plan = settings.FEW_STEPS_TRAINING
    rng = np.random.default_rng([settings.SEED, 14, step])
    index = rng.integers(plan["scenes"], size=plan["batch"])
    return bank[index], token_ids([caption(bank.scenes[i], rng) for i in index])


def main(arguments=None):
    args = prepared(parser(__doc__).parse_args(arguments))
    clock, plan = Clock(args.minutes), settings.FEW_STEPS_TRAINING
    if steps_behind(PART) >= plan["steps"] or not args.minutes:
        return steps_behind(PART) >= plan["steps"]
    text_encoder, student, teacher, bank = new_text_encoder(), new_unet(), new_unet(), Bank(args.font)
    fill(dict(text_encoder=text_encoder, unet=student))
    fill(dict(unet=teacher))
    learnt, consistency = attach(student), Consistency(student, teacher, plan["guidance"])
    wordless, judge = text_encoder(token_ids([""])), Judge(load_sprites(args.font))
    bank.grow(plan["scenes"])

    def loss(step):
        z0, ids = examples(bank, step)
        t, noise = consistency.draw(z0.shape, np.random.default_rng([settings.SEED, 15, step]))
        return consistency.loss(z0, t, noise, text_encoder(ids), wordless)

    def after(step, training):
        if step % plan["judge_every"] == 0 or step == plan["steps"]:
            pipeline, questions = npdiffusion.load(newest_model()), exam(plan["share"], ("subject",), tuple(judge.sprites))
            pipeline.unet = student
            training.average.swap()
            marks = [judge.marks(question.scene, pipeline.generate(question.text, seed=question.seed, progress=False, **FEW)[0])
                     for question in questions]
            training.average.swap()
            return figures_of(questions, marks)

    def rate(step, fresh):
        return rate_at(step, plan["steps"], fresh, plan["warm_up"], plan["decay"])

    return learn(PART, learnt, loss, plan, rate, plan["steps"], clock.left, after)


if __name__ == "__main__":
    main()
