"""Parts of a checkpoint that do not fit are refused at load, with both numbers, in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli import models
from cdcca_cli.errors import BadData
from cdcca_cli.main import main
from tests import tiny

Change = Callable[[dict[str, Any]], None]


def changed(folder: Path, to: Path, change: Change, file: str = "config.json") -> Path:
    """A copy of a checkpoint with something else in one of its JSON files."""
    shutil.copytree(folder, to)
    table = json.loads((to / file).read_text())
    change(table)
    (to / file).write_text(json.dumps(table))
    return to


def refused(checkpoint: Path, *words: str) -> None:
    """`init` refuses it: 65, one line with these words, and nothing is made."""
    with pytest.raises(BadData) as caught:
        models.load(checkpoint, compute="cpu")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    device = checkpoint.parent / "device"
    assert main(["init", str(device), "--checkpoint", str(checkpoint), "--quiet"]) == 65
    assert not device.exists()


def with_tokens(folder: Path, count: int) -> Path:
    """Add so many tokens to a tokenizer, behind its last id."""
    import transformers as tf

    words = tf.AutoTokenizer.from_pretrained(folder)
    words.add_tokens([f"<more-{number}>" for number in range(count)], special_tokens=True)
    words.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "c"))


@pytest.mark.parametrize("name", ["blip2_llama", "blip2_opt", "blip2_t5", "llava"])
def test_a_token_without_a_row(
    copied: Callable[[Path], Path], name: str, request: pytest.FixtureRequest
) -> None:
    """The tiny vocabulary has 320 rows and as many tokens: three more have ids 320 to 322."""
    folder = with_tokens(copied(request.getfixturevalue(name)), 3)
    refused(folder, "ids up to 322", "<more-2>", "vocabulary of 320")


def test_a_padded_vocabulary_fits(tmp_path: Path, blip2_llama: Path) -> None:
    """More rows than tokens, as many checkpoints have, to be a multiple of 64."""
    import transformers as tf

    folder = tmp_path / "c"
    shutil.copytree(blip2_llama, folder)
    module = tf.Blip2ForConditionalGeneration.from_pretrained(blip2_llama)
    module.language_model.resize_token_embeddings(384)
    module.config.text_config.vocab_size = 384
    module.save_pretrained(folder)
    with_tokens(folder, 3)
    assert models.load(folder, compute="cpu").language.embeddings.num_embeddings == 384


def test_a_token_without_a_row_in_the_qformer(
    copied: Callable[[Path], Path], instructblip: Path
) -> None:
    """Its own tokenizer has 320 tokens for its own 320 rows."""
    folder = copied(instructblip)
    with_tokens(folder / "qformer_tokenizer", 1)
    refused(folder, "qformer_tokenizer/", "ids up to 320", "Q-Former has a vocabulary of 320")


def test_an_end_token_beyond_the_vocabulary(tmp_path: Path, blip2_llama: Path) -> None:
    def change(table: dict[str, Any]) -> None:
        table["text_config"]["eos_token_id"] = 500

    folder = changed(blip2_llama, tmp_path / "c", change)
    (folder / "generation_config.json").unlink(missing_ok=True)
    refused(folder, "end token is 500", "vocabulary of 320")


def test_a_start_token_beyond_the_vocabulary(tmp_path: Path, blip2_t5: Path) -> None:
    def change(table: dict[str, Any]) -> None:
        table["text_config"]["decoder_start_token_id"] = 400

    refused(changed(blip2_t5, tmp_path / "c", change), "is 400", "320 rows")


@pytest.mark.parametrize("name", ["blip2_llama", "llava"])
def test_positions_that_do_not_hold_the_template(
    tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    """Needed for a caption: the template, the picture, 40 for the answer; 30 are too few."""

    def change(table: dict[str, Any]) -> None:
        table["text_config"]["max_position_embeddings"] = 30

    model = models.load(request.getfixturevalue(name), compute="cpu")
    question = model.format_prompt("", "vqa")
    needed = model.prompt_length(question) + 8 + 16
    assert needed > 30
    folder = changed(request.getfixturevalue(name), tmp_path / "c", change)
    refused(folder, "has 30 positions", f"need {needed}")


def test_learned_positions_that_do_not_hold_the_template(tmp_path: Path) -> None:
    """OPT: the table in the weights is as small as config.json says."""
    folder = tiny.q_checkpoint(tmp_path / "c", text="opt", positions=40)
    refused(folder, "has 40 positions")


def test_positions_of_the_qformer(tmp_path: Path) -> None:
    """`<s>`-less template "{prompt} Short answer:" and </s>, and 8 tokens of a question."""
    folder = tiny.q_checkpoint(tmp_path / "c", instruct=True, qformer_positions=10)
    refused(folder, "Q-Former has 10 positions", "need")


@pytest.mark.parametrize(
    ("part", "setting", "value", "words"),
    [
        ("text_config", "intermediate_size", 96, ("[64, 128]", "[64, 96]")),
        ("vision_config", "hidden_size", 64, ("32", "64")),
        ("text_config", "vocab_size", 300, ("[320, 64]", "[300, 64]")),
        ("qformer_config", "hidden_size", 96, ("64", "96")),
    ],
)
def test_weights_of_another_shape(
    tmp_path: Path,
    blip2_llama: Path,
    part: str,
    setting: str,
    value: int,
    words: tuple[str, ...],
) -> None:
    def change(table: dict[str, Any]) -> None:
        table[part][setting] = value

    refused(changed(blip2_llama, tmp_path / "c", change), *words)


@pytest.mark.parametrize(
    ("part", "setting", "words"),
    [
        ("text_config", "num_hidden_layers", ("language_model.model.layers.1", "json is 1")),
        (
            "vision_config",
            "num_hidden_layers",
            ("vision_model.encoder.layers.1", "json is 1"),
        ),
        ("qformer_config", "num_hidden_layers", ("qformer.encoder.layer.1", "json is 1")),
    ],
)
def test_more_blocks_in_the_weights_than_in_the_config(
    tmp_path: Path, blip2_llama: Path, part: str, setting: str, words: tuple[str, ...]
) -> None:
    def change(table: dict[str, Any]) -> None:
        table[part][setting] = 1

    refused(changed(blip2_llama, tmp_path / "c", change), *words)


def test_a_tower_wider_than_the_connector_reads(
    copied: Callable[[Path], Path], blip2_llama: Path
) -> None:
    """The tower makes 32 channels; a Q-Former with weights for 48 is of another model."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = copied(blip2_llama)
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.endswith(("crossattention.attention.key.weight", "attention.value.weight")):
            tensors[name] = torch.zeros(64, 48) if "crossattention" in name else tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "crossattention.attention.key.weight has the shape [64, 48]", "[64, 32]")


def test_the_pictures_token_of_llava(tmp_path: Path, llava: Path) -> None:
    def change(table: dict[str, Any]) -> None:
        table["image_token_index"] = table["image_token_id"] = 1000

    refused(
        changed(llava, tmp_path / "other", change), "the image token 1000 is not in the tokenizer"
    )


def test_a_tokenizer_without_the_pictures_token(
    copied: Callable[[Path], Path], llava: Path
) -> None:
    folder = copied(llava)
    tiny.tokenizer(folder)
    refused(folder, "the image token 4 is '!' in the tokenizer")


def test_a_layer_that_llavas_tower_does_not_have(tmp_path: Path, llava: Path) -> None:
    def change(table: dict[str, Any]) -> None:
        table["vision_feature_layer"] = -7

    refused(changed(llava, tmp_path / "c", change), "is [-7]", "3 layers")


def test_pictures_of_another_size(tmp_path: Path, blip2_llama: Path) -> None:
    def change(table: dict[str, Any]) -> None:
        table["size"] = {"height": 32, "width": 32}

    folder = changed(blip2_llama, tmp_path / "c", change, "preprocessor_config.json")
    refused(folder, "32x32", "48x48")


def test_an_image_processor_that_fails(tmp_path: Path, blip2_llama: Path) -> None:
    """Three channels, and a mean of two: an exception of transformers, at the first picture."""

    def change(table: dict[str, Any]) -> None:
        table["image_mean"] = [0.5, 0.5]

    folder = changed(blip2_llama, tmp_path / "c", change, "preprocessor_config.json")
    refused(folder, "the image processor fails")
