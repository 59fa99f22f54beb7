"""`cdcca infer` and `cdcca sample` as a user runs them: files, pipes, exit codes, cron."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli import models
from cdcca_cli.formats.predictions import Prediction, read_predictions
from cdcca_cli.formats.shard import Shard
from cdcca_cli.formats.shard_stream import encoded_bytes, read_shards
from cdcca_cli.main import main
from cdcca_cli.models.initial import create_device
from cdcca_cli.models.settings import InitSettings
from tests import tiny

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT.parent / "shared" / "data" / "coco_mini"


@pytest.fixture(scope="module")
def device(blip2_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "device"
    create_device(folder, str(blip2_llama), InitSettings(lora_rank=2))
    return folder


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, image in enumerate(tiny.images(10)):
        image.save(folder / f"{number}.png")
    return folder


@pytest.fixture
def questions(frames: Path) -> Path:
    lines = [
        {"id": f"q{number}", "image": f"{number}.png", "prompt": "what colour?", "choices": choices}
        for number, choices in enumerate([["red", "blue"], None, ["one", "two", "three"]])
    ]
    manifest = frames / "frames.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return frames


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def predictions_in(path: Path) -> list[Prediction]:
    return list(read_predictions(path.read_text(encoding="utf-8").splitlines()))


def shards_in(path: Path) -> list[Shard]:
    return list(read_shards(io.BytesIO(path.read_bytes())))


class TestInfer:
    def test_a_prediction_for_each_frame(self, frames: Path, device: Path, tmp_path: Path) -> None:
        out = tmp_path / "p.jsonl"
        assert run("infer", frames, "-m", device, "-o", out, "--max-new-tokens", 3) == 0
        assert [p.id for p in predictions_in(out)] == [f"{n}.png" for n in range(10)]
        assert {p.task for p in predictions_in(out)} == {"caption"}

    def test_questions_and_choices(self, questions: Path, device: Path, tmp_path: Path) -> None:
        out = tmp_path / "p.jsonl"
        assert run("infer", questions, "-m", device, "-o", out, "--per-token") == 0
        first, second, third = predictions_in(out)
        assert first.choice in ("red", "blue")
        assert len(third.choice_scores or []) == 3
        assert (second.choice, second.choice_scores) == (None, None)
        assert len(first.token_entropies or []) >= 1

    def test_to_stdout(self, frames: Path, device: Path, capfd: pytest.CaptureFixture[str]) -> None:
        image = frames / "0.png"
        options = ("--prompt", "what?", "--max-new-tokens", 2)
        assert run("infer", image, "-m", device, *options) == 0
        (prediction,) = read_predictions(capfd.readouterr().out.splitlines())
        assert (prediction.prompt, prediction.task) == ("what?", "vqa")

    def test_same_bytes_again(self, questions: Path, device: Path, tmp_path: Path) -> None:
        for name in ("a", "b"):
            assert run("infer", questions, "-m", device, "-o", tmp_path / name) == 0
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


class TestSample:
    def test_ten_percent(self, frames: Path, device: Path, tmp_path: Path) -> None:
        out = tmp_path / "uplink.tokens"
        assert run("sample", frames, "-m", device, "-o", out) == 0
        (shard,) = shards_in(out)
        assert len(shard.positions) == 10  # all: CLS and 9 patches
        assert shard.coding.codec == "frame", "without a codebook, this file is the smallest form"

    def test_same_bytes_again_and_another_seed_not(
        self, frames: Path, device: Path, tmp_path: Path
    ) -> None:
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            options = ("--top", "100%", "--seed", seed, "--payload", "tokens", "--keep", "50%")
            assert run("sample", frames, "-m", device, "-o", tmp_path / name, *options) == 0
        data = [(tmp_path / name).read_bytes() for name in "abc"]
        assert data[0] == data[1] != data[2]

    def test_a_budget_is_of_the_whole_file(
        self, frames: Path, device: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "s"
        options = ("--budget", "4KiB", "--payload", "tokens")
        assert run("sample", frames, "-m", device, "-o", out, *options) == 0
        assert len(shards_in(out)) >= 2
        one = encoded_bytes(shards_in(out)[:1])
        assert 4096 - one - 100 < out.stat().st_size <= 4096

    def test_with_predictions(
        self, frames: Path, device: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        earlier, with_file, without = (tmp_path / name for name in ("p", "a", "b"))
        assert run("infer", frames, "-m", device, "-o", earlier) == 0
        options = ("--top", "3")
        assert (
            run("sample", frames, "-m", device, "--predictions", earlier, "-o", with_file, *options)
            == 0
        )
        assert run("sample", frames, "-m", device, "-o", without, *options) == 0
        a, b = shards_in(with_file), shards_in(without)
        assert [shard.frame for shard in a] == [shard.frame for shard in b]
        assert [shard.positions.tolist() for shard in a] == [s.positions.tolist() for s in b]
        assert "3 of 10 frames picked" in capfd.readouterr().err

    def test_quiet_says_nothing(
        self, frames: Path, device: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert run("sample", frames, "-m", device, "-o", tmp_path / "s", "--quiet") == 0
        assert capfd.readouterr() == ("", "")


class TestState:
    def test_nothing_new_is_an_empty_stream(
        self, frames: Path, device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out, state = tmp_path / "s", tmp_path / "state.json"
        command = ("sample", frames, "-m", device, "-o", out, "--state", state, "--top", "100%")
        assert run(*command) == 0
        assert len(shards_in(out)) == 10
        tiny.images(1, seed=3)[0].save(frames / "new.png")
        assert run(*command) == 0
        assert [shard.frame for shard in shards_in(out)] == ["new.png"]
        # A model of seven billion parameters must not be loaded for nothing.
        monkeypatch.setattr(models, "load_device", None)
        assert run(*command) == 0
        assert shards_in(out) == []
        assert out.stat().st_size > 0

    def test_not_saved_when_the_output_fails(
        self, frames: Path, device: Path, tmp_path: Path
    ) -> None:
        state = tmp_path / "state.json"
        nowhere = tmp_path / "missing" / "s"
        assert run("sample", frames, "-m", device, "-o", nowhere, "--state", state) == 73
        assert run("sample", frames, "-m", device, "-o", "/dev/full", "--state", state) == 73
        assert not state.exists()

    def test_a_bad_frame_is_left_out_named_and_remembered(
        self, frames: Path, device: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        state, out = tmp_path / "state.json", tmp_path / "s"
        whole = (frames / "9.png").read_bytes()
        (frames / "9.png").write_bytes(whole[: len(whole) // 2])
        command = ("sample", frames, "-m", device, "-o", out, "--state", state, "--top", "100%")
        assert run(*command) == 0
        assert len(shards_in(out)) == 9
        first, *_, last = capfd.readouterr().err.splitlines()
        assert "left out" in first and "9.png" in first
        assert "9 of 10 frames picked" in last and "1 frame left out" in last
        assert run(*command) == 0
        assert "9.png" not in capfd.readouterr().err, "named once"
        (frames / "9.png").write_bytes(whole)
        assert run(*command) == 0
        assert [shard.frame for shard in shards_in(out)] == ["9.png"]

    def test_a_job_goes_on_when_all_that_is_new_is_bad(
        self, frames: Path, device: Path, tmp_path: Path
    ) -> None:
        state, out = tmp_path / "state.json", tmp_path / "s"
        command = ("sample", frames, "-m", device, "-o", out, "--state", state)
        assert run(*command) == 0
        (frames / "new.png").write_bytes(b"")
        assert run(*command) == 0
        assert shards_in(out) == []

    def test_strict_saves_nothing(self, frames: Path, device: Path, tmp_path: Path) -> None:
        state, out = tmp_path / "state.json", tmp_path / "s"
        (frames / "9.png").write_bytes(b"")
        command = ("sample", frames, "-m", device, "-o", out, "--state", state, "--strict")
        assert run(*command) == 65
        assert not state.exists() and not out.exists()


class TestBadFrames:
    @pytest.fixture
    def mixed(self, frames: Path) -> Path:
        """10 sound frames, an empty one, and one whose name is not UTF-8."""
        (frames / "4x.png").write_bytes(b"")
        (frames / os.fsdecode(b"caf\xe9.png")).write_bytes((frames / "0.png").read_bytes())
        return frames

    @pytest.mark.parametrize(
        "options", [("infer",), ("sample", "--top", "100%", "--codec", "int8")]
    )
    def test_named_counted_and_left_out(
        self,
        options: tuple[str, ...],
        mixed: Path,
        device: Path,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "out"
        assert run(options[0], mixed, "-m", device, "-o", out, *options[1:]) == 0
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 3
        assert "4x.png: not an image (the file is empty)" in lines[0]
        assert "caf\\udce9.png: its name is not UTF-8" in lines[1]
        assert ", 2 frames left out" in lines[2]
        ids = [f"{number}.png" for number in range(10)]
        if options[0] == "infer":
            assert [p.id for p in predictions_in(out)] == ids
        else:
            assert [shard.frame for shard in shards_in(out)] == ids

    @pytest.mark.parametrize("verb", ["infer", "sample"])
    def test_strict(self, verb: str, mixed: Path, device: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        assert run(verb, mixed, "-m", device, "-o", out, "--strict") == 65
        assert not out.exists()

    @pytest.mark.parametrize("verb", ["infer", "sample"])
    def test_a_source_without_a_sound_frame_is_an_error(
        self, verb: str, device: Path, tmp_path: Path
    ) -> None:
        folder, out = tmp_path / "bad", tmp_path / "out"
        folder.mkdir()
        for name in ("a.png", "b.png"):
            (folder / name).write_bytes(b"")
        assert run(verb, folder, "-m", device, "-o", out) == 65
        assert not out.exists()


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photographs in ../shared/data/coco_mini")
def test_photographs_with_their_questions(device: Path, tmp_path: Path) -> None:
    """45 questions of A-OKVQA on the photographs they were asked of."""
    source = (PHOTOS / "aokvqa_val_on_these_images.json", "--images", PHOTOS / "val2017")
    earlier, out = tmp_path / "p", tmp_path / "s"
    assert run("infer", *source, "-m", device, "-o", earlier, "--max-new-tokens", 3) == 0
    assert len(predictions_in(earlier)) == 45
    assert all(p.choice in (p.choices or []) for p in predictions_in(earlier))
    assert run("sample", *source, "-m", device, "--predictions", earlier, "-o", out) == 0
    assert sum(len(shard.questions) for shard in shards_in(out)) == 5


class TestRefused:
    @pytest.mark.parametrize("verb", ["infer", "sample"])
    @pytest.mark.parametrize(
        ("fault", "code"), [("empty", 65), ("text", 65), ("cut", 65), ("missing", 66)]
    )
    def test_frames(
        self,
        verb: str,
        fault: str,
        code: int,
        frames: Path,
        device: Path,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        source = tmp_path / fault
        if fault != "missing":
            source.mkdir()
        if fault == "text":
            (source / "a.jpg").write_text("hello, I am no image\n")
        if fault == "cut":
            (source / "a.png").write_bytes((frames / "0.png").read_bytes()[:150])
        out = tmp_path / "out"
        assert run(verb, source, "-m", device, "-o", out) == code
        assert not out.exists()
        error = capfd.readouterr().err.strip()
        assert error.startswith("cdcca ")
        assert error.count("\n") == 0

    @pytest.mark.parametrize(
        "options",
        [
            ("--dropout", "0"),
            ("--top", "3", "--threshold", "1"),
            ("--top", "0%"),
            ("--keep", "120%"),
            ("--keep", "50%", "--beta", "0.1"),
            ("--budget", "lots"),
            ("--by", "luck"),
            ("--bits", "7"),
            ("--blocks", "4"),
            ("--passes", "one"),
            ("--compute", "abacus"),
            ("--entropy", "total"),
        ],
    )
    def test_options(
        self, options: tuple[str, ...], frames: Path, device: Path, tmp_path: Path
    ) -> None:
        assert run("sample", frames, "-m", device, "-o", tmp_path / "s", *options) == 2
        assert not (tmp_path / "s").exists()

    @pytest.mark.parametrize(
        ("content", "code"), [(None, 66), ("{}\n", 65), ('{"v": 9}\n', 76), ("", 65)]
    )
    def test_predictions(
        self, content: str | None, code: int, frames: Path, device: Path, tmp_path: Path
    ) -> None:
        earlier, out = tmp_path / "p", tmp_path / "s"
        if content is not None:
            earlier.write_text(content)
        command = ("sample", frames, "-m", device, "-o", out, "--predictions", earlier)
        assert run(*command) == code
        assert not out.exists()


@pytest.mark.parametrize("verb", ["infer", "sample"])
def test_ctrl_c_leaves_nothing(
    verb: str, frames: Path, device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, calls = models.LoadedModel.generate, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    monkeypatch.setattr(models.LoadedModel, "generate", interrupted)
    out = tmp_path / "out" / "file"
    out.parent.mkdir()
    options = ["--state", tmp_path / "state.json", "--threshold", "0"] if verb == "sample" else []
    assert run(verb, frames, "-m", device, "-o", out, "--batch-size", 1, *options) == 130
    assert list(out.parent.iterdir()) == []
    assert not (tmp_path / "state.json").exists()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, cdcca_cli.commands.infer, cdcca_cli.commands.sample\n"
        "print([name for name in ('torch', 'numpy', 'transformers', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_predictions_in_and_shards_out_through_pipes(
    frames: Path, device: Path, tmp_path: Path
) -> None:
    """What is on stdout is a whole stream, and nothing but it."""
    earlier = tmp_path / "p"
    assert run("infer", frames, "-m", device, "-o", earlier, "--max-new-tokens", 2) == 0
    line = ["-m", "cdcca_cli", "sample", str(frames), "--predictions", "-", "--top", "2"]
    done = subprocess.run(
        [sys.executable, *line],
        input=earlier.read_bytes(),
        capture_output=True,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "CDCCA_DEVICE": str(device),
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert len(list(read_shards(io.BytesIO(done.stdout)))) == 2
    assert b"2 of 10 frames picked" in done.stderr
