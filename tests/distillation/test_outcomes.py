"""Divergences over the likeliest tokens and the rest as one, and where these come from."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cdcca_cli.distillation.losses import forward_kl, outcomes, reverse_kl
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.tops import Tops, _Pieces
from cdcca_cli.errors import BadData, SettingError
from cdcca_cli.formats import label_stream
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.label_tops import LOWEST, Top
from cdcca_cli.formats.labels import Entry, Source, payload_digest, question_digest
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel
from cdcca_cli.teachers.local import top_of
from tests.distillation.conftest import a_trainer
from tests.teachers import reading

ANSWERS_BA = torch.tensor([[1, 5, 0, 2], [3, 4, -100, -100], [-100, -100, -100, -100]])
KL = DistillSettings(method="pseudo-label", kl="forward", epochs=1, holdout=0)
EACH = pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])


def _logits(seed: int, size: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn((3, 4, size), generator=generator, dtype=torch.float64)


def _both(teacher_BAV: Tensor, student_BAV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Both sides over the teacher's `count` likeliest tokens and the rest."""
    ids_BAK = teacher_BAV.topk(count, dim=-1).indices
    return outcomes(teacher_BAV, ids_BAK), outcomes(student_BAV, ids_BAK)


def _slow(logits: list[float], ids: list[int]) -> list[float]:
    """Probabilities of tokens, and of all others, summed one by one."""
    total = sum(math.exp(value) for value in logits)
    shares = [math.exp(value) / total for value in logits]
    own = [shares[number] if number >= 0 else 0.0 for number in ids]
    return [*own, sum(share for number, share in enumerate(shares) if number not in ids)]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_it_equals_the_slow_form(count: int) -> None:
    """With as many ids as that, one fewer, and none at all."""
    logits_BAV = _logits(1)
    ids_BAK = logits_BAV.topk(count, dim=-1).indices.flip(-1)
    ids_BAK[1, :, -1] = -1
    ids_BAK[2] = -1
    got_BAO = outcomes(logits_BAV, ids_BAK).exp()
    expected = [
        [_slow(row, ids) for row, ids in zip(rows, places, strict=True)]
        for rows, places in zip(logits_BAV.tolist(), ids_BAK.tolist(), strict=True)
    ]
    torch.testing.assert_close(got_BAO, torch.tensor(expected, dtype=torch.float64))
    assert got_BAO.shape == (3, 4, count + 1)


def test_by_hand() -> None:
    """Shares 1/8, 1/2, 1/4, 1/8; tokens 1 and, absent, -1; then token 0 beside one that is absent.

    The first gives 1/2, 0, 1/2; the second 1/8, 0, 7/8: place 0 stands for -1 only in the gather.
    """
    logits_BAV = torch.tensor([1 / 8, 1 / 2, 1 / 4, 1 / 8]).log().repeat(1, 2, 1)
    found = outcomes(logits_BAV, torch.tensor([[[1, -1], [0, -1]]])).exp()
    torch.testing.assert_close(found, torch.tensor([[[1 / 2, 0, 1 / 2], [1 / 8, 0, 7 / 8]]]))


rows_of_pairs = st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=2, max_size=9)


@EACH
@settings(deadline=None, max_examples=100)
@given(rows_of_pairs, st.data())
def test_it_is_at_most_the_whole_divergence(divergence, pairs, data) -> None:
    """What is told apart less can only be nearer; the more tokens, the nearer to the whole."""
    teacher_11V, student_11V = torch.tensor(pairs, dtype=torch.float64).T[:, None, None]
    answers_11 = torch.tensor([[0]])
    whole = divergence(teacher_11V, student_11V, answers_11).item()
    found = [
        divergence(*_both(teacher_11V, student_11V, count), answers_11).item()
        for count in range(1, len(pairs) + 1)
    ]
    slack = 1e-9 * max(1.0, whole)
    assert all(-slack <= value <= whole + slack for value in found)
    assert all(fewer <= more + slack for fewer, more in pairwise(found))
    assert found[-1] == pytest.approx(whole, rel=1e-9, abs=1e-9)


@EACH
def test_it_is_the_whole_divergence_if_the_others_are_shared_alike(divergence) -> None:
    """Student = teacher, but for one factor each on the two likeliest tokens and on the rest."""
    teacher_BAV = _logits(3)
    ids_BAK = teacher_BAV.topk(2, dim=-1).indices
    student_BAV = teacher_BAV.scatter_add(
        -1, ids_BAK, torch.tensor([1.3, -0.4]).expand(3, 4, 2).double()
    )
    whole_B = divergence(teacher_BAV, student_BAV, ANSWERS_BA)
    torch.testing.assert_close(divergence(*_both(teacher_BAV, student_BAV, 2), ANSWERS_BA), whole_B)
    assert (whole_B[:2] > 0.01).all()


@EACH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gradient_is_finite_whatever_is_absent(divergence, dtype) -> None:
    """As labels have it: ids of -1 with the lowest number, nothing left in the rest."""
    teacher_BAV = _logits(4)
    ids_BAK = torch.cat([teacher_BAV.topk(6, dim=-1).indices, torch.full((3, 4, 2), -1)], -1)
    own_BAK = teacher_BAV.log_softmax(-1).gather(-1, ids_BAK[..., :6])
    lowest_BA3 = torch.full((3, 4, 3), LOWEST, dtype=torch.float64)
    logp_BAO = torch.cat([own_BAK, lowest_BA3], -1).to(dtype)
    for scale in (1.0, 1e4):
        student_BAV = (scale * _logits(5)).to(dtype).requires_grad_()
        loss_B = divergence(logp_BAO, outcomes(student_BAV, ids_BAK), ANSWERS_BA)
        (gradient_BAV,) = torch.autograd.grad(loss_B.sum(), student_BAV)
        assert loss_B.isfinite().all() and gradient_BAV.isfinite().all()
        assert not gradient_BAV[ANSWERS_BA == -100].any()


@EACH
def test_the_gradient_is_that_of_finite_differences(divergence) -> None:
    teacher_BAV, student_BAV = _logits(6), _logits(7).requires_grad_()
    ids_BAK = teacher_BAV.topk(3, dim=-1).indices
    ids_BAK[0, :, 2] = -1
    logp_BAO = outcomes(teacher_BAV, ids_BAK)

    def loss(values_BAV: Tensor) -> Tensor:
        found: Tensor = divergence(logp_BAO, outcomes(values_BAV, ids_BAK), ANSWERS_BA, 2.0)
        return found

    assert torch.autograd.gradcheck(loss, student_BAV)


def test_a_students_impossible_token() -> None:
    """A logit of -inf among the others, and among the named ones: no NaN."""
    teacher_BAV, student_BAV = _logits(8), _logits(9)
    ids_BAK = teacher_BAV.topk(2, dim=-1).indices
    student_BAV.scatter_(-1, ids_BAK[..., :1], -math.inf)
    student_BAV.requires_grad_()
    logp_BAO = outcomes(teacher_BAV, ids_BAK)
    back_B = reverse_kl(logp_BAO, outcomes(student_BAV, ids_BAK), ANSWERS_BA)
    (gradient_BAV,) = torch.autograd.grad(back_B.sum(), student_BAV)
    assert back_B.isfinite().all() and gradient_BAV.isfinite().all()


@EACH
@pytest.mark.parametrize("count", [1, 3, 6, 9])
def test_what_a_label_keeps_is_what_the_loss_takes(divergence, count) -> None:
    """`top_of` the teacher beside `outcomes` of the teacher: to float32, the rest included."""
    logits_BAV = _logits(10).float()
    for b in range(3):
        top = top_of(logits_BAV[b].log_softmax(-1), count)
        assert top is not None and top.ids_AK is not None
        ids_1AK = torch.from_numpy(top.ids_AK).long()[None]
        own_1AO = outcomes(logits_BAV[b : b + 1], ids_1AK)
        kept_1AO = torch.cat(
            [torch.from_numpy(top.logp_AK), torch.from_numpy(top.rest_A)[:, None].float()], -1
        )[None]
        torch.testing.assert_close(own_1AO.exp(), kept_1AO.exp(), rtol=1e-5, atol=1e-7)
        nothing = divergence(kept_1AO, own_1AO, torch.zeros((1, 4), dtype=torch.long))
        assert nothing.item() == pytest.approx(0, abs=1e-6)


# ---- pieces of text


class Texts:
    """A student of eight tokens, two of them with one text."""

    device = torch.device("cpu")

    def token_texts(self) -> list[bytes]:
        return [b"", b"a", b" blue", b" circle", b"red", b"</s>", b"a", b"n"]


def pieces(*rows: list[tuple[bytes, float]]) -> Top:
    logp_AK = np.log(np.array([[share for _, share in row] for row in rows], np.float32))
    rest_A = np.log(1 - np.exp(logp_AK).sum(1) + 1e-9).astype(np.float32)
    return Top(logp_AK, rest_A, None, [[piece for piece, _ in row] for row in rows])


def translated(top: Top, ids: list[int]) -> Top | None:
    return _Pieces(Texts()).translated(top, ids)  # type: ignore[arg-type]


def test_pieces_become_the_students_tokens() -> None:
    """What the student does not have goes to the rest: 0.1 + 0.2. An empty piece is the end."""
    top = pieces(
        [(b"a", 0.6), (b"nothing of its", 0.2), (b"red", 0.1)],
        [(b" blue", 0.5), (b"", 0.2), (b" circle", 0.2)],
    )
    found = translated(top, [6, 2, 5])
    assert found is not None and found.ids_AK is not None
    assert found.ids_AK.tolist() == [[6, -1, 4], [2, 5, 3]], "the answer's own of two that are a"
    np.testing.assert_allclose(np.exp(found.rest_A), [0.1 + 0.2, 0.1], rtol=1e-4)
    np.testing.assert_allclose(np.exp(found.logp_AK), [[0.6, 0, 0.1], [0.5, 0.2, 0.2]], rtol=1e-4)


def test_the_end_of_an_answer_needs_no_text() -> None:
    """Where the teacher gives its end token, as b"" or in words of its own, it is the student's."""
    for end in (b"", b"<|im_end|>"):
        found = translated(pieces([(b"red", 0.9), (b"a", 0.1)], [(end, 0.7), (b"n", 0.2)]), [4, 5])
        assert found is not None and found.ids_AK is not None
        assert found.ids_AK.tolist() == [[4, 1], [5, 7]]


def test_a_token_that_two_pieces_are_counts_once() -> None:
    """The student's end among the others: its likelier place stays, the other is in the rest."""
    top = pieces([(b"red", 0.9), (b"red", 0.05)], [(b"", 0.7), (b"</s>", 0.2)])
    found = translated(top, [4, 5])
    assert found is not None and found.ids_AK is not None
    assert found.ids_AK.tolist() == [[4, -1], [5, -1]]
    np.testing.assert_allclose(np.exp(found.rest_A), [0.1, 0.3], rtol=1e-4)


def test_an_answer_that_is_cut_otherwise_has_none() -> None:
    top = pieces([(b"a", 0.9)], [(b" blue", 0.9)])
    assert translated(top, [1, 2, 5]) is not None
    assert translated(top, [1, 2]) is not None
    assert translated(top, [4, 2, 5]) is None, "another first token"
    assert translated(top, [1, 2, 3, 5]) is None, "a token more"


def served(
    path: Path,
    model: LoadedModel,
    shards: list[Shard],
    *,
    ids: bool = False,
    spoilt: int = 0,
    beyond: bool = False,
) -> str:
    """Labels of answers whose own tokens are the likeliest, as pieces, as a server gives them.

    Args: ids: as ids instead. spoilt: how many answers are cut otherwise.
    """
    texts = model.token_texts()
    said = [text or b"\xff" for text in texts]  # a part of a character
    source = Source("https://h/v1#m", model.vocabulary_digest if ids else None)
    with label_stream.writing(path, 32) as write:
        for shard, labels in zip(shards, reading.given(model, shards), strict=True):
            for label in labels:
                assert label.top is not None and label.top.ids_AK is not None
                label.queries = label.visual = label.answer_rows = None
                own = [one for one in model.answer_ids([label.answer])[0].tolist() if one >= 0]
                rows = [
                    [number, *(one for one in row if one != number and texts[one])][:4]
                    for number, row in zip(own, label.top.ids_AK.tolist(), strict=True)
                ]
                shape = len(rows), 4
                label.top = Top(
                    np.tile(np.log(np.array([0.5, 0.2, 0.1, 0.1], np.float32)), (shape[0], 1)),
                    np.full(shape[0], np.log(0.1), np.float32),
                    np.array(rows, np.int32) if ids else None,
                    None if ids else [[said[number] for number in row] for row in rows],
                )
                if beyond and label.top.ids_AK is not None:
                    label.top.ids_AK[0, -1] = 1 << 30
                if spoilt > 0 and label.top.pieces_AK is not None:
                    label.top.pieces_AK[0][0] = b"what no tokenizer has"
                    spoilt -= 1
            digests = map(question_digest, shard.questions)
            found = dict(zip(digests, labels, strict=True))
            write(Entry(shard.frame, payload_digest(shard), source, found))
    return str(path)


def test_pieces_teach_what_ids_do(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], tmp_path: Path
) -> None:
    """Of a teacher with the student's tokens the losses are those of its ids.

    A token that is a part of a character has no text; what lies on it goes to the rest, which is at
    most as far.
    """
    found = []
    for ids in (True, False):
        path = served(tmp_path / f"{ids}", teacher, shards[:4], ids=ids)
        run = a_trainer(shards[:4], None, mirror, replace(KL, labels=(path,)))
        assert run.method is not None
        with torch.no_grad():
            found.append(run.method.losses(run.dataset.train)["kl"])
    assert (found[0] > 0.1).all()
    whole = torch.tensor(["\ufffd" not in one and one.isascii() for one in run.dataset.answers])
    assert whole.sum() >= 5
    torch.testing.assert_close(found[1][whole], found[0][whole])
    assert (found[1] <= found[0] + 1e-6).all()


def test_few_answers_that_are_cut_alike_are_refused(
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With 4 of 10 spoilt these are learnt as text; with 6 it is another vocabulary."""
    path = served(tmp_path / "some", teacher, shards[:4], spoilt=4)
    run = a_trainer(shards[:4], None, mirror, replace(KL, labels=(path,)))
    assert "distributions of 6 of 10 answers are learnt" in capsys.readouterr().err
    assert run.method is not None
    with torch.no_grad():
        nats = run.method.losses(run.dataset.train)["kl"]
    assert (nats[:4] == 0).all() and (nats[4:] > 0).all()
    path = served(tmp_path / "most", teacher, shards[:4], spoilt=6)
    with pytest.raises(SettingError, match=r"`kl`: .*only 4 of 10 answers are cut into"):
        a_trainer(shards[:4], None, mirror, replace(KL, labels=(path,)))


def test_labels_without_distributions_are_refused(
    teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    with pytest.raises(SettingError, match="labels have no distributions of answer tokens"):
        a_trainer(shards[:2], teacher, mirror, KL, asking=replace(reading.ASKED, top=0))


def test_padding_has_no_distribution(
    teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """Of a batch of answers of several lengths: the rest is 1 there, and nothing is learnt."""
    run = a_trainer(shards[:4], teacher, mirror, KL, asking=replace(reading.ASKED, top=4))
    batch = run.dataset.train
    ids_BA = run.student.answer_ids([run.dataset.answers[number] for number in batch])
    found = Tops(run.dataset, run.student).of(batch, ids_BA)
    padding = ids_BA == -100
    assert padding.any()
    assert torch.equal(found.answer_BA, ids_BA)
    assert (found.ids_BAK[padding] == -1).all() and (found.ids_BAK[~padding] >= 0).all()
    shares_BA = found.logp_BAO.exp().sum(-1)
    torch.testing.assert_close(shares_BA, torch.ones_like(shares_BA), rtol=5e-3, atol=5e-3)


def test_ids_beyond_the_vocabulary_are_refused(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], tmp_path: Path
) -> None:
    """A file from elsewhere may say anything: a typed refusal, not an index out of range."""
    path = served(tmp_path / "labels", teacher, shards[:4], ids=True, beyond=True)
    with pytest.raises(BadData, match="ids that the vocabulary does not have"):
        a_trainer(shards[:4], None, mirror, replace(KL, labels=(path,)))
