"""Everything that multiplies matrices: linear layers, convolution, attention.

    matmul.py       linear layers, and the blocked product itself     patches.py   rows of a product gathered from an image
    convolution.py  picks an algorithm       winograd.py   3×3 in a quarter of the products       winograd_transforms.py
    few_outputs.py  to 1 or 3 channels       direct.py     few channels, patches read from the image as it lies
    flash_attention.py     running_softmax.py  its softmax, block by block     transposition.py  L × L blocks in registers
    attention_words.py     its keys and values in bfloat16
    int8_matmul.py  products and convolutions with bytes for weights          int8_rows.py   x as bytes
    int8_packing.py        their weights in panels     int8_tile.py   their register tile     blocking.py   jobs
    job_sizes.py    how large they may be, as measured
    microkernel.py  the register tile        packing.py   weights in the order of the tile        epilogue.py   the last pass
    amx_tile.py     a larger one where the processor has registers for tiles     windows.py   which read an image as it lies
    split_matmul.py        products of float32 in it      splitting.py   each number as a sum of three bfloat16
"""
