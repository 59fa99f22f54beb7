"""Trackers get the figures of the JSON lines: read back by each one's own library, where it is.

The others are skipped by name; the rules are tested with a tracker that keeps what it gets.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdcca_cli import errors
from cdcca_cli.distillation import trackers
from cdcca_cli.distillation.evaluation import HeldOutResult
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.step_log import StepLog
from cdcca_cli.distillation.trackers import TRACKERS, Place, Tracker, places
from cdcca_cli.main import main

SETTINGS = DistillSettings(seed=5, train=("norm", "bias"), labels=("secret.labels",))
Rows = list[tuple[dict[str, float], int]]


def held_out(nats: float) -> HeldOutResult:
    return HeldOutResult(np.full(4, nats, np.float32), np.array([1, 0, 0, 1], np.float32))


def train(log: StepLog) -> None:
    """Two epochs of two steps, of which one diverges for a moment; then two rate-aware steps."""
    log.begin(SETTINGS, 0.012345, ["ce", "kl"])
    log.held_out({"epoch": 0}, held_out(2.5))
    for step in range(1, 5):
        means = {"loss": 3.25 / step, "ce": 2 / step, "kl": math.nan if step == 2 else 1.25 / step}
        log.step(step, 4, {"epoch": (step + 1) // 2}, 0.01 / step, means, torch.tensor(0.5), 16)
        if step % 2 == 0:
            log.held_out({"epoch": step // 2}, held_out(2 / step))
    log.held_out({"segment": 0}, held_out(0.75))
    for step in (1, 2):
        means = {"loss": 1 / 3, "ce": 1 / 3, "kl": 0.0}
        log.step(step, 2, {"segment": step}, 1e-4, means, torch.tensor(1.5), 8)
        log.held_out({"segment": step}, held_out(0.7))


def expected(path: Path) -> Rows:
    """What the JSON lines say, written out."""
    found: Rows = []
    steps = {"epoch": 0, "segment": 0}
    for line in map(json.loads, path.read_text().splitlines()):
        if line["what"] == "begin":
            continue
        unit = "epoch" if "epoch" in line else "segment"
        steps[unit] = line.get("step", steps[unit])
        group = {
            ("epoch", "step"): "train",
            ("epoch", "held_out"): "held_out",
            ("segment", "step"): "rate_aware",
            ("segment", "held_out"): "rate_aware_held_out",
        }[unit, line["what"]]
        figures = {
            f"{group}/{name}": value
            for name, value in line.items()
            if name not in ("what", "step", "of") and value is not None
        }
        found.append((figures, steps[unit]))
    return found


def by_figure(rows: Rows) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for figures, step in rows:
        for name, value in figures.items():
            found.setdefault(name, []).append((step, value))
    return found


# ---------------------------------------------------------------- each library's own reader


def read_tensorboard(folder: Path) -> tuple[Rows, Mapping[str, Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    (run,) = folder.iterdir()
    read = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    rows: Rows = [
        ({name: event.value}, event.step)
        for name in read.Tags()["scalars"]
        for event in read.Scalars(name)
    ]
    start = HParamsPluginData.FromString(
        read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    ).session_start_info
    config = {
        name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()
    }
    return rows, config


def read_trackio(folder: Path) -> tuple[Rows, Mapping[str, Any]]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs("project")
    rows = [
        ({k: v for k, v in row.items() if "/" in k}, row["step"])
        for row in SQLiteStorage.get_logs("project", run.name)
    ]
    return rows, run.config or {}


def read_mlflow(folder: Path) -> tuple[Rows, Mapping[str, Any]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("cdcca")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    rows: Rows = [
        ({name: one.value}, one.step)
        for name in run.data.metrics
        for one in client.get_metric_history(run.info.run_id, name)
    ]
    return rows, run.data.params


def read_wandb(folder: Path) -> tuple[Rows, Mapping[str, Any]]:
    """An offline run: protocol buffers in a log of LevelDB's format, behind 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = Path("wandb").glob("offline-run-*/run-*.wandb")
    data, at, whole = path.read_bytes(), 7, b""
    rows: Rows = []
    config: dict[str, Any] = {}
    while at < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind not in (1, 4):  # the whole record, or its end
            continue
        record, whole = Record.FromString(whole), b""
        for item in record.run.config.update or record.config.update:
            config[item.key or item.nested_key[0]] = json.loads(item.value_json)
        items = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        steps = [value for name, value in items.items() if name.endswith("/step")]
        if steps:
            figures = {k: v for k, v in items.items() if "/" in k and not k.endswith("/step")}
            rows.append((figures, *steps))
    return rows, config


READERS: dict[str, Callable[[Path], tuple[Rows, Mapping[str, Any]]]] = {
    "tensorboard": read_tensorboard,
    "trackio": read_trackio,
    "mlflow": read_mlflow,
    "wandb": read_wandb,
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("WANDB_", "TRACKIO_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return tmp_path


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_has_the_figures_of_the_lines(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if find_spec(name) is None:
        pytest.skip(f"needs {name}: pip install 'cdcca[{name}]'")
    if name == "trackio":
        import trackio.sqlite_storage
        import trackio.utils

        for module in (trackio.utils, trackio.sqlite_storage):
            monkeypatch.setattr(module, "TRACKIO_DIR", here / "trackio")
    target = "project" if name in ("trackio", "wandb") else "runs"
    with StepLog(here / "log", *places([f"{name}:{target}"]), run="kd") as log:
        train(log)
    rows, config = READERS[name](here / "runs")
    assert capfd.readouterr() == ("", "")
    wanted, found = by_figure(expected(here / "log")), by_figure(rows)
    assert found.keys() == wanted.keys()
    for figure, series in wanted.items():
        assert [step for step, _ in found[figure]] == [step for step, _ in series], figure
        values = [value for _, value in series]
        # TensorBoard keeps 32 bits.
        assert [value for _, value in found[figure]] == pytest.approx(values, rel=1e-7), figure
    assert len(wanted["train/kl"]) == 3 and len(wanted["held_out/cross_entropy"]) == 3
    assert wanted["held_out/cross_entropy"][1] == (2, 1.0)
    texts = {key: str(value) for key, value in config.items()}
    assert texts["method"] == "kd" and float(texts["seed"]) == 5
    assert texts["lr"] == "0.012345" and "bias" in texts["train"]
    assert not {"work", "labels"} & config.keys()


def test_a_run_in_tensorboard_can_be_read_while_it_goes_on(here: Path) -> None:
    if find_spec("tensorboard") is None:
        pytest.skip("needs tensorboard: pip install 'cdcca[tensorboard]'")
    log = StepLog(*places(["tensorboard:runs"]), run="kd")
    log.step(1, 2, {"epoch": 1}, 0.1, {"loss": 2.5}, torch.tensor(1.0), 8)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = (here / "runs").iterdir()
    assert EventAccumulator(str(run)).Reload().Scalars("train/loss")[0].value == 2.5
    with StepLog(*places(["tensorboard:runs"]), run="kd"):
        assert len([*(here / "runs").iterdir()]) == 2  # in the same second, too
    log.close()


# ---------------------------------------------------------------- rules


class Kept(Tracker):
    """Keeps what it gets, and fails at the calls that it is told to fail at."""

    made: list["Kept"]
    fails_at: str

    def __init__(self, target: str, run: str) -> None:
        self.calls: list[Any] = [(target, run)]
        type(self).made.append(self)
        self._do("open")

    def begin(self, config: Mapping[str, Any]) -> None:
        self._do("begin", config)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._do("log", figures, step)

    def close(self, *, is_failed: bool) -> None:
        self._do("close", is_failed)

    def _do(self, name: str, *values: Any) -> None:
        self.calls.append((name, *values))
        if name == type(self).fails_at:
            raise OSError(f"no space\nleft for {name}")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> type[Kept]:
    class Own(Kept):
        pass

    Own.made, Own.fails_at = [], ""

    monkeypatch.setitem(TRACKERS, "json", Own)  # a module that is always here
    return Own


def test_what_a_name_means(kept: type[Kept], here: Path) -> None:
    found = places(["log", "./json:x", "json:a/b:c", "json", "wandb.jsonl", "other:x"])
    assert found == [
        Path("log"),
        Path("json:x"),
        Place("json", "a/b:c"),
        Path("json"),
        Path("wandb.jsonl"),
        Path("other:x"),
    ]
    with pytest.raises(errors.SettingError, match=r"expected json:NAME; \./json: is a file"):
        places(["json:"])
    for name in ("-", "s3://b/k", "pipe:cat"):
        with pytest.raises(errors.SettingError):
            places([name])
    assert str(Place("mlflow", "http://me:secret@host/x")) == "mlflow:http://host/x"


def test_a_tracker_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before anything is read."""
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    for name in READERS:
        assert main(["distill", "gone.tokens", "--log", f"{name}:x"]) == 69
        assert capfd.readouterr().err == (
            f"cdcca distill: {name}:x: needs the package {name}: pip install 'cdcca[{name}]'\n"
        )


def test_every_tracker_has_an_extra() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert READERS.keys() == TRACKERS.keys() <= project["optional-dependencies"].keys()


def test_a_tracker_gets_each_line_at_once_and_its_end(kept: type[Kept], here: Path) -> None:
    with StepLog(here / "log", *places(["json:x"]), run="akd") as log:
        train(log)
        (tracker,) = kept.made
        assert [call[1:] for call in tracker.calls if call[0] == "log"] == expected(here / "log")
    (target, run), _, (begun, config), *_, end = tracker.calls
    assert target == "x" and run.startswith("akd-2") and begun == "begin"
    assert config["lr"] == 0.012345 and config["terms"] == ["ce", "kl"] and config["cdcca"]
    assert end == ("close", False)
    log.held_out({"epoch": 3}, held_out(1))
    assert tracker.calls[-1] == end
    with pytest.raises(KeyError), StepLog(*places(["json:x"])):
        raise KeyError
    assert kept.made[1].calls[-1] == ("close", True)


@pytest.mark.parametrize("call", ["begin", "log", "close"])
def test_a_tracker_that_fails_is_named_once_and_the_rest_goes_on(
    call: str, kept: type[Kept], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept.fails_at = call
    with StepLog(*places(["json:x"]), here / "log") as log:
        train(log)
    assert capfd.readouterr().err == (
        f"cdcca: json:x: OSError: no space left for {call}: it gets no more of this log\n"
    )
    assert len((here / "log").read_text().splitlines()) == 13
    names = [name for name, *_ in kept.made[0].calls[1:]]
    assert names.count(call) == 1 and names[-1] == "close"


def test_a_tracker_that_cannot_be_opened_is_an_error(kept: type[Kept], here: Path) -> None:
    """And a run that was opened before it is ended."""
    log = places(["json:x", "json:y"])
    inner = kept.__init__

    def second_fails(this: Kept, target: str, run: str) -> None:
        kept.fails_at = "open" if target == "y" else ""
        inner(this, target, run)

    kept.__init__ = second_fails  # type: ignore[method-assign]
    with pytest.raises(errors.Unavailable, match="json:y cannot be opened: OSError: no space left"):
        StepLog(here / "log", *log)
    assert kept.made[0].calls[-1] == ("close", True)


def test_a_full_disk_stops_tensorboard_alone(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if find_spec("tensorboard") is None:
        pytest.skip("needs tensorboard: pip install 'cdcca[tensorboard]'")
    from tensorboard.summary.writer.record_writer import RecordWriter

    with StepLog(*places(["tensorboard:runs"]), here / "log") as log:
        tracker = log._outs[0]._tracker  # type: ignore[union-attr]
        assert isinstance(tracker, trackers.TensorBoard)
        tracker._file.close()
        tracker._file = open("/dev/full", "wb")  # noqa: SIM115
        tracker._records = RecordWriter(tracker._file)
        train(log)
    assert capfd.readouterr().err == (
        "cdcca: tensorboard:runs: OSError: [Errno 28] No space left on device: it gets no more of "
        "this log\n"
    )
    assert len((here / "log").read_text().splitlines()) == 13


def test_settings_reach_a_tracker_as_they_are(kept: type[Kept], here: Path) -> None:
    """All but names of files."""
    settings = replace(SETTINGS, work=here / "work", epochs=7)
    with StepLog(*places(["json:x"])) as log:
        log.begin(settings, 0.5, ["ce"])
    config = kept.made[0].calls[2][1]
    assert (config["epochs"], config["lr"], config["train"]) == (7, 0.5, ("norm", "bias"))
    assert "secret" not in str(config) and "work" not in config


def test_a_place_that_is_named_twice_is_written_once(tmp_path: Path) -> None:
    name = str(tmp_path / "steps.jsonl")
    assert places([name, name]) == [Path(name)]
