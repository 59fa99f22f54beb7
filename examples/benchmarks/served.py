"""`cdcca infer --server` beside `cdcca infer` on the same weights: answers, entropies, seconds.

    python examples/benchmarks/served.py CHECKPOINT FRAMES --words MODEL.gguf [--questions 100]

CHECKPOINT is a LLaVA of a SigLIP tower and a LLaMA language model, MODEL.gguf any llama.cpp file
with its vocabulary: its keys are copied, its weights are replaced by the checkpoint's, in float32.
llama.cpp's server is that of the package xllamacpp. Prints Markdown rows: questions, equal answers,
rank correlation of the entropies, share of the least sure quarter that is the same, largest
difference of a choice's score, equal choices, seconds by the server and here.
"""

import argparse
import json
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFWriter

from cdcca_cli.datasets import Frame, open_frames
from cdcca_cli.export.architectures import ARCHITECTURES, in_pairs
from cdcca_cli.formats.gguf import read_gguf, write_copy
from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.models import load_device
from cdcca_cli.models.initial import create_device
from cdcca_cli.models.settings import InitSettings
from cdcca_cli.uplink import answers, served
from cdcca_cli.uplink.settings import AnswerSettings, ServedSettings

sys.path.insert(0, str(Path(__file__).parents[2]))  # for `tests`

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


def weights(checkpoint: Path) -> dict[str, np.ndarray]:
    from safetensors.torch import load_file

    tensors = load_file(checkpoint / "model.safetensors")
    return {name.removeprefix("model."): values.float().numpy() for name, values in tensors.items()}


def write_language(checkpoint: Path, words: Path, out: Path) -> None:
    """The language model in float32, with the keys of another file of its vocabulary."""
    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    heads = {"attn_q": text["num_attention_heads"], "attn_k": text["num_key_value_heads"]}
    put = {}
    for name, values in weights(checkpoint).items():
        inner = name.removeprefix("language_model.").removeprefix("model.")
        if inner.startswith("embed_tokens"):
            put["token_embd.weight"] = values
            continue
        named = ARCHITECTURES["llama"].named(inner.removesuffix(".weight"))
        if named is not None:
            count = heads.get(named.rpartition(".")[2])
            put[f"{named}.weight"] = in_pairs(values, count) if count else values
    with open(out, "wb") as file:
        write_copy(file, read_gguf(words), put)


def write_vision(checkpoint: Path, out: Path) -> None:
    """Tower and projector for llama.cpp, which runs one block fewer than it is told."""
    config = json.loads((checkpoint / "config.json").read_text())
    vision, layer = config["vision_config"], config["vision_feature_layer"]
    blocks = vision["num_hidden_layers"] + (layer if layer < 0 else layer - 1) + 1
    pictures = json.loads((checkpoint / "preprocessor_config.json").read_text())
    tensors = {}
    for name, values in weights(checkpoint).items():
        part, _, rest = name.partition(".")
        rest = rest.removeprefix("vision_model.")
        own = rest.rpartition(".")[2]
        if part == "multi_modal_projector":
            tensors[f"mm.{0 if rest.startswith('linear_1') else 2}.{own}"] = values
        elif part == "vision_tower" and rest.startswith("embeddings."):
            tensors[f"v.{'patch' if 'patch' in rest else 'position'}_embd.{own}"] = values
        elif part == "vision_tower" and rest.startswith("encoder.layers."):
            _, _, number, inner = rest.split(".", 3)
            if int(number) < blocks:
                tensors[f"v.blk.{number}.{TOWER[inner.rpartition('.')[0]]}.{own}"] = values
    last = {name: values for name, values in tensors.items() if f".{blocks - 1}." in name}
    # The block that is not run has to be there.
    tensors |= {name.replace(f".{blocks - 1}.", f".{blocks}."): v for name, v in last.items()}
    writer = GGUFWriter(out, "clip")
    writer.add_string("general.type", "mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)
    sizes = {
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "embedding_length": vision["hidden_size"],
        "feed_forward_length": vision["intermediate_size"],
        "projection_dim": config["text_config"]["hidden_size"],
        "block_count": blocks + 1,
        "attention.head_count": vision["num_attention_heads"],
    }
    for name, size in sizes.items():
        writer.add_uint32(f"clip.vision.{name}", size)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", vision["layer_norm_eps"])
    for name in ("image_mean", "image_std"):
        writer.add_array(f"clip.vision.{name}", pictures[name])
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ranks(values: list[float]) -> np.ndarray:
    return np.argsort(np.argsort(values))


def row(name: str, found: list[Prediction], own: list[Prediction], seconds: list[float]) -> str:
    pairs = list(zip(found, own, strict=True))
    same = np.mean([one.answer == other.answer for one, other in pairs])
    entropies = [ranks([one.entropy["mean"] for one in each]) for each in (found, own)]
    spearman = np.corrcoef(*entropies)[0, 1]
    apart = [
        abs(a - b)
        for one, other in pairs
        for a, b in zip(one.choice_scores or (), other.choice_scores or (), strict=True)
    ]
    quarter = len(own) // 4
    first = [set(np.argsort(each)[-quarter:].tolist()) for each in entropies]
    picked = len(first[0] & first[1]) / quarter
    chosen = np.mean([one.choice == other.choice for one, other in pairs if other.choice])
    cells = (
        f"{name} | {len(own)} | {same:.0%} | {spearman:.3f} | {picked:.0%} | "
        f"{max(apart, default=0):.4f} | {chosen:.0%} | {seconds[0]:.1f} | {seconds[1]:.1f}"
    )
    return f"| {cells} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("frames")
    parser.add_argument("--words", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--exact", action="store_true", help="also ask the whole vocabulary")
    options = parser.parse_args()
    torch.set_num_threads(1)
    frames: list[Frame] = []
    for frame in open_frames(options.frames):
        if sum(len(each.questions) for each in frames) < options.questions:
            frames.append(frame)
    how = AnswerSettings()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        device = create_device(
            root / "device", str(options.checkpoint), InitSettings(groups=("norm",))
        )
        model = load_device(device, compute="cpu", dtype="float32")
        list(answers.answer_frames(model, frames[:1], how))
        begin = time.perf_counter()
        own = list(answers.answer_frames(model, frames, how))
        seconds = time.perf_counter() - begin
        del model
        language, vision = root / "model.gguf", root / "mmproj.gguf"
        write_language(options.checkpoint, options.words, language)
        write_vision(options.checkpoint, vision)
        from tests.teachers import llama

        with llama.serving(language, vision, log=root / "log") as address:
            url = address.partition("/v1")[0]
            for is_exact in [False, True][: 1 + options.exact]:
                at = ServedSettings(server=url, exact_entropy=is_exact)
                list(islice(served.answer_frames(served.open_served(at, device), frames[:1]), 1))
                server = served.open_served(at, device)
                begin = time.perf_counter()
                found = list(served.answer_frames(server, frames, how))
                spent = [time.perf_counter() - begin, seconds]
                name = "all tokens" if is_exact else "top 20"
                sys.stdout.write(row(name, found, own, spent))


if __name__ == "__main__":
    main()
