"""What cdcca rests on, for every family: stored visual tokens are as good as pixels.

A wide, a tall and a square picture and questions of three lengths share each batch. Differences
are of logits, at most 1e-5 unless a family rounds more.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cdcca_cli import models
from cdcca_cli.formats.names import GROUPS, LORA_PARTS
from cdcca_cli.models import Seen, Spliced, padded
from cdcca_cli.uplink import uncertainty
from tests import zoo
from tests.families.conftest import ANSWERS, HYBRID, Case

NO_BLOCKS = {
    "gemma4_unified": "it has no vision tower",
}
"""Families without blocks in which dropout could be put, and why."""


def through_memory(case: Case) -> list[Seen]:
    """The tokens as a shard gives them back."""
    return [replace(one, tokens=torch.from_numpy(one.tokens.numpy().copy())) for one in case.seen]


def logits_of(case: Case, spliced: Spliced, answers: Any = ANSWERS) -> list[Tensor]:
    """Of each row (A, V), where its answer's tokens are predicted."""
    ids_BA = case.model.answer_ids(list(answers))
    with torch.no_grad():
        logits_BAV = case.model.forward(spliced, ids_BA).logits
    return [row[: int((ids != -100).sum())] for row, ids in zip(logits_BAV, ids_BA, strict=True)]


def worst(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


@torch.no_grad()
def read(case: Case, rows: tuple[int, ...] = (0, 1, 2)) -> Spliced:
    seen = through_memory(case)
    return case.model.read([seen[row] for row in rows], [case.prompts[row] for row in rows])


def of_the_zoo(case: Case) -> None:
    if case.name in zoo.QFORMERS:
        pytest.skip("tests/models compares Q-Formers with transformers' own processors")


def test_stored_tokens_give_what_pixels_give(case: Case) -> None:
    """Against the family's class in transformers, with its processor and tokenizer."""
    of_the_zoo(case)
    theirs, answer_ids = [], case.model.answer_ids(list(ANSWERS))
    for row, image in enumerate(case.images):
        inputs = case.theirs.inputs(image, case.prompts[row])
        assert inputs["input_ids"][0].tolist() == case.model.prompt_ids(
            case.prompts[row], case.seen[row]
        )
        answer = answer_ids[row][answer_ids[row] != -100]
        with torch.no_grad():
            logits = case.theirs.logits(inputs, answer[:-1])
        theirs.append(logits[-len(answer) :])
    assert worst(logits_of(case, read(case)), theirs) <= case.tolerance


def test_greedy_is_the_generate_of_transformers(case: Case) -> None:
    of_the_zoo(case)
    made = case.model.generate(read(case), 5)
    for row, image in enumerate(case.images):
        inputs = case.theirs.inputs(image, case.prompts[row])
        out = case.theirs.model.generate(
            **inputs,
            max_new_tokens=5,
            do_sample=False,
            suppress_tokens=list(case.model.language.suppressed),
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert out.sequences[0, -len(out.logits) :].tolist() == made.ids[row]
        for step, logits in enumerate(out.logits):
            entropy = torch.distributions.Categorical(logits=logits[0].double()).entropy()
            assert made.entropies[row][step] == pytest.approx(entropy.item(), abs=case.tolerance)


def test_one_at_a_time_equals_all_at_once(case: Case) -> None:
    model, choices = case.model, [["red", "two"], ["no", "white black", "yes"], ["one"]]
    together = read(case)
    assert int(together.attention_mask.min()) == 0, "the prompts should need padding"
    logits, made = logits_of(case, together), model.generate(together, 4)
    scores = model.score_choices(together, choices)
    for row in range(3):
        alone = read(case, (row,))
        assert worst(logits_of(case, alone, [ANSWERS[row]]), [logits[row]]) <= case.tolerance
        assert model.generate(alone, 4).ids[0] == made.ids[row]
        (found,) = model.score_choices(alone, [choices[row]])
        assert found == pytest.approx(scores[row], abs=5 * case.tolerance)
        (one,) = model.see([case.pictures[row]])
        assert (one.tokens - case.seen[row].tokens).abs().max() <= case.tokens_tolerance
        assert one.layout == case.seen[row].layout


def test_the_picture_is_looked_at(case: Case) -> None:
    other = zoo.images(seed=1)["wide"]
    with torch.no_grad():
        seen = case.model.see(case.model.prepare([other]))
        spliced = case.model.read(seen, case.prompts[:1])
    here, there = (logits_of(case, one, ["red"]) for one in (read(case, (0,)), spliced))
    assert worst(here, there) > 100 * case.tolerance


@torch.no_grad()
def test_dropping_equals_masking(case: Case) -> None:
    """Half of each picture's tokens, at random; in a batch and alone."""
    model, generator = case.model, torch.Generator().manual_seed(1)
    kept = []
    for one in case.seen:
        order = torch.randperm(one.num_tokens, generator=generator)
        kept.append(order[: max(1, one.num_tokens // 2)].sort().values)
    few_BNC, real_BN = padded(
        [one.tokens[places] for one, places in zip(case.seen, kept, strict=True)]
    )
    positions_BN = pad_sequence(kept, batch_first=True)
    mask_BN = model._of_features(real_BN)
    features = model.project(model.queries(few_BNC, real_BN, case.prompts))
    spliced = model.splice(
        features, case.prompts, case.seen, mask_BN=mask_BN, positions_BN=positions_BN
    )
    dropped = logits_of(case, spliced)
    for row, places in enumerate(kept):
        features = model.project(
            model.queries(case.seen[row].tokens[places][None], None, [case.prompts[row]])
        )
        one = model.splice(
            features, [case.prompts[row]], [case.seen[row]], positions_BN=places[None]
        )
        assert worst(logits_of(case, one, [ANSWERS[row]]), [dropped[row]]) <= case.tolerance
    masked = worst(dropped, logits_of(case, _masked(case, kept)))
    assert masked > 100 * case.tolerance if case.name in HYBRID else masked <= case.tolerance


def _masked(case: Case, kept: list[Tensor]) -> Spliced:
    """Prompts with whole pictures, in which nothing attends to the tokens that are not kept."""
    real = [
        torch.isin(torch.arange(one.num_tokens), places)
        for one, places in zip(case.seen, kept, strict=True)
    ]
    if case.model.row.kind != "cells":
        whole_BNC, _ = padded([one.tokens for one in case.seen])
        real_BN = pad_sequence(real, batch_first=True)
        features = case.model.project(case.model.queries(whole_BNC, real_BN, case.prompts))
        return case.model.splice(features, case.prompts, case.seen)
    whole = read(case)
    mask_BS = whole.attention_mask.clone()
    for row, real_N in enumerate(real):
        mask_BS[row, whole.visual_mask[row]] = real_N.to(mask_BS)
    return replace(whole, attention_mask=mask_BS)


@torch.no_grad()
def test_the_tower_in_two_pieces_is_the_tower(case: Case) -> None:
    """Bit for bit, at every block; and many passes at once are as many times one."""
    for row, picture in enumerate(case.pictures):
        (whole,) = case.model.see([picture])
        for block in range(case.model.num_blocks + 1):
            trunk = case.model.trunk(picture, block)
            tokens, layout = case.model.tail(trunk)
            assert torch.equal(tokens[0], whole.tokens), block
            assert layout == case.seen[row].layout
        tokens, _ = case.model.tail(trunk, 3)
        assert (tokens - case.seen[row].tokens).abs().max() <= case.tokens_tolerance


def test_dropout_changes_all_passes_but_the_first(case: Case) -> None:
    model = case.model
    if case.name in NO_BLOCKS:
        assert not model.num_blocks
        pytest.skip(NO_BLOCKS[case.name])
    for row, picture in enumerate(case.pictures):
        with torch.no_grad():
            trunk = model.trunk(picture, model.num_blocks - 1)
        tokens_PNC, _ = uncertainty.dropout_tokens(
            model, trunk, "frame", blocks=1, passes=4, rate=0.2, seed=0
        )
        seen = case.seen[row]
        assert (tokens_PNC[0] - seen.tokens).abs().max() <= case.tokens_tolerance
        variance_N = uncertainty.pass_variance(tokens_PNC[1:])
        has_content = torch.ones(seen.num_tokens, dtype=torch.bool)
        has_content[list(seen.layout.fixed)] = False
        assert bool((variance_N > 0).equal(has_content))


def test_gradients_reach_every_group(case: Case) -> None:
    """From stored tokens to a loss on the logits and on the last attention."""
    model = models.load(case.folder, compute="cpu")
    values = model.initial_overlay(GROUPS, 2, 0)
    for name, value in values.items():
        if name.endswith("lora_B"):
            values[name] = np.full_like(value, 0.01)
    model.install_overlay(values, 4.0)
    trainable = model.trainable()
    with model.training_mode():
        spliced = model.read(through_memory(case), case.prompts)
        output = model.forward(spliced, model.answer_ids(list(ANSWERS)))
        (output.logits.square().mean() + output.hidden.square().mean()).backward()
    reached = {name for name, one in trainable.items() if one.grad is not None and one.grad.any()}
    groups = model.trainable_groups()
    for group in ("norm", "bias", "query", *LORA_PARTS):
        names = groups[group]
        own = [name for name in reached if name in names or name.rpartition(".")[0] in names]
        assert bool(own) == bool(names), group
    assert groups["query"] or case.model.row.kind == "cells"
    assert groups["norm"] and groups["bias"] and groups["lora.language"]
