"""Radial spectra: the golden cases, exact bins, transforms beside scipy's, ratios whose answer is known."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import fft
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.resampling import Profiles
from nextscale.evaluation.spectra import (
    AmplitudeRule,
    amplitude_ratios,
    change_summary,
    cosine_transform,
    detail_ratios,
    log_profile,
    magnitudes,
    nyquist,
    profile_changes,
    radial_bins,
    ratio_summary,
    ring_means,
    spectral_slope,
)


def pictures_of(tensors: dict[str, Tensor], name: str) -> Tensor:
    return tensors[name].permute(0, 3, 1, 2)


def close(found: Tensor, expected: Any, section: dict[str, Any], atol: float = 1e-12) -> None:
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=section["rtol"], atol=atol)


def test_golden_latent(expected: dict[str, Any], tensors: dict[str, Tensor]):
    section, case = expected["spectral"], expected["spectral"]["latent"]
    profiles = torch.stack([log_profile(tensors[f"latent_{k}"]) for k in ("coarse", "fine")], 1)
    changes = profile_changes(profiles)[:, 0]
    assert profiles.shape[2] == case["bins"]
    close(profiles[:, 0].mean(0), case["coarse_mean"], section)
    close(changes.mean(0), case["delta_mean"], section)
    close(changes.std(0), case["delta_std_ddof1"], section)
    assert nyquist((10, 10), (16, 16)) == case["nyquist_index"]["scale_side_10"]
    assert nyquist((13, 13), (16, 16)) == case["nyquist_index"]["scale_side_13"]


@pytest.mark.parametrize("window", ["hann", "none"])
def test_golden_pixels(window: Any, expected: dict[str, Any], tensors: dict[str, Tensor]):
    section, case = expected["spectral"], expected["spectral"]["pixel"][window]
    real, made = (AmplitudeRule(window=window)(pictures_of(tensors, f"image_{k}")) for k in ("ref", "gen"))
    close(real.mean(0), case["amplitude_ref"], section)
    close((made.mean(0) / real.mean(0))[1:], case["ratio_from_bin_1"], section)
    ((ratios,), _) = amplitude_ratios([made], Profiles(real), 32, replicates=20)
    close(ratios.ratio.value, case["ratio_from_bin_1"], section)


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from(["fft", "dct"]))
def test_bins_are_exact(height: int, width: int, transform: Any):
    bins, short = radial_bins(height, width, transform), min(height, width)
    for i in range(height):
        for j in range(width):
            if transform == "fft":
                sides = zip((i, j), (height, width), strict=True)
                u, v = (Fraction(k if k < (n + 1) // 2 else k - n, n) for k, n in sides)
            else:
                u, v = Fraction(i, 2 * height), Fraction(j, 2 * width)
            square = (u * u + v * v) * short * short
            assert int(bins[i, j]) ** 2 <= square < (int(bins[i, j]) + 1) ** 2


def test_bins_of_the_usual_grids():
    assert radial_bins(16, 16).max() == 11
    assert radial_bins(16, 16).flatten().bincount()[0] == 1
    # The corner of a wide grid is at half its pixels, whatever its length.
    assert radial_bins(8, 32)[4, 16] == math.isqrt(32)
    with pytest.raises(InvalidArgumentError, match="unknown transform 'dft'"):
        radial_bins(4, 4, "dft")  # type: ignore[arg-type]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_the_cosine_transform_is_scipys_and_keeps_energy(height: int, width: int, seed: int):
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, height, width)))
    found = cosine_transform(cosine_transform(x, 1), -1)
    torch.testing.assert_close(found, torch.from_numpy(fft.dctn(x.numpy(), axes=(1, 2), norm="ortho")))
    torch.testing.assert_close(found.abs(), magnitudes(x, "dct"))
    torch.testing.assert_close(found.square().sum(), x.square().sum())


def test_ring_means_are_plain_averages():
    values, bins = torch.rand(3, 6, 5), radial_bins(6, 5)
    found = ring_means(values, bins)
    for r in range(found.shape[-1]):
        torch.testing.assert_close(found[:, r], values[:, bins == r].mean(1))


@given(st.integers(1, 7), st.integers(0, 5), st.sampled_from([0.0, 0.3, 1.1]))
def test_a_wave_is_in_its_own_bin(u: int, v: int, phase: float):
    """A single frequency of a latent raises its own ring and no other."""
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    noise = 1e-3 * torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    wave = torch.cos(2 * math.pi * (u * y + v * x) / 16 + phase)
    (change,) = profile_changes(torch.stack([log_profile(noise), log_profile(noise + wave)], 1))[:, 0]
    assert change.argmax() == math.isqrt(u * u + v * v)


def test_changes_above_the_nyquist_frequency_show_there():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(6, 3, 16, 16, dtype=torch.float64, generator=generator)
    spectrum = torch.fft.fft2(torch.randn(6, 3, 16, 16, dtype=torch.float64, generator=generator))
    fine = coarse + 5 * torch.fft.ifft2(spectrum * (radial_bins(16, 16) >= 5)).real
    changes = profile_changes(torch.stack([log_profile(coarse), log_profile(fine)], 1))
    found = change_summary(changes, [5.0])
    assert found["below"].shape == (6, 1) and found["below"].abs().max() < 1e-6
    assert found["above"].min() > 1
    torch.testing.assert_close(found["contrast"], found["above"] - found["below"])
    # Frequency 6.5 has its bin 6 below.
    shifted = change_summary(changes, [6.5])["below"]
    assert (shifted > found["below"]).all()
    with pytest.raises(InvalidArgumentError, match="do not fit the Nyquist frequencies"):
        change_summary(changes, [5.0, 6.0])


@pytest.mark.parametrize(
    "rule", [AmplitudeRule(), AmplitudeRule(window="none"), AmplitudeRule("dct")], ids=str
)
def test_amplitudes_scale_with_contrast_and_ignore_brightness(rule: AmplitudeRule):
    generator = torch.Generator().manual_seed(0)
    faint = torch.randint(0, 60, (3, 3, 24, 20), dtype=torch.uint8, generator=generator)
    torch.testing.assert_close(rule(4 * faint), 4 * rule(faint))
    if rule.window == "none":  # under a window the mean leaves by way of bins 0 and 1
        torch.testing.assert_close(rule(faint + 100), rule(faint))
    assert rule(faint).shape == (3, rule.last_bin((24, 20)) + 1) == (3, 11 if rule.transform == "fft" else 10)


def test_rules_that_do_not_exist():
    with pytest.raises(InvalidArgumentError, match="unknown window 'kaiser'; known: hann, none"):
        AmplitudeRule(window="kaiser")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="the cosine transform needs no window"):
        AmplitudeRule("dct", "hann")
    assert AmplitudeRule().name == "fft-hann" and AmplitudeRule("dct").name == "dct-none"


@given(st.floats(-3, 0.5), st.floats(0.1, 10))
def test_slopes_and_summaries_of_power_laws(slope: float, factor: float):
    r = torch.arange(1, 129, dtype=torch.float64)
    amplitude = factor * r**slope
    assert float(spectral_slope(amplitude, 256)) == pytest.approx(slope, abs=1e-9)
    found = {k: float(v) for k, v in ratio_summary(amplitude.log() - (r**slope).log(), 256).items()}
    log = math.log(factor)
    assert found == pytest.approx({"distance": abs(log), "low": log, "high": log}, abs=1e-9)


def test_each_octave_counts_alike():
    log_ratio = torch.zeros(128, dtype=torch.float64)
    log_ratio[31:63] = 1  # 32 to 63 cycles, one octave of the 3.3 from 256 / 25 to 256 / 2.5
    assert float(ratio_summary(log_ratio, 256)["distance"]) == pytest.approx(1 / math.log2(10), rel=0.03)


def test_ratios_to_real_pictures_and_between_arms():
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(80, 17, dtype=torch.float64, generator=generator) + 0.5
    plain = torch.rand(60, 17, dtype=torch.float64, generator=generator) + 0.5
    guided = 1.3 * plain
    to_real, to_first = amplitude_ratios([plain, guided], Profiles(real), 32, replicates=100)
    torch.testing.assert_close(to_real[0].ratio.value, (plain.mean(0) / real.mean(0))[1:])
    assert all((r.ratio.low < r.ratio.value).all() and (r.ratio.value < r.ratio.high).all() for r in to_real)
    # The same pictures in both arms: what separates them is not blurred by what they have in common.
    assert len(to_first) == 1
    torch.testing.assert_close(to_first[0].ratio.low, torch.full((16,), 1.3, dtype=torch.float64))
    assert set(to_first[0].summary) == {"distance", "low", "high", "slope"}
    assert float(to_first[0].summary["slope"].value) == pytest.approx(0, abs=1e-12)
    assert amplitude_ratios([plain], None, 32, replicates=20) == ([], [])

    details = detail_ratios([plain[:, :3]], Profiles(real[:, :3]), replicates=50)
    torch.testing.assert_close(details[0].ratio.value, plain[:, :3].mean(0) / real[:, :3].mean(0))
    assert details[0].summary == {} and detail_ratios([plain], None) == []


def test_the_interval_of_a_ratio_contains_the_truth():
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for trial in range(150):
        made, real = (
            scale * (1 + torch.rand(n, 2, dtype=torch.float64, generator=generator))
            for n, scale in ((60, 0.8), (80, 1.0))
        )
        ((found,), _) = amplitude_ratios([made], Profiles(real), 4, replicates=150, seed=2 * trial)
        inside += float(found.ratio.low) <= 0.8 <= float(found.ratio.high)
    assert 134 <= inside <= 149  # 95 % of 150 is 142.5, and its standard deviation 2.7


def test_flat_pictures_have_no_ratios():
    with pytest.raises(InvalidArgumentError, match="some frequencies are missing"):
        amplitude_ratios([torch.zeros(4, 9)], Profiles(torch.ones(4, 9)), 16, replicates=10)
