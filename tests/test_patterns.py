"""Regular expressions in LoRA files: what fits is what PEFT says, in bounded time."""
import random
import re
import time
import warnings

import pytest
from peft.utils.other import get_pattern_key

from npdiffusion.adapters.patterns import Allowance, Patterns

NAMES = ("down_blocks.0.attentions.1.attn1.to_q", "mid_block.attentions.0.attn2.to_out.0", "a.b", "ab_a.b1", "aaaa", "b")
PIECES = ["a", "b", "_", ".", r"\.", r"\d", r"\w", "[ab]", "[^a]", "[a-c_]", "[]x]", "(", "(?:", ")", "|", "*", "+", "?",
          "{2}", "{1,}", "{,2}", "{2,1}", "^", "$", "0", "*?", "]", "{", "}", "-", r"\-", "attn1", "to_q", ".*"]


def fits(expression, name):
    return Patterns([expression], Allowance()).find(name) is not None


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_random_expressions_fit_what_they_fit_in_peft():
    chosen, compared = random.Random(0), 0
    for _ in range(20_000):
        expression = "".join(chosen.choice(PIECES) for _ in range(chosen.randint(1, 8)))
        try:
            found = [fits(expression, name) for name in NAMES]
        except ValueError:
            if not re.search(r"[*+?}]\+", expression):     # possessive, which Python knows from 3.11 on
                with pytest.raises(re.error):
                    re.compile(expression)
            continue
        assert found == [get_pattern_key([expression], name) is expression for name in NAMES], expression
        compared += any(found)
    assert compared > 1000


def test_the_first_expression_that_fits_counts():
    keys = [r"attn1\.to_k", r"attentions\.\d+\.attn1.*", "to_q", "attn1.to_q"]
    assert Patterns(keys, Allowance()).find("down.attentions.3.attn1.to_q") == get_pattern_key(
        keys, "down.attentions.3.attn1.to_q") == keys[1]


@pytest.mark.parametrize("expression", ["(a+)+$x", "(a|a)*b", "((a*)*)*b", "(.*)*(.*)*(.*)*x", "(a?){300}(a){300}",
                                        "(a|aa)+" * 20 + "b", "(a{,99}){,99}b"])
def test_no_expression_takes_exponential_time(expression):
    start = time.perf_counter()
    assert not fits(expression, "a" * 100)
    assert time.perf_counter() - start < 5


def test_all_expressions_of_a_file_share_an_allowance():
    patterns = Patterns(["(a*b?)*c"] * 1000, Allowance(10_000))
    with pytest.raises(ValueError, match="take too long"):
        for _ in range(100):
            patterns.find("ab" * 30)


@pytest.mark.parametrize("expression", ["(", "a)", "*", "a**", "(?=a)", r"(a)\1", r"\b", "[a", "a{3,2}", "(?P<x>a)", "\\",
                                        "(" * 40 + ")" * 40, "a" * 501, "a++", "(?i)a"])
def test_what_is_no_such_expression_is_refused(expression):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="is no regular expression that can be followed"):
            fits(expression, "a")
