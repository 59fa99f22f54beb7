"""Checks at load that the parts of a checkpoint fit together.

A vocabulary padded to more rows than the tokenizer has ids fits; an id without a row is refused.
"""

from typing import Any

from PIL import Image

from cdcca_cli.errors import BadData
from cdcca_cli.formats.shard import Layout
from cdcca_cli.models.model import LoadedModel
from cdcca_cli.models.pictures import Places
from cdcca_cli.models.settings import MAX_NEW_TOKENS

LEAST_QUESTION = 8
"""Length in tokens of a short question, for which there must be room."""


def check(model: LoadedModel) -> None:
    """Raises: BadData with both numbers, for the first part that does not fit."""
    _check_vocabulary(model)
    model.check_sizes()
    blank = Image.new("RGB", (64, 64))
    try:
        model.preparer(blank, model.device)
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        raise BadData(f"{model.checkpoint}: the image processor fails: {words}") from error
    (picture,) = model.prepare([blank])
    count = picture.num_tokens
    _check_positions(
        model, None if count is None else Places(count, Layout(marks=picture.marks or ""))
    )


def _check_vocabulary(model: LoadedModel) -> None:
    named = model.checkpoint
    rows = int(model.language.embeddings.num_embeddings)
    # The mark of a picture is never looked up.
    mark = getattr(model.module.config, "image_token_id", None)
    check_ids(f"{named}: the tokenizer", model.tokenizer, rows, "language model", mark)
    head = int(model.module.get_output_embeddings().weight.shape[0])
    end = model.end_ids[0]
    if not 0 <= end < head:
        raise BadData(
            f"{named}: the end token is {end}, the language model has a vocabulary of {head}"
        )


def check_ids(what: str, tokenizer: Any, rows: int, part: str, mark: int | None = None) -> None:
    """Refuse a tokenizer with an id that has no row in an embedding, except `mark`."""
    words = tokenizer.get_vocab().items()
    number, word = max((number, word) for word, number in words if number != mark)
    if number >= rows:
        raise BadData(
            f"{what} has ids up to {number} ({word[:40]!r}), the {part} has a vocabulary of "
            f"{rows}: they do not belong together"
        )


def _check_positions(model: LoadedModel, seen: Places | None) -> None:
    most = model.language.max_positions
    if most is None:
        return
    for task, answer in MAX_NEW_TOKENS.items():
        question = "" if task == "vqa" else None
        taken = model.prompt_length(model.format_prompt(question, task), seen)
        needed = taken + answer + (LEAST_QUESTION if task == "vqa" else 0)
        if needed > most:
            raise BadData(
                f"{model.checkpoint}: the language model has {most} positions; the picture, the "
                f"template for {task}, a short question and an answer need {needed}"
            )
