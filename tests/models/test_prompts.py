"""In a question the words of a special token are text; a text without them has the ids it had."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcca_cli import models
from cdcca_cli.errors import BadData, SettingError
from cdcca_cli.families import FAMILIES
from cdcca_cli.models.prompts import PlainTokenizer, Prompt, Templates
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
            (ids,) = plain([Prompt("", text, "")], with_ends=False)
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
        assert plain([Prompt("", text, "")], with_ends=with_ends) == [expected]


pieces = st.sampled_from(["</s>", "<s>", "<pad>", "<image>", "[SEP]", "<", "/s>", " ", "red", "?"])


@given(text=st.lists(pieces, max_size=8).map("".join))
def test_no_mixture_gives_a_special_token(tokenizer: Any, text: str) -> None:
    (ids,) = PlainTokenizer(tokenizer)([Prompt("", text, "")], with_ends=False)
    assert special_of(tokenizer).keys().isdisjoint(ids)


def test_by_hand() -> None:
    """`</s>` of the merged tokenizer: its merges go on to `</` and `s>`, and no further."""
    tokenizer = merged()
    (ids,) = PlainTokenizer(tokenizer)([Prompt("", "</s> is", "")], with_ends=True)
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "▁", "</", "s>", "▁is"]


def test_special_tokens_of_a_template_work_and_those_of_a_question_do_not(tokenizer: Any) -> None:
    special = special_of(tokenizer)
    plain = PlainTokenizer(tokenizer)
    for number, word in special.items():
        template = f"a {word} {{prompt}} {word}."
        (ids,) = plain([Prompt.of(template, f"what {word} is")], with_ends=False)
        assert [one for one in ids if one in special] == [number, number], word
        for with_ends in (False, True):
            prompt = Prompt.of(template, "what")
            expected = tokenizer(str(prompt), add_special_tokens=with_ends)["input_ids"]
            assert plain([prompt], with_ends=with_ends) == [expected], word


def test_a_text_that_is_no_prompt_is_a_template(tokenizer: Any) -> None:
    for word in special_of(tokenizer).values():
        text = f"what {word} is it?"
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert PlainTokenizer(tokenizer)([text], with_ends=False) == [expected]


def test_added_tokens_that_look_like_tags_are_text_too() -> None:
    """As Qwen's `<tool_call>` and Mistral's `[IMG]`; another added word stays one token."""
    tokenizer = merged()
    tokenizer.add_tokens(["<tool_call>", "[IMG]", "hello"])
    plain = PlainTokenizer(tokenizer)
    for word, is_text in (("<tool_call>", True), ("[IMG]", True), ("hello", False)):
        number = tokenizer.convert_tokens_to_ids(word)
        (asked,) = plain([Prompt("", f"a {word}", "")], with_ends=False)
        (given,) = plain([Prompt(f"a {word}", "", "")], with_ends=False)
        assert (number in asked, number in given) == (not is_text, True), word


@given(text=st.lists(pieces, max_size=8).map("".join))
def test_a_picture_replaces_the_mark_of_the_template(text: str) -> None:
    """Before the question or behind it, whatever the question says."""
    before = Prompt.of("<image> {prompt}.", text).with_picture("<image>", "<s><image><image>")
    assert before.parts == ("<s><image><image> ", text, ".")
    behind = Prompt.of("{prompt} <image>.", text).with_picture("<image>", "")
    assert behind.parts == ("", text, " .")


def templates(row: str, **options: Any) -> Templates:
    return Templates(FAMILIES[row], merged(), "<image>", "somewhere", **options)


def test_a_template_of_ones_own() -> None:
    own = "<s><image> {prompt} </s>"
    made = templates("llava", template=own)
    assert (made["vqa"], made["caption"], made.adds_ends) == (own, own, False)
    assert templates("llava").adds_ends
    for wrong, what in (
        ("<image> what?", "question"),
        ("<image> {prompt} {prompt}", "question"),
        ("{prompt}", "picture"),
        ("<image><image>{prompt}", "picture"),
    ):
        with pytest.raises(SettingError, match=f"expected the {what} once"):
            templates("llava", template=wrong)


CHAT = (
    "{% for turn in messages %}<s>{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}red{% endif %}"
)


def test_a_chat_template_is_rendered_once_around_any_question() -> None:
    tokenizer = merged()
    tokenizer.chat_template = CHAT
    row = FAMILIES["llava"]
    made = Templates(row, tokenizer, "<image>", "somewhere")
    assert made["vqa"] == f"<s><image>{row.vqa_template}<|end|>red"
    assert made["caption"] == f"<s><image>{row.caption_template}<|end|>red"
    assert not made.adds_ends


@pytest.mark.parametrize(
    "chat",
    [
        "{{ raise_exception('no pictures') }}",
        CHAT.replace("<image>", ""),
        CHAT.replace("<image>", "<image><image>"),
        CHAT.replace("part['text']", "'what?'"),
        "answer {prompt} " + CHAT,
    ],
)
def test_a_chat_template_without_the_picture_or_the_question(chat: str) -> None:
    tokenizer = merged()
    tokenizer.chat_template = chat
    with pytest.raises(BadData, match=r"somewhere: its chat template .* give `template`"):
        Templates(FAMILIES["llava"], tokenizer, "<image>", "somewhere")


def test_a_prompt_is_its_text() -> None:
    prompt = Prompt.of("Question: {prompt} Answer:", "{what} is it?")
    assert prompt == "Question: {what} is it? Answer:"
    assert prompt.parts == ("Question: ", "{what} is it?", " Answer:")
    again = pickle.loads(pickle.dumps(prompt))  # noqa: S301
    assert (again, again.parts) == (prompt, prompt.parts)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_templates_hold_one_question_and_one_picture(family: Any) -> None:
    """What a user says has no picture: the chat template puts it there."""
    for template in (family.vqa_template, family.caption_template):
        assert (template.count("{prompt}"), template.count("<image>")) == (1, 0)
    for template in family.plain_templates:
        assert (template.count("{prompt}"), template.count("<image>")) == (1, 1)


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
    seen = case.model.see(case.model.prepare(case.images[:1] * 4))
    if case.name == "llava":
        ids = case.model.prompt_ids(prompts[-1], seen[-1])
        assert ids.count(image) == seen[-1].num_tokens
    assert len(case.model.generate(case.model.read(seen, prompts), 3).ids) == 4


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
    seen = model.see(model.prepare(tiny.images(2)))
    with pytest.raises(models.PromptTooLong) as caught:
        model.read(seen, prompts)
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
    (seen,) = model.see(model.prepare(tiny.images(1)))
    room = 256 - model.prompt_length(prompt, seen) + 1
    model.check_prompt("What?", "vqa", room, seen=seen)
    spliced = model.read([seen], [prompt])
    assert int(spliced.position_ids.max()) + 1 == model.prompt_length(prompt, seen)
    assert model.prompt_length(prompt) == model.prompt_length(prompt, seen)
    model.end_ids = (9999,)  # so that it goes on to the end
    assert len(model.generate(spliced, room).ids[0]) == room
    with pytest.raises(models.PromptTooLong, match="takes 257 positions"):
        model.generate(spliced, room + 1)
    with pytest.raises(models.PromptTooLong, match="takes 257 positions"):
        model.check_prompt("What?", "vqa", room + 1, seen=seen)


@pytest.mark.parametrize("name", ["blip2_llama", "blip2_opt", "llava"])
def test_long_choices_are_refused_by_their_own_prompt_alone(
    name: str, request: pytest.FixtureRequest
) -> None:
    """A long prompt with short choices shares a batch with a short one with long choices."""
    model = models.load(request.getfixturevalue(name), compute="cpu")
    texts = ["What " + "a " * 150 + "?", "What?"]
    choices = [["red", "two"], ["a " * 150, "no"]]
    prompts = [model.format_prompt(text, "vqa") for text in texts]
    seen = model.see(model.prepare(tiny.images(2)))
    spliced = model.read(seen, prompts)
    together = model.score_choices(spliced, choices)
    for row in (0, 1):
        model.check_prompt(texts[row], "vqa", 1, choices[row], seen[row])
        alone = model.read(seen[row : row + 1], prompts[row : row + 1])
        assert model.score_choices(alone, [choices[row]])[0] == pytest.approx(
            together[row], rel=1e-5
        )
    with pytest.raises(models.PromptTooLong) as caught:
        model.score_choices(spliced, choices[::-1])
    assert caught.value.row == 0
    with pytest.raises(models.PromptTooLong):
        model.check_prompt(texts[0], "vqa", 1, choices[1], seen[0])
