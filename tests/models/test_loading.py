"""What can be loaded, what is refused with which exit code, and the digests."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from cdcca_cli import models
from cdcca_cli.errors import BadData, CdccaError, MissingInput, Unavailable, UsageError
from cdcca_cli.families import FAMILIES
from cdcca_cli.families.refused import REFUSED
from cdcca_cli.models import loading
from tests import tiny

ROOT = Path(__file__).parents[2]


def refused(checkpoint: object, error: type[CdccaError], code: int, **options: object) -> str:
    """Loading fails with this class and code, and one line; returns it."""
    with pytest.raises(error) as caught:
        models.load(checkpoint, **({"compute": "cpu"} | options))  # type: ignore[arg-type]
    message = str(caught.value)
    assert isinstance(caught.value, error)
    assert caught.value.exit_code == code
    assert "\n" not in message
    assert message
    return message


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def stored_in_4_bits(checkpoint: Path, folder: Path) -> Path:
    """The same BLIP-2 as transformers saves it after bitsandbytes has quantised it."""
    import transformers as tf

    from cdcca_cli.models import quantization

    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = tf.Blip2Config.from_pretrained(checkpoint)
    how = quantization.config("nf4", FAMILIES["blip-2"], config, torch.float32)
    model = tf.Blip2ForConditionalGeneration.from_pretrained(
        checkpoint, quantization_config=how, device_map={"": "cpu"}
    )
    model.save_pretrained(folder)
    return folder


def test_text_only_and_unknown_families(tmp_path: Path, blip2_llama: Path) -> None:
    """The message names the families that work."""
    text = refused(tiny.text_checkpoint(tmp_path / "text"), UsageError, 2)
    assert "'llama'" in text
    assert f"expected one of {', '.join(sorted(FAMILIES))}" in text
    unknown = copy(blip2_llama, tmp_path / "unknown")
    (unknown / "config.json").write_text('{"model_type": "no-such-model"}')
    assert "no-such-model" in refused(unknown, UsageError, 2)


def test_families_that_cannot_be_loaded_are_refused_with_what_to_use_instead(
    tmp_path: Path,
) -> None:
    for model_type, known in REFUSED.items():
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        (tmp_path / "model.safetensors").touch()
        text = refused(tmp_path, UsageError, 2)
        assert known.reason in text and text.endswith(f": use {' or '.join(known.instead)}")
        assert model_type not in FAMILIES and {*known.instead} <= {*FAMILIES}
    for name in ("Llama 3.2 Vision", "Kosmos-2", "Florence-2", "Moondream", "MiniCPM-V before 4.6"):
        assert name in {known.name for known in REFUSED.values()}
        assert name in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_code_in_a_checkpoint_is_named_as_the_reason(tmp_path: Path) -> None:
    settings = {"model_type": "no-such-model", "auto_map": {"AutoModel": "its_own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors").touch()
    text = refused(tmp_path, UsageError, 2)
    assert "code in a checkpoint is never run)" in text and "'no-such-model'" in text


def changed(folder: Path, to: Path, file: str, path: str, value: object) -> Path:
    """A copy of a checkpoint with another value at `path` in one of its JSON files."""
    table = json.loads((copy(folder, to) / file).read_text())
    *keys, last = path.split(".")
    inner = table
    for key in keys:
        inner = inner[key]
    inner[last] = value
    (to / file).write_text(json.dumps(table))
    return to


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        ("config.json", "image_token_id", 10**19),
        ("generation_config.json", "eos_token_id", "</s>"),
        ("generation_config.json", "eos_token_id", [[]]),
        ("tokenizer.json", "post_processor.special_tokens", {}),  # a panic of tokenizers, in Rust
    ],
)
def test_settings_that_transformers_lets_through(
    file: str, path: str, value: object, tmp_path: Path, llava: Path
) -> None:
    faulty = changed(llava, tmp_path / "faulty", file, path, value)
    refused(faulty, BadData, 65)
    with pytest.raises(BadData):
        loading.outline(faulty)


def test_an_outline_refuses_what_is_no_generation_config(tmp_path: Path, llava: Path) -> None:
    (copy(llava, tmp_path / "faulty") / "generation_config.json").write_text("[]")
    with pytest.raises(BadData, match=r"generation_config\.json cannot be loaded"):
        loading.outline(tmp_path / "faulty")


def test_folders_that_are_none(tmp_path: Path, blip2_llama: Path) -> None:
    assert "no such" in refused(tmp_path / "nothing", MissingInput, 66)
    assert "no such" in refused("./nothing", MissingInput, 66)
    assert "config.json" in refused(tmp_path, MissingInput, 66)
    (tmp_path / "file").write_text("x")
    assert "found a file" in refused(tmp_path / "file", UsageError, 2)
    refused("", MissingInput, 66)
    refused("shipped:nobody", UsageError, 2)
    empty = copy(blip2_llama, tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    assert "no weights" in refused(empty, MissingInput, 66)
    (empty / "pytorch_model.bin").write_bytes(b"pickle")
    assert "never read" in refused(empty, MissingInput, 66)


def test_damaged_checkpoints(tmp_path: Path, blip2_llama: Path) -> None:
    from safetensors.torch import load_file, save_file

    def broken(name: str) -> Path:
        return copy(blip2_llama, tmp_path / name)

    folder = broken("json")
    (folder / "config.json").write_text('{"model_type": ')
    refused(folder, BadData, 65)
    folder = broken("kind")
    (folder / "config.json").write_text("[1]")
    refused(folder, BadData, 65)
    folder = broken("cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    refused(folder, BadData, 65)
    folder = broken("lacking")
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_projection.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "language_projection.bias" in refused(folder, BadData, 65)
    folder = broken("shape")
    tensors["language_projection.bias"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, BadData, 65)
    folder = broken("words")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CdccaError) as caught:
        models.load(folder, compute="cpu")
    assert caught.value.exit_code in (65, 66)
    folder = broken("pictures")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CdccaError) as caught:
        models.load(folder, compute="cpu")
    assert caught.value.exit_code in (65, 66)


def test_a_hub_id_without_a_network() -> None:
    message = refused("nobody/nothing-of-this-name", Unavailable, 69)
    assert "hub" in message


def test_what_is_not_here(blip2_llama: Path) -> None:
    if not torch.cuda.is_available():
        assert "CUDA" in refused(blip2_llama, Unavailable, 69, compute="cuda")
    refused(blip2_llama, UsageError, 2, compute="tpu")
    refused(blip2_llama, UsageError, 2, dtype="int3")
    refused(blip2_llama, UsageError, 2, quantize="nf5")


def test_qformer_layers(tmp_path: Path, blip2_llama: Path, llava: Path, tiny_pair: tuple) -> None:
    """The first N layers are kept, as if the others had never been there."""
    teacher, _ = tiny_pair
    whole = models.load(teacher, compute="cpu")
    cut = models.load(teacher, compute="cpu", qformer_layers=2)
    assert len(cut.module.qformer.encoder.layer) == 2
    assert cut.module.config.qformer_config.num_hidden_layers == 2
    tokens = torch.stack([one.tokens for one in whole.see(whole.prepare(tiny.images(1)))])
    outputs = []
    handle = whole.module.qformer.encoder.layer[1].register_forward_hook(
        lambda module, args, output: outputs.append(output)
    )
    whole.queries(tokens)
    handle.remove()
    torch.testing.assert_close(cut.queries(tokens), outputs[0], rtol=0, atol=1e-6)
    assert cut.tower_digest == whole.tower_digest
    assert cut.digest != whole.digest
    for layers in (0, 5):
        refused(teacher, UsageError, 2, qformer_layers=layers)
    refused(llava, UsageError, 2, qformer_layers=1)


def test_the_towers_digest_does_not_depend_on_how_it_is_stored_or_loaded(tmp_path: Path) -> None:
    """Teacher in 32 bits, student in bfloat16: one tower. Another tower: another digest."""
    teacher = tiny.q_checkpoint(tmp_path / "t", width=128, seed=1)
    tower = tiny.tower_of(teacher)
    student = tiny.q_checkpoint(tmp_path / "s", seed=2, tower=tower, dtype=torch.bfloat16)
    other = tiny.q_checkpoint(tmp_path / "o", seed=3)
    digest = models.load(teacher, compute="cpu").tower_digest
    assert digest.startswith("sha256:")
    for dtype in ("float32", "bfloat16", "float16", "stored"):
        assert models.load(student, compute="cpu", dtype=dtype).tower_digest == digest
    assert models.load(other, compute="cpu").tower_digest != digest
    stored = models.load(student, compute="cpu", dtype="stored")
    assert stored.dtype == torch.bfloat16
    assert stored.digest == models.load(student, compute="cpu").digest


def test_the_towers_digest_by_a_slow_second_form(blip2_llama: Path) -> None:
    """From the safetensors file, by hand: bfloat16 bits by rounding float32 to nearest even."""
    import numpy as np

    from cdcca_cli.formats.digest import overlay_digest

    rounded = {}
    for name, tensor in tiny.tower_of(blip2_llama).items():
        bits = tensor.numpy().view(np.uint32).astype(np.uint64)
        rounded[name] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    assert models.load(blip2_llama, compute="cpu").tower_digest == overlay_digest(rounded)


def test_a_pair_shares_its_tower(tiny_pair: tuple[Path, Path]) -> None:
    teacher, student = (models.load(folder, compute="cpu") for folder in tiny_pair)
    assert teacher.tower_digest == student.tower_digest
    assert teacher.digest != student.digest


def test_float32_on_a_cpu_and_everything_frozen(blip2_llama: Path) -> None:
    model = models.load(str(blip2_llama))
    if model.compute == "cpu":
        assert model.dtype == torch.float32
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_pictures_of_another_size_than_the_towers(tmp_path: Path, blip2_llama: Path) -> None:
    folder = copy(blip2_llama, tmp_path / "size")
    path = folder / "preprocessor_config.json"
    table = json.loads(path.read_text())
    table["size"] = {"height": 32, "width": 32}
    path.write_text(json.dumps(table))
    with pytest.raises(BadData, match="32x32"):
        models.load(folder, compute="cpu").prepare(tiny.images(1))


def test_prompts(blip2_llama: Path, instructblip: Path, llava: Path) -> None:
    q = models.load(blip2_llama, compute="cpu")
    assert q.format_prompt("What {is} it?", "vqa") == "Question: What {is} it? Answer:"
    assert q.format_prompt(None, "caption") == "a photo of"
    assert q.format_prompt("a drawing of", "caption") == "a drawing of"
    i = models.load(instructblip, compute="cpu")
    assert i.format_prompt("What is it?", "vqa") == "What is it? Short answer:"
    assert i.format_prompt(None, "caption") == "A short image description."
    p = models.load(llava, compute="cpu")
    assert p.format_prompt("What is it?", "vqa") == (
        "USER: <image>\nWhat is it?\nAnswer the question using a single word or phrase. ASSISTANT:"
    )
    assert p.format_prompt(None, "caption") == (
        "USER: <image>\nDescribe the image in one short sentence. ASSISTANT:"
    )
    for model in (q, i, p):
        with pytest.raises(UsageError):
            model.format_prompt(None, "vqa")
        with pytest.raises(UsageError):
            model.format_prompt("x", "poem")


def test_a_prompt_too_long_for_the_model(blip2_opt: Path) -> None:
    """OPT has a table of positions, and running over it would be an IndexError."""
    model = models.load(blip2_opt, compute="cpu")
    seen = model.see(model.prepare(tiny.images(1)))
    with pytest.raises(models.PromptTooLong, match="256"):
        model.read(seen, ["why " * 300])


def test_a_checkpoint_stored_in_4_bits(tmp_path: Path, blip2_llama: Path) -> None:
    """It is what --quantize nf4 makes of the full one; its tower is the full one's."""
    from cdcca_cli.models import quantization

    full = models.load(blip2_llama, compute="cpu")
    folder = stored_in_4_bits(blip2_llama, tmp_path / "stored")
    sizes = [(f / "model.safetensors").stat().st_size for f in (folder, blip2_llama)]
    assert sizes[0] < 0.8 * sizes[1]
    stored = models.load(folder, compute="cpu")
    made = models.load(blip2_llama, compute="cpu", quantize="nf4")
    linears = quantization.quantized_linears(stored.module)
    assert len(linears) == len(quantization.quantized_linears(made.module)) > 0
    assert stored.tower_digest == full.tower_digest
    assert stored.digest == made.digest != full.digest
    assert stored.dtype == torch.float32
    pictures = full.prepare(tiny.images(2))
    seen = full.see(pictures)
    for ours, theirs in zip(stored.see(pictures), seen, strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)
    prompts = ["Question: how many? Answer:"] * 2
    answers = []
    for model in (stored, made):
        answers.append(model.generate(model.read(model.see(pictures), prompts), 4).ids)
        assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert answers[0] == answers[1]
    for dtype in (torch.bfloat16, torch.float16):
        half = models.load(folder, compute="cpu", dtype=str(dtype).removeprefix("torch."))
        assert (half.dtype, half.tower_digest) == (dtype, full.tower_digest)


def test_a_device_map_is_for_the_weights_alone(blip2_llama: Path) -> None:
    """On a CPU the whole model lies there; words and pictures hear nothing of it."""
    plain = models.load(blip2_llama, compute="cpu")
    mapped = models.load(blip2_llama, compute="cpu", device_map="auto")
    assert (mapped.digest, mapped.tower_digest) == (plain.digest, plain.tower_digest)
    assert {p.device.type for p in mapped.module.parameters()} == {"cpu"}
    assert "device_map" not in mapped.tokenizer.init_kwargs
    processors = [model.preparer.image_processor for model in (mapped, plain)]
    assert processors[0].to_dict() == processors[1].to_dict()
    refused(blip2_llama, UsageError, 2, device_map="everywhere")
