"""Lists of pictures, the same for a command, a server and a cluster: which are asked for, where they go, which are done.

    entries.py        one picture of a list            prompts_file.py   lists in files
    render.py         making them, one by one          wildcards.py      __words__ chosen at random
    destinations.py   names of files, sheets           manifest.py       what is done of a long run
    cluster.py        by many processes                worker.py         what each of those does
    listener.py       who hears of it: nothing in this room prints
"""
