"""A server's answers against the probe: what acts, what does not, and what cannot be judged.

Against llama.cpp's own server where xllamacpp is; the verdicts alone with numbers by hand.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdcca_cli.errors import BelowMark
from cdcca_cli.export import targets
from cdcca_cli.export.effect import Served, judge
from cdcca_cli.export.settings import ExportSettings
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.probe import Likeliest, Probe, Question
from cdcca_cli.main import main
from tests import tiny as checkpoints
from tests.export import tiny
from tests.export.conftest import Made

# ---------------------------------------------------------------- the verdicts, by hand

BASE, LORA, ALL = np.log([0.5, 0.3, 0.2]), np.log([0.4, 0.4, 0.2]), np.log([0.2, 0.5, 0.3])
DIGEST = overlay_digest({})


def likeliest(logp: np.ndarray) -> Likeliest:
    return Likeliest((7, 8, 9), tuple(logp.tolist()))


def probe(**nats: float) -> Probe:
    """LoRA makes of LORA, which is norms and biases alone, ALL."""
    states = {"start": likeliest(BASE), "unscaled": likeliest(LORA), "whole": likeliest(ALL)}
    known = {"start": 2.0, "unscaled": 1.8, "whole": 1.5} | nats
    question = Question("a", (1, 2), None, states, (8, 2), known)
    return Probe(None, DIGEST, DIGEST, (2,), (question,))


def served(
    unscaled: np.ndarray, whole: np.ndarray, nats: Mapping[str, float] | None = None
) -> list[Served]:
    rows = {"unscaled": unscaled, "whole": whole}
    named = {state: dict(zip((7, 8, 9), row.tolist(), strict=True)) for state, row in rows.items()}
    return [Served(named, nats)]


def test_the_right_answers() -> None:
    found = judge(probe(), served(LORA + 1e-3, ALL))
    assert (found.verdict, found.by) == ("acts as trained", "log-probabilities")
    found.require("url")


def test_a_vocabulary_of_another_size_moves_all_by_one_number() -> None:
    """A GGUF file without the row of <image>: each log-probability is larger by the same."""
    assert judge(probe(), served(LORA + 0.1, ALL + 0.1)).verdict == "acts as trained"


@pytest.mark.parametrize("nats", [None, {"unscaled": 1.8, "whole": 1.8}])
def test_an_adapter_that_is_not_loaded(nats: dict[str, float] | None) -> None:
    """Also on a quantised base, whose answers are not the probe's."""
    for off in (0.0, np.array([0.3, 0, -0.3])):
        found = judge(probe(), served(LORA + off, LORA + off, nats))
        assert found.verdict == "has no effect" and "not loaded" in found.why
        with pytest.raises(BelowMark, match="url: the export has no effect"):
            found.require("url")


def test_a_server_with_the_files_of_before() -> None:
    norms = replace(probe().questions[0], next={**probe().questions[0].next})
    norms = replace(norms, next={**norms.next, "unscaled": norms.next["whole"]})
    found = judge(replace(probe(), questions=(norms,)), served(BASE, BASE))
    assert found.verdict == "has no effect" and "as before the export" in found.why


def test_half_of_the_strength() -> None:
    half = LORA + (ALL - LORA) / 2
    found = judge(probe(), served(LORA, half - np.logaddexp.reduce(half)))
    assert found.verdict == "acts, but differs" and "about 0.5 of its strength" in found.why


def test_norms_that_are_missing() -> None:
    found = judge(probe(), served(BASE, ALL + np.array([0.2, -0.1, 0])), is_exact=True)
    assert found.verdict == "acts, but differs" and "also without LoRA" in found.why


OFF = np.array([0.2, -0.2, 0.1])


@pytest.mark.parametrize(
    ("nats", "verdict"),
    [
        ({"unscaled": 1.85, "whole": 1.53}, "acts as trained"),
        ({"unscaled": 1.85, "whole": 1.70}, "acts, but differs"),  # half of LoRA's 0.3
        ({"unscaled": 2.05, "whole": 1.75}, "acts, but differs"),  # LoRA alone: 0.25 of 0.5
        (None, "cannot be judged"),
    ],
)
def test_a_quantised_base_is_judged_by_the_gain(
    nats: dict[str, float] | None, verdict: str
) -> None:
    found = judge(probe(), served(LORA + OFF, ALL + OFF, nats))
    assert (found.verdict, found.by) == (verdict, "gain")
    assert "preflight" in found.as_json()["cannot_see"]


def test_a_gain_within_the_noise_of_a_quantised_base() -> None:
    """Of 0.08 nats nothing can be told, except that the adapter is loaded."""
    small = probe(start=1.58, unscaled=1.55, whole=1.5)
    nats = {"unscaled": 1.60, "whole": 1.58}
    found = judge(small, served(LORA + OFF, ALL + OFF, nats))
    assert found.verdict == "cannot be judged"
    found.require("url")


def test_an_overlay_that_changes_nothing() -> None:
    same = replace(
        probe().questions[0], next=dict.fromkeys(("start", "unscaled", "whole"), likeliest(BASE))
    )
    found = judge(replace(probe(), questions=(same,)), served(BASE, BASE))
    assert found.verdict == "cannot be judged" and "changes nothing" in found.why


def test_a_token_that_the_server_does_not_name_is_at_most_as_likely_as_its_last() -> None:
    named = {
        state: {7: float(row[0]), 8: float(row[1])}
        for state, row in {"unscaled": LORA, "whole": ALL}.items()
    }
    assert judge(probe(), [Served(named, None)], is_exact=True).verdict == "acts, but differs"


# ---------------------------------------------------------------- llama.cpp


@pytest.fixture(scope="module")
def out(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with a probe."""
    found = tmp_path_factory.mktemp("effect") / "out"
    assert main(exporting(made, found)) == 0
    return found


def exporting(made: Made, out: Path, *more: str) -> list[str]:
    files = ["--base", str(made.base), "--mmproj", str(made.mmproj), "--f32"]
    return ["export", str(made.device), *files, "-o", str(out), "--quiet", *more]


def checked(
    made: Made, out: Path, capfd: pytest.CaptureFixture[str], **files: Path | None
) -> tuple[int, dict[str, Any]]:
    """The exit code and the JSON of a check of a server that runs these files."""
    pytest.importorskip("xllamacpp", reason="llama.cpp's server is not here: pip install xllamacpp")
    from tests.teachers import llama

    usual = {name: out / f"{name}.gguf" for name in ("model", "mmproj", "adapter")} | files
    with llama.serving(usual["model"], usual["mmproj"], usual["adapter"]) as address:
        url = address.partition("#")[0]
        capfd.readouterr()
        words = [one for one in exporting(made, out) if one != "--quiet"]
        code = main([*words, "--json", "--check", url])
        found = capfd.readouterr()
        assert code in (0, 3), found.err
        effect: dict[str, Any] = json.loads(found.out)["effect"]
        assert ("this shows neither" in found.err) == (effect["by"] == "gain")
        return code, effect


def test_the_whole_export_acts_as_trained(
    made: Made, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.[!l]*")}
    code, found = checked(made, out, capfd)
    assert (code, found["verdict"], found["by"]) == (0, "acts as trained", "log-probabilities")
    assert found["numbers"]["difference_text"] < 1e-3
    assert found["numbers"]["difference_picture"] < 0.05
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.[!l]*")} == before


def test_no_adapter(made: Made, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, found = checked(made, out, capfd, adapter=None)
    assert (code, found["verdict"]) == (3, "has no effect")


def test_the_files_of_before(made: Made, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, found = checked(made, out, capfd, adapter=None, model=made.base, mmproj=made.mmproj)
    assert (code, found["verdict"]) == (3, "has no effect")


def adapter(out: Path, path: Path, alpha: float, *, is_permuted: bool = True) -> Path:
    """The export's adapter with another alpha, or with the rows of transformers."""
    from cdcca_cli.formats.gguf import read_gguf, write_gguf

    file = read_gguf(out / "adapter.gguf")
    arrays = {name: file.values(tensor) for name, tensor in file.tensors.items()}
    for name, array in arrays.items():
        heads = {"attn_q": tiny.HEADS, "attn_k": tiny.KV_HEADS}.get(name.split(".")[2], 0)
        if not is_permuted and heads and name.endswith("lora_b"):
            parts = array.reshape(heads, -1, 2, array.shape[1])
            arrays[name] = np.ascontiguousarray(parts.swapaxes(1, 2).reshape(array.shape))
    keys = {**file.keys, "adapter.lora.alpha": alpha}
    with open(path, "wb") as target:
        write_gguf(target, keys, arrays)
    return path


@pytest.mark.parametrize(("alpha", "is_permuted"), [(4.0, True), (8.0, False)])
def test_a_wrong_adapter(
    made: Made,
    out: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    alpha: float,
    is_permuted: bool,
) -> None:
    """Half of the alpha, and rows of q and k in another order, both of which llama.cpp takes."""
    wrong = adapter(out, tmp_path / "wrong.gguf", alpha, is_permuted=is_permuted)
    code, found = checked(made, out, capfd, adapter=wrong)
    assert (code, found["verdict"]) == (3, "acts, but differs")
    assert "as expected without" in found["why"]


def test_without_the_connectors_lora(
    made: Made, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, found = checked(made, out, capfd, mmproj=made.mmproj)
    assert (code, found["verdict"]) == (3, "acts, but differs")
    assert "mmproj.gguf is not that of the export" in found["why"]


def test_a_quantised_base(made: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By the gain: the whole export has it, and with a quarter of the alpha it differs."""
    base = tiny.write_base(made.checkpoint, tmp_path / "q4.gguf", kind="Q4_1")
    quantised = replace(made, base=base)
    assert main(exporting(quantised, tmp_path / "out")) == 0
    code, found = checked(quantised, tmp_path / "out", capfd)
    assert (code, found["verdict"], found["by"]) == (0, "acts as trained", "gain")
    weak = adapter(tmp_path / "out", tmp_path / "weak.gguf", 2.0)
    code, found = checked(quantised, tmp_path / "out", capfd, adapter=weak)
    assert (code, found["verdict"], found["by"]) == (3, "acts, but differs", "gain")


def test_an_export_without_mmproj_and_a_server_of_text(
    made: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Only the questions without a picture are asked; the answer says so."""
    pytest.importorskip("xllamacpp", reason="llama.cpp's server is not here: pip install xllamacpp")
    from tests.teachers import llama

    out, device = tmp_path / "out", str(made.device)
    export = ["export", device, "--base", str(made.base), "--drop", "lora.connector", "--f32"]
    export += ["-o", str(out)]
    assert main(export) == 0
    with llama.serving(out / "model.gguf", None, out / "adapter.gguf") as address:
        url = address.partition("#")[0]
        for check in ([*export, "--check", url], ["doctor", device, url, "--probe", str(out)]):
            capfd.readouterr()
            assert main(check) == 0
            assert "asked without" in capfd.readouterr().err


def test_an_export_is_checked_as_it_is_and_written_again_if_it_has_changed(
    made: Made, tmp_path: Path
) -> None:
    device, out, base = Device.open(made.device), tmp_path / "out", tmp_path / "base.gguf"
    base.write_bytes(made.base.read_bytes())
    how = ExportSettings(base=base, mmproj=made.mmproj, probe="none")
    record = targets.export(device, out, how)
    assert targets.current(device, out, how) == record
    assert targets.current(device, out, replace(how, probe="probe.json")) is None
    for path in (base, out / "adapter.gguf"):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert targets.current(device, out, how) is None
        path.write_bytes(data)
    assert targets.current(device, out, how) == record


def test_doctor_of_a_device_and_its_server(
    made: Made, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the export's probe, and by one that is made."""
    pytest.importorskip("xllamacpp", reason="llama.cpp's server is not here: pip install xllamacpp")
    from tests.teachers import llama

    files = (out / f"{name}.gguf" for name in ("model", "mmproj", "adapter"))
    with llama.serving(*files) as address:
        url = address.partition("#")[0]
        for probe in ([], ["--probe", str(out)]):
            capfd.readouterr()
            assert main(["doctor", str(made.device), url, *probe, "--json"]) == 0
            assert json.loads(capfd.readouterr().out)["verdict"] == "acts as trained"


def labelled(folder: Path) -> Path:
    """Three frames, each with a question and the answer that two of three people gave."""
    folder.mkdir()
    rows = []
    for number, image in enumerate(checkpoints.images(3, size=48)):
        image.save(folder / f"{number}.png")
        row = {"id": number, "image": f"{number}.png", "prompt": "what is it?", "task": "vqa"}
        rows.append(row | {"answers": ["red", "no", "red"]})
    (folder / "frames.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_gain_on_labelled_frames(
    made: Made, out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The server's gain is cdcca's own, on a base that is not quantised."""
    pytest.importorskip("xllamacpp", reason="llama.cpp's server is not here: pip install xllamacpp")
    from tests.teachers import llama

    files = (out / f"{name}.gguf" for name in ("model", "mmproj", "adapter"))
    with llama.serving(*files) as address:
        named = [str(made.device), address.partition("#")[0], "--probe", str(out)]
        frames = ["--frames", str(labelled(tmp_path / "frames"))]
        capfd.readouterr()
        assert main(["doctor", *named, *frames, "--json"]) == 0
    numbers = json.loads(capfd.readouterr().out)["numbers"]
    assert numbers["gain_held_out"] == pytest.approx(numbers["gain_held_out_expected"], abs=0.02)
    assert abs(numbers["gain_held_out"]) > 0.1


def test_a_probe_of_something_else(
    made: Made, out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--probe", str(out)]) == 2
    other = Device.open(made.device)
    import shutil

    device = Device.open(shutil.copytree(other.path, tmp_path / "device"))
    device.install(tiny.loud(device.read_overlay(), seed=5), 2)
    capfd.readouterr()
    arguments = ["doctor", str(device.path), "http://127.0.0.1:9", "--probe", str(out)]
    assert main(arguments) == 78
    message = capfd.readouterr().err
    assert "the probe is of overlay" in message and message.count("\n") == 1
