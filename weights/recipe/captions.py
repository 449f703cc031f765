"""How a scene is put into words: `caption` in one plain wording, or in one of thousands.

    who      [two] [small] [blue] cat(s), with or without article        "a small blue cat", "two cats"
    where    "on the left", "in the top left corner", "in the middle"
    ground   "on a red background", "on red", "in a meadow", "at night"
    around   "a picture of …", another order, words that mean nothing here

What is not said is free: a caption may leave the ground out. Words without a meaning in this small world (adjectives,
other people's prompts, mere letters) are sprinkled over some captions, so that the model learns to pass over them.
"""

from .scenes import COLOURS, UNCOUNTED
from .subjects import NATURAL_COLOURS

WITHOUT_ARTICLE = UNCOUNTED - {"fire", "ice cream"}
IRREGULAR = {"mouse": "mice", "sheep": "sheep", "fish": "fish", "deer": "deer", "maple leaf": "maple leaves",
             "snowman": "snowmen"}
SIZES = {"small": ("small", "small", "little", "tiny"), "big": ("big", "big", "large", "huge")}
SIDES = {
    "left": ("on the left", "on the left", "at the left", "to the left", "on the left side"),
    "right": ("on the right", "on the right", "at the right", "to the right", "on the right side"),
    "top": ("at the top", "at the top", "on top", "above"),
    "bottom": ("at the bottom", "at the bottom", "below"),
    "centre": ("in the middle", "in the centre", "in the center"),
}
GROUNDS = {
    "meadow": ("on a meadow", "in a meadow", "on the grass", "on grass under a blue sky", "on green grass"),
    "beach": ("on a beach", "on the beach", "on the sand", "on sand under a blue sky"),
    "sea": ("at sea", "on the sea", "on the water", "on water under a blue sky"),
    "snow": ("in the snow", "on snow", "on snow under a gray sky", "in winter"),
    "sunset": ("at sunset", "at sunset", "in the evening", "in front of a sunset"),
    "night": ("at night", "at night", "in the night sky", "under the stars", "in a starry night", "among stars"),
}
SCENES = {
    "meadow": "a meadow", "beach": "a beach", "sea": "the sea", "snow": "snow", "sunset": "a sunset",
    "night": "a night sky with stars",
}
OPENINGS = (
    "a picture of", "a picture of", "an image of", "a photo of", "a drawing of", "an emoji of", "picture of", "draw",
)
FILLERS = (
    "cute", "happy", "beautiful", "nice", "lovely", "funny", "old", "new", "pretty", "fluffy", "shiny", "friendly",
    "sad", "fancy", "magic", "famous", "plain", "simple",
)
ENDINGS = (
    "highly detailed", "8 k", "best quality", "masterpiece", "digital art", "trending on artstation", "oil painting",
    "watercolor", "cartoon style", "flat design", "photorealistic", "sharp focus", "for my friend", "please",
)


def with_article(words):
    """"cat" → "a cat", "orange background" → "an orange background", "grapes" → "grapes"."""
    if any(f" {words}".endswith(f" {noun}") for noun in WITHOUT_ARTICLE):
        return words
    vowel = words[0] in "aeio" or words.startswith(("umbrella", "ugly"))             # "a unicorn", "a ufo"
    return f"{'an' if vowel else 'a'} {words}"


def plural(name):
    """"cat" → "cats", "teddy bear" → "teddy bears", "fox" → "foxes"."""
    if name in IRREGULAR:
        return IRREGULAR[name]
    if name.endswith(("s", "x", "ch", "sh", "tomato", "volcano")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def caption(scene, rng=None, whole=False):
    """The scene in words: the plain wording without a generator, one of many with one.

    whole: leave nothing out, as the judge needs it; in training the ground or which corner may be left open
    """
    wording = Wording(rng, whole)
    ground = wording.ground(scene.background)
    if not scene.subjects:
        return ground if scene.background in COLOURS else SCENES[scene.background]
    who, where = wording.who(scene), wording.where(scene)
    return wording.around(who, where, ground, scene.background)


class Wording:
    """One way of saying things; without a generator always the first of the possible ways."""

    def __init__(self, rng, whole):
        self.rng, self.whole = rng, whole

    def chance(self, share):
        return self.rng is not None and self.rng.random() < share

    def one_of(self, ways):
        return ways[0] if self.rng is None else ways[self.rng.integers(len(ways))]

    def who(self, scene):
        size = self.one_of(SIZES[scene.size]) if scene.size else ""
        filler = self.one_of(FILLERS) if self.chance(0.06) else ""
        number, plain_or_plural = "", str
        if scene.count > 1:
            number = self.one_of({2: ("two", "two", "2", "a pair of"), 3: ("three", "three", "3")}[scene.count])
            plain_or_plural = plural
        named = [(number, filler, size, scene.tint or self.natural(name), plain_or_plural(name)) for name in scene.subjects]
        named = [" ".join(word for word in words if word) for words in named]
        if number:
            return named[0]
        if not self.chance(0.2):
            named = [with_article(name) for name in named]
        if len(named) == 1:
            return named[0]
        first, second = named
        if self.chance(0.35):
            return f"{first} on the left and {second} on the right"
        return first + self.one_of((" and ", " and ", " next to ", " beside ", " with ", ", ")) + second

    def natural(self, name):
        """Sometimes what goes without saying is said: "a red apple"."""
        return NATURAL_COLOURS[name][0] if name in NATURAL_COLOURS and self.chance(0.2) else ""

    def where(self, scene):
        place = scene.place
        if place in SIDES:
            return self.one_of(SIDES[place])
        if not place:
            return ""
        upper = place.replace("top", "upper").replace("bottom", "lower")
        if not self.whole and self.chance(0.25):
            return self.one_of(("in the corner", "in a corner"))
        return self.one_of((
            f"in the {place} corner", f"in the {place} corner", f"in the {upper} corner", f"at the {place}",
        ))

    def ground(self, background):
        if background in GROUNDS:
            return self.one_of(GROUNDS[background])
        background = "grey" if background == "gray" and self.chance(0.3) else background
        return with_article(f"{background} background")

    def around(self, who, where, ground, background):
        placed = f"{who} {where}".rstrip()
        if background in GROUNDS:
            said = self.one_of((
                f"{placed} {ground}", f"{placed} {ground}", f"{who} {ground} {where}".rstrip(), f"{placed}, {ground}",
                f"{ground}, {placed}", f"{SCENES[background]} with {placed}",
            ))
        elif self.chance(0.5):
            said = f"{placed} on {ground}"
        else:
            colour = ground.split()[1]
            said = self.one_of((
                f"{placed} on {ground}", f"{placed} on {colour}", f"{who} on {colour} {where}".rstrip(),
                f"{colour} background, {placed}", f"{placed}, {colour} background", f"{ground} with {placed}",
                f"{placed} with {ground}", f"{placed} in front of {ground}", f"{who} on {ground} {where}".rstrip(),
                f"{who} on {ground}, {where}".rstrip(", "),
            ))
        if not self.whole and self.chance(0.07):
            said = placed                                   # the ground is free
        if self.chance(0.12):
            said = f"{self.one_of(OPENINGS)} {said}"
        if self.chance(0.06):
            said = f"{said}, {self.one_of(ENDINGS)}"
        if self.chance(0.05):
            said = self.strewn(said)
        return said

    def strewn(self, text):
        """A word of random letters somewhere, which means nothing."""
        word = "".join(chr(97 + letter) for letter in self.rng.integers(26, size=self.rng.integers(2, 9)))
        words = text.split()
        words.insert(self.rng.integers(len(words) + 1), word)
        return " ".join(words)
