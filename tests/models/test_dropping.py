"""A token left out is a token masked, to 1e-5, in every family; a token zeroed is not."""

import torch

from cdcca_cli.models import Seen
from tests.models.conftest import Case

TOLERANCE = 1e-5


def see(case: Case, count: int) -> tuple[list[Seen], torch.Tensor]:
    """The first pictures, and their tokens in one tensor: all are of one size."""
    seen = case.model.see(case.model.prepare(case.images[:count]))
    return seen, torch.stack([one.tokens for one in seen])


def test_dropping_equals_masking(case: Case) -> None:
    """Q: a slice equals encoder_attention_mask. P: a shorter prompt equals an attention mask.

    The slow side is transformers itself where it has a door for a mask (the Q-Former's
    cross-attention; LLaVA's attention_mask over the whole prompt).
    """
    model, prompt = case.model, [case.prompts[0]]
    seen, tokens = see(case, 1)
    kept = torch.zeros(1, seen[0].num_tokens, dtype=torch.bool)
    kept[0, [0, 2, 3, 7]] = True
    positions = kept[0].nonzero().T
    few = tokens[kept][None]
    answer = model.answer_ids(["yes no"])

    queries = model.queries(few, None, prompt)
    spliced = model.splice(model.project(queries), prompt, seen, positions_BN=positions)
    dropped = model.forward(spliced, answer).logits
    if case.name == "llava":
        inputs = case.reference.inputs(case.images[0], prompt[0])
        ids = torch.cat([inputs["input_ids"], answer[:, :-1]], dim=1)
        mask = torch.ones_like(ids)
        place = ids[0] == model.module.config.image_token_id
        mask[0, place] = kept[0].long()
        masked = case.reference.model(
            input_ids=ids, pixel_values=inputs["pixel_values"], attention_mask=mask
        ).logits[:, -answer.shape[1] :]
    else:
        theirs = model.queries(tokens, kept, prompt)
        assert (theirs - queries).abs().max() <= TOLERANCE
        whole = model.splice(model.project(theirs), prompt, seen)
        masked = model.forward(whole, answer).logits
    assert (dropped - masked).abs().max() <= TOLERANCE

    zeroed = tokens * kept[..., None]
    features = model.project(model.queries(zeroed, None, prompt))
    unlike = model.forward(model.splice(features, prompt, seen), answer).logits
    assert (dropped - unlike).abs().max() > 100 * TOLERANCE


def test_frames_with_different_numbers_of_tokens_share_a_batch(case: Case) -> None:
    """Rows padded on the right with a mask equal each row alone."""
    model = case.model
    seen, tokens = see(case, 3)
    places = [[0, 2, 3, 7], [1], [0, 4, 5, 6, 8]]
    width = max(len(row) for row in places)
    batch = torch.full((3, width, tokens.shape[-1]), 9.0)
    mask = torch.zeros(3, width, dtype=torch.bool)
    positions = torch.zeros(3, width, dtype=torch.long)
    for row, kept in enumerate(places):
        batch[row, : len(kept)] = tokens[row, kept]
        mask[row, : len(kept)] = True
        positions[row, : len(kept)] = torch.tensor(kept)
    answers = ["red", "yes no", "two"]
    features = model.project(model.queries(batch, mask, case.prompts))
    spliced = model.splice(features, case.prompts, seen, mask_BN=mask, positions_BN=positions)
    together = model.forward(spliced, model.answer_ids(answers))
    made = model.generate(spliced, 4)
    for row, kept in enumerate(places):
        prompt = [case.prompts[row]]
        features = model.project(model.queries(tokens[row : row + 1, kept], None, prompt))
        alone = model.splice(features, prompt, [seen[row]], positions_BN=torch.tensor([kept]))
        output = model.forward(alone, model.answer_ids([answers[row]]))
        length = output.logits.shape[1]
        assert (output.logits[0] - together.logits[row, :length]).abs().max() <= TOLERANCE
        count = output.hidden.shape[1]
        assert int(together.hidden_mask[row].sum()) == count
        assert (output.hidden[0] - together.hidden[row, :count]).abs().max() <= TOLERANCE
        assert model.generate(alone, 4).ids[0] == made.ids[row]


def test_kept_tokens_keep_their_places(case: Case) -> None:
    """P: position ids as in the whole prompt, generation goes on behind the last one."""
    if case.name != "llava":
        return
    model, prompt = case.model, [case.prompts[1]]
    seen, tokens = see(case, 1)
    features = model.project(model.queries(tokens[:, [1, 6]]))
    few = model.splice(features, prompt, seen, positions_BN=torch.tensor([[1, 6]]))
    whole = model.read(seen, prompt)
    first = int(whole.visual_mask[0].int().argmax())
    expected = [i for i in range(whole.position_ids.shape[1]) if not whole.visual_mask[0, i]]
    expected = sorted([*expected, first + 1, first + 6])
    assert few.position_ids[0].tolist() == expected
