"""One question about one picture, asked of a server that runs the device's model.

The profile of the device (`formats.profile`) has the prompt around a question, the end tokens and
the vocabulary. llama-server gets that very prompt, and gives the tokens of answers and choices by
id. Any other server gets the question by chat and puts its own marks around it; it scores no
choices.

A special token's word in a question gets a space after its first character (`< /s>`), as
llama-server reads the words of a prompt with a picture as special tokens and has no other way to
write them as text.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from cdcca_cli import streams
from cdcca_cli.datasets import LabelledQuestion
from cdcca_cli.errors import BadData, SettingError, Unavailable
from cdcca_cli.formats.pictures import Picture
from cdcca_cli.formats.profile import Profile
from cdcca_cli.serving.http import Final, Transient
from cdcca_cli.serving.llama import EVERY, LlamaServer, Prompt, Step
from cdcca_cli.serving.openai import ChatServer, NoLogprobs
from cdcca_cli.uplink.entropies import Listed

NUM_TOP = 20
"""Likeliest tokens asked of each step."""
SURROUNDED = (
    ("<|vision_start|>", "<|vision_end|>"),  # Qwen 2 VL, 2.5 VL, 3 VL
    ("<start_of_image>", "<end_of_image>"),  # Gemma 3
    ("<|image>", "<image|>"),  # Gemma 4
    ("<fake_token_around_image><global-img>", "<fake_token_around_image>"),  # Idefics 3, SmolVLM
    ("<img>", "</img>"),  # InternVL
    ("<|image_start|>", "<|image_end|>"),  # Llama 4, LFM2-VL
    ("<|media_start|>", "<|media_end|>"),  # Kimi-VL
    ("<|begin_of_image|>", "<|end_of_image|>"),  # GLM-4V
    ("<|im_start|>", "<|im_end|>"),  # LightOnOCR
    ("<|img|>", "<|endofimg|>"),  # dots.ocr
    ("<|IMAGE_START|>", "<|IMAGE_END|>"),  # PaddleOCR-VL
    ("", "[IMG_END]"),  # Pixtral, Mistral 3
)
"""What llama.cpp itself puts around a picture, by its projector (tools/mtmd/mtmd.cpp); left out of
the prompt where it stands next to the picture. Marks between rows and tiles are its own as well."""
_MOST_KEPT = 4096  # texts whose tokens are known
_PLACE = re.compile(r"\{\d+\}")


@dataclass(frozen=True)
class Answer:
    """What a server answered to one question.

    steps: of each token that the server described, of which it was asked the `num_top` likeliest.
    scores: of the choices; None: unknown.
    """

    text: str
    steps: Sequence[Listed]
    num_top: int
    scores: list[float] | None = None


class Asked(Protocol):
    """A server, in its own language. num_at_once: requests that it works on together."""

    num_at_once: int

    def answer(
        self, picture: Picture, question: LabelledQuestion, limit: int, choices: Sequence[str]
    ) -> Answer: ...

    def close(self) -> None: ...


# ---------------------------------------------------------------- llama-server


class LlamaAsked:
    """llama-server: the family's own prompt, tokens by id, exact scores of choices."""

    def __init__(self, server: LlamaServer, profile: Profile, num_top: int = NUM_TOP) -> None:
        """Raises: Unavailable if it takes no pictures."""
        if server.props.marker is None or not server.props.sees:
            raise Unavailable(
                f"{server.client.name}: takes no pictures: start it with its vision part (mmproj)"
            )
        if profile.has_class_token:
            streams.message(
                "the vision tower has a class token: llama.cpp reads the tokens of such a tower in "
                "another order (issue 25814 of ggml-org/llama.cpp), so answers may differ"
            )
        self._server, self._profile, self._num_top = server, profile, num_top
        # All that a server lists is all there is, even if the head has rows that it leaves out.
        self._vocabulary = 0 if num_top == EVERY else profile.language.vocabulary
        self._marker = server.props.marker
        self.num_at_once = min(server.props.num_slots, server.client.how.concurrency)
        self.close = server.close
        self._added, self._lacking = self._begin()
        self._special = _pattern([*profile.special, self._marker])
        self._biases: dict[int, float | bool] = dict.fromkeys(profile.suppressed, False)
        self._words = lru_cache(_MOST_KEPT)(self._checked)
        self._ids = lru_cache(_MOST_KEPT)(lambda text: tuple(server.tokenize(text)))

    def _begin(self) -> tuple[str, str]:
        """The words of the first tokens that the server adds, and of those that it does not."""
        alone = self._server.tokenize("a")
        around = self._server.tokenize("a", begin=True)
        added = around[: max(0, len(around) - len(alone))]
        wanted = [*self._profile.begin]
        if added == wanted:
            return "", ""
        if not added:
            return "", self._server.detokenize(wanted)
        words = self._server.detokenize(added)
        if wanted or not self._profile.prompts["vqa"].startswith(words):
            streams.message(
                f"{self._server.client.name}: begins each prompt with {added} where the device's "
                f"model has {wanted}: answers may differ"
            )
            return "", ""
        return words, ""

    def answer(
        self, picture: Picture, question: LabelledQuestion, limit: int, choices: Sequence[str]
    ) -> Answer:
        """Raises: BadData; Unavailable if the server is down."""
        profile, server = self._profile, self._server
        prompt = self.prompt(picture, question)
        found = server.complete(prompt, limit, num_top=self._num_top, biases=self._biases)
        ends = [place for place, one in enumerate(found.ids) if one in profile.end]
        length = ends[0] + 1 if ends else len(found.ids)
        steps = [
            step or self._behind(prompt, found.ids[:place])
            for place, step in enumerate(found.steps[:length])
        ]
        words = found.text
        if length < len(found.ids):
            words = server.detokenize(found.ids[: length - 1])
        listed = [
            Listed.of(step.top.values() or [step.logp], self._vocabulary)
            for step in steps
            if step is not None
        ]
        scores = self._scores(prompt, question, choices) if choices else None
        return Answer(words.strip(), listed, self._num_top, scores)

    def prompt(self, picture: Picture, question: LabelledQuestion) -> Prompt:
        """The family's own prompt, as the server takes it. Raises: BadData."""
        return Prompt(self._text(question), (picture.data,))

    def _behind(self, prompt: Prompt, after: Sequence[int]) -> Step | None:
        """The step after some tokens, which the server has left out: the token is a part of a
        character. None if it cannot be had."""
        end = self._profile.end[0]
        try:
            top = self._server.logprobs(prompt, self._num_top, end=end, after=after, cache=True)
        except Final:
            return None
        return Step(end, top.get(end, 0.0), top)

    def _scores(
        self, prompt: Prompt, question: LabelledQuestion, choices: Sequence[str]
    ) -> list[float] | None:
        end = self._profile.end[0]
        try:
            return [
                self._server.score(prompt, ids, end=end, cache=True)
                for ids in self.answer_ids(choices)
            ]
        except Final as error:
            self._server.client.say_once(
                f"question {question.id[:80]}: no scores of its choices: {error}", "scores"
            )
            return None

    def answer_ids(self, choices: Sequence[str]) -> list[tuple[int, ...]]:
        """Tokens of each answer as they follow a prompt, without the end token."""
        stub, joint = self._profile.stub
        before = self._ids(stub)
        plain = [choice.strip() for choice in choices]
        behind = [self._ids(f"{stub}{joint}{choice}") for choice in plain]
        if all(ids[: len(before)] == before for ids in behind):
            return [ids[len(before) :] for ids in behind]
        return [self._ids(f"{joint}{choice}") for choice in plain]

    def _text(self, question: LabelledQuestion) -> str:
        template = with_marker(self._profile, question.task, self._marker)
        before, _, after = template.removeprefix(self._added).partition("{prompt}")
        return f"{self._lacking}{before}{self._words(words_of(question, self._profile))}{after}"

    def _checked(self, words: str) -> str:
        """A question's words, none of which is a special token. Raises: BadData."""
        plain = as_text(words, self._special)
        if self._server.tokenize(plain, special=True) != self._server.tokenize(plain):
            raise BadData(f"{words[:80]!r} holds a word that the server reads as a special token")
        return plain


def with_marker(profile: Profile, task: str, marker: str) -> str:
    """The template of a task with the server's marker, and the marks around it that are its own."""
    template = profile.prompts[task]
    if "{picture}" not in template:
        return marker + template
    marks = "" if profile.layout is None else profile.layout.marks
    places = [*_PLACE.finditer(marks)]
    around = marker
    if len(places) == 1:
        around = marks[: places[0].start()] + marker + marks[places[0].end() :]
    text = template.replace("{picture}", around)
    for begin, end in SURROUNDED:
        text = text.replace(f"{begin}{marker}{end}", marker)
    return text


def _pattern(words: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(filter(None, words), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def as_text(words: str, special: re.Pattern[str]) -> str:
    """The words with a space after the first character of each special one, so that it is none."""
    for _ in range(len(words)):
        broken = special.sub(lambda found: f"{found[0][:1]} {found[0][1:]}", words)
        if broken == words:
            break
        words = broken
    return words


def words_of(question: LabelledQuestion, profile: Profile) -> str:
    """What is asked. Raises: SettingError for a question without words."""
    if question.prompt is None and question.task == "vqa":
        raise SettingError("prompt", "the task vqa needs a question, found none")
    return profile.caption_prompt if question.prompt is None else question.prompt


# ---------------------------------------------------------------- chat


class ChatAsked:
    """Any OpenAI-compatible server: questions by chat, without scores of choices."""

    def __init__(self, server: ChatServer, profile: Profile, num_at_once: int) -> None:
        self._server, self._profile = server, profile
        self.num_at_once = num_at_once
        self.close = server.close

    def answer(
        self, picture: Picture, question: LabelledQuestion, limit: int, choices: Sequence[str]
    ) -> Answer:
        """Raises: BadData; Unavailable if the server is down."""
        said = self._profile.said[question.task].replace("{picture}", "")
        text = said.replace("{prompt}", words_of(question, self._profile))
        try:
            reply = self._server.complete(text, picture, limit)
        except NoLogprobs:
            raise Final(
                "an answer without log-probabilities, so that nobody knows how sure it is: "
                "serve the model with them"
            ) from None
        except Transient as error:
            tried = f"failed {self._server.client.how.attempts} times: {error}"
            if error.is_down:
                raise Unavailable(f"{self._server.client.name}: {tried}") from None
            raise BadData(tried) from None
        if reply.is_refused:
            raise BadData("the server refused to answer")
        if choices:
            self._server.client.say_once("scores no choices: `choice_scores` are null", "choices")
        vocabulary = self._profile.language.vocabulary
        tops = [[logp for _, logp in token.top] or [token.logp] for token in reply.tokens or ()]
        asked_for = self._server.dialect.top or 1
        return Answer(reply.text.strip(), [Listed.of(top, vocabulary) for top in tops], asked_for)
