"""What fits, and what to do so that it fits.

    estimates.py   how much a model and a picture need, how much there is      budget.py   --max-memory
    tiles.py       size of the autoencoder's tiles                             malloc.py   memory used again
    seconds.py     how long a step will take
"""
