"""Painting on a picture that is there already, or a second time on one's own.

    masks.py        where: a picture whose white is repainted, feathered, inverted
    outpainting.py  beyond the edges: the picture is extended, and the mask with it
    canvas.py       at which size: the whole picture, or only the part around the mask; and pasted back
    inpainting.py   how: what is kept is put back at each noise level, or given to models that were trained for it
    hires.py        hires fix: generate small, enlarge, denoise again
    refining.py     the last steps by another model, a refiner
    control.py      what ControlNets are shown
"""
