"""Prompts are what transformers' own processor makes of a picture and a question."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from cdcca_cli import models
from cdcca_cli.errors import BadData, SettingError
from tests import zoo
from tests.families.conftest import QUESTIONS, Case
from tests.zoo import read

THINKS = (
    "{{ '<|im_start|>user\n<image>' + messages[0].content[1].text + '<|im_end|>' }}"
    "{% if not enable_thinking | default(true) %}{{ '(no thinking)' }}{% endif %}"
)


def test_the_chat_template_of_the_processor(case: Case) -> None:
    """`apply_chat_template` with a wide, a tall and a square picture, and no thinking."""
    row, model = zoo.FAMILIES.get(case.name), case.model
    if row is None or row.mark is None or case.name == "idefics2":
        pytest.skip("it has no chat template, or cdcca prepares its pictures otherwise")
    processor = read.processor(row, case.folder)
    template = AutoTokenizer.from_pretrained(case.folder).chat_template
    for image, question, seen in zip(case.images, QUESTIONS, case.seen, strict=True):
        text = model.row.vqa_template.replace("{prompt}", question)
        said = [{"type": "image", "image": image}, {"type": "text", "text": text}]
        ids = processor.apply_chat_template(
            [{"role": "user", "content": said}],
            chat_template=template,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            enable_thinking=False,
        )["input_ids"][0]
        assert model.prompt_ids(model.format_prompt(question, "vqa"), seen) == ids.tolist()


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.checkpoint("smolvlm", tmp_path_factory.mktemp("prompts") / "smolvlm")


def test_a_template_is_told_not_to_think(smolvlm: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(smolvlm, tmp_path / "thinks")
    (folder / "chat_template.jinja").write_text(THINKS)
    prompt = models.load(folder, compute="cpu").format_prompt("what?", "vqa")
    assert prompt.endswith("<|im_end|>(no thinking)")


def test_the_template_of_the_processor_comes_first(smolvlm: Path, tmp_path: Path) -> None:
    """As older checkpoints have it: the tokenizer's own template knows no pictures."""
    folder = shutil.copytree(smolvlm, tmp_path / "older")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{{ messages[0].content + '!' }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    older, newer = (models.load(each, compute="cpu") for each in (folder, smolvlm))
    assert older.format_prompt("what?", "vqa") == newer.format_prompt("what?", "vqa")


def test_a_template_that_gives_half_of_a_character_is_refused(
    smolvlm: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(smolvlm, tmp_path / "half")
    half = THINKS.replace("<|im_end|>", "\\ud800")
    (folder / "chat_template.jinja").write_text(half)
    with pytest.raises(BadData, match="half of a character"):
        models.load(folder, compute="cpu")
    with pytest.raises(SettingError, match="expected text in UTF-8"):
        models.load(smolvlm, compute="cpu", template="<image>{prompt}\udcff")


def test_the_begin_of_paligemma_is_behind_its_picture(tmp_path: Path) -> None:
    """As PaliGemmaProcessor writes it, both for a question and a caption."""
    folder = zoo.checkpoint("paligemma", tmp_path / "paligemma")
    model, image = models.load(folder, compute="cpu"), zoo.images()["wide"]
    processor = read.processor(zoo.FAMILIES["paligemma"], folder)
    (seen,) = model.see(model.prepare([image]))
    for task, question, text in (
        ("vqa", "what is it?", "answer en what is it?"),
        ("caption", None, "caption en"),
        ("caption", "caption de", "caption de"),
    ):
        made = processor(images=[image], text=[f"<image>{text}"], return_tensors="pt")
        ids = model.prompt_ids(model.format_prompt(question, task), seen)
        assert ids == made["input_ids"][0].tolist()
        assert ids.count(model.tokenizer.bos_token_id) == 1
