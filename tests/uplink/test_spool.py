"""The spool gives back what was put in, and reuses what was freed."""

from contextlib import closing

import pytest
import torch

from cdcca_cli.uplink.spool import Spool


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip(dtype: torch.dtype) -> None:
    tensors = [torch.randn(1, 5, 3).to(dtype) for _ in range(4)]
    with closing(Spool()) as spool:
        slots = [spool.put(tensor) for tensor in tensors]
        for slot, tensor in reversed(list(zip(slots, tensors, strict=True))):
            assert torch.equal(spool.get(slot), tensor)
            assert spool.get(slot).dtype == dtype


def test_a_freed_slot_is_the_next_one() -> None:
    with closing(Spool()) as spool:
        slots = [spool.put(torch.full((2, 2), float(i))) for i in range(3)]
        spool.free(slots[1])
        assert spool.put(torch.full((2, 2), 9.0)) == slots[1]
        assert [spool.get(slot)[0, 0].item() for slot in slots] == [0.0, 9.0, 2.0]


def test_a_view_is_stored_as_what_it_shows() -> None:
    tensor = torch.arange(12.0).reshape(3, 4).T
    with closing(Spool()) as spool:
        assert torch.equal(spool.get(spool.put(tensor)), tensor)


def test_another_shape_is_refused() -> None:
    with closing(Spool()) as spool:
        spool.put(torch.zeros(2, 2))
        with pytest.raises(ValueError, match="spool"):
            spool.put(torch.zeros(2, 3))
