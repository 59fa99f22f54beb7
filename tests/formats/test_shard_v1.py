"""Token streams of version 1, which are read for ever."""

from io import BytesIO

import pytest

from cdcca_cli.errors import BadData
from cdcca_cli.formats.shard import Shard
from cdcca_cli.formats.shard_stream import read_shards
from tests.golden import make


def read(data: bytes) -> list[Shard]:
    return list(read_shards(BytesIO(data)))


NOT_FINITE = {
    "tokens_f32": make.shard({"frame": "bad"}, tokens=("F32", [2, 1], make.floats(1, make.NAN))),
    "scores": make.shard({"frame": "bad"}, scores=("F32", [2], make.floats(make.INF, 1))),
    "tokens_f16": make.record(
        {**make.SHARD_F16, "frame": "bad"},
        {**make.TENSORS_F16, "tokens": ("F16", [2, 1], make.halves(1, make.NAN))},
    ),
    "scales_i8": make.record(
        {**make.SHARD_I8, "frame": "bad"},
        {**make.TENSORS_I8, "scales": ("F32", [2], make.floats(make.INF, 0))},
    ),
    "products_i8": make.record(
        {**make.SHARD_I8, "frame": "bad"},
        {**make.TENSORS_I8, "scales": ("F32", [2], make.floats(3e38, 0))},
    ),
}


@pytest.mark.parametrize("fault", NOT_FINITE)
def test_a_shard_of_values_that_are_no_numbers_is_named_and_left_out(fault: str) -> None:
    """The end record counts it all the same; without somebody to tell it is an error."""
    bad, good = NOT_FINITE[fault], make.shard()
    data = good + bad + good + make.end(3) + bad + make.end(1)
    told: list[BadData] = []
    found = list(read_shards(BytesIO(data), where="up", refused=told.append))
    assert [one.frame for one in found] == ["f1", "f1"]
    lines = [str(error) for error in told]
    assert [line[: line.index(":", 5)] for line in lines] == [
        "up: record 2 (frame bad)",
        "up: record 5 (frame bad)",
    ]
    assert all("not finite" in line for line in lines)
    with pytest.raises(BadData, match=r"record 2 \(frame bad\): .*not finite"):
        read(data)


@pytest.mark.parametrize("count", [1, 3])
def test_one_that_is_left_out_is_counted(count: int) -> None:
    data = make.shard() + NOT_FINITE["scores"] + make.end(count)
    with pytest.raises(BadData, match=f"2 shards, but its end record counts {count}"):
        list(read_shards(BytesIO(data), refused=lambda _: None))


@pytest.mark.parametrize(
    "change",
    [{"labels": []}, {"asks": [{**make.ASK, "task": "chat"}]}, {"image": 3}, {"num_tokens": 17}],
    ids=lambda change: next(iter(change)),
)
def test_no_numbers_and_another_fault_are_refused(change: dict) -> None:
    data = make.shard(change, scores=("F32", [2], make.floats(make.NAN, 1))) + make.end(1)
    with pytest.raises(BadData):
        list(read_shards(BytesIO(data), refused=lambda _: None))
