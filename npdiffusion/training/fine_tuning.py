"""`npdiffusion train lora`: a subject or a style from a few pictures, into a small file that prompts switch on.

    pictures → latents, once     captions → hidden states, once unless the text encoder learns, too
    each step: noise at random levels, the frozen networks with their LoRAs, the loss of denoising.py, AdamW

DreamBooth (Ruiz et al. 2022, arXiv:2208.12242): so that a word for the new subject doesn't take over its whole class,
pictures of the class that the model itself drew before are seen, too ("prior preservation"): see `prior`.
"""
import pathlib
from dataclasses import asdict, dataclass

import numpy as np

from npdiffusion.checkpoints import families
from npdiffusion.errors import UserError
from npdiffusion.models.diagnosis import finite
from npdiffusion.pictures.images import save_png
from npdiffusion.training import loop, lora_layers, picture_folder, rates, runs
from npdiffusion.training.denoising import Denoising
from npdiffusion.training.optimizers import AdamW

PRIOR_STEPS = 20                           # of sampling, for pictures of the class


@dataclass(frozen=True)
class Settings:
    """What decides how a run goes. model and data are there to be compared by the run's folder.

    size: side in pixels of a square picture, None for that of the model      layers: see lora_layers.LAYERS
    alpha: None for rank      word, vectors, begin: of words.WordTuning
    prior: a prompt for the class, or None; prior_count: how many pictures are drawn of it
    """
    model: str
    data: str
    prompt: str | None = None
    size: int | None = None
    layers: str = "attention"
    rank: int = 8
    alpha: float | None = None
    text_encoder: bool = False
    steps: int = 500
    batch: int = 4
    rate: float = 1e-3
    snr_gamma: float | None = 5.0
    offset_noise: float = 0.0
    prior: str | None = None
    prior_count: int = 24
    prior_weight: float = 1.0
    word: str | None = None
    vectors: int = 1
    begin: str | None = None
    seed: int = 0

    @property
    def strength(self):
        """α"""
        return float(self.rank if self.alpha is None else self.alpha)


def examples(pipeline, settings, folder, strict=False, progress=None):
    """What is learnt from → [Example, ...]: the pictures of settings.data, and those of the class, which are drawn into
    folder/prior/ first. UserErrors as of picture_folder."""
    reduction = pipeline.vae.config.reduction
    size = settings.size or pipeline.size[0]
    if size % reduction:
        raise UserError(f"--size: {size} is no multiple of {reduction}, the pixels that a latent stands for")
    step = max(reduction, size // 8 // reduction * reduction)
    found = picture_folder.read_examples(settings.data, size, step, settings.prompt, strict)
    if settings.prior is not None:
        place = pathlib.Path(folder, "prior")
        place.mkdir(parents=True, exist_ok=True)
        for number in range(settings.prior_count):
            path = place / f"{number:03}.png"
            if not path.exists():
                image, = pipeline.generate(settings.prior, seed=settings.seed + number, steps=PRIOR_STEPS, width=size,
                                           height=size, progress=False)
                save_png(image, path)
            if progress:
                progress(number + 1, settings.prior_count)
        drawn = picture_folder.read_examples(place, size, step, settings.prior, strict=True)
        found += [picture_folder.Example(each.pixels, each.caption, each.name, settings.prior_weight) for each in drawn]
    return found


class Tuning:
    """Frozen networks, and what is computed once of the examples; what learns is up to each kind, which has `parameters`
    {name: array} and `context(index)`, the hidden states (N, 77, X) of these examples' captions."""
    def __init__(self, pipeline, settings, found):
        if pipeline.family is not families.FAMILIES[0]:
            raise UserError(f"{pipeline.source}: only {families.FAMILIES[0].name} is fine-tuned here, not "
                            f"{pipeline.family.name}")
        if pipeline.unet.config.in_channels != pipeline.unet.config.out_channels:
            raise UserError(f"{pipeline.source}: a model for inpainting can't be fine-tuned here")
        self.pipeline, self.settings, self.found = pipeline, settings, found
        self.denoising = Denoising(pipeline.schedule, settings.snr_gamma, settings.offset_noise)
        self.moments = [self.encode(each.pixels) for each in found]
        self.weights = np.array([each.weight for each in found], np.float32)

    def encode(self, pixels):
        """A picture (H, W, 3) → mean and deviation of its latents, (1, h, w, C), as diffusion has them"""
        vae = self.pipeline.vae
        if not vae.samples:
            return vae.latents(pixels[None], None), np.float32(0)
        mean, logvar = finite(vae, "vae", pixels[None], method="encode")
        return mean * vae.config.scaling_factor, np.exp(0.5 * logvar) * vae.config.scaling_factor

    def loss(self, number, rng):
        """Of a batch, see loop.Training"""
        index = self.batch(number)
        latents = np.concatenate([mean + deviation * rng.standard_normal(mean.shape, np.float32)
                                  for mean, deviation in (self.moments[i] for i in index)])
        t, noise = self.denoising.draw(latents.shape, rng)
        prediction = self.pipeline.unet(self.denoising.noised(latents, t, noise), t, self.context(index))
        return self.denoising.loss(prediction, latents, t, noise, self.weights[index])

    def batch(self, number):
        """Which examples are in a batch: of one size"""
        sizes = [mean.shape for mean, _ in self.moments]
        per_epoch = len(picture_folder.batches(sizes, self.settings.batch, 0, 0))
        epoch, part = divmod(number, per_epoch)
        return picture_folder.batches(sizes, self.settings.batch, self.settings.seed, epoch)[part]

    def detach(self):
        """Leave the networks as they were."""


class LoRATuning(Tuning):
    """LoRAs in the UNet, and in the text encoder if settings say so"""
    def __init__(self, pipeline, settings, found):
        super().__init__(pipeline, settings, found)
        self.ids = np.stack([pipeline.tokenizer.encode(each.caption) for each in found])
        self.states = None if settings.text_encoder else pipeline.text_encoder(self.ids)
        rng = np.random.default_rng(settings.seed)
        self.attached = {"unet": lora_layers.attach(pipeline.unet, settings.layers, settings.rank, settings.strength, rng)}
        if settings.text_encoder:
            self.attached["text_encoder"] = lora_layers.attach(pipeline.text_encoder, settings.layers, settings.rank,
                                                               settings.strength, rng)
        self.parameters = lora_layers.trained(self.attached)

    def context(self, index):
        return self.pipeline.text_encoder(self.ids[index]) if self.states is None else self.states[index]

    def detach(self):
        """Take the LoRAs out of the networks."""
        for part in self.attached:
            lora_layers.detach(self.pipeline.models[part])


def run(tuning, folder, listener=None):
    """Train in a run's folder → {name: array} of what was learnt, or None if it was stopped

    tuning: a `LoRATuning` or a words.WordTuning. The networks are afterwards as they were. listener(step, steps, values) is
    called after each step.
    """
    settings = tuning.settings
    training = loop.Training(tuning.loss, AdamW(tuning.parameters), seed=settings.seed,
                             rate=lambda step: rates.rate(step, settings.rate, settings.steps, "cosine",
                                                          min(20, settings.steps // 10)))
    try:
        with runs.Run(folder, asdict(settings)) as kept:
            if not loop.train(training, kept, settings.steps,
                              listener and (lambda values: listener(values["step"], settings.steps, values))):
                return None
    finally:
        tuning.detach()
    return tuning.parameters


def write(path, values, settings, family, spelling="kohya"):
    """The file, under kohya's or PEFT's names, with what it was trained on in its metadata."""
    from safetensors.numpy import save_file
    parts = {part: row.lora for part, row in family.parts.items()}
    tensors = {name: np.ascontiguousarray(value)
               for name, value in lora_layers.spelled(values, parts, settings.strength, spelling).items()}
    metadata = {"ss_network_dim": str(settings.rank), "ss_network_alpha": str(settings.strength),
                "ss_network_module": "networks.lora", "ss_steps": str(settings.steps), "ss_seed": str(settings.seed)}
    runs.written(pathlib.Path(path), lambda beside: save_file(tensors, beside, metadata))
