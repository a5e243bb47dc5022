"""A model of a few thousand weights, and runs of it in processes that can be killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nextscale.families.var.pipeline import VARPipeline
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.generation.loop import StepInfo
from nextscale.sampling.drawing import RunPictures, settle_group
from nextscale.sampling.plan import RunPlan, write_manifest
from nextscale.sampling.worker import Worker
from nextscale.training.transformer import init_transformer

NAMES = ("blue", "green", "red")


def tiny_pipeline() -> VARPipeline:
    """Pictures of 8 x 8 pixels, three classes."""
    torch.manual_seed(0)
    shared = {"vocab_size": 16, "z_channels": 4, "patch_nums": (1, 2)}
    transformer = VARTransformer(
        VARTransformerConfig(**shared, num_classes=3, depth=1, embed_dim=16, num_heads=2)
    )
    init_transformer(transformer, gate=1.0, modulation=1.0, head=2.0)
    tokenizer = VARTokenizer(
        VARTokenizerConfig(**shared, ch=4, ch_mult=(1, 1, 1), num_res_blocks=1, norm_groups=4)
    )
    return VARPipeline(transformer.eval(), tokenizer.eval(), class_names=NAMES, name="tiny")


@pytest.fixture(scope="session")
def pipe() -> VARPipeline:
    return tiny_pipeline()


@pytest.fixture(scope="session")
def model(pipe: VARPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures(pipe: VARPipeline) -> RunPictures:
    return RunPictures(pipe, "labels", [0, 1, 2, 0, -1], 5, {"ssg": None})


class Apart:
    """A pipeline, but every picture is drawn alone: its bits depend on the batch on no machine."""

    def __init__(self, pipe: VARPipeline) -> None:
        self.pipe, self.device = pipe, pipe.device

    def __call__(self, labels: Any, *, seed: Any, on_step: Any, **more: Any) -> Any:
        steps: list[list[StepInfo]] = [[] for _ in labels]
        drawn = [
            self.pipe([label], seed=[number], on_step=infos.append, **more)
            for label, number, infos in zip(labels, seed, steps, strict=True)
        ]
        for infos in zip(*steps, strict=True):
            on_step(replace(infos[0], guided=torch.cat([info.guided for info in infos])))
        return replace(drawn[0], images=torch.cat([one.images for one in drawn]))


@pytest.fixture(scope="session")
def apart(pictures: RunPictures) -> RunPictures:
    return replace(pictures, pipe=Apart(pictures.pipe))


@pytest.fixture(scope="session")
def plan(pictures: RunPictures) -> RunPlan:
    """24 pictures in shards of 5."""
    asked = RunPlan(
        count=24,
        seed=5,
        key="labels",
        subjects=5,
        subjects_digest="",
        model={"name": "tiny", "family": "var", "sha256": ""},
        sampling={},
        size=(8, 8),
        device="cpu",
        format="tar",
        image_format="png",
        shard_size=5,
        nextscale="0",
    )
    return settle_group(asked, pictures, 4, print)


MakeWorker = Callable[..., Worker]


@pytest.fixture
def worker(plan: RunPlan, pictures: RunPictures) -> MakeWorker:
    """A worker on a run in a folder, which is begun if needed; further arguments change plan or worker."""

    def make(folder: Path, batch: int = 4, **changes: Any) -> Worker:
        ours = {k: changes.pop(k) for k in list(changes) if k in RunPlan.__dataclass_fields__}
        drawn = changes.pop("pictures", pictures)
        begun = write_manifest(folder, replace(plan, **ours))
        return Worker(folder, begun, drawn, batch, **{"poll": 0.02, **changes})

    return make


def _contents(folder: Path) -> dict[str, bytes]:
    """Everything that a run has published."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {".work", "logs"} & set(path.relative_to(folder).parts)
    }


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    return _contents


class Forked:
    """A function in a process of its own, which begins where this one is: no second is lost on imports."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                work()
                code = 0
            finally:
                os._exit(code)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """The exit code; negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture(scope="session")
def fork() -> type[Forked]:
    return Forked
