"""The profile of every family says what its model does."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cdcca_cli.errors import BadData, CdccaError, MissingInput, NewerFormat
from cdcca_cli.formats.profile import Profile, parse_profile, read_profile, write_profile
from cdcca_cli.models import preprocessing
from cdcca_cli.models.profile import profile_of
from cdcca_cli.payloads.preparing import prepared
from tests.families.conftest import QUESTIONS, Case

ONE_SIZE = {
    *("blip_2", "deepseek_vl", "fast_vlm", "gemma3", "got_ocr2", "instructblip"),
    *("llava", "paligemma", "vipllava"),
}
"""Some of the families whose pictures are of one size, of those that can be read here."""
MODEL = "sha256:" + "5" * 64


@pytest.fixture(scope="module")
def profile(case: Case) -> Profile:
    return profile_of(case.model, MODEL)


def test_what_is_written_is_read_again(profile: Profile, tmp_path: Path) -> None:
    write_profile(tmp_path, profile)
    found = read_profile(tmp_path, MODEL)
    assert found.as_json() == profile.as_json()
    for name, sample in profile.samples.items():
        assert np.array_equal(found.samples[name].values, sample.values)


def test_the_model_is_as_it_says(case: Case, profile: Profile) -> None:
    model = case.model
    norms = model.trainable_groups()["norm"]
    parameters = dict(model.module.named_parameters())
    assert set(profile.norms) == set(norms)
    for name, (mean, root) in profile.norms.items():
        values = parameters[name].double()
        assert mean == pytest.approx(float(values.mean()), abs=1e-6)
        assert root == pytest.approx(float(values.square().mean().sqrt()), abs=1e-6)
    for name, sample in profile.samples.items():
        weight = model.module.get_submodule(name).weight.detach()
        corner = weight[: len(sample.values), : sample.values.shape[1]].numpy()
        assert sample.shape == tuple(weight.shape)
        assert np.abs(sample.values - corner).max() <= 1e-3 * np.abs(corner).max()
    assert profile.language.blocks == model.module.config.get_text_config().num_hidden_layers
    assert profile.end == model.end_ids


def test_prompts_are_the_models_own(case: Case, profile: Profile) -> None:
    model, mark = case.model, case.model.preparer.mark
    for question in QUESTIONS:
        text = profile.prompts["vqa"].replace("{picture}", mark).replace("{prompt}", question)
        assert text == model.format_prompt(question, "vqa")
    if case.name not in ("blip_2", "instructblip"):
        assert profile.prompts["vqa"].count("{picture}") == 1


def test_pictures_and_layouts_are_the_models_own(case: Case, profile: Profile) -> None:
    """A picture by the rule is what the tower sees, and its tokens lie as the profile says."""
    if case.name in ONE_SIZE:
        assert profile.layout is not None
    if profile.layout is not None:
        for seen in case.seen:
            assert (seen.layout, seen.num_tokens) == (profile.layout, profile.num_tokens)
    if profile.picture is None:
        return
    for image in case.images:
        ours = prepared(image, profile.picture)
        assert ours.size == profile.picture.size[::-1]
        before, after = case.model.prepare([image, ours])
        if not profile.picture.crops:  # a cropping processor scales its own output again
            assert torch.equal(before.inputs["pixel_values"], after.inputs["pixel_values"])
        assert np.array_equal(np.asarray(ours), preprocessing.levels(case.model.preparer, image))


def test_a_folder_has_the_profile_of_its_model(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="copy it from a folder"):
        read_profile(tmp_path)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from cdcca_cli import models

    made = profile_of(models.load("shipped:student", compute="cpu"), MODEL)
    found: dict[str, Any] = json.loads(json.dumps(made.as_json()))
    return found


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"kind": "device"}, BadData, "is no profile"),
        ({"version": 2}, NewerFormat, "2"),
        ({"more": 1}, BadData, "'more'"),
        ({"tower": "sha256:12"}, BadData, "digest"),
        ({"model": 5}, BadData, "model"),
        ({"end": []}, BadData, "ends"),
        ({"stub": ["a"]}, BadData, "two texts"),
        ({"prompts": {"vqa": "{prompt}{prompt}", "caption": "{prompt}"}}, BadData, "prompts"),
        ({"prompts": {"vqa": "{prompt}"}}, BadData, "caption"),
        ({"norms": {"a": [1.0]}}, BadData, "norms"),
        ({"norms": {"a": [1.0, float("nan")]}}, BadData, "finite"),
        ({"samples": {"a": {"shape": [2, 2], "rows": 3, "values": ""}}}, BadData, "sizes"),
        ({"samples": {"a": {"shape": [2], "rows": 1, "values": "AAAA"}}}, BadData, "sizes"),
        ({"samples": {"a": {"shape": [2, 2], "rows": 1, "values": "*"}}}, BadData, "sizes"),
        (
            {"picture": {"crops": False, "edge": None, "size": [1 << 20, 1], "resample": 3}},
            BadData,
            "size",
        ),
        (
            {"picture": {"crops": True, "edge": None, "size": [8, 8], "resample": 3}},
            BadData,
            "edge",
        ),
        (
            {"picture": {"crops": False, "edge": None, "size": [8, 8], "resample": 9}},
            BadData,
            "resampling",
        ),
        ({"layout": {"num_tokens": 0, "grid": [], "marks": "", "fixed": []}}, BadData, "tokens"),
        ({"language": {}}, BadData, "language"),
    ],
)
def test_a_damaged_one_is_refused(
    shipped: dict[str, Any], change: dict[str, Any], error: type[CdccaError], words: str
) -> None:
    with pytest.raises(error, match=words):
        parse_profile(shipped | change, "here")


def test_another_models_is_refused(shipped: dict[str, Any], tmp_path: Path) -> None:
    found = parse_profile(shipped, "here")
    write_profile(tmp_path, replace(found, model=None))
    with pytest.raises(BadData, match="another model"):
        read_profile(tmp_path, MODEL)


def test_a_rule_is_the_processors_own_or_none(case: Case) -> None:
    """Frames of odd shapes, a pixel wide too."""
    rule = profile_of(case.model, MODEL).picture
    if rule is None or case.name not in ("llava", "blip_2"):
        pytest.skip("no rule, or tried on others")
    for size in ((1, 1), (31, 200), (300, 7), (49, 48), (500, 333)):
        levels = np.random.default_rng(size[0]).integers(0, 256, (*size[::-1], 3), np.uint8)
        image = Image.fromarray(levels)
        wanted = preprocessing.levels(case.model.preparer, image)
        assert np.array_equal(np.asarray(prepared(image, rule)), wanted)
