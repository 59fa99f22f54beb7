"""Untrusted JSON, field by field: a value of the expected type, or BadData naming the place.

Ids as digits in a text and truth values as words are accepted, as published files have them.
"""

import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping
from typing import Any

from cdcca_cli.errors import BadData
from cdcca_cli.text import is_text, load_json

MAX_JSON_BYTES = 1 << 30  # VQAv2's annotations of its training set are 0.37 GB


def parse_json(text: str | bytes, where: str) -> Any:
    """One JSON value, from UTF-8 with or without a byte order mark."""
    return load_json(text.removeprefix(BOM_UTF8) if isinstance(text, bytes) else text, where)


def an_object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadData(f"{where}: expected an object, found {describe(value)}")
    return value


def a_list(item: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = item.get(key)
    if not isinstance(value, list):
        raise BadData(f"{where}: '{key}' must be a list, found {describe(value)}")
    return value


def an_id(item: Mapping[str, Any], key: str, where: str) -> str:
    """An id: a text that is not empty, or the digits of a whole number."""
    value = item.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63:
        return str(value)
    if isinstance(value, str) and value.strip() and value.isprintable() and len(value) <= 1024:
        return value
    raise BadData(
        f"{where}: '{key}' must be an id (text or a whole number), found {describe(value)}"
    )


def a_text(item: Mapping[str, Any], key: str, where: str) -> str:
    value = optional_text(item, key, where)
    if value is None:
        raise BadData(f"{where}: '{key}' is missing; it must be text")
    return value


def optional_text(item: Mapping[str, Any], key: str, where: str) -> str | None:
    value = item.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not is_text(value):
        raise BadData(f"{where}: '{key}' must be text, found {describe(value)}")
    return value


def optional_texts(item: Mapping[str, Any], key: str, where: str) -> list[str] | None:
    """A list of texts, not empty; null and a missing key are None."""
    value = item.get(key)
    if value is None:
        return None
    is_list = isinstance(value, list) and len(value) > 0
    if not is_list or not all(isinstance(text, str) and is_text(text) for text in value):
        raise BadData(f"{where}: '{key}' must be a list of texts, found {describe(value)}")
    return list(value)


def optional_index(item: Mapping[str, Any], key: str, length: int, where: str) -> int | None:
    """A place in a list of `length`: a whole number, or its digits as text; null is None."""
    value = item.get(key)
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < length:
        raise BadData(
            f"{where}: '{key}' must be a whole number from 0 to {length - 1}, "
            f"found {describe(value)}"
        )
    return value


def a_truth(item: Mapping[str, Any], key: str, where: str) -> bool:
    """true or false, or the words; missing is false."""
    value = item.get(key, False)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise BadData(f"{where}: '{key}' must be true or false, found {describe(value)}")
    return value


def describe(value: object) -> str:
    """A short name for what was found, for a message of one line."""
    if value is None:
        return "nothing"
    if isinstance(value, list):
        if value and isinstance(value[0], list):
            return "a list of lists"
        return "an empty list" if not value else f"a list beginning with {describe(value[0])}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return "a number of more than 63 bits"
    shown = json.dumps(value)
    return shown if len(shown) <= 40 else shown[:37] + '..."'


def keys_of(item: Iterable[str]) -> str:
    """The first keys of an object, for a message."""
    names = sorted(str(key)[:30] for key in item)[:6]
    return "the keys " + ", ".join(names) if names else "no keys"
