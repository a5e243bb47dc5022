"""Models like the official ones, and what a guided generation of theirs should look like."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from nextscale import ScaledSpatialGuidance
from nextscale.guidance import prior_operator
from nextscale.integrations import guide

REPOSITORIES = Path(__file__).parent / "repositories"
SQUARE = ((1, 1, 1), (1, 2, 2), (1, 3, 3), (1, 4, 4))
TALL = ((1, 1, 1), (1, 2, 1), (1, 4, 3), (1, 6, 5), (1, 8, 6))
TAUS = (1.0, 0.5, 0.7, 2.0, 0.3)


def load_repository(name: str) -> ModuleType:
    """A new copy of a module below ``repositories``, with globals and classes of its own."""
    spec = importlib.util.spec_from_file_location(f"repository_{name}", REPOSITORIES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Run(NamedTuple):
    """result; logits of every draw before and after SSG; and random numbers drawn after everything."""

    result: Tensor
    raw: list[Tensor]
    guided: list[Tensor]
    random: Tensor

    def same(self, other: Run) -> bool:
        """Bit for bit the same result, sampled from the same logits, with the same random numbers."""
        mine, theirs = ((r.result, r.random, *r.guided) for r in (self, other))
        return len(self.guided) == len(other.guided) and all(map(torch.equal, mine, theirs))


@dataclass
class Official:
    """A model in its module, one way to call it, and what is known of its steps."""

    module: ModuleType
    sampler: str
    model: nn.Module
    generate: Callable[[], Tensor]
    grids: Sequence[tuple[int, int]]
    taus: Sequence[float] = ()

    @property
    def draw(self) -> Callable[..., Tensor]:
        """What goes by the sampling function's name now."""
        return getattr(self.module, self.sampler)

    @contextmanager
    def watched(self) -> Iterator[list[Tensor]]:
        """Copies of the logits that pass it."""
        found, seen = self.draw, []

        def watch(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            seen.append(logits.clone())
            return found(logits, *args, **kwargs)

        setattr(self.module, self.sampler, watch)
        try:
            yield seen
        finally:
            setattr(self.module, self.sampler, found)

    def run(self, ssg: ScaledSpatialGuidance | float | None) -> Run:
        """One generation, always from the same seeds; ``None`` is the code on its own."""
        torch.manual_seed(0)
        with ExitStack() as stack:
            raw = guided = stack.enter_context(self.watched())
            if ssg is not None:
                stack.enter_context(guide(self.model, ssg))
                raw = stack.enter_context(self.watched())
            result = self.generate()
        return Run(result, raw, guided, torch.rand(3))

    def definition(self, raw: Sequence[Tensor], ssg: ScaledSpatialGuidance) -> list[Tensor]:
        """What has to reach the sampling function at every draw, in float64, straight from the formula."""
        expected: list[Tensor] = []
        before: Tensor | None = None
        last = len(self.grids) - 1
        for draw, logits in enumerate(raw):
            step = min(draw, last)
            tau = self.taus[step] if self.taus else 1.0
            height, width = self.grids[step]
            masks = getattr(self.model, "masks", [])
            mask = masks[draw - step] if masks and step == last else None
            cells = height * width if mask is None else int(mask[0].sum())
            own = tau * logits.double().reshape(len(logits), cells, -1)
            guided, beta = own, ssg.betas(self.grids)[step]
            if before is not None and beta:
                grids = self.grids[step - 1], (height, width)
                operator = prior_operator(*grids, ssg.prior, norm=ssg.norm, dtype=torch.float64)
                prior = operator @ before
                if mask is not None:
                    prior = torch.stack([rows[chosen] for rows, chosen in zip(prior, mask, strict=True)])
                guided = own + beta * (own - prior)
            expected.append((guided / tau).reshape(logits.shape))
            if step < last:
                before = guided if ssg.remember == "guided" else own
        return expected


def _var(
    patch_nums: Sequence[int] = (1, 2, 3, 5),
    batch: int = 2,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> Official:
    module = load_repository("var")
    model = module.VAR(patch_nums)
    model.dtype = dtype
    labels = torch.arange(batch)

    def generate() -> Tensor:
        return model.autoregressive_infer_cfg(batch, labels, **{"g_seed": 3, **settings})

    return Official(module, "sample_with_top_k_top_p_", model, generate, [(n, n) for n in patch_nums])


def _hart(patch_nums: Sequence[int] = (1, 2, 3, 4, 6), batch: int = 2, **settings: Any) -> Official:
    module = load_repository("hart")
    model = module.HARTForT2I(patch_nums)
    context = torch.randn(batch, model.context_token, 6, generator=torch.Generator().manual_seed(9))

    def generate() -> Tensor:
        return model.autoregressive_infer_cfg(batch, context, **{"g_seed": 3, **settings})

    return Official(module, "sample_with_top_k_top_p_", model, generate, [(n, n) for n in patch_nums])


def _infinity(
    schedule: Sequence[tuple[int, int, int]] = SQUARE,
    taus: Sequence[float] = TAUS,
    patchify: bool = False,
    batch: int = 2,
    cfg: float = 3.0,
    **settings: Any,
) -> Official:
    module = load_repository("infinity")
    model = module.Infinity(apply_spatial_patchify=patchify)
    text = torch.randn(batch, 6, generator=torch.Generator().manual_seed(9))

    def generate() -> Tensor:
        cfgs = [cfg] * len(schedule)
        return model.autoregressive_infer_cfg(
            schedule, text, batch, **{"g_seed": 3, "cfg_list": cfgs, "tau_list": list(taus), **settings}
        )

    sampler = "sample_with_top_k_top_p_also_inplace_modifying_logits_"
    return Official(module, sampler, model, generate, [(h, w) for _, h, w in schedule], taus)


MAKERS: dict[str, Callable[..., Official]] = {"var": _var, "hart": _hart, "infinity": _infinity}
EVERY: dict[str, tuple[str, dict[str, Any]]] = {
    "var": ("var", {"top_k": 9, "top_p": 0.96}),
    "var-smooth": ("var", {"top_k": 9, "more_smooth": True}),
    "var-half": ("var", {"dtype": torch.float16, "more_smooth": True}),
    "var-bfloat16": ("var", {"dtype": torch.bfloat16}),
    "var-equal-grids": ("var", {"patch_nums": (1, 2, 2, 4)}),
    "hart": ("hart", {"more_smooth": True}),
    "hart-masked": ("hart", {"num_maskgit_iters": 4}),
    "infinity": ("infinity", {"top_p": 0.97}),
    "infinity-tall": ("infinity", {"schedule": TALL}),
    "infinity-hidden": ("infinity", {"cfg_insertion_layer": (-2,)}),
    "infinity-no-cfg": ("infinity", {"cfg": 1.0}),
    "infinity-patchify": ("infinity", {"schedule": TALL, "patchify": True}),
}


@pytest.fixture
def make() -> Callable[..., Official]:
    """``make("var", patch_nums=..., **arguments of the call)``: a new model in a new module."""
    return lambda name, **settings: MAKERS[name](**settings)


@pytest.fixture
def repository() -> Callable[[str], ModuleType]:
    """``repository("var")``: the module alone."""
    return load_repository


@pytest.fixture(params=list(EVERY))
def official(request: pytest.FixtureRequest) -> Official:
    """Each kind of model and call in turn."""
    name, settings = EVERY[request.param]
    return MAKERS[name](**settings)
