"""The log of a training: what each line says, and that a run in two pieces has one log."""

import json
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdcca_cli.distillation import epochs, trainer
from cdcca_cli.distillation.distill import distill
from cdcca_cli.distillation.evaluation import HeldOutResult
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.step_log import StepLog
from cdcca_cli.errors import CannotWrite
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel
from tests.distillation.conftest import Stopped, stopped_at_step

QUICK = DistillSettings(
    method="akd", epochs=2, batch_size=8, holdout=0.3, seed=3, query_weight=1.0, repr_weight=1.0
)
STEP = {"what", "step", "of", "epoch", "lr", "loss", "gradient_norm", "questions"}
STEP |= {"seconds", "seconds_left"}


def lines_of(path: Path, what: str | None = None) -> list[dict[str, Any]]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text = path.read_text()
    assert text.endswith("\n")
    found = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    return [line for line in found if what in (None, line["what"])]


def test_every_line_of_a_trainer(
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """20 questions in batches of 8, 8 and 4. Norms and means are those that the steps returned."""
    inner, returned = trainer.Trainer.step, []

    def step(this: trainer.Trainer, batch: list[int], *rest: Any) -> Any:
        made = inner(this, batch, *rest)
        returned.append((len(batch), *made))
        return made

    monkeypatch.setattr(trainer.Trainer, "step", step)
    path = tmp_path / "log"
    made = distill(shards, teacher, mirror, QUICK, log=StepLog(path))
    lines = lines_of(path)
    order = ["begin", "held_out", *["step"] * 3, "held_out", *["step"] * 3, "held_out"]
    assert [line["what"] for line in lines] == order
    assert lines[0] == {
        "what": "begin",
        "method": "akd",
        "epochs": 2,
        "batch_size": 8,
        "lr": made.report["lr"],
        "terms": ["query", "repr", "ce"],
        "seed": 3,
    }
    steps = [line for line in lines if line["what"] == "step"]
    for number, (line, (count, means, norm)) in enumerate(zip(steps, returned, strict=True)):
        assert set(line) == STEP | {"query", "repr", "ce"}
        assert (line["step"], line["of"]) == (number + 1, 6)
        assert (line["epoch"], line["questions"]) == (number // 3 + 1, count)
        assert line["lr"] == made.report["lr"] * epochs.schedule(number, 6)
        terms = [line[name] for name in ("loss", "query", "repr", "ce")]
        assert terms == pytest.approx(means.tolist(), abs=1e-6)
        assert line["gradient_norm"] == pytest.approx(float(norm), abs=1e-6)
    assert sorted(line["questions"] for line in steps) == [4, 4, 8, 8, 8, 8]
    curve = sum(line["ce"] * line["questions"] for line in steps[:3]) / 20
    assert made.report["curves"]["ce"][0] == pytest.approx(curve, abs=1e-5)
    held = [line for line in lines if line["what"] == "held_out"]
    assert [line["epoch"] for line in held] == [0, 1, 2]
    assert [line["cross_entropy"] for line in held] == made.report["curves"]["held_out"]
    assert set(held[0]) == {"what", "epoch", "cross_entropy", "agreement", "seconds"}
    seconds = [line["seconds"] for line in lines[1:]]
    assert seconds == sorted(seconds) and seconds[0] >= 0
    assert steps[-1]["seconds_left"] == 0 < steps[0]["seconds_left"]


def test_a_run_in_two_pieces_has_one_log(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], tmp_path: Path
) -> None:
    """The steps of the epoch that was broken off stand twice, the others once."""
    path, settings = tmp_path / "log", replace(QUICK, work=tmp_path / "work")
    with stopped_at_step(5), pytest.raises(Stopped):
        distill(shards, teacher, mirror, settings, log=StepLog(path))
    made = distill(shards, teacher, mirror, settings, log=StepLog(path))
    steps = lines_of(path, "step")
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 4, 5, 6]
    assert [steps[4][name] for name in ("loss", "ce", "gradient_norm")] == (
        [steps[3][name] for name in ("loss", "ce", "gradient_norm")]
    )
    assert [line["epoch"] for line in lines_of(path, "held_out")] == [0, 1, 2]
    assert len(lines_of(path, "begin")) == 2
    assert made.report["epochs_done"] == 2


def test_the_steps_through_the_quantiser_are_logged(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], tmp_path: Path
) -> None:
    """Each of them, and each look at what the device would have, the first before a step."""
    settings = replace(QUICK, epochs=1, rate_aware=7)
    made = distill(shards, teacher, mirror, settings, log=StepLog(tmp_path / "log"))
    last = [line for line in lines_of(tmp_path / "log") if "segment" in line]
    steps = [line for line in last if line["what"] == "step"]
    assert [(line["step"], line["of"]) for line in steps] == [(n, 7) for n in range(1, 8)]
    assert [line["segment"] for line in steps] == [1, 2, 2, 3, 4, 4, 5]
    assert set(steps[0]) == STEP - {"epoch"} | {"segment", "query", "repr", "ce"}
    held = [line for line in last if line["what"] == "held_out"]
    assert [line["segment"] for line in held] == [0, 1, 2, 3, 4, 5]
    curve = made.report["rate_aware"]["curves"]["held_out"]
    assert [line["cross_entropy"] for line in held] == curve


@pytest.mark.parametrize(
    ("method", "terms"),
    [("tent", ["entropy"]), ("cotta", ["consistency"]), ("none", []), ("pkd", ["ce"])],
)
def test_terms_by_method(
    method: str,
    terms: list[str],
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
) -> None:
    settings = DistillSettings(
        method=method,
        epochs=1,
        batch_size=8,
        cotta_views=1,
        **({"query_weight": 0, "repr_weight": 0} if method == "pkd" else {}),  # type: ignore[arg-type]
    )
    distill(shards, teacher, mirror, settings, log=StepLog(tmp_path / "log"))
    assert lines_of(tmp_path / "log", "begin")[0]["terms"] == terms
    for line in lines_of(tmp_path / "log", "step"):
        assert set(line) == STEP | set(terms)
        assert line["loss"] == pytest.approx(sum(line[term] for term in terms))


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    """A training that diverges can be read to its end."""
    log = StepLog(tmp_path / "log")
    log.begin(QUICK, 1e30, ["ce"])
    means = {"loss": math.nan, "ce": math.inf}
    log.step(1, 2, {"epoch": 1}, 1e30, means, torch.tensor(math.nan), 8)
    log.held_out(
        {"epoch": 1}, HeldOutResult(np.array([np.nan], np.float32), np.array([0], np.float32))
    )
    (step,), (held,) = (lines_of(tmp_path / "log", what) for what in ("step", "held_out"))
    assert (step["loss"], step["ce"], step["gradient_norm"]) == (None, None, None)
    assert held["cross_entropy"] is None


def test_time_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps in 6 seconds, 8 of 10 left: 24 seconds. Gone on with at step 7: from then on."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for first in (1, 7):
        log = StepLog(tmp_path / str(first))
        now[0] += 50  # the teacher is asked meanwhile
        log.start()
        log.begin(QUICK, 0.1, ["ce"])
        for number in (first, first + 1):
            now[0] += 3
            log.step(number, 10, {"epoch": 1}, 0.1, {"loss": 1.0}, torch.tensor(1.0), 8)
        last = lines_of(tmp_path / str(first), "step")[-1]
        assert (last["seconds"], last["seconds_left"]) == (6, 24 if first == 1 else 6)
        now[0] += 1
        log.step(1, 5, {"segment": 1}, 0.1, {"loss": 1.0}, torch.tensor(1.0), 8)
        assert lines_of(tmp_path / str(first), "step")[-1]["seconds_left"] == 4


def test_each_line_is_on_disk_at_once(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "log")
    log.begin(QUICK, 0.1, ["ce"])
    assert len(lines_of(tmp_path / "log")) == 1
    log.step(1, 2, {"epoch": 1}, 0.1, {"loss": 1.0}, torch.tensor(1.0), 8)
    assert len(lines_of(tmp_path / "log")) == 2


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="no such file"):
        StepLog(tmp_path / "nowhere" / "log")
    log = StepLog(Path("/dev/full"))
    with pytest.raises(CannotWrite, match="/dev/full: no space"):
        log.begin(QUICK, 0.1, ["ce"])
    silent = StepLog(None)
    silent.begin(QUICK, 0.1, ["ce"])
    silent.step(1, 2, {"epoch": 1}, 0.1, {"loss": 1.0}, torch.tensor(1.0), 8)


def test_the_file_is_closed(tmp_path: Path) -> None:
    """After the block, also where it was left by an error; closing twice is nothing."""
    with pytest.raises(KeyError), closing(StepLog(tmp_path / "log")) as log:
        file = log._outs[0]._out  # type: ignore[union-attr]
        assert file is not None and not file.closed
        raise KeyError
    assert file.closed
    log.close()
    log.held_out({"epoch": 1}, HeldOutResult(np.zeros(1, np.float32), np.zeros(1, np.float32)))
    assert (tmp_path / "log").read_text() == ""
