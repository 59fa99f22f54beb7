"""The gain on labelled frames: how much likelier the LoRA makes their answers, in nats a token.

Asked of a server; where torch and the checkpoint are, cdcca's own gain stands beside it. Frames
that were held out of the training show whether the update helps on the server's own base, which a
probe's answers, chosen for their gain, do not.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cdcca_cli.errors import MissingInput
from cdcca_cli.export import effect
from cdcca_cli.export.effect import GAIN_TOLERANCE, NOISE, Effect

if TYPE_CHECKING:
    from cdcca_cli.datasets import Frame, LabelledQuestion
    from cdcca_cli.formats.device import Device
    from cdcca_cli.serving.llama import LlamaServer

_MOST = 64


@dataclass(frozen=True)
class Labelled:
    """A question about a frame, and the answer that most people gave."""

    frame: "Frame"
    question: "LabelledQuestion"
    answer: str


def read(path: Path) -> list[Labelled]:
    """The first questions that have a label. Raises: as `read_frames`; MissingInput for none."""
    from cdcca_cli.datasets import read_frames

    found = (
        Labelled(frame, question, answer)
        for frame in read_frames(path)
        for question in frame.questions
        if (answer := _label(question))
    )
    if not (first := [*islice(found, _MOST)]):
        raise MissingInput(f"{path}: has no labels: name labelled frames")
    return first


def _label(question: "LabelledQuestion") -> str:
    if question.choices and question.correct_choice_idx is not None:
        return question.choices[question.correct_choice_idx].strip()
    texts = question.answers or question.captions or []
    return Counter(texts).most_common(1)[0][0].strip() if texts else ""


def judge(
    found: Effect, server: "LlamaServer", device: "Device", labelled: list[Labelled]
) -> Effect:
    """The verdict with the gain on labelled frames. Raises: Unavailable, BadData."""
    pairs = [*_served(server, device, labelled)]
    if not pairs:
        return found
    gain = float(np.mean([theirs for _, theirs in pairs]))
    expected = _own(device, [one for one, _ in pairs])
    numbers = {**found.numbers, "gain_held_out": gain, "gain_held_out_expected": expected}
    found = replace(found, numbers=numbers)
    if found.by != "gain" or not found.is_sound:
        return found
    if expected is None or abs(expected) < 2 * NOISE:
        return found
    if abs(gain - expected) > max(GAIN_TOLERANCE * abs(expected), NOISE):
        why = f"the LoRA gains {gain:.3f} nats a token on labelled frames, {expected:.3f} expected"
        return replace(found, verdict="acts, but differs", why=why)
    return replace(found, verdict="acts as trained", why="")


def _served(
    server: "LlamaServer", device: "Device", labelled: list[Labelled]
) -> Iterator[tuple[Labelled, float]]:
    """The questions whose labels the server scores, each with its gain."""
    from cdcca_cli.uplink.asked import LlamaAsked
    from cdcca_cli.uplink.served import shown

    profile = device.profile()
    asked, end = LlamaAsked(server, profile), profile.end[0]
    for one in labelled:
        (ids,) = asked.answer_ids([one.answer])
        prompt = asked.prompt(shown(one.frame, profile), one.question)
        nats = effect.nats(server, prompt, end, (*ids, end))
        if nats is not None:
            yield one, nats["unscaled"] - nats["whole"]


def _own(device: "Device", labelled: list[Labelled]) -> float | None:
    """cdcca's own gain; None where torch or the checkpoint is not."""
    from cdcca_cli.export import probe

    if probe.why_not(device):
        return None
    import torch

    from cdcca_cli.datasets import load_image

    model = probe.load_model(device)
    whole = device.read_overlay()
    nats: dict[bool, list[float]] = {}
    for is_scaled, values in ((True, whole), (False, probe.unscaled(device, whole))):
        model.install_overlay(values, device.lora.alpha)
        nats[is_scaled] = []
        for one in labelled:
            seen = model.see(model.prepare([load_image(one.frame)]))
            prompt = model.format_prompt(one.question.prompt, one.question.task)
            answer_BA = model.answer_ids([one.answer])
            with torch.no_grad():
                logits_AV = model.forward(model.read(seen, [prompt]), answer_BA).logits[0]
            logp_AV = logits_AV.double().log_softmax(-1)
            picked = logp_AV.gather(-1, answer_BA[0].to(logp_AV.device)[:, None])
            nats[is_scaled].append(-float(picked.mean()))
    return float(np.mean(nats[False]) - np.mean(nats[True]))
