"""In a question the words of a special token are text; a text without them has the ids it had."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcca_cli import models
from cdcca_cli.families import FAMILIES
from cdcca_cli.models.prompts import PlainTokenizer, Prompt
from tests import tiny
from tests.models.conftest import Case

SENTENCES = [*tiny.SENTENCES, "what </s> is <pad> it? [SEP] [CLS]"] * 3


def fast(model: Any, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=model, **special)


def unigram() -> Any:
    """As T5's: `</s>` is a piece of the vocabulary, with the best score of all."""
    from tokenizers import Tokenizer, pre_tokenizers, processors, trainers
    from tokenizers import models as kinds

    made = Tokenizer(kinds.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    made.train_from_iterator(SENTENCES, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return fast(made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def merged() -> Any:
    """As LLaMA's: a BPE whose merges lead from the letters of `</s>` to the special token."""
    from tokenizers import Tokenizer, normalizers, processors
    from tokenizers import models as kinds

    letters = ["<unk>", "<s>", "</s>", "▁", *"</>abcdefghijklmnopqrstuvwxyz?."]
    words = [*letters, "</", "s>", "▁i", "▁is"]
    vocabulary = {word: number for number, word in enumerate(words)}
    merges = [("<", "/"), ("s", ">"), ("</", "s>"), ("▁", "i"), ("▁i", "s")]
    made = Tokenizer(kinds.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = fast(made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<|end|>"]})
    return tokenizer


def wordpiece() -> Any:
    """As BERT's, which an InstructBLIP's Q-Former reads with."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors, trainers
    from tokenizers import models as kinds

    made = Tokenizer(kinds.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    made.train_from_iterator(SENTENCES, trainer)
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return fast(
        made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.tokenizer(tmp_path_factory.mktemp("words"), image=True)


@pytest.fixture(scope="module", params=["byte-level", "unigram", "merged", "wordpiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "byte-level":
        return byte_level(tmp_path_factory)
    return {"unigram": unigram, "merged": merged, "wordpiece": wordpiece}[request.param]()


def special_of(tokenizer: Any) -> dict[int, str]:
    """Ids and words of the special tokens, without the one for characters that are unknown."""
    return {
        number: token.content
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special and token.content != tokenizer.unk_token
    }


def test_every_special_token_is_text(tokenizer: Any) -> None:
    """Alone, twice, inside a word, between words: no id of one comes out."""
    special = special_of(tokenizer)
    assert len(special) >= 2
    plain = PlainTokenizer(tokenizer)
    for word in special.values():
        for text in (word, word * 2, f"a{word}b", f"what {word} is it?", f" {word}"):
            (ids,) = plain([text], with_ends=False)
            assert special.keys().isdisjoint(ids), text
            assert ids, text
    word = next(iter(special.values()))
    assert special.keys() & set(tokenizer(word, add_special_tokens=False)["input_ids"])


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_other_text_has_the_ids_it_had(tokenizer: Any, text: str) -> None:
    special = {token.content for token in tokenizer.added_tokens_decoder.values()}
    if any(word in text for word in special):
        return
    plain = PlainTokenizer(tokenizer)
    for with_ends in (False, True):
        expected = tokenizer(text, add_special_tokens=with_ends)["input_ids"]
        assert plain([text], with_ends=with_ends) == [expected]


pieces = st.sampled_from(["</s>", "<s>", "<pad>", "<image>", "[SEP]", "<", "/s>", " ", "red", "?"])


@given(text=st.lists(pieces, max_size=8).map("".join))
def test_no_mixture_gives_a_special_token(tokenizer: Any, text: str) -> None:
    (ids,) = PlainTokenizer(tokenizer, ["<image>"])([Prompt("", text, "")], with_ends=False)
    assert special_of(tokenizer).keys().isdisjoint(ids)


def test_by_hand() -> None:
    """`</s>` of the merged tokenizer: its merges go on to `</` and `s>`, and no further."""
    tokenizer = merged()
    words = tokenizer.convert_ids_to_tokens(
        PlainTokenizer(tokenizer)(["</s> is"], with_ends=True)[0]
    )
    assert words == ["<s>", "▁", "</", "s>", "▁is"]


def test_the_mark_of_a_template_works_and_that_of_a_question_does_not() -> None:
    tokenizer = merged()
    mark = tokenizer.convert_tokens_to_ids("<image>")
    plain = PlainTokenizer(tokenizer, ["<image>"])
    assert plain.mark_ids == {"<image>": mark}
    (ids,) = plain([Prompt.of("a <image> {prompt}.", "what <image> is")], with_ends=True)
    assert ids.count(mark) == 1
    expected = tokenizer("a <image> what", add_special_tokens=True)["input_ids"]
    assert plain([Prompt.of("a <image> {prompt}", "what")], with_ends=True) == [expected]
    assert PlainTokenizer(unigram(), ["<image>"]).mark_ids == {"<image>": None}


def test_a_prompt_is_its_text() -> None:
    prompt = Prompt.of("Question: {prompt} Answer:", "{what} is it?")
    assert prompt == "Question: {what} is it? Answer:"
    assert prompt.parts == ("Question: ", "{what} is it?", " Answer:")
    again = pickle.loads(pickle.dumps(prompt))  # noqa: S301
    assert (again, again.parts) == (prompt, prompt.parts)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_templates_hold_one_question_and_the_marks(family: Any) -> None:
    for template in (family.vqa_template, family.caption_template):
        assert template.count("{prompt}") == 1
        for mark in family.marks:
            assert template.count(mark) == 1


def test_questions_of_every_family(case: Case) -> None:
    """H15: marks, ends and pads in a question: answered, one picture, the end token once."""
    questions = ["<image> What is it?", "What is </s> it", "<pad><pad> yes", "<image><image>"]
    prompts = [case.model.format_prompt(question, "vqa") for question in questions]
    special = special_of(case.model.tokenizer)
    image = case.model.module.config.image_token_id
    ends = case.model.plain_tokenizer([""], with_ends=True)[0]
    for ids in case.model._text_ids(prompts):
        inner = [number for number in ids if number in special]
        assert sorted(inner) == sorted([*ends, *([image] if case.name == "llava" else [])])
    for ids in case.model.answer_ids(["</s> red", "<image>"]).tolist():
        assert [number for number in ids if number in special] == [2]
    pictures = case.model.preprocess(case.images[:1] * 4)
    tokens = case.model.vision_tokens(pictures)
    features = case.model.project(case.model.queries(tokens, None, prompts))
    assert len(case.model.generate(case.model.splice(features, prompts), 3).ids) == 4


def test_the_qformer_reads_no_special_tokens_of_a_question(instructblip: Path) -> None:
    model = models.load(instructblip, compute="cpu")
    prompt = model.format_prompt("What </s> is <pad> it?", "vqa")
    (ids,) = model.instruction_ids([prompt])
    assert [number for number in ids if number in special_of(model.instruction_tokenizer)] == [2]


@pytest.mark.parametrize("name", ["blip2_llama", "blip2_opt", "instructblip", "llava"])
def test_a_question_that_is_too_long(name: str, request: pytest.FixtureRequest) -> None:
    """One error for all families: 65, both numbers, the row; checked before anything is run."""
    model = models.load(request.getfixturevalue(name), compute="cpu")
    long = "What? " + "word " * 400
    with pytest.raises(models.PromptTooLong) as caught:
        model.check_prompt(long, "vqa", 16)
    assert caught.value.exit_code == 65
    assert caught.value.most == (128 if name == "instructblip" else 256)
    assert str(caught.value.most) in str(caught.value) and str(caught.value.needed) in str(
        caught.value
    )
    prompts = [model.format_prompt(text, "vqa") for text in ("What?", long)]
    tokens = model.vision_tokens(model.preprocess(tiny.images(2)))
    with pytest.raises(models.PromptTooLong) as caught:
        model.splice(model.project(model.queries(tokens, None, prompts)), prompts)
    assert caught.value.row == 1
    model.check_prompt("What?", "vqa", 16, ["red", "blue"])


def test_no_prompt_is_too_long_for_relative_positions(blip2_t5: Path) -> None:
    models.load(blip2_t5, compute="cpu").check_prompt("word " * 1000, "vqa", 16)


@pytest.mark.parametrize("name", ["blip2_llama", "blip2_opt", "llava"])
def test_what_the_check_allows_is_answered_to_the_last_position(
    name: str, request: pytest.FixtureRequest
) -> None:
    """An answer's last token is never read: prompt, picture and answer may have one more."""
    model = models.load(request.getfixturevalue(name), compute="cpu")
    prompt = model.format_prompt("What?", "vqa")
    room = 256 - model.prompt_length(prompt) + 1
    model.check_prompt("What?", "vqa", room)
    tokens = model.vision_tokens(model.preprocess(tiny.images(1)))
    spliced = model.splice(model.project(model.queries(tokens)), [prompt])
    assert int(spliced.position_ids.max()) + 1 == model.prompt_length(prompt)
    model.end_ids = (9999,)  # so that it goes on to the end
    assert len(model.generate(spliced, room).ids[0]) == room
    with pytest.raises(models.PromptTooLong, match="takes 257 positions"):
        model.generate(spliced, room + 1)
    with pytest.raises(models.PromptTooLong, match="takes 257 positions"):
        model.check_prompt("What?", "vqa", room + 1)


@pytest.mark.parametrize("name", ["blip2_llama", "blip2_opt", "llava"])
def test_long_choices_are_refused_by_their_own_prompt_alone(
    name: str, request: pytest.FixtureRequest
) -> None:
    """A long prompt with short choices shares a batch with a short one with long choices."""
    model = models.load(request.getfixturevalue(name), compute="cpu")
    texts = ["What " + "a " * 150 + "?", "What?"]
    choices = [["red", "two"], ["a " * 150, "no"]]
    prompts = [model.format_prompt(text, "vqa") for text in texts]
    tokens = model.vision_tokens(model.preprocess(tiny.images(2)))
    features = model.project(model.queries(tokens))
    together = model.score_choices(model.splice(features, prompts), choices)
    for row in (0, 1):
        model.check_prompt(texts[row], "vqa", 1, choices[row])
        alone = model.splice(features[row : row + 1], prompts[row : row + 1])
        assert model.score_choices(alone, [choices[row]])[0] == pytest.approx(
            together[row], rel=1e-5
        )
    with pytest.raises(models.PromptTooLong) as caught:
        model.score_choices(model.splice(features, prompts), choices[::-1])
    assert caught.value.row == 0
    with pytest.raises(models.PromptTooLong):
        model.check_prompt(texts[0], "vqa", 1, choices[1])
