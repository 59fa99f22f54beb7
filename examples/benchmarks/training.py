"""What cdcca's training costs beside a plain transformers loop: samples a second, and memory.

    python examples/benchmarks/training.py [--frames 60] [--epochs 2] [--repeats 3] [--json FILE]
        [--methods akd pseudo-label] [--keep 100%] [--try anchors] [--try compile]
        [--try bfloat16]

Both sides train the shipped student with the shipped teacher: the first frames of the shipped
stream and all their questions, the same batch size, epochs, step size and trained parameters
(norms, biases, query tokens, LoRA of rank 16), float32, one thread, nothing held out. akd: query
alignment and representation alignment (visual and answer positions) through linear phi, and
cross-entropy on the teacher's greedy answers. pseudo-label: the cross-entropy alone.

**plain** is a loop with transformers and peft, as TRL's and ms-swift's distillation trainers have
it: each step opens the images and runs the processor, student and (akd) teacher go from pixels to
logits, a random batch is padded to its longest, AdamW. The teacher's answers are kept, so later
epochs generate nothing.

**cdcca** is `distillation.distill` from token shards: cold runs the teacher and writes its labels,
warm reads them. Its shards hold all tokens here (`--keep 50%`: what a device sends by default).
Questions have no choices, which cdcca's teacher would also score.

A sample is one question in one epoch. Seconds are those of training alone, without loading and
evaluation. The tower's pass that makes the shards is the device's; `with the tower` counts it on
cdcca's side. `answers known` takes the teacher's generation off the plain side. Each run has a
process of its own, in the order cdcca cold, plain, cdcca warm; ratios are of one repeat. Peak
memory is the process's, and what it is over that of its imports. Cross-entropy (nats per answer
token, mean over all questions) is taken before and after: both sides start from the same model and
the same answers, and both must learn.

Prints Markdown tables. `--try` adds cdcca warm with torch.compile on the student's language model,
with bfloat16 autocast, or with anchors: all tokens of 60 shipped frames, whose labels are
there.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

# Torch is imported by the sides alone: Linux counts the memory of the process that it was forked
# from as a child's peak.
import cdcca_cli

ASSETS = Path(cdcca_cli.__file__).parent / "assets"
SHIPPED = "Blip2ForConditionalGeneration"
METHODS = ("akd", "pseudo-label")
TRIALS = ("anchors", "compile", "bfloat16")
NEEDED = {"warm": 2.0, "cold": 1.2, "memory": 0.8}
MOST_WITH_ANCHORS = {"seconds": 1.5, "memory": 1.1}
LR, RANK, ALPHA, CLIP_NORM, MOST_NEW_TOKENS = 5e-4, 16, 32, 1.0, 40


class Clock:
    """Processor and wall seconds since it was made."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def seconds(self) -> dict[str, float]:
        return {
            "cpu": time.process_time() - self._cpu,
            "wall": time.perf_counter() - self._wall,
        }


def peak_bytes(*imported: object) -> int:
    """The most that this process has held.

    Args: imported: what must be there before; transformers loads a class when it is named.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# ---------------------------------------------------------------- cdcca


def make_shards(plan: dict[str, Any]) -> dict[str, Any]:
    """Write the mirror, shards.tokens, and questions.jsonl for the plain side.

    Args: plan: its `checkpoint` and `questions` (of a frame) if not the shipped student, and all.
    """
    import torch

    from cdcca_cli.datasets import Frame, read_frames
    from cdcca_cli.formats import shard_stream
    from cdcca_cli.formats.shard import Coding
    from cdcca_cli.models import load
    from cdcca_cli.models.initial import create_device
    from cdcca_cli.models.settings import InitSettings
    from cdcca_cli.text import parse_amount
    from cdcca_cli.uplink.kept_tokens import make_shard
    from cdcca_cli.uplink.settings import SampleSettings

    folder, checkpoint = Path(plan["folder"]), plan.get("checkpoint", "shipped:student")
    create_device(folder / "mirror", checkpoint, InitSettings(lora_rank=RANK, lora_alpha=ALPHA))
    student = load(checkpoint, compute="cpu", dtype="float32")
    frames = list(read_frames(ASSETS / "frames" / "stream"))[: plan["frames"]]
    frames = [replace(one, questions=one.questions[: plan.get("questions")]) for one in frames]

    def write_shards(path: Path, frames: list[Frame], keep: str) -> None:
        how = SampleSettings(keep=parse_amount(keep), by="norm")
        with open(path, "wb") as file, shard_stream.writer(file) as write, torch.no_grad():
            for frame in frames:
                without = [None] * len(frame.questions)
                made = make_shard(student, frame, without, range(len(frame.questions)), how)
                bare = [replace(question, choices=None) for question in made.questions]
                write(replace(made, coding=Coding("int8"), questions=bare))

    clock = Clock()
    write_shards(folder / "shards.tokens", frames, plan["keep"])
    seconds = clock.seconds()
    if "anchors" in plan.get("trials", ()):
        anchors = list(read_frames(ASSETS / "frames" / "anchors"))[:60]
        write_shards(folder / "anchors.tokens", anchors, "100%")
    questions = [
        {
            "id": question.id,
            "image": str(frame.image),
            "prompt": student.format_prompt(question.prompt, question.task),
        }
        for frame in frames
        for question in frame.questions
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)) + "\n")
    return {"seconds": seconds, "questions": len(questions), "frames": len(frames)}


def train_with_cdcca(plan: dict[str, Any]) -> dict[str, Any]:
    import torch
    import transformers

    from cdcca_cli import streams
    from cdcca_cli.distillation.distill import distill
    from cdcca_cli.distillation.evaluation import HeldOutLoss
    from cdcca_cli.distillation.settings import DistillSettings
    from cdcca_cli.formats.adaptation import HeldOut
    from cdcca_cli.formats.device import Device
    from cdcca_cli.formats.shard_stream import read_shards
    from cdcca_cli.models import load, load_device
    from cdcca_cli.teachers.kept import KeptLabels
    from cdcca_cli.teachers.labelling import open_labels

    named = transformers.AutoTokenizer, transformers.AutoImageProcessor
    imports = peak_bytes(getattr(transformers, plan.get("architecture", SHIPPED)), *named)
    streams.set_quiet(True)
    folder = Path(plan["folder"])
    path = folder / f"{plan['method']}.labels"
    if plan["name"] == "cdcca cold":
        path.unlink(missing_ok=True)
    settings = DistillSettings(
        method=plan["method"],
        epochs=plan["epochs"],
        batch_size=plan["batch_size"],
        lr=LR,
        holdout=0.0,
        seed=plan["seed"],
        labels=(str(path),),
    )
    mirror = Device.open(folder / "mirror")
    student = load_device(mirror, compute="cpu", dtype="float32")
    teacher = None
    if plan["name"] == "cdcca cold":
        teacher = load("shipped:teacher", compute="cpu", dtype="float32")
    if plan["trial"] == "compile":
        student.language.model = torch.compile(student.language.model, dynamic=True)
    casts = plan["trial"] == "bfloat16"
    clock = Clock()
    with ExitStack() as opened:
        file = opened.enter_context(open(folder / "shards.tokens", "rb"))
        anchors = None
        if plan["trial"] == "anchors":
            anchors = read_shards(opened.enter_context(open(folder / "anchors.tokens", "rb")))
        if casts:
            opened.enter_context(torch.autocast("cpu", torch.bfloat16))
        adaptation = distill(
            read_shards(file), teacher, mirror, settings, student=student, anchors=anchors
        )
    seconds, peak = clock.seconds(), peak_bytes()
    with open(folder / "shards.tokens", "rb") as file:
        shards = list(read_shards(file))
    kept = KeptLabels(open_labels([path]), shards)
    found = [[kept.of(shard, place) for place in range(len(shard.questions))] for shard in shards]
    answers = [["" if label is None else label.answer for label in labels] for labels in found]
    loss = HeldOutLoss(student, HeldOut(shards, answers), ALPHA, plan["batch_size"])
    return {
        "seconds": seconds,
        "answer_seconds": dict.fromkeys(seconds, 0.0),
        "imports": imports,
        "peak": peak,
        "parameters": sum(values.size for values in adaptation.overlay.values()),
        "samples": adaptation.report["num_trained"] * adaptation.report["epochs_done"],
        "cross_entropy": [loss(mirror.read_overlay()), loss(adaptation.overlay)],
        "answers": dict(
            zip(
                (question.id for shard in shards for question in shard.questions),
                (answer for row in answers for answer in row),
                strict=True,
            )
        ),
    }


# ---------------------------------------------------------------- the plain loop


LORA_LINEARS = (
    r"(qformer\.encoder|language_model\.model\.layers)\..*\b"
    r"(query|key|value|dense|[qkvo]_proj|gate_proj|up_proj|down_proj)"
)
ALSO_TRAINED = re.compile(r"language_model\..*(norm\.weight|layernorm\.weight|bias)$|query_tokens$")


class Plain:
    """Teacher, student and processor, as their checkpoints give them."""

    def __init__(self) -> None:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoProcessor, Blip2ForConditionalGeneration

        self.processor = AutoProcessor.from_pretrained(ASSETS / "student")
        self.teacher, student = (
            Blip2ForConditionalGeneration.from_pretrained(ASSETS / name, dtype=torch.float32)
            for name in ("teacher", "student")
        )
        self.teacher.eval().requires_grad_(False)
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LORA_LINEARS)
        self.student = get_peft_model(student, config)
        for name, parameter in self.student.named_parameters():
            if ALSO_TRAINED.search(name):
                parameter.requires_grad = True
        self.attended: dict[str, Any] = {}
        for name, model in (("teacher", self.teacher), ("student", student)):
            attention = model.language_model.model.layers[-1].self_attn
            attention.register_forward_hook(
                lambda _module, _args, output, name=name: self.attended.update({name: output[0]})
            )

    def trained(self) -> dict[str, Any]:
        named = self.student.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def encode(self, questions: Sequence[dict], texts: list[str], side: str) -> dict[str, Any]:
        from PIL import Image

        images = [Image.open(question["image"]).convert("RGB") for question in questions]
        self.processor.tokenizer.padding_side = side
        made = self.processor(images=images, text=texts, padding=True, return_tensors="pt")
        return dict(made)

    def generate(self, questions: Sequence[dict]) -> list[str]:
        """The teacher's greedy answers."""
        inputs = self.encode(questions, [question["prompt"] for question in questions], "left")
        ids = self.teacher.generate(**inputs, max_new_tokens=MOST_NEW_TOKENS, do_sample=False)
        behind = ids[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.tokenizer.batch_decode(behind, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def batch(self, questions: Sequence[dict], answers: Sequence[str]) -> dict[str, Any]:
        """Prompts with their answers; labels for the answers alone."""
        tokenizer = self.processor.tokenizer
        texts = [
            f"{question['prompt']} {answer}{tokenizer.eos_token}"
            for question, answer in zip(questions, answers, strict=True)
        ]
        inputs = self.encode(questions, texts, "right")
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        for row, question in enumerate(questions):
            prompt = tokenizer(question["prompt"])["input_ids"]
            labels[row, : self.processor.num_query_tokens + len(prompt)] = -100
        return inputs | {"labels": labels}


def train_plainly(
    plan: dict[str, Any], make: Callable[[], Any] = Plain, known: Mapping[str, str] = {}
) -> dict[str, Any]:
    """The plain side. Args: make: loads what is trained. known: answers that are there already."""
    import peft
    import torch
    import transformers
    from torch.nn.functional import mse_loss
    from torch.utils.data import DataLoader

    named = transformers.AutoProcessor, peft.get_peft_model
    imports = peak_bytes(getattr(transformers, plan.get("architecture", SHIPPED)), *named)
    lines = (Path(plan["folder"]) / "questions.jsonl").read_text().splitlines()
    questions = [json.loads(line) for line in lines]
    plain, is_akd = make(), plan["method"] == "akd"
    student, teacher = plain.student, plain.teacher
    start = {name: value.detach().clone() for name, value in plain.trained().items()}
    torch.manual_seed(plan["seed"])
    answers = dict(known)
    waited = {"cpu": 0.0, "wall": 0.0}

    def answer(batch: Sequence[dict]) -> None:
        new = [question for question in batch if question["id"] not in answers]
        if new:
            clock = Clock()
            answers.update(
                zip((question["id"] for question in new), plain.generate(new), strict=True)
            )
            for kind, seconds in clock.seconds().items():
                waited[kind] += seconds

    clock = Clock()
    loader = DataLoader(questions, batch_size=plan["batch_size"], shuffle=True, collate_fn=list)
    phis = torch.nn.ModuleDict()
    if is_akd:
        from_to = {
            name: tuple(getattr(model.config, name).hidden_size for model in (student, teacher))
            for name in ("qformer_config", "text_config")
        }
        phis["queries"] = torch.nn.Linear(*from_to["qformer_config"])
        phis["visual"] = torch.nn.Linear(*from_to["text_config"])
        phis["answer"] = torch.nn.Linear(*from_to["text_config"])
    else:
        for batch in DataLoader(questions, batch_size=plan["batch_size"], collate_fn=list):
            answer(batch)
    parameters = [*plain.trained().values(), *phis.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0)
    total = plan["epochs"] * len(loader)
    scheduler = transformers.get_cosine_schedule_with_warmup(
        optimizer, max(1, round(0.05 * total)), total
    )
    samples = 0
    student.train()
    for _ in range(plan["epochs"]):
        for batch in loader:
            answer(batch)
            inputs = plain.batch(batch, [answers[question["id"]] for question in batch])
            output = student(**inputs)
            loss = output.loss
            if is_akd:
                with torch.no_grad():
                    inputs_only = {name: inputs[name] for name in inputs if name != "labels"}
                    taught = teacher(**inputs_only)
                ours, theirs = plain.attended["student"], plain.attended["teacher"]
                num_visual = plain.processor.num_query_tokens
                places = inputs["labels"][:, 1:] != -100
                loss = loss + mse_loss(
                    phis["queries"](output.qformer_outputs.last_hidden_state),
                    taught.qformer_outputs.last_hidden_state,
                )
                visual = mse_loss(phis["visual"](ours[:, :num_visual]), theirs[:, :num_visual])
                answered = mse_loss(phis["answer"](ours[:, :-1][places]), theirs[:, :-1][places])
                loss = loss + (visual + answered) / 2
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            optimizer.step()
            scheduler.step()
            samples += len(batch)
    seconds, peak = clock.seconds(), peak_bytes()
    after = plain_cross_entropy(plain, questions, answers, plan["batch_size"])
    with torch.no_grad():
        for name, parameter in plain.trained().items():
            parameter.copy_(start[name])
    before = plain_cross_entropy(plain, questions, answers, plan["batch_size"])
    return {
        "seconds": seconds,
        "answer_seconds": waited,
        "imports": imports,
        "peak": peak,
        "parameters": sum(parameter.numel() for parameter in plain.trained().values()),
        "samples": samples,
        "cross_entropy": [before, after],
        "answers": answers,
    }


def plain_cross_entropy(
    plain: Plain, questions: list[dict], answers: dict[str, str], batch_size: int
) -> float:
    """Nats per answer token, each question counting alike."""
    import torch
    from torch.nn.functional import cross_entropy

    plain.student.eval()
    total = 0.0
    for at in range(0, len(questions), batch_size):
        batch = questions[at : at + batch_size]
        inputs = plain.batch(batch, [answers[question["id"]] for question in batch])
        labels = inputs.pop("labels")[:, 1:]
        with torch.no_grad():
            logits = plain.student(**inputs).logits[:, :-1]
        nats = cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        total += float((nats.sum(1) / (labels != -100).sum(1)).sum())
    return total / len(questions)


# ---------------------------------------------------------------- runs, each in a process


SIDES = {
    "shards": make_shards,
    "cdcca cold": train_with_cdcca,
    "cdcca warm": train_with_cdcca,
    "plain": train_plainly,
}


def run(
    name: str, plan: dict[str, Any], script: str = __file__, **more: str | None
) -> dict[str, Any]:
    """One side of a script, in a process of its own."""
    side = json.dumps(plan | {"name": name, "trial": None} | more)
    done = subprocess.run(
        [sys.executable, script, "--side", side],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def repeat(plan: dict[str, Any], trials: Sequence[str]) -> dict[str, dict[str, Any]]:
    """All runs of one method, by name, in the order in which they ran."""
    runs = {name: run(name, plan) for name in ("cdcca cold", "plain", "cdcca warm")}
    for trial in trials:
        if trial == "anchors":  # the first time they are labelled
            run("cdcca warm", plan, trial=trial)
        runs[f"cdcca warm, {trial}"] = run("cdcca warm", plan, trial=trial)
    counts = {(one["samples"], one["parameters"]) for one in runs.values()}
    if len(counts) > 1:
        raise SystemExit(f"the sides trained other samples or parameters: {counts}")
    theirs = runs["plain"]["answers"]
    for one in runs.values():
        ours = one.pop("answers")
        one["same_answers"] = sum(theirs[key] == answer for key, answer in ours.items())
    return runs


def rate(one: dict[str, Any], kind: str, tower: dict[str, float] | None = None) -> float:
    """Samples a second of training. Args: kind: cpu or wall; tower: seconds to count as well."""
    return one["samples"] / (one["seconds"][kind] + (0.0 if tower is None else tower[kind]))


def ratios(
    runs: dict[str, dict[str, Any]], tower: dict[str, float]
) -> Iterator[tuple[str, float, float | None]]:
    """What one repeat gives: name, cdcca over plain, and what is required of it."""
    plain = runs["plain"]
    for state in ("warm", "cold"):
        ours = runs[f"cdcca {state}"]
        for kind in ("cpu", "wall"):
            unit = "CPU second" if kind == "cpu" else "wall second"
            yield (
                f"samples per {unit}, {state}",
                rate(ours, kind) / rate(plain, kind),
                NEEDED[state],
            )
        value = rate(ours, "cpu", tower) / rate(plain, "cpu")
        yield f"samples per CPU second, {state}, with the tower", value, None
    known = plain["seconds"]["cpu"] - plain["answer_seconds"]["cpu"]
    value = rate(runs["cdcca warm"], "cpu") * known / plain["samples"]
    yield "samples per CPU second, warm, answers known to plain", value, None
    for state in ("warm", "cold"):
        ours = runs[f"cdcca {state}"]
        yield f"peak memory, {state}", ours["peak"] / plain["peak"], NEEDED["memory"]
        over = (ours["peak"] - ours["imports"]) / (plain["peak"] - plain["imports"])
        yield f"peak memory over the imports', {state}", over, NEEDED["memory"]
    if "cdcca warm, anchors" in runs:
        held, warm = runs["cdcca warm, anchors"], runs["cdcca warm"]
        for kind in ("cpu", "wall"):
            value = held["seconds"][kind] / warm["seconds"][kind]
            yield f"anchors over cdcca warm, {kind} seconds", value, MOST_WITH_ANCHORS["seconds"]
        most = MOST_WITH_ANCHORS["memory"]
        yield "anchors over cdcca warm, peak memory", held["peak"] / warm["peak"], most
        over = (held["peak"] - held["imports"]) / (warm["peak"] - warm["imports"])
        yield "anchors over cdcca warm, peak memory over the imports'", over, most
    for name in runs:
        if name.startswith("cdcca warm, ") and name != "cdcca warm, anchors":
            for kind in ("cpu", "wall"):
                value = rate(runs[name], kind) / rate(runs["cdcca warm"], kind)
                trial = name.removeprefix("cdcca warm, ")
                yield f"{trial} over cdcca warm, samples per {kind} second", value, None


# ---------------------------------------------------------------- tables


def spread(values: Sequence[float], form: str) -> list[str]:
    return [format(value, form) for value in (min(values), median(values), max(values))]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def side_rows(repeats: list[dict[str, dict[str, Any]]]) -> Iterator[list[str]]:
    for name in repeats[0]:
        ones = [runs[name] for runs in repeats]
        before, after = ones[0]["cross_entropy"]
        yield [
            name,
            *(
                " / ".join(spread([rate(one, kind) for one in ones], ".1f"))
                for kind in ("cpu", "wall")
            ),
            f"{median(one['seconds']['cpu'] for one in ones):.1f}",
            f"{median(one['peak'] for one in ones) / 1e6:.0f}",
            f"{median(one['peak'] - one['imports'] for one in ones) / 1e6:.0f}",
            f"{before:.3f} to {after:.3f}",
        ]


def ratio_rows(repeats: list[list[tuple[str, float, float | None]]]) -> Iterator[list[str]]:
    for several in zip(*repeats, strict=True):
        name, _, needed = several[0]
        values = [value for _, value, _ in several]
        verdict = ["", ""]
        if needed is not None:
            is_most = "memory" in name or "seconds" in name
            is_met = median(values) <= needed if is_most else median(values) >= needed
            verdict = [
                f"{'at most' if is_most else 'at least'} {needed}",
                "yes" if is_met else "no",
            ]
        yield [name, *spread(values, ".2f"), *verdict]


def tables(result: dict[str, Any]) -> str:
    plan, tower = result["plan"], result["shards"]["seconds"]
    parts = [
        f"{result['shards']['frames']} frames, {result['shards']['questions']} questions, "
        f"{plan['epochs']} epochs, batches of {plan['batch_size']}, "
        f"tokens kept: {plan['keep']}. The tower's pass "
        f"for the shards: {tower['cpu']:.2f} CPU seconds. Load of the machine (1, 5, 15 minutes): "
        f"{' '.join(f'{load:.1f}' for load in result['load'])} at the start, "
        f"{' '.join(f'{load:.1f}' for load in result['load_after'])} at the end, "
        f"{os.cpu_count()} cores.\n"
    ]
    for method, repeats in result["methods"].items():
        one = repeats[0]["cdcca cold"]
        parts.append(
            f"**{method}**: {one['samples']} samples and {one['parameters']:,} trained parameters "
            f"on either side; {one['same_answers']} of {result['shards']['questions']} answers "
            f"of the teacher are the same.\n"
        )
        head = ["", "samples / CPU s (min / median / max)", "samples / wall s", "CPU s", "peak MB"]
        parts.append(
            table([*head, "over imports", "cross-entropy, nats"], list(side_rows(repeats)))
        )
        rows = ratio_rows([list(ratios(runs, tower)) for runs in repeats])
        parts.append(
            table(["cdcca / plain", "min", "median", "max", "required", "met"], list(rows))
        )
    return "\n".join(parts)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    plan = {name: getattr(options, name) for name in ("frames", "epochs", "batch_size", "keep")}
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        sides = plan | {"folder": folder, "seed": 0, "trials": options.trials}
        shards = run("shards", sides)
        methods: dict[str, list[Any]] = {method: [] for method in options.methods}
        for seed in range(options.repeats):
            for method, done in methods.items():
                done.append(repeat(sides | {"method": method, "seed": seed}, options.trials))
    return {
        "plan": plan,
        "shards": shards,
        "methods": methods,
        "load": load,
        "load_after": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--keep", default="100%", help="tokens of a frame, as in cdcca sample")
    parser.add_argument("--try", dest="trials", action="append", choices=TRIALS, default=[])
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
