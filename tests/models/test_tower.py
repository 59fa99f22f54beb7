"""Trunk and tail are the tower in two pieces, whatever block they are cut at."""

from pathlib import Path

import pytest
import torch

from cdcca_cli import models
from cdcca_cli.errors import UsageError
from cdcca_cli.models import Seen
from tests import tiny
from tests.models.conftest import Case


def test_trunk_and_tail_are_the_tower(case: Case) -> None:
    """Bit for bit what transformers' tower gives, for every block to cut at."""
    model = case.model
    tower = case.reference.model.get_submodule(model.row.tower_path)
    for picture, seen in zip(model.prepare(case.images), _see(case), strict=True):
        with torch.no_grad():
            if case.name == "llava":
                states = tower(picture.inputs["pixel_values"], output_hidden_states=True)
                expected = states.hidden_states[-2][0, 1:]
            else:
                expected = tower(picture.inputs["pixel_values"]).last_hidden_state[0]
            for block in range(model.num_blocks + 1):
                tokens, layout = model.tail(model.trunk(picture, block))
                torch.testing.assert_close(tokens[0], expected, rtol=0, atol=1e-6)
                assert layout == seen.layout
        torch.testing.assert_close(seen.tokens, expected, rtol=0, atol=1e-6)


def test_hidden_states_before_a_block(case: Case) -> None:
    """The trunk stops before the given block, not behind it."""
    model = case.model
    (picture,) = model.prepare(case.images[:1])
    tower = case.reference.model.get_submodule(model.row.tower_path)
    with torch.no_grad():
        states = tower(picture.inputs["pixel_values"], output_hidden_states=True).hidden_states
        for block in range(1, model.num_blocks):
            (hidden,) = model.trunk(picture, block).states
            torch.testing.assert_close(hidden, states[block], rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_last_blocks_are_those_that_make_the_tokens(case: Case) -> None:
    """A hook on the attention or the MLP of the last block changes the tokens."""
    model = case.model
    (picture,) = model.prepare(case.images[:1])
    plain = _see(case)[0].tokens
    parts = model.block_modules(2)
    assert len(parts) == 4
    for part in parts[-2:]:
        handle = part.register_forward_hook(
            lambda module, args, output: (
                (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0
            )
        )
        try:
            changed, _ = model.tail(model.trunk(picture, model.num_blocks - 1))
        finally:
            handle.remove()
        assert (changed[0] - plain).abs().max() > 1e-3
    with pytest.raises(UsageError):
        model.block_modules(model.num_blocks + 1)


@torch.no_grad()
def _see(case: Case) -> list[Seen]:
    return case.model.see(case.model.prepare(case.images))


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
    pictures = model.prepare(tiny.images(2))
    with torch.no_grad():
        pixels = torch.cat([picture.inputs["pixel_values"] for picture in pictures])
        expected = torch.stack(list(model.module.get_image_features(pixels).pooler_output))
        tokens = torch.stack([seen.tokens for seen in model.see(pictures)])
    features = model.project(model.queries(tokens))
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)


def test_number_of_tokens(case: Case) -> None:
    """Q keeps CLS before the 9 patches, LLaVA cuts it off."""
    expected = (9, 9) if case.name == "llava" else (10, 4)
    (seen,) = case.model.see(case.model.prepare(case.images[:1]))
    spliced = case.model.read([seen], case.prompts[:1])
    assert (seen.num_tokens, int(spliced.visual_mask.sum())) == expected
