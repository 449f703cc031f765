"""The whole recipe with one command: every step goes on where it stopped, whatever stopped it.

    python -m weights.recipe [--minutes 60]        train for so long, or to the end of the plan; then export

vocabulary → autoencoder → text encoder and UNet, on latents of the frozen encoder → decoder alone → recipe/runs/model/.
States and logs lie in recipe/runs/, too. Where there are none, as in a fresh clone, training goes on from the shipped
model, whose steps progress.json counts.
"""

import argparse
import time

from . import export, settings, train_unet, train_vae, vocabulary


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--font", default=settings.FONT)
    args = parser.parse_args()
    end = time.monotonic() + args.minutes * 60

    def train(step, *more):
        step.main([*more, "--font", args.font, "--minutes", str(max(0.0, (end - time.monotonic()) / 60))])

    if not (settings.MODEL / "tokenizer" / "vocab.json").exists():
        vocabulary.main()
    train(train_vae, "--until", "encoder")
    train(train_unet)
    train(train_vae)
    export.main([])


if __name__ == "__main__":
    main()
