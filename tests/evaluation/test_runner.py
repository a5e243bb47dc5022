"""Running a protocol: stopped and continued, prolonged, with and without a reference."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nextscale import InfinityPipeline, VARPipeline
from nextscale.errors import DataError, InvalidArgumentError
from nextscale.evaluation import shards as shards_module
from nextscale.evaluation.features import FeatureSpace, open_space
from nextscale.evaluation.images import CalledImages, NpzImages, write_npz
from nextscale.evaluation.paper import Published
from nextscale.evaluation.reference import Reference
from nextscale.evaluation.report import markdown, plain, table, write_result
from nextscale.evaluation.runner import (
    PipelineImages,
    Result,
    generated_shards,
    plan,
    plan_samples,
    run,
)
from nextscale.evaluation.samples import open_samples
from nextscale.evaluation.shards import Shards
from nextscale.families.infinity.tokenizer import InfinityTokenizer, InfinityTokenizerConfig
from nextscale.families.infinity.transformer import InfinityTransformer, InfinityTransformerConfig
from nextscale.families.words import WordEncoder
from nextscale.guidance.ssg import ScaledSpatialGuidance
from nextscale.weights.digest import pipeline_digest


@pytest.fixture(scope="module")
def space() -> FeatureSpace:
    return open_space("cifar10-classifier", device="cpu")


@pytest.fixture(scope="module")
def reference(pictures: Tensor) -> Reference:
    return Reference.of_images("made", CalledImages(lambda rows: pictures[rows], 260, (32, 32)))


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "SHARD", 20)


def measured(
    pipe: VARPipeline, space: Any, reference: Any, work: Path, count: int = 50, **options: Any
) -> Result:
    protocol = plan(pipe, count, space, reference, arguments=options)
    return run(protocol, PipelineImages(pipe, protocol), space, reference, work, batch_size=8)


def numbers(result: Result) -> dict[str, Any]:
    """Everything but the time it took."""
    stored = result.to_dict()
    return {k: v for k, v in stored.items() if k not in ("seconds", "images_per_second")}


def test_pictures_are_those_of_the_pipeline(pipe: VARPipeline, space: FeatureSpace, tmp_path: Path):
    ssg = ScaledSpatialGuidance(0.4, schedule="bandwidth")
    protocol = plan(
        pipe, 23, space, None, arguments={"ssg": ssg, "guidance_scale": 2.0, "top_k": 9}, seed=100
    )
    assert protocol.sampling is not None and protocol.sampling["ssg"]["beta"] == 0.4
    assert protocol.sampling["dtype"] == "float32" and protocol.model["sha256"] == pipeline_digest(pipe)
    found = PipelineImages(pipe, protocol).read(3, 23)
    options = {"ssg": ssg, "guidance_scale": 2.0, "top_k": 9, "output_type": "pt"}
    wanted = pipe([i % 10 for i in range(3, 23)], seed=103, batch_size=20, **options).images
    assert torch.equal(found, (wanted * 255 + 0.5).floor().to(torch.uint8))
    json.dumps(protocol.to_dict())


def prompted(class_prompts: tuple[str, ...]) -> InfinityPipeline:
    """A text-to-image model of 32 x 32 pixels, with random weights."""
    torch.manual_seed(0)
    transformer = InfinityTransformerConfig(
        bits=4, depth=1, embed_dim=16, num_heads=2, ffn_dim=32, text_dim=8, text_length=8, pool_heads=2
    )
    widths = {"encoder_ch_mult": (1, 1, 1), "decoder_ch_mult": (1, 1, 1)}
    tokenizer = InfinityTokenizerConfig(
        bits=4, ch=8, **widths, num_res_blocks=1, norm_groups=(4,), patch_nums=(1, 2, 4, 8)
    )
    return InfinityPipeline(
        InfinityTransformer(transformer).eval().requires_grad_(False),
        InfinityTokenizer(tokenizer).eval().requires_grad_(False),
        text_encoder=WordEncoder(8),
        class_prompts=class_prompts,
        name="prompted",
    )


def test_prompts_stand_for_classes(space: FeatureSpace):
    prompts = ("a bird", "a cat", "a dog")
    pipe = prompted(prompts)
    protocol = plan(pipe, 7, space, arguments={"guidance_scale": 2.0, "ssg": 0.5}, seed=10)
    assert protocol.classes == 3 and protocol.model["prompts"] == list(prompts)
    assert protocol.hash != plan(prompted(("a bird", "a cat", "a cow")), 7, space, seed=10).hash
    found = PipelineImages(pipe, protocol).read(2, 7)
    wanted = [prompts[i % 3] for i in range(2, 7)]
    images = pipe(wanted, guidance_scale=2.0, ssg=0.5, seed=12, batch_size=5, output_type="pt").images
    assert torch.equal(found, (images * 255 + 0.5).floor().to(torch.uint8))
    json.dumps(protocol.to_dict())


def test_a_model_without_classes_cannot_be_measured(space: FeatureSpace):
    with pytest.raises(InvalidArgumentError, match="draws prompts, and names none for the classes"):
        plan(prompted(()), 7, space)


def test_a_result_has_every_figure(
    pipe: VARPipeline, space: FeatureSpace, reference: Reference, tmp_path: Path
):
    result = measured(pipe, space, reference, tmp_path)
    scores = {"fd", "precision", "recall", "density", "coverage", "kd", "classifier_score", "accuracy"}
    assert set(result.figures.scores) == scores
    assert all(math.isfinite(v) for v in result.figures.scores.values())
    assert result.figures.errors == {}  # too few pictures for one
    assert result.figures.left_out == {"fd_infinity": "needs 768 pictures or more"}
    stored = result.to_dict()
    assert stored["protocol_hash"] == result.protocol.hash
    assert {"nextscale", "torch", "numpy", "python"} <= set(stored["versions"])
    assert set(stored["seconds"]) == {"images", "features", "reference", "figures"}
    assert stored["seconds"]["images"] > 0 and stored["device"].startswith("cpu")
    features = generated_shards(result.protocol, tmp_path).tensor("features")
    again = space(PipelineImages(pipe, result.protocol).read(20, 28))["features"]
    assert torch.allclose(features[20:28], again, atol=1e-4)


def test_errors_and_extrapolation_need_enough_pictures(pictures: Tensor, space: FeatureSpace, tmp_path: Path):
    write_npz(tmp_path / "s.npz", CalledImages(lambda rows: pictures[rows], 200, (32, 32)))
    samples = open_samples(tmp_path / "s.npz")
    other = Reference.of_images("other", CalledImages(lambda rows: 255 - pictures[rows], 260, (32, 32)))
    protocol = plan_samples(samples, space, other)
    figures = run(protocol, samples, space, other, tmp_path).figures
    assert 0 < figures.errors["fd"] < figures.scores["fd"]
    parts = [figures.details[f"fd_{part}_term"] for part in ("mean", "covariance")]
    assert sum(parts) == pytest.approx(figures.scores["fd"])
    few = FewFeatures()
    protocol = plan_samples(samples, few, other)
    assert protocol.rules.smallest == 100
    figures = run(protocol, samples, few, other, tmp_path).figures
    sizes, values = figures.details["fd_infinity_points"]
    assert (sizes[0], sizes[-1], len(sizes)) == (100, 200, 15)
    assert values[-1] == pytest.approx(figures.scores["fd"])


class FewFeatures(FeatureSpace):
    """The mean of every channel: a space of three dimensions."""

    name = "means"

    def description(self) -> dict[str, Any]:
        return {"name": self.name}

    def _compute(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": images.float().mean((2, 3))}


def test_without_a_reference(pipe: VARPipeline, space: FeatureSpace, tmp_path: Path):
    result = measured(pipe, space, None, tmp_path)
    assert set(result.figures.scores) == {"classifier_score", "accuracy"}
    assert "no reference was given" in result.figures.left_out.values()


class StopError(Exception):
    pass


def test_a_stopped_run_ends_with_the_same_figures(
    pipe: VARPipeline, space: FeatureSpace, reference: Reference, tmp_path: Path
):
    whole = measured(pipe, space, reference, tmp_path / "whole")
    protocol = whole.protocol
    work, done = tmp_path / "stopped", 0

    def stop(pictures: int) -> None:
        nonlocal done
        done += pictures
        if done > 30:
            raise StopError

    with pytest.raises(StopError):
        run(protocol, PipelineImages(pipe, protocol), space, reference, work, batch_size=8, advance=stop)
    assert len(generated_shards(protocol, work)) == 20  # the second file had only begun
    drawn: list[int] = []
    images = PipelineImages(pipe, protocol)
    resumed = run(protocol, images, space, reference, work, batch_size=8, advance=drawn.append)
    assert sum(drawn) == 30
    assert numbers(resumed) == numbers(whole)


def test_more_pictures_draw_only_what_is_missing(pipe: VARPipeline, space: FeatureSpace, tmp_path: Path):
    measured(pipe, space, None, tmp_path / "grown", count=25)
    protocol = plan(pipe, 45, space)
    drawn: list[int] = []
    images = PipelineImages(pipe, protocol)
    grown = run(protocol, images, space, None, tmp_path / "grown", batch_size=8, advance=drawn.append)
    assert sum(drawn) == 25  # the second file had 5 of its 20
    assert numbers(grown) == numbers(measured(pipe, space, None, tmp_path / "new", count=45))
    fewer = measured(pipe, space, None, tmp_path / "grown", count=12)
    assert len(generated_shards(fewer.protocol, tmp_path / "grown").tensor("features")) == 12
    other = measured(pipe, space, None, tmp_path / "grown", count=12, ssg=0.5)
    assert other.protocol.hash != fewer.protocol.hash and other.protocol.ruler == fewer.protocol.ruler
    assert other.figures.scores != fewer.figures.scores


def test_kept_pictures_are_samples(
    pipe: VARPipeline, space: FeatureSpace, reference: Reference, tmp_path: Path
):
    file = tmp_path / "samples.npz"
    drawn = measured(pipe, space, reference, tmp_path / "work")
    images = PipelineImages(pipe, drawn.protocol)
    run(drawn.protocol, images, space, reference, tmp_path / "work", batch_size=8, keep=file)
    assert torch.equal(NpzImages(file).read(0, 8), images.read(0, 8))
    samples = open_samples(file)
    protocol = plan_samples(samples, space, reference)
    found = run(protocol, samples, space, reference, tmp_path / "work")
    assert "accuracy" not in found.figures.scores  # nobody said of what classes they are
    for name, value in found.figures.scores.items():
        assert value == pytest.approx(drawn.figures.scores[name], rel=1e-4), name
    with pytest.raises(InvalidArgumentError, match="about a file of samples"):
        PipelineImages(pipe, protocol)


def test_multinomial_draws_depend_on_the_batch(pipe: VARPipeline, space: FeatureSpace):
    paired, multinomial = (
        [plan(pipe, 20, space, arguments={"sampler": s}, batch_size=b).hash for b in (4, 5)]
        for s in ("paired", "multinomial")
    )
    assert paired[0] == paired[1] and multinomial[0] != multinomial[1]


def test_what_does_not_fit_is_said_before_drawing(pipe: VARPipeline, space: FeatureSpace):
    other = Reference("r", "", CalledImages(lambda rows: torch.zeros(0), 5, (64, 64)))
    with pytest.raises(InvalidArgumentError, match="reference r has pictures of 64x64"):
        plan(pipe, 20, space, other)
    with pytest.raises(InvalidArgumentError, match="unknown rounding"):
        plan(pipe, 20, space, rounding="up")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="top_p must be"):
        plan(pipe, 20, space, arguments={"top_p": 7})


def test_shards_that_were_damaged(pictures: Tensor, space: FeatureSpace, tmp_path: Path):
    images = CalledImages(lambda rows: pictures[rows], 50, (32, 32))
    shards = Shards(tmp_path, 50)
    shards.fill(images, space)
    before = shards.tensor("features")
    file = sorted(tmp_path.iterdir())[1]
    file.write_bytes(file.read_bytes()[:-9])
    assert len(shards) == 30
    with pytest.raises(
        DataError, match=r"00000020-20\.safetensors' cannot be read .*delete it and run again"
    ):
        shards.tensor("features")
    shards.fill(images, space)
    assert len(shards) == 50 and torch.equal(shards.tensor("features"), before)
    assert torch.equal(shards.rows("features", 15, 45), before[15:45])
    assert [len(p) for p in shards.parts("features", 25)] == [40, 10]


def test_reports(pipe: VARPipeline, space: FeatureSpace, reference: Reference, tmp_path: Path):
    result = measured(pipe, space, reference, tmp_path / "work", count=20)
    file = tmp_path / "result.json"
    paper = Published({"fd": 1.25, "precision": 0.5}, "a paper")
    write_result(result, file, heading="tiny", preset="cifar10", published=paper)
    stored = json.loads(file.read_text())
    assert stored["paper"] == {"figures": {"fd": 1.25, "precision": 0.5}, "source": "a paper"}
    assert stored["scores"] == result.figures.scores and stored["preset"] == "cifar10"
    text = file.with_suffix(".md").read_text()
    assert "|  | measured | paper |" in text and "| 1.25 |" in text and "paper: a paper" in text
    assert result.protocol.hash[:12] in text and "without FD, N → ∞: needs" in text
    write_result(result, file, heading="tiny")
    assert (
        json.loads(file.read_text())["paper"] is None and "paper" not in file.with_suffix(".md").read_text()
    )
    rows = table(result.figures, paper.figures)
    assert rows[0] == ("", "measured", "paper") and all(len(row) == 3 for row in rows)
    assert len({len(line) for line in plain([(a, b, "x") for a, b, _ in rows])}) == 1
    assert len(list(markdown(rows))) == len(rows) + 1
    result.figures.details["odd"] = np.nan
    write_result(result, file, heading="tiny")
    assert json.loads(file.read_text())["details"]["odd"] is None


def test_several_processes_fill_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each file is made once, whoever makes it, and whoever is done first waits for the others."""
    monkeypatch.setattr(shards_module, "SHARD", 4)
    monkeypatch.setattr(shards_module, "POLL", 0.01)
    space = open_space("pixels")
    pixels = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8)

    def images(mark: str) -> CalledImages:
        def batch(rows: list[int]) -> Tensor:
            (tmp_path / f"{mark}-{rows[0]}-{time.monotonic_ns()}").touch()
            return pixels[rows]

        return CalledImages(batch, 30, (32, 32))

    def fill(mark: str) -> None:
        shards = Shards(tmp_path / "work", 30)
        heard: list[int] = []
        shards.fill(images(mark), space, batch_size=2, advance=heard.append)
        assert len(shards) == 30
        assert sum(heard) <= 30  # others may have made some before we looked

    others = []
    for mark in "ab":
        pid = os.fork()
        if pid == 0:
            try:
                fill(mark)
                os._exit(0)
            finally:
                os._exit(1)
        others.append(pid)
    fill("c")
    assert [os.waitpid(pid, 0)[1] for pid in others] == [0, 0]
    assert len(list(tmp_path.glob("?-*"))) == 15
    assert not (tmp_path / "work" / ".claims").exists()
    alone = Shards(tmp_path / "alone", 30)
    alone.fill(images("alone"), space, batch_size=2)
    assert torch.equal(alone.rows("features", 0, 30), Shards(tmp_path / "work", 30).rows("features", 0, 30))
