"""The benchmark of alignment: each measure on a case whose answer is known, and all of it once."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cdcca_cli.datasets import read_frames
from cdcca_cli.distillation.losses import answer_cross_entropy
from cdcca_cli.distillation.phi import initial_phi
from cdcca_cli.models import load
from cdcca_cli.models.encoding import encode
from cdcca_cli.models.initial import create_device
from cdcca_cli.models.settings import InitSettings
from cdcca_cli.teachers import local
from tests.shipped import few_frames

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return importlib.import_module("alignment")


@pytest.fixture(scope="module")
def pair(bench: Any, tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tiny models and six shipped frames; the teacher is the test's to change."""
    folder = tmp_path_factory.mktemp("alignment")
    frames = list(read_frames(few_frames(folder / "frames", "heldout", 6)))
    mirror = create_device(folder / "mirror", str(tiny_pair[1]), InitSettings(lora_rank=4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "MAX_NEW_TOKENS", {"vqa": 3, "caption": 5})
        return bench.Pair(load(tiny_pair[0], compute="cpu"), mirror, frames[:3], frames[3:])


def test_features_in_a_linear_relation_leave_no_error(bench: Any, pair: Any) -> None:
    """The weakest ridge takes next to nothing; a map to the mean leaves all of what varies."""
    torch.manual_seed(0)
    ours = bench.features(pair.student, pair.heldout)
    assert set(ours) == {"queries", "visual", "answer"}
    for rows in ours.values():
        width = 8  # of more channels than rows a part is not seen
        rows = [row[:, :width] for row in rows]
        relation = nn.Linear(width, width + 8)
        theirs = [relation(row).detach() for row in rows]
        best = initial_phi(torch.cat(rows), torch.cat(theirs), bench.RIDGES)
        assert max(bench.errors(best, rows, theirs)) < 1e-4
    rows = ours["queries"]
    mean = nn.Linear(rows[0].shape[1], rows[0].shape[1])
    nn.init.zeros_(mean.weight)
    mean.bias.data = torch.cat(rows).mean(0)
    between = torch.stack(rows).double().mean(0)
    whole, varied = bench.errors(mean, rows, rows)
    about_LC = between - torch.cat(rows).double().mean(0)
    varying = (torch.stack(rows).double() - between).square().sum()
    expected = 1 + len(rows) * about_LC.square().sum() / varying
    assert varied == pytest.approx(float(expected), rel=1e-4) and whole < varied


def test_sensitivity_in_one_known_direction(bench: Any, pair: Any) -> None:
    """A language model that sees the queries along v alone: F is v v' times its trace; what
    changes across v changes no answer, and what changes along v does."""
    teacher, heldout = pair.teacher, pair.heldout
    projection = teacher.module.language_projection
    kept = projection.weight.data.clone()
    generator = torch.Generator().manual_seed(1)
    v_C = torch.randn(kept.shape[1], generator=generator)
    v_C /= v_C.norm()
    u_D = torch.randn(kept.shape[0], generator=generator)
    try:
        projection.weight.data = torch.outer(u_D, v_C)
        own = bench.features(teacher, heldout)["queries"]
        numbers = list(range(len(own)))
        fisher_CC = bench.sensitivity(teacher, heldout, numbers, own, 0)
        expected_CC = torch.outer(v_C, v_C).double() * fisher_CC.trace()
        torch.testing.assert_close(fisher_CC, expected_CC, rtol=1e-4, atol=1e-6)
        vectors_CK = bench.carrying(fisher_CC)
        assert vectors_CK.shape[1] == 1
        assert abs(float(vectors_CK[:, 0] @ v_C.double())) == pytest.approx(1, abs=1e-5)
        along_CC = torch.outer(v_C, v_C)
        across = {n: own[n] + 9 * (torch.randn(own[n].shape, generator=generator)) for n in numbers}
        across = {n: row - (row - own[n]) @ along_CC for n, row in across.items()}
        kl_E, stays_E = bench.divergence(teacher, heldout, numbers, own, across)
        assert kl_E.max() < 1e-6 and stays_E.all()
        along = {n: own[n] + 3 * v_C for n in numbers}
        kl_E, _ = bench.divergence(teacher, heldout, numbers, own, along)
        assert kl_E.min() > 1e-5
    finally:
        projection.weight.data = kept


def test_the_fisher_information_is_that_of_the_divergence(bench: Any, pair: Any) -> None:
    """A small change of one query: KL = 1/2 d' F d, with F from many draws of the answer."""
    teacher, heldout = pair.teacher, pair.heldout
    own = bench.features(teacher, heldout)["queries"]
    one = [row[:1] for row in own]  # a picture of one query: nothing that two do together
    drawn = [bench.sensitivity(teacher, heldout, [0] * 32, one, seed) for seed in range(12)]
    fisher_CC = torch.stack(drawn).mean(0)
    change_C = bench.eigenvectors(fisher_CC)[1][:, 0]
    size = 0.05 / float(change_C @ fisher_CC @ change_C) ** 0.5
    other = {0: one[0] + size * change_C.float()}
    (kl,), _ = bench.divergence(teacher, heldout, [0], one, other)
    assert kl == pytest.approx(0.5 * 0.05**2, rel=0.25)


def test_a_model_reads_its_own_queries_as_ever(bench: Any, pair: Any) -> None:
    """Answers and nats as question by question, without the detour."""
    teacher, heldout = pair.teacher, pair.heldout
    own = bench.features(teacher, heldout)["queries"]
    right_E, nats_E = bench.answered(teacher, heldout, heldout.train, own)
    agrees, of_each = [], []
    with torch.no_grad():
        for n in heldout.train:
            answer_BA = teacher.answer_ids([heldout.answers[n]])
            spliced = encode(teacher, [heldout.examples[n]]).spliced
            logits_BAV = teacher.forward(spliced, answer_BA).logits
            agrees.append(bool((logits_BAV.argmax(-1) == answer_BA).all()))
            of_each.append(float(answer_cross_entropy(logits_BAV, answer_BA)))
    assert right_E.tolist() == agrees and nats_E == pytest.approx(of_each, rel=1e-3)


def test_projections_keep_the_directions_that_they_name(bench: Any) -> None:
    """Variances 4, 1, 1e-4 and sensitivities 0.1, 1, 9 along the axes: their products are 0.4, 1
    and 0.0009."""
    axes = torch.eye(3, dtype=torch.float64)
    kept = bench.projections(torch.diag(torch.tensor([4, 1, 1e-4])).double(), axes * 0)
    assert torch.allclose(kept["variance"](2), torch.diag(torch.tensor([1.0, 1, 0])).double())
    fisher_CC = torch.diag(torch.tensor([0.1, 1.0, 9.0])).double()
    kept = bench.projections(torch.diag(torch.tensor([4, 1, 1e-4])).double(), fisher_CC)
    for by, axis in {"variance": 0, "sensitivity": 2, "both": 1}.items():
        torch.testing.assert_close(kept[by](1), torch.outer(axes[axis], axes[axis]))
        torch.testing.assert_close(kept[by](3), axes)
    assert bench.carrying(fisher_CC, 0.89).shape[1] == 1
    assert bench.carrying(fisher_CC, 0.95).shape[1] == 2


def test_a_step_along_a_gradient_gains_what_its_cosine_says(bench: Any, pair: Any) -> None:
    """The cross-entropy's gradient has cosine 1 with itself, in any terms' company; the gain of a
    small step against it is the step's length times the gradient's."""
    start = pair.mirror.read_overlay()
    with pair.student.training_mode():
        akd = pair.trainer("akd", start, pair.heldout)
        numbers = pair.heldout.train
        beside = bench.gradients_of(akd, numbers, list(akd.method.weights))
        alone = pair.trainer("pseudo-label", start, pair.heldout)
        goal_P = bench.gradients_of(alone, numbers, ["ce"])["ce"]
        assert bench.cosine(beside["ce"], goal_P) == pytest.approx(1, abs=1e-4)
        assert abs(bench.cosine(beside["query"], goal_P)) < 0.9

        def loss() -> float:
            with torch.no_grad():
                examples = [pair.heldout.examples[n] for n in numbers]
                answer_BA = pair.student.answer_ids([pair.heldout.answers[n] for n in numbers])
                spliced = encode(pair.student, examples).spliced
                logits_BAV = pair.student.forward(spliced, answer_BA).logits
                return float(answer_cross_entropy(logits_BAV, answer_BA).double().mean())

        before, length = loss(), 0.01
        alone.overlay.values.sub_(length * goal_P / goal_P.norm())
        assert before - loss() == pytest.approx(length * float(goal_P.norm()), rel=0.1)


def test_all_of_it_runs_on_a_few_frames(tmp_path: Path) -> None:
    for name in ("stream", "heldout"):
        few_frames(tmp_path / name, name, 3)
    options = ("--frames", tmp_path, "--epochs", 1)
    done = subprocess.run(
        [sys.executable, FOLDER / "alignment.py", *map(str, options)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    of = {row["table"]: [one for one in rows if one["table"] == row["table"]] for row in rows}
    assert list(of) == [
        "Linear maps", "Replaced queries", "The student's reading", "Where the error lies",
        "Gradients",
    ]  # fmt: skip
    assert {row["student"] for row in of["Linear maps"]} == {
        "source", "pseudo-label", "akd", "alignment alone",
    }  # fmt: skip
    by_name = {row["queries"]: row for row in of["Replaced queries"]}
    assert by_name["mean of each position"]["KL"] > by_name["64 of 128 directions, variance"]["KL"]
    assert all(row["of ce's gain"] == 1 for row in of["Gradients"] if row["term"] == "ce")
    assert np.isfinite([row["gain, nats"] for row in of["Gradients"]]).all()
    for title in of:
        assert f"### {title}\n" in done.stdout
