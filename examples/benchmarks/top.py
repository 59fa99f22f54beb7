"""What a distribution of the k likeliest tokens, and the rest as one, keeps of the whole one.

    python examples/benchmarks/top.py SHARDS --teacher CHECKPOINT --student FOLDER [--questions 60]

For questions of the shards: the teacher's greedy answer; the forward KL divergence of the student
from the teacher over the whole vocabulary and over k + 1 outcomes, both with log-probabilities in
16 bits as `cdcca label` stores them; the cosine of the two gradients over the student's overlay;
the bytes of an answer token. Prints one Markdown table.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from cdcca_cli.distillation import losses
from cdcca_cli.distillation.optimiser import open_overlay
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.label_tops import LOWEST
from cdcca_cli.formats.shard_stream import read_shards
from cdcca_cli.models import load, load_device
from cdcca_cli.models.encoding import Example, encode
from cdcca_cli.models.settings import MAX_NEW_TOKENS
from cdcca_cli.payloads.opening import Opener
from cdcca_cli.teachers.local import top_of

COUNTS = (1, 5, 20, 64)


def half(values: torch.Tensor) -> torch.Tensor:
    """As stored: 16 bits."""
    return values.clamp(min=LOWEST).half().float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    mirror = Device.open(options.student)
    teacher = load(options.teacher, compute="cpu", dtype=options.dtype)
    student = load_device(mirror, compute="cpu", dtype=options.dtype)
    opener = Opener(student, mirror.codebook_of)
    with open(options.shards, "rb") as file:
        shards = [opener.open(shard) for shard in read_shards(file)]
    examples = [Example(shard, question) for shard in shards for question in shard.questions]
    kls: dict[int | None, list[float]] = {count: [] for count in (None, *COUNTS)}
    cosines: dict[int, list[float]] = {count: [] for count in COUNTS}
    with student.training_mode():
        overlay = open_overlay(student, mirror.read_overlay(), mirror.lora.alpha)
        for example in examples[: options.questions]:
            with torch.no_grad():
                spliced = encode(teacher, [example]).spliced
                ids = teacher.generate(spliced, MAX_NEW_TOKENS[example.question.task]).ids
                answer_BA = teacher.answer_ids([teacher.decode(ids[0])])
                logits_BAV = teacher.forward(spliced, answer_BA).logits.float()
            own_BAV = student.forward(encode(student, [example]).spliced, answer_BA).logits
            gradients = {}
            for count in kls:
                if count is None:
                    loss = losses.forward_kl(logits_BAV, own_BAV, answer_BA).mean()
                else:
                    top = top_of(logits_BAV[0].log_softmax(-1), count)
                    assert top is not None and top.ids_AK is not None
                    ids_BAK = torch.from_numpy(top.ids_AK.astype(np.int64))[None]
                    rest_A1 = torch.from_numpy(top.rest_A)[:, None]
                    kept = half(torch.cat([torch.from_numpy(top.logp_AK), rest_A1], 1))[None]
                    own = losses.outcomes(own_BAV, ids_BAK)
                    loss = losses.forward_kl(kept, own, answer_BA).mean()
                overlay.clear()
                loss.backward(retain_graph=True)
                kls[count].append(float(loss.detach()))
                gradients[count] = overlay.gradient.double()
            for count in COUNTS:
                cosine = torch.cosine_similarity(gradients[count], gradients[None], dim=0)
                cosines[count].append(float(cosine))
    size = own_BAV.shape[-1]
    whole = np.array(kls[None])
    lines = [
        "| k | KL, nats | of the whole | gradient's cosine, least | bytes a token |",
        "| ---: | ---: | ---: | ---: | ---: |",
        f"| {size:,} | {whole.mean():.4f} | | | {2 * size:,} |",
    ]
    for count in COUNTS:
        found = np.array(kls[count])
        lines.append(
            f"| {count} | {found.mean():.4f} | {found.mean() / whole.mean():.2%} | "
            f"{np.mean(cosines[count]):.5f}, {min(cosines[count]):.5f} | {6 * count + 2} |"
        )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
