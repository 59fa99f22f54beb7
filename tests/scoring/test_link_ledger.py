"""The ledger: every byte has its kind, and they add up to the files."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdcca_cli.datasets import read_frames
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.formats import records
from cdcca_cli.formats.shard import Codec, Coding, Question, Shard
from cdcca_cli.formats.shard_stream import writer
from cdcca_cli.scoring.link.frames import FORMS
from cdcca_cli.scoring.link.ledger import measure
from cdcca_cli.scoring.link.transfer import parse_link
from cdcca_cli.streams import binary_output

DIGEST = "sha256:" + "0" * 64


def stream(path: Path, codec: Codec, frames: list[str], kept: int = 9, channels: int = 16) -> str:
    draw = np.random.default_rng(0)
    with binary_output(str(path), "x") as out, writer(out) as write:
        for frame in frames:
            write(
                Shard(
                    frame=frame,
                    image=frame,
                    domain=None,
                    tokens=draw.normal(size=(kept, channels)).astype(np.float32),
                    positions=np.arange(kept, dtype=np.int32),
                    scores=np.ones(kept, np.float32),
                    num_tokens=36,
                    tower=DIGEST,
                    questions=[Question("1", "?", "vqa")],
                    coding=Coding(codec),
                )
            )
    return str(path)


def update(path: Path, payload: bytes, parameters: int) -> str:
    """Version 1, which is read for ever, written as its specification says."""
    header = {
        "kind": "update",
        "version": 1,
        "base": DIGEST,
        "target": DIGEST,
        "sequence": 1,
        "codec": "nf4-mixed",
        "bits": [4],
        "num_parameters": parameters,
        "payload_bytes": len(payload),
        "payload_sha256": hashlib.sha256(payload).hexdigest(),
    }
    with open(path, "wb") as out:
        records.write_record(out, {"payload": np.frombuffer(payload, np.uint8)}, header)
    return str(path)


def header_bytes(path: str) -> int:
    """8 + H of the first record."""
    return 8 + int.from_bytes(Path(path).read_bytes()[:8], "little")


@pytest.mark.parametrize(
    ("codec", "payload", "scales"),
    [("float32", 576, 0), ("float16", 288, 0), ("int8", 144, 36)],
)
def test_uplink_by_hand(tmp_path: Path, codec: Codec, payload: int, scales: int) -> None:
    """Two frames of 9 tokens of 16 channels: 144 numbers each, 9 F32 scales for int8, 9 F32 scores,
    a bit for each of 2 x 36 tokens, an F16 entropy for each question."""
    path = stream(tmp_path / "up", codec, ["a.png", "b.png"])
    up = measure([path], []).uplink
    assert up is not None
    assert up.kinds["tokens"] == 2 * payload
    assert up.kinds["scales"] == 2 * scales
    assert (up.kinds["kept"], up.kinds["scores"], up.kinds["entropies"]) == (9, 2 * 36, 2 * 2)
    assert up.kinds.total() == up.stored_bytes == (tmp_path / "up").stat().st_size
    assert (up.tokens_kept, up.tokens_total, up.payloads) == (18, 72, {"tokens": 2})
    shown = up.as_json()
    assert shown["bytes_per_frame"] == pytest.approx(up.stored_bytes / 2)
    assert shown["bytes_if_all"]["frame"] is None
    assert shown["bits_per_token"] == pytest.approx(8 * up.stored_bytes / 18)
    assert (shown["shards"], shown["frames"]) == (2, 2)
    heads = sum(up.kinds[kind] for kind in ("shards", "header", "index", "end"))
    assert heads == up.stored_bytes - 2 * (payload + scales + 36 + 2) - 9
    assert up.kinds["shards"] == header_bytes(path)


def test_zstd_is_what_the_link_carries(tmp_path: Path) -> None:
    plain = stream(tmp_path / "up", "float32", ["a.png"] * 3)
    packed = stream(tmp_path / "up.zst", "float32", ["a.png"] * 3)
    one, other = measure([plain], []).uplink, measure([packed], []).uplink
    assert one is not None and other is not None
    assert other.kinds == one.kinds
    assert other.stored_bytes == (tmp_path / "up.zst").stat().st_size < one.stored_bytes


def test_files_add_up_and_may_be_joined(tmp_path: Path) -> None:
    """`cat a b` is the same uplink as the two files."""
    paths = [stream(tmp_path / name, "int8", [name, "c"]) for name in ("a", "b")]
    (tmp_path / "both").write_bytes(b"".join(Path(path).read_bytes() for path in paths))
    apart, joined = measure(paths, []).uplink, measure([str(tmp_path / "both")], []).uplink
    assert apart is not None and joined is not None
    assert apart.kinds == joined.kinds and sum(apart.files) == sum(joined.files)
    assert apart.as_json()["stored_bytes_by_file"] == [Path(path).stat().st_size for path in paths]
    assert (apart.frames.total(), len(apart.frames)) == (4, 3)


def test_downlink_by_hand(tmp_path: Path) -> None:
    """The paper's own figures: 0.791 MB for 1.65 M parameters is 3.83 bits a parameter."""
    path = update(tmp_path / "down", bytes(791_000), 1_650_688)
    down = measure([], [path]).downlink
    assert down is not None
    assert down.kinds["payload"] == 791_000
    assert down.kinds["header"] == header_bytes(path)
    assert down.kinds.total() == down.stored_bytes
    assert down.stored_bytes == (tmp_path / "down").stat().st_size
    shown = down.as_json()["bits_per_parameter"]
    assert shown == pytest.approx(3.83, abs=0.01)


def test_frames_by_hand(tmp_path: Path) -> None:
    """Raw: 3 bytes a pixel, of all frames and of the ones that went up."""
    folder = tmp_path / "frames"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for name, size in (("a.png", (32, 16)), ("b.png", (8, 8)), ("c.png", (64, 64))):
        pixels = draw.integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    up = stream(tmp_path / "up", "int8", ["c.png", "a.png", "c.png"])
    ledger = measure([up], [], read_frames(folder))
    assert ledger.frames is not None
    raw, sent = ledger.frames.every, ledger.frames.sent
    assert raw["frames"] == 3 and sent["frames"] == 2
    assert raw["raw_rgb"] == 3 * (32 * 16 + 8 * 8 + 64 * 64)
    assert sent["raw_rgb"] == 3 * (32 * 16 + 64 * 64)
    files = {name: (folder / name).stat().st_size for name in ("a.png", "b.png", "c.png")}
    assert raw["original"] == sum(files.values())
    assert sent["original"] == files["a.png"] + files["c.png"]
    for form in ("jpeg", "webp"):
        coded = io.BytesIO()
        Image.open(folder / "b.png").save(coded, form, quality=75)
        assert raw[f"{form}_q75"] - sent[f"{form}_q75"] == len(coded.getvalue())
    link = ledger.as_json()
    stored = (tmp_path / "up").stat().st_size
    assert link["sent"]["times_smaller"]["raw_rgb"] == pytest.approx(sent["raw_rgb"] / stored)
    assert link["sent"]["bytes"].keys() | link["left_out"].keys() == set(FORMS)


def test_five_frames_of_the_paper(tmp_path: Path) -> None:
    """31.10 MB is 5 x 1920 x 1080 x 3 bytes of raw pixels."""
    for number in range(5):
        Image.new("RGB", (1920, 1080)).save(tmp_path / f"{number}.png")
    ledger = measure([], [], read_frames(tmp_path))
    assert ledger.frames is not None and ledger.frames.every["raw_rgb"] == 31_104_000
    assert "sent" not in ledger.as_json()


def test_transfer_by_hand(tmp_path: Path) -> None:
    """Up at 5 Mbit/s, down at 20 Mbit/s, 50 ms: t = 0.05 + 8 n / R."""
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    frames = read_frames(tmp_path)
    up = stream(tmp_path / "up", "int8", ["a.png"])
    down = update(tmp_path / "down", bytes(1000), 1)
    ledger = measure([up], [down], frames, parse_link("20mbit/5mbit,50ms"), encoder_size=(50, 20))
    found = ledger.as_json()
    times = found["transfer"]
    assert times["modelled"] is True
    up_bytes, down_bytes = (Path(path).stat().st_size for path in (up, down))
    assert times["seconds"]["uplink"] == pytest.approx(0.05 + 8 * up_bytes / 5e6)
    assert times["seconds"]["downlink"] == pytest.approx(0.05 + 8 * down_bytes / 20e6)
    assert times["seconds"]["sent"]["raw_rgb"] == pytest.approx(0.05 + 8 * 30_000 / 5e6)
    small = times["seconds"]["encoder_input"]["sent"]["raw_rgb"]
    assert small == pytest.approx(0.05 + 8 * 3_000 / 5e6)
    assert found["encoder_input"]["size"] == [50, 20]
    assert found["encoder_input"]["raw"]["bytes"]["raw_rgb"] == 3_000
    assert "original" not in found["encoder_input"]["raw"]["bytes"]


def test_tables_hold_what_the_object_holds(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    up = stream(tmp_path / "up", "int8", ["a.png"])
    down = update(tmp_path / "down", bytes(1000), 1)
    link = parse_link("1gbit,1ms")
    ledger = measure([up], [down], read_frames(tmp_path), link, encoder_size=(50, 20))
    tables = {title: (columns, rows) for title, columns, rows in ledger.tables()}
    columns, rows = tables["the frames themselves"]
    assert columns[1:] == [
        "all 1 frames",
        "sent 1 frames",
        "all 1 frames at 50x20",
        "sent 1 frames at 50x20",
    ]
    assert ["raw_rgb", 30_000, 30_000, 3_000, 3_000] in rows
    columns, rows = tables["transfer over 1gbit,1ms, modelled"]
    assert "modelled" in columns[2]
    assert ["frames at 50x20 as raw_rgb", 3_000, pytest.approx(0.001024)] in rows
    for columns, rows in tables.values():
        assert all(len(row) == len(columns) for row in rows)


def test_faults(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    up = stream(tmp_path / "up", "int8", ["elsewhere.png"])
    with pytest.raises(BadData, match="elsewhere"):
        measure([up], [], read_frames(tmp_path))
    with pytest.raises(MissingInput):
        measure([str(tmp_path / "nothing")], [])
    with pytest.raises(BadData):
        measure([], [up])
    (tmp_path / "cut").write_bytes(Path(up).read_bytes()[:-10])
    with pytest.raises(BadData):
        measure([str(tmp_path / "cut")], [])
