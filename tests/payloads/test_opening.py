"""What a device sent becomes its tokens; what cannot be opened is refused or left out by name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.formats.codebook import Codebook
from cdcca_cli.formats.pictures import Picture
from cdcca_cli.formats.shard import Coding, Layout, Shard
from cdcca_cli.models import LoadedModel, load
from cdcca_cli.payloads import klt, pictures
from cdcca_cli.payloads.opening import Opener
from cdcca_cli.skipped import Skipped
from tests import tiny
from tests.payloads.test_klt import N, made, tokens

EMPTY = np.zeros((0, 0), np.float32)


@pytest.fixture(scope="module")
def model(blip2_llama: Path) -> LoadedModel:
    return load(blip2_llama, compute="cpu")


def coded(codebook: Codebook, seed: int = 0) -> Shard:
    positions = np.arange(N, dtype=np.int32)
    return Shard(
        frame=f"frame {seed}",
        image="a.png",
        domain=None,
        tokens=EMPTY,
        positions=positions,
        num_tokens=N,
        tower=codebook.tower,
        coding=Coding("klt", codebook.digest, 0.5),
        codes=klt.encode(tokens(codebook, seed), positions, codebook, 0.5),
    )


def pictured(model: LoadedModel, number: int = 0) -> Shard:
    image = model.seen_as_picture(tiny.images(3, seed=2)[number])
    num_tokens = 10  # of the tower: 3 x 3 patches and the class token
    return Shard(
        frame=f"picture {number}",
        image="a.png",
        domain=None,
        tokens=EMPTY,
        positions=np.arange(num_tokens, dtype=np.int32),
        num_tokens=num_tokens,
        tower=model.tower_digest,
        coding=Coding("frame"),
        picture=pictures.encode(image, pictures.WEBP),
    )


def test_codes_by_their_codebook_which_is_looked_up_once(model: LoadedModel) -> None:
    codebook, asked = made(), []

    def codebook_of(digest: str) -> Codebook:
        asked.append(digest)
        return codebook

    opener = Opener(model, codebook_of)
    for seed in (0, 1):
        shard = coded(codebook, seed)
        opened = opener.open(shard)
        assert shard.codes is not None
        expected = klt.decode(shard.codes, shard.positions, codebook, 0.5)
        assert opened.tokens.tobytes() == expected.tobytes()
        assert opener.open(opened) is opened
    assert asked == [codebook.digest]


def test_a_picture_by_the_tower_one_at_a_time(model: LoadedModel) -> None:
    shards = [pictured(model, number) for number in range(3)]
    opened = list(Opener(model, made).open_all(shards, Skipped(strict=True)))
    for shard, found in zip(shards, opened, strict=True):
        assert shard.picture is not None
        with torch.no_grad():
            (seen,) = model.see(model.prepare([pictures.decode(shard.picture)]))
        assert found.tokens.tobytes() == seen.tokens.numpy().tobytes()
        assert (found.num_tokens, found.layout) == (seen.num_tokens, seen.layout)
        assert not shard.is_open


OTHER = "sha256:" + "9" * 64


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tower": OTHER}, "is of 5 tokens of the tower"),
        ({"num_tokens": 6}, "is of 5 tokens of the tower"),
        ({"codes": None}, "neither tokens, codes nor a picture"),
        ({"coding": Coding("klt", None, None)}, "neither tokens, codes nor a picture"),
    ],
)
def test_codes_that_do_not_fit_end_the_run(
    model: LoadedModel, change: dict[str, Any], reason: str
) -> None:
    """They are of another device or damaged: all frames of the stream are."""
    codebook = made()
    shards = [replace(coded(codebook), **change)]
    with pytest.raises(BadData, match=reason):
        list(Opener(model, lambda _: codebook).open_all(shards, Skipped()))


@pytest.mark.parametrize(
    ("codes", "step", "reason"),
    [
        (np.zeros((1, 3), np.int32), 0.5, "codes of shape"),
        (None, 2.0**126, "not finite"),
    ],
)
def test_a_frame_with_bad_codes_is_left_out(
    model: LoadedModel,
    codes: np.ndarray | None,
    step: float,
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One of three frames: the others are opened, and it is named and counted."""
    codebook, skipped = made(), Skipped()
    good = coded(codebook)
    large = np.full_like(good.codes, 1 << 20)
    coding = replace(good.coding, step=step)
    bad = replace(good, frame="bad", coding=coding, codes=large if codes is None else codes)
    found = list(Opener(model, lambda _: codebook).open_all([good, bad, good], skipped))
    assert [shard.frame for shard in found] == [good.frame] * 2
    assert "1 shard" in str(skipped)
    said = capsys.readouterr().err
    assert "frame bad" in said and reason in said


def test_a_codebook_that_is_not_there_ends_the_run(model: LoadedModel) -> None:
    def missing(digest: str) -> Codebook:
        raise MissingInput(f"no codebook {digest}")

    with pytest.raises(MissingInput, match="no codebook sha256"):
        list(Opener(model, missing).open_all([coded(made())], Skipped()))


def cut(shard: Shard) -> Shard:
    assert shard.picture is not None
    return replace(shard, picture=replace(shard.picture, data=shard.picture.data[:-20]))


def declared(shard: Shard) -> Shard:
    assert shard.picture is not None
    return replace(shard, picture=replace(shard.picture, size=(7, 7)))


def noise(shard: Shard) -> Shard:
    return replace(shard, picture=Picture(b"noise" * 40, pictures.WEBP, (48, 48)))


@pytest.mark.parametrize("damage", [cut, declared, noise])
def test_a_bad_picture_is_named_and_left_out(
    model: LoadedModel, damage: Callable[[Shard], Shard], capsys: pytest.CaptureFixture[str]
) -> None:
    shards = [pictured(model), damage(pictured(model, 1)), pictured(model, 2)]
    opener, skipped = Opener(model, made), Skipped()
    assert [s.frame for s in opener.open_all(shards, skipped)] == ["picture 0", "picture 2"]
    assert skipped.count == 1 and "picture 1" in capsys.readouterr().err
    with pytest.raises(BadData):
        list(opener.open_all(shards, Skipped(strict=True)))


def test_a_picture_has_the_tokens_and_the_layout_that_the_mirrors_tower_makes(
    model: LoadedModel,
) -> None:
    """Whatever the device says of them."""
    told = replace(pictured(model), num_tokens=4, positions=np.arange(4, dtype=np.int32))
    told = replace(told, layout=Layout((2, 2), "<row>{4}", (3,)))
    opener = Opener(model, made)
    found, expected = opener.open(told), opener.open(pictured(model))
    assert (found.num_tokens, found.layout) == (10, Layout((3, 3)))
    assert found.positions.tolist() == list(range(10))
    assert found.tokens.tobytes() == expected.tokens.tobytes()


def test_a_picture_for_another_tower_ends_the_run(model: LoadedModel) -> None:
    with pytest.raises(BadData, match="its picture is for the vision tower sha256:99999999"):
        list(Opener(model, made).open_all([replace(pictured(model), tower=OTHER)], Skipped()))


def test_a_teacher_looks_at_any_picture_with_its_own_tower(model: LoadedModel, llava: Path) -> None:
    """One that the student has opened too; what was sent as tokens stays as it is."""
    teacher = load(llava, compute="cpu")
    looking = Opener(teacher, made, any_tower=True)
    sent = pictured(model)
    by_student = Opener(model, made).open(sent)
    assert sent.picture is not None
    with torch.no_grad():
        (seen,) = teacher.see(teacher.prepare([pictures.decode(sent.picture)]))
    for shard in (sent, by_student):
        found = looking.open(shard)
        assert found.tokens.tobytes() == seen.tokens.numpy().tobytes()
        assert (found.tower, found.num_tokens) == (teacher.tower_digest, 9)
        assert found.layout == seen.layout
        assert found.picture is sent.picture
    assert by_student.tower == model.tower_digest
    tokens_alone = replace(by_student, picture=None)
    assert looking.open(tokens_alone) is tokens_alone


LAYOUTS = {
    "a place without content": Layout((3, 3), "", (0,)),
    "a place too few": Layout((3, 3), "{8}"),
    "a place too many": Layout((3, 3), "{9}<image>"),
    "places in its text": Layout((3, 3), "<image>{8}{0}{1}"),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_frame_whose_layout_is_not_this_towers_is_left_out(
    layout: Layout, llava: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a prompt is made with it, which would stop the others."""
    model, skipped = load(llava, compute="cpu"), Skipped()
    good = Shard(
        frame="good",
        image="a.png",
        domain=None,
        tokens=np.zeros((9, 32), np.float32),
        positions=np.arange(9, dtype=np.int32),
        num_tokens=9,
        tower=model.tower_digest,
        layout=Layout((3, 3)),
    )
    bad = replace(good, frame="bad", layout=layout)
    found = list(Opener(model, made).open_all([good, bad, good], skipped))
    assert [shard.frame for shard in found] == ["good", "good"]
    assert "1 shard" in str(skipped)
    assert "frame bad" in capsys.readouterr().err
