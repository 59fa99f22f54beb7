"""What cdcca costs beside plain transformers, family by family: `infer` and `distill`.

    python examples/benchmarks/families.py [--families llava gemma3] [--tower base] [--frames 12]
        [--epochs 2] [--batch-size 8] [--repeats 1] [--tasks infer] [--layers 30] [--json FILE]

Each family is built on the spot around a language model of SmolLM2's shape
(`family_checkpoints`), so run it in a checkout. Frames and questions are the first of the shipped
stream.

**infer** is `answer_frames` with the model of a device folder, whose overlay (norms, biases, LoRA
of rank 16) changes nothing yet; `bare` has the checkpoint without an overlay. **plain** opens the
images of a batch, runs the processor and `generate`. Both answer greedily.

**distill** is pseudo-label training from token shards that hold all tokens, with the labels of the
checkpoint itself in a cache. **plain** is the loop of `training.py` with transformers and peft,
which knows these answers too: each step opens the images of a random batch and runs the processor,
the tower, the connector and the language model. Samples, epochs, step size and trained parameters
are the same. Cross-entropy (nats per answer token) is taken before and after.

One thread; each side has a process of its own; ratios are of one repeat. Seconds are the
processor's, without loading and evaluation. Peak memory is the process's, and what it is over that
of its imports. Prints Markdown tables.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

# Torch is imported by the sides alone (`training`).
from family_checkpoints import FAMILIES, build
from training import (
    ALPHA,
    ASSETS,
    RANK,
    Clock,
    make_shards,
    peak_bytes,
    run,
    spread,
    table,
    train_plainly,
    train_with_cdcca,
)

NEEDED = {"infer": 1.0, "distill": 1.5, "memory": 0.8}
TASKS = {"infer": ("cdcca", "plain", "bare"), "distill": ("cdcca", "plain")}
NEW_TOKENS = 8
HEAD = ("cdcca / plain", "min", "median", "max", "required", "met")


# ---------------------------------------------------------------- the checkpoint, shards, labels


def prepare(plan: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint, a device folder, shards, labels, and questions and answers for plain."""
    from cdcca_cli.formats.shard_stream import read_shards
    from cdcca_cli.models import load
    from cdcca_cli.skipped import Skipped
    from cdcca_cli.teachers.kept import KeptLabels
    from cdcca_cli.teachers.labelling import labelled
    from cdcca_cli.teachers.local import LocalTeacher

    folder = Path(plan["folder"])
    build(plan["family"], Path(plan["checkpoint"]), plan["layers"], plan["tower"])
    made = make_shards(plan | {"keep": "100%"})
    with open(folder / "shards.tokens", "rb") as file:
        shards = list(read_shards(file))
    model = load(plan["checkpoint"], compute="cpu", dtype="float32")
    files = [folder / "pseudo-label.labels"]
    made_labels = labelled(shards, LocalTeacher(model), files, 16, Skipped(strict=True))
    kept = KeptLabels(made_labels, shards)
    answers = [
        label.answer
        for shard in shards
        for place in range(len(shard.questions))
        if (label := kept.of(shard, place)) is not None
    ]
    (folder / "answers.json").write_text(
        json.dumps(dict(zip((q.id for s in shards for q in s.questions), answers, strict=True)))
    )
    tokens = sum(shard.num_tokens for shard in shards) / len(shards)
    return made | {"tokens": tokens, "parameters": model.module.num_parameters()}


# ---------------------------------------------------------------- infer


def infer_with_cdcca(plan: dict[str, Any]) -> dict[str, Any]:
    """The answers by question, and the seconds for all of them."""
    from dataclasses import replace

    from cdcca_cli.datasets import read_frames
    from cdcca_cli.formats.device import Device
    from cdcca_cli.models import load, load_device
    from cdcca_cli.uplink.answers import answer_frames
    from cdcca_cli.uplink.settings import AnswerSettings

    how = {"compute": "cpu", "dtype": plan["dtype"]}
    if plan["name"] == "infer bare":
        model = load(plan["checkpoint"], **how)
    else:
        model = load_device(Device.open(Path(plan["folder"]) / "mirror"), **how)
    model.digest  # noqa: B018 -- of a device folder it is known
    frames = [
        replace(frame, questions=frame.questions[: plan["questions"]])
        for frame in list(read_frames(ASSETS / "frames" / "stream"))[: plan["frames"]]
    ]
    settings = AnswerSettings(
        batch_size=plan["batch_size"], max_new_tokens=NEW_TOKENS, score_choices=False
    )
    clock = Clock()
    answers = {made.id: made.answer for made in answer_frames(model, frames, settings)}
    return {"seconds": clock.seconds(), "peak": peak_bytes(), "answers": answers}


class Plain:
    """A checkpoint with its processor, and for `training.train_plainly` the trained parameters."""

    def __init__(self, plan: dict[str, Any], dtype: str = "float32") -> None:
        import torch
        import transformers

        from tests.zoo import FAMILIES as ROWS
        from tests.zoo import read

        row, folder = ROWS[plan["family"]], Path(plan["checkpoint"])
        self.processor = read.processor(row, folder)
        self.student: Any = getattr(transformers, row.model).from_pretrained(
            folder, dtype=getattr(torch, dtype)
        )
        self.student.eval().requires_grad_(False)
        self.teacher = None

    def encode(self, questions: Sequence[dict], texts: list[str], side: str) -> dict[str, Any]:
        from PIL import Image

        tokenizer = self.processor.tokenizer
        images = [[Image.open(question["image"]).convert("RGB")] for question in questions]
        begins = tokenizer.bos_token and texts[0].startswith(tokenizer.bos_token)
        made = self.processor(
            images=images,
            text=texts,
            padding=True,
            padding_side=side,
            add_special_tokens=not begins,
            return_tensors="pt",
        )
        return dict(made)

    def generate(self, questions: Sequence[dict]) -> list[str]:
        inputs = self.encode(questions, [question["prompt"] for question in questions], "left")
        ids = self.student.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        behind = ids[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.tokenizer.batch_decode(behind, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def wrap(self, names: Sequence[str]) -> None:
        """LoRA by peft, and the other parameters of an overlay; linears get missing biases."""
        import torch
        from peft import LoraConfig, get_peft_model

        model, also = self.student, []
        for name in names:
            path, _, own = name.rpartition(".")
            part = model.get_submodule(path)
            if own == "bias" and part.bias is None:
                part.bias = torch.nn.Parameter(torch.zeros(part.out_features))
            if own not in ("lora_A", "lora_B"):
                also.append(part.get_parameter(own))
        linears = [name.removesuffix(".lora_A") for name in names if name.endswith(".lora_A")]
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=linears)
        self.student = get_peft_model(model, config)
        for parameter in also:
            parameter.requires_grad = True

    def trained(self) -> dict[str, Any]:
        named = self.student.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def batch(self, questions: Sequence[dict], answers: Sequence[str]) -> dict[str, Any]:
        """Prompts with their answers; labels for the answers alone."""
        tokenizer, texts, lengths = self.processor.tokenizer, [], []
        for question, answer in zip(questions, answers, strict=True):
            joint = "" if question["prompt"][-1] in " \n\t>]" else " "
            behind = f"{joint}{answer}{tokenizer.eos_token}"
            texts.append(question["prompt"] + behind)
            lengths.append(len(tokenizer(behind, add_special_tokens=False)["input_ids"]))
        inputs = self.encode(questions, texts, "right")
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        for row, (real, length) in enumerate(
            zip(inputs["attention_mask"].sum(1).tolist(), lengths, strict=True)
        ):
            labels[row, : real - length] = -100
        return inputs | {"labels": labels}


def infer_plainly(plan: dict[str, Any]) -> dict[str, Any]:
    import torch

    lines = (Path(plan["folder"]) / "questions.jsonl").read_text().splitlines()
    questions, answers = [json.loads(line) for line in lines], {}
    plain, size = Plain(plan, plan["dtype"]), plan["batch_size"]
    clock = Clock()
    with torch.no_grad():
        for at in range(0, len(questions), size):
            batch = questions[at : at + size]
            answers |= dict(
                zip((question["id"] for question in batch), plain.generate(batch), strict=True)
            )
    return {"seconds": clock.seconds(), "peak": peak_bytes(), "answers": answers}


# ---------------------------------------------------------------- distill


def distill_plainly(plan: dict[str, Any]) -> dict[str, Any]:
    from cdcca_cli.formats.device import Device

    folder = Path(plan["folder"])
    names = sorted(Device.open(folder / "mirror").read_overlay())

    def make() -> Plain:
        plain = Plain(plan)
        plain.wrap(names)
        return plain

    return train_plainly(plan, make, json.loads((folder / "answers.json").read_text()))


# ---------------------------------------------------------------- runs and tables


SIDES = {
    "prepare": prepare,
    "infer cdcca": infer_with_cdcca,
    "infer bare": infer_with_cdcca,
    "infer plain": infer_plainly,
    "distill cdcca": train_with_cdcca,
    "distill plain": distill_plainly,
}


def repeat(plan: dict[str, Any], tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """All runs of one family by name, with the number of answers that are the plain side's."""
    runs = {f"{task} {side}": {} for task in tasks for side in TASKS[task]}
    for name in runs:
        runs[name] = run(name, plan, __file__)
    counts = {(one["samples"], one["parameters"]) for one in runs.values() if "samples" in one}
    if len(counts) > 1:
        raise SystemExit(f"the sides trained other samples or parameters: {counts}")
    answers = {name: one.pop("answers") for name, one in runs.items()}
    for name, ours in answers.items():
        theirs = answers[f"{name.split()[0]} plain"]
        runs[name]["same"] = sum(theirs[key] == answer for key, answer in ours.items())
    return runs


def ratios(runs: dict[str, dict[str, Any]]) -> Iterator[tuple[str, float, float | None]]:
    """Of one repeat: name, cdcca's figure over the plain one's, and what is required."""
    cpu = {name: one["seconds"]["cpu"] for name, one in runs.items()}
    if "infer plain" in runs:
        yield "infer", cpu["infer plain"] / cpu["infer cdcca"], NEEDED["infer"]
        yield "infer, bare", cpu["infer plain"] / cpu["infer bare"], NEEDED["infer"]
    if "distill plain" in runs:
        yield "distill", cpu["distill plain"] / cpu["distill cdcca"], NEEDED["distill"]
        ours, plain = runs["distill cdcca"], runs["distill plain"]
        yield "memory", ours["peak"] / plain["peak"], NEEDED["memory"]
        over = (ours["peak"] - ours["imports"]) / (plain["peak"] - plain["imports"])
        yield "memory over the imports", over, NEEDED["memory"]


def ratio_rows(family: str, found: dict[str, Any]) -> Iterator[list[str]]:
    for several in zip(*map(ratios, found["repeats"]), strict=True):
        name, _, needed = several[0]
        values = [value for _, value, _ in several]
        is_most = name.startswith("memory")
        is_met = median(values) <= needed if is_most else median(values) >= needed
        required = f"at {'most' if is_most else 'least'} {needed}"
        yield [f"{family}, {name}", *spread(values, ".2f"), required, "yes" if is_met else "no"]


def side_rows(family: str, found: dict[str, Any]) -> Iterator[list[str]]:
    """What each side took, medians over the repeats."""
    made, repeats = found["made"], found["repeats"]
    for name, first in repeats[0].items():
        ones = [runs[name] for runs in repeats]
        nats = [f"{value:.3f}" for value in first.get("cross_entropy", ())]
        yield [
            f"{family} ({made['tokens']:.0f} tokens), {name}",
            *(f"{median(one['seconds'][kind] for one in ones):.1f}" for kind in ("cpu", "wall")),
            f"{median(one['peak'] for one in ones) / 1e6:.0f}",
            f"{first['same']} of {made['questions']}",
            " to ".join(nats),
        ]


def tables(result: dict[str, Any]) -> str:
    families = result["families"].items()
    first = [row for family, found in families for row in ratio_rows(family, found)]
    second = [row for family, found in families for row in side_rows(family, found)]
    return "\n".join(
        [
            table(HEAD, first),
            table(["", "CPU s", "wall s", "peak MB", "answers as plain", "nats"], second),
        ]
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    names = ("frames", "questions", "epochs", "batch_size", "dtype", "layers", "tower")
    plan = {name: getattr(options, name) for name in names} | {"method": "pseudo-label"}
    families = {}
    for family in options.families:
        with tempfile.TemporaryDirectory() as folder:
            own = {"family": family, "folder": folder, "checkpoint": f"{folder}/checkpoint"}
            sides = plan | own | {"architecture": FAMILIES[family]}
            made = run("prepare", sides, __file__)
            seeds = range(options.repeats)
            repeats = [repeat(sides | {"seed": seed}, options.tasks) for seed in seeds]
            families[family] = {"made": made, "repeats": repeats}
            sys.stderr.write(table(HEAD, list(ratio_rows(family, families[family]))))
    return {"plan": plan, "families": families, "load": os.getloadavg()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--questions", type=int, default=2, help="of each frame")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--dtype", default="float32", help="of infer, on both sides")
    parser.add_argument("--tower", choices=["tiny", "base"], default="tiny")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--layers", type=int, default=30, help="of the language model")
    parser.add_argument("--json", type=Path, help="write all figures here too")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        plan = json.loads(options.side)
        sys.stdout.write(json.dumps(SIDES[plan["name"]](plan)) + "\n")
        return
    result = measure(options)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(tables(result))


if __name__ == "__main__":
    main()
