"""The whole recipe with one command: every step goes on where it stopped, whatever stopped it.

    python -m weights.recipe [--minutes 60]        train for so long, or to the end of the plan; then export

vocabulary → autoencoder → text encoder and UNet, on latents of the frozen encoder → decoder alone → recipe/runs/model/
→ a ControlNet for scribbles → a LoRA for few steps, there, too.
States and logs lie in recipe/runs/, too. Where there are none, as in a fresh clone, training goes on from the shipped
model, whose steps progress.json counts.
"""

from . import export, settings, train_control, train_few_steps, train_unet, train_vae
from .training import Clock, parser, prepared


def main():
    args = prepared(parser(__doc__).parse_args())
    clock = Clock(args.minutes)

    def train(part, *more):
        return part.main([*more, "--font", args.font, "--runs", str(args.runs), "--minutes", str(clock.left)])

    if not (settings.MODEL / "tokenizer" / "vocab.json").exists():
        from . import vocabulary
        vocabulary.main()
    if train(train_vae, "--until", "encoder") and train(train_unet) and train(train_vae):   # begun when that before is done
        export.main(["--runs", str(args.runs)])             # for what is said of the next two while they learn
        if train(train_control):
            train(train_few_steps)
    export.main(["--runs", str(args.runs)])


if __name__ == "__main__":
    main()
