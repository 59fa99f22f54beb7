"""What files say, made safe to show: text without control characters, numbers that are finite.

The template escapes markup; here goes what is no markup and yet deceives or breaks: control
characters, characters that turn the direction of the text around, halves of characters, and texts
and numbers of any length. (`streams.one_line` is for terminals, and hides the joiners of Indic
scripts and emoji too.)
"""

import math
import re
from typing import Any

MOST_CHARS = 300
_MOST_ENTRIES = 200
_LARGEST = 1e15
# Controls, soft hyphen, marks of direction, separators, invisible operators, surrogates, tags.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff"
    "\ufeff\ufff9-\uffff\U000e0000-\U000e0fff]"
)


def text(value: object, most: int = MOST_CHARS) -> str:
    """A value as one line, at most so many characters; hidden characters as escapes."""
    words = value if isinstance(value, str) else str(value)
    words = " ".join(words[: 4 * most].split())
    words = _HIDDEN.sub(lambda found: repr(found[0])[1:-1], words)
    return words if len(words) <= most else f"{words[: most - 1]}…"


def number(value: object, places: int = 4) -> float | int | None:
    """A number that can be drawn, or None: whole ones as they are, others rounded."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value) or abs(value) > _LARGEST:
        return None
    return value if isinstance(value, int) else round(value, places)


def tree(value: Any, depth: int = 4) -> Any:
    """Nested JSON with the same done to every key and value; deeper or longer parts become text."""
    if isinstance(value, dict) and depth:
        entries = list(value.items())[:_MOST_ENTRIES]
        return {text(key, 80): tree(inner, depth - 1) for key, inner in entries}
    if isinstance(value, list) and depth:
        return [tree(inner, depth - 1) for inner in value[:_MOST_ENTRIES]]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return number(value, 9)
    return text(value)
