"""The overlay: which parameters, their start, in and out without a bit lost."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cdcca_cli import models
from cdcca_cli.errors import BadData, UsageError
from cdcca_cli.families import FAMILIES
from cdcca_cli.formats.names import GROUPS
from cdcca_cli.models import initial, overlay
from cdcca_cli.models.settings import InitSettings
from tests import tiny
from tests.models.conftest import Case


def test_the_papers_count() -> None:
    """LLaMA-2-7B with biases, 32 queries of 768: 266,240 + 1,359,872 + 24,576 = 1,650,688.

    The paper's table says 1.65 M. Norms: 65 x 4096. Biases: 32 x (4 x 4096 + 2 x 11008 + 4096).
    """
    import transformers as tf

    config = tf.Blip2Config(
        text_config=tf.LlamaConfig(attention_bias=True, mlp_bias=True),
        qformer_config=tf.Blip2QFormerConfig(num_hidden_layers=6),
    )
    with torch.device("meta"):
        module = tf.Blip2ForConditionalGeneration(config)
    groups = overlay.trainable_groups(module, FAMILIES["blip-2"])
    sizes = {name: p.numel() for name, p in module.named_parameters()}
    counts = {group: sum(sizes[n] for n in groups[group]) for group in ("norm", "bias", "query")}
    assert counts == {"norm": 266_240, "bias": 1_359_872, "query": 24_576}
    rank_16 = 0
    for name in groups["lora.language"]:
        linear = module.get_submodule(name)
        rank_16 += 16 * (linear.in_features + linear.out_features)
    assert rank_16 == 39_976_960, "the paper's language model with LoRA of rank 16"


def test_groups(case: Case) -> None:
    """No vision tower, no head, every name is there; each family has what it should."""
    groups = case.model.trainable_groups()
    parameters = dict(case.model.module.named_parameters())
    for group in ("norm", "query"):
        assert all(name in parameters for name in groups[group])
    has_biases = not case.name.endswith("t5")
    assert all((name in parameters) == has_biases for name in groups["bias"])
    names = [name for group in groups.values() for name in group]
    assert len(set(names)) == len(names)
    assert not any("vision" in name or "lm_head" in name for name in names)
    assert groups["norm"]
    assert bool(groups["query"]) == (case.name != "llava")
    connector = "multi_modal_projector" if case.name == "llava" else "qformer"
    assert groups["lora.connector"]
    assert all(connector in name for name in groups["lora.connector"])
    assert "language_projection" not in groups["lora.connector"]
    # In these language models every linear is in a block.
    assert groups["bias"] == [f"{name}.bias" for name in groups["lora.language"]]
    if case.name == "blip2_llama":
        # attention 4 + MLP 3 for 2 layers; Q-Former: self 4, cross 4, MLP 2 for 2 layers
        assert len(groups["lora.language"]) == 2 * 7
        assert len(groups["lora.connector"]) == 2 * 10
        assert len(groups["norm"]) == 2 * 2 + 1
        assert len(groups["bias"]) == 2 * 7


def test_the_start_changes_nothing_and_depends_on_the_seed(case: Case) -> None:
    model = case.model
    first = model.initial_overlay(GROUPS, 4, 3)
    again = model.initial_overlay(GROUPS, 4, 3)
    other = model.initial_overlay(GROUPS, 4, 4)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    parameters = dict(model.module.named_parameters())
    for name, value in first.items():
        assert value.dtype == np.float32
        if name.endswith("lora_B"):
            assert not value.any()
        elif name.endswith("lora_A"):
            bound = 1 / np.sqrt(value.shape[1])
            assert np.abs(value).max() < bound
            assert np.abs(value).max() > 0.8 * bound
            assert not np.array_equal(value, other[name])
        elif name not in parameters:
            assert name.endswith(".bias") and not value.any()
        else:
            assert np.array_equal(value, parameters[name].detach().numpy())
            assert np.array_equal(value, other[name])
    two = [value for name, value in first.items() if name.endswith("q_proj.lora_A")][:2]
    assert len(two) < 2 or not np.array_equal(*two), "each linear has its own start"


def philox(key: tuple[int, int], counter: int) -> list[int]:
    """One block of Philox-4x64-10 (Salmon et al. 2011) in plain integers."""
    most = 2**64 - 1
    x = [counter, 0, 0, 0]
    k0, k1 = key
    for _ in range(10):
        p0, p1 = x[0] * 0xD2E7470EE14C6C93, x[2] * 0xCA5A826395121157
        x = [(p1 >> 64) ^ x[1] ^ k0, p1 & most, (p0 >> 64) ^ x[3] ^ k1, p0 & most]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & most, (k1 + 0xBB67AE8584CAA73B) & most
    return x


def test_the_start_of_lora_is_fixed_for_ever() -> None:
    """Against Philox written out: key SHA-256(seed, 0, name)[:16], blocks from 1, top 24 bits.

    value = (u / 2^23 - 1) / sqrt(in),   u = word >> 40
    """
    import hashlib

    digest = hashlib.sha256(b"11\0x.lora_A").digest()
    key = (int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little"))
    words = [word for block in (1, 2) for word in philox(key, block)]
    expected = [((word >> 40) / 2**23 - 1) / 2 for word in words]
    found = overlay._uniform("x.lora_A", 2, 4, 11)
    assert found.shape == (2, 4)
    assert found.flatten().tolist() == expected


def test_in_and_out_without_a_bit_lost(tmp_path: Path, blip2_llama: Path) -> None:
    model = models.load(blip2_llama, compute="cpu")
    values = model.initial_overlay(GROUPS, 2, 0)
    generator = np.random.default_rng(0)
    values = {
        name: value + generator.normal(0, 0.01, value.shape).astype(np.float32)
        for name, value in values.items()
    }
    model.install_overlay(values, 4.0)
    back = model.overlay()
    assert sorted(back) == sorted(values)
    assert all(np.array_equal(back[name], values[name]) for name in values)
    from cdcca_cli.formats.digest import overlay_digest

    assert model.digest == overlay_digest(values)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_overlay_stays_float32_in_a_16_bit_model(blip2_llama: Path, dtype: str) -> None:
    """Its values are not rounded, answers come out, gradients reach it in float32."""
    model = models.load(blip2_llama, compute="cpu", dtype=dtype)
    values = models.load(blip2_llama, compute="cpu").initial_overlay(GROUPS, 2, 0)
    model.install_overlay(values, 4.0)
    assert all(np.array_equal(value, values[name]) for name, value in model.overlay().items())
    trainable = model.trainable()
    assert all(parameter.dtype == torch.float32 for parameter in trainable.values())
    prompt = [model.format_prompt("red?", "vqa")]
    (seen,) = model.see(model.prepare(tiny.images(1)))
    assert seen.tokens.dtype == getattr(torch, dtype)
    stored = [models.Seen(seen.tokens.float(), seen.layout)]
    with model.training_mode():
        output = model.forward(model.read(stored, prompt), model.answer_ids(["two"]))
        output.logits.float().square().mean().backward()
    grads = {name: parameter.grad for name, parameter in trainable.items()}
    assert grads["query_tokens"] is not None
    assert grads["query_tokens"].abs().max() > 0
    assert np.isfinite(model.generate(model.read(stored, prompt), 3).entropies[0]).all()


def test_gradients_reach_every_group(case: Case) -> None:
    """From stored tokens to a loss: query tokens, norms, biases and LoRA all get gradients."""
    model = models.load(case.folder, compute="cpu")
    values = model.initial_overlay(GROUPS, 2, 0)
    values = {
        name: np.full_like(value, 0.01) if name.endswith("lora_B") else value
        for name, value in values.items()
    }
    model.install_overlay(values, 4.0)
    trainable = model.trainable()
    prompts = [model.format_prompt("red?", "vqa")] * 2
    seen = model.see(model.prepare(tiny.images(2)))
    with model.training_mode():
        output = model.forward(model.read(seen, prompts), model.answer_ids(["two", "red"]))
        (output.logits.square().mean() + output.hidden.square().mean()).backward()
    for group, names in model.trainable_groups().items():
        reached = [
            name
            for name, parameter in trainable.items()
            if parameter.grad is not None
            and bool(parameter.grad.any())
            and (name in names or name.rpartition(".")[0] in names)
        ]
        assert bool(reached) == bool(names), group
    frozen = [n for n, p in model.module.named_parameters() if p.grad is not None]
    assert set(frozen) <= set(trainable)
    model.freeze()
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_a_wrong_overlay_is_refused_and_nothing_changes(blip2_llama: Path) -> None:
    model = models.load(blip2_llama, compute="cpu")
    norm = model.trainable_groups()["norm"][0]
    linear = model.trainable_groups()["lora.connector"][0]
    before = model.module.get_parameter(norm).clone()
    a_RI, b_OR = np.zeros((2, 128), np.float32), np.zeros((64, 2), np.float32)
    good = {norm: np.zeros(64, np.float32)}
    wrong: list[dict[str, np.ndarray]] = [
        {**good, "no.such.weight": np.zeros(3, np.float32)},
        {**good, model.trainable_groups()["bias"][0]: np.zeros((2, 2), np.float32)},
        {**good, f"{linear}.lora_A": a_RI},
        {**good, f"{linear}.lora_A": a_RI, f"{linear}.lora_B": np.zeros((64, 3), np.float32)},
        {**good, f"{norm}.lora_A": a_RI, f"{norm}.lora_B": b_OR},
    ]
    for values in wrong:
        with pytest.raises(BadData):
            model.install_overlay(values, 4.0)
        assert torch.equal(model.module.get_parameter(norm), before)


def test_groups_that_cannot_be(case: Case) -> None:
    for groups, rank in (([], 4), (["nrom"], 4), (["lora"], 0)):
        with pytest.raises(UsageError):
            case.model.initial_overlay(groups, rank, 0)
    if case.name == "llava":
        with pytest.raises(UsageError, match="no such parameters"):
            case.model.initial_overlay(["query"], 4, 0)


def test_create_device_and_load_it(tmp_path: Path, blip2_llama: Path) -> None:
    """Made twice it is the same; loaded it answers as the checkpoint does."""
    device = initial.create_device(tmp_path / "a", str(blip2_llama), InitSettings(lora_rank=4))
    mirror = initial.create_device(tmp_path / "b", str(blip2_llama), InitSettings(lora_rank=4))
    assert device.digest == mirror.digest
    assert device.lora.alpha == 8.0
    model = models.load_device(device, compute="cpu")
    plain = models.load(blip2_llama, compute="cpu")
    assert model.digest == device.digest
    assert model.tower_digest == plain.tower_digest == device.settings.tower
    prompt = [model.format_prompt("red?", "vqa")]
    seen = plain.see(plain.prepare(tiny.images(1)))
    logits = []
    for loaded in (model, plain):
        spliced = loaded.read(seen, prompt)
        logits.append(loaded.forward(spliced, loaded.answer_ids(["two"])).logits)
    assert torch.equal(*logits)


def test_the_start_is_made_again_as_it_was(tmp_path: Path, blip2_llama: Path) -> None:
    """The same names in the same order, the same bits, whatever was installed since."""
    how = InitSettings(groups=("lora", "norm", "bias"), lora_rank=2, seed=3, qformer_layers=1)
    device = initial.create_device(tmp_path / "d", str(blip2_llama), how)
    first = device.read_overlay()
    device.install({name: value + 1 for name, value in first.items()}, 1)
    again = initial.start_of(device)
    assert list(again) == list(first)
    assert all(again[name].tobytes() == first[name].tobytes() for name in first)
    assert all(value.dtype == np.float32 for value in again.values())


def test_biases_that_a_checkpoint_lacks_start_at_zero(tmp_path: Path) -> None:
    """A LLaMA without biases gets 14 of them in the overlay, and answers as before."""
    import transformers as tf
    from safetensors.torch import load_file

    folder = tiny.q_checkpoint(tmp_path / "c")
    config = tf.Blip2Config.from_pretrained(folder)
    config.text_config.attention_bias = config.text_config.mlp_bias = False
    weights = load_file(folder / "model.safetensors")
    module = tf.Blip2ForConditionalGeneration(config)
    module.load_state_dict({n: t for n, t in weights.items() if not n.endswith("_proj.bias")})
    module.save_pretrained(folder)
    plain = models.load(folder, compute="cpu")
    device = initial.create_device(tmp_path / "device", str(folder), InitSettings(lora_rank=2))
    biases = [name for name in device.read_overlay() if name.endswith("_proj.bias")]
    assert len(biases) == 14
    assert not any(device.read_overlay()[name].any() for name in biases)
    model = models.load_device(device, compute="cpu")
    assert model.trainable_groups()["bias"] == plain.trainable_groups()["bias"] == sorted(biases)
    prompt = ["Question: red? Answer:"]
    seen = plain.see(plain.prepare(tiny.images(1)))
    logits = []
    for loaded in (plain, model):
        spliced = loaded.read(seen, prompt)
        logits.append(loaded.forward(spliced, loaded.answer_ids(["two"])).logits)
    assert torch.equal(*logits)


def test_a_device_of_another_tower_is_refused(
    tmp_path: Path, blip2_llama: Path, blip2_opt: Path
) -> None:
    import json

    device = initial.create_device(
        tmp_path / "d", str(blip2_llama), InitSettings(groups=("query",))
    )
    path = tmp_path / "d" / "device.json"
    table = json.loads(path.read_text())
    table["checkpoint"] = str(blip2_opt)
    path.write_text(json.dumps(table))
    with pytest.raises(BadData, match="vision tower"):
        models.load_device(type(device).open(tmp_path / "d"), compute="cpu")
