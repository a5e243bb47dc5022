"""From a pipeline to numbers, tables and plots: what is kept of pictures, resuming, real ones beside them."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale import VARPipeline
from nextscale.errors import InvalidArgumentError
from nextscale.evaluation import shards as shards_module
from nextscale.evaluation.blur import METRIC_SIGMAS, blurred
from nextscale.evaluation.features import FeatureSpace, open_space
from nextscale.evaluation.files import finite
from nextscale.evaluation.images import CalledImages
from nextscale.evaluation.moments import Moments
from nextscale.evaluation.observation import ObservedImages, PictureStatistics, Plan, blur_key
from nextscale.evaluation.protocol import to_uint8
from nextscale.evaluation.reference import open_reference
from nextscale.evaluation.residual import BETAS, CURVES, STATISTICS
from nextscale.evaluation.spectra import AmplitudeRule, log_profile
from nextscale.evaluation.spectrum_plots import latent_plot, write_plots
from nextscale.evaluation.spectrum_result import Arm, Real, spectrum_result
from nextscale.evaluation.spectrum_tables import csv_files, summary_lines
from nextscale.evaluation.stored_spectra import DETAIL, RULES, measure_pictures, stored_spectra, write_spectra
from nextscale.guidance.ssg import ScaledSpatialGuidance


@pytest.fixture(scope="module")
def space() -> FeatureSpace:
    return open_space("cifar10-classifier", device="cpu")


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "SHARD", 8)


def plan_of(pipe: VARPipeline, count: int = 14, **more: Any) -> Plan:
    return Plan(pipe, list(range(10)), count, {"guidance_scale": 2.0}, seed=5, **more)


def drawn(
    pipe: VARPipeline, work: Path, space: FeatureSpace | None = None, count: int = 14, **more: Any
) -> list[Arm]:
    arms = []
    for name, ssg in (("no SSG", None), ("SSG 0.6", ScaledSpatialGuidance(0.6, norm="forward"))):
        images = ObservedImages(plan_of(pipe, count, **more), ssg, ScaledSpatialGuidance(norm="forward"))
        statistics = PictureStatistics(images, space)
        shards = statistics.shards(work)
        shards.fill(images, statistics, batch_size=5)
        arms.append(Arm(name, statistics, shards))
    return arms


def test_what_is_kept_is_what_the_pictures_show(pipe: VARPipeline, space: FeatureSpace, tmp_path: Path):
    (plain, guided) = drawn(pipe, tmp_path, space)
    assert plain.images.size == (32, 32) and plain.images.grids == ((1, 1), (2, 2), (4, 4), (8, 8))
    labels, seeds = [i % 10 for i in range(14)], list(range(5, 19))
    for arm, ssg in ((plain, None), (guided, ScaledSpatialGuidance(0.6, norm="forward"))):
        steps: list[Tensor] = []
        out = pipe(
            labels,
            seed=seeds,
            guidance_scale=2.0,
            ssg=ssg,
            output_type="pt",
            on_step=lambda info, steps=steps: steps.append(log_profile(info.feature_map)),
        )
        pixels = to_uint8(out.images)
        close = {"rtol": 1e-3, "atol": 1e-3, "check_dtype": False}
        torch.testing.assert_close(arm.rows("features"), AmplitudeRule()(pixels), **close)
        torch.testing.assert_close(arm.rows("latent"), torch.stack(steps, 1), **close)
        wanted = space(blurred(pixels, 0.5))["features"]
        torch.testing.assert_close(arm.rows(blur_key(0.5)), wanted, **close)
        assert arm.images.settings["ssg"] == (ssg and ssg.to_dict())
        assert arm.rows("saturation").shape == (14, 3, len(CURVES), len(BETAS) + 1)
    # Without SSG nothing was guided, but the same prior looked on.
    assert plain.images.prior.norm == "forward"
    assert plain.rows("saturation")[..., 1, -1].max() == 0 < guided.rows("saturation")[..., 1, -1].max()


def test_a_longer_run_goes_on(pipe: VARPipeline, tmp_path: Path):
    short = drawn(pipe, tmp_path, count=8)
    before = sorted(tmp_path.rglob("*.safetensors"))
    stamps = [path.stat().st_mtime_ns for path in before]
    long = drawn(pipe, tmp_path, count=16)
    assert [path.stat().st_mtime_ns for path in before] == stamps
    assert len(sorted(tmp_path.rglob("*.safetensors"))) == 2 * len(before) == 4
    torch.testing.assert_close(long[1].rows("latent")[:8], short[1].rows("latent"))
    # Another way to look at them is kept elsewhere.
    other = PictureStatistics(ObservedImages(plan_of(pipe, rule=AmplitudeRule("dct")), None))
    assert other.shards(tmp_path).folder not in {path.parent for path in before}


def real_of(pictures: Tensor, space: FeatureSpace) -> Real:
    images = CalledImages(lambda rows: pictures[rows], len(pictures), (32, 32))
    amplitude, detail = measure_pictures(images, AmplitudeRule())
    unblurred = Moments.of(space(pictures)["features"]).gaussian()
    control = {s: Moments.of(space(blurred(pictures, s))["features"]).gaussian() for s in METRIC_SIGMAS}
    return Real({"name": "made", "images": len(pictures)}, amplitude, detail, unblurred, control)


@pytest.mark.slow
def test_numbers_tables_and_plots(pipe: VARPipeline, space: FeatureSpace, pictures: Tensor, tmp_path: Path):
    arms = drawn(pipe, tmp_path / "work", space)
    result = spectrum_result(arms, real_of(pictures[:40], space), replicates=50)
    assert json.loads(json.dumps(finite(result), allow_nan=False))["images"] == 14
    steps = result["latent"]["steps"]
    assert [s["step"] for s in steps] == [2, 3, 4]
    assert [s["coarse_nyquist"] for s in steps] == [0.5, 1.0, 2.0]
    assert [s["fine_nyquist"] for s in steps] == [1.0, 2.0, 4.0]

    changes = arms[1].rows("latent").diff(dim=1)
    curve = result["latent"]["arms"]["SSG 0.6"]
    assert curve["mean"][2] == pytest.approx(changes.mean(0)[2].tolist())
    assert curve["std"][2] == pytest.approx(changes.std(0)[2].tolist())
    gap = result["latent"]["differences"]["SSG 0.6"]["above"]
    each = [result["latent"]["arms"][a]["summary"]["above"]["value"] for a in ("SSG 0.6", "no SSG")]
    assert gap["value"] == pytest.approx([x - y for x, y in zip(*each, strict=True)])

    amplitude = result["amplitude"]
    assert amplitude["frequencies"] == list(range(1, 17))
    found = amplitude["arms"]["no SSG"]
    wanted = [a / b for a, b in zip(found["amplitude"], amplitude["reference"], strict=True)]
    assert found["ratio"]["value"] == pytest.approx(wanted)
    assert list(amplitude["against_first"]) == ["SSG 0.6"]

    blur = result["blur"]["arms"]["no SSG"]
    assert result["blur"]["figure"] == "fd" and set(blur) == {"unblurred", "blurred"}
    assert blur["unblurred"]["values"][0] == pytest.approx(blur["blurred"]["values"][0])
    assert blur["unblurred"]["errors"] is None and "errors of the blur curve" in result["left_out"]

    residual, used = result["residual"]["arms"]["SSG 0.6"], result["saturation"]["arms"]["SSG 0.6"]
    assert set(residual) == set(STATISTICS) and len(residual["energy"]["value"]) == 3
    assert used["beta"] == [0.6] * 3 and set(used["half"]) == {"settled", "reached"}
    assert result["arms"]["SSG 0.6"]["seconds"]["images"] > 0

    tables = {name: list(csv.DictReader(io.StringIO(text))) for name, text in csv_files(result).items()}
    assert set(tables) == {
        f"{n}.csv" for n in ("latent", "amplitude", "detail", "blur", "residual", "saturation")
    }
    assert len(tables["latent.csv"]) == 2 * 3 * len(result["latent"]["bins"])
    assert len(tables["amplitude.csv"]) == 2 * 16 + 16
    row = next(r for r in tables["saturation.csv"] if r["used"] == "True" and r["arm"] == "SSG 0.6")
    assert float(row["beta"]) == 0.6 and float(row["kl"]) == pytest.approx(used["used"]["kl"]["value"][0])

    lines = "\n".join(summary_lines(finite(result)))
    assert "mean |ln amplitude ratio|" in lines and "SSG 0.6 minus no SSG, step 4" in lines
    assert "without errors of the blur curve: need more than 192 pictures" in lines

    names = write_plots(finite(result), tmp_path)
    assert names == [f"{n}.svg" for n in ("latent", "amplitude", "blur", "residual", "saturation")]
    for name in names:
        text = (tmp_path / name).read_text()
        assert text.startswith("<?xml") and (tmp_path / name).with_suffix(".png").stat().st_size > 10_000
    again = tmp_path / "again"
    again.mkdir()
    latent_plot(json.loads(json.dumps(finite(result))), again / "latent.svg")  # from what is stored
    assert (again / "latent.svg").read_bytes() == (tmp_path / "latent.svg").read_bytes()


@pytest.mark.slow
def test_without_real_pictures(pipe: VARPipeline, tmp_path: Path):
    arms = drawn(pipe, tmp_path / "work", rule=AmplitudeRule("dct"))
    result = finite(spectrum_result(arms, None, replicates=20))
    assert result["blur"] is None and "ratio" not in result["amplitude"]["arms"]["no SSG"]
    assert result["left_out"]["a metric of blurred pictures"] == "no reference was given"
    assert "blur.csv" not in csv_files(result) and result["amplitude"]["frequencies"][-1] == 15
    assert "pictures beside real ones" not in "\n".join(summary_lines(result))
    alone = finite(spectrum_result(arms[:1], None, replicates=20))
    assert alone["latent"]["differences"] == {} and len(write_plots(alone, tmp_path)) == 5


def test_plans_that_show_nothing(pipe: VARPipeline):
    with pytest.raises(InvalidArgumentError, match="at least 2 pictures of something"):
        plan_of(pipe, count=1)
    with pytest.raises(InvalidArgumentError, match="of 0 subjects"):
        Plan(pipe, [], 10)


# ---------------------------------------------------------------------------- spectra that are stored


def test_the_package_knows_the_spectra_of_its_reference():
    stored = stored_spectra(open_reference("cifar10-test").sha256)
    assert set(stored) == {*(rule.name for rule in RULES), DETAIL}
    assert all(p.count == 10_000 for p in stored.values())
    amplitude, detail = stored["fft-hann"].mean, stored[DETAIL].mean
    assert amplitude.shape == (17,) and (amplitude[2:].diff() < 0).all()  # natural pictures
    assert -1.6 < math.log(float(amplitude[12] / amplitude[2])) / math.log(6) < -0.8
    assert detail.tolist() == pytest.approx([0.0941, 0.2779, 0.4627], abs=1e-4)
    assert stored_spectra("0" * 64) == {}


def test_stored_spectra_are_those_of_the_pictures(
    pictures: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    images = CalledImages(lambda rows: pictures[rows], 260, (32, 32))
    package = tmp_path / "package"
    (package / "references").mkdir(parents=True)
    write_spectra(package / "references" / "made-spectra.npz", images, "abc")
    monkeypatch.setattr("nextscale.evaluation.stored_spectra.resources.files", lambda _: package)
    stored, (amplitude, detail) = stored_spectra("abc"), measure_pictures(images, AmplitudeRule("dct"))
    for found, wanted in ((stored["dct-none"], amplitude), (stored[DETAIL], detail)):
        torch.testing.assert_close(found.mean, wanted.mean)
        assert found.gaussian is not None and wanted.rows is not None
        torch.testing.assert_close(found.gaussian.covariance, wanted.rows.T.cov())
