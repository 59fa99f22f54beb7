"""Stored tokens give what pixels give: forward and generate against transformers itself, to 1e-5.

A picture is swapped too, so that none of this can pass on a model that does not look.
"""

import pytest
import torch

from cdcca_cli.models import Seen, Spliced
from tests.models.conftest import Case
from tests.models.reference import generate_with_logits

TOLERANCE = 1e-5


def spliced(case: Case, rows: list[int]) -> Spliced:
    """Prompts with pictures, by way of tokens that went through memory as a shard's do."""
    model = case.model
    seen = model.see(model.prepare([case.images[row] for row in rows]))
    stored = [Seen(torch.from_numpy(one.tokens.numpy().copy()), one.layout) for one in seen]
    return model.read(stored, [case.prompts[row] for row in rows])


def test_the_prompt_is_that_of_transformers(case: Case) -> None:
    """Same number of positions, features at <image>, the same ids or their embeddings."""
    for row in range(3):
        inputs = case.reference.inputs(case.images[row], case.prompts[row])
        ours = spliced(case, [row])
        ids = inputs["input_ids"][0]
        place = case.model.module.config.image_token_id
        assert ours.visual_mask[0].tolist() == (ids == place).tolist()
        assert ours.position_ids[0].tolist() == list(range(len(ids)))
        if ours.input_ids is not None:
            assert ours.input_ids[0].tolist() == ids.tolist()
            continue
        assert ours.inputs_embeds is not None
        text = ids != place
        expected = case.model.language.embeddings(ids[text])
        torch.testing.assert_close(ours.inputs_embeds[0][text], expected, rtol=0, atol=0)


def test_pixels_are_those_of_transformers(case: Case) -> None:
    ours = case.model.prepare(case.images)
    for row, image in enumerate(case.images):
        theirs = case.reference.inputs(image, case.prompts[row])["pixel_values"]
        torch.testing.assert_close(ours[row].inputs["pixel_values"], theirs, rtol=0, atol=0)


def test_forward_from_tokens_equals_forward_from_pixels(case: Case) -> None:
    answers = ["red", "yes no", "two"]
    ids = case.model.answer_ids(answers)
    output = case.model.forward(spliced(case, [0, 1, 2]), ids)
    for row in range(3):
        answer = [token for token in ids[row].tolist() if token != -100]
        theirs = case.reference.answer_logits(case.images[row], case.prompts[row], answer)
        ours = output.logits[row, : len(answer)]
        assert (ours - theirs).abs().max() <= TOLERANCE


def test_generate_from_tokens_equals_generate_from_pixels(case: Case) -> None:
    made, made_logits = generate_with_logits(case.model, spliced(case, [0, 1, 2]), 5)
    for row in range(3):
        ids, logits = case.reference.greedy(case.images[row], case.prompts[row], 5)
        assert made.ids[row] == ids
        for step in range(len(ids)):
            assert (made_logits[step][row] - logits[step]).abs().max() <= TOLERANCE
            entropy = torch.distributions.Categorical(logits=logits[step].double()).entropy()
            assert made.entropies[row][step] == pytest.approx(entropy.item(), abs=TOLERANCE)


def test_the_picture_is_looked_at(case: Case) -> None:
    answer = case.model.answer_ids(["red"])
    prompt = [case.prompts[0]]
    logits = []
    for image in case.images[:2]:
        seen = case.model.see(case.model.prepare([image]))
        logits.append(case.model.forward(case.model.read(seen, prompt), answer).logits)
    assert (logits[0] - logits[1]).abs().max() > 1000 * TOLERANCE


def test_one_at_a_time_equals_all_at_once(case: Case) -> None:
    """Batch of 1 and of 3, prompts of different lengths, answers of different lengths."""
    answers = ["red", "yes no yellow", "two"]
    choices = [["red", "two"], ["no", "white black", "yes"], ["one"]]
    together = spliced(case, [0, 1, 2])
    assert int(together.attention_mask.min()) == 0, "the prompts should need padding"
    logits = case.model.forward(together, case.model.answer_ids(answers)).logits
    hidden = case.model.forward(together, case.model.answer_ids(answers)).hidden
    made = case.model.generate(together, 5)
    scores = case.model.score_choices(together, choices)
    for row in range(3):
        alone = spliced(case, [row])
        output = case.model.forward(alone, case.model.answer_ids([answers[row]]))
        length = output.logits.shape[1]
        assert (output.logits[0] - logits[row, :length]).abs().max() <= TOLERANCE
        assert (output.hidden[0] - hidden[row]).abs().max() <= TOLERANCE
        single = case.model.generate(alone, 5)
        assert single.ids[0] == made.ids[row]
        assert single.entropies[0] == pytest.approx(made.entropies[row], abs=TOLERANCE)
        assert case.model.score_choices(alone, [choices[row]])[0] == pytest.approx(
            scores[row], abs=TOLERANCE
        )


def test_choices_are_scored_as_one_by_one(case: Case) -> None:
    """Against a loop that reads each option alone, from pixels, in transformers, in float64."""
    choices = [["red", "two", "yellow one"], ["no"], ["yes", "white black"]]
    scores = case.model.score_choices(spliced(case, [0, 1, 2]), choices)
    for row, options in enumerate(choices):
        for option, score in zip(options, scores[row], strict=True):
            ids = case.model.answer_ids([option])[0].tolist()
            logits = case.reference.answer_logits(case.images[row], case.prompts[row], ids)
            slow = 0.0
            for step, token in enumerate(ids):
                slow += logits[step].double().log_softmax(-1)[token].item()
            assert score == pytest.approx(slow, abs=5 * TOLERANCE)


def test_the_answer_ends_with_the_end_token_and_decodes_to_itself(case: Case) -> None:
    ids = case.model.answer_ids(["yellow one", "red"])
    for row, text in enumerate(["yellow one", "red"]):
        real = [token for token in ids[row].tolist() if token != -100]
        assert real[-1] == 2
        assert case.model.decode(real) == text


def test_hidden_is_what_the_last_attention_says_at_the_picture(case: Case) -> None:
    """Hook the attention by its full name and compare rows of its raw output."""
    names = {
        "blip2_llama": "language_model.model.layers.1.self_attn",
        "blip2_opt": "language_model.model.decoder.layers.1.self_attn",
        "blip2_t5": "language_model.encoder.block.1.layer.0.SelfAttention",
        "instructblip": "language_model.model.layers.1.self_attn",
        "instructblip_t5": "language_model.encoder.block.1.layer.0.SelfAttention",
        "llava": "model.language_model.layers.1.self_attn",
    }
    raw = []
    handle = case.model.module.get_submodule(names[case.name]).register_forward_hook(
        lambda module, args, output: raw.append(output[0])
    )
    prompt = spliced(case, [0])
    output = case.model.forward(prompt, case.model.answer_ids(["red"]))
    handle.remove()
    width = prompt.visual_mask.shape[1]
    expected = raw[0][0, :width][prompt.visual_mask[0]]
    assert output.hidden_mask.all()
    torch.testing.assert_close(output.hidden[0], expected, rtol=0, atol=0)
