"""`cdcca loop` and `cdcca demo`: Algorithm 1 through the files of its stages."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from cdcca_cli.errors import CannotWrite
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.shard_stream import read_shards
from cdcca_cli.loop import demo
from cdcca_cli.main import main
from cdcca_cli.reporting.gather import gather
from cdcca_cli.reporting.settings import ReportSettings
from tests.shipped import few_frames


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("few")
    for name in ("stream", "heldout", "source", "anchors"):
        few_frames(root / name, name, 8)
    return root


def probe_elsewhere(frames: Path, folder: Path) -> Path:
    """The manifest of some frames away from their pictures."""
    return Path(shutil.copy(frames / "frames.jsonl", folder / "probe.jsonl"))


@pytest.mark.parametrize("method", ["kd", "akd"])
def test_the_loop_leaves_what_the_stages_leave(
    method: str, few: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The update of its first round is the one that the separate commands make, byte for byte;
    the teacher's labels that it kept are all that they need."""
    labels = str(tmp_path / "teacher.labels")
    for side in ("device", "other", "mirror"):
        assert main(["init", str(tmp_path / side), "--quiet"]) == 0
    stream, work = str(few / "stream"), tmp_path / "work"
    common = ["--batch-size", "16", "--quiet"]
    loop = ["loop", stream, "-m", str(tmp_path / "device"), "--rounds", "1", "--top", "50%"]
    loop += ["--epochs", "2", "--method", method, "--labels", labels, "-o", str(work), *common]
    probe = ["--probe", str(probe_elsewhere(few / "heldout", tmp_path))]
    assert main([*loop, *probe, "--probe-images", str(few / "heldout")]) == 0
    report = json.loads(capfd.readouterr().out)
    assert Device.open(tmp_path / "device").digest == Device.open(work / "mirror").digest
    assert report["rounds"][0]["uplink_bytes"] == (work / "round-1/uplink.tokens").stat().st_size
    assert report["rounds"][0]["downlink_bytes"] == (work / "round-1/update.cdcca").stat().st_size
    assert [sorted(point) for point in report["scores"]["probe"]] == [
        ["bleu4", "cider", "da", "mc"],
        ["bleu4", "cider", "da", "mc"],
    ]

    (run,) = gather([work], ReportSettings())[0]["runs"]
    assert run["scores"][0]["from"] == "history" and run["rounds"][0]["seconds"] is not None
    assert [len(run[part]) for part in ("training", "gate", "teaching", "digests")] == [1, 1, 1, 1]
    assert run["settings"]["distill"]["method"] == method and run["sources"]["frames"] == stream
    assert run["entropy"]["rounds"][0]["n"] > 0
    assert json.loads((work / "history.json").read_text())["scores"] == report["scores"]
    probed = [work / name / "probe.jsonl" for name in ("start", "round-1")]
    assert all(path.read_text().count("\n") > 8 for path in probed)

    tokens, learnt, update = (str(tmp_path / name) for name in ("u.tokens", "a", "update.cdcca"))
    other, mirror = str(tmp_path / "other"), str(tmp_path / "mirror")
    predictions = str(tmp_path / "p.jsonl")
    assert main(["infer", stream, "-m", other, "-o", predictions, *common]) == 0
    sample = ["sample", stream, "-m", other, "--predictions", predictions, "--top", "50%"]
    assert main([*sample, "-o", tokens, *common]) == 0
    assert Path(tokens).read_bytes() == (work / "round-1/uplink.tokens").read_bytes()
    distill = ["distill", tokens, "--student", mirror, "--epochs", "2", "-o", learnt, *common]
    assert main([*distill, "--method", method, "--labels", labels]) == 0
    assert main(["compress", learnt, "--base", mirror, "-o", update, "--quiet"]) == 0
    assert Path(update).read_bytes() == (work / "round-1/update.cdcca").read_bytes()


def test_every_round_is_held_to_the_anchors(
    few: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Their questions are asked in the first round alone, and the student's word stays the first.

    inspect shows the drift of an adaptation.
    """
    device, work = str(tmp_path / "device"), tmp_path / "work"
    anchors, labels = str(tmp_path / "anchors.tokens"), work / "teacher.labels"
    assert main(["init", device, "--quiet"]) == 0
    sample = ["sample", str(few / "anchors"), "-m", device, "--top", "100%"]
    assert main([*sample, "-o", anchors, "--quiet"]) == 0
    loop = ["loop", str(few / "stream"), "-m", device, "--rounds", "2", "--top", "50%"]
    loop += ["--epochs", "1", "-o", str(work), "--quiet"]
    assert main([*loop, "--anchors", anchors]) == 0
    rounds = json.loads(capfd.readouterr().out)["rounds"]
    assert [done["drift"]["where"] for done in rounds] == ["anchors"] * len(rounds)
    assert rounds[0]["drift"]["before"] == 0
    own = b'"student sha256:'.replace(b'"', b'\\"')
    with open(anchors, "rb") as file:
        num_frames = len(list(read_shards(file)))
    assert labels.read_bytes().count(own) == num_frames
    assert main(["inspect", str(work / "round-1" / "adaptation.safetensors")]) == 0
    assert json.loads(capfd.readouterr().out)["report"]["drift"] == rounds[0]["drift"]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--anchors", "nowhere.tokens"], 66, "nowhere.tokens"),
        (["--anchors", "-"], 2, "--anchors -: expected a name on disk"),
        (["--anchors", "a", "--method", "tent"], 2, "--anchors: does nothing with --method tent"),
    ],
)
def test_anchors_are_refused_before_a_model_is_loaded(
    options: list[str],
    code: int,
    said: str,
    few: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "device", "--quiet"]) == 0
    assert main(["loop", str(few / "stream"), "-m", "device", "--quiet", *options]) == code
    assert said in capfd.readouterr().err


def test_a_mirror_that_is_not_the_devices_is_refused(
    few: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path / "device"), "--quiet"]) == 0
    assert main(["init", str(tmp_path / "mirror"), "--seed", "1", "--quiet"]) == 0
    arguments = ["loop", str(few / "stream"), "-m", str(tmp_path / "device"), "--quiet"]
    arguments += ["--student", str(tmp_path / "mirror"), "-o", str(tmp_path / "work")]
    assert main(arguments) == 65
    assert "run init for both with the same options" in capfd.readouterr().err


def test_a_start_that_fails_leaves_the_folder_free(
    few: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path / "device"), "--quiet"]) == 0
    arguments = ["loop", str(few / "stream"), "-m", str(tmp_path / "device"), "--quiet"]
    arguments += ["--teacher", "no.labels", "-o", str(tmp_path / "work")]
    assert main(arguments) == 66
    assert "no.labels: no such" in capfd.readouterr().err
    assert not (tmp_path / "work").exists()


def earlier_run(work: Path) -> dict[str, bytes]:
    """The files of a run of two rounds."""
    for number in (1, 2):
        folder = work / f"round-{number}"
        folder.mkdir(parents=True)
        (folder / "update.cdcca").write_bytes(b"earlier")
    return earlier_files(work)


def test_an_earlier_run_is_not_replaced_unless_asked(
    few: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Refused (73) before a model is loaded; with --force no file of the earlier run stays."""
    before = earlier_run(tmp_path / "rounds")
    for side in ("device", "mirror"):
        assert main(["init", str(tmp_path / side), "--quiet"]) == 0
    arguments = ["loop", str(few / "stream"), "-m", str(tmp_path / "device"), "--quiet"]
    arguments += ["--student", str(tmp_path / "mirror"), "-o", str(tmp_path / "rounds")]
    arguments += ["--rounds", "1", "--epochs", "1", "--top", "4"]
    assert main(arguments) == 73
    err = capfd.readouterr().err
    assert "belongs to an earlier run" in err and "give --force to replace it" in err
    assert earlier_files(tmp_path / "rounds") == before
    assert main([*arguments, "--teacher", "gone.labels", "--force"]) == 66
    assert earlier_files(tmp_path / "rounds") == before
    assert main([*arguments, "--force"]) == 0
    (update,) = (tmp_path / "rounds").rglob("*.cdcca")
    assert update.read_bytes() != b"earlier"


def earlier_files(work: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in work.rglob("*.cdcca")}


def test_demo_tells_a_table_and_two_sentences(
    few: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.setattr(demo, "FRAMES", few)
    page = tmp_path / "demo.html"
    assert main(["demo", "--rounds", "1", "--threads", "1", "--report", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "<title>cdcca report: cdcca demo</title>" in text
    for words in ("<bdi>heldout</bdi>, MC", "Frames that got better and worse", "<img src="):
        assert words in text
    shown = capfd.readouterr()
    lines = [line for line in shown.out.splitlines() if line.strip()]
    for words in ("source only", "round 1", "uplink bytes", "MC"):
        assert any(words in line for line in lines), words
    assert lines[-2].startswith("After 1 round,") and lines[-1].startswith("On the stream")
    assert "round 1: " in shown.err


def test_demo_exports_its_frames_to_a_new_folder_only(tmp_path: Path) -> None:
    assert main(["demo", "--export", str(tmp_path / "frames")]) == 0
    assert (tmp_path / "frames/stream/frames.jsonl").is_file()
    assert main(["demo", "--export", str(tmp_path / "frames")]) == 73


@pytest.mark.slow
def test_demo_gains_at_least_what_the_paper_did(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The paper: MC +3.93, DA +3.19, CIDEr +2.2. Ours: the source at most 3 points worse."""
    assert main(["demo", "--json"]) == 0
    gains = json.loads(capfd.readouterr().out)["gains"]
    for metric, least in (("mc", 3.93), ("da", 3.19), ("cider", 2.2)):
        assert gains["heldout"][metric]["value"] >= least
        assert gains["heldout"][metric]["low"] > 0
    for metric in ("mc", "da"):
        assert gains["source"][metric]["value"] >= -3


@pytest.mark.parametrize("place", ["nowhere/x.html", "", "locked/x.html"])
def test_demo_refuses_a_page_that_it_cannot_write_before_the_work(
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    if place.startswith("locked"):
        (tmp_path / "locked").mkdir(mode=0o500)
        monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write there
    monkeypatch.setattr(demo, "run", lambda *_, **__: pytest.fail("it works"))
    assert main(["demo", "--report", str(tmp_path / place)]) == 73
    assert str(tmp_path / place) in capfd.readouterr().err


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_demo_tells_what_it_found_before_the_page_fails(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    page = pytest.importorskip("cdcca_cli.reporting.page", reason="jinja2 is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")

    def fails(*_: object) -> None:
        raise CannotWrite("of the test")

    done = SimpleNamespace(as_json=dict, rows=lambda: iter(()))
    monkeypatch.setattr(demo, "run", lambda *_, **__: done)
    monkeypatch.setattr(demo, "sentences", lambda history: ["what it found"])
    monkeypatch.setattr("cdcca_cli.reporting.gather.gather", lambda *_, **__: ({}, None))
    monkeypatch.setattr(page, "write", fails)
    assert main(["demo", "--report", str(tmp_path / "x.html"), *words]) == 73
    assert "what it found" in capfd.readouterr().out
