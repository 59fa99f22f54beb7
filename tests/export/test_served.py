"""llama.cpp's server with an export answers as cdcca's own model, and with less it does not."""

import base64
import io
import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.export import targets
from cdcca_cli.export.settings import ExportSettings
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.gguf import read_gguf, write_copy, write_gguf
from tests import tiny as checkpoints
from tests.export import tiny
from tests.export.conftest import Made

SEEN = 0.5
"""How much an omission shows at least; a right one differs by less than 0.0001 and 0.05."""


@pytest.fixture(scope="module")
def exported(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("xllamacpp", reason="xllamacpp has no wheel for this machine")
    out = tmp_path_factory.mktemp("served") / "out"
    how = ExportSettings(base=made.base, mmproj=made.mmproj, f32=True, probe="none")
    targets.export(Device.open(made.device), out, how)
    return out


class Asked:
    """One text and one picture, and what cdcca's own model says of the next token."""

    def __init__(self, made: Made) -> None:
        import torch
        from PIL import Image
        from transformers import AutoTokenizer

        from cdcca_cli.models import load_device

        words = AutoTokenizer.from_pretrained(made.checkpoint)
        self.ids = words.encode("what is it?", add_special_tokens=False)
        before, after = (words.encode(one, add_special_tokens=False) for one in ("A", "B:"))
        self.forced = before[0]
        side = checkpoints.IMAGE_SIZE
        levels = np.random.default_rng(3).integers(0, 256, (side, side, 3), np.uint8)
        packed = io.BytesIO()
        Image.fromarray(levels).save(packed, "PNG")
        self.picture = base64.b64encode(packed.getvalue()).decode()
        pictures = json.loads((made.checkpoint / "preprocessor_config.json").read_text())
        mean, std = (np.array(pictures[name]) for name in ("image_mean", "image_std"))
        pixels = torch.tensor((levels / 255 - mean) / std, dtype=torch.float32)
        model = load_device(Device.open(made.device), compute="cpu", dtype="float32").module
        place = model.config.image_token_index
        seen = [*before, *[place] * checkpoints.NUM_PATCHES, *after]
        with torch.no_grad():
            text = model(input_ids=torch.tensor([self.ids])).logits
            picture = model(
                input_ids=torch.tensor([seen]), pixel_values=pixels.permute(2, 0, 1)[None]
            ).logits
        self.wanted = [one[0, -1].double().log_softmax(-1).numpy() for one in (text, picture)]

    def differences(self, address: str) -> tuple[float, float]:
        """The largest difference of a log-probability of the server's, of text and of picture."""
        root = address.partition("/v1")[0]
        with urllib.request.urlopen(f"{root}/props", timeout=60) as answer:
            mark = json.load(answer)["media_marker"]
        shown = {"prompt_string": f"A{mark}B:", "multimodal_data": [self.picture]}
        found = []
        for prompt, wanted in zip((self.ids, shown), self.wanted, strict=True):
            asked = {"prompt": prompt, "n_predict": 1, "n_probs": len(wanted), "temperature": 0}
            asked |= {"cache_prompt": False, "logit_bias": [[self.forced, 1000.0]]}
            request = urllib.request.Request(f"{root}/completion", json.dumps(asked).encode())
            with urllib.request.urlopen(request, timeout=60) as answer:
                (said,) = json.load(answer)["completion_probabilities"]
            got = np.full(len(wanted), np.nan)
            for one in said["top_logprobs"]:
                got[one["id"]] = one["logprob"]
            assert np.isfinite(got).sum() > len(wanted) - 2
            found.append(float(np.nanmax(np.abs(got - wanted))))
        return found[0], found[1]


@pytest.fixture(scope="module")
def asked(made: Made) -> Asked:
    return Asked(made)


@contextmanager
def served(folder: Path, **files: Path | None) -> Iterator[str]:
    from tests.teachers import llama

    usual = {"model": folder / "model.gguf", "vision": folder / "mmproj.gguf"}
    usual["adapter"] = folder / "adapter.gguf"
    with llama.serving(**{**usual, **files}) as address:
        yield address


def test_a_whole_export_answers_as_the_device(exported: Path, asked: Asked) -> None:
    with served(exported) as address:
        text, picture = asked.differences(address)
    assert text < 1e-4 and picture < 0.05


@pytest.mark.parametrize("left_out", ["lora", "norms", "biases", "projector", "row order"])
def test_what_is_left_out_shows(
    exported: Path, asked: Asked, made: Made, left_out: str, tmp_path: Path
) -> None:
    model, adapter = read_gguf(exported / "model.gguf"), read_gguf(exported / "adapter.gguf")
    file = tmp_path / "changed.gguf"
    files: dict[str, Path | None]
    if left_out == "lora":
        files = {"adapter": None}
    elif left_out == "projector":
        files = {"vision": made.mmproj}
    elif left_out == "row order":
        files = {"adapter": file}
        tensors = {name: adapter.values(one) for name, one in adapter.tensors.items()}
        wrong = {
            name: tiny.in_pairs(array, tiny.HEADS if "attn_q" in name else tiny.KV_HEADS)
            for name, array in tensors.items()
            if name.endswith(("attn_q.weight.lora_b", "attn_k.weight.lora_b"))
        }
        with open(file, "wb") as out:
            write_gguf(out, dict(adapter.keys), {**tensors, **wrong})
    else:
        files = {"model": file}
        kept = ".bias" if left_out == "norms" else "norm.weight"
        put = {name: model.values(one) for name, one in model.tensors.items() if kept in name}
        with open(file, "wb") as out:
            write_copy(out, read_gguf(made.base), put)
    with served(exported, **files) as address:
        text, picture = asked.differences(address)
    assert picture > SEEN
    assert text > SEEN or left_out == "projector"
