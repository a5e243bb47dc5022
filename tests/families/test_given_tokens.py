"""Tokens that are given leave everything after them as it was, with every sampler."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from nextscale import HARTPipeline, InfinityPipeline
from nextscale.families.text import TextFeatures

FILE = Path(__file__).parents[1] / "cli" / "conftest.py"
_spec = importlib.util.spec_from_file_location("cli_models", FILE)
assert _spec is not None and _spec.loader is not None
_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_models)
text_model, hart_model, language_model = _models.text_model, _models.hart_model, _models.language_model


@pytest.fixture(scope="module")
def pipes(text_model: Path, hart_model: Path) -> dict[str, Any]:
    return {
        "infinity": InfinityPipeline.from_pretrained(text_model, device="cpu"),
        "hart": HARTPipeline.from_pretrained(hart_model, device="cpu"),
    }


@pytest.mark.parametrize("family", ["infinity", "hart"])
@pytest.mark.parametrize("sampler", ["paired", "greedy", "multinomial"])
@pytest.mark.parametrize("seed", range(4))
def test_the_next_step_is_that_of_the_free_run(pipes: dict[str, Any], family: str, sampler: Any, seed: int):
    pipe, options = pipes[family], dict[str, Any](seed=seed, sampler=sampler, batch_size=2, output_type="pt")
    prompts: Any = ["a red fox", "the sky"]
    if family == "hart":
        features = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(seed))
        prompts, options["more_smooth"] = TextFeatures(features, torch.ones(2, 6, dtype=torch.bool)), False
    free = pipe(prompts, **options)
    for known in range(1, pipe.schedule.num_steps + 1):
        found = pipe(prompts, given_tokens=free.tokens[:known], **options)
        assert all(torch.equal(a, b) for a, b in zip(found.tokens, free.tokens, strict=True)), known
        torch.testing.assert_close(found.images, free.images)
