"""The networks. They open no file and know no option.

    layers.py        one operation each, with parameters under the checkpoint's names
    attention.py     self- and cross-attention                  transformer.py   what surrounds it in the UNet
    resnet.py        residual block, down- and upsampling
    unet.py          the UNet                                   clip.py          the text encoder
    controlnet.py    a copy of its way down, led by a picture   t2i_adapter.py   a small network that leads it, too
    clip_vision.py   CLIP's image encoder                       ip_adapter.py    a picture as a prompt
    vae.py           the autoencoder       taesd.py   a tiny one       tiling.py   either, over a large picture in tiles
    conditioning.py  what the UNet attends to, and what is computed once for several steps or images
    configs.py       their sizes, from config.json              parameters.py    their weights, by name
    on_disk.py       weights that are read when they are used   diagnosis.py     which layer made a NaN
    expected.py      what they say to an input of another shape or kind
    flops.py         how much arithmetic they are               tree.py          what print shows of them
"""
