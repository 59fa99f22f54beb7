"""The tiny checkpoints are like the hub's: transformers' own classes load them and agree."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny, zoo
from tests.zoo import read

WIDTH_IN_TOWER = ("glm4v", "got_ocr2")
"""Families whose vision tower has the language model's width inside."""
QUESTION = "how many circles are there?"
MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]


@pytest.fixture(scope="module")
def made() -> dict[str, Path]:
    """The checkpoints made so far, by family."""
    return {}


@pytest.fixture(params=list(zoo.FAMILIES))
def folder(
    request: pytest.FixtureRequest,
    made: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """One family's checkpoint; a family that cannot be built here is skipped with the reason."""
    name = request.param
    if why := zoo.missing(name):
        pytest.skip(why)
    if name not in made:
        made[name] = zoo.checkpoint(name, tmp_path_factory.mktemp("zoo") / name)
    return made[name]


@cache
def load(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder).eval()


def test_image_tokens_are_as_many_as_features(folder: Path) -> None:
    """The processor's text for a picture has a place for each feature, whatever its shape."""
    row, model = zoo.FAMILIES[folder.name], load(folder)
    processor = read.processor(row, folder)
    assert type(model).__name__ == row.model
    for shape, picture in zoo.images().items():
        made, text = read.prepared(row, processor, picture)
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        num_places = ids.count(processor.tokenizer.convert_tokens_to_ids(row.image))
        assert num_places == len(read.features(model, made)) > 0, shape


def test_the_tokenizer_alone_renders_a_chat_with_one_mark(folder: Path) -> None:
    from transformers import AutoTokenizer

    row, words = zoo.FAMILIES[folder.name], AutoTokenizer.from_pretrained(folder)
    if row.mark is None:
        assert words.chat_template is None
        return
    text = words.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert text.count(row.mark) == 1
    assert text.count(read.processor(row, folder).image_token) == 1
    assert text.count(QUESTION) == 1
    assert text.index(row.mark) < text.index(QUESTION)
    assert text.startswith(row.chat.opening + row.chat.user)
    assert text.endswith(row.chat.assistant if row.chat.answer is None else row.chat.answer)


def test_another_picture_or_word_changes_the_logits(folder: Path) -> None:
    """One picture, the same in other colours, and the same with another question."""
    row, model = zoo.FAMILIES[folder.name], load(folder)
    processor = read.processor(row, folder)
    first, second = (zoo.images(seed=seed)["square"] for seed in (0, 1))
    logits = read.logits(row, model, processor, first, QUESTION)
    assert logits.isfinite().all()
    for picture, question in ((second, QUESTION), (first, "how many circles are red?")):
        other = read.logits(row, model, processor, picture, question)
        assert (logits - other).abs().max() > 0.05


def test_a_teacher_has_the_tower_and_another_language_model(folder: Path, tmp_path: Path) -> None:
    """The same `tower_seed`: equal towers; all else of the teacher has other values."""
    row = zoo.FAMILIES[folder.name]
    teacher = zoo.checkpoint(
        folder.name,
        tmp_path / folder.name,
        seed=1,
        tower_seed=0,
        width=64 if folder.name in WIDTH_IN_TOWER else 128,
        text_layers=2 * row.layers,
    )
    small, large = (dict(load(each).named_parameters()) for each in (folder, teacher))
    tower = {name for name in small if zoo.in_tower(row, name)}
    assert tower == {name for name in large if zoo.in_tower(row, name)}
    assert all(torch.equal(small[name], large[name]) for name in tower)
    assert not any(torch.equal(small[name], large[name]) for name in small.keys() - tower)
    assert len(small) < len(large)
    assert (len(tower) > 0) == bool(row.tower)


@pytest.mark.parametrize("name", zoo.QFORMERS)
def test_a_qformer_teacher_has_the_tower(name: str, tmp_path: Path) -> None:
    small = zoo.checkpoint(name, tmp_path / "small")
    large = zoo.checkpoint(name, tmp_path / "large", seed=1, tower_seed=0, width=128)
    towers = tiny.tower_of(small), tiny.tower_of(large)
    assert towers[0].keys() == towers[1].keys()
    assert all(torch.equal(towers[0][key], towers[1][key]) for key in towers[0])


def test_the_folder_is_laid_out_as_on_the_hub(folder: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    row, words = zoo.FAMILIES[folder.name], AutoTokenizer.from_pretrained(folder)
    expected = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {each.name for each in folder.iterdir()} - {"chat_template.jinja"} == expected
    assert (folder / "chat_template.jinja").exists() == (row.mark is not None)
    ends = GenerationConfig.from_pretrained(folder).eos_token_id
    assert words.convert_ids_to_tokens(ends if isinstance(ends, list) else [ends]) == list(
        row.chat.eos
    )
    for attribute, word in row.words.items():
        assert getattr(words, attribute) == word
    special = {token.content for token in words.added_tokens_decoder.values() if token.special}
    assert {*row.words.values(), *row.special, *row.chat.eos, *row.chat.special} <= special
