"""llama.cpp's table, held to its own package and to the language models of our families."""

from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.export.architectures import (
    ARCHITECTURES,
    connector_names,
    in_halves,
    in_pairs,
)
from tests import zoo
from tests.export import tiny

LLAVA = ["model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_are_those_of_llama_cpps_package(name: str) -> None:
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    known = {text: number for number, text in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(known[name], 3)
    row = ARCHITECTURES[name]
    for inner, ours in {**row.linears, **row.norms}.items():
        assert table.get_name(f"model.layers.2.{inner}") == f"blk.2.{ours}"
        assert row.named(f"layers.2.{inner}") == f"blk.2.{ours}"
    assert table.get_name("model.norm") == row.named("norm") == "output_norm"
    assert row.named("layers.2.self_attn.gate") is None and row.named("embed_tokens") is None


@pytest.mark.parametrize("heads", [1, 3, 4])
def test_the_row_order(heads: int) -> None:
    """Row (h, p, i) becomes (h, i, p), told out; and back."""
    rows = np.arange(heads * 6 * 2, dtype=np.float32).reshape(-1, 2)
    assert np.array_equal(in_pairs(rows, heads), tiny.in_pairs(rows, heads))
    assert np.array_equal(in_halves(in_pairs(rows, heads), heads), rows)
    assert np.array_equal(in_pairs(rows[:, 0], heads), in_pairs(rows, heads)[:, 0])


@pytest.mark.parametrize(
    ("name", "biases", "is_permuted", "offset"),
    [
        ("llama", 7, True, 0),
        ("mistral3", 7, True, 0),
        ("granite", 7, True, 0),
        ("smollm3", 3, True, 0),
        ("qwen2", 3, False, 0),
        ("qwen2vl", 3, False, 0),
        ("qwen3", 3, False, 0),
        ("qwen3vl", 3, False, 0),
        ("gemma", 3, False, 1),
        ("gemma2", 3, False, 1),
        ("gemma3", 3, False, 1),
        ("phi3", 1, False, 0),
        ("cohere2", 3, False, 0),
    ],
)
def test_what_llama_cpp_reads(name: str, biases: int, is_permuted: bool, offset: float) -> None:
    """As its source says: src/models/NAME.cpp and conversion/NAME.py."""
    row = ARCHITECTURES[name]
    read = [one for one in row.linears.values() if row.reads_bias(f"blk.0.{one}")]
    assert (len(read), row.is_permuted, row.norm_offset) == (biases, is_permuted, offset)


@pytest.mark.parametrize(
    ("projector", "linears", "tensors"),
    [
        ("mlp", LLAVA, ["mm.0", "mm.2"]),
        ("internvl", LLAVA, ["mm.model.mlp.1", "mm.model.mlp.3"]),
        ("idefics3", ["model.connector.modality_projection.proj"], ["mm.model.fc"]),
        ("qwen2vl_merger", ["model.visual.merger.mlp.0", "model.visual.merger.mlp.2"],
         ["mm.0", "mm.2"]),
        ("pixtral", [*LLAVA, "model.multi_modal_projector.patch_merger.merging_layer"],
         ["mm.1", "mm.2", "mm.patch_merger"]),
        ("unheard-of", LLAVA, []),
    ],
)  # fmt: skip
def test_places_of_a_connector(projector: str, linears: list[str], tensors: list[str]) -> None:
    found = connector_names(projector, linears, [])
    assert [found[name] for name in linears if name in found] == tensors


def test_places_of_deepstack_mergers() -> None:
    """The numbers in a file are those of the tower's blocks."""
    linears = [
        f"model.visual.{name}.linear_fc{n}"
        for name in ("merger", "deepstack_merger_list.0", "deepstack_merger_list.1")
        for n in (1, 2)
    ]
    tensors = [f"v.deepstack.{n}.fc{m}" for n in (16, 5) for m in (1, 2)]
    found = connector_names("qwen3vl_merger", linears, tensors)
    assert [found[name] for name in linears] == [
        *("mm.0", "mm.2"),
        *("v.deepstack.5.fc1", "v.deepstack.5.fc2"),
        *("v.deepstack.16.fc1", "v.deepstack.16.fc2"),
    ]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen3_vl", "gemma3", "smolvlm"])
def test_every_linear_and_norm_of_a_family_has_a_name(family: str, tmp_path: Path) -> None:
    import transformers

    from cdcca_cli.models import load

    transformers.logging.set_verbosity_error()
    if reason := zoo.missing(family):
        pytest.skip(reason)
    model = load(str(zoo.checkpoint(family, tmp_path / "checkpoint")), compute="cpu")
    kind = model.module.config.get_text_config().model_type
    (row, *_) = [one for one in ARCHITECTURES.values() if kind in one.types]
    groups = model.trainable_groups()
    prefix = f"{model.row.language_path}."
    norms = [name.rpartition(".")[0] for name in groups["norm"]]
    names = [row.named(name.removeprefix(prefix)) for name in (*groups["lora.language"], *norms)]
    assert None not in names and len(set(names)) == len(names)
