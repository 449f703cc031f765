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
    "🐴": "horse", "🐭": "mouse", "🐨": "koala", "🦓": "zebra", "🐑": "sheep", "🐓": "rooster", "🦈": "shark",
    "🐊": "crocodile", "🦖": "dinosaur", "🦇": "bat", "🕷": "spider", "🦞": "lobster", "🦘": "kangaroo", "🐿": "squirrel",
    "🦌": "deer",
}
PLANTS = {
    "🌵": "cactus", "🌲": "tree", "🌴": "palm tree", "🌻": "sunflower", "🌹": "rose", "🌷": "tulip", "🍀": "clover",
    "🍁": "maple leaf", "🍄": "mushroom", "🌼": "daisy",
}
FOOD = {
    "🍎": "apple", "🍌": "banana", "🍊": "tangerine", "🍋": "lemon", "🍇": "grapes",
    "🍓": "strawberry", "🍒": "cherries", "🍉": "watermelon", "🍍": "pineapple", "🥑": "avocado", "🍅": "tomato",
    "🥕": "carrot", "🌽": "corn", "🧀": "cheese", "🍔": "hamburger", "🍕": "pizza", "🌭": "hot dog", "🍩": "doughnut",
    "🍪": "cookie", "🎂": "cake", "🍦": "ice cream", "🍭": "lollipop", "☕": "coffee",
    "🍐": "pear", "🍑": "peach", "🍆": "eggplant", "🥦": "broccoli", "🥝": "kiwi", "🌶": "chili pepper", "🥐": "croissant",
    "🥨": "pretzel", "🍟": "fries", "🍿": "popcorn", "🧁": "cupcake",
}
THINGS = {
    "🚀": "rocket", "🚗": "car", "🚌": "bus", "🚲": "bicycle", "🚂": "locomotive", "🚁": "helicopter", "⛵": "sailboat",
    "🚜": "tractor", "🎈": "balloon", "🎁": "present", "🎸": "guitar", "🎺": "trumpet", "🥁": "drum", "⚽": "soccer ball",
    "🏀": "basketball", "🏆": "trophy", "🔑": "key", "🔔": "bell", "💡": "light bulb", "📷": "camera",
    "⏰": "alarm clock", "👑": "crown", "💎": "gem", "🎩": "top hat", "👟": "shoe", "☂": "umbrella", "🔨": "hammer",
    "⚓": "anchor", "📕": "book", "🧸": "teddy bear", "🏠": "house", "🏰": "castle", "⛺": "tent", "🌋": "volcano",
    "✈": "airplane", "🚒": "fire truck", "🛸": "ufo", "🎻": "violin", "🧲": "magnet", "🎯": "target", "🎲": "dice",
    "🪁": "kite", "🪑": "chair", "🛋": "couch", "🚪": "door", "📺": "television", "☎": "telephone", "🕯": "candle",
    "👗": "dress", "✂": "scissors", "🏮": "lantern",
}
SKY_AND_SIGNS = {
    "⭐": "star", "🌙": "moon", "🌞": "sun", "🌈": "rainbow", "🔥": "fire", "⚡": "lightning", "❤": "heart",
    "🌍": "globe", "⛄": "snowman", "🎃": "pumpkin", "👻": "ghost", "👽": "alien", "🤖": "robot", "💀": "skull",
    "🤡": "clown", "🎅": "santa",
}

EMOJI = {name: emoji for table in (ANIMALS, PLANTS, FOOD, THINGS, SKY_AND_SIGNS) for emoji, name in table.items()}
NAMES = tuple(EMOJI)

# Subjects of mostly one colour: they are also shown in others ("a blue apple"). Here is what they are by nature, the
# word for it first; in none of these colours are they called shifted.
NATURAL_COLOURS = {
    "apple": "red", "heart": "red", "balloon": "red", "book": "red", "car": "red", "telephone": "red", "lobster": "red",
    "tomato": "red", "strawberry": "red orange", "rose": "red", "ladybug": "red", "mushroom": "red orange",
    "lantern": "red orange", "magnet": "red", "alarm clock": "red", "octopus": "red pink", "flamingo": "pink red",
    "pig": "pink", "crab": "orange red", "fox": "orange", "tiger": "orange yellow", "tangerine": "orange yellow",
    "pumpkin": "orange", "basketball": "orange red", "butterfly": "orange", "teddy bear": "brown orange",
    "bear": "brown orange", "horse": "brown orange", "chair": "brown orange", "door": "brown orange red",
    "kangaroo": "brown orange", "cat": "yellow orange", "lion": "yellow orange", "star": "yellow", "moon": "yellow",
    "key": "yellow orange", "bell": "yellow orange", "trophy": "yellow orange", "crown": "yellow orange",
    "banana": "yellow orange", "lemon": "yellow", "cheese": "yellow", "sunflower": "yellow orange",
    "lightning": "yellow", "camel": "yellow orange", "frog": "green yellow", "snake": "green yellow",
    "turtle": "green yellow", "dinosaur": "green yellow", "crocodile": "green yellow", "cactus": "green",
    "tree": "green", "clover": "green", "pear": "green yellow", "fish": "blue", "dolphin": "blue", "whale": "blue",
    "dress": "blue", "shoe": "blue", "gem": "blue", "umbrella": "purple blue",
}
NATURAL_COLOURS = {name: tuple(colours.split()) for name, colours in NATURAL_COLOURS.items()}


def name_in_unicode(name):
    """"cat" → "cat face"."""
    return unicodedata.name(EMOJI[name]).lower()
