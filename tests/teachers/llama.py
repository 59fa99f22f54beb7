"""llama.cpp's own HTTP server, out of the package xllamacpp, with a tiny LLaVA of random weights.

`python -m tests.teachers.llama PORT MODEL [MMPROJ [ADAPTER]]` serves on loopback until it is
terminated.
"""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

WIDTH, INNER, LAYERS, HEADS, CONTEXT = 64, 128, 2, 4, 512
SIDE, PATCH, SEEN, TOWER_LAYERS = 32, 8, 32, 3
END = 257


def _characters() -> list[str]:
    """GPT-2's visible characters for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(256 + others.index(byte)) if byte in others else chr(byte) for byte in range(256)]


def write_tiny(folder: Path) -> tuple[Path, Path]:
    """Write the language model and the vision part. Its words are ASCII letters.

    The rows of all other tokens in the head are 0, so that they are never the likeliest.
    """
    from gguf import GGUFWriter

    draw = np.random.default_rng(2)

    def random(*shape: int, by: float = 0.2) -> np.ndarray:
        return (draw.standard_normal(shape) * by).astype(np.float32)

    model, vision = folder / "model.gguf", folder / "mmproj.gguf"
    tokens = [*_characters(), "<s>", "</s>"]
    out = GGUFWriter(model, "llama")
    sizes = {"context_length": CONTEXT, "embedding_length": WIDTH, "block_count": LAYERS}
    sizes |= {"feed_forward_length": INNER, "rope.dimension_count": WIDTH // HEADS}
    sizes |= {"attention.head_count": HEADS, "attention.head_count_kv": HEADS}
    for name, value in {**sizes, "vocab_size": len(tokens)}.items():
        out.add_uint32(f"llama.{name}", value)
    out.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    out.add_string("tokenizer.ggml.model", "gpt2")
    out.add_string("tokenizer.ggml.pre", "default")
    out.add_array("tokenizer.ggml.tokens", tokens)
    out.add_array("tokenizer.ggml.token_type", [1] * 256 + [3] * 2)
    out.add_array("tokenizer.ggml.merges", [f"{tokens[0]} {tokens[1]}"])
    out.add_uint32("tokenizer.ggml.bos_token_id", END - 1)
    out.add_uint32("tokenizer.ggml.eos_token_id", END)
    out.add_bool("tokenizer.ggml.add_bos_token", False)
    template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    out.add_string("tokenizer.chat_template", template)
    out.add_tensor("token_embd.weight", random(len(tokens), WIDTH, by=0.5))
    head = random(len(tokens), WIDTH, by=0.5)
    letters = [*range(65, 91), *range(97, 123)]
    head[[row for row in range(len(tokens)) if row not in (*letters, END)]] = 0
    out.add_tensor("output.weight", head)
    out.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            out.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            out.add_tensor(f"blk.{layer}.{name}.weight", random(WIDTH, WIDTH))
        for name, shape in (
            ("gate", (INNER, WIDTH)),
            ("up", (INNER, WIDTH)),
            ("down", (WIDTH, INNER)),
        ):
            out.add_tensor(f"blk.{layer}.ffn_{name}.weight", random(*shape))
    _finish(out)

    out = GGUFWriter(vision, "clip")
    out.add_string("general.type", "mmproj")
    out.add_bool("clip.has_vision_encoder", True)
    out.add_string("clip.projector_type", "mlp")
    out.add_bool("clip.use_gelu", True)
    sizes = {"image_size": SIDE, "patch_size": PATCH, "embedding_length": SEEN}
    sizes |= {"feed_forward_length": 2 * SEEN, "block_count": TOWER_LAYERS, "projection_dim": WIDTH}
    for name, value in {**sizes, "attention.head_count": 2}.items():
        out.add_uint32(f"clip.vision.{name}", value)
    out.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    out.add_array("clip.vision.image_mean", [0.5] * 3)
    out.add_array("clip.vision.image_std", [0.5] * 3)
    out.add_tensor("v.patch_embd.weight", random(SEEN, 3, PATCH, PATCH))
    out.add_tensor("v.patch_embd.bias", random(SEEN))
    out.add_tensor("v.position_embd.weight", random((SIDE // PATCH) ** 2, SEEN))
    for layer in range(TOWER_LAYERS):
        shapes: dict[str, tuple[int, int]] = dict.fromkeys(
            ("attn_q", "attn_k", "attn_v", "attn_out"), (SEEN, SEEN)
        )
        shapes |= {"ffn_up": (2 * SEEN, SEEN), "ffn_down": (SEEN, 2 * SEEN)}
        for name, shape in shapes.items():
            out.add_tensor(f"v.blk.{layer}.{name}.weight", random(*shape))
            out.add_tensor(f"v.blk.{layer}.{name}.bias", random(shape[0]))
        for name in ("ln1", "ln2"):
            out.add_tensor(f"v.blk.{layer}.{name}.weight", np.ones(SEEN, np.float32))
            out.add_tensor(f"v.blk.{layer}.{name}.bias", np.zeros(SEEN, np.float32))
    for name, shape in (("mm.0", (WIDTH, SEEN)), ("mm.2", (WIDTH, WIDTH))):
        out.add_tensor(f"{name}.weight", random(*shape))
        out.add_tensor(f"{name}.bias", random(shape[0]))
    _finish(out)
    return model, vision


def _finish(out: object) -> None:
    out.write_header_to_file()  # type: ignore[attr-defined]
    out.write_kv_data_to_file()  # type: ignore[attr-defined]
    out.write_tensors_to_file()  # type: ignore[attr-defined]
    out.close()  # type: ignore[attr-defined]


@contextmanager
def serving(
    model: Path,
    vision: Path | None = None,
    adapter: Path | None = None,
    log: Path | None = None,
) -> Iterator[str]:
    """Serve in a process of its own. Yields the address of the teacher.

    Args: log: what it writes; None: beside the model.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    words = [str(port), str(model), str(vision or ""), str(adapter or "")]
    log = log or model.parent / f"{port}.log"
    with open(log, "wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.teachers.llama", *words],
            cwd=Path(__file__).parents[2],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            end = time.monotonic() + 60
            while b"listening" not in log.read_bytes():
                assert child.poll() is None and time.monotonic() < end, log.read_text()[-2000:]
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/v1#tiny"
        finally:
            child.kill()
            child.wait()


def _serve(port: int, model: str, vision: str = "", adapter: str = "") -> None:
    import xllamacpp

    how = xllamacpp.CommonParams()
    how.model.path = model
    how.hostnames = ["127.0.0.1"]
    how.port = port
    how.n_ctx, how.n_parallel = CONTEXT, 1
    how.cpuparams.n_threads = how.cpuparams_batch.n_threads = 1
    how.warmup, how.use_jinja, how.n_threads_http = False, True, 16
    how.cache_type_k = how.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    # The quick attention is off by 0.01, whatever the cache holds.
    how.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if vision:
        how.mmproj.path = vision
    if adapter:
        how.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    server = xllamacpp.Server(how)
    sys.stdout.write(f"listening {server.listening_address}\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), *sys.argv[2:])
