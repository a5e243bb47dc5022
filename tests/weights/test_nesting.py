"""Finding a network's tensors: wrappers, prefixes, containers, and averages beside other weights."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nextscale.errors import CheckpointError, NextscaleWarning
from nextscale.weights.nesting import Part, holds, read_part

PART = Part(frozenset({"start", "head.weight", "blocks.0.attn.weight"}), re.compile(r"(^|\.)level$"))


class Net(nn.Module):
    """Names as a transformer has them: a parameter, layers in layers, and a buffer."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.full((2,), value))
        self.blocks = nn.ModuleList(nn.ModuleDict({"attn": nn.Linear(2, 2)}) for _ in range(2))
        self.head = nn.Linear(2, 3)
        self.register_buffer("level", torch.arange(3))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(value)


PLAIN, EMA = Net(1.0).state_dict(), Net(2.0).state_dict()


def save(content: Any, folder: Path, name: str = "net.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def value_of(tensors: dict[str, Tensor]) -> float:
    """The one number that all parameters have; all are there, and nothing else."""
    assert tensors.keys() == PLAIN.keys(), tensors.keys() ^ PLAIN.keys()
    assert torch.equal(tensors["level"], PLAIN["level"])
    numbers = torch.cat([t.float().flatten() for n, t in tensors.items() if n != "level"]).unique()
    assert len(numbers) == 1
    return float(numbers)


def prefixed(tensors: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {"".join(prefixes) + name: tensor for name, tensor in tensors.items()}


# ------------------------------------------------------------------ names


WRAPPERS = [
    "module.",
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_forward_module.",
    "_checkpoint_wrapped_module.",
]


@pytest.mark.parametrize(
    "prefix",
    [
        *WRAPPERS,
        "module._orig_mod.",
        "_orig_mod.module.",
        "module.module.",
        "_fsdp_wrapped_module._orig_mod.module.",
        *(
            "var.",
            "net.",
            "model.",
            "transformer.",
            "student.",
            "model.module.net._orig_mod.",
            "gpt.0.",
            "my_own.",
        ),
    ],
)
def test_prefixes(prefix: str, tmp_path: Path):
    assert value_of(read_part(save(prefixed(PLAIN, prefix), tmp_path), PART)) == 1
    shapes = read_part(tmp_path / "net.pth", PART, meta=True)
    assert {n: t.shape for n, t in shapes.items()} == {n: t.shape for n, t in PLAIN.items()}
    assert all(t.is_meta for t in shapes.values())


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_in_the_middle_of_names(wrapper: str, tmp_path: Path):
    turned = {
        name.replace("blocks.0.", f"blocks.0.{wrapper}").replace("attn.", f"attn.{wrapper}module."): tensor
        for name, tensor in PLAIN.items()
    }
    assert f"blocks.0.{wrapper}attn.{wrapper}module.weight" in turned
    assert value_of(read_part(save(prefixed(turned, "net.", wrapper), tmp_path), PART)) == 1


def test_what_torch_itself_makes_of_names(tmp_path: Path):
    net = Net(1.0)
    for block in net.blocks:
        block["attn"] = torch.compile(block["attn"])  # never run, so nothing is compiled
    compiled = torch.compile(nn.DataParallel(net))
    assert "_orig_mod.module.blocks.0.attn._orig_mod.weight" in compiled.state_dict()
    assert value_of(read_part(save(compiled.state_dict(), tmp_path), PART)) == 1
    averaged = AveragedModel(Net(2.0), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    path = save(averaged.state_dict(), tmp_path)  # with the counter n_averaged
    assert value_of(read_part(path, PART, averaged=True)) == 2
    with pytest.raises(CheckpointError, match="only averaged ones"):
        read_part(path, PART, averaged=False)


def test_other_networks_beside_are_left_alone(tmp_path: Path):
    content = {**prefixed(PLAIN, "model."), "loss.weight": torch.ones(1), "encoder.start": torch.ones(1)}
    assert value_of(read_part(save(content, tmp_path), PART)) == 1
    # Without a prefix nothing tells what is the network's, so the rest is left for the caller to refuse.
    assert "extra" in read_part(save({**PLAIN, "extra": torch.ones(1)}, tmp_path), PART)


def test_two_names_that_become_one(tmp_path: Path):
    path = save({**PLAIN, "module.head.weight": torch.zeros(3, 2)}, tmp_path)
    with pytest.raises(CheckpointError, match=r"head\.weight and module\.head\.weight are both head\.weight"):
        read_part(path, PART)


# ------------------------------------------------------------------ containers


KEYS = [
    "state_dict",
    "model",
    "model_state_dict",
    "ema",
    "ema_state_dict",
    "trainer",
    "net",
    "module",
    "weights",
]


@pytest.mark.parametrize("outer", KEYS)
@pytest.mark.parametrize("inner", [None, *KEYS])
def test_containers(outer: str, inner: str | None, tmp_path: Path):
    inside: Any = prefixed(PLAIN, "module.")
    content = {
        outer: inside if inner is None else {inner: inside, "step": 3},
        "epoch": 7,
        "args": {"lr": 0.1},
    }
    assert value_of(read_part(save(content, tmp_path), PART)) == 1
    assert holds(tmp_path / "net.pth", PART)


def test_optimisers_are_no_networks(tmp_path: Path):
    moments = {"exp_avg": EMA, "exp_avg_sq": EMA}
    content = {
        "model": PLAIN,
        "optimizer": moments,
        "opt": {"state": {n: {"exp_avg": t} for n, t in EMA.items()}},
    }
    for averaged in (None, False):
        assert value_of(read_part(save(content, tmp_path), PART, averaged=averaged)) == 1


def test_several_networks_are_not_chosen_from(tmp_path: Path):
    path = save({"model": PLAIN, "net": EMA}, tmp_path)
    with pytest.raises(
        CheckpointError, match=r"several such networks \(at 'model', 'net'\); save the state dict"
    ):
        read_part(path, PART)
    for content in (
        {"student": PLAIN, "teacher": EMA},
        prefixed(PLAIN, "student.") | prefixed(EMA, "teacher."),
    ):
        assert value_of(read_part(save(content, tmp_path), PART)) == 1
    twice = prefixed(PLAIN, "model.") | prefixed(PLAIN, "compiled._orig_mod.")  # one in memory
    for meta in (True, False):
        assert read_part(save(twice, tmp_path), PART, meta=meta).keys() == PLAIN.keys()
    shared = {"model": PLAIN, "module": PLAIN}
    assert value_of(read_part(save(shared, tmp_path), PART)) == 1


def test_nothing_endless(tmp_path: Path):
    """A file can point to the same mapping again and again."""
    node: dict[str, Any] = {"model": PLAIN}
    for _ in range(40):
        node = {f"k{i}": node for i in range(40)}
    round_about: dict[str, Any] = {"net": PLAIN}
    round_about |= {f"k{i}": round_about for i in range(40)}
    assert value_of(read_part(save(round_about, tmp_path), PART)) == 1
    with pytest.raises(
        CheckpointError, match="holds no tensors at its top level or below; its keys are k0, k1"
    ):
        read_part(save(node, tmp_path), PART)


# ------------------------------------------------------------------ averages


def dotless(tensors: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Buffers cannot have dots in their names."""
    return {prefix + name.replace(".", ""): tensor for name, tensor in tensors.items()}


PARAMETERS = {name: tensor for name, tensor in EMA.items() if name != "level"}
COUNTER = torch.tensor(3)
BOTH = {
    "model and ema": {"model": PLAIN, "ema": EMA},
    "wrapped": {"model": prefixed(PLAIN, "module."), "ema": prefixed(EMA, "module._orig_mod.")},
    "state dicts": {"model_state_dict": PLAIN, "ema_state_dict": EMA},
    "suffix": {"state_dict": PLAIN, "state_dict_ema": EMA},
    "params_ema": {"params": PLAIN, "params_ema": EMA},
    "trainer": {"trainer": {"gpt_fsdp": PLAIN, "gpt_ema_fsdp": EMA}},
    "swa": {"model": PLAIN, "swa_model": {**prefixed(EMA, "module."), "n_averaged": COUNTER}},
    "shadow": {"model": PLAIN, "ema": {"decay": 0.99, "shadow": PARAMETERS}},
    "shadow alone": {"model": PLAIN, "shadow": PARAMETERS},
    "list": {"state_dict": PLAIN, "ema": {"decay": 0.99, "shadow_params": list(PARAMETERS.values())}},
    "lightning callback": {
        "state_dict": prefixed(PLAIN, "net."),
        "callbacks": {"EMACallback{'decay': 0.99}": {"ema_weights": prefixed(EMA, "net.")}},
    },
    "weight averaging": {
        "state_dict": prefixed(EMA, "net."),
        "current_model_state": prefixed(PLAIN, "net."),
        "averaging_state": {"n_averaged": COUNTER},
    },
    "prefixes": {"state_dict": prefixed(PLAIN, "model.") | prefixed(EMA, "ema_model.module.")},
    "ema-pytorch": prefixed(PLAIN, "online_model.")
    | prefixed(EMA, "ema_model.")
    | {"initted": torch.tensor([True]), "step": COUNTER},
    "beside": {"net": PLAIN | prefixed(EMA, "ema.")},
    "LitEma": {
        "state_dict": prefixed(PLAIN, "model.inner.")
        | dotless(prefixed(PARAMETERS, "inner."), "model_ema.")
        | {"model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": COUNTER}
    },
    "glued": PLAIN | {f"ema_{name}": tensor for name, tensor in EMA.items()},
}


@pytest.mark.parametrize("form", BOTH)
def test_averages_are_preferred_and_can_be_chosen(form: str, tmp_path: Path):
    path = save(BOTH[form], tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NextscaleWarning)
        for averaged, expected in ((None, 2), (True, 2), (False, 1)):
            assert value_of(read_part(path, PART, averaged=averaged)) == expected
            assert read_part(path, PART, averaged=averaged, meta=True).keys() == PLAIN.keys()


def test_asking_for_what_is_not_there(tmp_path: Path):
    path = save({"model": PLAIN}, tmp_path)
    with pytest.raises(
        CheckpointError, match=r"holds no averaged weights .*\(at 'model'\); averaged=False takes"
    ):
        read_part(path, PART, averaged=True)
    assert value_of(read_part(path, PART, averaged=True, strict=False)) == 1
    path = save({"ema": EMA}, tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no other weights .*\(at 'ema'\); averaged=True takes"):
        read_part(path, PART, averaged=False)
    assert value_of(read_part(path, PART, averaged=False, strict=False)) == 2


def test_the_name_of_a_file_can_tell(tmp_path: Path):
    path = save(PLAIN, tmp_path, "epoch=3-EMA.ckpt")
    assert value_of(read_part(path, PART, averaged=True)) == 1
    with pytest.raises(CheckpointError, match="only averaged ones"):
        read_part(path, PART, averaged=False)
    path = save({"model": PLAIN, "ema": EMA}, tmp_path, "ema_model.bin")
    assert value_of(read_part(path, PART, averaged=False)) == 1
    assert value_of(read_part(path, PART)) == 2


def test_what_averages_leave_out(tmp_path: Path):
    """Buffers in silence; parameters, as those that are not trained, with a word."""
    trained = {name: tensor for name, tensor in PARAMETERS.items() if not name.startswith("blocks.1.")}
    path = save({"model": PLAIN, "ema": trained}, tmp_path)
    with pytest.warns(
        NextscaleWarning, match=r"at 'ema'\) lack 2 tensors.*: blocks\.1\.attn\.weight, blocks"
    ):
        found = read_part(path, PART)
    assert found.keys() == PLAIN.keys()
    assert torch.equal(found["blocks.1.attn.weight"], PLAIN["blocks.1.attn.weight"])
    assert torch.equal(found["blocks.0.attn.weight"], EMA["blocks.0.attn.weight"])


def test_what_published_files_mean_by_a_word(tmp_path: Path):
    usual = Part(PART.telling, PART.spare, usual="vae")
    path = save({"vae": PLAIN, "ema": EMA}, tmp_path)
    for averaged, expected in ((None, 1), (True, 2), (False, 1)):
        assert value_of(read_part(path, usual, averaged=averaged)) == expected


# ------------------------------------------------------------------ what is none


def test_files_without_the_network(tmp_path: Path):
    other = {"x": torch.ones(1), "y": torch.ones(1)}
    path = save({"a": {"z": torch.ones(1)}, "b": {"c": other}}, tmp_path)
    assert read_part(path, PART).keys() == other.keys()
    assert not holds(path, PART)
    assert not holds(tmp_path / "nothing.pth", PART)


def test_flattened_parameters(tmp_path: Path):
    path = save({"model": {"_fsdp_wrapped_module._flat_param": torch.ones(9)}}, tmp_path)
    with pytest.raises(CheckpointError, match=r"flattened \(_flat_param\).*FULL_STATE_DICT"):
        read_part(path, PART)


def test_safetensors(tmp_path: Path):
    path = tmp_path / "net.safetensors"
    save_file(prefixed(PLAIN, "model.") | prefixed(EMA, "ema.module."), path)
    for averaged, expected in ((None, 2), (False, 1)):
        assert value_of(read_part(path, PART, averaged=averaged)) == expected
