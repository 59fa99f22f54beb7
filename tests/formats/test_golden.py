"""tests/golden: every valid file is read as what it says, every invalid one is refused."""

import json
import shutil
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdcca_cli import streams
from cdcca_cli.downlink import signatures
from cdcca_cli.formats import (
    adaptation,
    codebook,
    device,
    device_state,
    label_stream,
    labels,
    places,
    predictions,
    records,
    shard,
    shard_stream,
    trust,
    update,
)
from cdcca_cli.formats.label_stream import Labels, ShardKey
from cdcca_cli.formats.label_tops import LOWEST
from cdcca_cli.formats.labels import Entry, Label, Source
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


def test_places_of_version_2() -> None:
    """The middle half in thirds: 1/4, 5/12, 7/12, 3/4; a quarter above and below the picture."""
    first, _ = _shards("shards_v2_places.shards")
    assert first.layout == shard.Layout((1, 3), "<img>", (0,), (0, 250, 1, 3, 250, 0, 500, 1500))
    boxes_N4 = places.of_tokens(first.layout, first.num_tokens)
    assert boxes_N4 is not None and np.isnan(boxes_N4[0]).all()
    across = [1 / 4, 5 / 12, 7 / 12, 3 / 4]
    expected = [[*ends, -0.25, 1.25] for ends in pairwise(across)]
    np.testing.assert_allclose(boxes_N4[1:][:, [0, 2, 1, 3]], expected)


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


def _labels(name: str) -> Labels:
    return Labels([((VALID / name).open("rb"), name)])


def _lesson(name: str, lesson: dict[str, Any], num_questions: int) -> list[Label]:
    """The labels of an old entry, found by its key."""
    found = _labels(name)
    questions = tuple(f"sha256:{number:064x}" for number in range(num_questions))
    key = ShardKey(make.TARGET, questions, lambda: lesson["key"])
    read = [found.read(key, place) for place in range(num_questions)]
    assert all(one is not None for one in read)
    return [one[0] for one in read if one is not None]


def _entries(name: str) -> list[Entry]:
    data = BytesIO((VALID / name).read_bytes())
    found = []
    while (record := records.read_record(data, kinds=label_stream.KINDS)) is not None:
        found.append(labels.decode(record, name))
    return found


def lists(*rows: np.ndarray | None) -> list[Any]:
    assert all(part is None or part.dtype == np.float32 for part in rows)
    return [None if part is None else part.tolist() for part in rows]


def test_lessons() -> None:
    """The values are those that make.py packs with struct; all but one are exact in 16 bits.

    Logits 0 and -1 are log-probabilities of -log(1 + e^-1) = -0.3132617 and that less 1.
    """
    found = _labels("lessons_v1.lessons")
    assert found.sources == [Source(make.MODEL, make.BASE, "float32")] and len(found) == 1
    first, second = _lesson("lessons_v1.lessons", make.LESSON, 2)
    assert [(one.answer, one.nats, one.end, one.scores) for one in (first, second)] == [
        ("a cat é", 0.25, None, None),
        ("", 1.5, None, None),
    ]
    assert first.queries is second.queries
    assert lists(first.queries) == [[[1.5, -2, 0], [0.25, 8, -0.125]]]
    assert lists(first.visual, second.visual) == [[[70_000], [0.5]], [[-0.5], [3]]]
    assert lists(first.answer_rows, second.answer_rows) == [[[1], [2]], [[3]]]
    assert first.kept is None and first.top is not None and second.top is not None
    assert first.top.ids_AK is not None and second.top.ids_AK is not None
    assert first.top.ids_AK.tolist() == [[0, 1], [1, 0]] and second.top.ids_AK.tolist() == [[1, 0]]
    np.testing.assert_allclose(first.top.logp_AK[0], [-0.3132617, -1.3132617], rtol=1e-6)
    assert first.top.rest_A.tolist() == [LOWEST] * 2  # there is no third token


def test_lessons_of_8_bits() -> None:
    """Codes 127, -1, 0 at scale 2 are 254, -2, 0; -127 and 64 at 0.5 are -63.5 and 32."""
    for name in ("lessons_v1_i8.lessons", "two_heads_v1.lessons"):
        (label,) = _lesson(name, make.LESSON_I8, 1)
        assert lists(label.queries, label.visual) == [[[254, -2, 0], [0, 0, 0]], [[-63.5, 32]]]
        assert (label.answer_rows, label.top) == (None, None)


def test_lessons_of_some_rows() -> None:
    """The rows of version 1, with the numbers that make.py gives them."""
    first, second = _lesson("lesson_v2.lessons", make.LESSON, 2)
    assert lists(first.visual, second.visual) == [[[70_000], [0.5]], [[-0.5], [3]]]
    assert _kept(first) == {"queries": ([0, 7], 9), "visual": ([0, 7], 9)}
    assert _kept(second) == {"queries": ([0, 7], 9), "visual": ([3, 8], 9)}


def _kept(label: Label) -> dict[str, tuple[list[int], int]]:
    assert label.kept is not None
    return {name: (kept.rows_L.tolist(), kept.count) for name, kept in label.kept.items()}


def test_lessons_that_were_not_finished() -> None:
    found = _labels("lessons_v1_unfinished.lessons")
    assert len(found) == 1 and found.ends == [len(make.lessons_file(make.lesson()))]
    assert len(_labels("lessons_v1_none.lessons")) == 0


def test_labels() -> None:
    """The values are those that make.py packs with struct."""
    (entry,) = _entries("label_v1.labels")
    assert (entry.frame, entry.payload) == ("f1", make.LABEL["payload"])
    assert entry.source == Source(make.MODEL, make.BASE, "bfloat16")
    assert list(entry.labels) == make.LABEL["questions"]
    first, second = entry.labels.values()
    assert [(one.answer, one.nats, one.end, one.scores) for one in (first, second)] == [
        ("a cat é", 0.25, "choice", [-0.5, -2.25]),
        ("", None, None, None),
    ]
    assert first.queries is second.queries
    assert lists(first.queries) == [[[1.5, -2, 0], [0.25, 8, -0.125]]]
    assert lists(first.visual, second.visual) == [[[70_000], [0.5]], [[-0.5], [3]]]
    assert lists(first.answer_rows, second.answer_rows) == [[[1], [2]], [[3]]]
    assert first.top is not None and first.top.ids_AK is not None and second.top is None
    assert lists(first.top.logp_AK) == [[[-0.25, -2, -4], [-0.5, -1.5, -65504]]]
    assert first.top.ids_AK.tolist() == [[5, 0, 50271], [7, 9, -1]]
    assert lists(first.top.rest_A) == [[-3, -65504]] and first.top.pieces_AK is None
    assert (first.missing, second.missing) == (set(), {"nats", "top"})


def test_labels_of_pieces() -> None:
    (entry,) = _entries("label_v1_pieces.labels")
    assert entry.source == Source("https://host/v1#m")
    (label,) = entry.labels.values()
    assert (label.answer, label.nats, label.end) == ("é!", 0.5, "length")
    assert label.top is not None and label.top.ids_AK is None
    assert label.top.pieces_AK == [["é".encode(), b""], [b"!", b" ok"]]
    assert lists(label.top.logp_AK) == [[[-0.25, -65504], [-0.5, -1]]]
    assert label.missing == {"queries", "visual", "answer"}


def test_labels_of_texts_of_8_bits_and_of_some_rows() -> None:
    """8 bits: as of lessons."""
    ((label,),) = (entry.labels.values() for entry in _entries("label_v1_text.labels"))
    assert label.missing == {"nats", "top", "queries", "visual", "answer"}
    ((label,),) = (entry.labels.values() for entry in _entries("label_v1_i8.labels"))
    assert lists(label.queries, label.visual) == [[[254, -2, 0], [0, 0, 0]], [[-63.5, 32]]]
    ((first, second),) = (entry.labels.values() for entry in _entries("label_v1_kept.labels"))
    assert lists(first.visual, second.visual) == [[[70_000], [0.5]], [[-0.5], [3]]]
    assert _kept(first) == {"queries": ([0, 7], 9), "visual": ([0, 7], 9)}
    assert _kept(second) == {"queries": ([0, 7], 9), "visual": ([3, 8], 9)}


def test_lessons_and_labels_in_one_file() -> None:
    """Two of the labels have one key in the index: 0c ^ 1b = 0d ^ 1a."""
    name = "lessons_and_label.labels"
    found = _labels(name)
    assert [source.name for source in found.sources] == [
        make.MODEL,
        make.MODEL,
        "https://host/v1#m",
    ]
    assert len(_lesson(name, make.LESSON, 2)) == 2
    for made in (make.LABEL, make.LABEL_I8):
        questions = tuple(made["questions"])
        for place, answer in enumerate(made["answers"]):
            read = found.read(ShardKey(made["payload"], questions, lambda: make.TARGET), place)
            assert read is not None and read[0].answer == answer


@pytest.mark.parametrize(
    ("name", "bits"), [("", 16), ("_text", 32), ("_pieces", 8), ("_i8", 8), ("_kept", 16)]
)
def test_the_writer_gives_the_golden_labels_again(name: str, bits: int) -> None:
    found = _entries(f"label_v1{name}.labels")
    again = b"".join(labels.encode(entry, bits) for entry in found)
    assert again == (VALID / f"label_v1{name}.labels").read_bytes()


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
