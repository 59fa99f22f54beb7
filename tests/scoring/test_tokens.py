"""The Python tokenizer against published cases, and against the jar where Java is."""

import time
import unicodedata
from pathlib import Path

import pytest

from cdcca_cli.scoring.captions import java, scorers
from cdcca_cli.scoring.captions.tokens import PUNCTUATION, tokenize
from tests.scoring.coco import captions_in_file_order, made_captions

# Ends with a word after which every rule stops, and begins with one that starts a sentence: so the
# jar, which reads on into the next line, finds there what `tokenize` takes for granted.
NEXT_LINE = "The ~"


def jar_tokens(texts: list[str]) -> list[str]:
    """Each text's tokens by the jar, as if the caption after it were NEXT_LINE."""
    if not java.has_java():
        pytest.skip("no Java here to compare with")
    lines = [line for text in texts for line in (text, NEXT_LINE)]
    return java.tokenize(lines, scorers.shipped("tokenizer"))[::2]


CASES = [
    # DEFINITIONS 10
    ("It isn't red.", "it is n't red"),
    ("It's red", "it 's red"),
    ("the U.S. flag", "the u.s. flag"),
    ("-LRB- x", "-lrb- x"),
    ('A "stop" sign; one, two: -- a - b... ok?!', "a stop sign one two a b. ok ?!"),
    # Penn Treebank conventions
    ("A cannot-do man can't", "a cannot-do man ca n't"),
    ("we cannot go", "we can not go"),
    ("a t-shirt and 22 3/4 inches at 11:44", "a t-shirt and 22\xa03/4 inches at 11:44"),
    ("the dogs' bowl (red)", "the dogs bowl -lrb- red -rrb-"),
    ("a tub/shower combination.", "a tub/shower combination"),
    ("It’s a “stop” sign", "it 's a stop sign"),
    ("1,000 people\non a hill", "1,000 people on a hill"),
    ("", ""),
    (" . ", ""),
]


@pytest.mark.parametrize(("caption", "tokens"), CASES)
def test_cases(caption: str, tokens: str) -> None:
    assert tokenize(caption) == tokens


def test_tokens_are_never_punctuation_nor_spaces() -> None:
    text = " ".join(chr(code) for code in range(1, 0x3000) if not 0xD800 <= code < 0xE000)
    words = tokenize(text + " 'tis d'art a.b.c... --- x' ''y'' ``").split(" ")
    assert "" not in words and not PUNCTUATION & set(words)


def test_no_character_ends_in_an_error() -> None:
    """Not even half of a surrogate pair. (All of them are compared with the jar below.)"""
    for code in [*range(0x300), *range(0x300, 0x11000, 37)]:
        assert tokenize.__wrapped__(f"a{chr(code)}b {chr(code)} q").endswith("q")


# What a careless rule reads in vain over and over; ␣ is a space.
REPEATED = (  # noqa: SIM905
    "a a- 1, a. a' a+ don't␣ a/ ' é \0 a, a@, +. <a␣ <!a␣ <a␣\" a\xad \xad & &a a& 1- 1/ -a a_ "
    "www. www.+. http://, (1 1␣ +1␣ a* é. a@ #a .. .␣ ?! I.␣ "
    "’ “ ‘' 😀 U.S. a.b- x= <3 :) a@b. a@. ␣ "
    "1. A& ~. q/q q-q/ a\xadn nn' e' ee'A &eacut mailto: a?b a%. é@ -u. f.com/ +.com, "
    "cannot␣ x,␣ x.␣␣"
).split(" ")
# Cheap to read in vain, so that only longer captions show it.
REPEATED_LONGER = ("www.\u066b", "\\www.", "1.`www.``", "[www.a")


@pytest.mark.parametrize(
    ("repeated", "length"),
    [(one.replace("␣", " "), 800) for one in REPEATED] + [(one, 3_200) for one in REPEATED_LONGER],
)
def test_eight_times_the_length_takes_eight_times_as_long(repeated: str, length: int) -> None:
    """Not the clock's seconds, but a ratio of processor time: a rule that reads the rest of the
    caption at each of its places takes 64 times as long. The better of two, to be sure."""

    def cost(length: int) -> float:
        text = (repeated * length)[:length]
        taken = []
        for _ in range(2):
            begin = time.process_time()
            tokenize.__wrapped__(text)
            taken.append(time.process_time() - begin)
        return min(taken)

    assert cost(8 * length) < 24 * max(cost(length), 1e-4)


def test_an_address_that_fails_hides_none_within_it() -> None:
    """What a failed host name has read is not tried again; what comes after an empty label is."""
    assert tokenize("www..www.a.com") == "www www.a.com"
    assert tokenize("www.a..www.b.org/xy z") == "www.a www.b.org/xy z"
    assert tokenize("www.\u066bwww.a.com") == "www.\u066bwww.a.com"


HOSTILE = [
    # quotes and dashes
    "it’s ‘a’ “b” «c» ‹d› „e‟ ‚f‛", "don‘t don`t don’t DON’T", "ma’am O’Neil d’art", "”” ’’ ‘’ «»",
    "'a' 'a dog' 'A ' 'i' 'I am' ''hi'' `hi` ``hi'' '''x'''", "a – b — c ― d … e", "a—b a--b a---b",
    "-- --- ---- ----- -", "'", "\"", "\"a\"b", "5'10\" tall",
    # addresses
    "http://a.b/c?d=e, x", "https://x.y/z#q. end", "http:// x", "see www.foo.com.", "foo.com/bar",
    "x.org FOO.COM foo.edu, a.co.uk", "foo@bar.com <a@b.c> a@b", "@name #tag #1 #a_b @ @@",
    "index.html 2nd.jpg a.mp3,",
    "www..www.a.com", "www.a..www.b.org/xy z", "www.a.b!www.c.org",
    # abbreviations
    "U.S.", "the U.S. Flag", "U.S. The dog", "a.m. at 5 p.m.", "e.g. this, i.e., that etc.",
    "Mr. Smith mr. smith Dr. St. Ave. vs. them", "Ph.D. Jan. Wash. wash. La. la. mass. Mass.",
    "in ga. by bus in Ga.", "No. 5 no. dogs fig. 3", "plan B. The dog", "J. K. Rowling", "T.V.'s",
    "x.", "with an x.", "word., etc., a.:", "etc.abcd Jan.b",
    # contractions
    "don't can't won't ain't shouldn't've", "he'd he'll they've i'm we're it's dog's dogs'",
    "y'all Y'all ma'am o'clock 'em 'til 'cause 'tis 'twas", "rock'n'roll rock 'n' roll", "'90s '90",
    "cannot gonna wanna gotta lemme gimme dunno Cannot!", "l'eau d'art j'ai n'sync c'mon nat'l",
    "don'ts don't's he'dx 'sx 'rex",
    # brackets and symbols
    "[a] {b} (c) <d> < e >", "<b>bold</b> <br/> <a b c> <a href=\"x y\"> <3", "(a(b[c",
    "AT&T R&D a&b &amp; &lt; &quot;x&quot; &nbsp; caf&eacute; &#39; &mdash;", "$5 £5 €5 ¢",
    "a/b/c/d w/o w/ and/or", "1/2 3/4 5 1/2 ½ 22 3/4-inch", "100% 5° 2² ×3 ±1", "* ** \\* a*b",
    "a_b __ ^ ~ | \\", "?!?! !!",
    "555-1234 (650) 555-1212 +1 650-555-1212 1-800-555-1234 650.555.1212",
    "1,000.50 3.14 .5 -5 5:30pm 10/12/2003 1st 2x 4x4 50-50 1,000-foot twenty-1.5", "C++ c# -LRB-",
    # smileys and emoji
    ":) :-( ;) :D :P =) <:( smile:) (^_^) ^_^ -_- T_T", "a dog 😀", "😀", "dog😀cat",
    "👍🏽 🇺🇸 ❤️ ☕ ★ →",
    "👨‍👩‍👧 a family",
    # other scripts, marks, spaces that are none
    "naïve café É ñ", "é. é.b a\u0301b", "日本語 テスト", "мир", "٣ ١٢", "a\xa0b a\u3000b a\u200bb",
    "so\xadft \xad", "𝒜 b", "\ufeffa dog", "a\0b \x7f",
    # empty and long
    "", " ", ".", "...", "a" * 10_000, "a man. " * 1_428, "dog, " * 2_000, "." * 10_000,
    "a's " * 2_500, "U.S." * 2_500, "é" * 10_000, "<a " * 3_333, "1,1" * 3_333,
]  # fmt: skip
EXPLAINED = {
    # line ends within a caption: the jar would give every later caption to the wrong image
    "a dog\r\non a hill": "a dog on a hill",
    "a dog\x85on\u2028a\u2029hill\x0b\x0c": "a dog on a hill",
    # letters younger than the jar: it deletes them
    "a \u0560 b": "a \u0560 b",
    # addresses end at every space
    "a@b\u3000dog": "a@b dog",
    # a soft hyphen is no part of a file name
    "so\xadft.html": "soft.html",
}
"""What differs from the jar on the hostile list, with the reason, as `tokens` tells."""


def test_hostile_captions_equal_the_jar() -> None:
    texts = [caption for caption, _ in CASES] + HOSTILE
    for caption, theirs in zip(texts, jar_tokens(texts), strict=True):
        assert tokenize(caption) == theirs, caption[:80]


@pytest.mark.parametrize("caption", EXPLAINED)
def test_differences_that_are_meant(caption: str) -> None:
    assert tokenize(caption) == EXPLAINED[caption]


def test_what_the_jar_makes_of_the_next_caption() -> None:
    """ "plan B." keeps its period before "dogs" and loses it before "The": here it is alone."""
    if not java.has_java():
        pytest.skip("no Java here to compare with")
    jar = scorers.shipped("tokenizer")
    assert java.tokenize(["plan B.", "dogs"], jar)[0] == "plan b."
    assert java.tokenize(["plan B.", "The dog"], jar)[0] == tokenize("plan B.") == "plan b"


@pytest.mark.slow
def test_every_character_of_the_plane_is_what_it_is_to_the_jar() -> None:
    """Each inside a word, alone and inside a number; but for line ends and younger letters."""
    codes = [
        code
        for code in range(0x10000)
        if not 0xD800 <= code < 0xE000 and chr(code) not in "\n\r\v\f\x85\u2028\u2029"
    ]
    texts = [f"x{chr(code)}y q {chr(code)} 1{chr(code)}2" for code in codes]
    different = [
        code
        for code, text, theirs in zip(codes, texts, jar_tokens(texts), strict=True)
        if tokenize.__wrapped__(text) != theirs
    ]
    assert {unicodedata.category(chr(code))[0] for code in different} <= {"L", "N"}
    assert {unicodedata.ucd_3_2_0.category(chr(code)) for code in different} <= {"Cn"}


def test_equal_to_the_jar_on_coco_val2017(coco: Path) -> None:
    """All 25,014 human captions and the 5,989 of two systems: in the order of the files, as
    published, and each by itself."""
    if not java.has_java():
        pytest.skip("no Java here to compare with")
    texts = captions_in_file_order(coco)
    assert len(texts) == 25_014
    texts += [caption for made in made_captions(coco).values() for caption in made.values()]
    ours = [tokenize(text) for text in texts]
    assert ours == java.tokenize(texts, scorers.shipped("tokenizer"))
    assert ours == jar_tokens(texts)
