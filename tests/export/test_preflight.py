"""Files of another model, or in another order, are refused before anything is written."""

import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdcca_cli.errors import BadData, MissingInput, SettingError, WrongBase
from cdcca_cli.export import targets
from cdcca_cli.export.settings import ExportSettings
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.gguf import read_gguf, write_gguf
from cdcca_cli.models.initial import create_device
from cdcca_cli.models.settings import InitSettings
from tests.export import tiny
from tests.export.conftest import Made


def exported(made: Made, out: Path, device: Path | None = None, **settings: Any) -> dict[str, Any]:
    usual = {"base": made.base, "mmproj": made.mmproj, "probe": "none"}
    how = ExportSettings(**{**usual, **settings})
    return targets.export(Device.open(device or made.device), out, how)


def refused(made: Made, tmp_path: Path, error: type[Exception], **settings: Any) -> str:
    """What an export says that is refused; nothing of it stays."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error) as found:
        exported(made, tmp_path / "out", **settings)
    assert sorted(tmp_path.iterdir()) == before
    return str(found.value)


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the same shapes."""
    return tiny.checkpoint(tmp_path_factory.mktemp("another"), seed=1)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q4_1", "Q4_0"])
def test_the_right_base_is_taken(made: Made, tmp_path: Path, kind: str) -> None:
    base = tiny.write_base(made.checkpoint, tmp_path / "base.gguf", kind=kind)
    found = exported(made, tmp_path / "out", base=base)
    assert found["unchecked"] == ["whether the mmproj's vision tower is the device's"]
    assert found["placed"] == {
        "norm": 2 * tiny.LAYERS + 1,
        "bias": 7 * tiny.LAYERS,
        "lora.language": 14 * tiny.LAYERS,
        "lora.connector": 4,
    }
    assert found["dropped"] == {}


@pytest.mark.parametrize("kind", ["F32", "Q4_0", "Q4_1", "Q8_0"])
def test_rows_in_another_order(made: Made, tmp_path: Path, kind: str) -> None:
    """llama.cpp takes it without a word; on Q4_1 neither logits nor the gain tell."""
    base = tiny.write_base(made.checkpoint, tmp_path / "base.gguf", is_permuted=False, kind=kind)
    assert "rows of blk.0.attn_q in another order" in refused(made, tmp_path, WrongBase, base=base)


@pytest.mark.parametrize("kind", ["F32", "Q4_0"])
def test_another_model_of_the_same_shapes(
    made: Made, another: Path, tmp_path: Path, kind: str
) -> None:
    base = tiny.write_base(another, tmp_path / "base.gguf", kind=kind)
    assert "other values in" in refused(made, tmp_path, WrongBase, base=base)


def test_other_weights_behind_the_same_norms(made: Made, another: Path, tmp_path: Path) -> None:
    mine = tiny.write_base(made.checkpoint, tmp_path / "mine.gguf")
    norms = {
        name: read_gguf(mine).values(tensor)
        for name, tensor in read_gguf(mine).tensors.items()
        if name.endswith("norm.weight")
    }
    base = tiny.write_base(another, tmp_path / "base.gguf", change=norms)
    assert "other weights in blk.0.attn_q" in refused(made, tmp_path, WrongBase, base=base)


@pytest.mark.parametrize(("kind", "is_seen"), [("F32", True), ("Q8_0", True), ("Q4_0", False)])
def test_a_fine_tuned_model_with_the_same_norms(
    made: Made, tmp_path: Path, kind: str, is_seen: bool
) -> None:
    """Weights that differ by 5 %: four bits hide it."""
    whole = read_gguf(made.base)
    weight = whole.values(whole.tensors["blk.0.attn_k.weight"])
    assert weight is not None
    noise = np.random.default_rng(0).standard_normal(weight.shape).astype(np.float32)
    change = {"blk.0.attn_k.weight": weight + 0.05 * weight.std() * noise}
    base = tiny.write_base(made.checkpoint, tmp_path / "base.gguf", kind=kind, change=change)
    if is_seen:
        words = "other weights in blk.0.attn_k (relative difference 0.05)"
        assert words in refused(made, tmp_path, WrongBase, base=base)
    else:
        exported(made, tmp_path / "out", base=base)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"block_count": 3}, "blocks 3, expected 2"),
        ({"attention.head_count": 8}, "heads 8, expected 4"),
        ({"attention.head_count_kv": 4}, "kv heads 4, expected 2"),
        ({"feed_forward_length": 256}, "inner width 256"),
        ({"embedding_length": 128}, "width 128"),
        ({"rope.freq_base": 1e6}, "rope theta 1e+06, expected 10000"),
        ({"attention.layer_norm_rms_epsilon": 1e-6}, "epsilon of the norms 1e-06"),
    ],
)
def test_other_sizes(made: Made, tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    base = tiny.write_base(made.checkpoint, tmp_path / "base.gguf", keys=keys)
    assert words in refused(made, tmp_path, WrongBase, base=base)


@pytest.mark.parametrize("norm", ["blk.1.ffn_norm.weight", "output_norm.weight"])
@pytest.mark.parametrize("value", [1.5, np.nan])
def test_one_other_norm(made: Made, tmp_path: Path, norm: str, value: float) -> None:
    change = {norm: np.full(tiny.WIDTH, value, np.float32)}
    base = tiny.write_base(made.checkpoint, tmp_path / "base.gguf", change=change)
    assert f"other values in {norm}" in refused(made, tmp_path, WrongBase, base=base)


def test_a_base_may_lack_the_last_rows_of_the_vocabulary(made: Made, tmp_path: Path) -> None:
    whole = read_gguf(made.base)
    words = whole.values(whole.tensors["token_embd.weight"])
    assert words is not None
    for place, rows in enumerate((words[:-3], words[:2], np.concatenate([words, words[:1]]))):
        change = {"token_embd.weight": rows, "output.weight": rows}
        base = tiny.write_base(made.checkpoint, tmp_path / f"base{place}.gguf", change=change)
        if place == 0:
            exported(made, tmp_path / "out", base=base)
            shutil.rmtree(tmp_path / "out")
        else:
            assert f"{len(rows)} words" in refused(made, tmp_path, WrongBase, base=base)


def test_files_in_each_others_place(made: Made, tmp_path: Path) -> None:
    assert "is a vision tower" in refused(made, tmp_path, WrongBase, base=made.mmproj)
    assert "is no mmproj" in refused(made, tmp_path, WrongBase, mmproj=made.base)
    exported(made, tmp_path / "earlier")
    adapter = tmp_path / "earlier" / "adapter.gguf"
    assert "is an adapter" in refused(made, tmp_path, WrongBase, base=adapter)
    served = tmp_path / "earlier" / "model.gguf"
    assert "is not this device's" in refused(made, tmp_path, WrongBase, base=served)


def test_other_architectures(made: Made, tmp_path: Path) -> None:
    base = tiny.write_base(made.checkpoint, tmp_path / "a.gguf", architecture="qwen2")
    words = "architecture qwen2, the device's model is llama"
    assert words in refused(made, tmp_path, WrongBase, base=base)
    with open(tmp_path / "b.gguf", "wb") as out:
        write_gguf(out, {"general.architecture": "rwkv6"}, {})
    assert "rwkv6" in refused(made, tmp_path, SettingError, base=tmp_path / "b.gguf")
    with open(tmp_path / "c.gguf", "wb") as out:
        write_gguf(out, {"general.architecture": "llama", "split.count": 3}, {})
    assert "one of 3 parts" in refused(made, tmp_path, SettingError, base=tmp_path / "c.gguf")


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_another_connector(made: Made, another: Path, tmp_path: Path, kind: str) -> None:
    mmproj = tiny.write_mmproj(another, tmp_path / "mmproj.gguf", kind=kind)
    assert "other weights in mm.0" in refused(made, tmp_path, WrongBase, mmproj=mmproj)


def test_another_connector_than_the_frozen_one(made: Made, another: Path, tmp_path: Path) -> None:
    """Also where the device does not train it: its LoRA of the language model would not fit."""
    device = create_device(
        tmp_path / "device", str(made.checkpoint), InitSettings(groups=("lora.language",))
    )
    mmproj = tiny.write_mmproj(another, tmp_path / "mmproj.gguf")
    words = refused(made, tmp_path, WrongBase, mmproj=mmproj, device=device.path)
    assert "other weights in mm.0" in words
    found = exported(made, tmp_path / "out", device.path)
    assert found["placed"] == {"lora.language": 14 * tiny.LAYERS}


@pytest.mark.parametrize("key", ["head_count", "head_count_kv"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0, 0.0, 2.5])
def test_numbers_of_heads_that_are_none(
    made: Made, tmp_path: Path, key: str, number: float
) -> None:
    """The key's type and value, 4 bytes each, are made those of a float."""
    data = bytearray(made.base.read_bytes())
    name = f"llama.attention.{key}".encode()
    place = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
    struct.pack_into("<If", data, place, 6, number)
    (tmp_path / "base.gguf").write_bytes(data)
    assert "no number of heads" in refused(made, tmp_path, BadData, base=tmp_path / "base.gguf")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [(3e38, -3e38), (np.inf, -np.inf), (np.nan, 0.0)])
def test_wild_values_are_refused_without_a_warning(
    made: Made, tmp_path: Path, values: tuple[float, float]
) -> None:
    wild = np.resize(np.float32(values), (tiny.WIDTH, tiny.WIDTH))
    change = {"blk.0.attn_q.weight": wild, "output_norm.weight": wild[0]}
    for name, words in (("blk.0.attn_q.weight", "weights"), ("output_norm.weight", "values")):
        base = tmp_path / f"{name}.gguf"
        tiny.write_base(made.checkpoint, base, change={name: change[name]})
        assert f"other {words} in {name.removesuffix('.weight')}" in refused(
            made, tmp_path, WrongBase, base=base
        )


def test_damaged_and_missing_files(made: Made, tmp_path: Path) -> None:
    data = made.base.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (0, 3, 100, len(data) // 2, len(data) - 64):
        cut.write_bytes(data[:size])
        refused(made, tmp_path, BadData, base=cut)
    cut.write_bytes(made.mmproj.read_bytes()[:-64])
    refused(made, tmp_path, BadData, mmproj=cut)
    refused(made, tmp_path, MissingInput, base=tmp_path / "none.gguf")
    with open(tmp_path / "bare.gguf", "wb") as out:
        write_gguf(out, {"general.name": "x"}, {})
    refused(made, tmp_path, BadData, base=tmp_path / "bare.gguf")


def test_without_a_profile_it_is_said(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = tmp_path / "device"
    shutil.copytree(made.device, device)
    (device / "profile.json").unlink()
    found = exported(made, tmp_path / "out", device)
    assert "whether the base is this device's" in found["unchecked"][0]
    assert "not checked: whether the base is this device's" in capsys.readouterr().err
    assert exported(made, tmp_path / "auto", device, probe="auto")["probe"] is None
    assert "no probe" in capsys.readouterr().err
    whole = read_gguf(made.base)
    embedding = whole.values(whole.tensors["blk.1.ffn_down.weight"])
    assert embedding is not None
    change = {"blk.1.ffn_down.weight": embedding[:, :32]}
    base = tiny.write_base(made.checkpoint, tmp_path / "base.gguf", change=change)
    with pytest.raises(WrongBase, match=r"blk\.1\.ffn_down"):
        exported(made, tmp_path / "out", device, base=base)
    for heads in (7, 1 << 30):
        keys = {"attention.head_count": heads}
        tiny.write_base(made.checkpoint, base, keys=keys)
        with pytest.raises(WrongBase, match="do not fit"):
            exported(made, tmp_path / "out", device, base=base)


def test_a_tower_with_a_class_token_is_warned_of(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mmproj = tiny.write_mmproj(made.checkpoint, tmp_path / "mmproj.gguf", class_token=True)
    found = exported(made, tmp_path / "out", mmproj=mmproj)
    assert "25814" in found["unchecked"][-1] and "25814" in capsys.readouterr().err


def test_a_q_former_is_refused(tmp_path: Path) -> None:
    device = Path(__file__).parents[1] / "golden" / "devices" / "opt"
    with open(tmp_path / "a.gguf", "wb") as out:
        write_gguf(out, {"general.architecture": "llama"}, {})
    with pytest.raises(SettingError, match="neither OPT nor a Q-Former"):
        targets.export(
            Device.open(device), tmp_path / "out", ExportSettings(base=tmp_path / "a.gguf")
        )
    assert not (tmp_path / "out").exists()
