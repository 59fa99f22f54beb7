"""From token shards to batches: which asks go together, which are held out, padded tensors.

Shapes: B examples of a batch, U distinct inputs of the connector among them, N visual tokens,
L query tokens, C/D channels.

An example is one ask about one frame. Asks about the same frame share what the connector makes of
it, unless the connector reads the prompt too (InstructBLIP).

Does not know a teacher from a student: both look at a batch through `look`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cdcca_cli.distillation.draws import For, draws
from cdcca_cli.errors import BadData
from cdcca_cli.families import FAMILIES, IMAGE_MARK
from cdcca_cli.formats.digest import short
from cdcca_cli.formats.shard import Ask, Shard
from cdcca_cli.models import LoadedModel, Spliced


@dataclass(frozen=True)
class Example:
    """One ask about one frame."""

    shard: Shard
    ask: Ask


@dataclass(frozen=True)
class Look:
    """A batch as a model sees it. queries: (B, L, C) of the connector; spliced: B prompts."""

    queries: Tensor
    spliced: Spliced


@dataclass(frozen=True)
class Prepared:
    """A batch before a model has seen it: nothing in it depends on an overlay.

    tokens_UNC, mask_UN, positions_UN: padded, on the model's device. inputs: the prompts of the U
    inputs. rows_B: the input of each example.
    """

    tokens_UNC: Tensor
    mask_UN: Tensor
    positions_UN: Tensor
    inputs: list[str]
    prompts: list[str]
    rows_B: Tensor


def look(model: LoadedModel, examples: Sequence[Example]) -> Look:
    """Stored tokens through the connector and into the prompts; keeps gradients."""
    return look_at(model, prepare(model, examples))


def prepare(model: LoadedModel, examples: Sequence[Example]) -> Prepared:
    """The tensors and prompts of a batch, to be looked at once or many times."""
    prompts = [model.format_prompt(example.ask.prompt, example.ask.task) for example in examples]
    inputs: dict[tuple[int, str], int] = {}
    firsts: list[int] = []
    rows: list[int] = []
    for place, (example, prompt) in enumerate(zip(examples, prompts, strict=True)):
        key = (id(example.shard), prompt if model.reads_prompt else "")
        if key not in inputs:
            inputs[key] = len(firsts)
            firsts.append(place)
        rows.append(inputs[key])
    shards = [examples[place].shard for place in firsts]
    tokens_UNC, mask_UN, positions_UN = _padded(shards, model.device)
    return Prepared(
        tokens_UNC=tokens_UNC,
        mask_UN=mask_UN,
        positions_UN=positions_UN,
        inputs=[prompts[place] for place in firsts],
        prompts=prompts,
        rows_B=torch.tensor(rows, device=model.device),
    )


def look_at(model: LoadedModel, batch: Prepared) -> Look:
    """`look` at what is prepared already."""
    mask_UN, rows_B = batch.mask_UN, batch.rows_B
    all_real = bool(mask_UN.all())
    queries_ULC = model.queries(batch.tokens_UNC, None if all_real else mask_UN, batch.inputs)
    features_ULD = model.project(queries_ULC)
    # index_select, not indexing: its backward adds up in a fixed order on a CPU.
    spliced = model.splice(
        features_ULD.index_select(0, rows_B),
        batch.prompts,
        mask_BN=mask_UN.index_select(0, rows_B),
        positions_BN=batch.positions_UN.index_select(0, rows_B),
    )
    return Look(queries_ULC.index_select(0, rows_B), spliced)


class Looker:
    """Looks at batches of stored tokens with one model.

    Where nothing of the connector is trained (`is_frozen`), what it makes of an input is computed
    once and kept, on the CPU.
    """

    def __init__(self, model: LoadedModel, is_frozen: bool) -> None:
        self._model, self._is_frozen = model, is_frozen
        self._kept: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def __call__(self, examples: Sequence[Example]) -> Look:
        """As `look`."""
        if not self._is_frozen:
            return look(self._model, examples)
        model = self._model
        prompts = [model.format_prompt(one.ask.prompt, one.ask.task) for one in examples]
        keys = [
            (id(one.shard), prompt if model.reads_prompt else "")
            for one, prompt in zip(examples, prompts, strict=True)
        ]
        for one, key in zip(examples, keys, strict=True):
            if key not in self._kept:
                self._kept[key] = self._connect(one)
        rows = [self._kept[key] for key in keys]
        queries_BLC, features_BLD = (
            pad_sequence(list(parts), batch_first=True).to(model.device)
            for parts in zip(*rows, strict=True)
        )
        _, mask_BN, positions_BN = _padded([one.shard for one in examples], model.device)
        spliced = model.splice(features_BLD, prompts, mask_BN=mask_BN, positions_BN=positions_BN)
        return Look(queries_BLC, spliced)

    @torch.no_grad()
    def _connect(self, example: Example) -> tuple[Tensor, Tensor]:
        """Queries (L, C) and features (L, D) of one input, on the CPU."""
        batch = prepare(self._model, [example])
        queries_1LC = self._model.queries(batch.tokens_UNC, None, batch.inputs)
        features_1LD = self._model.project(queries_1LC)
        return queries_1LC[0].cpu(), features_1LD[0].cpu()


def prompt_length(model: LoadedModel, example: Example) -> int:
    """How long a prompt is, in characters: near enough to batch alike ones."""
    return len(model.format_prompt(example.ask.prompt, example.ask.task))


def _padded(shards: Sequence[Shard], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (U, N, C), mask (U, N) bool and positions (U, N), padded on the right with zeros."""
    counts_U = np.array([len(shard.positions) for shard in shards])
    most, channels = int(counts_U.max()), shards[0].tokens.shape[1]
    tokens_UNC = np.zeros((len(shards), most, channels), np.float32)
    positions_UN = np.zeros((len(shards), most), np.int64)
    for row, shard in enumerate(shards):
        tokens_UNC[row, : counts_U[row]] = shard.tokens
        positions_UN[row, : counts_U[row]] = shard.positions
    mask_UN = np.arange(most) < counts_U[:, None]
    return (
        torch.from_numpy(tokens_UNC).to(device),
        torch.from_numpy(mask_UN).to(device),
        torch.from_numpy(positions_UN).to(device),
    )


def check_fit(shard: Shard, model: LoadedModel, role: str) -> None:
    """Refuse a shard whose tokens another vision tower made, or with a prompt in a template.

    Args: role: `teacher` or `student`, for the message.
    Raises: BadData.
    """
    if shard.tower != model.tower_digest:
        raise BadData(
            f"frame {shard.frame[:80]}: its tokens were made by the vision tower "
            f"{short(shard.tower)}, the {role}'s is {short(model.tower_digest)}: sample with a "
            f"device that shares the {role}'s tower, or name the {role} that shares the device's"
        )
    channels = int(model.module.config.vision_config.hidden_size)
    if (shard.num_tokens, shard.tokens.shape[1]) != (model.num_tokens, channels):
        raise BadData(
            f"frame {shard.frame[:80]}: {shard.tokens.shape[1]} channels, kept of "
            f"{shard.num_tokens} tokens; the {role}'s vision tower makes {model.num_tokens} tokens "
            f"of {channels} channels: not this tower's shard"
        )
    for ask in shard.asks:
        if ask.prompt is not None and (found := template_of(ask.prompt)):
            raise BadData(
                f"frame {shard.frame[:80]}: the prompt of {ask.id[:80]} stands in a template "
                f"already ({found}), and every model puts its own around it: sample with the bare "
                "question"
            )


def template_of(prompt: str) -> str | None:
    """The family and template whose words stand before and behind a question; None: it is bare."""
    words = _words(prompt)
    for before, after, said in _templates():
        rest = words.removeprefix(before).removesuffix(after)
        if len(words) - len(rest) == len(before) + len(after):
            return said
    return None


@cache
def _templates() -> list[tuple[str, str, str]]:
    """What each family's templates put before and behind, and how messages call them."""
    found = []
    for name, family in FAMILIES.items():
        for template in (family.vqa_template, family.caption_template):
            before, after = map(_words, template.split("{prompt}"))
            if before or after:
                shown = " ".join(template.format(prompt="...").split())
                found.append((before, after, f"{name}: {shown!r}"))
    return found


def _words(text: str) -> str:
    """Blanks as one, and without the picture's mark: a prompt has none where it is sent."""
    return " ".join(text.replace(IMAGE_MARK, " ").split())


def held_out_frames(frames: Sequence[str], share: float) -> set[str]:
    """The frames that are not trained on: those whose ids hash below the share, about so many.

    Each by its id alone, so a frame that is held out in one round is not trained on in another,
    whatever else is sent (but where the share moves). With two frames or more and a share above 0,
    at least one is held out, the lowest, and at least one is not, the highest.
    """
    distinct = sorted(set(frames), key=_place)
    if share <= 0 or len(distinct) < 2:
        return set()
    count = sum(is_held_out(frame, share) for frame in distinct)
    return set(distinct[: min(max(count, 1), len(distinct) - 1)])


def is_held_out(frame: str, share: float) -> bool:
    """Whether a frame is, in any stream where others are and others are not."""
    return _place(frame) < share


def _place(frame: str) -> float:
    """Where an id lies between 0 and 1."""
    return int.from_bytes(hashlib.sha256(frame.encode()).digest()[:8]) / 2**64


def shuffled_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> Iterator[list[int]]:
    """Batches of example numbers for one epoch: little padding, another order each time.

    Examples are shuffled, cut into pools of 16 batches, sorted by length within a pool, and the
    batches shuffled. All of it depends on seed and epoch alone.
    """
    source = draws(seed, For.ORDER, epoch)
    order = source.permutation(len(lengths))
    batches: list[list[int]] = []
    pool = 16 * batch_size
    for start in range(0, len(order), pool):
        ranked = sorted(order[start : start + pool].tolist(), key=lambda number: lengths[number])
        batches += [ranked[at : at + batch_size] for at in range(0, len(ranked), batch_size)]
    for number in source.permutation(len(batches)):
        yield batches[number]
