"""Regular expressions from files, as PEFT applies them to names of layers, in bounded time.

A part of an expression maps the set of positions where it may begin to the set of positions where it may end. No way
through an expression is tried twice, so that none takes exponential time, as (a+)+ does where a matcher backtracks
(Thompson 1968, doi:10.1145/363347.363387). Whether a name matches is what Python's `re` says of literals, . [ ] ( ) |
* + ? { } ^ $ and \\d \\w \\s; backreferences, assertions and flags are refused.
"""
import re
import warnings

LONGEST = 500                 # characters of an expression
DEEPEST = 30                  # parentheses in parentheses
MOST_STEPS = 3_000_000        # of all names together: two or three seconds

TOKEN = re.compile(r"(?P<one>\\[dDwWsS\W_]|\[\^?\]?(?:\\.|[^\]\\])*\]|\.)|(?P<repeat>[*+?]|\{\d+\}|\{\d*,\d*\})\??"
                   r"|(?P<open>\((?!\?)|\(\?:)|(?P<close>\))|(?P<bar>\|)|(?P<begin>\^)|(?P<end>\$)|(?P<char>[^\\(\[])",
                   re.DOTALL)
COUNTS = {"*": "{0,}", "+": "{1,}", "?": "{0,1}"}


class Allowance:
    """Steps that all expressions of a file may take together"""
    def __init__(self, steps=MOST_STEPS):
        self.left = steps

    def take(self, starts):
        self.left -= len(starts) + 1
        if self.left < 0:
            raise ValueError("its regular expressions take too long to be matched")


class Patterns:
    """Expressions of which the first that fits a name is looked for. ValueError for one that can't be followed."""
    def __init__(self, expressions, allowance):
        self.known = [(expression, Parser(expression, allowance.take).whole()) for expression in expressions]

    def find(self, *names):
        """The first expression that is the end of one of the names, from a dot or the beginning on, or None"""
        for expression, ends in self.known:
            for name in names:
                starts = {0, *(i + 1 for i, c in enumerate(name) if c == ".")}
                if len(name) in ends(name, starts):
                    return expression
        return None


class Parser:
    """An expression → a function (name, positions where it may begin) → positions where it may end"""
    def __init__(self, expression, take):
        self.expression, self.take, self.tokens = expression, take, []
        end = 0
        while end < len(expression):
            found = TOKEN.match(expression, end)
            if len(expression) > LONGEST or not found:
                self.fail()
            self.tokens.append(found)
            end = found.end()

    def fail(self):
        raise ValueError(f"{self.expression[:80]!a} is no regular expression that can be followed")

    def whole(self):
        found = self.choice(0)
        if self.tokens:
            self.fail()                                    # a parenthesis that was never opened
        return found

    def choice(self, depth):
        """Sequences between bars, up to a closing parenthesis, which is left"""
        options = [self.sequence(depth)]
        while self.tokens and self.tokens[0]["bar"]:
            del self.tokens[0]
            options.append(self.sequence(depth))
        return options[0] if len(options) == 1 else lambda name, starts: set().union(
            *(option(name, starts) for option in options))

    def sequence(self, depth):
        parts = []
        while self.tokens and not (self.tokens[0]["bar"] or self.tokens[0]["close"]):
            parts.append(self.repeated(self.tokens.pop(0), depth))

        def ends(name, starts):
            for part in parts:
                if not starts:
                    break
                starts = part(name, starts)
            return starts
        return ends

    def repeated(self, token, depth):
        """One part and the quantifier behind it, if there is one"""
        part = self.part(token, depth)
        if not self.repeats(0):
            return part
        written = self.tokens.pop(0)["repeat"]
        least, comma, most = COUNTS.get(written, written)[1:-1].partition(",")
        least, most = int(least or 0), int(most) if most else None if comma else int(least)
        if token["begin"] or token["end"] or self.repeats(0) or (most is not None and most < least):
            self.fail()
        return self.repetition(part, least, most)

    def part(self, token, depth):
        if is_character(token):
            run = [token[0]]
            while self.tokens and is_character(self.tokens[0]) and not self.repeats(1):
                run.append(self.tokens.pop(0)[0])
            return self.characters(run)
        if token["open"]:
            inside = self.choice(depth + 1) if depth < DEEPEST else self.fail()
            if not self.tokens:
                self.fail()
            del self.tokens[0]
            return inside
        if token["begin"]:
            return lambda name, starts: starts & {0}
        if token["end"]:
            return lambda name, starts: starts & {len(name)}
        return self.fail()                                 # nothing that could be repeated

    def repeats(self, which):
        """Whether that token is a quantifier"""
        return len(self.tokens) > which and self.tokens[which]["repeat"]

    def characters(self, run):
        """As many characters, each of the kind written: without quantifiers `re` looks at each of them once"""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                # of "[[", which may mean something else one day
            try:
                fits = re.compile("".join(run)).match
            except re.error:
                self.fail()

        def ends(name, starts):
            self.take(starts)
            return {start + len(run) for start in starts if fits(name, start)}
        return ends

    def repetition(self, part, least, most):
        def ends(name, starts):
            for _ in range(min(least, len(name) + 1)):     # more change nothing
                starts = part(name, starts)
            found, new = set(starts), starts
            for _ in range(len(name) + 1 if most is None else min(most - least, len(name) + 1)):
                new = part(name, new) - found
                if not new:
                    break
                found |= new
            return found
        return ends


def is_character(token):
    """Whether a token stands for one character"""
    return token["one"] or token["char"]
