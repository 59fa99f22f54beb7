"""Caption tokens as Stanford's PTBTokenizer 3.4.1 makes them for coco-caption, without Java.

coco-caption runs `PTBTokenizer -preserveLines -lowerCase` and drops the PUNCTUATION below. Penn
Treebank conventions: n't and the clitics ('s 'm 'd 're 've 'll) come off their word, abbreviations
and acronyms keep their periods, hyphenated words, fractions, dates and times stay whole, brackets
become -lrb- and the like, a space inside a token (5 3/4, a telephone number, a tag) is U+00A0. No
library (NLTK, sacremoses, spaCy) has these tokens.

It is a longest-match lexer, as the Java one is: of the rules that can begin at a place, the one
that reads furthest (with the context it asks for) wins, the earlier one on a tie. A rule either
takes what it reads or is not tried again within it, so time is linear in the length.

Differences from the jar, each with its reason:

- A caption is read alone, so that its tokens do not depend on the order of the captions; the jar
  reads on into the next one. An initial that ends a caption ("plan B.") loses its period, as there
  before "A" or "The", and "no." and "fig." do not look for a number in the next caption.
- Line ends other than a line feed (carriage return, U+0085, U+2028 ...) are spaces. The jar ends
  the line there, and every later caption of the corpus goes to the wrong image.
- Letters and digits that Unicode has gained since the jar was made are kept. The jar deletes them.
- Web and mail addresses end at every kind of space and at the second @ of a malformed one; the jar
  reads on through U+2003 or U+3000. A soft hyphen is no part of the file name after it.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

PUNCTUATION = frozenset(
    (
        "''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-",
        ".", "?", "!", ",", ":", "-", "--", "...", ";",
    )
)  # fmt: skip
"""Dropped after lower-casing: so -lrb- stays, as it does in coco-caption."""

# The class of each character outside ASCII, given by one character of that class. Measured on the
# jar, one by one; characters in no row are a letter, a digit or nothing by their Unicode category.
_LETTER, _DIGIT, _NOTHING = "é", "٠", "\x01"
_MEASURED = {
    # Marks: inside a word, but not inside a hyphenated one.
    "\u0300": "2c2-2c5 2d2-2df 2e5-2eb 2ed 2ef-36f 375 378-379 384-385 3f6 483-487 55a-55f 591-5bd "
    "5bf 5c1-5c2 5c4-5c5 5c7 615-61a 64b-65e 670 6d6-6e4 6e7-6ed 6fd-6fe 70f 711 730-74c 7a6-7b0 "
    "7eb-7f3 900-903 93c 93e-94e 951-955 962-963 981-983 9bc 9be-9c4 9c7-9c8 9cb-9cd 9d7 9e2-9e3 "
    "a01-a03 a3c a3e-a4f a81-a83 abc abe-acf b82 bbe-bc2 bc6-bc8 bca-bcd c01-c03 c3e-c56 d3e-d44 "
    "d46-d48 e31 e34-e3a e47-e4e eb1 eb4-ebc ec8-ecd",
    # Symbols: a token by themselves.
    "§": "80 a1-a9 ac ae-b4 b6-b9 bc-bf d7 f7 37e 387 589 5be 5c0 5c3 5c6 5f3-5f4 600-603 606-60c "
    "614 61b 61e-61f 66a 66d 6d4 700-70d 7f6-7f8 964-965 e3f e4f 1fbd 2016-2017 2020-2023 "
    "2030-2038 203b 203e-2042 2070 2074-207e 2080-208e 20a0 20a4 20ac 2100-2101 2103-2106 "
    "2108-2109 2114 2116-2118 211e-2123 2125 2127 2129 212e 213a-213b 2140-2144 214a-214d 214f "
    "2153-215e 2190-2bff 3001-3002 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65 ffe0-ffe1 "
    "ffe5-ffe6",
    "\u2010": "58a 2010-2011",  # hyphens within words
    "‘": "91 2018 201b",
    "’": "92 2019",
    "“": "93-94 ab bb 201a 201c-201f 2039-203a",  # every other quote
    "\t": "9-d 85 2000-200a 2028-2029 3000",  # spaces, but no part of a fraction
    "\xa0": "a0",
    "\xad": "ad",
    "\u066b": "66b-66c",
    "\u2044": "2044",
    "—": "96-97 2013-2015 2026",  # dropped
    _LETTER: "1885-1886",
    _NOTHING: "0-8 e-1f 7f",
}
_SPELLING = {
    "¢": "cents", "£": "#", "\x80": "$", "¤": "$", "\u20a0": "$", "€": "$",
    "¼": "1/4", "½": "1/2", "¾": "3/4", "\u2153": "1/3", "\u2154": "2/3",
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&nbsp;": "", '"': "''", "&quot;": "''",
}  # fmt: skip
_QUOTES = str.maketrans({
    "\x91": "`", "‘": "`", "\u201b": "`", "‹": "`", "\x92": "'", "’": "'", "›": "'",
    "\x93": "``", "“": "``", "«": "``", "\x94": "''", "”": "''", "»": "''",
})  # fmt: skip

_DASHES = frozenset(("\x96", "\x97", "–", "—", "―", "&md;", "&mdash;", "&ndash;", "…"))

# Abbreviations keep their period: most always, some only capitalised, some only before a number.
_ABBREVIATIONS = (
    r"ed\.d|ph\.d|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thurs?|thu|fri|"
    "ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|mich|minn|mont|mo|neb|nev|okla|penn|"
    "tenn|va|vt|wisc?|wyo|inc|corp|cos?|ltd|plc|rt|bhd|bancorp|assn|univ|intl|sys|tel|est|ext|sq|"
    "jr|bros|esq|etc|al|seq|bldg"
)
_CAPITAL_ABBREVIATIONS = (
    "A(?i:rk|z)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:ass|iss)|O(?i:re)|P(?i:a)|T(?i:ex)|W(?i:ash)|"
    "(?i:pp?t)[ye](?i:s?)"
)
_TITLES = (
    "mrs|mr|ms|mx|drs?|profs?|sens?|reps?|attys?|govs?|supts?|messrs|mlle|mme|msgr|hon|rev|pres|"
    "lieut|lt|col|gen|maj|sgt|cpl|capt|adm|cmdr|comdr|pvt|pfc|spc|sfc|brig|ens|adj|adv|det|insp|"
    "asst|assoc|ste?|ave|blvd|rd|mt|ft|dept|sr|natl|invt|elec|vs|cf|cie|alex|wm|jos|treas|ph|"
    "(?-i:[Mm][ft][Gg])"
)
_NUMBERED = "ca|figs?|prop|nos?|art|pp|op"
# After an initial and a period, these begin a sentence: "Vitamin C. The bowl".
_STARTERS = (
    "About|According|Additionally|After|An|A|As|At|But|Did|During|Earlier|Her|Here|He|However|How|"
    "If|In|It|Last|Many|More|Now|Once|One|Other|Our|She|Since|So|Some|Such|That|Their|Then|There|"
    "These|They|The|This|We|When|While|What|Who|Why|Yet|You"
)

_L, _D, _LD = "[A-Za-zé]", "[0-9٠]", "[A-Za-zé0-9٠]"
_APOS = "(?:['’]|(?i:&apos;))"
_APOS_ETC = "(?:['’`‘]|(?i:&apos;))"
_WORD_LETTER = "(?:[A-Za-zé\u0300\xad]|&[aeiouAEIOU](?i:acute|grave|uml);)"
_WORD_PART = f"{_WORD_LETTER}(?:{_WORD_LETTER}|{_D})*+"
_WORD = f"{_WORD_PART}(?:[.!?]{_WORD_PART})*+"
_CLITIC = f"{_APOS}(?:[msdMSD]|(?i:re|ve|ll))"
_DOTTED = (
    r"(?:(?i:(?:canada|sino|korean|eu|japan|non)-u\.s|u\.s\.-(?:u\.k|u\.s\.s\.r))"
    r"|[A-Za-z](?:\.[A-Za-z])++)"
)
_ACRONYM = f"(?:{_DOTTED}|[A-Za-z])"
_NUMBER = f"(?:{_D}*+(?:[.:,\xad\u066b]{_D}++)++|{_D}++)"
_ELIDED = f"(?:[dDoOlL]{_APOS_ETC}{_LD}(?={_LD}))?"  # d'oeuvre, o'clock
_THING = f"{_ELIDED}{_LD}++(?:[-_\u2010]{_ELIDED}{_LD}++)*+"
_LISTED = rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*+(?:-(?:{_DOTTED}\.|[A-Za-z0-9\xad]++))++"  # 1,000-foot
_SLASHED = "[A-Za-z0-9]++(?:-[A-Za-z]++){0,2}"
_PERIOD = r"(?:\.(?=[,;:\u3001]))?"
# ",-_" is a range there: digits and capitals are no part of a bare host name.
_HOST = "(?:[^ \t\n\xa0\"`'<>|!?(){}$,-_]++\\.)"
_LABEL = '[^ \t\n\f\r"<>|.!?(){},]'
_MAIL = '^ \t\n"<>|(){}\xa0'
_URL_END = '[^ \t\n"<>|.!?(){},-]'
_FILE = r"[A-Za-z0-9]++(?:\.[A-Za-z0-9]++)*"
_EXTENSION = (
    r"\.(?i:avi|bat|bmp|bz2|class|cgi|cpp|c|dll|docx?|exe|flv|gif|gz|html?|h|jar|java|jpe?g|mov|"
    "mp[34g]|pdf|php|pl|png|ppt|ps|py|sql|tar|txt|wav|xml|x|zip|3gp)"
)
_PATH = f'[^ \t\n"<>|(){{}}]+{_URL_END}'
_PHONE = (
    r"(?:\([0-9]{2,3}\)[ \xa0]?|\+{0,2}(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])"
    r"[0-9]{3,4}[- \xa0]?[0-9]{3,5}"
    r"|(?:\+{0,2}[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"
)
_ATTRIBUTE = (
    r"(?:[A-Za-z][A-Za-z0-9_:.-]*+(?: *+= *+['\"][^\r\n'\"]*+['\"])?+|['\"][^\r\n'\"]*+['\"]|/)"
)
_Match = Callable[[str, int], re.Match[str] | None]
_ALPHA = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZé"
_NUMERIC = "0123456789٠"


@dataclass(frozen=True, eq=False)
class _Rule:
    """Group 1 of the pattern, if it has one, is the token; the rest of the match is context, which
    counts in which rule reads furthest.

    first: the characters that it can begin with ('' for any). run: what it has read in vain when
    it fails, if that is more than some token takes. raw: no character of the token is respelt.
    """

    first: str
    pattern: str
    run: str = ""
    raw: bool = False

    @cached_property
    def match(self) -> "_Match":
        return re.compile(self.pattern).match

    @cached_property
    def match_run(self) -> "_Match | None":
        return re.compile(self.run).match if self.run else None


_RULES = (
    _Rule(_ALPHA + "'", r"((?i:can(?=not)|(?:gon|wan)(?=na)|got(?=ta)|(?:lem|gim)(?=me)"
        r"|'t(?=is|was)))(?i:not|na|ta|me|is|was)"),
    _Rule("<", f"</?[A-Za-z][A-Za-z0-9_:.-]*+(?: ++{_ATTRIBUTE})*+ *+/?>"),
    _Rule("<", r"<[!?][A-Za-z-][^>\n]*+>", r"[^>\n]*+"),
    _Rule("&", "(?i:&(?:md|mdash|ndash|amp|ht|tl|ur|lr|qc|ql|qr|odq|cdq|nbsp|lt|gt|quot|apos"
        "|#[0-9]+);)"),
    _Rule(_ALPHA + "\u0300\xad&", f"({_WORD}){_CLITIC}"),
    _Rule(_ALPHA + "\xad", f"(?=[A-Za-z\xad]++{_APOS_ETC})"
        f"([A-Za-z\xad]*[A-MO-Za-mo-z]\xad*+)[nN]{_APOS_ETC}[tT]"),
    _Rule(_ALPHA + "\u0300\xad&", f"({_WORD}{_PERIOD})"),
    _Rule("'’&", f"{_APOS}(?:[nN]{_APOS}?|(?i:em|till?|cause)|[2-9]0[sS])", raw=True),
    _Rule(_ALPHA, f"(?i:[ldj]|dunkin|somethin|ol){_APOS}|[A-HJ-XZn]{_APOS_ETC}{_L}{{2}}{_L}*+",
        raw=True),
    _Rule(_ALPHA, f"{_L}{{2}}{_L}*+(?<=[aeiouyAEIOUY]){_APOS_ETC}[aeiouA-Z]{_L}*+", raw=True),
    _Rule(_ALPHA, r"(?i:cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l)"),
    _Rule("cCfF", r"[Cc]\+\+|[CcFf]#"),
    _Rule("yY", f"([yY]{_APOS}){_L}", raw=True),
    _Rule("hH", f"(?i:https?)://{_PATH}", raw=True),
    _Rule("wW", rf"(?i:www)\.(?:{_LABEL}++\.)+[a-zA-Z]{{2,4}}(?:/{_PATH})?",
        rf"(?i:www)\.(?:{_LABEL}++\.)*+", raw=True),
    _Rule("", rf"{_HOST}+(?i:com|net|org|edu)(?:/{_PATH})?", f"{_HOST}*+{_HOST[3:-5]}*+", raw=True),
    _Rule(_ALPHA + _NUMERIC + "<&", rf"(?:(?i:&lt;)|<)?[a-zA-Z0-9][{_MAIL}@]*+@(?:[{_MAIL}.]++\.)*"
        rf"[{_MAIL}.]++(?:(?i:&gt;)|>)?", f"<?[a-zA-Z0-9][{_MAIL}]*+", raw=True),
    _Rule("@", "@[a-zA-Z_][a-zA-Z_0-9]*+|@++"),
    _Rule("#", f"#{_WORD_LETTER}++|#++", raw=True),
    _Rule("'’&", f"({_CLITIC})[^A-Za-z]"),
    _Rule("nN", f"[nN]{_APOS_ETC}[tT]"),
    _Rule(_NUMERIC, f"{_D}{{1,2}}[-/]{_D}{{1,2}}[-/]{_D}{{2,4}}"),
    _Rule(_NUMERIC + "+-.:,\xad\u066b", f"[-+]?{_NUMBER}"),
    _Rule(_NUMERIC, rf"(?:{_D}{{1,4}}[- \xa0])?{_D}{{1,4}}(?:\\?/|\u2044){_D}{{1,4}}"),
    _Rule("-", "(?i:-(?:rrb|lrb|rcb|lcb|rsb|lsb)-)"),
    _Rule("CcPpAaSs", r"(?i:c\.d\.s|pro-|anti-|s(?:&|&amp;)(?:p-500|ls)|cap['’]n|c['’]est)"),
    _Rule(_ALPHA + _NUMERIC, rf"{_SLASHED}(?:\\?/{_SLASHED}){{1,2}}"),
    _Rule(_ALPHA + "$", r"[A-Z]*\$"),
    _Rule(_ALPHA, rf"([A-Za-z])\.(?:[ \t\xa0]*+\n"
        rf"|[ \t\xa0]++(?:{_STARTERS}|M[rs]\.)[ \t\xa0\n?!])"),
    _Rule(_ALPHA, rf"((?:(?i:{_ABBREVIATIONS})|{_CAPITAL_ABBREVIATIONS})\.)(?s:.{{0,2}})"),
    _Rule(_ALPHA, rf"(?:(?i:{_TITLES})|a\.k\.a|{_ACRONYM})\."),
    _Rule(_ALPHA, rf"((?i:{_NUMBERED})\.)[ \t\xa0\n]?{_D}"),
    _Rule(_ALPHA, rf"({_ACRONYM})[ \t\xa0\n]"),
    _Rule("'’&", f"({_APOS}[0-9][0-9])[ \t\xa0\n]", raw=True),
    _Rule(_ALPHA + _NUMERIC, rf"({_FILE}{_EXTENSION})[ \t\xa0\n.?!,\"'<]",
        "[A-Za-z0-9.]*+"),
    _Rule(_NUMERIC + "(+", _PHONE),
    _Rule("<>:;=", "([<>]?[:;=][-o*']?[()DPdpO\\\\{@|\\[\\]])[^A-Za-z0-9]"),
    _Rule("^x=~<>-'(", r"[\^x=~<>]\.\[\^x=~<>]|[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)"
        r"|\([\^x=~<>']-[\^x=~<>'`]\)"),
    _Rule("<>", "<<|>>"),
    _Rule("-", "-++"),
    _Rule(".", r"\.{3,}+|\.[ \xa0](?:\.[ \xa0])+\."),
    _Rule("_", "_++"),
    _Rule("*", r"\*++"),
    _Rule("\\", r"(?:\\\*){1,3}"),
    _Rule("?!", "[?!]++"),
    _Rule(_ALPHA + _NUMERIC, f"({_LISTED}{_PERIOD})", "[A-Za-z0-9.,\xad]*+"),
    _Rule(_ALPHA + _NUMERIC, f"({_THING}{_PERIOD})", raw=True),
    _Rule(_ALPHA, rf"([A-Z]+(?:(?:[+&]|(?i:&amp;))[A-Z]+)++{_PERIOD})"),
    _Rule("`‘’“", "[`‘’“]{1,2}|[`‘’]'"),
    _Rule("'", "(')[A-Za-z][^ \t\n\xa0]|''"),
    _Rule("'’&", _CLITIC),
    _Rule("&", "(?i:&apos;)"),
)  # fmt: skip


class _Kinds(dict[int, str]):
    """For str.translate: a character to the one that stands for its kind."""

    def __missing__(self, code: int) -> str:
        kind = chr(code)
        if code > 0xFFFF:
            kind = _NOTHING  # the jar reads the halves of surrogate pairs and drops them
        elif code >= 0x80:
            category = unicodedata.category(kind)
            kind = _LETTER if category[0] == "L" else _DIGIT if category == "Nd" else _NOTHING
        self[code] = kind
        return kind


def _kinds() -> _Kinds:
    kinds = _Kinds()
    for kind, ranges in _MEASURED.items():
        for span in ranges.split():
            first, _, last = span.partition("-")
            kinds |= dict.fromkeys(range(int(first, 16), int(last or first, 16) + 1), kind)
    return kinds


@cache
def _rules_for(first: str) -> list[_Rule]:
    """The rules that can begin with this character, in their order."""
    return [rule for rule in _RULES if not rule.first or first in rule.first]


_KIND_OF = _kinds()
_NO_TOKEN = frozenset(" \t\n\xa0\u2010\u066b" + _NOTHING)
_SPLIT = "cannot|gonna|gotta|gimme|lemme|wanna"
# What most captions are made of, quickly: words that no rule reads on from, and the last one.
_WORDS = re.compile(f"(?:(?!(?i:{_SPLIT})[, ])[A-Za-z]++,?+ ++)++")
_LAST_WORD = re.compile(rf"(?!(?i:{_SPLIT})\b)([A-Za-z]{{2,}}+)(\.?)\s*\Z")
_ABBREVIATED = re.compile(
    f"{_ABBREVIATIONS}|{_CAPITAL_ABBREVIATIONS}|{_TITLES}", re.IGNORECASE
).fullmatch


@lru_cache(maxsize=1 << 16)
def tokenize(caption: str) -> str:
    """The caption's tokens, lower-case, without punctuation, joined by single spaces."""
    plain = caption.isascii() and caption.isprintable()
    kinds = (caption if plain else caption.translate(_KIND_OF)) + "\n"
    words: list[str] = []
    place, end = 0, len(caption)
    tried_until: dict[str, int] = {}  # by pattern: up to here it is known to fail
    while place < end:
        simple = _WORDS.match(kinds, place)
        if simple:
            words += simple[0].lower().replace(",", "").split()
            place = simple.end()
            continue
        last = _LAST_WORD.match(kinds, place)
        if last and not (last[2] and _ABBREVIATED(last[1])):
            words.append(last[1].lower())
            break
        place, word = _next(caption, kinds, place, tried_until)
        if word and word not in PUNCTUATION:
            words.append(word)
    return " ".join(words)


def _next(caption: str, kinds: str, place: int, tried_until: dict[str, int]) -> tuple[int, str]:
    """Where the token at `place` ends, and the token, '' if there is none."""
    furthest, end, raw = place, place + 1, False
    for rule in _rules_for(kinds[place]):
        if tried_until.get(rule.pattern, -1) > place:
            continue
        found = rule.match(kinds, place)
        if found is None:
            if rule.match_run and (run := rule.match_run(kinds, place)):
                tried_until[rule.pattern] = run.end()
        elif found.end() > furthest:
            furthest, end, raw = found.end(), found.end(found.lastindex or 0), rule.raw
    if furthest == place and kinds[place] in _NO_TOKEN:
        return place + 1, ""
    token = caption[place:end].lower()
    return end, token if raw else _written(token)


def _written(token: str) -> str:
    """The token as the jar spells it, of a token in lower case."""
    if token.isalnum() and token.isascii():
        return token
    if token in _SPELLING:
        return _SPELLING[token]
    if token[0] == "." and not token.strip(". \xa0"):
        return "..."[: len(token)]
    is_row_of_hyphens = len(token) in (3, 4) and not token.strip("-")
    if is_row_of_hyphens or token in _DASHES:
        return "--"
    token = token.replace(" ", "\xa0")
    if token[0] == "<" and token[-1] == ">":
        return token
    token = token.replace("\xad", "").translate(_QUOTES) or "-"
    token = token.replace("&amp;", "&").replace("&apos;", "'")
    return token.replace("(", "-lrb-").replace(")", "-rrb-")
