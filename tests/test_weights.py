"""Checkpoints: published layouts to the tensor, sound files only, versions, folders and the hub's cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.model import layout, modules, weights
from app.model.config import PUBLISHED, ModelConfig, TokenizerConfig
from app.model.frames import STAMP_FIELDS
from app.model.tokenizer import Tokenizer
from app.model.transformer import Kronos
from tests.golden_cases import GOLDENS, TINY

MINI_CONFIG = GOLDENS / "mini-config"
INDEX = json.loads((MINI_CONFIG / "index.json").read_text())
TOKENIZER_OF = {"mini": "kronos-tokenizer-2k"}  # all others: base
REPOSITORY = Path(__file__).parents[1]
COMMIT = "901c26c1332695a2a8f243eb2f37243a37bea320"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(TINY / "model", tmp_path / "tiny-model"))


def load(model: Path | str, tokenizer: Path = TINY / "tokenizer", **options: Any) -> weights.Checkpoint:
    return weights.load(str(model), str(tokenizer), **options)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("size", PUBLISHED)
@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_published_layout(size: str, part: str) -> None:
    """Configuration, every tensor's name, dtype and shape, and the parameter count are those published."""
    name = f"kronos-{size}" if part == "model" else TOKENIZER_OF.get(size, "kronos-tokenizer-base")
    config: ModelConfig | TokenizerConfig = getattr(PUBLISHED[size], part)
    assert config.as_dict() == json.loads((MINI_CONFIG / f"{name}.config.json").read_text())
    with torch.device("meta"):
        module = Kronos(config) if isinstance(config, ModelConfig) else Tokenizer(config)
    tensors = module.state_dict()
    layout = {key: [str(t.dtype).removeprefix("torch."), list(t.shape)] for key, t in tensors.items()}
    assert layout == json.loads((MINI_CONFIG / f"{name}.tensors.json").read_text())
    assert sum(parameter.numel() for parameter in module.parameters()) == INDEX[name]["parameters"]
    assert PUBLISHED[size].max_context == INDEX[f"kronos-{size}"]["max_context"]


@pytest.mark.parametrize(
    ("size", "model", "tokenizer"),
    [("mini", 4_108_032, 3_958_042), ("small", 24_741_376, 3_958_042), ("base", 102_310_592, 3_958_042)],
)
def test_published_parameter_counts(size: str, model: int, tokenizer: int) -> None:
    """The counts users know from the model cards."""
    with torch.device("meta"):
        modules = Kronos(PUBLISHED[size].model), Tokenizer(PUBLISHED[size].tokenizer)
    assert [sum(p.numel() for p in module.parameters()) for module in modules] == [model, tokenizer]


def test_stored_time_tables_have_their_own_names() -> None:
    """Without a learned time embedding the tables are loaded under the published names, and not trained."""
    config = replace(PUBLISHED["mini"].model, learn_te=False)
    with torch.device("meta"):
        model = Kronos(config)
    tables = {name: p for name, p in model.named_parameters() if name.startswith("time_emb.")}
    assert set(tables) == {f"time_emb.{field}_embed.emb.weight" for field in STAMP_FIELDS}
    assert not any(table.requires_grad for table in tables.values())


def test_loaded_checkpoint_is_ready_for_inference(model: Path) -> None:
    """Eval mode everywhere, float32 (whatever was stored), no gradients, the file's own values."""
    stored = load_file(model / "model.safetensors")
    rewrite(model, lambda tensors: tensors.update({"head.proj_s1.bias": tensors["head.proj_s1.bias"].half()}))
    checkpoint = load(model)
    for module in (checkpoint.model, checkpoint.tokenizer):
        modules.require_inference(module)
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        assert not any(p.requires_grad for p in module.parameters())
    assert torch.equal(checkpoint.model.norm.weight, stored["norm.weight"])


def test_train_mode_is_noticed() -> None:
    """One part left in train mode is enough to be refused, and is named."""
    model = load(TINY / "model").model
    model.get_submodule("transformer.1.ffn").train()
    with pytest.raises(weights.CheckpointError, match=r"train mode \(transformer.1.ffn\)"):
        modules.require_inference(model)


def test_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    """What is saved comes back with every bit, from config.json and model.safetensors alone."""
    original = load(TINY / "model")
    modules.save(original.model, original.model.config, tmp_path / "a" / "model")
    modules.save(original.tokenizer, original.tokenizer.config, tmp_path / "a" / "tokenizer")
    again = load(tmp_path / "a" / "model", tmp_path / "a" / "tokenizer")
    for one, other in ((original.model, again.model), (original.tokenizer, again.tokenizer)):
        assert one.config == other.config
        assert list(one.state_dict()) == list(other.state_dict())
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert {p.name for p in (tmp_path / "a" / "model").iterdir()} == {"config.json", "model.safetensors"}


def test_save_refuses_a_foreign_config(tmp_path: Path) -> None:
    """A config that does not describe the module is not written beside its weights."""
    with pytest.raises(weights.CheckpointError, match="another configuration"):
        modules.save(load(TINY / "model").model, PUBLISHED["mini"].model, tmp_path)


def test_versions_tell_checkpoints_apart(model: Path) -> None:
    """Version: folder, 'local', first digits of the weights' sha256; other weights give another version."""
    digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    before = load(model).model_version
    assert before == f"{model.parent.name}/tiny-model@local+{digest[:12]}"
    rewrite(model, lambda tensors: tensors["norm.weight"].add_(1))
    assert load(model).model_version != before


def test_sha256_is_checked(model: Path) -> None:
    """The right sum loads, in either case; another one is refused, saying what was found."""
    digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    load(model, sha256=digest.upper())
    with pytest.raises(weights.CheckpointError, match=f"has sha256 {digest}, expected {'0' * 64}"):
        load(model, sha256="0" * 64)


def test_context_is_the_published_one() -> None:
    """A checkpoint of mini's architecture has a context of 2048, any other 512, and a setting beats both."""
    assert load(TINY / "model").max_context == 512
    assert load(TINY / "model", max_context=64).max_context == 64
    fine_tuned = replace(PUBLISHED["mini"].model, resid_dropout_p=0.0)
    assert weights._published_context(fine_tuned) == 2048
    with pytest.raises(weights.CheckpointError, match="at least 1 candle"):
        load(TINY / "model", max_context=0)


def damage_config(**changes: object) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))

    return apply


def damage_tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    return lambda folder: rewrite(folder, change)


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no such folder, and not a hub id"),
    "no config": (lambda at: (at / "config.json").unlink(), "has no config.json"),
    "config not JSON": (lambda at: (at / "config.json").write_text("{"), "config.json is not JSON"),
    "config not an object": (lambda at: (at / "config.json").write_text("[]"), "one JSON object"),
    "unknown key": (damage_config(n_layer=2), "unknown key 'n_layer'"),
    "missing key": (damage_config(n_heads=None), "missing key 'n_heads'"),
    "wrong type": (damage_config(n_heads="2"), "'n_heads' must be int, got '2'"),
    "true is no number": (damage_config(n_layers=True), "'n_layers' must be int, got True"),
    "too small": (damage_config(n_layers=0), "'n_layers' must be at least 1"),
    "bad dropout": (damage_config(resid_dropout_p=1.0), "'resid_dropout_p' must be in"),
    "odd heads": (damage_config(n_heads=3), "cannot make 3 heads"),
    "other bits": (damage_config(s1_bits=5), r"not a pair: .*\(5, 4\) bits .*makes \(4, 4\)"),
    "no weights": (lambda at: (at / "model.safetensors").unlink(), "has no model.safetensors"),
    "only a pickle": (only_a_pickle, "pytorch_model.bin can run code and is never read"),
    "not safetensors": (lambda at: (at / "model.safetensors").write_bytes(b"x"), "not a safetensors file"),
    "tensor missing": (damage_tensors(lambda t: t.pop("norm.weight")), "missing norm.weight; unexp"),
    "tensor unexpected": (damage_tensors(lambda t: t.update(x=torch.ones(1))), "missing none; unexpected x"),
    "more layers": (damage_config(n_layers=3), "missing transformer.2.*and 10 more"),
    "wrong shape": (
        damage_tensors(lambda t: t.update({"norm.weight": torch.ones(31)})),
        r"norm.weight has shape \[31\], its config.json wants \[32\]",
    ),
    "wrong dtype": (
        damage_tensors(lambda t: t.update({"norm.weight": torch.ones(32, dtype=torch.int32)})),
        "norm.weight has dtype int32",
    ),
    "not finite": (damage_tensors(lambda t: t["norm.weight"].fill_(torch.nan)), "norm.weight holds NaN"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_unsound_checkpoints_are_refused(damage: str, model: Path) -> None:
    """Whatever is wrong with a checkpoint is a CheckpointError that names it."""
    apply, message = DAMAGES[damage]
    apply(model)
    with pytest.raises(weights.CheckpointError, match=message):
        load(model)


def test_swapped_folders_are_refused() -> None:
    """Model and tokenizer given the wrong way round: the message names the keys that do not belong."""
    with pytest.raises(weights.CheckpointError, match="ModelConfig: unknown key 'beta'"):
        load(TINY / "tokenizer", TINY / "model")


def test_random_checkpoints_repeat() -> None:
    """The same seed gives the same weights, another seed others; the process's random state is left alone."""
    size = replace(PUBLISHED["mini"], model=replace(PUBLISHED["mini"].model, n_layers=1))
    before = torch.get_rng_state()
    one, same, other = (modules.random_checkpoint(size, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.model.head.proj_s1.weight, same.model.head.proj_s1.weight)
    assert not torch.equal(one.model.head.proj_s1.weight, other.model.head.proj_s1.weight)
    modules.require_inference(one.model)
    tokens = torch.arange(64)[None]
    logits, _ = one.model.decode_s1(tokens, tokens, None)
    assert 0.5 < float(logits.std()) < 5


HUB_SCRIPT = """
import json, logging, sys
from app.model import layout, modules, weights
logging.basicConfig(level="WARNING", format="%(message)s", stream=sys.stdout)
for source in sys.argv[2:]:
    try:
        print(weights.load(source, sys.argv[1], max_context=64).model_version)
    except weights.CheckpointError as error:
        print("refused:", error)
"""


def hub_cache(home: Path) -> None:
    """Lay the tiny model out as the hub's own cache does: blobs, refs, and snapshots of links."""
    repository = home / "hub" / "models--NeoQuasar--Kronos-small"
    for name in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (repository / name).mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for file in (TINY / "model").iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (repository / "snapshots" / COMMIT / file.name).symlink_to(f"../../blobs/{blob.name}")


@pytest.mark.slow
def test_hub_ids_offline(tmp_path: Path) -> None:
    """From the hub's cache, offline: by commit, and without a revision (a warning); others are refused.

    A process of its own, since the hub's library reads HF_HUB_OFFLINE when it is imported.
    """
    hub_cache(tmp_path)
    name = "NeoQuasar/Kronos-small"
    sources = [f"{name}@{COMMIT}", name, f"{name}@{'0' * 40}", "NeoQuasar/Kronos-base@main"]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": str(REPOSITORY),
    }
    done = subprocess.run(
        [sys.executable, "-c", HUB_SCRIPT, str(TINY / "tokenizer"), *sources],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    by_commit, warning, by_name, other_commit, other_name = done.stdout.splitlines()
    digest = hashlib.sha256((TINY / "model" / "model.safetensors").read_bytes()).hexdigest()
    assert by_commit == by_name == f"{name}@{COMMIT}+{digest[:12]}"
    assert warning.startswith(f"{name} has no @revision")
    for line, wanted in ((other_commit, sources[2]), (other_name, sources[3])):
        assert line.startswith(f"refused: {wanted}: not a folder, not in the hub's cache")
        assert "HF_HUB_OFFLINE" in line


@pytest.mark.parametrize("source", ["../elsewhere", "models/demo/modle", "name", "owner/name@", "a b/c"])
def test_what_is_neither_folder_nor_hub_id(source: str, caplog: pytest.LogCaptureFixture) -> None:
    """A mistyped folder is not looked for on the hub."""
    with caplog.at_level(logging.WARNING), pytest.raises(weights.CheckpointError, match="no such folder"):
        load(source)
    assert not caplog.records


def test_bfloat16_files_are_widened(tmp_path: Path) -> None:
    """A checkpoint saved in bfloat16 loads as float32, value for value."""
    original = load(TINY / "model")
    for part, module in (("model", original.model), ("tokenizer", original.tokenizer)):
        half = {name: t.bfloat16() if t.is_floating_point() else t for name, t in module.state_dict().items()}
        shutil.copytree(TINY / part, tmp_path / part)
        save_file(half, tmp_path / part / "model.safetensors")
    loaded = weights.load(str(tmp_path / "model"), str(tmp_path / "tokenizer"))
    stored = loaded.model_tensors["norm.weight"]
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, original.model.norm.weight.bfloat16().float().numpy())


def test_layout_is_that_of_the_modules_and_of_the_published_files() -> None:
    """Names and shapes derived from a configuration are those of the torch modules, for every published size and
    for stored time tables."""
    for size in PUBLISHED.values():
        made = Tokenizer(size.tokenizer), Kronos(size.model)
        derived = layout.tokenizer_shapes(size.tokenizer), layout.model_shapes(size.model)
        for module, shapes in zip(made, derived, strict=True):
            assert shapes == {name: tuple(t.shape) for name, t in module.state_dict().items()}
    fixed = replace(PUBLISHED["mini"].model, learn_te=False)
    assert layout.model_shapes(fixed) == {name: tuple(t.shape) for name, t in Kronos(fixed).state_dict().items()}


def test_a_worker_on_a_cpu_never_imports_torch() -> None:
    """Loading a checkpoint and building the CPU's runner leaves torch alone: it costs 300 MB a worker."""
    code = f"""
import sys
from app.model import weights
from app.model.runner import build_runner
checkpoint = weights.load({str(TINY / "model")!r}, {str(TINY / "tokenizer")!r})
build_runner(checkpoint, num_slots=2, device="cpu")
import app.main, app.engine
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
