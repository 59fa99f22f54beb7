"""The memory that a model needs, against arithmetic by hand, and against what a run takes."""

import dataclasses

import pytest

from cdcca_cli.doctor import memory
from cdcca_cli.models import loading
from tests.doctor.conftest import Checkpoints

SIZES = memory.Sizes(
    parameters=1_000_000_000,
    linears=800_000_000,
    stored={},
    trained=1_000_000,
    layers=20,
    width=1000,
    inner=3000,
    ends=300_000,
    keys=250,
    vocabulary=50_000,
    positions=100,
    tokens=80,
    channels=2000,
)


def test_by_hand_in_float32() -> None:
    """Weights 4 GB. Cache 2 * 20 * 250 * 100 * 4 = 4 MB. The tower's block 14 * 80 * 2000 * 4 =
    8.96 MB is more than the language model's 100 * (6 * 1000 + 3 * 3000) * 4 = 6 MB.

    Trained 16 MB. Kept 2.4 * 8 * 116 * 300,000 * 4 = 2,672.64 MB, or of the layers' inputs and one
    layer 8 * 116 * (20 * 1000 + 2.4 * 300,000 / 20) * 4 = 207.872 MB. Logits 3 * 4 * 8 * 16 *
    50,000 = 76.8 MB.
    """
    rest = memory.LIBRARIES
    assert SIZES.to_infer("float32") == 4_000_000_000 + 4_000_000 + 8_960_000 + rest
    trained = 4_000_000_000 + 16_000_000 + 76_800_000 + rest
    assert SIZES.to_train("float32") == trained + 2_672_640_000
    assert SIZES.to_train("float32", least=True) == trained + 207_872_000


@pytest.mark.parametrize(
    ("form", "weights"),
    [
        ("bfloat16", 2_000_000_000),
        ("int8", 400_000_000 + 800_000_000),
        ("nf4", 400_000_000 + 450_000_000),  # 4 bits, and 32 for each 64
    ],
)
def test_weights_by_format(form: str, weights: int) -> None:
    assert SIZES.to_infer(form) == weights + 2_000_000 + 4_480_000 + memory.LIBRARIES


def test_weights_in_another_format_are_there_while_they_are_cast() -> None:
    stored = {"bfloat16": 2_000_000_000, "int64": 8}
    sizes = dataclasses.replace(SIZES, stored=stored)
    loading_bytes = 4_000_000_000 + 2_000_000_008 + memory.LIBRARIES
    assert sizes.to_infer("float32") == sizes.to_train("float32", least=True) == loading_bytes
    assert sizes.to_infer("bfloat16") == SIZES.to_infer("bfloat16")


@pytest.mark.parametrize("name", ["blip_2", "blip_2 with T5 in bfloat16", "llava with CLIP"])
def test_sizes_of_a_model(name: str, checkpoints: Checkpoints) -> None:
    """tiny: width 64, MLP of 128, 2 layers (T5: as many again), 4 heads of 16."""
    model = loading.outline(checkpoints[name])
    found = memory.sizes(model, stored={}, positions=1, tokens=2, channels=3, trained=4)
    assert (found.width, found.inner, found.keys) == (64, 128, 64)
    assert found.layers == (4 if "T5" in name else 2)
    assert found.parameters == sum(one.numel() for one in model.module.parameters())
    attention, mlp, decoder_attention = 4 * 64 * 64, 2 * 64 * 128, 0
    if "llava" in name or name == "blip_2":
        mlp = 3 * 64 * 128
    else:  # T5 has a gated MLP of 3 linears, and attends to the prompt too
        mlp, decoder_attention = 3 * 64 * 128, 2 * attention
    assert found.linears == found.layers * (attention + mlp) + decoder_attention
    # A linear of 64 x 64 has 2 * 64 ends, one of 64 x 128 has 3 * 64: 128 / 4096 and 192 / 8192.
    squares = found.layers * attention + decoder_attention
    assert found.ends == squares // 32 + (found.linears - squares) * 3 // 128


def test_long_prompts_are_trained_on_one_by_one() -> None:
    """2,000 positions are more than a pass usually has: one question, not 8."""
    long = dataclasses.replace(SIZES, positions=2000)
    kept = 24 * 2016 * 300_000 * 4 // 10
    logits = 3 * 4 * 16 * 50_000
    trained = 4_000_000_000 + 16_000_000
    assert long.to_train("float32") == trained + kept + logits + memory.LIBRARIES
