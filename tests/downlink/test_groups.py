import pytest

from cdcca_cli.downlink import groups
from cdcca_cli.errors import UsageError

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
    assert {name: groups.group_of(name, EXPECTED) for name in EXPECTED} == EXPECTED


def test_selection() -> None:
    assert groups.selected(EXPECTED, None) == set(EXPECTED)
    assert groups.selected(EXPECTED, ["query"]) == {"query_tokens"}
    assert groups.selected(EXPECTED, groups.PAPER) == {n for n in EXPECTED if "lora" not in n}


@pytest.mark.parametrize("wanted", [["norm", "weights"], [""], []])
def test_unknown_groups_are_refused(wanted: list[str]) -> None:
    with pytest.raises(UsageError, match="expected some of norm, bias, query, lora"):
        groups.selected(EXPECTED, wanted)


def test_groups_that_the_base_does_not_have_are_refused() -> None:
    with pytest.raises(UsageError, match="the base has only query"):
        groups.selected(["query_tokens"], ["lora"])
