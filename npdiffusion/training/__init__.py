"""Learning: from a loss to new weights, for models that are run as they are.

    tape.py         what a forward pass computed, and the walk back to gradients     variable.py   an array on a tape
    gradient_checkpointing.py   blocks that are computed again, not remembered       precision.py   products in bfloat16
    optimizers.py   gradients → new parameters     rates.py       the learning rate of a step
    clipping.py     what precedes a step           averages.py    averaged weights
    runs.py         the folder of a training       curves.py      its log, drawn
    loop.py         all of this, step by step      initial.py     where it begins
    digits.py       MNIST and what stands for it   drawn_digits.py   from fonts
    digit_vae.py    a VAE of digits                vae_lesson.py     its training and its picture
    ddpm_lesson.py  a diffusion model of digits    model_folder.py   a model as a folder for -m and diffusers
    sd_lesson.py    a Stable Diffusion of digits   first_stage.py    its autoencoder
    compositions.py   pictures with captions       vocabulary.py     the words in them
    digit_judge.py  what it draws is judged
    denoising.py    the loss of a diffusion model  picture_folder.py   pictures with captions
    fine_tuning.py  a LoRA from pictures           lora_layers.py      what it is
    textual_inversion.py   a word from pictures    dreambooth.py       all weights from pictures
"""
