"""Prompts as tokens: in a question, a choice or an answer, special tokens are plain text.

Otherwise a question with the words `</s>` or `<image>` could end itself or add a second picture.
`split_special_tokens` is not enough: a Unigram model (T5) has `</s>` in its vocabulary. So
`PlainTokenizer` uses a copy of the tokenizer in which each special token has a random name, drawn
at load.
"""

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any


class Prompt(str):
    """A question in its template; `parts`: the text before it, the question, the text after."""

    parts: tuple[str, str, str]

    def __new__(cls, before: str, question: str, after: str) -> "Prompt":
        made = super().__new__(cls, before + question + after)
        made.parts = (before, question, after)
        return made

    def __getnewargs__(self) -> tuple[str, str, str]:  # type: ignore[override]
        return self.parts

    @classmethod
    def of(cls, template: str, question: str) -> "Prompt":
        """`template` with the question in place of `{prompt}`."""
        before, _, after = template.partition("{prompt}")
        return cls(before, question, after)


class PlainTokenizer:
    """A tokenizer that gives no special tokens for the words of a question.

    marks: special tokens that work in the template of a `Prompt`, and in a plain string.
    mark_ids: their ids; None for a mark that is not a token of the tokenizer.
    """

    def __init__(self, tokenizer: Any, marks: Sequence[str] = ()) -> None:
        from tokenizers import Tokenizer

        table = json.loads(tokenizer.backend_tokenizer.to_str())
        special = {token["content"] for token in table["added_tokens"] if token["special"]}
        special |= {*tokenizer.all_special_tokens, *marks}
        names = {word: f"<{secrets.token_hex(16)}>" for word in sorted(special)}
        _rename(table, names)
        self._tokenizer = Tokenizer.from_str(json.dumps(table))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = False
        self._marks = {mark: names[mark] for mark in marks}
        self.mark_ids = {mark: self._tokenizer.token_to_id(names[mark]) for mark in marks}

    def __call__(self, texts: Sequence[str], *, with_ends: bool) -> list[list[int]]:
        """Ids of each text; `with_ends` adds the tokenizer's own special tokens, such as `<s>`."""
        marked = [self._marked(text) for text in texts]
        encodings = self._tokenizer.encode_batch(marked, add_special_tokens=with_ends)
        return [encoding.ids for encoding in encodings]

    def _marked(self, text: str) -> str:
        """The text, with the marks of its template replaced by their random names."""
        if not self._marks:
            return str(text)
        before, question, after = text.parts if isinstance(text, Prompt) else (text, "", "")
        pattern = "|".join(map(re.escape, self._marks))
        before, after = (
            re.sub(pattern, lambda found: self._marks[found[0]], part) for part in (before, after)
        )
        return before + question + after


def _rename(table: dict[str, Any], names: dict[str, str]) -> None:
    """Rename special tokens in a tokenizer.json; merges that make or use one are removed."""
    for token in table["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = table["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(word, word): number for word, number in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(word, word), score] for word, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [
            [left, right]
            for left, right in pairs
            if names.keys().isdisjoint((left, right, left + right))
        ]
