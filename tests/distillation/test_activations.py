"""Training that computes the layers again gives the same bits, and is chosen where memory is short.

Shapes: P parameters of the overlay.
"""

import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cdcca_cli.distillation import activations
from cdcca_cli.distillation.distill import distill
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.memory import Memory
from cdcca_cli.models import LoadedModel, load
from cdcca_cli.models.checkpointing import layers_of
from cdcca_cli.models.encoding import Example, num_positions
from cdcca_cli.models.initial import create_device
from cdcca_cli.models.settings import InitSettings
from tests.distillation.conftest import Stopped, a_trainer, make_shards

GIGABYTE = 1 << 30
SETTINGS = DistillSettings(epochs=1, batch_size=4, lr=1e-2)


def count_passes(model: nn.Module) -> list[int]:
    """A list of one number: how often something in a layer of the model has run, from now on."""
    count = [0]

    def one_more(_part: nn.Module, _args: object) -> None:
        count[0] += 1

    for layer in layers_of(model):  # its own hooks are outside what is computed again
        linear = next(part for part in layer.modules() if isinstance(part, nn.Linear))
        linear.register_forward_pre_hook(one_more)
    return count


@pytest.mark.parametrize("family", ["llava", "blip2_llama", "blip2_t5"])
def test_layers_that_are_computed_again_give_the_same_bits(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The gradients of a batch, and the overlay that is trained."""
    folder = request.getfixturevalue(family)
    teacher = load(folder, compute="cpu")
    mirror = create_device(tmp_path / "mirror", str(folder), InitSettings(lora_rank=2))
    shards = make_shards(teacher, 6, keep=(6, 3))
    start = {name: value + 0.02 for name, value in mirror.read_overlay().items()}
    gradients, counts = [], []
    for how in ("never", "always"):
        trainer = a_trainer(shards, teacher, mirror, replace(SETTINGS, checkpointing=how), start)
        with trainer.student.training_mode():
            count = count_passes(trainer.student.language.model)
            trainer.backward(trainer.dataset.train[:4])
        gradients.append(trainer.overlay.gradient.clone())
        counts.append(count[0])
    assert gradients[0].norm() > 0
    assert torch.equal(*gradients)
    assert counts[1] == 2 * counts[0] > 0
    made = [
        distill(shards, teacher, mirror, replace(SETTINGS, checkpointing=how)).overlay
        for how in ("never", "always")
    ]
    assert overlay_digest(made[0]) == overlay_digest(made[1])
    assert overlay_digest(made[0]) != overlay_digest(mirror.read_overlay())


def test_layers_are_as_they_were_after_a_pass(student: LoadedModel) -> None:
    """In eval mode without checkpointing, also if the pass fails."""
    layers = layers_of(student.language.model)
    assert layers
    student.is_checkpointed = True
    with pytest.raises(Stopped), student._checkpointed():
        assert all(layer.gradient_checkpointing for layer in layers)
        raise Stopped
    assert not any(layer.gradient_checkpointing or layer.training for layer in layers)
    with torch.no_grad(), student._checkpointed():
        assert not any(layer.gradient_checkpointing for layer in layers)


def test_auto_asks_how_much_memory_is_free(
    student: LoadedModel, teacher: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a pass keeps: its positions times that of one; a quarter of what is free is allowed."""
    examples = [
        Example(shard, question)
        for shard in make_shards(teacher, 2)
        for question in shard.questions[:1]
    ]
    alone = replace(SETTINGS, micro_batch_size=1)
    longest = max(num_positions(student, one) for one in examples)
    needed = longest * activations.bytes_a_position(student)
    free = 0.0
    monkeypatch.setattr(activations, "main_memory", lambda: Memory(int(free), GIGABYTE))
    for share, is_short in ((0.99, True), (1.01, False)):
        free = share * needed / activations.LARGEST_SHARE
        assert activations.is_recomputed(student, alone, examples) is is_short
        both = replace(alone, micro_batch_size=2)  # the longest twice
        free = share * 2 * needed / activations.LARGEST_SHARE
        assert activations.is_recomputed(student, both, examples) is is_short
    free = 0.0
    assert not activations.is_recomputed(student, replace(alone, checkpointing="never"), examples)
    assert not activations.is_recomputed(student, alone, []), "nothing is trained on"
    free = 1e18
    assert activations.is_recomputed(student, replace(alone, checkpointing="always"), examples)


def test_bytes_of_a_position_by_hand(student: LoadedModel) -> None:
    """Two LLaMA layers: q, k, v and o, then gate, up and down."""
    config = student.language.config
    width, inner = config.hidden_size, config.intermediate_size
    heads = config.hidden_size // config.num_attention_heads
    keys = config.num_key_value_heads * heads
    a_layer = 2 * (width + width) + 2 * (width + keys) + 3 * (width + inner)
    expected = activations.KEPT_OF_LINEARS * config.num_hidden_layers * a_layer * 4
    assert activations.bytes_a_position(student) == expected


def test_an_unloaded_model_is_gone(tiny_pair: tuple[Path, Path]) -> None:
    """Whoever still holds it."""
    model = load(tiny_pair[1], compute="cpu")
    holder = model
    module, weights = weakref.ref(model.module), weakref.ref(model.module.query_tokens)
    model.unload()
    assert module() is None and weights() is None
    with pytest.raises(AttributeError):
        holder.module  # noqa: B018
