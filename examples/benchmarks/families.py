"""What cdcca costs beside plain transformers, family by family: `infer` and `distill`.

    python examples/benchmarks/families.py [--families llava gemma3] [--frames 12] [--questions 2]
        [--epochs 2] [--batch-size 8] [--repeats 1] [--dtype float32] [--layers 30] [--json FILE]

Each family is built on the spot with random weights: the tower, connector, processor and tokenizer
are those of `tests/zoo`, so run this in a checkout; the language model has SmolLM2-135M's shape.
The embedding's rows beyond those of plain words are small, so that answers are words and equally
long.
Frames and questions are the first of the shipped stream. One thread; each side has a process of its
own; ratios are of one repeat.

**infer** is `answer_frames` with the model of a device folder, whose overlay (norms, biases, LoRA
of rank 16) changes nothing yet; `bare` has the checkpoint without an overlay. **plain** opens the
images of a batch, runs the processor and `generate`. Both answer greedily, and the same.

**distill** is pseudo-label training from token shards that hold all tokens, with the labels of the
checkpoint itself in a file from an earlier run. **plain** is a loop with transformers and peft
which knows these answers too: each step opens the images of a random batch and runs the processor,
the tower, the connector and the language model. Samples, epochs, step size and trained parameters
are the same. A sample is one question in one epoch.

Seconds are the processor's, without loading and evaluation. Peak memory is the process's, and what
it is over that of its imports. Cross-entropy (nats per answer token) is taken before and after:
both sides start from the same loss, and both must learn. Prints Markdown tables.
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

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

# Torch is imported by the sides alone (`training`).
from training import (  # noqa: E402
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

FAMILIES = {
    "llava": "LlavaForConditionalGeneration",
    "smolvlm": "SmolVLMForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "gemma3": "Gemma3ForConditionalGeneration",
}
"""And their classes in transformers."""
NEEDED = {"infer": 1.0, "distill": 1.5, "memory": 0.8}
SHAPE = {
    "vocab_size": 49152,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "initializer_range": 1 / 24,
    "tie_word_embeddings": True,
}
"""SmolLM2-135M's; its width is 576."""
NEW_TOKENS = 8


# ---------------------------------------------------------------- the checkpoint, shards, labels


def build(family: str, folder: Path, layers: int) -> None:
    """Write the checkpoint of a family, with the tower of the zoo and SmolLM2's shape."""
    import torch
    import transformers

    from tests.zoo import FAMILIES as ROWS
    from tests.zoo.texts import Text
    from tests.zoo.words import tokenizer

    class Shaped(Text):
        def config(self, kind: str, **other: Any) -> dict[str, Any]:
            return super().config(kind, **other) | SHAPE

        def rotating(self, kind: str, sections: Any = (8, 12, 12), **other: Any) -> Any:
            return super().rotating(kind, sections, **other)

    row = ROWS[family]
    folder.mkdir()
    words = tokenizer(folder, row.chat, row.mark, row.words, row.special)
    architecture = getattr(transformers, row.model)
    settings = row.config(Shaped(words, 576, layers)) | {"tie_word_embeddings": True}
    torch.manual_seed(0)
    model = architecture(architecture.config_class(**settings))
    plain = [
        number
        for token, number in words.get_vocab().items()
        if (letters := token.removeprefix("Ġ")).isascii() and letters.isalpha()
    ]
    with torch.no_grad():
        rows = model.get_output_embeddings().weight
        silent = torch.ones(len(rows), dtype=torch.bool)
        silent[plain] = False
        rows[silent] *= 0.2
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=words.bos_token_id,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.convert_tokens_to_ids(list(row.chat.eos)),
    )
    model.save_pretrained(folder)
    pictures = {"image_processor_type": row.pictures, "processor_class": row.processor}
    for name, made in (
        ("preprocessor_config.json", pictures | dict(row.sizes)),
        ("processor_config.json", {"processor_class": row.processor, **row.settings}),
    ):
        (folder / name).write_text(json.dumps(made))


def prepare(plan: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint, a device folder, shards and labels; questions.jsonl has the answers too."""
    from cdcca_cli.formats.label_stream import ShardKey
    from cdcca_cli.formats.shard_stream import read_shards
    from cdcca_cli.models import load
    from cdcca_cli.skipped import Skipped
    from cdcca_cli.teachers.labelling import labelled
    from cdcca_cli.teachers.local import LocalTeacher

    folder = Path(plan["folder"])
    build(plan["family"], Path(plan["checkpoint"]), plan["layers"])
    made = make_shards(plan | {"keep": "100%"})
    with open(folder / "shards.tokens", "rb") as file:
        shards = list(read_shards(file))
    model = load(plan["checkpoint"], compute="cpu", dtype="float32")
    paths = [folder / "pseudo-label.labels"]
    labels = labelled(shards, LocalTeacher(model), paths, 16, Skipped(strict=True))
    answers = [
        found[0].answer
        for shard in shards
        for place in range(len(shard.questions))
        if (found := labels.read(ShardKey.of(shard), place)) is not None
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
    "infer plain": infer_plainly,
    "infer bare": infer_with_cdcca,
    "distill cdcca": train_with_cdcca,
    "distill plain": distill_plainly,
}


def repeat(plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All runs of one family by name, each without its answers but with how many are the same."""
    runs = {name: run(name, plan, __file__) for name in SIDES if name != "prepare"}
    for task in ("infer", "distill"):
        theirs = runs[f"{task} plain"]["answers"]
        for name in runs:
            if name.startswith(task):
                ours = runs[name]["answers"]
                runs[name]["same"] = sum(theirs[key] == answer for key, answer in ours.items())
    counts = {(one["samples"], one["parameters"]) for one in runs.values() if "samples" in one}
    if len(counts) > 1:
        raise SystemExit(f"the sides trained other samples or parameters: {counts}")
    for one in runs.values():
        del one["answers"]
    return runs


def ratios(runs: dict[str, dict[str, Any]]) -> Iterator[tuple[str, float, float | None]]:
    """Of one repeat: name, cdcca's figure over the plain one's, and what is required."""
    cpu = {name: one["seconds"]["cpu"] for name, one in runs.items()}
    yield "infer", cpu["infer plain"] / cpu["infer cdcca"], NEEDED["infer"]
    yield "infer bare", cpu["infer plain"] / cpu["infer bare"], None
    yield "distill", cpu["distill plain"] / cpu["distill cdcca"], NEEDED["distill"]
    ours, plain = runs["distill cdcca"], runs["distill plain"]
    yield "memory", ours["peak"] / plain["peak"], NEEDED["memory"]
    over = (ours["peak"] - ours["imports"]) / (plain["peak"] - plain["imports"])
    yield "memory over the imports", over, NEEDED["memory"]


def ratio_cells(repeats: list[dict[str, dict[str, Any]]]) -> Iterator[str]:
    """One family's cells of the first table."""
    for several in zip(*map(ratios, repeats), strict=True):
        name, _, needed = several[0]
        values = [value for _, value, _ in several]
        form, is_most = ".2f", name.startswith("memory")
        text = " / ".join(spread(values, form)) if len(values) > 1 else format(values[0], form)
        middle = median(values)
        is_met = needed is None or (middle <= needed if is_most else middle >= needed)
        yield text if is_met else f"{text} (not met)"


def side_rows(family: str, runs: dict[str, dict[str, Any]], count: int) -> Iterator[list[str]]:
    """The second table's rows of a family, of its first repeat."""
    for name, one in runs.items():
        before, after = one.get("cross_entropy", (None, None))
        yield [
            f"{family}, {name}",
            f"{one['seconds']['cpu']:.1f}",
            f"{one['seconds']['wall']:.1f}",
            f"{one['peak'] / 1e6:.0f}",
            f"{(one['peak'] - one['imports']) / 1e6:.0f}" if "imports" in one else "",
            f"{one['same']} of {count}",
            "" if before is None else f"{before:.3f} to {after:.3f}",
        ]


def tables(result: dict[str, Any]) -> str:
    heads = ["infer", "infer bare", "distill", "memory", "memory over the imports"]
    first, second = [], []
    for family, found in result["families"].items():
        made, repeats = found["made"], found["repeats"]
        first.append([family, f"{made['tokens']:.0f}", *ratio_cells(repeats)])
        second += side_rows(family, repeats[0], made["questions"])
    needed = "speeds: infer at least {infer}, distill at least {distill}; memory at most {memory}"
    return "\n".join(
        [
            f"cdcca over plain; {needed.format(**NEEDED)}\n",
            table(["family", "tokens", *heads], first),
            table(
                ["", "CPU s", "wall s", "peak MB", "over imports", "same answers", "nats"], second
            ),
        ]
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    names = ("frames", "questions", "epochs", "batch_size", "dtype", "layers")
    plan = {name: getattr(options, name) for name in names} | {"method": "pseudo-label"}
    families = {}
    for family in options.families:
        with tempfile.TemporaryDirectory() as folder:
            own = {"family": family, "folder": folder, "checkpoint": f"{folder}/checkpoint"}
            sides = plan | own | {"architecture": FAMILIES[family]}
            made = run("prepare", sides, __file__)
            repeats = [repeat(sides | {"seed": seed}) for seed in range(options.repeats)]
            families[family] = {"made": made, "repeats": repeats}
            sys.stderr.write(f"{family}: done\n")
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
