"""LoRA files of other people: which are read, as what, and what is said of the rest."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.trainer.loras import RANK, metadata, trained, velocities
from trainer.adapter import adapter_state, remove_adapter
from trainer.errors import LoraFileError
from trainer.lora_check import CheckedLora, LoraReport, check_loras, check_numbers, read_lora
from trainer.lora_file import PREFIX, save_lora
from trainer.lora_keys import ltx_linears
from trainer.lora_stack import ScaledLora, add_loras
from trainer.model import BaseModel
from trainer.safetensors_header import MAX_HEADER_BYTES, MAX_TENSORS, model_linears

State = dict[str, Tensor]
FIRST = "transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def linears(tiny: BaseModel) -> dict[str, tuple[int, int]]:
    return model_linears(tiny.folder)


@pytest.fixture(scope="module")
def ours(tiny: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA as this trainer writes it, with audio."""
    path = tmp_path_factory.mktemp("ours") / "lora.safetensors"
    state = adapter_state(trained(tiny, with_audio=True))
    save_lora(path, state, metadata(with_audio=True))
    return path


@pytest.fixture(scope="module")
def base(tiny: BaseModel) -> LTX2VideoTransformer3DModel:
    return tiny.transformer(with_audio=True)


def checked(path: Path, linears: dict[str, tuple[int, int]] | None = None) -> CheckedLora:
    lora = read_lora(path, linears)
    check_numbers(lora)
    return lora


def says(base: LTX2VideoTransformer3DModel, *loras: ScaledLora) -> list[Tensor]:
    add_loras(base, loras, with_audio=True)
    try:
        return velocities(base, with_audio=True)
    finally:
        remove_adapter(base)


def renamed(state: State, prefix: str, a: str, b: str, module: Callable[[str], str] = str) -> State:
    names = {".lora_A.weight": a, ".lora_B.weight": b}
    return {
        prefix + module(key.removeprefix(PREFIX)[: -len(end)]) + names[end]: tensor
        for key, tensor in state.items()
        for end in names
        if key.endswith(end)
    }


def with_alphas(state: State, alpha: float, prefix: str = PREFIX, **kind: torch.dtype) -> State:
    modules = {key.removeprefix(prefix).partition(".lora")[0] for key in state}
    alphas = {f"{prefix}{module}.alpha": torch.tensor(alpha, **kind) for module in modules}
    return {**state, **alphas}


def underscored(module: str) -> str:
    return module.replace(".", "_")


def comfyui(state: State) -> tuple[State, None]:
    state = renamed(state, PREFIX, ".lora_down.weight", ".lora_up.weight")
    return with_alphas(state, RANK / 2, dtype=torch.bfloat16), None


def musubi(state: State) -> tuple[State, None]:
    state = renamed(state, "lora_unet_", ".lora_down.weight", ".lora_up.weight", underscored)
    return with_alphas(state, RANK / 2, "lora_unet_", dtype=torch.float16), None


def diffusers(state: State) -> tuple[State, dict[str, str]]:
    config = {"transformer.r": RANK, "transformer.lora_alpha": RANK / 2}
    state = renamed(state, "transformer.", ".lora_A.weight", ".lora_B.weight")
    return state, {"lora_adapter_metadata": json.dumps(config)}


def old_diffusers(state: State) -> tuple[State, None]:
    return renamed(state, "transformer.", ".lora.down.weight", ".lora.up.weight"), None


def peft(state: State) -> tuple[State, None]:
    return renamed(state, "base_model.model.", ".lora_A.weight", ".lora_B.weight"), None


def peft_with_alphas(state: State) -> tuple[State, None]:
    prefix = "base_model.model.transformer."
    state = renamed(state, prefix, ".lora_A.mine.weight", ".lora_B.mine.weight")
    return with_alphas(state, RANK / 2, prefix), None


FORMS = {
    "ours": (lambda state: (state, None), 1.0),
    "ComfyUI keys, alpha half the rank": (comfyui, 0.5),
    "musubi keys, alpha half the rank": (musubi, 0.5),
    "diffusers keys, alpha in the metadata": (diffusers, 0.5),
    "diffusers keys of old": (old_diffusers, 1.0),
    "PEFT keys without a config": (peft, 1.0),
    "PEFT keys with an adapter's name and alphas": (peft_with_alphas, 0.5),
    "in fp16": (lambda state: ({k: t.half() for k, t in state.items()}, None), 1.0),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(
    form: str,
    ours: Path,
    base: LTX2VideoTransformer3DModel,
    linears: dict[str, tuple[int, int]],
    tmp_path: Path,
) -> None:
    """With half the alpha, what our file says at half the scale."""
    convert, scale = FORMS[form]
    state, notes = convert(load_file(ours))
    path = tmp_path / "lora.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, notes)
    expected = says(base, ScaledLora(checked(ours, linears), scale))
    found = says(base, ScaledLora(checked(path, linears), 1.0))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3 if form == "in fp16" else 1e-6, rtol=0)
    # Without the model's folder, as far from a GPU, the names alone are checked.
    assert len(checked(path).layers) == 96


def test_loras_add_up_and_leave_nothing(
    ours: Path,
    tiny: BaseModel,
    base: LTX2VideoTransformer3DModel,
    linears: dict[str, tuple[int, int]],
    tmp_path: Path,
) -> None:
    """Three at once, of different ranks; afterwards the base is what it was, bit by bit."""
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    plain = velocities(base, with_audio=True)
    state = load_file(ours)
    narrow = {
        key: tensor[: RANK // 2] if "lora_A" in key else tensor[:, : RANK // 2]
        for key, tensor in state.items()
        if FIRST in key
    }
    save_file({key: tensor.contiguous() for key, tensor in narrow.items()}, tmp_path / "narrow")
    whole, part = checked(ours, linears), checked(tmp_path / "narrow", linears)
    assert (whole.ranks, part.ranks) == ((RANK,), (RANK // 2,))

    stacked = says(base, ScaledLora(whole, 0.5), ScaledLora(part, -0.25), ScaledLora(whole, 0.25))
    expected = {key.removeprefix(PREFIX): tensor.float() for key, tensor in state.items()}
    delta = {
        name: 0.75 * expected[f"{name}.lora_B.weight"] @ expected[f"{name}.lora_A.weight"]
        for name in (layer.module for layer in whole.layers)
    }
    delta[FIRST] -= (
        0.25
        * narrow[f"{PREFIX}{FIRST}.lora_B.weight"].float()
        @ narrow[f"{PREFIX}{FIRST}.lora_A.weight"].float()
    )
    merged = tiny.transformer(with_audio=True)
    for name, change in delta.items():
        merged.get_submodule(name).weight += change
    for one, other in zip(stacked, velocities(merged, with_audio=True), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)

    after = base.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    for one, other in zip(velocities(base, with_audio=True), plain, strict=True):
        assert torch.equal(one, other)


def test_layers_for_sound_are_left_out_without_it(
    tiny: BaseModel, ours: Path, linears: dict[str, tuple[int, int]]
) -> None:
    silent = tiny.transformer(with_audio=False)
    lora = checked(ours, linears)
    assert lora.has_audio
    add_loras(silent, [ScaledLora(lora, 1.0)], with_audio=False)
    names = {key.rpartition(".lora")[0] for key in adapter_state(silent)}
    assert names == {layer.module for layer in lora.layers if not layer.is_audio}
    assert len(names) == 4 * 8


def test_the_models_layers_are_known_by_name(linears: dict[str, tuple[int, int]]) -> None:
    """What is checked without a model is what a model has."""
    assert set(linears) == {
        name
        for name in ltx_linears()
        if not name.startswith("transformer_blocks") or int(name.split(".")[1]) < 4
    }


# What is refused.

Spoil = Callable[[Path], None]


def resave(change: Callable[[State], object]) -> Spoil:
    def spoil(path: Path) -> None:
        state = load_file(path)
        changed = change(state)
        save_file(changed if isinstance(changed, dict) else state, path)

    return spoil


def header(change: Callable[[dict[str, object]], object]) -> Spoil:
    """Change the header's content and leave the tensors."""

    def spoil(path: Path) -> None:
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        content = json.loads(raw[8 : 8 + length])
        changed = change(content)
        text = (changed if isinstance(changed, str) else json.dumps(content)).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

    return spoil


def first_entry(**changes: object) -> Spoil:
    return header(lambda content: content[max(content)].update(changes))  # type: ignore[attr-defined]


def twice(content: dict[str, object]) -> str:
    key = max(content)
    return json.dumps(content)[:-1] + f", {json.dumps(key)}: {json.dumps(content[key])}}}"


def swap_offsets(content: dict[str, object]) -> None:
    """The first two tensors are given the same bytes."""
    one, other = sorted(key for key in content if key != "__metadata__")[:2]
    content[one]["data_offsets"] = content[other]["data_offsets"]  # type: ignore[index]


def set_first(value: float) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[min(state)].view(-1)[-1] = value

    return change


def another_model(state: State) -> State:
    return {
        f"transformer.single_blocks.{i}.attn.to_q.lora_A.weight": torch.ones(4, 64)
        for i in range(5)
    }


REFUSED: dict[str, tuple[Spoil, str]] = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-100]), "not a whole .* end at byte"),
    "bytes behind the last tensor": (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "end at"),
    "empty": (lambda p: p.write_bytes(b""), "not a whole safetensors file"),
    "pickle, renamed": (lambda p: torch.save({}, p), "a pickle.*pickles can run code"),
    "header length 2^63": (lambda p: p.write_bytes(struct.pack("<Q", 2**63) + b" " * 64), "longer"),
    "header of 5 MB": (
        lambda p: p.write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1) + b" " * 5 * 1024**2),
        f"at most {MAX_HEADER_BYTES}",
    ),
    "header nested 100000 deep": (header(lambda c: "[" * 100_000), "is no JSON"),
    "header is a list": (header(lambda c: "[]"), "no JSON object"),
    "header not UTF-8": (
        lambda p: p.write_bytes(struct.pack("<Q", 4) + b'{"\xff"'),
        "is no JSON: Unicode",
    ),
    "metadata no strings": (header(lambda c: c.update(__metadata__={"a": 1})), "metadata"),
    "a key twice": (header(twice), "twice"),
    "20000 tensors": (
        header(lambda c: c.update({f"t{i}": 0 for i in range(20_000)})),
        f"at most {MAX_TENSORS}",
    ),
    "a key with a line break": (header(lambda c: c.update({"../x\n": {}})), r"'\.\./x\\n'"),
    "shape of 2^33 x 2^33": (first_entry(shape=[2**33, 2**33]), "its shape takes"),
    "negative shape": (first_entry(shape=[-4, -64]), "no whole numbers"),
    "shape of fractions": (first_entry(shape=[4.0, 64.0]), "no whole numbers"),
    "no offsets": (first_entry(data_offsets=None), "another form"),
    "overlapping tensors": (header(swap_offsets), "overlap others or leave a gap"),
    "float64": (resave(lambda s: {k: t.double() for k, t in s.items()}), "is F64; a LoRA has BF16"),
    "integers": (resave(lambda s: {k: t.int() for k, t in s.items()}), "is I32"),
    "NaN": (resave(set_first(float("nan"))), "holds NaN or Inf"),
    "Inf": (resave(set_first(float("inf"))), "holds NaN or Inf"),
    "NaN as alpha": (resave(lambda s: with_alphas(s, float("nan"))), "alpha' holds NaN"),
    "alpha of many numbers": (
        resave(lambda s: {**s, f"{PREFIX}{FIRST}.alpha": torch.ones(3)}),
        "not one number",
    ),
    "A without its B": (resave(lambda s: s.pop(f"{PREFIX}{FIRST}.lora_B.weight")), "has A alone"),
    "ranks that differ": (
        resave(lambda s: s.update({f"{PREFIX}{FIRST}.lora_A.weight": torch.ones(5, 64)})),
        r"not \[rank, in\]",
    ),
    "rank 0": (
        resave(
            lambda s: s.update(
                {
                    f"{PREFIX}{FIRST}.lora_A.weight": torch.ones(0, 64),
                    f"{PREFIX}{FIRST}.lora_B.weight": torch.ones(64, 0),
                }
            )
        ),
        r"not \[rank, in\]",
    ),
    "one layer under two names": (
        resave(lambda s: {**s, f"transformer.{FIRST}.lora.down.weight": torch.ones(RANK, 64)}),
        "mean the same tensor",
    ),
    "another model": (resave(another_model), "5 of the 5 layers .*single_blocks.* are wanted"),
    "a LoKr": (resave(lambda s: {f"{PREFIX}{FIRST}.lokr_w1": torch.ones(4, 4)}), "is a LoKr"),
    "a DoRA": (resave(lambda s: {**s, f"{PREFIX}{FIRST}.dora_scale": torch.ones(64)}), "is a DoRA"),
    "no LoRA at all": (resave(lambda s: {"conv_in.weight": torch.ones(4)}), "unexpected key"),
    "no tensors": (resave(lambda s: s.clear()), "it is empty"),
    "of another width": (
        resave(lambda s: s.update({f"{PREFIX}{FIRST}.lora_A.weight": torch.ones(RANK, 128)})),
        "maps 128 to 64 features, the model's maps 64 to 64",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(
    case: str, ours: Path, linears: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    spoil, message = REFUSED[case]
    path = tmp_path / "lora.safetensors"
    path.write_bytes(ours.read_bytes())
    spoil(path)
    with pytest.raises(LoraFileError, match=f"(?s){message}") as refusal:
        checked(path, linears)
    assert refusal.value.users_fault
    assert str(refusal.value).isprintable()
    assert str(tmp_path) not in str(refusal.value)


def test_too_large(ours: Path) -> None:
    with pytest.raises(LoraFileError, match=f"has {ours.stat().st_size} bytes; at most 1000"):
        read_lora(ours, max_bytes=1000)


def test_the_command(ours: Path, tiny: BaseModel, tmp_path: Path) -> None:
    """In a process that never loads torch."""
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(ours.read_bytes()[:-1])
    program = (
        "import sys, runpy\n"
        "sys.argv[0] = 'trainer'\n"
        "try:\n runpy.run_module('trainer', run_name='__main__')\n"
        "finally:\n assert not {'torch', 'diffusers'} & set(sys.modules)\n"
    )
    out = tmp_path / "report.json"
    arguments = [str(ours), str(bad), "--name", "good", "--name", "b\nad", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", program, "check-lora", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    report = LoraReport.model_validate_json(out.read_bytes())
    assert report.problem is not None
    assert (report.problem.type, report.problem.field) == ("lora_file_invalid", "loras.1.path")
    assert report.problem.message.startswith(r"LoRA 'b\nad': not a whole safetensors file")

    report = check_loras([("good", ours)], tiny.folder)
    (facts,) = report.files
    assert (facts.name, facts.num_layers, facts.ranks) == ("good", 96, (RANK,))
    assert facts.has_audio
