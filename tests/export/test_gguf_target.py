"""What the files of an export to gguf hold, and what stays behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdcca_cli.errors import CannotWrite, SettingError
from cdcca_cli.export import placing, targets
from cdcca_cli.export.folder import file_digest
from cdcca_cli.export.settings import ExportSettings
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.gguf import Gguf, read_gguf, write_copy
from cdcca_cli.main import main
from tests.downlink.calls import Killed
from tests.export import tiny
from tests.export.conftest import Made
from tests.export.test_folder import fail, faulty, kill
from tests.export.test_preflight import exported

BLOCK = "model.language_model.layers.1"


def values(file: Gguf, name: str) -> np.ndarray:
    found = file.values(file.tensors[name])
    assert found is not None
    return found


def changed_device(made: Made, folder: Path, change: dict[str, np.ndarray]) -> Path:
    """A copy of the device in which some tensors have other values."""
    shutil.copytree(made.device, folder)
    device = Device.open(folder)
    device.install({**device.read_overlay(), **change}, 2)
    return folder


def test_the_adapter_has_every_pair_its_alpha_and_nothing_else(
    made: Made, device: Device, tmp_path: Path
) -> None:
    """A server takes an adapter that lacks pairs or alpha, or has norms, without a word."""
    exported(made, tmp_path / "out", f32=True)
    file, overlay = read_gguf(tmp_path / "out" / "adapter.gguf"), device.read_overlay()
    assert file.keys["adapter.lora.alpha"] == device.lora.alpha == 8
    assert file.text("general.architecture") == "llama"
    assert (file.text("general.type"), file.text("adapter.type")) == ("adapter", "lora")
    linears = [*tiny.ATTENTION, "ffn_gate", "ffn_up", "ffn_down"]
    assert set(file.tensors) == {
        f"blk.{block}.{linear}.weight.lora_{half}"
        for block in range(tiny.LAYERS)
        for linear in linears
        for half in "ab"
    }
    for theirs, ours, heads in (
        ("attn_q", "self_attn.q_proj", tiny.HEADS),
        ("attn_k", "self_attn.k_proj", tiny.KV_HEADS),
    ):
        b_OR = overlay[f"{BLOCK}.{ours}.lora_B"]
        found = values(file, f"blk.1.{theirs}.weight.lora_b")
        assert np.array_equal(found, tiny.in_pairs(b_OR, heads))
    for theirs, ours in (("attn_v", "self_attn.v_proj"), ("ffn_down", "mlp.down_proj")):
        for half in "AB":
            found = values(file, f"blk.1.{theirs}.weight.lora_{half.lower()}")
            assert np.array_equal(found, overlay[f"{BLOCK}.{ours}.lora_{half}"])


def test_the_model_is_the_base_with_norms_and_biases(
    made: Made, device: Device, tmp_path: Path
) -> None:
    base = tiny.write_base(made.checkpoint, tmp_path / "base.gguf", kind="Q4_1")
    exported(made, tmp_path / "out", base=base)
    old, new = read_gguf(base), read_gguf(tmp_path / "out" / "model.gguf")
    overlay = device.read_overlay()
    assert new.key_bytes == old.key_bytes
    for name, tensor in old.tensors.items():
        if not name.endswith("norm.weight"):
            assert new.tensors[name].kind == tensor.kind
            assert np.array_equal(new.raw(new.tensors[name]), old.raw(tensor))
    norm = overlay[f"{BLOCK}.post_attention_layernorm.weight"]
    assert np.array_equal(values(new, "blk.1.ffn_norm.weight"), norm)
    assert np.array_equal(
        values(new, "output_norm.weight"), overlay["model.language_model.norm.weight"]
    )
    added = new.tensors.keys() - old.tensors.keys()
    assert len(added) == 7 * tiny.LAYERS and all(name.endswith(".bias") for name in added)
    # A bias in float16 kills the server's process.
    assert {new.tensors[name].kind for name in added} == {0}
    bias = overlay[f"{BLOCK}.self_attn.k_proj.bias"]
    assert np.array_equal(values(new, "blk.1.attn_k.bias"), tiny.in_pairs(bias, tiny.KV_HEADS))
    assert np.array_equal(values(new, "blk.1.ffn_up.bias"), overlay[f"{BLOCK}.mlp.up_proj.bias"])


@pytest.mark.parametrize(("kind", "written"), [("F32", 0), ("F16", 1), ("BF16", 1), ("Q8_0", 1)])
def test_the_connectors_lora_is_merged(
    made: Made, device: Device, tmp_path: Path, kind: str, written: int
) -> None:
    mmproj = tiny.write_mmproj(made.checkpoint, tmp_path / "mmproj.gguf", kind=kind)
    exported(made, tmp_path / "out", mmproj=mmproj)
    old, new = read_gguf(mmproj), read_gguf(tmp_path / "out" / "mmproj.gguf")
    overlay, name = device.read_overlay(), "model.multi_modal_projector.linear_2"
    a_RI, b_OR = (overlay[f"{name}.lora_{half}"].astype(np.float64) for half in "AB")
    wanted = values(old, "mm.2.weight") + 8 / 4 * (b_OR @ a_RI)
    assert new.tensors["mm.2.weight"].kind == written
    tolerance = 1e-6 if written == 0 else 1e-3
    np.testing.assert_allclose(values(new, "mm.2.weight"), wanted, rtol=tolerance, atol=tolerance)
    for other, tensor in old.tensors.items():
        if other not in ("mm.0.weight", "mm.2.weight"):
            assert np.array_equal(new.raw(new.tensors[other]), old.raw(tensor))


def test_export_json_lists_everything(made: Made, device: Device, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = exported(made, out)
    assert json.loads((out / "export.json").read_text()) == found
    assert found["device"] == {
        "model": device.model,
        "overlay": device.digest,
        "sequence": 1,
        "groups": ["norm", "bias", "lora"],
        "alpha": 8.0,
        "rank": 4,
    }
    assert sorted(found["files"]) == ["adapter.gguf", "mmproj.gguf", "model.gguf"]
    for name, one in found["files"].items():
        assert one == {
            "bytes": (out / name).stat().st_size,
            "sha256": file_digest(out / name),
        }
    assert found["inputs"]["base"]["sha256"] == file_digest(made.base)
    assert found["command"] == [
        *("llama-server", "-m", "model.gguf"),
        *("--lora", "adapter.gguf", "--mmproj", "mmproj.gguf"),
    ]
    assert targets.command(found, out)[2] == str(out / "model.gguf")


def test_a_device_that_has_learnt_nothing_exports_what_changes_nothing(
    made: Made, tmp_path: Path
) -> None:
    from cdcca_cli.models.initial import start_of

    first = start_of(Device.open(made.device))
    device = changed_device(made, tmp_path / "device", first)
    # Without an mmproj the connector's LoRA stays behind, which has not changed.
    found = exported(made, tmp_path / "out", device, mmproj=None)
    assert found["dropped"] == {} and "lora.connector" not in found["placed"]
    old, new = read_gguf(made.base), read_gguf(tmp_path / "out" / "model.gguf")
    for name, tensor in old.tensors.items():
        assert np.array_equal(new.raw(new.tensors[name]), old.raw(tensor))
    added = new.tensors.keys() - old.tensors.keys()
    assert len(added) == 7 * tiny.LAYERS
    assert all(not values(new, name).any() for name in added)
    adapter = read_gguf(tmp_path / "out" / "adapter.gguf")
    for name in adapter.tensors:
        assert values(adapter, name).any() == name.endswith("lora_a")


def test_what_would_stay_behind_is_named_and_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(SettingError) as refused:
        exported(made, tmp_path / "out", mmproj=None)
    words = str(refused.value)
    assert "lora.connector: 4 tensors" in words and "`mmproj`" in words and "% of" in words
    assert not (tmp_path / "out").exists()
    found = exported(made, tmp_path / "out", mmproj=None, drop=("lora.connector",))
    names = found["dropped"]["lora.connector"]["tensors"]
    assert len(names) == 4 and all("multi_modal_projector.linear" in name for name in names)
    assert 0 < found["dropped"]["lora.connector"]["share"] < 1
    assert sorted(found["files"]) == ["adapter.gguf", "model.gguf"]


def test_biases_that_are_not_read_stay_behind(made: Made, tmp_path: Path) -> None:
    """Qwen in llama.cpp reads those of q, k and v alone; any other stops the loading."""
    device = tmp_path / "device"
    shutil.copytree(made.device, device)
    (device / "profile.json").unlink()  # of a LLaMA
    base = tiny.write_base(
        made.checkpoint, tmp_path / "base.gguf", architecture="qwen2", is_permuted=False
    )
    with pytest.raises(SettingError, match="qwen2 reads only those of attn_q, attn_k, attn_v"):
        exported(made, tmp_path / "out", device, base=base)
    found = exported(made, tmp_path / "out", device, base=base, drop=("bias",))
    assert found["placed"]["bias"] == 3 * tiny.LAYERS
    assert len(found["dropped"]["bias"]["tensors"]) == 4 * tiny.LAYERS
    file, overlay = read_gguf(tmp_path / "out" / "model.gguf"), Device.open(device).read_overlay()
    assert "blk.0.ffn_down.bias" not in file.tensors
    bias = overlay[f"{BLOCK}.self_attn.q_proj.bias"]
    assert np.array_equal(values(file, "blk.1.attn_q.bias"), bias)


def test_gemmas_norms_are_one_more(made: Made, tmp_path: Path) -> None:
    device = tmp_path / "device"
    shutil.copytree(made.device, device)
    (device / "profile.json").unlink()
    base = tiny.write_base(
        made.checkpoint, tmp_path / "base.gguf", architecture="gemma", is_permuted=False
    )
    exported(made, tmp_path / "out", device, base=base, drop=("bias",))
    norm = Device.open(device).read_overlay()[f"{BLOCK}.input_layernorm.weight"]
    found = values(read_gguf(tmp_path / "out" / "model.gguf"), "blk.1.attn_norm.weight")
    assert np.array_equal(found, norm + np.float32(1))


def test_biases_of_the_base_are_replaced(made: Made, tmp_path: Path) -> None:
    exported(made, tmp_path / "first")
    biased = read_gguf(tmp_path / "first" / "model.gguf")
    change = {name: biased.values(t) for name, t in biased.tensors.items() if ".bias" in name}
    base = tmp_path / "base.gguf"
    with open(base, "wb") as out:
        write_copy(out, read_gguf(made.base), change)
    zeros = {
        name: np.zeros_like(x)
        for name, x in Device.open(made.device).read_overlay().items()
        if name.endswith(".bias")
    }
    device = changed_device(made, tmp_path / "device", zeros)
    exported(made, tmp_path / "out", device, base=base)
    file = read_gguf(tmp_path / "out" / "model.gguf")
    assert all(not values(file, name).any() for name in change)
    assert len(file.tensors) == len(biased.tensors)


def test_values_beyond_float16(made: Made, tmp_path: Path) -> None:
    name = f"{BLOCK}.mlp.up_proj.lora_B"
    large = Device.open(made.device).read_overlay()[name] * np.float32(1e7)
    device = changed_device(made, tmp_path / "device", {name: large})
    with pytest.raises(SettingError, match="float32"):
        exported(made, tmp_path / "out", device)
    exported(made, tmp_path / "out", device, f32=True)
    file = read_gguf(tmp_path / "out" / "adapter.gguf")
    assert np.array_equal(values(file, "blk.1.ffn_up.weight.lora_b"), large)


def test_the_norm_of_a_product() -> None:
    draw = np.random.default_rng(0)
    b_OR, a_RI = (draw.standard_normal(shape).astype(np.float32) for shape in ((9, 3), (3, 7)))
    assert placing.product_norm(b_OR, a_RI) == pytest.approx(np.linalg.norm(b_OR @ a_RI), rel=1e-6)
    assert placing.product_norm(0 * b_OR, a_RI) == 0


def test_the_command(made: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["export", str(made.device), "--to", "gguf", "--base", str(made.base)]
    words += ["--probe", "none"]
    assert main([*words, "-o", str(out)]) == 2
    assert "--drop lora.connector allows it" in capfd.readouterr().err and not out.exists()
    words += ["--mmproj", str(made.mmproj), "-o", str(out)]
    assert main([*words, "--json"]) == 0
    shown = capfd.readouterr()
    found: dict[str, Any] = json.loads(shown.out)
    assert found["kind"] == "export" and "base" in found["inputs"]
    assert f"start: llama-server -m {out}/model.gguf --lora {out}/adapter.gguf" in shown.err
    assert main(["export", str(made.device), "-o", str(out)]) == 2
    assert "--base" in capfd.readouterr().err
    bare = tmp_path / "bare.gguf"
    bare.write_bytes(b"GGUF")
    assert main(["export", str(made.device), "--base", str(bare), "-o", str(out)]) == 65
    assert json.loads((out / "export.json").read_text()) == found


def test_nothing_heavy_is_imported(made: Made, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from cdcca_cli.main import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'peft', 'gguf'} & set(sys.modules); "
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    words = ["export", str(made.device), "--base", str(made.base), "--mmproj", str(made.mmproj)]
    words += ["--probe", "none"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "-o", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_settings_that_do_nothing_are_refused() -> None:
    with pytest.raises(SettingError, match="`base`"):
        ExportSettings()


@pytest.mark.parametrize("fault", [fail, kill], ids=["full", "killed"])
def test_a_disk_that_is_full_or_a_kill_in_the_middle(
    made: Made, tmp_path: Path, fault: Callable[[], None]
) -> None:
    out = tmp_path / "out"
    old = exported(made, out)
    device = changed_device(made, tmp_path / "device", {})
    number, calls = 0, 1
    while number <= calls:
        with faulty(number or 1 << 30, fault, forever=True) as done:
            try:
                exported(made, out, device)
            except (CannotWrite, Killed):
                assert number
        calls = max(calls, len(done))
        sequence = json.loads((out / "export.json").read_text())["device"]["sequence"]
        assert sequence == 2 or number
        for name, one in json.loads((out / "export.json").read_text())["files"].items():
            assert file_digest(out / name) == one["sha256"]
        if sequence == 2:
            assert exported(made, out)["files"] == old["files"]
        number += 4
    assert calls > 20


def test_a_base_of_other_bytes_than_before_is_said(
    made: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, base = tmp_path / "out", tmp_path / "base.gguf"
    shutil.copy(made.base, base)
    exported(made, out, base=base)
    exported(made, out, base=base)
    assert "other bytes" not in capfd.readouterr().err
    tiny.write_base(made.checkpoint, base, kind="Q4_1")
    exported(made, out, base=base)
    assert f"{base}: other bytes than the export before" in capfd.readouterr().err


def test_inspect_verifies_an_export_and_a_profile(
    made: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    exported(made, out, base=made.base, mmproj=made.mmproj)
    capfd.readouterr()
    for named in (out, out / "export.json"):
        assert main(["inspect", str(named), "--json"]) == 0
        found = json.loads(capfd.readouterr().out)
        assert (found["kind"], found["to"]) == ("export", "gguf")
        assert found["digests"]["adapter.gguf"] == file_digest(out / "adapter.gguf")
        assert found["bytes"]["total"] == sum(one.stat().st_size for one in out.iterdir())
    data = (out / "adapter.gguf").read_bytes()
    (out / "adapter.gguf").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert main(["inspect", str(out)]) == 65
    assert "adapter.gguf: is not what was exported" in capfd.readouterr().err

    device = tmp_path / "device"
    shutil.copytree(made.device, device)
    assert main(["inspect", str(device), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["profile"] is True
    (device / "profile.json").write_text("{}")
    assert main(["inspect", str(device)]) == 65
    (device / "profile.json").unlink()
    assert main(["inspect", str(device)]) == 0
