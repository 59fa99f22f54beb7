"""Trackers that the figures of training can go to, each by its own library.

    tensorboard:FOLDER   event files in a folder of their own for each run, in FOLDER
    trackio:PROJECT      local (TRACKIO_DIR), or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say
    mlflow:URI           a server or database; a folder: FOLDER/mlflow.db
    wandb:PROJECT        or ENTITY/PROJECT; WANDB_MODE=offline sends nothing

`step_log` gives each of them the same figures as the JSON lines:

    train/*, held_out/*                         of epochs
    rate_aware/*, rate_aware_held_out/*         of the steps through the quantiser

with the number of the step as in the lines; an evaluation has that of the last step before it. The
run is named by its method and time. Its configuration are the settings of training, without names
of files. Nothing else is sent: no source code, command line, output or load of the machine.
"""

import os
import re
import socket
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

from cdcca_cli import settings, streams
from cdcca_cli.errors import SettingError, Unavailable

Figures = Mapping[str, float]
Config = Mapping[str, Any]
GROUPS = ("train", "held_out", "rate_aware", "rate_aware_held_out")
"""What the names of figures begin with."""
_LONGEST_PARAMETER = 500
"""Characters that every MLflow server stores of a parameter."""
_FINISH_SECONDS = 120
"""How long the end of a run waits for a network."""


class Tracker(ABC):
    """One run in a tracker. Every method may raise anything that its library raises."""

    @abstractmethod
    def __init__(self, target: str, run: str) -> None:
        """Open the run. Args: target: what stands behind the colon. run: its name."""

    @abstractmethod
    def begin(self, config: Config) -> None:
        """Note the settings; values are those of JSON."""

    @abstractmethod
    def log(self, figures: Figures, step: int) -> None:
        """Note the figures of a step, which begin with one of GROUPS."""

    @abstractmethod
    def close(self, *, is_failed: bool) -> None:
        """End the run."""


class TensorBoard(Tracker):
    """An event file that has each line at once; TensorBoard's own writer keeps them in a queue."""

    def __init__(self, target: str, run: str) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = _new_folder(Path(target), run)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / name, "wb")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")

    def begin(self, config: Config) -> None:
        from torch.utils.tensorboard.summary import hparams

        plain = {name: _plain(value) for name, value in config.items() if value is not None}
        for summary in hparams(plain, {}):
            self._add(summary=summary)

    def log(self, figures: Figures, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._add(step=step, summary=Summary(value=values))

    def close(self, *, is_failed: bool) -> None:
        self._file.close()

    def _add(self, **known: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **known).SerializeToString())
        self._records.flush()


class Trackio(Tracker):
    """Local, unless the environment names a server or Space. It reports its faults as warnings."""

    def __init__(self, target: str, run: str) -> None:
        self._target, self._show = target, warnings.showwarning
        with redirect_stdout(StringIO()), _without_the_hub():
            import trackio

            self._run = trackio.init(
                target, run, embed=False, auto_log_gpu=False, auto_log_cpu=False
            )
        warnings.showwarning = self._hear  # type: ignore[assignment]

    def begin(self, config: Config) -> None:
        self._run.config.update(config)

    def log(self, figures: Figures, step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self, *, is_failed: bool) -> None:
        import trackio

        with redirect_stdout(StringIO()):
            trackio.finish()
        warnings.showwarning = self._show

    def _hear(self, message: Any, kind: Any, filename: str, lineno: int, *rest: Any) -> None:
        """Trackio's warnings in one line each; the others as before."""
        if "trackio" in Path(filename).parts:
            streams.complain(f"trackio:{self._target}: {' '.join(str(message).split())}")
        else:
            self._show(message, kind, filename, lineno, *rest)


class MLflow(Tracker):
    """A run of the experiment `cdcca`, or of the one that MLFLOW_EXPERIMENT_NAME names."""

    def __init__(self, target: str, run: str) -> None:
        # Its library reports its use to its makers, and waits for a lost server for an hour.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        from mlflow.tracking import MlflowClient

        artifacts = None
        if ":" not in target and target != "databricks":
            folder = Path(target).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            target, artifacts = f"sqlite:///{folder}/mlflow.db", str(folder / "mlruns")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "cdcca")
        self._client = MlflowClient(target)
        found = self._client.get_experiment_by_name(name)
        experiment = (
            self._client.create_experiment(name, artifact_location=artifacts)
            if found is None
            else found.experiment_id
        )
        self._run = self._client.create_run(experiment, run_name=run).info.run_id

    def begin(self, config: Config) -> None:
        from mlflow.entities import Param

        texts = {name: str(_plain(value))[:_LONGEST_PARAMETER] for name, value in config.items()}
        self._client.log_batch(self._run, params=[Param(*pair) for pair in texts.items()])

    def log(self, figures: Figures, step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, *, is_failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if is_failed else "FINISHED")


class WandB(Tracker):
    """Its own steps only grow, so that each group of figures has its step beside it."""

    def __init__(self, target: str, run: str) -> None:
        import wandb

        entity, _, project = target.rpartition("/")
        self._run = wandb.init(
            entity=entity or None,
            project=project,
            name=os.environ.get("WANDB_NAME") or run,
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                finish_timeout=_FINISH_SECONDS,
                finish_timeout_raises=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
            ),
        )
        for group in GROUPS:
            self._run.define_metric(f"{group}/*", step_metric=f"{group}/step")

    def begin(self, config: Config) -> None:
        self._run.config.update(dict(config))

    def log(self, figures: Figures, step: int) -> None:
        group = next(iter(figures)).partition("/")[0]
        self._run.log({f"{group}/step": step, **figures})

    def close(self, *, is_failed: bool) -> None:
        self._run.finish(exit_code=int(is_failed))


TRACKERS: dict[str, Callable[[str, str], Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "mlflow": MLflow,
    "wandb": WandB,
}
"""By the word before the colon, which is also the package and the extra of cdcca."""


@dataclass(frozen=True)
class Place:
    """A tracker and what stands behind its colon."""

    tracker: str
    target: str

    def __str__(self) -> str:
        return f"{self.tracker}:{re.sub('//[^/@]*@', '//', self.target)}"  # without a password

    def open(self, run: str) -> Tracker:
        """A new run, its name beginning with `run`. Raises: Unavailable."""
        name = f"{run}-{time.strftime('%Y-%m-%dT%H-%M-%S')}"
        try:
            return TRACKERS[self.tracker](self.target, name)
        except Exception as error:
            raise Unavailable(f"{self} cannot be opened: {in_words(error)}") from None


def places(names: Sequence[str]) -> list[Path | Place]:
    """The files and trackers that the names of `log` mean, each once; ./wandb:x is a file.

    Raises: SettingError for what is neither, Unavailable for a tracker that is not installed.
    """
    found: list[Path | Place] = []
    for name in names:
        tracker, colon, target = name.partition(":")
        if not colon or tracker not in TRACKERS:
            if reason := settings.no_path(name):
                raise SettingError("log", reason, name)
            found.append(Path(name))
        elif not target:
            raise SettingError("log", f"expected {tracker}:NAME; ./{name} is a file", name)
        elif find_spec(tracker) is None:
            cure = f"pip install 'cdcca[{tracker}]'"
            raise Unavailable(f"{name}: needs the package {tracker}: {cure}")
        else:
            found.append(Place(tracker, target))
    return list(dict.fromkeys(found))


@contextmanager
def _without_the_hub() -> Iterator[None]:
    """The hub is asked for nothing meanwhile (the user's name), unless Trackio is to use it."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    is_local = not {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"} & os.environ.keys()
    constants.HF_HUB_OFFLINE = before or is_local
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def in_words(error: BaseException) -> str:
    """An error of a library in one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}" if words else type(error).__name__


def _plain(value: Any) -> Any:
    """A value without lists, which some trackers do not take."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _new_folder(parent: Path, name: str) -> Path:
    """A new folder, numbered if there is one of that name."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in count(2):
        folder = parent / name
        try:
            folder.mkdir()
            break
        except FileExistsError:
            name = f"{name.partition('.')[0]}.{number}"
    return folder
