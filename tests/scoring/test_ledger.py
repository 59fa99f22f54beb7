"""The ledger: every byte has its kind, and they add up to the files."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdcca_cli.datasets import read_frames
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.formats import shard as shards
from cdcca_cli.formats import update as updates
from cdcca_cli.scoring.ledger import measure
from cdcca_cli.streams import binary_output

DIGEST = "sha256:" + "0" * 64


def stream(path: Path, bits: int, frames: list[str], kept: int = 9, channels: int = 16) -> str:
    draw = np.random.default_rng(0)
    with binary_output(str(path), "x") as out, shards.writer(out) as write:
        for frame in frames:
            write(
                shards.Shard(
                    frame=frame,
                    image=frame,
                    domain=None,
                    tokens=draw.normal(size=(kept, channels)).astype(np.float32),
                    positions=np.arange(kept, dtype=np.int32),
                    scores=np.ones(kept, np.float32),
                    num_tokens=36,
                    tower=DIGEST,
                    asks=[shards.Ask("1", "?", "vqa")],
                    bits=bits,
                )
            )
    return str(path)


def update(path: Path, payload: bytes, parameters: int) -> str:
    with binary_output(str(path), "x") as out:
        updates.write_update(
            out, updates.Update(DIGEST, DIGEST, 1, "nf4-mixed", [4], parameters, payload)
        )
    return str(path)


@pytest.mark.parametrize(("bits", "payload", "scales"), [(32, 576, 0), (16, 288, 0), (8, 144, 36)])
def test_uplink_by_hand(tmp_path: Path, bits: int, payload: int, scales: int) -> None:
    """Two shards of 9 tokens of 16 channels: 144 numbers of `bits` each, 9 F32 scales at 8 bits,
    9 U16 positions, 9 F32 scores."""
    path = stream(tmp_path / "up", bits, ["a.png", "b.png"])
    up = measure([path], []).uplink
    assert up is not None
    assert up.kinds["payload"] == 2 * payload
    assert up.kinds["scales"] == 2 * scales
    assert (up.kinds["positions"], up.kinds["scores"]) == (2 * 18, 2 * 36)
    assert up.kinds.total() == up.stored_bytes == (tmp_path / "up").stat().st_size
    assert (up.tokens_kept, up.tokens_total, up.token_elements) == (18, 72, 288)
    shown = up.as_json()
    assert shown["bits_per_token_element"] == pytest.approx(8 * up.stored_bytes / 288)
    assert (shown["shards"], shown["frames"]) == (2, 2)


def test_zstd_is_what_the_link_carries(tmp_path: Path) -> None:
    plain = stream(tmp_path / "up", 32, ["a.png"] * 3)
    packed = stream(tmp_path / "up.zst", 32, ["a.png"] * 3)
    one, other = measure([plain], []).uplink, measure([packed], []).uplink
    assert one is not None and other is not None
    assert other.kinds == one.kinds
    assert other.stored_bytes == (tmp_path / "up.zst").stat().st_size < one.stored_bytes


def test_files_add_up_and_may_be_joined(tmp_path: Path) -> None:
    """`cat a b` is the same uplink as the two files."""
    paths = [stream(tmp_path / name, 8, [name, "c"]) for name in ("a", "b")]
    (tmp_path / "both").write_bytes(b"".join(Path(path).read_bytes() for path in paths))
    apart, joined = measure(paths, []).uplink, measure([str(tmp_path / "both")], []).uplink
    assert apart == joined
    assert apart is not None and (apart.frames.total(), len(apart.frames)) == (4, 3)


def test_downlink_by_hand(tmp_path: Path) -> None:
    """The paper's own figures: 0.791 MB for 1.65 M parameters is 3.83 bits a parameter."""
    path = update(tmp_path / "down", bytes(791_000), 1_650_688)
    down = measure([], [path]).downlink
    assert down is not None
    assert down.payload_bytes == 791_000
    assert down.payload_bytes + down.header_bytes == down.stored_bytes
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
    up = stream(tmp_path / "up", 8, ["c.png", "a.png", "c.png"])
    ledger = measure([up], [], read_frames(folder))
    assert ledger.raw is not None and ledger.sent is not None
    assert ledger.raw["frames"] == 3 and ledger.sent["frames"] == 2
    assert ledger.raw["raw_rgb"] == 3 * (32 * 16 + 8 * 8 + 64 * 64)
    assert ledger.sent["raw_rgb"] == 3 * (32 * 16 + 64 * 64)
    files = {name: (folder / name).stat().st_size for name in ("a.png", "b.png", "c.png")}
    assert ledger.raw["original"] == sum(files.values())
    assert ledger.sent["original"] == files["a.png"] + files["c.png"]
    for form in ("jpeg", "webp"):
        coded = io.BytesIO()
        Image.open(folder / "b.png").save(coded, form, quality=75)
        assert ledger.raw[f"{form}_q75"] - ledger.sent[f"{form}_q75"] == len(coded.getvalue())
    link = ledger.as_json()
    stored = (tmp_path / "up").stat().st_size
    assert link["sent"]["times_smaller"]["raw_rgb"] == pytest.approx(  # type: ignore[index]
        ledger.sent["raw_rgb"] / stored
    )


def test_five_frames_of_the_paper(tmp_path: Path) -> None:
    """31.10 MB is 5 x 1920 x 1080 x 3 bytes of raw pixels."""
    for number in range(5):
        Image.new("RGB", (1920, 1080)).save(tmp_path / f"{number}.png")
    ledger = measure([], [], read_frames(tmp_path))
    assert ledger.raw is not None and ledger.raw["raw_rgb"] == 31_104_000
    assert ledger.sent is None


def test_faults(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    up = stream(tmp_path / "up", 8, ["elsewhere.png"])
    with pytest.raises(BadData, match="elsewhere"):
        measure([up], [], read_frames(tmp_path))
    with pytest.raises(MissingInput):
        measure([str(tmp_path / "nothing")], [])
    with pytest.raises(BadData):
        measure([], [up])
    (tmp_path / "cut").write_bytes(Path(up).read_bytes()[:-10])
    with pytest.raises(BadData):
        measure([str(tmp_path / "cut")], [])
