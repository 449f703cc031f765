"""Learning: from a loss to new weights, for models that are run as they are.

    optimizers.py   gradients → new parameters     rates.py       the learning rate of a step
    clipping.py     what precedes a step           averages.py    averaged weights
    runs.py         the folder of a training       curves.py      its log, drawn
    digits.py       MNIST and what stands for it   drawn_digits.py   from fonts
"""
