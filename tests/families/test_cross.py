"""A teacher of another family, with another tower: it looks at the pictures that were sent."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cdcca_cli.formats.shard_stream import read_shards
from cdcca_cli.main import main
from cdcca_cli.models import load
from cdcca_cli.payloads import pictures
from cdcca_cli.teachers.labelling import open_labels
from tests import zoo
from tests.teachers.reading import labels_in


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--quiet"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two students, a teacher, three frames, and what each student sends of them."""
    made = tmp_path_factory.mktemp("cross")
    for name in ("smolvlm", "qwen2_5_vl"):
        zoo.checkpoint(name, made / name)
    zoo.checkpoint("qwen3_vl", made / "teacher", seed=1, width=128, text_layers=4)
    (made / "frames").mkdir()
    for shape, image in zoo.images().items():
        image.save(made / "frames" / f"{shape}.png")
    for name in ("smolvlm", "qwen2_5_vl"):
        mirror = made / f"{name}.mirror"
        assert run("init", mirror, "--checkpoint", made / name) == 0
        for payload in ("tokens", "frame"):
            sent = ("--payload", payload, "--top", "100%", "-o", made / f"{name}.{payload}")
            asked = (made / "frames", "-m", mirror, "--prompt", "what is it?")
            assert run("sample", *asked, *sent) == 0
    return made


def distilled(folder: Path, name: str, payload: str, *options: str) -> int:
    pair = ("--teacher", folder / "teacher", "--student", folder / f"{name}.mirror")
    kept = ("--labels", folder / f"{name}.labels", "--epochs", 1)
    out = ("-o", folder / "out.safetensors", "--force")
    return run("distill", folder / f"{name}.{payload}", *pair, *kept, *out, *options)


def test_the_labels_are_the_teachers_own(folder: Path) -> None:
    """Those of the pictures by its own processor and tower: queries to 16 bits, answers by them."""
    assert distilled(folder, "smolvlm", "frame", "--method", "pseudo-label") == 0
    teacher = load(folder / "teacher", compute="cpu")
    with open(folder / "smolvlm.frame", "rb") as file:
        shards = list(read_shards(file, where="shards"))
    found = open_labels([folder / "smolvlm.labels"])
    assert len(shards) == 3
    for shard in shards:
        assert shard.picture is not None and shard.tower != teacher.tower_digest
        with torch.no_grad():
            seen = teacher.see(teacher.prepare([pictures.decode(shard.picture)]))
            queries_1LC = teacher.queries(seen[0].tokens[None])
        ((label,),) = labels_in(found, [shard])
        expected = queries_1LC[0].numpy()
        assert label is not None and label.answer and label.top is not None
        assert label.queries is not None and label.visual is not None
        assert label.queries.shape == expected.shape
        np.testing.assert_allclose(label.queries, expected, rtol=2e-3, atol=2e-3)
        assert len(label.visual) == seen[0].num_tokens


@pytest.mark.parametrize(
    ("name", "payload", "options", "code", "words"),
    [
        ("smolvlm", "frame", ["--method", "akd"], 2, "use --method kd"),
        ("smolvlm", "tokens", ["--method", "pseudo-label"], 65, "frame"),
        ("smolvlm", "frame", ["--method", "pseudo-label", "--kl", "forward"], 2, "vocabularies"),
        ("qwen2_5_vl", "frame", ["--method", "pseudo-label", "--kl", "forward"], 0, ""),
        ("qwen2_5_vl", "frame", ["--method", "cwd"], 2, "use --method kd"),
    ],
)
def test_what_a_pair_can_do(
    folder: Path,
    name: str,
    payload: str,
    options: list[str],
    code: int,
    words: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The KL divergence is open to the two Qwens, which have one vocabulary."""
    assert distilled(folder, name, payload, *options) == code
    assert words in capfd.readouterr().err
