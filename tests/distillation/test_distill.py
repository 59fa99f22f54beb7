"""The loop: what it moves, what it leaves alone, and that it can be stopped at any time."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cdcca_cli.distillation import trainer
from cdcca_cli.distillation.distill import distill, summary
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import BadData, CannotWrite, UsageError
from cdcca_cli.formats.adaptation import Adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.names import LORA_PARTS
from cdcca_cli.formats.shard import Shard
from cdcca_cli.formats.shard_stream import writer
from cdcca_cli.models import LoadedModel, load, load_device
from cdcca_cli.models.initial import create_device
from cdcca_cli.models.settings import InitSettings
from tests.distillation.conftest import Stopped, make_shards, stopped_at_step

ROOT = Path(__file__).parents[2]
QUICK = DistillSettings(method="akd", choose="best", epochs=3, batch_size=8, holdout=0.3)


@pytest.fixture(scope="module")
def adapted(teacher: LoadedModel, mirror: Device, shards: list[Shard]) -> Adaptation:
    """One ordinary run, which several tests look at."""
    return distill(shards, teacher, mirror, QUICK)


def test_each_term_and_the_held_out_part_get_better(
    teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """With alignment that pulls as hard as the answers do."""
    alike = replace(QUICK, query_weight=1.0, repr_weight=1.0)
    report = distill(shards, teacher, mirror, alike).report
    curves, held = report["curves"], report["held_out"]
    for term in ("loss", "query", "repr", "ce"):
        assert len(curves[term]) == 3
        assert curves[term][2] < curves[term][0], term
    assert len(curves["held_out"]) == 4
    assert held["cross_entropy"]["before"] == pytest.approx(curves["held_out"][0], abs=1e-5)
    assert held["cross_entropy"]["after"] == pytest.approx(min(curves["held_out"]), abs=1e-5)
    assert held["gain"]["low"] <= held["gain"]["mean"] <= held["gain"]["high"]
    assert held["gain"]["mean"] > 0


def test_the_report_says_what_was_done(
    adapted: Adaptation, teacher: LoadedModel, mirror: Device
) -> None:
    report = adapted.report
    assert (adapted.base, adapted.sequence) == (mirror.digest, mirror.sequence)
    assert (adapted.method, adapted.seed) == ("akd", 0)
    assert (report["teacher"], report["tower"]) == (teacher.digest, teacher.tower_digest)
    assert (report["num_frames"], report["num_asks"]) == (12, 28)
    assert report["num_trained"] + report["held_out"]["num_asks"] == 28
    assert report["held_out"]["num_frames"] == 3
    assert report["lr"] == 0.0057 / 8  # width 64
    assert "held out the student now answers" in summary(adapted)[-1]


def test_the_adaptation_is_the_overlay_and_nothing_else(
    adapted: Adaptation, mirror: Device
) -> None:
    base = mirror.read_overlay()
    assert set(adapted.overlay) == set(base)
    assert not any("vision_model" in name or "phi" in name for name in adapted.overlay)
    for name, array in adapted.overlay.items():
        assert (array.shape, array.dtype) == (base[name].shape, np.float32)


def test_gradients_reach_every_parameter_of_every_group(
    adapted: Adaptation, mirror: Device, student: LoadedModel
) -> None:
    """Each tensor moves. Keys' biases alone need not: they shift all scores of a query alike."""
    base = mirror.read_overlay()
    moved = {name for name in base if not np.array_equal(base[name], adapted.overlay[name])}
    left = {name for name in base if name not in moved}
    assert not {name for name in left if not name.endswith("k_proj.bias")}
    groups = student.trainable_groups()
    for group in ("norm", "bias", "query"):
        assert moved & set(groups[group]), group
    for part in LORA_PARTS:
        assert {f"{name}.lora_A" for name in groups[part]} <= moved, part


def test_everything_else_stays_bit_for_bit(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], student: LoadedModel
) -> None:
    before = {name: tensor.clone() for name, tensor in student.module.state_dict().items()}
    distill(shards, teacher, mirror, replace(QUICK, epochs=1), student=student)
    after = student.module.state_dict()
    overlay = set(mirror.read_overlay())
    assert set(after) == set(before)
    for name, tensor in after.items():
        assert name in overlay or torch.equal(tensor, before[name]), name
    assert not any(parameter.requires_grad for parameter in student.module.parameters())
    assert not student.module.training


def test_the_mirror_and_the_teacher_stay_as_they_are(
    adapted: Adaptation, teacher: LoadedModel, mirror: Device, tiny_pair: tuple[Path, Path]
) -> None:
    assert Device.open(mirror.path).digest == mirror.digest == adapted.base
    assert load(tiny_pair[0], compute="cpu").digest == teacher.digest


def test_the_same_seed_gives_the_same_bits(
    adapted: Adaptation, teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    again = distill(shards, teacher, mirror, QUICK)
    assert overlay_digest(again.overlay) == overlay_digest(adapted.overlay)
    assert again.report == adapted.report
    other = distill(shards, teacher, mirror, replace(QUICK, seed=1))
    assert overlay_digest(other.overlay) != overlay_digest(adapted.overlay)


def test_a_student_given_is_left_as_it_was_trained(
    adapted: Adaptation,
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    student: LoadedModel,
) -> None:
    made = distill(shards, teacher, mirror, QUICK, student=student)
    assert overlay_digest(made.overlay) == overlay_digest(adapted.overlay)
    assert student.digest == overlay_digest(adapted.overlay)


def test_never_worse_than_the_start(
    adapted: Adaptation, teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """With a step size that spoils the student, what is written is the start, bit for bit."""
    spoiling = replace(QUICK, lr=3.0, epochs=1)
    made = distill(shards, teacher, mirror, spoiling, resume=adapted)
    assert made.report["curves"]["held_out"][1] > made.report["curves"]["held_out"][0]
    assert made.report["best_epoch"] == 0
    assert overlay_digest(made.overlay) == overlay_digest(adapted.overlay)
    assert made.report["held_out"]["gain"] == {"mean": 0, "low": 0, "high": 0, "level": 0.95}


def test_resume_starts_from_the_adaptation_and_keeps_the_mirror_as_base(
    adapted: Adaptation, teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    more = distill(shards, teacher, mirror, replace(QUICK, epochs=1), resume=adapted)
    assert more.base == mirror.digest
    assert more.report["resumed"] is True
    assert more.report["curves"]["held_out"][0] == pytest.approx(
        adapted.report["held_out"]["cross_entropy"]["after"], rel=1e-4
    )


def test_resume_of_another_student_is_refused(
    adapted: Adaptation, teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    name = min(adapted.overlay)
    foreign = replace(adapted, overlay={**adapted.overlay, name: np.zeros(3, np.float32)})
    with pytest.raises(BadData, match="another student"):
        distill(shards, teacher, mirror, QUICK, resume=foreign)


@pytest.mark.parametrize("term", ["query_weight", "repr_weight", "ce_weight"])
def test_each_term_can_stand_alone(
    term: str, teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """The curve of the term that counts falls; a term without weight is not computed."""
    weights = dict.fromkeys(("query_weight", "repr_weight", "ce_weight"), 0.0) | {term: 1.0}
    made = distill(shards, teacher, mirror, replace(QUICK, epochs=2, **weights))
    curves = made.report["curves"]
    own = term.removesuffix("_weight")
    assert curves[own][1] < curves[own][0]
    assert curves["loss"] == pytest.approx(curves[own], rel=1e-4)
    assert set(curves) == {"loss", own, "held_out"}


def test_alignment_starts_below_what_a_blind_student_would_get(adapted: Adaptation) -> None:
    """Terms are in units of the teacher's mean square, and phi starts as a regression."""
    curves = adapted.report["curves"]
    assert 0 < curves["query"][0] < 1
    assert 0 < curves["repr"][0] < 1
    assert set(adapted.report["scales"]) == {"queries", "visual", "answer"}
    assert min(adapted.report["scales"].values()) > 0


# ---- stopping and going on


def test_an_interrupted_run_ends_with_the_same_bits(
    adapted: Adaptation,
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stopped in the middle of the second epoch, then resumed: epoch 1 is not trained again."""
    settings = replace(QUICK, work=tmp_path)
    with stopped_at_step(5), pytest.raises(Stopped):
        distill(shards, teacher, mirror, settings)
    with stopped_at_step(100) as taken:
        made = distill(shards, teacher, mirror, settings)
    assert "resumed after epoch 1 of 3" in capsys.readouterr().err
    assert taken == [2 * 3]  # 21 questions in batches of 8, two epochs
    assert overlay_digest(made.overlay) == overlay_digest(adapted.overlay)
    assert made.report == adapted.report


def test_a_finished_run_is_only_read(
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    never: Callable[..., None],
) -> None:
    settings = replace(QUICK, epochs=1, work=tmp_path / "new" / "folder")
    made = distill(shards, teacher, mirror, settings)
    monkeypatch.setattr(trainer.Trainer, "step", never)
    monkeypatch.setattr(teacher, "generate", never)
    again = distill(shards, teacher, mirror, settings)
    assert overlay_digest(again.overlay) == overlay_digest(made.overlay)
    assert again.report == made.report


def test_other_settings_do_not_take_up_the_state(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], tmp_path: Path
) -> None:
    first = distill(shards, teacher, mirror, replace(QUICK, epochs=1, work=tmp_path))
    other = distill(shards, teacher, mirror, replace(QUICK, epochs=1, seed=7, work=tmp_path))
    alone = distill(shards, teacher, mirror, replace(QUICK, epochs=1, seed=7))
    assert overlay_digest(other.overlay) == overlay_digest(alone.overlay)
    assert overlay_digest(other.overlay) != overlay_digest(first.overlay)
    assert len(list(tmp_path.glob("training-*.safetensors"))) == 2


def test_another_lora_scale_does_not_take_up_the_state(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], tmp_path: Path
) -> None:
    """Same overlay, other alpha: B is zero, so only the device's settings tell them apart."""
    settings = replace(QUICK, epochs=1, work=tmp_path / "work")
    distill(shards, teacher, mirror, settings)
    lora = mirror.lora
    other = create_device(
        tmp_path / "other",
        mirror.settings.checkpoint,
        InitSettings(lora_rank=lora.rank, lora_alpha=3 * lora.alpha, seed=lora.seed),
    )
    assert other.digest == mirror.digest
    shared = distill(shards, teacher, other, settings)
    alone = distill(shards, teacher, other, replace(settings, work=None))
    assert overlay_digest(shared.overlay) == overlay_digest(alone.overlay)


def test_a_damaged_state_starts_anew(
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = replace(QUICK, epochs=1, work=tmp_path)
    made = distill(shards, teacher, mirror, settings)
    (path,) = tmp_path.glob("training-*.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])
    again = distill(shards, teacher, mirror, settings)
    assert "training starts again" in capsys.readouterr().err
    assert overlay_digest(again.overlay) == overlay_digest(made.overlay)


SLOW_RUN = """
import sys, time
from pathlib import Path
import torch
from cdcca_cli.distillation import trainer
from cdcca_cli.distillation.distill import distill
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.models import load
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.shard_stream import read_shards
from cdcca_cli.teachers import local
torch.set_num_threads(1)
local.MAX_NEW_TOKENS = {"vqa": 3, "caption": 5}
step = trainer.Trainer.step
def slow(*arguments):
    time.sleep(0.2)
    return step(*arguments)
trainer.Trainer.step = slow
teacher, mirror, tokens, work = sys.argv[1:]
settings = DistillSettings(
    method="akd", choose="best", epochs=4, batch_size=8, holdout=0.3, work=Path(work)
)
model = load(teacher, compute="cpu")
with open(tokens, "rb") as source:
    distill(read_shards(source), model, Device.open(mirror), settings)
"""


def test_kill_9_loses_an_epoch_at_most(
    tiny_pair: tuple[Path, Path],
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another process trains, slowly; it is killed after an epoch, and this one goes on."""
    tokens, work = tmp_path / "up.tokens", tmp_path / "work"
    with tokens.open("wb") as out, writer(out) as write:
        for shard in shards:
            write(shard)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, tiny_pair[0], mirror.path, tokens, work],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 200
        while not list(work.glob("training-*.safetensors")):
            assert process.poll() is None, "it ended before its first epoch was kept"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        settings = replace(QUICK, epochs=4)
        unbroken = distill(shards, teacher, mirror, settings)
        made = distill(shards, teacher, mirror, replace(settings, work=work))
    finally:
        torch.set_num_threads(threads)
    assert "of 4" in capsys.readouterr().err
    assert overlay_digest(made.overlay) == overlay_digest(unbroken.overlay)
    assert made.report == unbroken.report


# ---- what is refused


def test_an_empty_stream_is_refused(teacher: LoadedModel, mirror: Device) -> None:
    with pytest.raises(BadData, match="nothing to learn"):
        distill([], teacher, mirror, QUICK)


def test_a_shard_of_another_tower_is_refused(
    teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    foreign = replace(shards[1], tower="sha256:" + "a" * 64)
    with pytest.raises(BadData, match=r"frame 1.*sha256:aaaa") as refused:
        distill([shards[0], foreign], teacher, mirror, QUICK)
    assert teacher.tower_digest[:15] in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_teacher_with_another_tower_is_refused(
    blip2_opt: Path, mirror: Device, shards: list[Shard]
) -> None:
    with pytest.raises(BadData, match="the teacher's is sha256:"):
        distill(shards, load(blip2_opt, compute="cpu"), mirror, QUICK)


def test_a_teacher_that_says_nothing_is_refused(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = [replace(s, questions=[a for a in s.questions if a.choices is None]) for s in shards]
    monkeypatch.setattr(teacher, "decode", lambda _ids: "")
    with pytest.raises(BadData, match="answers to all 16 questions are empty"):
        distill(silent, teacher, mirror, QUICK)


def test_a_teacher_that_answers_held_out_frames_alone_is_refused(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing but where there are choices: here of frame 6 alone, which is held out."""
    fitting = [
        replace(
            s, questions=[a for a in s.questions if (a.choices is None) == (s.frame != "frame 6")]
        )
        for s in shards
    ]
    monkeypatch.setattr(teacher, "decode", lambda _ids: "")
    with pytest.raises(
        BadData, match=r"nothing is left to learn from: 14 .* and 1 are of held-out"
    ):
        distill(fitting, teacher, mirror, QUICK)


def test_questions_without_an_answer_are_left_out_and_counted(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "decode", lambda _ids: "")
    made = distill(shards, teacher, mirror, replace(QUICK, epochs=1))
    assert (made.report["num_asks"], made.report["num_unanswered"]) == (12, 16)


def test_another_number_of_queries_cannot_be_aligned(
    tiny_pair: tuple[Path, Path],
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
) -> None:
    """Before the work if the teacher is there, and by what its labels hold if not."""
    fewer = tmp_path / "fewer"
    shutil.copytree(tiny_pair[1], fewer)
    tensors = load_file(fewer / "model.safetensors")
    tensors["query_tokens"] = tensors["query_tokens"][:, :3].clone()
    save_file(tensors, fewer / "model.safetensors", {"format": "pt"})
    config = (fewer / "config.json").read_text()
    assert '"num_query_tokens": 4' in config
    (fewer / "config.json").write_text(
        config.replace('"num_query_tokens": 4', '"num_query_tokens": 3')
    )
    other = create_device(tmp_path / "mirror", str(fewer), InitSettings(lora_rank=2))
    with pytest.raises(UsageError, match="`method` akd: the connectors do not make as many"):
        distill(shards, teacher, other, QUICK)
    answers_alone = replace(QUICK, epochs=1, query_weight=0, repr_weight=0)
    assert distill(shards, teacher, other, answers_alone).report["best_epoch"] == 1
    cached = replace(QUICK, epochs=1, labels=(str(tmp_path / "labels"),))
    distill(shards, teacher, mirror, cached)
    with pytest.raises(UsageError, match="4 queries vectors for an image, the student 3"):
        distill(shards, None, other, cached)


def test_divergence_is_said(teacher: LoadedModel, mirror: Device, shards: list[Shard]) -> None:
    with pytest.raises(UsageError, match=r"`lr` 1e\+18: training diverged"):
        distill(shards, teacher, mirror, replace(QUICK, lr=1e18))


def test_a_work_folder_that_cannot_be_is_refused(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="file"):
        distill(shards, teacher, mirror, replace(QUICK, work=tmp_path / "file" / "folder"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"query_weight": -1.0},
        {"ce_weight": float("inf")},
        {"method": "akd", "query_weight": 0.0, "repr_weight": 0.0, "ce_weight": 0.0},
        {"holdout": 0.95},
        {"seed": -1},
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        DistillSettings(**wrong)  # type: ignore[arg-type]


# ---- without a held-out part, and with other models


def test_one_frame_is_trained_on_and_the_last_epoch_written(
    teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    made = distill(shards[1:2], teacher, mirror, replace(QUICK, epochs=2))
    assert made.report["held_out"] is None
    assert made.report["best_epoch"] == 2
    assert made.report["curves"]["held_out"] == []
    assert "none held out" in summary(made)[-1]


def cousin(checkpoint: Path, folder: Path) -> Path:
    """A checkpoint with the same vision tower and another language model."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in sorted(tensors):
        if "language_model" in name:
            noise = torch.randn(tensors[name].shape, generator=generator)
            tensors[name] = tensors[name] + 0.05 * noise
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("checkpoint", ["blip2_opt", "blip2_t5", "instructblip", "llava"])
def test_every_family_learns(
    checkpoint: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Two epochs bring the answers nearer to the teacher's, for frames of 5 and of 2 tokens."""
    source = request.getfixturevalue(checkpoint)
    teacher = load(cousin(source, tmp_path / "teacher"), compute="cpu")
    mirror = create_device(tmp_path / "mirror", str(source), InitSettings(lora_rank=2))
    shards = [replace(s, questions=s.questions[:2]) for s in make_shards(teacher, 6, keep=(5, 2))]
    curves = distill(shards, teacher, mirror, replace(QUICK, epochs=2)).report["curves"]
    assert curves["ce"][1] < curves["ce"][0]
    assert min(curves["held_out"][1:]) < curves["held_out"][0]
    assert 0 < curves["repr"][1] < 1


def test_a_quantised_student_learns_as_the_full_one_does(
    teacher: LoadedModel, tiny_pair: tuple[Path, Path], shards: list[Shard], tmp_path: Path
) -> None:
    """4 bits in the language model: gradients must still point the same way.

    On a CPU bitsandbytes packs weights at the first answer and then gives wrong gradients, so the
    student has answered before it is trained.
    """
    mirror = create_device(
        tmp_path / "mirror", str(tiny_pair[1]), InitSettings(lora_rank=4, quantize="nf4")
    )
    student = load_device(mirror, compute="cpu")
    with torch.no_grad():
        from cdcca_cli.models.encoding import Example, encode

        seen = encode(student, [Example(shards[0], shards[0].questions[0])])
        student.generate(seen.spliced, 2)
    made = distill(shards, teacher, mirror, replace(QUICK, epochs=1), student=student)
    full = create_device(tmp_path / "full", str(tiny_pair[1]), InitSettings(lora_rank=4))
    other = distill(shards, teacher, full, replace(QUICK, epochs=1))
    assert made.report["curves"]["held_out"][1] < made.report["curves"]["held_out"][0]
    base = mirror.read_overlay()
    deltas = [
        np.concatenate([(run.overlay[name] - base[name]).ravel() for name in sorted(base)])
        for run in (made, other)
    ]
    cosine = deltas[0] @ deltas[1] / np.sqrt((deltas[0] @ deltas[0]) * (deltas[1] @ deltas[1]))
    assert cosine > 0.6


def test_half_precision_students_train_a_float32_overlay(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], tiny_pair: tuple[Path, Path]
) -> None:
    student = load_device(mirror, compute="cpu", dtype="bfloat16")
    large = load(tiny_pair[0], compute="cpu", dtype="bfloat16")
    made = distill(shards, large, mirror, replace(QUICK, epochs=2), student=student)
    assert made.report["curves"]["ce"][1] < made.report["curves"]["ce"][0]
    moved = made.overlay["query_tokens"] - mirror.read_overlay()["query_tokens"]
    assert 0 < np.abs(moved).max() < 0.1
    as_half = torch.from_numpy(made.overlay["query_tokens"]).bfloat16().float().numpy()
    assert not np.array_equal(as_half, made.overlay["query_tokens"])
