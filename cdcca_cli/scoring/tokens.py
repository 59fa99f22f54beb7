"""Caption tokens, near to Stanford's PTBTokenizer 3.4.1 as coco-caption calls it, without Java.

coco-caption runs `PTBTokenizer -preserveLines -lowerCase` and drops the PUNCTUATION below. The
rules here follow the Penn Treebank conventions that it implements: n't and the clitics ('s 'm 'd
're 've 'll) come off their word, abbreviations and acronyms keep their periods, hyphenated words,
fractions and times stay whole, brackets become -lrb- and the like, quotes `` and ''.

Where it differs from the Java one: emoticons, SGML tags, phone numbers, rarer abbreviations and
most of what lies outside ASCII (but for letters, quotes and dashes) are split by plain rules. On
the 25,014 human captions of COCO val2017 no caption differs; equality on hostile text is not
claimed.
"""

import re
import unicodedata
from functools import lru_cache

PUNCTUATION = frozenset(
    (
        "''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-",
        ".", "?", "!", ",", ":", "-", "--", "...", ";",
    )
)  # fmt: skip
"""Dropped, compared after lower-casing: so -lrb- stays, as it does in coco-caption."""

_ABBREVIATIONS = (
    "jan|feb|mar|apr|jun|jul|aug|sept|sep|oct|nov|dec|mon|tues|tue|wed|thurs|thu|fri|"
    "messrs|mrs|mr|ms|drs|dr|prof|rev|hon|gov|sen|rep|gen|col|capt|lt|cpl|sgt|maj|cmdr|adm|pres|"
    "st|ave|blvd|rd|ct|dept|hwy|mt|ft|ste|bldg|rte|jr|sr|esq|inc|corp|cos|co|ltd|bros|plc|llc|"
    "vs|etc|al|eg|ie|cf|viz|est|assn|assoc|tel|ext|"
    # States, with a capital only: "a car wash." ends a sentence.
    "(?-i:Ala|Ariz|Ark|Calif|Colo|Conn|Dak|Del|Fla|Ga|Ill|Ind|Kans|K[Yy]|La|Mass|Md|Mich|Minn|"
    "Miss|Mont|Mo|Neb|Nev|Okla|Ore|Penn|Pa|Tenn|Tex|Va|Vt|Wash|Wis|Wyo)"
)
_SENTENCE_STARTERS = "(?-i:And|An|A|He|In|It|On|She|There|They|The|This|Two)"
_LETTER = r"[^\W\d_]"
_WORD = rf"{_LETTER}(?:{_LETTER}|\d)*(?:[.!?]{_LETTER}(?:{_LETTER}|\d)*)*"
_ELIDED = rf"(?:[dol]'(?={_LETTER}))?"  # d'oeuvre, o'clock, l'eau
_PART = r"\w+(?:-\w+){0,2}"
_TOKEN = re.compile(
    "|".join(
        (
            r"https?://\S+|www\.[^\s,!?\"]+|[\w.+-]+@\w+(?:\.\w+)+",
            r"-(?:lrb|rrb|lcb|rcb|lsb|rsb)-",
            r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}(?!\w)",  # dates
            r"(?:\d{1,4}[- ])?\d{1,4}/\d{1,4}(?!\w)",  # 22 3/4
            r"\d*(?:[.:,]\d+)+(?=[ap]m\b|\W|$)",  # 11:44, 1,000, 5:54 pm
            r"[a-z](?:\.[a-z])+\.(?!\w)|[a-z](?:\.[a-z])+(?![\w.])",  # u.s.
            rf"(?:{_ABBREVIATIONS})\.(?![\w.])",
            r"(?:nos?|figs?|pp?)\.(?=\s+\d)",
            # An initial: not at the end of the line, not before the start of a sentence.
            rf"[a-z]\.(?=\s+(?!{_SENTENCE_STARTERS}\b)\w)",
            rf"{_PART}(?:/{_PART}){{1,2}}(?!\w)",  # tub/shower
            r"[A-Z]+(?:&[A-Z]+)+(?!\w)",
            r"'n'|'t(?=(?:is|was)\b)|(?<!\d)'\d\ds?(?!\w)",
            rf"{_LETTER}+'(?!(?:s|m|d|re|ve|ll|t)(?!\w)){_LETTER}+(?!\w)",  # ho'ohu
            r"'(?:s|m|d|re|ve|ll)(?!\w)",
            r"n't(?!\w)",
            r"\w+?(?=n't(?!\w))",  # do n't
            rf"{_WORD}(?![\w-])",
            rf"{_ELIDED}\w+(?:-{_ELIDED}\w+)*",
            r"\.{3,}|\. \. \.",
            r"--+",
            r"\S",
        )
    ),
    re.IGNORECASE,
)
_SPLIT_WORDS = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "lemme": "lem me",
    "gimme": "gim me",
    "wanna": "wan na",
}
_SYMBOLS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_PLAIN = str.maketrans({
    "\n": " ", "\u2018": "`", "\u2019": "'", "\u201c": '"', "\u201d": '"',
    "\u2013": "--", "\u2014": "--", "\u2026": "...", "\u00ad": None, "\u200b": None,
})  # fmt: skip


@lru_cache(maxsize=1 << 16)
def tokenize(caption: str) -> str:
    """The caption's tokens, lower-case, without punctuation, joined by single spaces."""
    words = (_written(word) for word in _TOKEN.findall(caption.translate(_PLAIN)))
    return " ".join(word for word in words if word and word not in PUNCTUATION)


def _written(word: str) -> str:
    """The token as coco-caption has it; pictures such as emoji have none."""
    word = word.lower()
    if word == '"':
        return "''"
    if word.startswith("...") or word == ". . .":
        return "..."
    if word.startswith("--"):
        return "--"
    if len(word) == 1 and unicodedata.category(word) in ("So", "Cn", "Co", "Cc", "Cf", "Cs", "Mn"):
        return ""
    return _SYMBOLS.get(word) or _SPLIT_WORDS.get(word, word)
