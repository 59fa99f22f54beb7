"""Trunk and tail are the tower in two pieces, whatever block they are cut at."""

from pathlib import Path

import pytest
import torch

from cdcca_cli import models
from cdcca_cli.errors import UsageError
from tests import tiny
from tests.models.conftest import Case


def test_trunk_and_tail_are_the_tower(case: Case) -> None:
    """Bit for bit what transformers' tower gives, for every block to cut at."""
    model = case.model
    pixels = model.preprocess(case.images)
    tower = case.reference.model.get_submodule(model.row.tower_path)
    with torch.no_grad():
        if case.name == "llava":
            states = tower(pixels, output_hidden_states=True).hidden_states
            expected = states[-2][:, 1:]
        else:
            expected = tower(pixels).last_hidden_state
    for block in range(model.num_blocks + 1):
        tokens = model.tail(model.trunk(pixels, block), block)
        torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.vision_tokens(pixels), expected, rtol=0, atol=1e-6)
    assert expected.shape[1] == model.num_tokens


def test_hidden_states_before_a_block(case: Case) -> None:
    """The trunk stops before the given block, not behind it."""
    model = case.model
    pixels = model.preprocess(case.images[:1])
    tower = case.reference.model.get_submodule(model.row.tower_path)
    with torch.no_grad():
        states = tower(pixels, output_hidden_states=True).hidden_states
    for block in range(model.num_blocks):
        torch.testing.assert_close(model.trunk(pixels, block), states[block], rtol=0, atol=1e-6)


def test_the_last_blocks_are_those_that_make_the_tokens(case: Case) -> None:
    """A hook on the attention or the MLP of the last block changes the tokens."""
    model = case.model
    pixels = model.preprocess(case.images[:1])
    plain = model.vision_tokens(pixels)
    blocks = model.block_modules(2)
    assert len(blocks) == 2
    attention, mlp = blocks[-1]
    for part in (attention, mlp):
        handle = part.register_forward_hook(
            lambda module, args, output: (
                (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0
            )
        )
        try:
            cut = model.num_blocks - 1
            changed = model.tail(model.trunk(pixels, cut), cut)
        finally:
            handle.remove()
        assert (changed - plain).abs().max() > 1e-3
    with pytest.raises(UsageError):
        model.block_modules(model.num_blocks + 1)


@pytest.mark.parametrize(
    ("layer", "strategy"), [(-2, "full"), (-1, "default"), (-1, "full"), (1, "full")]
)
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_other_towers_and_layers_of_llava(
    tmp_path: Path, kind: str, layer: int, strategy: str
) -> None:
    """What transformers' get_image_features puts into the prompt, for each of them."""
    folder = tiny.llava_checkpoint(tmp_path, tower=kind, layer=layer, strategy=strategy)
    model = models.load(folder, compute="cpu")
    pixels = model.preprocess(tiny.images(2))
    with torch.no_grad():
        expected = torch.stack(model.module.get_image_features(pixels).pooler_output)
    features = model.project(model.queries(model.vision_tokens(pixels)))
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)
    assert features.shape[1] == model.num_tokens


def test_several_layers_of_llava_are_refused(tmp_path: Path) -> None:
    folder = tiny.llava_checkpoint(tmp_path, layer=[-2, -1])
    with pytest.raises(UsageError, match="single layer"):
        models.load(folder, compute="cpu")


def test_number_of_tokens(case: Case) -> None:
    """Q keeps CLS before the 9 patches, LLaVA cuts it off."""
    assert case.model.num_tokens == (9 if case.name == "llava" else 10)
    assert case.model.picture_length == (9 if case.name == "llava" else 4)
