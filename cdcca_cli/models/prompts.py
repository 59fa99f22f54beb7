"""Prompts as text and as tokens: in a question, a choice or an answer, special tokens are text.

Otherwise a question with the words `</s>` or `<image>` could end itself or add a second picture.
`split_special_tokens` is not enough: a Unigram model (T5) has `</s>` in its vocabulary. So
`PlainTokenizer` uses a copy of the tokenizer in which each special token has a random name, drawn
at load. In the template around a question, and in the text of a picture, they are themselves.

The template of a family with instructions is its checkpoint's own chat template, rendered once by
the tokenizer with a picture and a mark in place of the question.
"""

import json
import re
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cdcca_cli.errors import BadData, SettingError
from cdcca_cli.text import is_text

if TYPE_CHECKING:
    from cdcca_cli.families import Family

_QUESTION = "{prompt}"
_MARK = "\ue000"
"""In place of the question while a chat template is rendered: a private character."""
_SILENT = {"enable_thinking": False, "thinking": False}
"""Variables by which chat templates are told that the answer comes at once."""
_TAG = re.compile(r"<[^<>\s]+>|\[[A-Z_/]+\]")
"""What an added token looks like that means something, whether it is called special or not."""


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
        before, _, after = template.partition(_QUESTION)
        return cls(before, question, after)

    def with_picture(self, mark: str, text: str) -> "Prompt":
        """The prompt with a picture's text in place of its mark, which the template has once."""
        before, question, after = self.parts
        if mark in before:
            return Prompt(before.replace(mark, text, 1), question, after)
        return Prompt(before, question, after.replace(mark, text, 1))


class Templates:
    """The text around a question, by task, with `{prompt}` in its place.

    adds_ends: whether the tokenizer adds its own special tokens, such as `<s>`; a chat template has
        them already.
    """

    def __init__(
        self, row: "Family", tokenizer: Any, mark: str, named: str, template: str | None = None
    ) -> None:
        """Args: mark: of a picture; "" if the prompt has none. template: for both tasks.

        Raises: BadData for a chat template that does not render; SettingError for a template
            without the question or the picture.
        """
        texts = {"vqa": row.vqa_template, "caption": row.caption_template}
        if template is not None:
            _check(template, mark)
            texts = dict.fromkeys(texts, template)
        elif row.chat and tokenizer.chat_template:
            texts = {task: _rendered(tokenizer, text, mark, named) for task, text in texts.items()}
        elif row.chat:
            plain = dict(zip(texts, row.plain_templates, strict=True))
            texts = {task: text.replace("<image>", mark) for task, text in plain.items()}
        self._texts = texts
        begin = tokenizer.bos_token
        self.adds_ends = not (begin and begin in texts["vqa"])

    def __getitem__(self, task: str) -> str:
        return self._texts[task]


def _check(template: str, mark: str) -> None:
    if not is_text(template):
        raise SettingError("template", "expected text in UTF-8", ascii(template))
    for what, text in (("question", _QUESTION), ("picture", mark)):
        if text and template.count(text) != 1:
            raise SettingError("template", f"expected the {what} once, as {text}", template)


def _rendered(tokenizer: Any, text: str, mark: str, named: str) -> str:
    """The chat template around what a user says, which is a picture and `text`."""
    said = [{"type": "image"}, {"type": "text", "text": text.replace(_QUESTION, _MARK)}]
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": said}],
            tokenize=False,
            add_generation_prompt=True,
            **_SILENT,
        )
    except Exception as error:
        words = " ".join(str(error).split())[:200]
        raise BadData(f"{named}: its chat template fails: {words}: give `template`") from error
    found = str(rendered)
    if not is_text(found):
        raise BadData(f"{named}: its chat template gives half of a character: give `template`")
    if found.count(_MARK) != 1 or found.count(mark) != 1 or _QUESTION in found:
        raise BadData(
            f"{named}: its chat template does not hold the picture ({mark}) and the question once "
            "each: give `template`"
        )
    return found.replace(_MARK, _QUESTION)


class PlainTokenizer:
    """A tokenizer that gives no special tokens for the words of a question.

    special: the words of these tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        table = json.loads(tokenizer.backend_tokenizer.to_str())
        special = {
            token["content"]
            for token in table["added_tokens"]
            if token["special"] or _TAG.fullmatch(token["content"])
        }
        special |= {*tokenizer.all_special_tokens}
        self.special = frozenset(special)
        self._names = {word: f"<{secrets.token_hex(16)}>" for word in sorted(special)}
        _rename(table, self._names)
        self._tokenizer = Tokenizer.from_str(json.dumps(table))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = False
        longest_first = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def __call__(self, texts: Sequence[str], *, with_ends: bool) -> list[list[int]]:
        """Ids of each text; `with_ends` adds the tokenizer's own special tokens, such as `<s>`."""
        marked = [self._marked(text) for text in texts]
        encodings = self._tokenizer.encode_batch(marked, add_special_tokens=with_ends)
        return [encoding.ids for encoding in encodings]

    def _marked(self, text: str) -> str:
        """The text, with the special tokens of its template replaced by their random names."""
        before, question, after = text.parts if isinstance(text, Prompt) else (text, "", "")
        before, after = (
            self._pattern.sub(lambda found: self._names[found[0]], part) for part in (before, after)
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
