"""Gradients that need kernels of their own; fast_gradients.py says which and when.

    weights.py        of a product's weight      attention.py      of queries, keys and values, in tiles
    direct_weights.py of the same, of few channels, from images as they lie
    winograd_weights.py of the same, of 3×3 kernels and many channels
    paired_weights.py of the same, from factors in bfloat16, by tile registers
    split_weights.py  of a matrix, from factors as three bfloat16 each, by tile registers
    partial_sums.py   of the same, from what several jobs have summed
    transposed.py     a packed weight, read the other way, so that the gradient of x is a product like any other
    normalization.py  of group and layer norm    elementwise.py    of activations, gates and cells of enlarged pixels
    sums.py           of biases
"""
