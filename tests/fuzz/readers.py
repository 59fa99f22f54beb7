"""Every kind of file that cdcca reads: valid samples, how they are changed, and how they are read.

Other rooms are imported where they are called.
"""

import base64
import io
import json
import os
import random
import shutil
import struct
import tomllib
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from cdcca_cli.errors import BadData, UsageError
from cdcca_cli.formats import adaptation, codebook, device, labels, predictions, shard_stream
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.kind import describe
from cdcca_cli.formats.label_stream import Labels, ShardKey
from cdcca_cli.inspection.look import look
from tests.fuzz import mutations
from tests.fuzz.mutations import Pairs, RecordParts
from tests.golden import make

Random = random.Random


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    change: a case, from a source of randomness. read: what a command does with it, in a folder of
    its own; its result does not matter. share: of all cases.
    """

    name: str
    change: Callable[[Random], Any]
    read: Callable[[Any, Path], object]
    share: float = 1.0


def _writable(value: object) -> None:
    """UnicodeEncodeError if a text in what was read cannot be written again."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _writable(key)
            _writable(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _writable(inner)
    elif is_dataclass(value):
        for each in fields(value):
            _writable(getattr(value, each.name))


def _written(folder: Path, data: bytes, name: str = "case") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# ---------------------------------------------------------------- records

JUNK = b"PK\x03\x04" + bytes(40)
SHARDS = [
    make.shard() + make.end(1),
    make.record(make.SHARD_F16, make.TENSORS_F16) + make.shard() + make.end(2),
    make.record(make.SHARD_I8, make.TENSORS_I8) + make.end(1) + make.shard() + make.end(1),
]
SHARDS_2 = [
    *(make.part_2(make.frames()), make.part_2(make.frames_f16()), make.part_2(make.frames_i8())),
    *(make.part_2(make.frames_klt_whole()), make.part_2(make.frames_klt_kept())),
    make.part_2(make.frames_pictures()),
    make.part_2(make.frames_i8(), make.frames_pictures(), make.frames_klt_kept(), make.frames()),
    make.part_2(make.frames()) + SHARDS[0] + make.part_2(make.frames_i8()),
]
LESSONS = [
    make.lessons_file(make.lesson(), make.lesson_i8()),
    make.lessons_file(make.lesson({"key": "sha256:" + "0b" * 32}), make.lesson_2(), bits=32),
]
LABELS = [
    *(make.label(), make.label_kept(), make.label_i8() + make.label_text(), make.label_pieces()),
    make.label() + make.label_pieces({"payload": make.TARGET}) + make.label_kept(),
    LESSONS[0] + make.label() + LESSONS[1] + make.label_i8(),
]
ADAPTATIONS = [make.adaptation(), make.adaptation_2(), make.adaptation_3()]


def _with_new_sum(parts: RecordParts) -> None:
    """Put a label's digest of its own content right, where it has one."""
    if parts.get("kind") not in ("label", "lesson") or not isinstance(parts.header, Pairs):
        return
    rest = Pairs(pair for pair in parts.header if pair[0] != "sum")
    said = np.frombuffer(mutations.canonical(rest).encode("utf-8", "surrogatepass"), np.uint8)
    if (found := _digest(parts, said)) is not None:
        parts.put("sum", found)


def _digest(parts: RecordParts, said: np.ndarray) -> str | None:
    """The digest of a record's tensors and header; None if they have none."""
    dtypes = {"F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1", "I32": "<i4", "I64": "<i8"}
    try:
        tensors = {
            name: np.frombuffer(data, dtypes.get(dtype, "<u2")).reshape(shape)
            for name, dtype, shape, data in parts.tensors
        }
        return overlay_digest({**tensors, "header": said})
    except (ValueError, TypeError, UnicodeEncodeError):
        return None


def _with_frames_sum() -> Callable[[RecordParts], None]:
    """Puts the sums of `frames` right, record after record: they hold the head's tower."""
    tower: list[Any] = [make.TOWER]

    def repair(parts: RecordParts) -> None:
        if not isinstance(parts.header, Pairs):
            return
        if parts.get("kind") == "shards":
            tower[0] = parts.get("tower")
        if parts.get("kind") != "frames":
            return
        rest = Pairs(pair for pair in parts.header if pair[0] not in ("sum", "tower"))
        text = mutations.canonical(Pairs([*rest, ("tower", tower[0])]))
        said = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
        if (found := _digest(parts, said)) is not None:
            parts.put("sum", found)

    return repair


def _change_shards(rng: Random) -> bytes:
    """Either version; of version 2 also what is inside the zstd of a record."""
    if rng.random() < 0.25:
        return mutations.mutate_records(rng, rng.choice(SHARDS), other=LABELS[0])
    data, inside = rng.choice(SHARDS_2), rng.random()
    if inside < 0.7:
        data = _with_other_content(rng, data)
    if inside > 0.55:
        # What was changed once may be no JSON that can be taken apart again.
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            data = mutations.mutate_records(rng, data, _with_frames_sum(), LABELS[0])
    return data


def _with_other_content(rng: Random, data: bytes) -> bytes:
    """Index, codes or pictures of a record of frames changed; mostly with size and sum right."""
    records = mutations.split_records(data)
    parts = rng.choice([one for one in records if one.get("kind") == "frames"])
    tensors = {name: (dtype, shape, content) for name, dtype, shape, content in parts.tensors}
    payload = next((one for one in ("codes", "pictures") if one in tensors), "index")
    name = payload if rng.random() < 0.3 else "index"
    form = tensors[name][2][:1] if name == "codes" else b""  # of `numerics.columns`
    content = zstandard.ZstdDecompressor().decompress(tensors[name][2][len(form) :])
    if name != "index":
        content = mutations.mutate_bytes(rng, content)
    elif rng.random() < 0.9:
        text = mutations.dump(mutations.mutate_json(rng, mutations.load(content)))
        content = text.encode("utf-8", "surrogatepass")
    else:
        content = mutations.mutate_bytes(rng, content)
    in_zstd = form + zstandard.ZstdCompressor(level=1).compress(content)
    if rng.random() < 0.05:
        in_zstd = mutations.mutate_bytes(rng, in_zstd)
    tensors[name] = ("U8", [len(in_zstd)], in_zstd)
    parts.tensors = [(key, *tensor) for key, tensor in tensors.items()]
    sizes = parts.get("sizes")
    if rng.random() < 0.9:
        sizes = Pairs((key, len(content) if key == name else size) for key, size in sizes)
    else:
        sizes = mutations.mutate_json(rng, sizes)
    parts.put("sizes", sizes)
    if rng.random() < 0.1:  # a number of frames or columns that fits another index
        key = rng.choice(("count", "columns", "codec", "step"))
        parts.put(key, mutations.mutate_json(rng, parts.get(key)))
    if rng.random() < 0.95:
        repair = _with_frames_sum()
        for one in records:
            repair(one)
    return b"".join(map(mutations.join_record, records))


def _read_shards(data: bytes, folder: Path) -> None:
    try:
        for each in shard_stream.read_shards(io.BytesIO(data)):
            ShardKey.of(each)
            _writable(each)
            shard_stream.encoded_bytes([each])
    finally:
        look(str(_written(folder, data)))


def _change_labels(rng: Random) -> bytes:
    samples = LESSONS if rng.random() < 0.2 else LABELS
    return mutations.mutate_records(rng, rng.choice(samples), _with_new_sum, SHARDS[0])


_LABEL_KEYS = [
    ShardKey(str(made["payload"]), tuple(make.LABEL["questions"]), partial(str, lesson))  # type: ignore[arg-type]
    for made in (make.LABEL, make.LABEL_I8)
    for lesson in ("sha256:" + "0a" * 32, "sha256:" + "0b" * 32)
]


def _read_labels(data: bytes, folder: Path) -> None:
    """As `distill` and `label` do: bad records left out; then strictly. All can be written."""
    path = _written(folder, data)
    try:
        for verify in (False, True):
            refused: list[BadData] = []
            found = Labels([(io.BytesIO(data), "it")], refused=refused.append, verify=verify)
            _read_known(found)
        _read_known(Labels([(io.BytesIO(data), "it")]))
    finally:
        look(str(path))


def _read_known(found: Labels) -> None:
    for key in _LABEL_KEYS:
        for place in range(2):
            if (read := found.read(key, place)) is None:
                continue
            _writable(read)
            label, source = read
            entry = labels.Entry("f", key.payload, source, {key.questions[place]: label})
            labels.encode(entry, 16)


def _change_adaptation(rng: Random) -> bytes:
    data = rng.choice(ADAPTATIONS)
    if rng.random() < 0.2:  # the answers: JSON inside a tensor
        answers = rng.choice(('[["chat é"]]', "[[]]"))
        text = mutations.dump(mutations.mutate_json(rng, mutations.load(answers)))
        return make.adaptation_3(text.encode("ascii", "ignore").decode())
    return mutations.mutate_records(rng, data, other=SHARDS[0])


def _read_adaptation(data: bytes, folder: Path) -> None:
    try:
        found = adaptation.read_adaptation(io.BytesIO(data))
        _writable(found)
        adaptation.write_adaptation(io.BytesIO(), found)
    finally:
        look(str(_written(folder, data)))


def _with_new_tensors(parts: RecordParts) -> None:
    """Put a codebook's digest of its tensors right."""
    signed = parts.get("signed")
    dtypes = {"F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1", "I32": "<i4", "I64": "<i8"}
    if not isinstance(signed, Pairs):
        return
    try:
        tensors = {
            name: np.frombuffer(data, dtypes.get(dtype, "<u2")).reshape(shape)
            for name, dtype, shape, data in parts.tensors
        }
        right = overlay_digest(tensors)
    except (ValueError, TypeError, UnicodeEncodeError):
        return
    for index, (key, _) in enumerate(signed):
        if key == "tensors":
            signed[index] = (key, right)


@cache
def _codebooks() -> list[bytes]:
    """One of another vision tower, and one that both devices take."""
    from tests.downlink import changes

    return [make.codebook(), changes.codebook_file(1, 0)]


def _read_codebook(data: bytes, folder: Path) -> None:
    try:
        found = codebook.read_codebook(io.BytesIO(data))
        assert np.isfinite(found.forward_CK).all() and np.isfinite(found.mean_NC).all()
        codebook.write_codebook(io.BytesIO(), found)
        _writable(found.curve)
    finally:
        _receive(data, folder)


# ---------------------------------------------------------------- the downlink


@cache
def _devices(folder: Path) -> list[Path]:
    """One that trusts a key, and one that trusts none."""
    from tests.downlink import forged

    return [
        forged.device(folder / f"device-{trusts}", trusts=trusts).path for trusts in (True, False)
    ]


@cache
def _updates() -> list[bytes]:
    from tests.downlink import forged

    files = [forged.sealed(forged.made(codec)) for codec in forged.CODECS]
    return [*files, forged.unsigned(forged.made("exact")), make.update(), make.update_2()]


@cache
def _trust_lists() -> list[bytes]:
    from tests.downlink import changes

    return [changes.trust_file(changes.trust(0, 1, version=2), 0, 1), make.trust()]


def _with_new_hash(parts: RecordParts) -> None:
    """Put the payload's length and hash right, and sort the signatures."""
    import hashlib

    signed = parts.get("signed")
    payload = next((data for name, *_, data in parts.tensors if name == "payload"), None)
    if not isinstance(signed, Pairs) or payload is None:
        return
    right = {"payload_bytes": len(payload), "payload_sha256": hashlib.sha256(payload).hexdigest()}
    for index, (key, _) in enumerate(signed):
        if key in right:
            signed[index] = (key, right[key])


def _change_signed(
    samples: Callable[[], list[bytes]], repair: Callable[[RecordParts], None] = _with_new_hash
) -> Callable[[Random], bytes]:
    """Signed again with the key that the device trusts, most of the times."""

    def change(rng: Random) -> bytes:
        from tests.downlink import forged

        data = mutations.mutate_records(rng, rng.choice(samples()), repair, SHARDS[0])
        if rng.random() < 0.7:
            try:
                return forged.resigned(data)
            except ValueError:  # no signature in it
                return data
        return data

    return change


def _receive(data: bytes, folder: Path) -> None:
    """What `cdcca inspect` and `cdcca apply` do with a file, on both devices."""
    from cdcca_cli.downlink import receiver

    trusting, other = (device.Device.open(path) for path in _devices(folder))
    try:
        look(str(_written(folder, data)))
    finally:
        try:
            receiver.receive(
                other, io.BytesIO(data), where="case", dry_run=True, unsigned=True, clock=_noon
            )
        finally:
            receiver.receive(trusting, io.BytesIO(data), where="case", dry_run=True, clock=_noon)


def _noon() -> float:
    return 1.8e9


# ---------------------------------------------------------------- device folders


def _change_device(rng: Random) -> tuple[bytes, bytes, bytes, str]:
    """device.json, the overlay's file, the codebook's, and an oddity of the folder."""
    text = rng.choice((make.device(), make.device_2(), make.device_3()))
    data, codebook_file = make.overlay_file(), make.codebook()
    oddity = ""
    pick = rng.random()
    if rng.random() < 0.1:
        text = make.device_3()
        codebook_file = mutations.mutate_records(rng, codebook_file, _with_new_tensors)
    elif pick < 0.7:
        text = mutations.mutate_json_file(rng, text)
    elif pick < 0.95:
        data = mutations.mutate_records(rng, data, other=SHARDS[0])
    else:
        oddity = rng.choice(
            (
                *("json a folder", "json a loop", "no overlay", "overlay a folder"),
                *("overlay a loop", "codebooks a file", "no codebook", "codebook a folder"),
            )
        )
    return text, data, codebook_file, oddity


def _read_device(case: tuple[bytes, bytes, bytes, str], folder: Path) -> None:
    text, data, codebook_file, oddity = case
    path = folder / "device"
    shutil.rmtree(path, ignore_errors=True)
    (path / "overlay").mkdir(parents=True)
    digest = make.overlay_digest(make.OVERLAY)[7:23]
    for sequence in (0, 2, 3):
        overlay = path / "overlay" / f"{sequence}-{digest}.safetensors"
        whole = data if sequence == 3 else make.overlay_file(sequence)
        if not oddity.startswith(("no overlay", "overlay")):
            overlay.write_bytes(whole)
        elif oddity == "overlay a folder":
            overlay.mkdir()
        elif oddity == "overlay a loop":
            overlay.symlink_to(overlay)
    if oddity == "codebooks a file":
        (path / "codebooks").touch()
    elif oddity == "codebook a folder":
        (path / make.codebook_slot()["file"]).mkdir(parents=True)
    elif oddity != "no codebook":
        (path / "codebooks").mkdir()
        (path / make.codebook_slot()["file"]).write_bytes(codebook_file)
    if oddity == "json a folder":
        (path / "device.json").mkdir()
    elif oddity == "json a loop":
        (path / "device.json").symlink_to("device.json")
    else:
        (path / "device.json").write_bytes(text)
    try:
        found = device.Device.open(path)
        found.as_json()
        found.summary()
        found.codebook()
        found.read_overlay()
        found.codebook_of(make.codebook_slot()["digest"])
    finally:
        look(str(path))


# ---------------------------------------------------------------- other tools' files

_WEIGHTS = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b.bias": {"dtype": "BF16", "shape": [3], "data_offsets": [24, 30]},
    "c": {"dtype": "I64", "shape": [0, 4], "data_offsets": [30, 30]},
}


def _change_weights(rng: Random) -> bytes:
    table = mutations.load(json.dumps(_WEIGHTS))
    text = mutations.dump(mutations.mutate_json(rng, table)).encode()
    length = len(text) if rng.random() < 0.9 else rng.choice((0, 1, 2**20, 2**27, 2**63))
    data = struct.pack("<Q", length) + text + bytes(30)
    return data if rng.random() < 0.9 else mutations.mutate_bytes(rng, data)


def _look(data: bytes, folder: Path) -> None:
    path = _written(folder, data)
    with open(path, "rb") as source:
        describe(source.read(1 << 20))
    json.dumps(look(str(path)).as_json(), allow_nan=False)


_CONFIG = json.dumps(
    {"model_type": "llava", "architectures": ["A"], "text_config": {"n": 1}, "eps": 1e-5}
).encode()


def _read_checkpoint(text: bytes, folder: Path) -> None:
    path = folder / "checkpoint"
    path.mkdir(exist_ok=True)
    (path / "config.json").write_bytes(text)
    json.dumps(look(str(path)).as_json(), allow_nan=False)


_PREDICTIONS = make.prediction() + (make.dumps(make.CAPTION) + "\n").encode()


def _change_predictions(rng: Random) -> bytes:
    return mutations.mutate_lines(rng, _PREDICTIONS)


def _read_predictions(data: bytes, folder: Path) -> None:
    from cdcca_cli import streams

    path = _written(folder, data)
    try:
        with streams.text_input(path) as lines:
            for found in predictions.read_predictions(lines):
                predictions.encode_line(found)
    finally:
        _look(data, folder)


_MANIFEST = b"".join(
    json.dumps(line).encode() + b"\n"
    for line in (
        {"id": "q1", "image": "a.jpg", "prompt": "What?", "answers": ["a", "b"], "domain": "n"},
        {"id": "q2", "image": "a.jpg", "prompt": "Which?", "choices": ["a", "b"], "domain": "n"}
        | {"correct_choice_idx": 1, "kind": "object", "task": "vqa"},
        {"id": "c", "image": "b.jpg", "captions": ["A cat."], "difficult_direct_answer": False},
    )
)
_ANNOTATIONS = [
    json.dumps(value).encode()
    for value in (
        [
            {"question_id": "22", "image_id": 299207, "question": "What?", "split": "val"}
            | {"choices": ["cat", "dog"], "correct_choice_idx": 1, "direct_answers": ["cat"] * 3}
            | {"difficult_direct_answer": "False", "rationales": ["x"]}
        ],
        {
            "questions": [{"question_id": 1, "image_id": 2, "question": "What?"}],
            "annotations": [
                {"question_id": 1, "image_id": 2, "answers": [{"answer": "a"}] * 3}
                | {"answer_type": "other", "question_type": "one"}
            ],
            "question_types": {"one": "Vehicles"},
        },
        {
            "images": [{"id": 1, "file_name": "1.jpg", "domain": "near-domain"}, {"id": 2}],
            "annotations": [{"image_id": 1, "id": 5, "caption": "A cat."}],
            "info": {"year": 2014},
        },
        [{"image_id": 1, "file": "1.jpg", "captions": ["A cat.", "A dog."]}],
    )
]


def _read_references(data: bytes, folder: Path) -> None:
    from cdcca_cli.datasets import read_frames, read_references

    path = _written(folder, data, "case.json")
    for name in ("a.jpg", "b.jpg", "1.jpg", "2.jpg", "000000299207.jpg", "000000000002.jpg"):
        if not (folder / name).exists():
            (folder / name).touch()
    refused = None
    for read in (read_references, read_frames, _look_at):
        try:
            found = read(path)
            _writable(found if isinstance(found, Mapping) else list(found))
        except BadData as error:
            refused = error
    if refused is not None:
        raise refused


def _look_at(path: Path) -> str:
    return json.dumps(look(str(path)).as_json(), allow_nan=False)


_ANSWERS = [
    b'{"22": {"multiple_choice": "cat", "direct_answer": "dog"}, "23": {"direct_answer": "a"}}',
    b'{"22": "cat", "23": "dog"}',
    b'[{"question_id": 22, "answer": "cat"}, {"question_id": "23", "answer": "dog"}]',
    b'[{"image_id": 22, "caption": "A cat."}]',
    b'{"question_id": 22, "answer": "cat"}\n{"question_id": 23, "answer": "dog"}\n',
    b'question_id,answer\n22,cat\n23,"a, b"\n',
    b"question_id,multiple_choice,direct_answer\n22,cat,dog\n",
    _PREDICTIONS,
]


def _change_answers(rng: Random) -> bytes:
    data = rng.choice(_ANSWERS)
    if data.startswith(b"question_id") or rng.random() < 0.1:
        return mutations.mutate_text(rng, data)
    if b"}\n" in data:
        return mutations.mutate_lines(rng, data)
    return mutations.mutate_json_file(rng, data)


def _read_answers(data: bytes, folder: Path) -> None:
    from cdcca_cli.scoring.answers import read_answers

    _writable(read_answers([str(_written(folder, data))]))


# ---------------------------------------------------------------- settings, keys, state


@cache
def _key_files() -> tuple[bytes, bytes]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(make.SEEDS[0])
    openssh = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, *openssh)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return private, public + b" someone@somewhere\n"


def _change_key(rng: Random) -> bytes:
    private, public = _key_files()
    if rng.random() < 0.5:
        return mutations.mutate_text(rng, public)
    if rng.random() < 0.5:
        return mutations.mutate_text(rng, private)
    first, *middle, last = private.strip().split(b"\n")
    blob = mutations.mutate_bytes(rng, base64.b64decode(b"".join(middle)))
    return b"\n".join((first, base64.b64encode(blob), last, b""))


def _read_key(data: bytes, folder: Path) -> None:
    from cdcca_cli.downlink import keys

    path = _written(folder, data)
    path.chmod(0o600)
    try:
        keys.read_private_keys([path])
    finally:
        keys.read_public_key(path)


_SEEN = json.dumps(
    {
        "frames": {"a.jpg": "0123456789abcdef", "b.jpg": "00"},
        "kind": "seen",
        "running": {
            "rule": "entropy mean",
            "tasks": {"vqa": {"excess": 0.01, "weights": [0.5, 2.0] * 128}},
        },
        "sent": [{"picture": base64.b64encode(bytes(256)).decode(), "questions": ["0123"]}],
        "version": 2,
    }
).encode()


@cache
def _profile() -> bytes:
    """What a device without torch knows of its model."""
    from cdcca_cli.formats import profile
    from cdcca_cli.formats.shard import Layout

    sample = profile.Sample((2, 3), np.ones((1, 3), np.float32))
    shape = profile.LanguageShape("llama", 1, 4, 2, 1, 2, None, 9, 1e-5, 1e4)
    made = profile.Profile(
        model=make.TARGET,
        tower=make.TARGET,
        language=shape,
        norms={"norm.weight": (1.0, 1.5)},
        samples={"layers.0.q_proj": sample},
        has_class_token=False,
        prompts={"vqa": "{picture}Q: {prompt} A:", "caption": "{prompt}"},
        said={"vqa": "{prompt}", "caption": "{prompt}"},
        caption_prompt="a photo of",
        begin=(1,),
        end=(2, 3),
        suppressed=(4,),
        stub=("Answer:", " "),
        special=("<s>",),
        picture=profile.PictureRule(True, 8, (6, 6), 3),
        layout=Layout((1, 2), "<a>{2}", (1,)),
        num_tokens=2,
    )
    return json.dumps(made.as_json()).encode()


def _read_profile(data: bytes, folder: Path) -> None:
    from cdcca_cli.formats import profile

    _written(folder, data, profile.FILE_NAME)
    found = profile.read_profile(folder)
    _writable(found)
    json.dumps(found.as_json(), allow_nan=False)


@cache
def _probe() -> bytes:
    """What an effect check compares with."""
    from cdcca_cli.formats.probe import STATES, Likeliest, Probe, Question

    likeliest = dict.fromkeys(STATES, Likeliest((5, 7), (-0.5, -1.5)))
    nats = dict.fromkeys(STATES, 1.25)
    asked = [
        Question("Q: what? A:", (1, 5), None, likeliest, (7, 2), nats),
        Question("{picture}Q: what? A:", None, (3, 8, 8), likeliest, (7,), nats),
    ]
    made = Probe(make.TARGET, make.TARGET, make.TARGET, (2,), tuple(asked))
    return json.dumps(made.as_json()).encode()


def _read_probe(data: bytes, folder: Path) -> None:
    from cdcca_cli.formats.probe import read_probe

    found = read_probe(_written(folder, data, "probe.json"))
    _writable(found)
    json.dumps(found.as_json(), allow_nan=False)


_EXPORT = json.dumps(
    {
        "kind": "export",
        "version": 1,
        "to": "gguf",
        "device": {
            "model": None,
            "overlay": make.TARGET,
            "sequence": 1,
            "groups": ["norm"],
            "alpha": 8.0,
            "rank": 4,
        },
        "files": {"adapter.gguf": {"bytes": 3, "sha256": make.TARGET}},
        "inputs": {"base": {"path": "base.gguf", "sha256": make.TARGET}},
        "placed": {"norm": 3},
        "dropped": {"bias": {"tensors": ["a.bias"], "share": 0.5}},
        "unchecked": ["blocks"],
        "probe": None,
        "command": ["llama-server", "-m", "base.gguf"],
    }
).encode()


def _read_export(data: bytes, folder: Path) -> None:
    """As `inspect`, a second `export` and `infer` with an export do."""
    from cdcca_cli.export import targets
    from cdcca_cli.export.settings import ExportSettings
    from cdcca_cli.formats.export_record import read_record

    out = folder / "export"
    out.mkdir(exist_ok=True)
    (out / "adapter.gguf").write_bytes(b"abc")
    _written(out, data, "export.json")
    try:
        record = read_record(out)
        targets.summary(record)
        targets.command(record, out)
        base = ExportSettings(base=Path("base.gguf"))
        targets.current(device.Device.open(_devices(folder.parent)[0]), out, base)
    finally:
        json.dumps(look(str(out)).as_json(), allow_nan=False)


_MARK = json.dumps(
    {
        "kind": "notify",
        "version": 1,
        "current": make.slot_2(3),
        "kept": [make.slot_2(2)],
        "highest_sequence": 4,
    }
).encode()


def _read_mark(data: bytes, folder: Path) -> None:
    from cdcca_cli.formats import mark

    _written(folder, data, mark.FILE_NAME)
    found = mark.read_mark(folder)
    assert found is not None, "a damaged mark is a mark"
    mark.files_of_mark(folder)
    if found.before is None:
        raise BadData(found.fault)
    _writable(found)


def _read_seen(data: bytes, folder: Path) -> None:
    from cdcca_cli.uplink.seen import Seen

    path = _written(folder, data)
    try:
        Seen([], path)  # type: ignore[arg-type]
    finally:
        _look(data, folder)


_TOML = b"""# folders
device = "device"
student = 'mirror'

[distill]
epochs = 5
method = "akd"
kl = "forward"
kl_weight = 0.5
rate_aware = 60
replay = ["a.tokens"]

[sample]
keep = "10%"
state = "seen.json"

[loop]
rounds = 2
"""


def _change_toml(rng: Random) -> bytes:
    """The text mutated as text, or its values mutated as JSON and written as TOML."""
    if rng.random() < 0.4:
        return mutations.mutate_text(rng, _TOML)
    tables = mutations.mutate_json(rng, mutations.load(json.dumps(tomllib.loads(_TOML.decode()))))
    lines = []
    for name, value in tables if isinstance(tables, Pairs) else ():
        if isinstance(value, Pairs):
            lines.append(f"[{name}]")
            lines += [f"{key} = {mutations.dump(inner)}" for key, inner in value]
        else:
            lines.append(f"{name} = {mutations.dump(value)}")
    return "\n".join(lines).encode("utf-8", "surrogatepass")


@cache
def _commands() -> list[Any]:
    from cdcca_cli.main import COMMANDS, expanded

    return [expanded(name) for name in COMMANDS if name != "completion"]


def _read_toml(data: bytes, folder: Path) -> None:
    """`cdcca.toml` in the working folder, and the options of each command that reads it."""
    from cdcca_cli import config

    _written(folder, data, "cdcca.toml")
    before = Path.cwd()
    os.chdir(folder)
    try:
        toml = config.read([command.name for command in _commands()])
    finally:
        os.chdir(before)
    refused = None
    for command in _commands():
        try:
            toml.check_names(command.name, command.names())
            _writable(command.defaults(toml))
            for part in command.parts.values():
                part.build({}, toml)
        except UsageError as error:
            refused = error
    if refused is not None:
        raise refused


_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "CDCCA_DEBUG")


def _change_environment(rng: Random) -> dict[str, str]:
    values = ("", "0", "1", "2", "-1", "abc", "1.5", "1e3", " 1 ", "٣", "9" * 5000, "0x1", "\udce9")
    return {name: rng.choice(values) for name in rng.sample(_VARIABLES, rng.randint(1, 3))}


def _read_environment(values: Mapping[str, str], folder: Path) -> None:
    """The variables that `accelerate launch` sets."""
    from cdcca_cli import distributed

    before = dict(os.environ)
    os.environ.update(values)
    try:
        distributed.announced()
        distributed.announced_rank()
    finally:
        os.environ.clear()
        os.environ.update(before)


# ---------------------------------------------------------------- pictures


@cache
def _pictures() -> list[tuple[str, bytes]]:
    """One picture in each format, a PNG of 16-bit grey, a JPEG with EXIF, and a short video."""
    from PIL import Image

    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 255, (24, 31, 3), dtype=np.uint8))
    found = []
    for name, options in (
        ("png", {}),
        ("jpg", {"quality": 60}),
        ("bmp", {}),
        ("gif", {}),
        ("webp", {}),
        ("tiff", {}),
        ("ppm", {}),
    ):
        out = io.BytesIO()
        image.save(out, {"jpg": "jpeg"}.get(name, name), **options)
        found.append((f"case.{name}", out.getvalue()))
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    image.save(out, "jpeg", exif=exif)
    found.append(("case.jpg", out.getvalue()))
    out = io.BytesIO()
    Image.fromarray(generator.integers(0, 65535, (8, 9), dtype=np.uint16)).save(out, "png")
    return [*found, ("case.png", out.getvalue())]


@cache
def _video() -> bytes:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream: Any = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.thread_count = 1
        for level in (0, 120, 250):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), "rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return out.getvalue()


def _change_picture(rng: Random) -> tuple[str, bytes]:
    name, data = rng.choice(_pictures())
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = mutations.mutate_bytes(rng, data)
    return name, data


def _change_video(rng: Random) -> tuple[str, bytes]:
    data = _video()
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = mutations.mutate_bytes(rng, data)
    return rng.choice(("case.mp4", "case.avi", "case.mkv")), data


def _read_picture(case: tuple[str, bytes], folder: Path) -> None:
    from cdcca_cli.datasets.frames import load_image
    from cdcca_cli.datasets.sources import read_frames

    name, data = case
    for frame in read_frames(_written(folder, data, name)):
        load_image(frame)


@cache
def _payloads() -> list[tuple[bytes, str, tuple[int, int]]]:
    """Pictures as a shard has them, and files that look like it: metadata, animated, giant."""
    from PIL import Image

    from cdcca_cli.formats.pictures import bare
    from cdcca_cli.payloads import pictures

    exif = Image.Exif()
    exif[0x010E] = "here"
    noise = np.random.default_rng(0).integers(0, 255, (24, 31, 3), dtype=np.uint8)
    image, large = Image.fromarray(noise), Image.new("RGB", (4096, 2048), (9, 90, 200))
    more: dict[str, Any] = {"save_all": True, "append_images": [image.rotate(90)]}
    files: list[tuple[str, Image.Image, dict[str, Any]]] = [
        (
            "jpeg",
            image,
            {"progressive": True, "exif": exif, "comment": b"here"},
        ),
        ("png", image, {"exif": exif}),
        ("png", image.convert("P"), more),
        ("webp", image, {"lossless": True, "exif": exif}),
        ("webp", image, more),
        ("gif", image, more),
        ("webp", large, {"lossless": True, "method": 0}),
        ("jpeg", large, {"progressive": True}),
    ]
    coded = [media for media in pictures.CODED if pictures.can_encode(media)]
    if pictures.AVIF in coded:
        files += [("avif", image, more), ("avif", image, {"exif": exif})]
    made = [pictures.encode(image, media, quality) for media in coded for quality in (10, 80)]
    for form, picture, options in files:
        out = io.BytesIO()
        picture.save(out, form, **options)
        made.append(pictures.Picture(out.getvalue(), f"image/{form}", picture.size))
        if form != "gif" and options is not more:
            try:
                made.append(bare(out.getvalue()))
            except BadData:  # an AVIF with EXIF
                continue
    return [(each.data, each.media, each.size) for each in made]


_SIDES = (0, -1, 1, 23, 24, 25, 32, 4096, 4097, 16384, 65535, 65536, 1 << 31, 1 << 40)


def _change_payload(rng: Random) -> tuple[bytes, str, tuple[int, int]]:
    data, media, size = rng.choice(_payloads())
    change = rng.random()
    if change < 0.05:
        media = rng.choice(("image/png", "image/avif", "image/webp", "image/jpeg", "image/gif", ""))
    elif change < 0.1:
        size = rng.choice(((size[1], size[0]), (rng.choice(_SIDES), rng.choice(_SIDES))))
    elif change < 0.3:  # a size in the file's own head
        for old in size:
            for form in (">H", "<H", ">I"):
                data = data.replace(
                    struct.pack(form, old), struct.pack(form, rng.choice(_SIDES) & 0x7FFF), 1
                )
    for _ in range(rng.choice((0, 1, 1, 2, 4)) if change < 0.3 else rng.choice((1, 1, 2, 4))):
        data = mutations.mutate_bytes(rng, data)
    if data[:4] == b"\x89PNG" and rng.random() < 0.7:
        data = _with_new_checksums(data)
    return data, media, size


def _with_new_checksums(data: bytes) -> bytes:
    """A PNG whose checksums are right again, as far as its chunks can be followed."""
    at, fixed = 8, bytearray(data)
    while at + 12 <= len(fixed):
        end = at + 8 + int.from_bytes(fixed[at : at + 4], "big")
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


def _read_payload(case: tuple[bytes, str, tuple[int, int]], folder: Path) -> None:
    """Whatever is decoded is what was declared, and so says another reader of the file."""
    from PIL import Image

    from cdcca_cli.payloads import pictures

    data, media, size = case
    image = pictures.decode(pictures.Picture(data, media, size))
    with Image.open(io.BytesIO(data)) as other:
        found = other.size, Image.MIME[other.format or ""], getattr(other, "n_frames", 1)
    assert found == (image.size, media, 1) and image.size == size
    assert image.mode == "RGB" and max(size) <= 4096
    if max(size) < 1000:
        original = pictures.original(data, image, 1 << 30)
        assert original == pictures.Picture(data, media, size)


# ---------------------------------------------------------------- all of them


def _kinds() -> list[Kind]:
    return [
        Kind("shards", _change_shards, _read_shards, 3),
        Kind("labels", _change_labels, _read_labels, 3),
        Kind("adaptation", _change_adaptation, _read_adaptation, 3),
        Kind("update", _change_signed(_updates), _receive, 2),
        Kind("trust list", _change_signed(_trust_lists), _receive, 1),
        Kind("codebook", _change_signed(_codebooks, _with_new_tensors), _read_codebook, 2),
        Kind("device folder", _change_device, _read_device, 2),
        Kind("weights", _change_weights, _look, 2),
        Kind("checkpoint", lambda rng: mutations.mutate_json_file(rng, _CONFIG), _read_checkpoint),
        Kind(
            "predictions",
            lambda rng: mutations.mutate_lines(rng, _PREDICTIONS),
            _read_predictions,
            2,
        ),
        Kind("manifest", lambda rng: mutations.mutate_lines(rng, _MANIFEST), _read_references, 2),
        Kind(
            "annotations",
            lambda rng: mutations.mutate_json_file(rng, rng.choice(_ANNOTATIONS)),
            _read_references,
            2,
        ),
        Kind("answers", _change_answers, _read_answers, 2),
        Kind("key", _change_key, _read_key),
        Kind("seen", lambda rng: mutations.mutate_json_file(rng, _SEEN), _read_seen),
        Kind("profile", lambda rng: mutations.mutate_json_file(rng, _profile()), _read_profile),
        Kind("probe", lambda rng: mutations.mutate_json_file(rng, _probe()), _read_probe),
        Kind("export", lambda rng: mutations.mutate_json_file(rng, _EXPORT), _read_export, 0.5),
        Kind("mark", lambda rng: mutations.mutate_json_file(rng, _MARK), _read_mark, 0.5),
        Kind("cdcca.toml", _change_toml, _read_toml),
        Kind("environment", _change_environment, _read_environment, 0.2),
        Kind("picture", _change_picture, _read_picture, 0.5),
        Kind("payload picture", _change_payload, _read_payload, 0.5),
        Kind("video", _change_video, _read_picture, 0.1),
    ]


KINDS = {kind.name: kind for kind in _kinds()}
