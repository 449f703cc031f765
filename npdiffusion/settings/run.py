"""The options of a run: which model, where pictures go, how the machine is used. Rows like those of a picture's settings.

Imports nothing heavy, so that --help answers at once.
"""
from dataclasses import replace

from npdiffusion import kernels
from npdiffusion.diffusion import samplers
from npdiffusion.settings.kinds import Choice, Listed, Memory, Path, Several, Switch, Threads, Whole
from npdiffusion.settings.table import ABOUT, ADAPTERS, DECODING, MACHINE, MANY, MODEL, MOST_STEPS, PREVIEW, PROMPT, Setting

PREVIEWS = ("linear", "taesd", "vae")

OPTIONS = {name: replace(row, name=name) for name, row in {
    "like": Setting(Path(), "take all settings from those inside a picture (PNG, JPEG, WebP; AUTOMATIC1111's and "
                    "stable-diffusion.cpp's too); other options override them", metavar="FILE"),
    "output": Setting(Path(), "file (.png, .jpg, .jpeg or .webp), or folder (one that ends in / is created); an existing file "
                      "is kept and the new one gets a number, which %03d in the name has a place for (default: here, a PNG "
                      "named after prompt and seed)", flags=("-o", "--output"), synonyms=("--out",), metavar="PATH"),
    "no_metadata": Setting(Switch(), "leave out of the file the settings, which are written there as AUTOMATIC1111 does",
                           False),
    "prompts": Setting(Path(), "a picture for each line: a prompt with options of its own behind it, or, in a .csv file, "
                       "columns named after options. -o is a folder, or a name with %03d in one, where manifest.jsonl records "
                       "what is done: the same command goes on where it was stopped", group=MANY, metavar="FILE",
                       synonyms=("--prompt-file", "--from-file")),
    "wildcards": Setting(Path(), "folder of text files: __name__ in a prompt is a line of name.txt, chosen by the seed",
                         group=MANY, metavar="DIR"),
    "cluster": Setting(Path(), "make the pictures of --prompts by many processes: tcp://head:8786, the address of a Dask "
                       "scheduler that `npdiffusion worker` works for, or its file (.json), or local:2, two processes here",
                       group=MANY, metavar="ADDRESS"),
    "grid": Setting(Switch(), "write a sheet with all pictures, too", False, MANY),
    "compare_samplers": Setting(Several(Choice(samplers.SAMPLERS)), "make one sheet with a column for each, and the seconds: "
                                "--compare-samplers euler,dpm++2m", group=MANY, metavar="NAMES"),
    "compare_steps": Setting(Several(Whole(1, MOST_STEPS)), "and a row for each number of steps: --compare-steps 10,25",
                             group=MANY, metavar="NUMBERS"),
    "embedding_dir": Setting(Path(), "folder with learnt words (textual inversion), which a prompt uses by their files' names",
                             group=PROMPT, metavar="DIR", synonyms=("--embd-dir", "--embeddings-dir")),
    "model": Setting(Path(), "folder in diffusers layout, .safetensors or .gguf file, Hugging Face id, or a name that "
                     "`npdiffusion models` lists (default: the embedded model, a small one that draws what `npdiffusion "
                     "subjects` shows, and nothing else)", group=MODEL, flags=("-m", "--model"), metavar="MODEL",
                     synonyms=("--ckpt", "--checkpoint")),
    "unet": Setting(Path(), "file or folder of a UNet in place of the model's own, of the same family: Lightning, LCM, DMD2",
                    group=MODEL, metavar="FILE", synonyms=("--diffusion-model",)),
    "control": Setting(Listed(Path()), "a ControlNet, a folder or file, which --control-image leads; repeated for several; the "
                       "embedded model comes with one called scribble",
                       group=MODEL, metavar="FILE", synonyms=("--control-net", "--controlnet")),
    "refiner": Setting(Path(), "another model, as by -m, that takes the last steps over where --refiner-at says: XL's refiner",
                       group=MODEL, metavar="MODEL"),
    "ip_adapter": Setting(Listed(Path()), "an IP-Adapter's file: --ip-image stands in the prompt; repeated for several",
                          group=MODEL, metavar="FILE"),
    "ip_encoder": Setting(Path(), "CLIP's image encoder for them, a folder or file (default: image_encoder/ beside the "
                          "adapter, or in the model's folder)", group=MODEL, metavar="DIR"),
    "t2i_adapter": Setting(Path(), "a T2I-Adapter, a folder or file, which --t2i-image leads", group=MODEL, metavar="FILE"),
    "model_dir": Setting(Path(), "folder of models, which -m can name without their path (default: $NPDIFFUSION_MODELS)",
                         group=MODEL, metavar="DIR"),
    "tokenizer": Setting(Path(), "folder with vocab.json and merges.txt, or an id, for a single file with none beside it",
                         group=MODEL, metavar="PATH"),
    "dtype": Setting(Choice(kernels.DTYPES), "how weights are kept: float32; bfloat16, which halves memory, is faster on "
                     "processors that multiply it, and rounds a little; or int8, bytes in most of the UNet, which rounds more "
                     "(default: float32, or what --max-memory makes best)",
                     group=MODEL, metavar="NAME"),
    "lora_dir": Setting(Path(), "folder with LoRA files, which a prompt uses by name and strength: \"a cat <lora:ink:0.8>\"",
                        group=ADAPTERS, metavar="DIR", synonyms=("--lora-model-dir",)),
    "vae": Setting(Path(), "file, folder or Hugging Face id of an autoencoder in place of the model's own: Stable Diffusion's "
                   "kind, or TAESD, which decodes much faster and a little coarser", group=DECODING, metavar="VAE"),
    "preview": Setting(Choice(PREVIEWS), "show what the picture is going to be: linear (roughly, takes no time), taesd (by the "
                       "tiny autoencoder), vae (exactly, as slow as decoding)", group=PREVIEW, metavar="KIND"),
    "preview_path": Setting(Path(), "PNG file that is written anew each time (default: preview.png beside the picture)",
                            group=PREVIEW, metavar="FILE"),
    "preview_every": Setting(Whole(1, MOST_STEPS), "steps from one preview to the next (default: 1)", 1, PREVIEW, metavar="K"),
    "steps_strip": Setting(Path(), "PNG file for all previews of a picture as one sheet", group=PREVIEW, metavar="FILE"),
    "inside": Setting(Path(), "write a look inside the picture as one HTML file: its words' attention maps, every step, every "
                      "layer; an existing file is kept and the new one gets a number", group=PREVIEW, metavar="FILE"),
    "taesd": Setting(Path(), "file, folder or id of TAESD for --preview taesd (default: that of --vae, or madebyollin/taesd "
                     "from Hugging Face's cache)", group=PREVIEW, metavar="VAE"),
    "threads": Setting(Threads(1, 4096), "how many cores work (default: the physical cores)", group=MACHINE,
                       flags=("-t", "--threads"), metavar="N"),
    "max_memory": Setting(Memory(), "that the command may take, 4GB for example: chooses --dtype, tiles, and whether weights "
                          "stay on disk and are read in each step, which is slower (default: no limit)", group=MACHINE,
                          metavar="AMOUNT"),
    "backend": Setting(Choice(kernels.BACKENDS), "numba (compiled) or numpy (readable, slower) (default: $NPDIFFUSION_BACKEND, "
                       "or numba)", group=MACHINE, metavar="NAME"),
    "verbose": Setting(Switch(), "all warnings, and where an error comes from", False, ABOUT, flags=("-v", "--verbose")),
    "info": Setting(Switch(), "show versions, processor, backend and model", False, ABOUT),
}.items()}

# Options of a run without effect: which, from its options to whether it is so, and why.
NO_EFFECT = (
    ("preview_every", lambda asked: not (asked.preview or asked.preview_path or asked.steps_strip), "without --preview"),
    ("sampler", lambda asked: asked.compare_samplers, "with --compare-samplers"),
    ("steps", lambda asked: asked.compare_steps, "with --compare-steps"),
    ("no_metadata", lambda asked: asked.compare_samplers, "with --compare-samplers, whose sheet has no settings inside"),
)
