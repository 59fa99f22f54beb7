"""tests/golden: every valid file is read as what it says, every invalid one is refused."""

import json
import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli import streams
from cdcca_cli.downlink import signatures
from cdcca_cli.formats import (
    adaptation,
    codebook,
    device,
    device_state,
    labels,
    predictions,
    shard,
    shard_stream,
    trust,
    update,
)
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
    assert err.startswith("cdcca ") and err.count("\n") == 1 and len(err) < 400, err
    assert "a bug" not in err


@pytest.mark.parametrize("name", [n for n in make.valid() if not n.endswith("device.json")])
def test_valid_file_is_inspected(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(VALID / name)]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["digests"]
    if "bytes" in found and "zstd" not in name:
        assert found["bytes"].pop("total") == sum(found["bytes"].values())
        assert sum(found["bytes"].values()) == (VALID / name).stat().st_size


def _shards(name: str) -> list[shard.Shard]:
    return list(shard_stream.read_shards(BytesIO((VALID / name).read_bytes())))


def test_float32_shard() -> None:
    """The values are those that make.py packs with struct."""
    (only,) = _shards("shard_v1_f32.shards")
    assert only.tokens.tolist() == [[1.5, -2.0, 0.0], [0.25, 8.0, -0.125]]
    assert only.tokens.dtype == np.float32
    assert only.positions.tolist() == [4, 17] and only.positions.dtype == np.int32
    assert only.scores is not None and only.scores.tolist() == [0.5, 0.75]
    assert (only.frame, only.image, only.domain) == ("f1", "frames/f1.png", "night")
    assert (only.num_tokens, only.coding, only.tower) == (36, shard.Coding(), make.TOWER)
    assert only.questions == [shard.Question("q1", "What?", "vqa", ["cat", "dog"], 0.5)]
    assert (only.time, only.layout, only.picture, only.codes) == (None, shard.Layout(), None, None)


def test_float16_shard() -> None:
    """All of its values are exact in 16 bits."""
    (only,) = _shards("shard_v1_f16.shards")
    assert only.tokens.tolist() == [[1.5, -2.0, 0.0], [0.25, 8.0, -0.125]]
    assert only.tokens.dtype == np.float32
    assert only.questions == [shard.Question("c", None, "caption", None, None)]


def test_int8_shard() -> None:
    """Codes 127, -1, 0 at scale 2 are 254, -2, 0; a row of scale 0 is all zero."""
    (only,) = _shards("shard_v1_i8.shards")
    assert only.tokens.tolist() == [[254.0, -2.0, 0.0], [0.0, 0.0, 0.0]]
    assert only.positions.tolist() == [0, 69999]


def test_frames_of_version_2() -> None:
    """The values are those that make.py packs; bits 1010 0001 keep tokens 0 and 2, and token 3."""
    first, second = _shards("shards_v2_f32.shards")
    assert first.tokens.tolist() == [[1.5, -2.0], [0.0, 0.25]] and first.tokens.dtype == np.float32
    assert second.tokens.tolist() == [[8.0, -0.125]]
    assert (first.positions.tolist(), second.positions.tolist()) == ([0, 2], [3])
    assert first.positions.dtype == np.int32
    assert first.scores is not None and first.scores.tolist() == [0.5, 0.75]
    assert (first.frame, first.image, first.domain) == ("f1", "frames/f1.png", "night")
    assert (second.frame, second.image, second.domain) == ("f2", "f2.png", None)
    assert (first.time, second.time) == (None, 1700000000.5)
    assert (first.num_tokens, first.tower, first.coding) == (4, make.TOWER, shard.Coding())
    assert first.layout == second.layout == shard.Layout((2, 2), "<img>", (0,))
    assert first.questions == [
        shard.Question("q1", "What?", "vqa", ["cat", "chién"], 0.5),
        shard.Question("c1", None, "caption", None, None),
    ]
    assert second.questions == []


@pytest.mark.parametrize(("name", "codec"), [("f16", "float16"), ("i8", "int8")])
def test_other_codecs_of_version_2(name: str, codec: shard.Codec) -> None:
    """All values are exact in 16 bits; codes 127, -1 at scale 2 are 254, -2."""
    first, second = _shards(f"shards_v2_{name}.shards")
    assert first.coding == shard.Coding(codec) and first.scores is None
    if codec == "float16":
        assert first.tokens.tolist() == [[1.5, -2.0], [0.0, 0.25]]
        return
    assert first.tokens.tolist() == [[254, -2], [0, 0], [0, 0], [0, 0]]
    assert second.positions.tolist() == [0, 1, 2, 3]
    assert (first.image, second.time) == ("f1", None)


def test_codes_of_version_2() -> None:
    """Whole frames have a row each, others a row for each kept token."""
    found = _shards("shards_v2_klt.shards")
    assert {each.coding for each in found} == {shard.Coding("klt", make.BASE, 0.5)}
    codes = [each.codes.tolist() for each in found if each.codes is not None]
    assert codes == [[[300, -1, 0]], [[2, 0, 0]], [[1, 0], [-2, 0]], [[3, -1]]]
    assert [each.positions.tolist() for each in found] == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 2], [3]]
    assert not any(each.is_open for each in found)


def test_pictures_of_version_2() -> None:
    first, second = _shards("shards_v2_frame.shards")
    assert first.picture == shard.Picture(b"not a picture", "image/avif", (24, 16))
    assert second.picture == shard.Picture(b"RIFF", "image/webp", (1, 1))
    assert first.coding == shard.Coding("frame") and not first.is_open and first.scores is None


def test_parts_of_both_versions() -> None:
    assert [each.frame for each in _shards("shards_v1_and_v2.shards")] == ["f1", "f1", "f2", "f1"]
    assert len(_shards("shards_v2_mixed.shards")) == 6
    assert _shards("no_shards_v2.shards") == _shards("head_alone_v2.shards") == []


@pytest.mark.parametrize("name", [name for name in make.valid() if name.endswith(".shards")])
def test_what_was_read_can_be_written_again(name: str) -> None:
    with streams.binary_input(VALID / name) as source:
        found = list(shard_stream.read_shards(source))
    out = BytesIO()
    with shard_stream.writer(out) as write:
        for each in found:
            write(each)
    again = list(shard_stream.read_shards(BytesIO(out.getvalue())))
    for one, other in zip(found, again, strict=True):
        assert (one.questions, one.layout, one.picture) == (
            other.questions,
            other.layout,
            other.picture,
        )
        assert one.tokens.tolist() == other.tokens.tolist()


def test_predictions() -> None:
    text = (VALID / "predictions_v1.predictions").read_text()
    first, second = predictions.read_predictions(text.splitlines())
    assert first.entropy == {"mean": 0.5, "sum": 1.0, "max": 0.75, "first": 0.25}
    assert (first.choice, first.choice_scores) == ("cat", [-0.5, -2.25])
    assert (second.answer, second.task, second.token_entropies) == ("a cat é", "caption", None)
    assert "".join(map(predictions.encode_line, (first, second))) == text


def test_labels() -> None:
    """The values are those that make.py packs with struct; all but one are exact in 16 bits."""
    found = labels.open_labels(VALID / "lessons_v1.lessons")
    assert found.head == labels.Head(make.MODEL, make.BASE, "float32", 16)
    (key,) = found.places
    assert key == make.LABEL["key"] and found.has(key, logits=True)
    entry = found.read(key)
    assert (entry.answers, entry.nats, entry.inputs) == (["a cat é", ""], [0.25, 1.5], [0, 0])
    assert [rows.tolist() for rows in entry.queries] == [[[1.5, -2, 0], [0.25, 8, -0.125]]]
    assert [rows.tolist() for rows in entry.visual] == [[[70_000], [0.5]], [[-0.5], [3]]]
    assert entry.answer is not None and entry.logits is not None
    assert [rows.tolist() for rows in entry.answer] == [[[1], [2]], [[3]]]
    assert [rows.tolist() for rows in entry.logits] == [[[0, -1], [-2, 4]], [[0.5, 0.75]]]
    assert all(rows.dtype == np.float32 for rows in entry.visual + entry.queries)


def test_labels_of_8_bits() -> None:
    """Codes 127, -1, 0 at scale 2 are 254, -2, 0; -127 and 64 at 0.5 are -63.5 and 32."""
    found = labels.open_labels(VALID / "lessons_v1_i8.lessons")
    entry = found.read(make.LABEL_I8["key"])
    assert [rows.tolist() for rows in entry.queries] == [[[254, -2, 0], [0, 0, 0]]]
    assert [rows.tolist() for rows in entry.visual] == [[[-63.5, 32]]]
    assert (entry.answer, entry.logits) == (None, None)
    assert not found.has(make.LABEL_I8["key"], logits=True)


def test_labels_that_were_not_finished() -> None:
    found = labels.open_labels(VALID / "lessons_v1_unfinished.lessons")
    assert list(found.places) == [make.LABEL["key"]]
    assert found.end == len(make.labels_file(make.label_entry()))


@pytest.mark.parametrize("name", ["lessons_v1", "lessons_v1_i8", "lessons_v1_none"])
def test_the_writer_gives_the_golden_labels_again(name: str, tmp_path: Path) -> None:
    path = VALID / f"{name}.lessons"
    found = labels.open_labels(path)
    assert found.head is not None
    with labels.writing(tmp_path / "again", found.head) as again:
        for key in found.places:
            again.append(key, found.read(key))
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_adaptation() -> None:
    data = (VALID / "adaptation_v1.adaptation").read_bytes()
    found = adaptation.read_adaptation(BytesIO(data))
    assert (found.base, found.sequence, found.method, found.seed) == (make.BASE, 4, "akd", 7)
    assert found.report == {"loss": 0.25}
    assert found.overlay["a.weight"].tolist() == [[1, 2], [3, 4]]
    assert found.overlay["b.bias"].tolist() == [0.5, -0.5, 0]
    out = BytesIO()
    adaptation.write_adaptation(out, found)
    assert out.getvalue() == data


def test_update_of_version_1() -> None:
    data = (VALID / "update_v1.update").read_bytes()
    found = update.read_update(BytesIO(data))
    assert found == update.Update(
        make.BASE, make.TARGET, 5, "nf4-mixed", {"bits": [4, 0]}, 7, bytes(range(40)), version=1
    )
    assert (found.model, found.expires, found.signatures) == (None, None, ())
    out = BytesIO()
    assert update.write_update(out, found) == len(data)
    assert out.getvalue() == data


def test_update_of_version_2() -> None:
    """Signed outside the package, by the arithmetic of RFC 8032; the keys are the RFC's."""
    data = (VALID / "update_v2.update").read_bytes()
    found = update.read_update(BytesIO(data))
    assert replace(found, signatures=()) == update.Update(
        make.BASE,
        make.TARGET,
        5,
        "nf4-mixed",
        {"bits": [4, 0]},
        7,
        bytes(range(40)),
        model=make.MODEL,
        expires=4102444800,
    )
    assert [signature.key for signature in found.signatures] == sorted(make.KEYS)
    assert signatures.signers(found.signed_bytes(), found.signatures, make.KEYS) == (
        *sorted(make.KEYS),
    )
    out = BytesIO()
    assert update.write_update(out, found) == len(data)
    assert out.getvalue() == data


def test_trust_list() -> None:
    data = (VALID / "trust_v1.trust").read_bytes()
    found = trust.read_trust_list(BytesIO(data))
    assert found.trust == trust.Trust(3, 2, tuple(sorted(make.KEYS)))
    assert signatures.signers(found.signed_bytes(), found.signatures, make.KEYS) == found.trust.keys
    out = BytesIO()
    assert trust.write_trust_list(out, found) == len(data)
    assert out.getvalue() == data


def test_codebook() -> None:
    """Signed outside the package; the values are those that make.py packs with struct.

    sizes [[0.25, 1], [4, 1]] in descending order are places 2, 1, 3, 0; their components have a
    power of 16.0625 and 2.
    """
    data = (VALID / "codebook_v1.codebook").read_bytes()
    found = codebook.read_codebook(BytesIO(data))
    assert (found.tower, found.teacher) == (make.TOWER, make.MODEL)
    assert (found.num_tokens, found.channels, found.components) == (2, 3, 2)
    assert (found.num_frames, found.sequence) == (80, 3)
    assert found.curve.tokens[1] == codebook.TokenPoint(1.5, 0.5, 12, 0.25, 0.75)
    assert found.curve.frames == (codebook.PicturePoint("image/avif", 50, 12.5, -0.5, 1),)
    assert found.mean_NC.tolist() == [[0.5, 0, -64], [1, 0.5, 0]]
    assert found.forward_CK.tolist() == [[2, 0], [0, 2], [0, 0]]
    assert found.inverse_KC.tolist() == [[0.5, 0, 0], [0, 0.5, 0]]
    assert (found.order.tolist(), found.component_order.tolist()) == ([2, 1, 3, 0], [0, 1])
    assert signatures.signers(found.signed_bytes(), found.signatures, make.KEYS) == (
        *sorted(make.KEYS),
    )
    out = BytesIO()
    assert codebook.write_codebook(out, found) == len(data)
    assert out.getvalue() == data


def test_device_of_version_2() -> None:
    found = device.Device.open(VALID / "device_v2")
    assert (found.sequence, found.highest_sequence, found.as_json()["keep"]) == (3, 5, 2)
    assert [slot.sequence for slot in found.kept] == [2, 0]
    assert found.current.signed_by == tuple(sorted(make.KEYS))
    assert found.trust == trust.Trust(3, 2, tuple(sorted(make.KEYS)))
    assert found.model == make.MODEL
    written = json.loads((VALID / "device_v2/device.json").read_text())
    assert found.as_json() == written | {"version": 3, "codebook": None}
    assert found.read_kept(0)[1]["b.bias"].tolist() == [0.5, -0.5, 0]


def test_device_of_version_3() -> None:
    found = device.Device.open(VALID / "device_v3")
    assert found.as_json() == json.loads((VALID / "device_v3/device.json").read_text())
    book = found.codebook()
    assert book is not None and found.codebook_slot is not None
    assert found.codebook_slot.signed_by == tuple(sorted(make.KEYS))
    assert (book.digest, book.sequence) == (make.codebook_slot()["digest"], 3)
    assert found.codebook_of(book.digest).digest == book.digest


def test_device_of_version_4() -> None:
    found = device.Device.open(VALID / "device_v4")
    assert found.settings.groups == ("norm", "query", "lora.language")
    assert found.as_json() == json.loads((VALID / "device_v4/device.json").read_text())


def test_device_of_version_2_becomes_one_of_version_3(tmp_path: Path) -> None:
    shutil.copytree(VALID / "device_v2", tmp_path / "device")
    found = device.Device.open(tmp_path / "device")
    assert found.codebook_slot is None and found.codebook() is None
    found.rollback()
    written = json.loads((tmp_path / "device/device.json").read_text())
    assert (written["version"], written["codebook"]) == (3, None)


def test_device_of_version_1_becomes_one_of_version_3(tmp_path: Path) -> None:
    shutil.copytree(VALID / "device_v1", tmp_path / "device")
    found = device.Device.open(tmp_path / "device")
    assert (found.model, found.trust, found.kept) == (None, None, ())
    assert found.as_json()["keep"] == 1
    found.install(found.read_overlay(), 4)
    written = json.loads((tmp_path / "device/device.json").read_text())
    assert written["version"] == 3 and [slot["sequence"] for slot in written["kept"]] == [3]
    assert written.keys() == json.loads(make.device_3()).keys()


def test_device() -> None:
    found = device.Device.open(VALID / "device_v1")
    assert found.lora == device_state.Lora(rank=16, alpha=32.0, seed=0)
    assert (found.settings.checkpoint, found.settings.family, found.settings.qformer_layers) == (
        "shipped:student",
        "blip-2",
        2,
    )
    assert (found.sequence, found.highest_sequence, found.kept) == (3, 3, ())
    assert found.read_overlay()["b.bias"].tolist() == [0.5, -0.5, 0]
