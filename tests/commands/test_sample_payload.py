"""Each form in which frames go up, from `sample` through `distill`, as a user runs them."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import features

from cdcca_cli.formats import records, shard_stream
from cdcca_cli.formats.codebook import read_codebook
from cdcca_cli.formats.shard import Shard
from cdcca_cli.main import main
from cdcca_cli.payloads import curve
from tests import tiny
from tests.commands.test_calibrate import frames as make_frames

pytestmark = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
Capture = pytest.CaptureFixture[str]


class World:
    """A device and a mirror with the same codebook, a bare device, a teacher, and frames."""

    def __init__(self, root: Path, teacher: Path, student: Path) -> None:
        self.root, self.teacher = root, teacher
        self.frames = make_frames(root / "frames", 9, seed=4)
        others = make_frames(root / "others", 12, seed=1)
        for name in ("device", "mirror", "bare"):
            assert run("init", root / name, "--checkpoint", student, "--quiet") == 0
        self.device, self.mirror, self.bare = (root / n for n in ("device", "mirror", "bare"))
        self.codebook = root / "tokens.codebook"
        made = ("calibrate", others, "--student", self.mirror, "--teacher", teacher, "--quiet")
        options = ("--components", 6, "--set", "vectors=2", "-o", self.codebook)
        assert run(*made, *options) == 0
        for folder in (self.device, self.mirror):
            assert run("apply", folder, self.codebook, "--quiet") == 0

    def sample(self, out: Path, *options: object, device: Path | None = None) -> int:
        given = ("--set", "max_new_tokens=1", "-o", out, *options)
        return run("sample", self.frames, "-m", device or self.device, *given)

    def distill(self, shards: Path, *options: object, mirror: Path | None = None) -> int:
        given = ("--teacher", self.teacher, "--student", mirror or self.mirror, "--method", "akd")
        out = shards.with_suffix(".adaptation")
        return run("distill", shards, *given, "--epochs", 1, "-o", out, *options)


@pytest.fixture(scope="module")
def world(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), *tiny_pair)


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def shards_in(path: Path) -> list[Shard]:
    return list(shard_stream.read_shards(io.BytesIO(path.read_bytes())))


@pytest.mark.parametrize(
    ("options", "codec"),
    [
        ((), "klt"),
        (("--payload", "tokens"), "klt"),
        (("--payload", "tokens", "--keep", "50%"), "klt"),
        (("--payload", "tokens", "--codec", "int8"), "int8"),
        (("--payload", "tokens", "--codec", "float16", "--keep", "50%"), "float16"),
        (("--payload", "tokens", "--codec", "float32"), "float32"),
        (("--payload", "frame"), "frame"),
        (("--payload", "frame", "--quality", "5", "--set", "media=webp"), "frame"),
        (("--payload", "frame", "--quality", "5", "--set", "media=jpeg"), "frame"),
        (("--codec", "float32"), "frame"),  # a small picture is less than its tokens in float32
    ],
)
def test_every_payload_is_trained_on(
    world: World, tmp_path: Path, options: tuple[str, ...], codec: str, capfd: Capture
) -> None:
    """The same bytes again; the teacher's labels of them are found by a second run."""
    out = tmp_path / "s"
    for path in (out, tmp_path / "again"):
        assert world.sample(path, "--top", "100%", *options) == 0
    assert out.read_bytes() == (tmp_path / "again").read_bytes()
    assert "codebook" not in capfd.readouterr().err
    found = shards_in(out)
    assert {shard.coding.codec for shard in found} == {codec}
    kept = 5 if "50%" in options else 10
    assert [len(shard.positions) for shard in found] == [kept] * 9
    assert world.distill(out, "--labels", tmp_path / "labels") == 0
    err = capfd.readouterr().err
    assert "9 questions trained on" in err or "trained on; of" in err
    nothing = ("distill", out, "--student", world.mirror, "--epochs", 1, "-o", tmp_path / "b")
    assert run(*nothing, "--method", "akd", "--labels", tmp_path / "labels") == 0


def test_auto_records_what_the_other_form_would_have_taken(world: World, tmp_path: Path) -> None:
    sizes = {}
    for payload in ("auto", "tokens", "frame"):
        assert world.sample(tmp_path / payload, "--top", "100%", "--payload", payload) == 0
        with (tmp_path / payload).open("rb") as source:
            while record := records.read_record(source):
                if record.header["kind"] == "frames":
                    num_bytes = sum(array.nbytes for array in record.tensors.values())
                    sizes[payload] = (num_bytes, record.header["other"])
    assert sizes["auto"] == (sizes["tokens"][0], sizes["frame"][0])
    assert sizes["tokens"][0] < sizes["frame"][0]


def test_a_device_without_a_codebook_says_so_and_goes_on(
    world: World, tmp_path: Path, capfd: Capture
) -> None:
    out = tmp_path / "s"
    assert world.sample(out, device=world.bare) == 0
    note, summary = capfd.readouterr().err.splitlines()
    assert note.endswith("the device has no codebook, so tokens are sent as int8 or as pictures")
    assert "1 of 9 frames picked" in summary
    assert world.distill(out, mirror=world.bare) == 0


@pytest.mark.parametrize("options", [("--codec", "klt"), ("--step", "1"), ("--bits", "1")])
def test_klt_without_a_codebook_is_refused(
    world: World, tmp_path: Path, capfd: Capture, options: tuple[str, ...]
) -> None:
    out = tmp_path / "s"
    assert world.sample(out, "--payload", "tokens", *options, device=world.bare) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert options[0] in line and "codebook" in line and not out.exists()


def test_a_damaged_codebook_is_named_and_the_device_goes_on(
    world: World, tmp_path: Path, capfd: Capture
) -> None:
    damaged = Path(shutil.copytree(world.device, tmp_path / "device"))
    (file,) = (damaged / "codebooks").iterdir()
    for content in (b"noise", file.read_bytes()[:-5]):
        file.write_bytes(content)
        assert world.sample(tmp_path / "s", device=damaged) == 0
        err = capfd.readouterr().err
        assert file.name in err and "going on without a codebook" in err
        assert "Traceback" not in err


def test_a_mirror_without_the_codebook_says_what_to_apply(
    world: World, tmp_path: Path, capfd: Capture
) -> None:
    out = tmp_path / "s"
    assert world.sample(out, "--quiet") == 0
    assert world.distill(out, mirror=world.bare) == 66
    (line,) = capfd.readouterr().err.splitlines()
    assert "has no codebook sha256:" in line and "apply that codebook to this folder too" in line


def test_a_picture_that_cannot_be_opened_is_left_out(
    world: World, tmp_path: Path, capfd: Capture
) -> None:
    """It is named, and the rest is trained on; alone, nothing is left."""
    out = tmp_path / "s"
    assert world.sample(out, "--top", "100%", "--payload", "frame", "--quiet") == 0
    shards = shards_in(out)
    picture = shards[2].picture
    assert picture is not None
    data = bytearray(picture.data)
    data[len(data) // 2] ^= 0xFF
    shards[2] = replace(shards[2], picture=replace(picture, data=bytes(data)))
    for some, code in ((shards, 0), (shards[2:3], 65)):
        with out.open("wb") as file, shard_stream.writer(file) as write:
            for shard in some:
                write(shard)
        assert world.distill(out) == code
        err = capfd.readouterr().err
        assert f"left out: frame {shards[2].frame}: " in err and "Traceback" not in err
        assert world.distill(out, "--strict") == 65
        capfd.readouterr()


def test_shards_of_another_tower_are_refused(
    world: World, tmp_path: Path, blip2_llama: Path, capfd: Capture
) -> None:
    out, other = tmp_path / "s", tmp_path / "other"
    assert run("init", other, "--checkpoint", blip2_llama, "--quiet") == 0
    for payload in ("frame", "tokens"):
        assert world.sample(out, "--payload", payload, "--quiet", device=other) == 0
        assert world.distill(out) == 65
        err = capfd.readouterr().err
        assert "tower" in err and err.count("\n") == 1


def test_the_step_is_that_of_the_curve(world: World, tmp_path: Path) -> None:
    with world.codebook.open("rb") as source:
        codebook = read_codebook(source)
    first, *_, last = codebook.curve.tokens
    most, bits = last.loss, (first.bits + last.bits) / 2
    for options, step in (
        (("--step", "0.7"), 0.7),
        (("--bits", bits), curve.step_for(codebook, bits=bits)),
        (("--max-loss", f"{most}"), curve.step_for(codebook, max_loss=most)),
    ):
        assert world.sample(tmp_path / "s", "--payload", "tokens", *options) == 0
        (shard,) = shards_in(tmp_path / "s")
        assert shard.coding.step == pytest.approx(step, rel=1e-6)


def test_scores_are_sent_where_asked(world: World, tmp_path: Path) -> None:
    options = ("--payload", "tokens", "--keep", "50%", "--set", "scores=true")
    for rule, has in (("variance", True), ("grid", False)):
        assert world.sample(tmp_path / "s", *options, "--by", rule) == 0
        (shard,) = shards_in(tmp_path / "s")
        assert (shard.scores is not None) == has


def test_streams_are_added_to_a_file(world: World, tmp_path: Path) -> None:
    out = tmp_path / "s"
    assert world.sample(out, "--append") == 0
    assert world.sample(out, "--append", "--payload", "frame", "--top", "3") == 0
    assert world.sample(out, "--append", device=world.bare) == 0
    assert [shard.coding.codec for shard in shards_in(out)] == ["klt"] + ["frame"] * 4
    assert world.distill(out) == 0
    before = out.read_bytes()
    out.write_bytes(before[:-3])
    assert world.sample(out, "--append") == 65
    assert out.read_bytes() == before[:-3]


def test_a_share_and_a_budget(world: World, tmp_path: Path, capfd: Capture) -> None:
    """Finer with more bytes, never over; refused with its cure where it cannot be."""
    steps = []
    for most in (1200, 1300, 5000):
        out = tmp_path / f"{most}"
        assert world.sample(out, "--top", "50%", "--budget", most) == 0
        assert out.stat().st_size <= most
        steps.append({shard.coding.step for shard in shards_in(out)}.pop())
    assert steps == sorted(steps, reverse=True) and steps[0] > steps[-1]
    capfd.readouterr()
    assert world.sample(tmp_path / "x", "--top", "50%", "--budget", 300) == 2
    assert "--budget 300: too few for 5 frames: lower --top" in capfd.readouterr().err
    assert world.sample(tmp_path / "x", "--top", "2", "--budget", 5000, device=world.bare) == 2
    assert "a codebook" in capfd.readouterr().err and not (tmp_path / "x").exists()


def test_a_running_share_of_a_camera_goes_on_from_its_state(
    world: World, tmp_path: Path, capfd: Capture
) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    from tests.datasets import served

    def write(sink: object, _: str) -> None:
        served.mpeg_ts(sink, 25, 3)

    state, out = tmp_path / "state.json", tmp_path / "s"
    options = ("--running", "50%", "--every", "0.2", "--duration", "1.2", "--state", state)
    for _ in range(2):
        with served.serving(write) as server:
            address = ("sample", server.url("cam"), "-m", world.device)
            given = ("--set", "max_new_tokens=1", "-o", out, "--append")
            assert run(*address, *options, *given) == 0
    err = capfd.readouterr().err
    assert "Traceback" not in err and state.exists()
    found = shards_in(out)
    assert found and all(shard.time is not None for shard in found)
    assert all(shard.coding.codec == "klt" for shard in found)


def test_a_frame_is_not_sent_twice(world: World, tmp_path: Path, capfd: Capture) -> None:
    """The second run has one new frame, which looks like one that was sent."""
    folder = make_frames(tmp_path / "f", 4, seed=8)
    options = ("-m", world.device, "--top", "100%", "--state", tmp_path / "state.json")
    assert run("sample", folder, *options, "-o", tmp_path / "a") == 0
    tiny.images(4, seed=8)[1].save(folder / "4.png")
    with (folder / "frames.jsonl").open("a") as manifest:
        manifest.write('{"image": "4.png", "id": "4", "prompt": "how many?"}\n')
    capfd.readouterr()
    assert run("sample", folder, *options, "-o", tmp_path / "b") == 0
    assert shards_in(tmp_path / "b") == []
    assert "1 question of nearly the same picture not sent again" in capfd.readouterr().err
