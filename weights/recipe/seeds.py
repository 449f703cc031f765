"""How much seeds differ when subject and ground are said: the mean difference of two pictures of one caption.

    difference   mean of |a − b| over pixels, channels, and all pairs of eight seeds      0 … 255

    python -m weights.recipe.seeds [-o strip.png]      of the model, and of drawn scenes (--with font)
"""

from itertools import combinations

import numpy as np
from PIL import Image

from .captions import caption
from .exam import Question
from .judge import Artist, Drawn, arguments
from .scenes import Scene, load_sprites

ASKED = tuple(Scene((name,), ground) for name, ground in (
    ("cat", "green"), ("apple", "blue"), ("rocket", "white"), ("owl", "purple"), ("bicycle", "yellow"), ("octopus", "sea"),
    ("dog", "meadow"), ("snowman", "night")))
SEEDS = range(8)


def difference(pictures):
    """(N, H, W, 3) uint8 → mean absolute difference of two of them, 0 … 255"""
    each = [np.abs(a.astype(np.float32) - b).mean() for a, b in combinations(pictures, 2)]
    return float(np.mean(each))


def main():
    parser = arguments(__doc__)
    parser.set_defaults(steps=20, sampler="dpm++2m")
    parser.add_argument("-o", "--output", default=None, metavar="FILE", help="keep the pictures, a caption in each row")
    args = parser.parse_args()
    if args.drawer == "font":
        artist = Drawn(load_sprites(args.font))
    else:
        artist = Artist(args.model, args.steps, args.guidance, args.sampler)
    rows = []
    for scene in ASKED:
        questions = [Question("seeds", scene, caption(scene), seed) for seed in SEEDS]
        rows.append(np.stack([np.asarray(picture) for picture in artist.generate(questions)]))
        print(f"{caption(scene):32} {difference(rows[-1]):5.1f}")
    print(f"{'mean':32} {np.mean([difference(row) for row in rows]):5.1f}")
    if args.output:
        Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows])).save(args.output)


if __name__ == "__main__":
    main()
