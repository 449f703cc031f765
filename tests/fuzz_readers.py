"""Every reader of files and texts that come from elsewhere, each with inputs that are right, for tests.fuzz to change.

READERS: {name: function(folder) → Reader}; the folder is the reader's own, and empty.
"""
import contextlib
import io
import json
import pathlib
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from safetensors.numpy import save, save_file

from npdiffusion import loading
from npdiffusion.adapters import lora, tags, textual_inversion
from npdiffusion.checkpoints import autoencoders, families, files, ip_adapters, library, safetensors_file, t2i_adapters
from npdiffusion.checkpoints.text_files import read_json
from npdiffusion.command import options
from npdiffusion.diffusion.schedules import NoiseSchedule
from npdiffusion.errors import UserError
from npdiffusion.jobs import prompts_file
from npdiffusion.jobs.entries import one_by_one
from npdiffusion.jobs.listener import Listener
from npdiffusion.jobs.manifest import Manifest
from npdiffusion.jobs.wildcards import Wildcards
from npdiffusion.models import ip_adapter
from npdiffusion.models.configs import CLIPTextConfig, UNetConfig, VAEConfig
from npdiffusion.models.parameters import shapes
from npdiffusion.models.unet import UNet2DConditionModel
from npdiffusion.painting import masks
from npdiffusion.pictures import images, settings_text, text_inside
from npdiffusion.settings import SETTINGS, Request
from npdiffusion.settings.kinds import Unfit
from npdiffusion.settings.run import OPTIONS
from npdiffusion.text import reading
from npdiffusion.text.tokenizer import CLIPTokenizer
from tests import gguf_files, mutations, stand_ins

OF_V1 = textual_inversion.Fitting(families.V1, {"clip_l": 64})
OF_XL = textual_inversion.Fitting(families.XL, {"clip_l": 64, "clip_g": 96})
UNET = UNetConfig(**stand_ins.UNET | {"block_out_channels": (32,), "cross_attention": (True,), "heads": (8,)})
VAE = VAEConfig(block_out_channels=(32,), layers_per_block=1, sample_size=8)
SETTINGS_INSIDE = ("a red apple, (on:1.2) a [blue|green] table\nNegative prompt: blurry, low\nSteps: 20, Sampler: DPM++ 2M, "
                   "Schedule type: Karras, CFG scale: 7.5, Seed: 1, Size: 64x64, Model: v1-5, Denoising strength: 0.6, "
                   "Clip skip: 2, Hires upscale: 2, Hires steps: 5, Hires upscaler: Latent, Variation seed: 3, "
                   'Variation seed strength: 0.2, RNG: NV, Eta: 0.5, Lora hashes: "a: b, c: d", Version: v1.10.1')
SD_CPP = ("a cat\nNegative prompt: dog\nSteps: 9, CFG scale: 3.5, Guidance: 3.5, Eta: 0, Seed: 42, Size: 64x64, Model: v1, "
          'RNG: cuda, Sampler: euler_a karras, SDCPP: {"steps": 40, "in": {"a": ["Seed: 5"]}}, Version: stable-diffusion.cpp')


@dataclass
class Reader:
    """read      called with the path of the file that was changed, or with the text
    inputs    names of files within the folder, or without one texts: each input is one of them, changed
    share     of all inputs: less for a reader that takes longer
    """
    read: Callable
    inputs: list
    folder: pathlib.Path | None = None
    share: int = 20

    def attempt(self, random):
        """Change one input and read it. Raises what `read` does, with the bytes that were read as its attribute `given`."""
        chosen = random.choice(self.inputs)
        if self.folder is None:
            given = mutations.of_text(chosen, random)
            self.try_(given, given.encode("utf-8", "surrogatepass"))
            return
        path = self.folder / chosen
        right = path.read_bytes()
        given = mutations.changed(path.name, right, random)
        path.write_bytes(given)
        try:
            self.try_(path, given)
        finally:
            path.write_bytes(right)

    def try_(self, argument, given):
        try:
            self.read(argument)
        except BaseException as error:
            error.given = given
            raise


# ---- weights and settings of models

def tensors(folder):
    for kind in np.float32, np.float16, np.uint16, np.int64:
        save_file({"a.weight": np.ones((3, 4), kind), "b": np.zeros((), kind), "c": np.zeros((0, 2), kind)},
                  folder / f"{np.dtype(kind).name}.safetensors", {"format": "pt"})

    def read(path):
        for tensor in safetensors_file.read_file(path).values():
            tensor()
    return Reader(read, [path.name for path in folder.iterdir()], folder)


def gguf(folder):
    """A table of contents, its settings, and numbers of some kinds."""
    settings = [("general.alignment", 4, struct.pack("<I", 32)), ("tokens", 9, struct.pack("<IQ", 8, 1) + gguf_files.text("b")),
                ("comfy.gguf.orig_shape.a", 9, struct.pack("<IQ2i", 5, 2, 16, 6))]
    made = {"a": gguf_files.plain(np.ones((3, 32), np.float32)), "b": gguf_files.q8_0(np.ones((2, 64))),
            "c": (12, (256,), bytes(144)), "d": gguf_files.plain(np.ones(3, np.float16))}
    (folder / "a.gguf").write_bytes(gguf_files.gguf(made, settings))
    (folder / "b.gguf").write_bytes(gguf_files.gguf(made))

    def read(path):
        for tensor in files.read_tensors(path).values():
            tensor()
    return Reader(read, ["a.gguf", "b.gguf"], folder)


def shards(folder):
    where = {f"t{i}": f"model-{i % 2}.safetensors" for i in range(4)}
    for name in sorted(set(where.values())):
        save_file({tensor: np.ones(3, np.float32) for tensor in where if where[tensor] == name}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": where}))
    return Reader(lambda path: safetensors_file.read_folder(folder, "model"), [index.name, "model-0.safetensors"], folder)


def model(folder):
    """A folder in diffusers layout, opened whole."""
    stand_ins.models.write_folder(folder, UNET, VAE, stand_ins.TEXT)
    names = [f"{part}/config.json" for part in ("unet", "vae", "text_encoder")] * 3
    names += ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json",
              "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
              "text_encoder/model.safetensors"]

    def read(path):
        try:
            opened = loading.open_checkpoint(folder)
            opened.pipeline(opened.fit())
        finally:
            library.describe("a", folder)                    # which never raises
    return Reader(read, names, folder, share=1)


def single_file(folder):
    """All weights in one file, whose shapes say the sizes."""
    path = folder / "model.safetensors"
    stand_ins.single_file(path)
    stand_ins.models.write_tokenizer(folder / "tokenizer", 600)

    def read(path):
        loading.open_checkpoint(path).fit()
    return Reader(read, [path.name], folder, share=1)


def single_names(folder):
    """The table of contents of such a file alone: which family, which sizes."""
    stand_ins.single_file(folder / "model.safetensors")
    found = safetensors_file.read_file(folder / "model.safetensors")
    table = json.dumps({name: tensor.shape for name, tensor in found.items()})

    def read(text):
        try:
            given = json.loads(text)
        except (ValueError, RecursionError):
            return
        if isinstance(given, dict):
            # what the safetensors library lets pass: shapes of whole numbers
            right = {name: safetensors_file.Tensor(folder, name, "F16", tuple(shape), 0) for name, shape in given.items()
                     if isinstance(shape, list) and all(type(side) is int and 0 <= side < 2**63 for side in shape)}
            family, parts = loading.whole_model.by_part(right, folder)
            loading.whole_model.sizes(family, parts, folder)
    return Reader(read, [table], share=2)


def autoencoder(folder):
    stand_ins.autoencoder(folder / "vae.safetensors")
    stand_ins.taesd(folder / "taesd_decoder.safetensors")
    return Reader(autoencoders.open_autoencoder, ["vae.safetensors", "taesd_decoder.safetensors", "taesd_encoder.safetensors"],
                  folder, share=2)


def picture_adapters(folder):
    """IP-Adapters of each kind, their image encoder, and T2I-Adapters, opened for a model."""
    config = UNetConfig(**stand_ins.UNET)
    unet, v1 = UNet2DConditionModel(config), families.FAMILIES[0]
    stand_ins.ip_adapter(folder / "plain.safetensors")
    kinds = {"plus": ip_adapter.Resampler(32, 64, 64, 4, 1, 64), "face": ip_adapter.FullImageProjection(32, 64)}
    channels = [each.to_k.weight.shape[0] for each in ip_adapter.cross_attentions(unet)]
    for name, projection in kinds.items():
        tensors = stand_ins.models.tensors(ip_adapter.IPAdapter(projection, 64, channels))
        save_file({key: tensor() for key, tensor in tensors.items()}, folder / f"{name}.safetensors")
    stand_ins.t2i_adapter(folder / "t2i")
    names = ["plain.safetensors", "plus.safetensors", "face.safetensors", "image_encoder/config.json",
             "image_encoder/model.safetensors", "t2i/config.json", "t2i/diffusion_pytorch_model.safetensors"]

    def read(path):
        if path.parent.name == "t2i":
            t2i_adapters.open_t2i_adapter(path.parent, config, v1)
        else:
            adapter = folder / "plain.safetensors" if path.parent.name == "image_encoder" else path
            part = ip_adapters.open_ip_adapter(adapter, unet, v1)
            if adapter.stem == "plain":
                ip_adapters.open_encoder(ip_adapters.find_encoder(None, adapter, None), part.model.image_proj)
    return Reader(read, names, folder, share=2)


def configs(folder):
    """config.json of each model."""
    rows = {"unet.json": UNetConfig, "vae.json": VAEConfig, "text.json": CLIPTextConfig}
    for name, sizes in zip(rows, (UNET, VAE, stand_ins.TEXT)):
        (folder / name).write_text(json.dumps(stand_ins.models.config(sizes)))
    return Reader(lambda path: rows[path.name].from_dict(read_json(path), path), list(rows), folder)


def scheduler(folder):
    """scheduler_config.json, and the plan that is made of it."""
    for name, settings in {"pndm": {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
                           "euler": {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True,
                                     "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
                           "lcm": {"_class_name": "LCMScheduler", "original_inference_steps": 50, "timestep_scaling": 10.0},
                           "unipc": {"_class_name": "UniPCMultistepScheduler", "solver_order": 2, "predict_x0": True},
                           "ddim": {"_class_name": "DDIMScheduler", "set_alpha_to_one": False, "clip_sample": False,
                                    "trained_betas": None, "timestep_spacing": "leading"}}.items():
        (folder / f"{name}.json").write_text(json.dumps(
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000,
             "steps_offset": 1, **settings}))

    def read(path):
        NoiseSchedule.from_config(read_json(path), path, "StableDiffusionPipeline").plan(steps=3)
    return Reader(read, [path.name for path in folder.iterdir()], folder, share=10)


def tokenizer(folder):
    stand_ins.models.write_tokenizer(folder, 560)
    (folder / "special_tokens_map.json").write_text(json.dumps(
        {"pad_token": "<|endoftext|>", "bos_token": {"content": "<|startoftext|>", "normalized": True}}))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    merges = [line for line in (folder / "merges.txt").read_text().splitlines()[1:] if line]
    (folder / "whole").mkdir()
    (folder / "whole" / "tokenizer.json").write_text(json.dumps(
        {"model": {"vocab": vocabulary, "merges": merges}, "truncation": {"max_length": 77}, "added_tokens": [
            {"id": 558, "content": "<|startoftext|>", "special": True, "normalized": False}]}))

    def read(path):
        CLIPTokenizer.from_folder(path.parent).encode("A red apple's peel, 42 cafés")
    names = ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "whole/tokenizer.json"]
    return Reader(read, names, folder, share=5)


# ---- small files that change a model

def loras(folder):
    """The files that people share, opened for a model and applied."""
    unet = shapes(UNet2DConditionModel(UNET))
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    flat = "lora_unet_" + layer.replace(".", "_")
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    random, f2 = stand_ins.random, np.float16
    files = {
        "kohya": {f"{flat}.lora_down.weight": random(4, 32), f"{flat}.lora_up.weight": random(32, 4),
                  f"{flat}.alpha": np.array(2, f2), f"{flat}.dora_scale": random(1, 32)},
        "conv": {f"{conv}.lora_down.weight": random(2, 32, 3, 3).astype(f2), f"{conv}.lora_mid.weight": random(2, 2, 3, 3),
                 f"{conv}.lora_up.weight": random(32, 2, 1, 1), f"{conv}.diff_b": random(32)},
        "loha": {f"{flat}.hada_{w}_{p}": random(*((32, 2) if p == "a" else (2, 32))) for w in ("w1", "w2") for p in "ab"},
        "lokr": {f"{flat}.lokr_w1": random(4, 4), f"{flat}.lokr_w2_a": random(8, 2), f"{flat}.lokr_w2_b": random(2, 8),
                 "bundle_emb.word.string_to_param.*": random(2, 64)},
        "peft/adapter_model": {f"base_model.model.{layer}.lora_A.weight": random(4, 32),
                               f"base_model.model.{layer}.lora_B.weight": random(32, 4),
                               f"base_model.model.{layer}.lora_magnitude_vector": random(32)}}
    (folder / "peft").mkdir()
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 8})}
    for name, found in files.items():
        save_file(found, folder / f"{name}.safetensors", header)
    (folder / "peft" / "adapter_config.json").write_text(json.dumps({
        "r": 4, "lora_alpha": 8, "use_rslora": False, "rank_pattern": {"attn1": 4},
        "alpha_pattern": {r".*\.to_q": 2, "^a|b": 3}}))

    def read(path):
        path = path.parent / "adapter_model.safetensors" if path.suffix == ".json" else path
        found = lora.read_lora(path, {"unet": unet}, UNET, families.FAMILIES[0], OF_V1)
        for (_, name), change in found.changes.items():
            change(np.ones(unet[name], np.float32), 0.5)
        assert len(found.hash) == 12
    return Reader(read, [*(f"{name}.safetensors" for name in files), "peft/adapter_config.json"], folder, share=10)


def learnt_words(folder):
    save_file({"emb_params": stand_ins.random(2, 64)}, folder / "a.safetensors")
    save_file({"<cat-toy>": stand_ins.random(64).astype(np.float16)}, folder / "b.safetensors")
    save_file({"clip_l": stand_ins.random(2, 64), "clip_g": stand_ins.random(2, 96)}, folder / "xl.safetensors")

    def read(path):
        words = textual_inversion.LearntWords()
        words.add(path, fitting=OF_XL if path.stem == "xl" else OF_V1)
        list(words.split("a cat toy b (a:1.2) xl"))
    return Reader(read, ["a.safetensors", "b.safetensors", "xl.safetensors"], folder)


# ---- pictures

def in_format(kind, mode="RGB", **options):
    file = io.BytesIO()
    picture = Image.effect_noise((9, 7), 50).convert(mode)
    picture.save(file, kind, **options)
    return file.getvalue()


def pictures(folder):
    """As what is painted on, or as a mask."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, content in {
            "a.png": in_format("PNG"), "p.png": in_format("PNG", "P", transparency=3), "l.png": in_format("PNG", "L"),
            "i.png": in_format("PNG", "I;16"), "rgba.png": in_format("PNG", "RGBA"), "a.jpg": in_format("JPEG", exif=exif),
            "cmyk.jpg": in_format("JPEG", "CMYK"), "a.webp": in_format("WEBP", "RGBA"), "a.gif": in_format("GIF", "P"),
            "a.bmp": in_format("BMP"), "a.tiff": in_format("TIFF", compression="tiff_lzw"), "f.tiff": in_format("TIFF", "F"),
            "a.ppm": in_format("PPM")}.items():
        (folder / name).write_bytes(content)

    def read(path):
        if path.name in ("p.png", "l.png", "a.gif"):
            masks.read_mask(path, (8, 8))
        else:
            images.to_array(images.open_image(path), 16, 16)
    return Reader(read, [path.name for path in folder.iterdir()], folder, share=1)


def settings_in_pictures(folder):
    """The text of settings, wherever it may be in a file."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    plain, text = in_format("PNG"), SETTINGS_INSIDE.encode()
    for name, made in {"text": chunk(b"tEXt", b"parameters\0" + text),
                       "ztxt": chunk(b"zTXt", b"parameters\0\0" + zlib.compress(text)),
                       "itxt": chunk(b"iTXt", b"parameters\0\1\0en\0\0" + zlib.compress(text)),
                       "cpp": chunk(b"tEXt", b"parameters\0" + SD_CPP.encode())}.items():
        (folder / f"{name}.png").write_bytes(plain[:33] + made + plain[33:])
    exif = Image.Exif()
    exif.get_ifd(text_inside.EXIF_TABLE)[text_inside.USER_COMMENT] = b"UNICODE\0" + SETTINGS_INSIDE.encode("utf-16-be")
    for name, kind in ("a.jpg", "JPEG"), ("a.webp", "WEBP"), ("e.png", "PNG"):
        (folder / name).write_bytes(in_format(kind, exif=exif))
    exif = Image.Exif()
    exif[text_inside.DESCRIPTION] = SETTINGS_INSIDE
    (folder / "b.jpg").write_bytes(in_format("JPEG", exif=exif))
    (folder / "c.gif").write_bytes(in_format("GIF", "P", comment=text))
    return Reader(lambda path: settings_text.to_options(settings_text.parse_parameters(text_inside.read_text(path))[2]),
                  [path.name for path in folder.iterdir()], folder)


def like(folder):
    """--like, of a picture with any text inside: whatever can't be followed is a note, never a message that ends it."""
    path, plain = folder / "l.png", in_format("PNG")

    def read(text):
        data = b"parameters\0" + text.encode("utf-8", "replace")
        made = struct.pack(">I", len(data)) + b"tEXt" + data + struct.pack(">I", zlib.crc32(b"tEXt" + data))
        path.write_bytes(plain[:33] + made + plain[33:])
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            try:
                options.parse_options(["a cat", "--backend", "numpy", "--like", str(path)])
            except SystemExit:
                raise ValueError(f"it ends with: {said.getvalue()[-300:]}") from None
    return Reader(read, [SETTINGS_INSIDE, SD_CPP], share=5)


# ---- prompts, and lists of them

def prompts(folder):
    stand_ins.models.write_tokenizer(folder, 600)
    made = CLIPTokenizer.from_folder(folder)

    def read(text):
        prompt = Request(prompt=text[:5000]).prompt          # of 100,000 that it may have, but there are many of them
        prompt, _ = tags.take_tags(prompt)
        for steps, earlier in (7, None), (3, 9):
            reading.read_prompt(prompt, steps, made, earlier=earlier)
        reading.read_prompt(prompt, 4, made, "plain")
    return Reader(read, [
        "a red apple, (on:1.2) a [blue|green] table", "[a cat:a (dog:1.3):0.5] BREAK [[snow]] \\(b\\) [x::3][:y:.2]",
        "a <lora:ink:0.8:te=0.5> <lyco:a> AND b __c__ 's 42 café 🐱",
        "((((a))))[[[[b]]]] [a:[b|c|d]:4] (e:-1) (f:1e3)"], share=2)


def prompt_files(folder):
    (folder / "a.txt").write_text("a red apple --steps 20 --seed 5\n\na cat -n 'a dog' -s5 -b 2 --cfg=3 --zero-terminal-snr\n")
    (folder / "b.csv").write_text('prompt,negative_prompt,steps,seed,sampler\na red apple,blurry,20,5,euler\n"a, cat",,,-1,\n')

    def read(path):
        for _, row in prompts_file.read_prompts(path):
            try:
                Request.of(**{"prompt": "a"} | row)
            except UserError:
                pass
    return Reader(read, ["a.txt", "b.csv"], folder)


def manifests(folder):
    entry = one_by_one(Request("a cat", seed=1), {"seed"})[0]
    line = {"file": "a-cat-1.png", "seed": 1, "prompt": "a cat", "settings": {"steps": 50}, "asked": entry.asked}
    (folder / "manifest.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line | {"file": "b.png", "seed": 2}) + "\n")

    def read(path):
        with Manifest(folder, Listener()) as opened:
            opened.left([entry])
    return Reader(read, ["manifest.jsonl"], folder)


def wildcards(folder):
    (folder / "animals").mkdir()
    (folder / "colour.txt").write_text("red\n# none\nblue __animals/pets__\n\ngreen\n")
    (folder / "animals" / "pets.txt").write_text("cat\ndog of __colour__\nowl\n")

    def read(path):
        for seed in range(3):
            Wildcards(folder).expand(seed, "a __colour__ __animals/pets__ on __colour__", "__none")
    return Reader(read, ["colour.txt", "animals/pets.txt"], folder)


# ---- what programs and people write

def requests(folder):
    """Requests in JSON."""
    made = [Request("a cat", seed=3, steps=9, hires=1.5, sampler="euler", schedule="karras", rng="numpy").to_json(),
             Request("a", init_image=Image.new("RGB", (3, 2)), strength=0.5, outpaint={"left": 8}, mask_blur=2).to_json()]
    for number, text in enumerate(made):
        (folder / f"{number}.json").write_text(text)
    return Reader(lambda path: Request.from_json(path.read_text(encoding="utf-8", errors="surrogateescape")),
                  ["0.json", "1.json"], folder)


def values(folder):
    """What is typed behind options."""
    rows = [*SETTINGS.values(), *OPTIONS.values()]

    def read(text):
        for row in rows:
            try:
                value = row.kind.read(text)
            except Unfit:
                continue
            if row.name in SETTINGS and value is not None:
                row.kind.check(row.name, value)
    return Reader(read, ["5", "0.75", "-1", "euler a", "DPM++ 2M Karras", "4GB", "left=64,right=64", "true", "euler,heun"])


def bundled(folder):
    """Bytes that nobody has changed by rule: a table of contents of random length before random JSON."""
    content = save({"a": np.ones(3, np.float32)})
    (folder / "a.safetensors").write_bytes(content)
    return Reader(lambda path: library.describe("a", path), ["a.safetensors"], folder)


READERS = {"tensors": tensors, "GGUF": gguf, "shards": shards, "model": model,
           "single file": single_file, "names in a file": single_names,
           "autoencoder": autoencoder, "configs": configs, "scheduler": scheduler, "tokenizer": tokenizer, "loras": loras,
           "learnt words": learnt_words, "pictures": pictures, "settings in pictures": settings_in_pictures, "like": like,
           "prompts": prompts, "files of prompts": prompt_files, "manifest": manifests, "wildcards": wildcards,
           "requests": requests, "values": values, "picture adapters": picture_adapters, "list of models": bundled}
