"""From token shards to what a language model reads: padded tensors, connector, spliced prompts.

Questions about the same frame share the connector's output, unless the connector reads the prompt
too (InstructBLIP).

Shapes: B examples of a batch, U distinct inputs of the connector among them, N visual tokens, L
query tokens, C/D channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from cdcca_cli.errors import BadData
from cdcca_cli.families import FAMILIES
from cdcca_cli.formats.digest import short
from cdcca_cli.formats.shard import Question, Shard
from cdcca_cli.models import LoadedModel, PromptTooLong, Spliced, padded
from cdcca_cli.models.settings import MAX_NEW_TOKENS

FORWARD_POSITIONS = 10_000
"""Positions of prompts in one forward pass without gradients, several examples together."""


@dataclass(frozen=True)
class Example:
    """One question about one frame."""

    shard: Shard
    question: Question

    def __str__(self) -> str:
        """For messages."""
        return f"frame {self.shard.frame[:80]}: question {self.question.id[:80]}"


@dataclass(frozen=True)
class EncodedBatch:
    """B examples as the language model reads them. queries: (B, L, C) of the connector."""

    prompts: list[str]
    queries: Tensor
    spliced: Spliced


def encode(model: LoadedModel, examples: Sequence[Example]) -> EncodedBatch:
    """Stored tokens through the connector and into the prompts; keeps gradients."""
    prompts = [model.format_prompt(one.question.prompt, one.question.task) for one in examples]
    inputs = [
        (id(example.shard), prompt if model.reads_prompt else "")
        for example, prompt in zip(examples, prompts, strict=True)
    ]
    firsts = [inputs.index(key) for key in dict.fromkeys(inputs)]
    rows = {inputs[place]: row for row, place in enumerate(firsts)}
    rows_B = torch.tensor([rows[key] for key in inputs], device=model.device)
    shards = [examples[place].shard for place in firsts]
    tokens_UNC, mask_UN = padded([torch.from_numpy(shard.tokens) for shard in shards])
    positions_UN, _ = padded([torch.from_numpy(shard.positions).long() for shard in shards])
    tokens_UNC, mask_UN = tokens_UNC.to(model.device), mask_UN.to(model.device)
    positions_UN = positions_UN.to(model.device)
    real_UN = None if bool(mask_UN.all()) else mask_UN
    queries_ULC = model.queries(tokens_UNC, real_UN, [prompts[place] for place in firsts])
    features_ULD = model.project(queries_ULC)
    # index_select, not indexing: its backward adds up in a fixed order on a CPU.
    spliced = model.splice(
        features_ULD.index_select(0, rows_B),
        prompts,
        [example.shard for example in examples],
        mask_BN=mask_UN.index_select(0, rows_B),
        positions_BN=positions_UN.index_select(0, rows_B),
    )
    return EncodedBatch(prompts, queries_ULC.index_select(0, rows_B), spliced)


def prompt_length(model: LoadedModel, example: Example) -> int:
    """The length of a prompt in characters, by which examples are batched."""
    return len(model.format_prompt(example.question.prompt, example.question.task))


def num_positions(model: LoadedModel, example: Example) -> int:
    """Positions of a prompt with its whole picture, without the answer."""
    question = example.question
    prompt = model.format_prompt(question.prompt, question.task)
    return model.prompt_length(prompt, example.shard)


def too_long(model: LoadedModel, role: str, example: Example, answers: Sequence[str]) -> str:
    """Why a model cannot read a question and answer it, in its own words or one of `answers`.

    Returns: "" if it can; else the message, which names the question.
    """
    asked = example.question
    try:
        most = MAX_NEW_TOKENS[asked.task]
        model.check_prompt(asked.prompt, asked.task, most, answers, example.shard)
    except PromptTooLong as error:
        return f"{example}: for the {role}: {error}"
    return ""


def passes(positions: Sequence[int], most_examples: int, most_positions: int) -> list[range]:
    """The places of examples, cut into runs that one pass through a model takes.

    Args: positions: of each example. most_positions: of a run, padded to its longest example; one
        example that has more is a run by itself.
    """
    runs: list[range] = []
    start = longest = 0
    for place, length in enumerate(positions):
        longest, size = max(longest, length), place + 1 - start
        if size > most_examples or (size > 1 and size * longest > most_positions):
            runs.append(range(start, place))
            start, longest = place, length
    return [*runs, range(start, len(positions))] if positions else []


def check_fit(shard: Shard, model: LoadedModel, role: str) -> None:
    """Refuse a shard of another vision tower or with templated prompts. Raises: BadData.

    A teacher looks at a picture with its own tower.
    """
    looks = role == "teacher" and shard.picture is not None
    if shard.tower != model.tower_digest and not looks:
        raise BadData(
            f"frame {shard.frame[:80]}: its tokens come from the vision tower "
            f"{short(shard.tower)}, the {role}'s is {short(model.tower_digest)}: sample with "
            f"`payload` frame, or name the {role} that shares the device's tower"
        )
    is_own = shard.tower == model.tower_digest and shard.is_open
    if is_own and not model.can_read(shard.num_tokens, shard.tokens.shape[1]):
        raise BadData(
            f"frame {shard.frame[:80]}: {shard.num_tokens} tokens of {shard.tokens.shape[1]} "
            f"channels, which the {role}'s vision tower does not make: not this tower's shard"
        )
    for question in shard.questions:
        if question.prompt is not None and (found := template_of(question.prompt)):
            raise BadData(
                f"frame {shard.frame[:80]}: the prompt of {question.id[:80]} is already in a "
                f"template ({found}), and every model adds its own: sample with the bare question"
            )


def template_of(prompt: str) -> str | None:
    """The family and template whose words surround a question; None for a bare question."""
    words = _words(prompt)
    for before, after, name in _templates():
        rest = words.removeprefix(before).removesuffix(after)
        if len(words) - len(rest) == len(before) + len(after):
            return name
    return None


@cache
def _templates() -> list[tuple[str, str, str]]:
    """The words before and after the prompt in each template, and its name for messages."""
    found = []
    for name, family in FAMILIES.items():
        own = (family.vqa_template, family.caption_template)
        for template in family.plain_templates if family.chat else own:
            before, after = map(_words, template.split("{prompt}"))
            if before or after:
                shown = " ".join(template.format(prompt="...").split())
                found.append((before, after, f"{name}: {shown!r}"))
    return found


def _words(text: str) -> str:
    """The words of a text without the image mark, which prompts in shards lack."""
    return " ".join(text.replace("<image>", " ").split())
