import numpy as np
import pytest

from cdcca_cli.downlink.change import Change, group_of, selected
from cdcca_cli.errors import BadData, UsageError

BASE = {"a": np.array([1, 2], np.float32), "b": np.zeros((2, 2), np.float32), "c": np.ones(3, "f4")}


def after(**changed: list[float]) -> dict[str, np.ndarray]:
    return {
        name: (
            value + np.reshape(changed.get(name, 0), value.shape if name in changed else ())
        ).astype(np.float32)
        for name, value in BASE.items()
    }


def test_by_hand() -> None:
    """3, 4 in a, and four 5 in b: squares 25 and 100 over 6 parameters; c did not change."""
    change = Change.between(after(a=[3, 4], b=[5, 5, 5, 5]), BASE, set(BASE))
    assert change.names == ["a", "b", "c"]
    assert change.energies == [25, 100, 0]
    assert (change.num_parameters, change.num_changed, change.largest) == (9, 6, 5)
    assert change.rms == pytest.approx((125 / 6) ** 0.5)
    nearly = after(a=[3, 0], b=[5, 5, 5, 4])
    assert change.relative_error(nearly) == pytest.approx(((16 + 1) / 125) ** 0.5)
    assert change.unsent(nearly) == pytest.approx(16 / 125)
    assert change.relative_error(BASE) == change.unsent(BASE) == 1


def test_what_is_not_selected_does_not_change() -> None:
    change = Change.between(after(a=[3, 4], b=[5, 5, 5, 5]), BASE, {"b"})
    assert [delta.tolist() for delta in change.deltas] == [[0, 0], [[5, 5], [5, 5]], [0, 0, 0]]
    assert (change.num_changed, change.num_parameters) == (4, 9)


def test_no_change() -> None:
    change = Change.between(BASE, BASE, set(BASE))
    assert (change.rms, change.num_changed, change.largest) == (0, 0, 0)
    assert change.relative_error(BASE) == 0


def test_a_difference_that_float32_cannot_hold() -> None:
    largest = np.finfo(np.float32).max
    with pytest.raises(BadData, match="change of a is not finite"):
        Change.between({"a": np.array([largest])}, {"a": np.array([-largest])}, {"a"})


EXPECTED = {
    "lm.layers.0.self_attn.q_proj.bias": "bias",
    "lm.layers.0.self_attn.q_proj.lora_A": "lora",
    "lm.layers.0.self_attn.q_proj.lora_B": "lora",
    "lm.layers.0.input_layernorm.weight": "norm",
    "lm.final_layer_norm.weight": "norm",
    "lm.final_layer_norm.bias": "norm",
    "query_tokens": "query",
}


def test_groups_are_told_from_names() -> None:
    assert {name: group_of(name, EXPECTED) for name in EXPECTED} == EXPECTED


def test_selection() -> None:
    assert selected(EXPECTED, None) == set(EXPECTED)
    assert selected(EXPECTED, ["query"]) == {"query_tokens"}
    assert selected(EXPECTED, ["norm", "bias", "query"]) == {n for n in EXPECTED if "lora" not in n}


def test_parts_of_lora_are_told_by_the_family() -> None:
    """Both are `lora`, in whatever words; a connector inside the tower is one too."""
    merger = "model.visual.merger.mlp.0"
    block = "model.language_model.layers.0.self_attn.q_proj"
    norm = "model.language_model.norm.weight"
    parts = {
        part: {f"{linear}.lora_{matrix}" for matrix in "AB"}
        for part, linear in (("lora.connector", merger), ("lora.language", block))
    }
    names = [norm, *parts["lora.connector"], *parts["lora.language"]]
    for part, expected in parts.items():
        assert selected(names, [part], "qwen2_vl") == expected
        assert selected(names, ["norm", part], "qwen2_vl") == {norm, *expected}
        with pytest.raises(UsageError, match=f"the base has only {part}"):
            selected(expected, [*(parts.keys() - {part})], "qwen2_vl")
    both = parts["lora.connector"] | parts["lora.language"]
    assert selected(names, [*parts], "qwen2_vl") == both
    for other in (["lora"], ["lora", "lora.language"], [*parts]):
        assert selected(names, other, "") == both
    with pytest.raises(UsageError, match="knows no family later: give lora"):
        selected(names, ["lora.language"], "later")


def test_a_device_names_its_family_by_name_or_model_type() -> None:
    """`init` writes blip_2, older devices have blip-2."""
    names = ["qformer.encoder.layer.0.dense.lora_A", "language_model.layers.0.fc1.lora_A"]
    for family in ("blip_2", "blip-2"):
        assert selected(names, ["lora.connector"], family) == {names[0]}


def test_groups_that_the_base_does_not_have_are_refused() -> None:
    with pytest.raises(UsageError, match="the base has only query"):
        selected(["query_tokens"], ["lora"])
