"""Lists of pictures: which are asked for, where they go, which are done.

    prompts_file.py   a picture for each line      wildcards.py   __words__ chosen at random
    destinations.py   names of files, sheets       manifest.py    what is done of a long run
"""
