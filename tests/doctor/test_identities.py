"""The equalities hold for every family, and what breaks one is found."""

import dataclasses
import json
from typing import Any

import pytest
import torch

from cdcca_cli import models
from cdcca_cli.doctor import identities
from cdcca_cli.models import LoadedModel
from tests.doctor.conftest import MADE, Checkpoints

NAMES = ["stored = pixels", "batch = single", "dropped = masked"]
FLOAT32 = [name for name in MADE if "float" not in name and not name.startswith("zoo: ")]


def tried(model: LoadedModel, **known: Any) -> dict[str, identities.Identity]:
    return {one.name: one for one in identities.tried(model, **known)}


@pytest.mark.parametrize("name", FLOAT32)
def test_they_hold(name: str, checkpoints: Checkpoints) -> None:
    """Far within what is allowed. (`test_doctor` tries every family.)"""
    found = tried(models.load(checkpoints[name], compute="cpu"))
    assert list(found) == NAMES
    for one in found.values():
        assert one.difference is not None and one.error == ""
        assert one.note == "" and one.difference <= 0.05 * one.allowed
        assert not one.fails
        json.dumps(one.as_json(), allow_nan=False)


@pytest.fixture(scope="module")
def llava(checkpoints: Checkpoints) -> LoadedModel:
    return models.load(checkpoints["llava with CLIP"], compute="cpu")


def test_other_tokens_are_found(llava: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real = llava._see

    def noisy(pictures: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        return [
            dataclasses.replace(
                one, tokens=one.tokens + torch.randn(one.tokens.shape, generator=generator)
            )
            for one in real(pictures)
        ]

    monkeypatch.setattr(llava, "_see", noisy)
    found = tried(llava)
    assert [name for name in NAMES if found[name].fails] == ["stored = pixels"]


def test_padding_that_is_read_is_found(llava: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real = llava.splice

    def unmasked(*args: Any, **kwargs: Any) -> Any:
        made = real(*args, **kwargs)
        return dataclasses.replace(made, attention_mask=torch.ones_like(made.attention_mask))

    monkeypatch.setattr(llava, "splice", unmasked)
    assert [name for name in NAMES if tried(llava)[name].fails] == ["batch = single"]


def test_positions_that_close_up_are_found(
    llava: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = llava.splice

    def closed(*args: Any, **kwargs: Any) -> Any:
        made = real(*args, **kwargs)
        count = made.position_ids.shape[-1]
        return dataclasses.replace(made, position_ids=torch.arange(count)[None])

    monkeypatch.setattr(llava, "splice", closed)
    assert tried(llava)["dropped = masked"].fails


def test_a_difference_that_is_explained_does_not_fail(
    llava: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        llava.module.config.text_config, "layer_types", ["conv", "full_attention"], raising=False
    )
    one = tried(llava)["dropped = masked"]
    assert one.note == identities.EXPLAINED
    assert not dataclasses.replace(one, difference=9.0).fails
    assert dataclasses.replace(one, difference=9.0, note="").fails


def test_what_is_raised_is_the_answer(llava: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("Image features and image tokens\ndo not match")

    monkeypatch.setattr(identities, "next_logits", broken)
    found = tried(llava)
    one = found["stored = pixels"]
    assert one.fails and one.error == "ValueError: Image features and image tokens do not match"
    assert not found["batch = single"].fails


def test_none_is_begun_after_the_time(llava: LoadedModel) -> None:
    for one in tried(llava, seconds=-1.0).values():
        assert one.difference is None and "not tried" in one.note and not one.fails


def test_less_is_asked_of_16_bits(llava: LoadedModel, checkpoints: Checkpoints) -> None:
    coarse = models.load(checkpoints["llava with CLIP"], compute="cpu", dtype="bfloat16")
    exact, found = tried(llava), tried(coarse)
    assert all(not one.fails for one in found.values())
    ratio = found[NAMES[0]].allowed / exact[NAMES[0]].allowed
    assert ratio == pytest.approx(200, rel=0.1)
