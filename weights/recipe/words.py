"""The words that captions are made of: `weights/words.json`, for programs that have the model but not its recipe.

    python -m weights.recipe.words             writes weights/words.json

    subjects    by kind: emoji, name, as a caption has it, plural (null where nobody counts), colours besides its own
    grounds     {ground: the plain wording}
    words       every single word that has a meaning here, and those that need none
    near        {a word that the model does not know: the word it knows that comes nearest}
"""

import json

from . import settings
from .captions import ENDINGS, FILLERS, GROUNDS, OPENINGS, SCENES, SIDES, SIZES, caption, plural, with_article
from .scenes import COLOURS, PLACES, UNCOUNTED, Scene, tints_of
from .subjects import ANIMALS, FOOD, NAMES, PLANTS, SKY_AND_SIGNS, THINGS

KINDS = {"animals": ANIMALS, "plants": PLANTS, "food": FOOD, "things": THINGS, "sky and signs": SKY_AND_SIGNS}
FILE = settings.MODEL / "words.json"
COUNTED = [name for name in NAMES if name not in UNCOUNTED]

# What holds captions together, and what prompts hold that has no look of its own: articles, prepositions, pronouns.
CONNECTING = """
a an the of and or with without in on at to into onto by for from as near next beside between under over behind above
below inside outside around through across along pair both each one left right upper lower side front corner background
grey is are was were be being been has have had do does it its this that these those there here he she they them his her
their we us our you your i me my who which what where while very some no not s
don isn doesn didn wasn aren
""".split()

ROWS = {
    "cat": "kitten kitty", "dog": "puppy hound", "rabbit": "bunny hare", "chicken": "hen chick", "cow": "bull calf ox",
    "horse": "pony foal donkey", "pig": "piglet hog", "sheep": "lamb goat", "bear": "cub", "lion": "lioness",
    "mouse": "rat hamster", "monkey": "ape gorilla chimpanzee", "fox": "wolf coyote",
    "tiger": "leopard cheetah panther jaguar", "deer": "reindeer moose elk", "whale": "orca",
    "crocodile": "alligator lizard", "turtle": "tortoise", "frog": "toad", "dinosaur": "dragon", "ladybug": "beetle",
    "bee": "wasp bumblebee fly", "butterfly": "moth", "duck": "goose swan", "parrot": "bird budgie",
    "owl": "eagle hawk falcon", "octopus": "squid jellyfish", "camel": "llama alpaca",
    "tree": "forest pine fir oak spruce wood woods", "daisy": "flower blossom", "rose": "poppy", "clover": "shamrock",
    "tangerine": "mandarin clementine", "watermelon": "melon", "hamburger": "burger sandwich", "doughnut": "donut bagel",
    "fries": "chips", "cake": "pie tart", "cookie": "biscuit cracker", "coffee": "tea cup mug", "grapes": "grape",
    "cherries": "cherry", "eggplant": "aubergine", "lollipop": "candy sweet", "corn": "maize",
    "rocket": "spaceship spacecraft shuttle", "car": "automobile taxi cab van", "bus": "coach tram",
    "bicycle": "bike motorcycle motorbike", "locomotive": "train engine railway", "sailboat": "boat ship yacht",
    "airplane": "plane aeroplane jet", "ufo": "saucer", "present": "gift parcel", "guitar": "banjo ukulele",
    "trumpet": "horn", "television": "tv screen monitor computer", "telephone": "phone", "violin": "cello fiddle",
    "couch": "sofa bench", "shoe": "boot sneaker", "dress": "skirt gown", "house": "home cottage hut building cabin",
    "castle": "palace tower fortress lighthouse church temple", "volcano": "mountain hill", "lantern": "lamp",
    "gem": "diamond jewel crystal", "book": "novel", "lightning": "thunder thunderbolt storm",
    "fire": "flame bonfire", "globe": "earth planet world", "robot": "android", "ghost": "spirit", "skull": "skeleton",
    "heart": "love", "umbrella": "parasol", "meadow": "field lawn garden park", "beach": "shore coast desert island",
    "sea": "ocean lake river", "snow": "blizzard", "sunset": "dawn sunrise dusk twilight sundown",
    "night": "midnight space galaxy cosmos universe", "red": "crimson scarlet maroon", "orange": "amber",
    "yellow": "gold golden", "green": "lime olive emerald", "blue": "turquoise cyan teal navy azure",
    "purple": "violet magenta lilac lavender indigo", "pink": "fuchsia", "brown": "tan bronze", "gray": "silver",
    "white": "ivory beige", "small": "mini miniature", "big": "giant enormous gigantic", "two": "couple",
    "three": "four five six seven eight nine ten several many few",
}
NEAR = {word: known for known, words in ROWS.items() for word in words.split()}


def words_known():
    """All single words that captions are made of, in lower case → set"""
    ways = [*SIZES.values(), *SIDES.values(), *GROUNDS.values()]
    texts = [*NAMES, *map(plural, COUNTED), *COLOURS, *PLACES, *SCENES.values(), *OPENINGS, *FILLERS, *ENDINGS,
             *(text for texts in ways for text in texts), "two three", *CONNECTING]
    return {word for text in texts for word in text.split()}


def content():
    """What words.json says."""
    known = words_known()
    return {
        "subjects": {kind: [
            {"emoji": emoji, "name": name, "caption": with_article(name),
             "plural": plural(name) if name in COUNTED else None, "colours": " ".join(tints_of(name))}
            for emoji, name in table.items()] for kind, table in KINDS.items()},
        "grounds": {ground: caption(Scene(("cat",), ground)).removeprefix("a cat ") for ground in (*COLOURS, *SCENES)},
        "words": " ".join(sorted(known)),
        "near": {word: NEAR[word] for word in sorted(NEAR) if word not in known},
    }


def main():
    FILE.write_text(json.dumps(content(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
