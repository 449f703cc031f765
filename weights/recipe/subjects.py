"""What the model can draw: a table from an emoji to the name it goes by in captions.

The names are Unicode's, in lower case, shortened where people say less: "cat face" → "cat", "high voltage sign" →
"lightning". Left out are things that vanish on a white background (cloud, egg) and near twins (wolf beside fox,
boat beside ship). `name_in_unicode` gives the full name, so that each row can be checked.
"""

import unicodedata

ANIMALS = {
    "🐱": "cat", "🐶": "dog", "🦊": "fox", "🐻": "bear", "🐼": "panda", "🐸": "frog", "🐷": "pig", "🐮": "cow",
    "🦁": "lion", "🐯": "tiger", "🐰": "rabbit", "🐵": "monkey", "🐔": "chicken", "🐧": "penguin", "🦉": "owl",
    "🦋": "butterfly", "🐝": "bee", "🐞": "ladybug", "🐢": "turtle", "🐍": "snake", "🐙": "octopus", "🦀": "crab",
    "🐟": "fish", "🐬": "dolphin", "🐳": "whale", "🐘": "elephant", "🦒": "giraffe", "🐪": "camel", "🦔": "hedgehog",
    "🐌": "snail", "🦄": "unicorn", "🦜": "parrot", "🦆": "duck", "🦩": "flamingo",
}
PLANTS = {
    "🌵": "cactus", "🌲": "tree", "🌴": "palm tree", "🌻": "sunflower", "🌹": "rose", "🌷": "tulip", "🍀": "clover",
    "🍁": "maple leaf", "🍄": "mushroom",
}
FOOD = {
    "🍎": "red apple", "🍏": "green apple", "🍌": "banana", "🍊": "tangerine", "🍋": "lemon", "🍇": "grapes",
    "🍓": "strawberry", "🍒": "cherries", "🍉": "watermelon", "🍍": "pineapple", "🥑": "avocado", "🍅": "tomato",
    "🥕": "carrot", "🌽": "corn", "🧀": "cheese", "🍔": "hamburger", "🍕": "pizza", "🌭": "hot dog", "🍩": "doughnut",
    "🍪": "cookie", "🎂": "cake", "🍦": "ice cream", "🍭": "lollipop", "☕": "coffee",
}
THINGS = {
    "🚀": "rocket", "🚗": "car", "🚌": "bus", "🚲": "bicycle", "🚂": "locomotive", "🚁": "helicopter", "⛵": "sailboat",
    "🚜": "tractor", "🎈": "balloon", "🎁": "present", "🎸": "guitar", "🎺": "trumpet", "🥁": "drum", "⚽": "soccer ball",
    "🏀": "basketball", "🏆": "trophy", "🔑": "key", "🔔": "bell", "💡": "light bulb", "📷": "camera",
    "⏰": "alarm clock", "👑": "crown", "💎": "gem", "🎩": "top hat", "👟": "shoe", "☂": "umbrella", "🔨": "hammer",
    "⚓": "anchor", "📕": "book", "🧸": "teddy bear", "🏠": "house", "🏰": "castle", "⛺": "tent", "🌋": "volcano",
}
SKY_AND_SIGNS = {
    "⭐": "star", "🌙": "moon", "🌞": "sun", "🌈": "rainbow", "🔥": "fire", "⚡": "lightning", "❤": "heart",
    "🌍": "globe", "⛄": "snowman", "🎃": "pumpkin", "👻": "ghost", "👽": "alien", "🤖": "robot", "💀": "skull",
    "🤡": "clown",
}

EMOJI = {name: emoji for table in (ANIMALS, PLANTS, FOOD, THINGS, SKY_AND_SIGNS) for emoji, name in table.items()}
NAMES = tuple(EMOJI)


def name_in_unicode(name):
    """"cat" → "cat face"."""
    return unicodedata.name(EMOJI[name]).lower()
