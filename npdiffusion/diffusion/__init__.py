"""From noise to x̂₀: everything about the process and nothing about the network.

    denoiser.py   what the UNet predicts → x̂₀, and classifier-free guidance      defaults.py   steps and guidance scale
    samplers/     from noise to a picture, step by step                          schedules/    which noise levels
    noise/        seeded normal numbers                                          bar.py       how far it is
"""
