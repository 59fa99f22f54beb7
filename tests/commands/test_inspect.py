"""`cdcca inspect` tells what each kind of file is; the numbers come from tests/golden/make.py."""

import io
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import zstandard

from cdcca_cli.formats.shard import Coding, Question, Shard
from cdcca_cli.formats.shard_stream import writer
from cdcca_cli.inspection.contents import summarize
from cdcca_cli.inspection.look import look
from cdcca_cli.inspection.summary import rows
from cdcca_cli.main import main
from tests.golden import make

VALID = Path(make.__file__).parent / "valid"
ROOT = Path(__file__).parents[2]


def inspect(path: Path | str, capfd: pytest.CaptureFixture[str], code: int = 0) -> Any:
    found = main(["inspect", str(path), "--json"])
    out, err = capfd.readouterr()
    assert found == code, err
    return json.loads(out) if code == 0 else err


def test_shards(capfd: pytest.CaptureFixture[str]) -> None:
    """Two records of 2 tokens x 3 channels: 24 bytes in 32 bits, 6 in 8 bits with 8 of scales."""
    found = inspect(VALID / "two_parts_v1.shards", capfd)
    ledger = found.pop("bytes")
    digest = found["digests"].pop("content")
    assert found == {
        "file": str(VALID / "two_parts_v1.shards"),
        "kind": "shards",
        "format": 1,
        "digests": {"towers": {make.TOWER: 2}, "codebooks": {}},
        "counts": {
            "shards": 2,
            "questions": 2,
            "kept_tokens": 4,
            "all_tokens": 36 + 70_000,
            "by_domain": {"night": 2},
            "by_codec": {"float32": 1, "int8": 1},
            "by_step": {},
            "payload_bytes_a_frame": 19.0,
            "header_bytes_a_frame": (ledger["header"] + ledger["end"]) / 2,
        },
    }
    assert ledger["tokens"] == 24 + 6 and ledger["scales"] == 8
    assert ledger["positions"] == 4 + 8 and ledger["scores"] == 16
    assert ledger["end"] == 2 * len(make.end(1)) and ledger.pop("framing") == 0
    size = (VALID / "two_parts_v1.shards").stat().st_size
    assert ledger.pop("total") == size == sum(ledger.values())
    sums = subprocess.run(
        ["sha256sum", str(VALID / "two_parts_v1.shards")], capture_output=True, check=True
    )
    assert digest == "sha256:" + sums.stdout[:64].decode()


def test_shards_of_version_2(capfd: pytest.CaptureFixture[str]) -> None:
    """Two records of two frames: a row of 3 codes each; 3 tokens of 2 codes of 2 x 4 places."""
    path = VALID / "shards_v2_klt.shards"
    found = inspect(path, capfd)
    ledger = found["bytes"]
    assert found["format"] == 2
    assert found["digests"]["codebooks"] == {make.BASE: 4}
    counts = found["counts"]
    assert (counts["shards"], counts["questions"]) == (4, 4)
    assert (counts["kept_tokens"], counts["all_tokens"]) == (8 + 3, 16)
    assert (counts["by_codec"], counts["by_step"]) == ({"klt": 4}, {"0.5": 4})
    assert counts["by_domain"] == {"night": 2, "(none)": 2}
    assert ledger["shards"] == len(make.record(make.HEAD_2, {}))
    assert (ledger["kept"], ledger["scores"], ledger["entropies"]) == (1, 12, 8)
    assert counts["payload_bytes_a_frame"] == ledger["codes"] / 4
    rest = ledger["total"] - ledger["codes"] - ledger["kept"] - ledger["scores"]
    assert counts["header_bytes_a_frame"] == rest / 4
    assert ledger.pop("total") == path.stat().st_size == sum(ledger.values())


def test_shards_with_pictures(capfd: pytest.CaptureFixture[str]) -> None:
    found = inspect(VALID / "shards_v2_frame.shards", capfd)
    assert found["counts"]["by_codec"] == {"frame": 2}
    num_bytes = len(make.packed(make.PICTURES))
    assert found["bytes"]["pictures"] == num_bytes
    assert found["counts"]["payload_bytes_a_frame"] == num_bytes / 2


def test_zstd_makes_no_difference(capfd: pytest.CaptureFixture[str]) -> None:
    plain = inspect(VALID / "two_parts_v1.shards", capfd)
    packed = inspect(VALID / "two_zstd_frames_v1.shards", capfd)
    assert {**plain, "file": ""} == {**packed, "file": ""}


def test_no_shards(capfd: pytest.CaptureFixture[str]) -> None:
    found = inspect(VALID / "no_shards_v1.shards", capfd)
    assert found["counts"]["shards"] == 0
    assert found["bytes"]["total"] == found["bytes"]["end"] == len(make.end(0))


def test_labels(capfd: pytest.CaptureFixture[str]) -> None:
    """16 bits: 6 queries, 3 of answers; 4 of visual, one too large, of 4 bytes; 6 and 2 of top."""
    path = VALID / "label_v1.labels"
    found = inspect(path, capfd)
    ledger = found.pop("bytes")
    found["digests"].pop("content")
    assert found == {
        "file": str(path),
        "kind": "labels",
        "format": 1,
        "digests": {"teachers": {make.MODEL: 1}, "vocabularies": {make.BASE: 1}},
        "counts": {
            "records": 1,
            "labels": 2,
            "answered_with_nothing": 1,
            "cut": 0,
            "with_distributions": 1,
            "with_features": 2,
        },
    }
    size = path.stat().st_size
    assert ledger.pop("total") == size == sum(ledger.values())
    sizes = {"queries": 12, "visual": 16, "answer": 6, "top": 12 + 4 + 24, "unfinished": 0}
    assert ledger == {**sizes, "header": size - sum(sizes.values())}


def test_labels_of_several_teachers(capfd: pytest.CaptureFixture[str]) -> None:
    """Old labels among them; counted in records."""
    found = inspect(VALID / "lessons_and_label.labels", capfd)
    assert found["format"] == "lessons"
    assert found["digests"]["teachers"] == {make.MODEL: 2, "https://host/v1#m": 1}
    assert found["digests"]["vocabularies"] == {make.BASE: 2, "(none)": 1}
    assert (found["counts"]["records"], found["counts"]["labels"]) == (3, 5)
    assert (found["counts"]["cut"], found["counts"]["with_features"]) == (1, 5)


def test_labels_of_8_bits(capfd: pytest.CaptureFixture[str]) -> None:
    """The scales of a feature, 2 and 1 of 4 bytes, are among its bytes."""
    for name in ("lessons_v1_i8.lessons", "label_v1_i8.labels"):
        found = inspect(VALID / name, capfd)
        assert found["counts"]["with_distributions"] == 0
        assert [found["bytes"][part] for part in ("queries", "visual")] == [6 + 8, 2 + 4]


@pytest.mark.parametrize("cut", [1, 7, 9, 300, 600])
def test_labels_whose_last_is_not_finished(
    cut: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Cut near its end and near its beginning: what is whole is told, and how much is not."""
    whole = make.label() * 2
    for length in (len(whole) - cut, len(make.label()) + cut):
        (tmp_path / "cut").write_bytes(whole[:length])
        found = inspect(tmp_path / "cut", capfd)
        assert found["counts"]["records"] == 1
        assert found["bytes"]["unfinished"] == length - len(make.label())
        assert found["bytes"]["total"] == length


def test_memory_stays_flat_from_10_to_1000_labels() -> None:
    def peak_bytes(times: int) -> int:
        class Labels(io.RawIOBase):
            left, piece = times, b""

            def readable(self) -> bool:
                return True

            def readinto(self, buffer: Any) -> int:
                if not self.piece and self.left:
                    self.left, self.piece = self.left - 1, make_entry
                taken, self.piece = self.piece[: len(buffer)], self.piece[len(buffer) :]
                buffer[: len(taken)] = taken
                return len(taken)

        make_entry = make.label()
        tracemalloc.start()
        found = summarize("labels", io.BufferedReader(Labels()), "here")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found.counts["records"] == times
        return peak

    # The least of three: when cyclic garbage is collected moves a peak by some kilobytes.
    peak_bytes(10)
    few, many = (min(peak_bytes(times) for _ in range(3)) for times in (10, 1000))
    assert many <= few + 16_384


def test_predictions(capfd: pytest.CaptureFixture[str]) -> None:
    found = inspect(VALID / "predictions_v1.predictions", capfd)
    assert found["kind"] == "predictions"
    assert found["digests"]["models"] == {make.MODEL: 2}
    assert found["counts"] == {
        "predictions": 2,
        "with_choices": 1,
        "by_task": {"caption": 1, "vqa": 1},
        "by_domain": {"(none)": 1, "night": 1},
        "average_entropy_nats": {"mean": 0.5, "sum": 1.0, "max": 0.75, "first": 0.25},
    }


def test_adaptation(capfd: pytest.CaptureFixture[str]) -> None:
    found = inspect(VALID / "adaptation_v1.adaptation", capfd)
    assert (found["kind"], found["method"], found["sequence"]) == ("adaptation", "akd", 4)
    assert found["report"] == {"loss": 0.25}
    assert found["digests"]["base"] == make.BASE
    assert found["digests"]["overlay"] == make.overlay_digest(make.OVERLAY)
    assert found["counts"] == {"tensors": 2, "parameters": 7}
    assert found["bytes"]["payload"] == 28
    assert found["bytes"]["total"] == len(make.adaptation())


def test_update_of_version_1(capfd: pytest.CaptureFixture[str]) -> None:
    found = inspect(VALID / "update_v1.update", capfd)
    assert (found["kind"], found["sequence"], found["codec"]) == ("update", 5, "nf4-mixed")
    assert (found["format"], found["digests"]["model"], found["expires"]) == (1, None, None)
    assert found["bits_per_parameter"] == 8 * len(make.update()) / 7
    assert (found["digests"]["base"], found["digests"]["target"]) == (make.BASE, make.TARGET)
    assert found["counts"] == {"parameters": 7}
    assert found["tensors_by_bits"] == {"0": 1, "4": 1}
    ledger = found["bytes"]
    assert ledger["total"] == len(make.update()) == 40 + ledger["framing"]


def test_update_of_version_2(capfd: pytest.CaptureFixture[str]) -> None:
    """A signature is 64 + 128 digits and 25 characters of JSON, 8 of them quotation marks that
    take two bytes; two of them stand between brackets, with a comma.
    """
    found = inspect(VALID / "update_v2.update", capfd)
    assert (found["format"], found["digests"]["model"]) == (2, make.MODEL)
    assert found["expires"] == "2100-01-01 00:00 UTC"
    assert found["signatures_of"] == sorted(make.KEYS)
    ledger = found["bytes"]
    assert ledger["signatures"] == 2 * (64 + 128 + 25 + 8) + 3
    text = make.dumps(make.SIGNED)
    assert ledger["header"] == len(text) + text.count('"')
    assert ledger.pop("total") == len(make.update_2()) == sum(ledger.values())
    assert sum(size for kind, size in ledger.items() if kind.startswith("payload: ")) == 40


def test_trust_list(capfd: pytest.CaptureFixture[str]) -> None:
    found = inspect(VALID / "trust_v1.trust", capfd)
    assert (found["kind"], found["trust"]) == ("trust", make.TRUST)
    assert found["signatures_of"] == sorted(make.KEYS)
    assert found["counts"] == {"keys": 2, "signatures": 2}
    assert found["bytes"]["total"] == len(make.trust())


def test_overlay(capfd: pytest.CaptureFixture[str]) -> None:
    found = inspect(VALID / "overlay_v1.overlay", capfd)
    assert (found["kind"], found["sequence"]) == ("overlay", 3)
    assert found["digests"]["overlay"] == make.overlay_digest(make.OVERLAY)


@pytest.mark.parametrize("name", ["device_v1", "device_v1/device.json"])
def test_device(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    found = inspect(VALID / name, capfd)
    assert (found["kind"], found["sequence"], found["family"]) == ("device", 3, "blip-2")
    assert found["digests"] == {
        "current": make.overlay_digest(make.OVERLAY),
        "tower": make.TOWER,
        "model": None,
        "codebook": None,
    }
    assert (found["trust"], found["keep"], found["kept"]) == (None, 1, [])
    assert found["counts"] == {"tensors": 2, "parameters": 7, "codebooks": 0}
    assert found["bytes"]["device.json"] == len(make.device())
    assert found["bytes"]["total"] == len(make.device()) + len(make.overlay_file())


def test_device_of_version_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = inspect(VALID / "device_v2", capfd)
    assert (found["format"], found["trust"], found["keep"]) == (3, make.TRUST, 2)
    assert found["signed_by"] == sorted(make.KEYS)
    assert [(slot["sequence"], slot["signed_by"]) for slot in found["kept"]] == [(2, []), (0, [])]
    assert found["digests"]["model"] == make.MODEL
    shutil.copytree(VALID / "device_v2", tmp_path / "device")
    (tmp_path / "device" / make.slot_2(0)["file"]).write_bytes(b"")
    assert "overlay/0-" in inspect(tmp_path / "device", capfd, 65)  # a kept one, not in use


def test_device_with_a_codebook(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    slot = make.codebook_slot()
    found = inspect(VALID / "device_v3", capfd)
    assert found["codebook"] == {"sequence": 3, "signed_by": sorted(make.KEYS)}
    assert found["digests"]["codebook"] == slot["digest"]
    assert found["counts"]["codebooks"] == 1
    assert found["bytes"][slot["file"]] == len(make.codebook())
    shutil.copytree(VALID / "device_v3", tmp_path / "device")
    earlier = tmp_path / "device/codebooks" / f"2-{'0' * 16}.safetensors"
    earlier.write_bytes(make.codebook())
    assert "holds codebook 3" in inspect(tmp_path / "device", capfd, 65)
    earlier.unlink()
    (tmp_path / "device" / slot["file"]).write_bytes(make.codebook()[:-1])
    assert "cut short" in inspect(tmp_path / "device", capfd, 65)


def test_codebook(capfd: pytest.CaptureFixture[str]) -> None:
    found = inspect(VALID / "codebook_v1.codebook", capfd)
    assert (found["kind"], found["sequence"]) == ("codebook", 3)
    assert found["counts"] == {"tokens": 2, "channels": 3, "components": 2, "frames": 80}
    assert found["digests"]["codebook"] == make.codebook_slot()["digest"]
    assert found["digests"]["tower"] == make.TOWER
    assert found["bytes"]["payload: forward"] == 12  # 3 * 2 float16
    lines = list(rows(look(str(VALID / "codebook_v1.codebook")).as_json()))
    assert ("curve: tokens", "step 0.5, bits 0.5, bytes 12, loss 0.25, agreement 0.75") in lines


def test_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "blip-2", "architectures": ["B"]}')
    for number in (1, 2):
        tensors = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(5, np.float16)}
        safetensors.numpy.save_file(tensors, tmp_path / f"model-{number}.safetensors")
    for path in (tmp_path, tmp_path / "config.json"):
        found = inspect(path, capfd)
        assert (found["kind"], found["family"], found["has_weights"]) == (
            "checkpoint",
            "blip-2",
            True,
        )
        assert found["counts"] == {
            "tensors": 4,
            "parameters": 22,
            "parameters_by_dtype": {"F16": 10, "F32": 12},
        }
    weights = inspect(tmp_path / "model-1.safetensors", capfd)
    assert weights["kind"] == "weights" and weights["counts"]["tensors"] == 2
    assert weights["bytes"]["total"] == (tmp_path / "model-1.safetensors").stat().st_size


def test_a_checkpoint_without_weights(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "blip-2"}')
    assert inspect(tmp_path, capfd)["has_weights"] is False


def image(path: Path, size: tuple[int, int] = (8, 6)) -> None:
    from PIL import Image

    Image.new("RGB", size).save(path)


def test_frames(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image(tmp_path / "a.png")
    image(tmp_path / "b.jpg")
    found = inspect(tmp_path, capfd)
    assert (found["kind"], found["counts"]["frames"]) == ("frames", 2)
    found = inspect(tmp_path / "a.png", capfd)
    assert (found["kind"], found["width"], found["height"]) == ("image", 8, 6)


def test_manifest_whose_images_are_elsewhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"id": "1", "image": "a.png", "prompt": "What?", "answers": ["cat"], "domain": "day"},
        {"id": "2", "image": "a.png", "captions": ["A cat."], "domain": "day"},
        {"id": "3", "image": "b.png", "prompt": "Why?", "choices": ["a", "b"]},
    ]
    path = tmp_path / "frames.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for place in (path, tmp_path):
        found = inspect(place, capfd)
        assert found["counts"] == {
            "frames": 2,
            "questions": 3,
            "vqa": 2,
            "caption": 1,
            "with_choices": 1,
            "with_answers": 1,
            "with_captions": 1,
            "by_domain": {"(none)": 1, "day": 1},
        }


def test_annotations(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = {
        "images": [{"id": 7, "file_name": "7.jpg"}],
        "annotations": [{"id": 1, "image_id": 7, "caption": "A cat."}],
    }
    (tmp_path / "captions.json").write_text(json.dumps(content, indent=1))
    found = inspect(tmp_path / "captions.json", capfd)
    assert (found["kind"], found["counts"]["with_captions"]) == ("annotations", 1)


def test_state_of_sample(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").write_text('{"frames":{"a":"1","b":"2"},"kind":"seen","version":1}\n')
    found = inspect(tmp_path / "state", capfd)
    assert (found["kind"], found["counts"]) == ("seen", {"frames": 2})


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"", 65, "empty"),
        (b"\x89PNG, but no image", 65, "a.bin"),
        (b"GIF", 65, "not a kind of file that cdcca reads"),
        (b"GGUF" + b"\0" * 99, 65, "cdcca reads: a GGUF file of llama.cpp"),
        (b"{", 65, "a.bin"),
        (b"[1, 2", 65, "a.bin"),
        (os.urandom(0) + b"\0" * 4000, 65, "not a kind of file that cdcca reads"),
        (b'\x08\0\0\0\0\0\0\0{"a":1} ', 65, "not a sound safetensors header"),
    ],
)
def test_what_is_no_file_of_ours(
    content: bytes, code: int, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    err = inspect(tmp_path / "a.bin", capfd, code)
    assert words in err and err.count("\n") == 1


def test_what_is_not_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "no such file" in inspect(tmp_path / "gone", capfd, 66)
    assert "gone" in inspect(tmp_path / "gone" / "device.json", capfd, 66)


def from_pipe(data: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "cdcca_cli", "inspect", *arguments],
        input=data,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )


@pytest.mark.parametrize(
    "name", ["two_parts_v1.shards", "update_v1.update", "label_v1_unfinished.labels"]
)
def test_from_a_pipe(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = (VALID / name).read_bytes()
    expected = {**inspect(VALID / name, capfd), "file": "standard input"}
    for arguments, content in (((), data), (("-",), zstandard.compress(data))):
        done = from_pipe(content, *arguments, "--quiet")  # a slow command writes its time
        assert (done.returncode, done.stderr) == (0, b"")
        assert json.loads(done.stdout) == expected


def test_a_manifest_from_a_pipe_is_refused() -> None:
    done = from_pipe(b'{"id": "1", "image": "a.png"}\n')
    assert done.returncode == 65 and b"name the file itself" in done.stderr


def test_on_a_terminal_there_is_a_table() -> None:
    import pty

    master, child = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", "cdcca_cli", "inspect", str(VALID / "update_v1.update")],
        stdout=child,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    os.close(child)
    shown = os.read(master, 1 << 16).decode().replace("\r\n", "\n")
    os.close(master)
    facts = dict(line.split("  ", 1) for line in shown.splitlines())
    assert facts["digests: base"].strip() == make.BASE
    assert facts["bytes: framing"].strip() == str(len(make.update()) - 40)


def test_names_from_a_file_cannot_write_escapes_to_a_terminal(tmp_path: Path) -> None:
    device = tmp_path / "device"
    shutil.copytree(VALID / "device_v1", device)
    (device / "device.json").write_bytes(make.device(checkpoint="\x1b]0;owned\x07"))
    import pty

    master, child = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", "cdcca_cli", "inspect", str(device)],
        stdout=child,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    os.close(child)
    shown = os.read(master, 1 << 16)
    os.close(master)
    assert b"\x1b" not in shown and b"\\x1b]0;owned" in shown


def test_memory_stays_flat_from_100_to_10000_shards() -> None:
    """The whole process's peak: 10,000 shards through a pipe take no more than 100, but 2 MiB."""
    out = BytesIO()
    with writer(out) as write:
        for number in range(10):
            write(
                Shard(
                    frame=f"frame {number}",
                    image="a.png",
                    domain=None,
                    tokens=np.ones((18, 64), np.float32),
                    positions=np.arange(18),
                    scores=np.ones(18, np.float32),
                    num_tokens=36,
                    tower=make.TOWER,
                    questions=[Question("q", "What?", "vqa")],
                    coding=Coding("int8"),
                )
            )
    part = out.getvalue()

    def peak_kib(times: int) -> int:
        with subprocess.Popen(
            [sys.executable, "-m", "cdcca_cli", "inspect"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            for _ in range(times):
                process.stdin.write(part)
            process.stdin.close()
            counts = json.loads(process.stdout.read())["counts"]
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert counts["shards"] == 10 * times
        return usage.ru_maxrss

    assert peak_kib(1000) <= peak_kib(10) + 2048
