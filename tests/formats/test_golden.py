"""tests/golden: every valid file is read as what it says, every invalid one is refused."""

import json
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.formats import adaptation, device, predictions, shard, update
from cdcca_cli.main import main
from tests.golden import make

GOLDEN = Path(make.__file__).parent
VALID, INVALID = GOLDEN / "valid", GOLDEN / "invalid"


def test_the_checked_in_files_are_those_that_make_writes() -> None:
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for folder in (VALID, INVALID)
        for path in folder.rglob("*")
        if path.is_file()
    }
    expected = make.valid() | {name: data for name, (_, _, data) in make.FAULTS.items()}
    # zstd libraries may compress differently; what they hold is compared when it is read.
    for name in [name for name in expected if "zstd" in name]:
        del found[name], expected[name]
    assert found == expected


@pytest.mark.parametrize("name", sorted(make.FAULTS))
def test_invalid_file_is_refused_in_one_line(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, words, _ = make.FAULTS[name]
    path = INVALID / name
    if name.endswith(".device"):
        folder = tmp_path / "device"
        shutil.copytree(VALID / "device_v1", folder)
        shutil.copy(path, folder / "device.json")
        path = folder
    found = main(["inspect", str(path)])
    out, err = capfd.readouterr()
    assert (found, out) == (code, "")
    assert words in err
    assert err.startswith("cdcca: ") and err.count("\n") == 1 and len(err) < 400, err
    assert "a bug" not in err


@pytest.mark.parametrize("name", sorted(make.valid().keys() - {"device_v1/device.json"}))
def test_valid_file_is_inspected(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(VALID / name)]) == 0
    assert json.loads(capfd.readouterr().out)["digests"]


def _shards(name: str) -> list[shard.Shard]:
    return list(shard.read_shards(BytesIO((VALID / name).read_bytes())))


def test_float32_shard() -> None:
    """The values are those that make.py packs with struct."""
    (only,) = _shards("shard_v1_f32.shards")
    assert only.tokens.tolist() == [[1.5, -2.0, 0.0], [0.25, 8.0, -0.125]]
    assert only.tokens.dtype == np.float32
    assert only.positions.tolist() == [4, 17] and only.positions.dtype == np.int32
    assert only.scores.tolist() == [0.5, 0.75]
    assert (only.frame, only.image, only.domain) == ("f1", "frames/f1.png", "night")
    assert (only.num_tokens, only.bits, only.tower) == (36, 32, make.TOWER)
    assert only.asks == [shard.Ask("q1", "What?", "vqa", ["cat", "dog"], 0.5)]
    assert only.num_bytes == len(make.shard())


def test_float16_shard() -> None:
    """All of its values are exact in 16 bits."""
    (only,) = _shards("shard_v1_f16.shards")
    assert only.tokens.tolist() == [[1.5, -2.0, 0.0], [0.25, 8.0, -0.125]]
    assert only.tokens.dtype == np.float32
    assert only.asks == [shard.Ask("c", None, "caption", None, None)]


def test_int8_shard() -> None:
    """Codes 127, -1, 0 at scale 2 are 254, -2, 0; a row of scale 0 is all zero."""
    (only,) = _shards("shard_v1_i8.shards")
    assert only.tokens.tolist() == [[254.0, -2.0, 0.0], [0.0, 0.0, 0.0]]
    assert only.positions.tolist() == [0, 69999]


@pytest.mark.parametrize(
    "name", [name for name in make.valid() if name.startswith(("shard", "two_parts", "no_shards"))]
)
def test_the_writer_gives_the_golden_bytes_again(name: str) -> None:
    data = (VALID / name).read_bytes()
    out = BytesIO()
    shards = _shards(name)
    for part in [[one] for one in shards] or [[]]:  # a part for each shard, as in the files
        with shard.writer(out) as write:
            for one in part:
                write(one)
    assert out.getvalue() == data


def test_predictions() -> None:
    text = (VALID / "predictions_v1.predictions").read_text()
    first, second = predictions.read_predictions(text.splitlines())
    assert first.entropy == {"mean": 0.5, "sum": 1.0, "max": 0.75, "first": 0.25}
    assert (first.choice, first.choice_scores) == ("cat", [-0.5, -2.25])
    assert (second.answer, second.task, second.token_entropies) == ("a cat é", "caption", None)
    assert "".join(map(predictions.encode_line, (first, second))) == text


def test_adaptation() -> None:
    data = (VALID / "adaptation_v1.adaptation").read_bytes()
    found = adaptation.read_adaptation(BytesIO(data))
    assert (found.base, found.sequence, found.method, found.seed) == (make.BASE, 4, "akd", 7)
    assert found.report == {"loss": 0.25}
    assert found.overlay["a.weight"].tolist() == [[1, 2], [3, 4]]
    assert found.overlay["b.bias"].tolist() == [0.5, -0.5, 0]
    out = BytesIO()
    assert adaptation.write_adaptation(out, found) == len(data)
    assert out.getvalue() == data


def test_update() -> None:
    data = (VALID / "update_v1.update").read_bytes()
    found = update.read_update(BytesIO(data))
    assert found == update.Update(
        make.BASE, make.TARGET, 5, "nf4-mixed", [4, 0], 7, bytes(range(40))
    )
    out = BytesIO()
    assert update.write_update(out, found) == len(data)
    assert out.getvalue() == data


def test_device() -> None:
    found = device.Device.open(VALID / "device_v1")
    assert found.lora == device.Lora(rank=16, alpha=32.0, seed=0)
    assert (found.checkpoint, found.family, found.qformer_layers) == (
        "shipped:student",
        "blip-2",
        2,
    )
    assert (found.sequence, found.highest_sequence, found.previous) == (3, 3, None)
    assert found.read_overlay()["b.bias"].tolist() == [0.5, -0.5, 0]
