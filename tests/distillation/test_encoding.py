"""Batches: sharing and padding change nothing; shuffles and splits are functions of the seed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cdcca_cli.errors import BadData
from cdcca_cli.families import FAMILIES, Family
from cdcca_cli.formats.shard import Picture, Question, Shard
from cdcca_cli.models import LoadedModel, load
from cdcca_cli.models.encoding import Example, check_fit, encode, template_of
from tests.distillation.conftest import make_shards


@pytest.mark.parametrize("checkpoint", ["blip2_llama", "instructblip", "llava"])
def test_a_batch_equals_its_examples_one_by_one(
    checkpoint: str, request: pytest.FixtureRequest
) -> None:
    """Frames of 5, 2 and 7 tokens and prompts of different lengths, questions of a frame sharing
    it."""
    model = load(request.getfixturevalue(checkpoint), compute="cpu")
    shards = make_shards(model, 3, keep=(5, 2, 7))
    examples = [Example(shard, question) for shard in shards for question in shard.questions]
    answers = model.answer_ids(["red", "a blue circle", "two", "red", "", "one", "no"])
    with torch.no_grad():
        together = encode(model, examples)
        forward = model.forward(together.spliced, answers)
        for row, example in enumerate(examples):
            alone = encode(model, [example])
            count = alone.queries.shape[1]
            torch.testing.assert_close(
                together.queries[row, :count], alone.queries[0], rtol=1e-5, atol=1e-5
            )
            apart = model.forward(alone.spliced, answers[row : row + 1])
            real = answers[row] != -100
            torch.testing.assert_close(
                forward.logits[row][real], apart.logits[0][real], rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize(
    ("checkpoint", "expected"), [("blip2_llama", 3), ("llava", 3), ("instructblip", 7)]
)
def test_the_connector_sees_each_input_once(
    checkpoint: str, expected: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 frames of 3, 2 and 2 questions: InstructBLIP's Q-Former reads the 7 prompts too."""
    model = load(request.getfixturevalue(checkpoint), compute="cpu")
    examples = [
        Example(shard, question) for shard in make_shards(model, 3) for question in shard.questions
    ]
    rows = []
    inner = model.queries
    monkeypatch.setattr(
        model, "queries", lambda tokens, *rest: rows.append(len(tokens)) or inner(tokens, *rest)
    )
    with torch.no_grad():
        encode(model, examples)
    assert len(examples) == 7
    assert rows == [expected]


def test_another_tower_is_refused_with_both_digests(
    shards: list[Shard], teacher: LoadedModel
) -> None:
    check_fit(shards[0], teacher, "teacher")
    other = replace(shards[0], tower="sha256:" + "5" * 64)
    with pytest.raises(BadData, match="sha256:5555") as refused:
        check_fit(other, teacher, "teacher")
    assert teacher.tower_digest[:15] in str(refused.value)
    assert "frame 0" in str(refused.value)


def test_a_teacher_of_another_tower_looks_at_pictures(
    shards: list[Shard], teacher: LoadedModel
) -> None:
    """A student reads the tokens of its own tower alone."""
    picture = Picture(b"...", "image/png", (48, 48))
    sent = replace(shards[0], tower="sha256:" + "5" * 64, picture=picture)
    check_fit(sent, teacher, "teacher")
    with pytest.raises(BadData, match="sample with `payload` frame"):
        check_fit(sent, teacher, "student")


def test_a_shard_that_lies_about_its_tower_is_refused(
    shards: list[Shard], teacher: LoadedModel
) -> None:
    """The digest can be copied; the number of tokens and of channels still has to fit."""
    narrow = replace(shards[0], tokens=shards[0].tokens[:, :7])
    with pytest.raises(BadData, match="7 channels"):
        check_fit(narrow, teacher, "teacher")
    with pytest.raises(BadData, match="11 tokens of 32 channels"):
        check_fit(replace(shards[0], num_tokens=11), teacher, "teacher")


QUESTIONS = [
    "What is the answer: red or blue?",
    "Question: is this a question?",
    "What stands behind Answer:",
    "Is it a short answer: yes or no?",
    "Give a short answer: what is it?",
    "Who is the USER: the man or the ASSISTANT: the dog?",
    "USER: who is that?",
    "Which button says ASSISTANT:",
    "a photo of",
    "A short image description.",
    "Answer the question using a single word or phrase.",
    "<image> what is it?",
    "",
    " ",
]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_with_words_of_a_template_is_bare(question: str) -> None:
    assert template_of(question) is None


@pytest.mark.parametrize(
    ("prompt", "family"),
    [
        ("Question: What is it? Answer:", "blip-2"),
        ("  Question:  What\nis it?\n Answer: ", "blip-2"),
        ("Question: What? Answer: red. Question: And this? Answer:", "blip-2"),
        ("What is it? Short answer:", "instructblip"),
        ("USER: <image>\nWhat is it?\nAnswer with a single word. ASSISTANT:", "llava"),
        ("USER: <image>\nDescribe the image. ASSISTANT:", "llava"),
        ("USER: What is it? ASSISTANT:", "llava"),
        ("USER: What is it? <image> ASSISTANT:", "llava"),
    ],
)
def test_a_prompt_in_a_template_is_known(prompt: str, family: str) -> None:
    """Whatever the blanks, and wherever the picture's mark stands."""
    assert str(template_of(prompt)).startswith(f"{family}: ")


@pytest.mark.parametrize("family", FAMILIES.values())
def test_every_family_knows_its_own_templates(family: Family) -> None:
    own = (family.vqa_template, family.caption_template)
    vqa, caption = family.plain_templates if family.chat else own
    for question in QUESTIONS:
        assert template_of(vqa.format(prompt=question))
    if caption != "{prompt}":
        assert template_of(caption.format(prompt=family.caption_prompt))


def test_a_prompt_of_many_blanks_takes_no_time() -> None:
    """A million of each: seconds, were it quadratic."""
    for piece in (" ", "Question: ", " Answer:", "\n\t", "USER: "):
        assert template_of(piece * 1_000_000 + "x") is None


def test_a_shard_asked_in_a_template_is_refused(shards: list[Shard], teacher: LoadedModel) -> None:
    questions = [*shards[0].questions, Question("mine", "Question: What is it? Answer:", "vqa")]
    with pytest.raises(BadData, match=r"frame 0.*prompt of mine.*blip-2.*bare question"):
        check_fit(replace(shards[0], questions=questions), teacher, "student")


def test_paths_are_not_needed(shards: list[Shard], teacher: LoadedModel) -> None:
    """Tokens are all there is: the image a shard names does not exist."""
    assert not any(Path(shard.image).exists() for shard in shards)
    with torch.no_grad():
        seen = encode(teacher, [Example(shards[0], shards[0].questions[0])])
    assert seen.queries.shape[:2] == (1, 4)
