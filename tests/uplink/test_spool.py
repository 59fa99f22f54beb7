"""The spool gives back what was put in, whatever its shapes, and uses again what was freed."""

from contextlib import closing

import pytest
import torch
from torch import Tensor

from cdcca_cli.models import Picture, Trunk
from cdcca_cli.uplink.spool import Spool


def trunk_of(*states: Tensor, marks: str | None = None, **inputs: Tensor) -> Trunk:
    return Trunk(Picture(inputs, marks), 2, states)


def hollow(*shape: int) -> Tensor:
    """As `Cells.trunk` leaves an input whose values no longer count."""
    return torch.ones(1).expand(shape)


def assert_equal(found: Trunk, expected: Trunk) -> None:
    assert (found.first_block, found.picture.marks) == (2, expected.picture.marks)
    assert list(found.picture.inputs) == list(expected.picture.inputs)
    tensors = zip(
        (*found.picture.inputs.values(), *found.states),
        (*expected.picture.inputs.values(), *expected.states),
        strict=True,
    )
    for one, other in tensors:
        assert torch.equal(one, other)
        assert one.dtype == other.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip(dtype: torch.dtype) -> None:
    """States of several shapes, a grid of whole numbers, inputs with values and without."""
    put = [
        trunk_of(torch.randn(1, 5, 3).to(dtype)),
        trunk_of(
            torch.randn(7, 3).to(dtype),
            torch.randn(2, 4).to(dtype),
            marks="<row>{2}",
            pixel_values=hollow(28, 6),
            image_grid_thw=torch.tensor([[1, 4, 7]]),
        ),
        trunk_of(pixel_values=torch.randn(1, 3, 4, 4).to(dtype)),
        trunk_of(torch.randn(1, 5, 3).to(dtype), marks=""),
    ]
    with closing(Spool()) as spool:
        slots = [spool.put(trunk) for trunk in put]
        for slot, trunk in reversed(list(zip(slots, put, strict=True))):
            assert_equal(spool.get(slot), trunk)


def test_inputs_without_values_take_no_bytes() -> None:
    """A million of them, kept as their shape; the states of 24 bytes are all that is written."""
    mask = torch.zeros(1, dtype=torch.long).expand(500, 500)
    trunk = trunk_of(torch.randn(2, 3), pixel_values=hollow(1000, 1000), mask=mask)
    with closing(Spool()) as spool:
        slots = [spool.put(trunk) for _ in range(3)]
        assert [(slot.place, slot.num_bytes) for slot in slots] == [(0, 24), (24, 24), (48, 24)]
        assert torch.equal(spool.get(slots[0]).picture.inputs["mask"], mask)
        found = spool.get(slots[1]).picture.inputs["pixel_values"]
        assert found.shape == (1000, 1000) and found.untyped_storage().nbytes() == 4


def test_one_value_is_a_value() -> None:
    """A tensor of one element is not taken for one without values."""
    with closing(Spool()) as spool:
        trunk = trunk_of(torch.full((1, 1), 7.0), image_grid_thw=torch.tensor([3]))
        assert_equal(spool.get(spool.put(trunk)), trunk)


def test_a_freed_slot_is_the_next_of_its_size() -> None:
    with closing(Spool()) as spool:
        slots = [spool.put(trunk_of(torch.full((2, 2), float(i)))) for i in range(3)]
        end = slots[2].place + 16
        spool.free(slots[1])
        assert spool.put(trunk_of(torch.zeros(2, 3))).place == end, "another size: at the end"
        again = spool.put(trunk_of(torch.full((4, 1), 9.0)))
        assert again.place == slots[1].place, "another shape of the same size"
        found = [spool.get(slot).states[0][0, 0].item() for slot in (slots[0], again, slots[2])]
        assert found == [0.0, 9.0, 2.0]
        assert spool.put(trunk_of(torch.zeros(2, 2))).place == end + 24, "used once"


def test_a_view_is_stored_as_what_it_shows() -> None:
    trunk = trunk_of(torch.arange(12.0).reshape(3, 4).T)
    with closing(Spool()) as spool:
        assert_equal(spool.get(spool.put(trunk)), trunk)


def test_a_file_that_was_cut_is_said() -> None:
    with closing(Spool()) as spool:
        slot = spool.put(trunk_of(torch.zeros(2, 2)))
        spool._file.truncate(8)
        with pytest.raises(OSError, match="shorter"):
            spool.get(slot)
