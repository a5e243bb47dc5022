"""The residual head: every golden tensor of schedule, network, steps and loss, and what else must hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from nextscale.errors import InvalidArgumentError
from nextscale.families.hart.diffusion import (
    LATENT_SCALE,
    TRAIN_STEPS,
    DiffusionProcess,
    ResidualDiffusion,
    cosine_betas,
    kept_steps,
)
from nextscale.generation.noise import Noise
from nextscale.weights.files import read_weights

CASES = ["tiny_a", "tiny_b"]
ALLOWED, ALLOWED_RUNS = 1e-4, 5e-4  # absolute, as the README of the cases suggests
TABLES = ["alphas_cumprod", "betas", "posterior_log_variance_clipped", "posterior_mean_coef1"]
TABLES += ["posterior_mean_coef2", "posterior_variance"]
LARGE_TABLES = ["sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"]  # up to 20 000
PREFIX = "diffloss."


def near(found: Tensor, wanted: Tensor, allowed: float = ALLOWED) -> None:
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=0, atol=allowed)


@pytest.fixture(scope="module")
def head(case: Callable) -> Callable[[str], ResidualDiffusion]:
    """The head of a golden case."""

    @cache
    def load(name: str) -> ResidualDiffusion:
        config = case(name).config
        sizes, ours = config["transformer"], config["diffusion"]
        made = ResidualDiffusion(
            sizes["latent_channels"],
            sizes["embed_dim"],
            ours["diff_width"],
            ours["diff_depth"],
            ours["num_sampling_steps"],
        )
        tensors = read_weights(case(name).transformer)
        made.load_state_dict({k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)})
        return made.eval().requires_grad_(False)

    return load


# ------------------------------------------------------------------ golden cases


@pytest.mark.parametrize("name", CASES)
def test_schedules(name: str, case: Callable, head: Callable):
    io, made = case(name).io, head(name)
    rows = io["schedule.train.rows"].numpy()
    for kind, process, at in (
        ("gen", made.process, slice(None)),
        ("train", made.training_process, rows),
    ):
        assert process.timesteps.tolist() == io[f"schedule.{kind}.timesteps"].tolist()
        for table in TABLES:
            found, wanted = getattr(process, table), io[f"schedule.{kind}.{table}"].numpy()
            assert found.dtype == np.float64
            np.testing.assert_allclose(found[at], wanted, rtol=0, atol=1e-12)
        for table in LARGE_TABLES:
            found, wanted = getattr(process, table), io[f"schedule.{kind}.{table}"].numpy()
            np.testing.assert_allclose(found[at], wanted, rtol=1e-9, atol=0)
    assert case(name).config["diffusion"]["timesteps"] == made.process.timesteps.tolist()
    assert case(name).config["diffusion"]["latent_scale"] == LATENT_SCALE


@pytest.mark.parametrize("name", CASES)
def test_network(name: str, case: Callable, head: Callable):
    io, made = case(name).io, head(name)
    x, t, condition = io["net.x"], io["net.t"], io["net.cond"]
    near(made.net.time_embed(t), io["net.time_embedding"])
    near(made.net(x, t, condition), io["net.out"])
    guided = made.predict(x[: len(x) // 2], t, condition, io["net.cfg_scale"].item())
    wanted, z = io["net.cfg_out"], made.target_channels
    near(guided, wanted[: len(guided)])
    # The other half, which we do not follow, has the same noise prediction.
    near(guided[:, :z], wanted[len(guided) :, :z])


@pytest.mark.parametrize("name", CASES)
def test_one_reverse_step_at_mixed_indices(name: str, case: Callable, head: Callable):
    io, made = case(name).io, head(name)
    index = io["pstep.index"]
    out = made.net(io["net.x"], torch.from_numpy(made.process.timesteps)[index], io["net.cond"])
    step = made.reverse_step(io["net.x"], out, index, io["pstep.noise"], io["pstep.temperature"].item())
    near(step.x0, io["pstep.pred_x0"])
    near(step.sample, io["pstep.sample"])


@pytest.mark.parametrize("name", CASES)
def test_loss(name: str, case: Callable, head: Callable):
    io, made = case(name).io, head(name)
    loss = made.loss(io["loss.target"], io["net.cond"], io["net.t"], io["loss.noise"])
    for part in ("mse", "vb", "total"):
        near(getattr(loss, part), io[f"loss.{part}"])


@pytest.mark.parametrize("name", CASES)
def test_sampling_without_guidance(name: str, case: Callable, head: Callable):
    io = case(name).io
    noise = torch.cat([io["uncfg.noise_init"][None], io["uncfg.noise_steps"][:-1]])
    found = head(name).sample(io["net.cond"], None, noise, io["uncfg.temperature"].item())
    near(found, io["uncfg.result"])


def released_run(io: dict[str, Tensor]) -> tuple[Tensor, float, Tensor]:
    """Condition, guidance and noise of a case's last scale; of the noise the conditional half."""
    rows = len(io["diff.z"]) // 2
    noise = torch.cat([io["diff.noise_init"][None], io["diff.noise_steps"][:-1, :rows]])
    return io["diff.z"], io["diff.cfg"].item(), noise


@pytest.mark.parametrize("name", CASES)
def test_guided_sampling(name: str, case: Callable, head: Callable):
    io, made = case(name).io, head(name)
    condition, guidance, noise = released_run(io)
    rows, steps = noise.shape[1], made.process.num_steps
    assert io["diff.step_index"].tolist() == list(reversed(range(steps)))
    assert io["diff.model_timestep"].tolist() == made.process.timesteps[::-1].tolist()
    x = noise[0]
    for i, step in enumerate(made.trajectory(condition, guidance, noise)):
        if i in (0, steps - 1):
            out = made.predict(x, io["diff.model_timestep"][i], condition, guidance)
            near(out, io["diff.model_out_first" if i == 0 else "diff.model_out_last"][:rows], ALLOWED_RUNS)
        near(step.x0, io["diff.step_pred_x0"][i, :rows], ALLOWED_RUNS)
        near(step.sample, io["diff.step_sample"][i, :rows], ALLOWED_RUNS)
        x = step.sample
    near(made.sample(condition, guidance, noise), io["diff.result"][:rows], ALLOWED_RUNS)


# ------------------------------------------------------------------ which steps are kept


@pytest.mark.parametrize(
    ("sections", "kept"),
    [
        ("8", [0, 143, 285, 428, 571, 714, 856, 999]),
        ("2", [0, 999]),
        ("4,4", [0, 166, 333, 499, 500, 666, 833, 999]),
        ("1,3", [0, 500, 750, 999]),  # 749.5 from the section's start, rounded to even
        ("2,2,2", [0, 333, 334, 666, 667, 999]),  # the first section has one step more
        ("ddim4", [0, 250, 500, 750]),
        ("ddim8", list(range(0, 1000, 125))),
        ("ddim7", list(range(0, 1000, 143))),
        ("ddim1000", list(range(1000))),
    ],
)
def test_kept_steps(sections: str, kept: list[int]):
    assert kept_steps(sections) == kept


@given(st.integers(2, TRAIN_STEPS))
def test_a_single_section_spans_all_steps(count: int):
    kept = kept_steps(str(count))
    assert len(kept) == len(set(kept)) == count
    assert (kept[0], kept[-1]) == (0, TRAIN_STEPS - 1)
    assert kept == sorted(kept)


@pytest.mark.parametrize(
    "sections", ["", "abc", "8.5", "-3", "0", "1", "1001", "600,2", "4,", "ddim", "ddim-4"]
)
def test_steps_that_cannot_be_kept(sections: str):
    with pytest.raises(InvalidArgumentError, match=r"num_sampling_steps .* got") as error:
        kept_steps(sections)
    assert repr(sections) in str(error.value)


@pytest.mark.parametrize("sections", ["ddim999", "ddim1", "ddim0", "ddim2000"])
def test_strides_that_do_not_exist(sections: str):
    with pytest.raises(InvalidArgumentError, match=rf"no whole stride .* got '{sections}'"):
        ResidualDiffusion(4, 8, 8, 1, sections)


# ------------------------------------------------------------------ the process


@given(st.integers(2, 40))
def test_the_posterior_is_consistent(count: int):
    """Noising x_0 to step k and stepping back must give what noising to step k - 1 gives."""
    process = DiffusionProcess.training().respaced(str(count))
    now, before = process.alphas_cumprod, np.append(1.0, process.alphas_cumprod[:-1])
    c1, c2 = process.posterior_mean_coef1, process.posterior_mean_coef2
    np.testing.assert_allclose(c1 + c2 * np.sqrt(now), np.sqrt(before), rtol=1e-9)
    np.testing.assert_allclose(c2**2 * (1 - now) + process.posterior_variance, 1 - before, atol=1e-12)
    full = DiffusionProcess.training().alphas_cumprod
    np.testing.assert_array_equal(now, full[process.timesteps])


def test_the_cosine_schedule():
    betas = cosine_betas()
    assert betas.shape == (1000,)
    assert betas.max() == 0.999
    shares = np.cumprod(1 - betas)
    expected = [math.cos(math.pi / 2 * (i / 1000 + 0.008) / 1.008) ** 2 for i in range(1, 999)]
    np.testing.assert_allclose(shares[:998], np.array(expected) / math.cos(math.pi / 2 * 0.008 / 1.008) ** 2)


# ------------------------------------------------------------------ sampling


def tiny(steps: str = "5", seed: int = 0) -> ResidualDiffusion:
    torch.manual_seed(seed)
    made = ResidualDiffusion(3, 6, 16, 2, steps).eval().requires_grad_(False)
    for p in made.parameters():
        p.mul_(2)  # so that conditions matter
    return made


def request(made: ResidualDiffusion, batch: int = 3, count: int = 7) -> tuple[Tensor, Tensor]:
    """Conditions for both branches ``(2 B, l, C)`` and noise."""
    condition = torch.randn(2 * batch, count, 6, generator=torch.Generator().manual_seed(1)) * 2
    return condition, made.draw_noise(Noise(range(10, 10 + batch)), 3, count)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.floats(0, 8), st.floats(0, 1.5))
def test_residuals_are_bounded(seed: int, guidance: float, temperature: float):
    made = tiny()
    condition = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(seed))
    noise = made.draw_noise(Noise([seed, seed + 1]), 3, 5)
    found = made.sample(condition, guidance, noise, temperature)
    assert found.shape == (2, 5, 3)
    assert found.abs().max() <= LATENT_SCALE * (1 + 1e-6)


def test_rows_do_not_see_each_other():
    """An image alone, and a part of its tokens, get what they get in the batch: in float64, since the last
    bits of products depend on the number of rows."""
    made = tiny().double()
    condition, noise = (x.double() for x in request(made))
    together = made.sample(condition, 2.5, noise)
    for i in range(3):
        alone = made.sample(condition[[i, 3 + i]], 2.5, noise[:, i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-12)
    some = [6, 2]
    torch.testing.assert_close(
        made.sample(condition[:, some], 2.5, noise[:, :, some]), together[:, some], rtol=0, atol=1e-12
    )
    flat = made.sample(condition.flatten(0, 1), 2.5, noise.flatten(1, 2))
    torch.testing.assert_close(flat, together.flatten(0, 1), rtol=0, atol=1e-12)


def test_an_images_noise_is_its_own():
    made = tiny()
    together = made.draw_noise(Noise([5, 6]), 3, 4)
    assert together.shape == (5, 2, 4, 3)
    assert torch.equal(together[:, 1:], made.draw_noise(Noise([6]), 3, 4))
    assert not torch.equal(together[:, :1], together[:, 1:])


def test_guidance_of_zero_and_of_exactly_one():
    made = tiny()
    condition, noise = request(made)
    plain = made.sample(condition[:3], None, noise)
    torch.testing.assert_close(made.sample(condition, 0.0, noise), plain, rtol=0, atol=1e-5)
    assert torch.equal(made.sample(condition, 1.0, noise), plain)
    close_to_one = made.sample(condition, 1.0 + 1e-6, noise)  # combined, with a weight of two
    assert float((close_to_one - plain).abs().max()) > 0.01


def test_guidance_without_a_difference_changes_nothing():
    made = tiny()
    condition, noise = request(made)
    same = condition[:3].repeat(2, 1, 1)
    torch.testing.assert_close(
        made.sample(same, 3.0, noise), made.sample(same, 0.0, noise), rtol=0, atol=1e-4
    )


def test_noise_and_temperature():
    made = tiny()
    condition, noise = request(made)
    other = noise.clone()
    other[1:] = 0
    assert torch.equal(made.sample(condition, 2.0, noise, 0.0), made.sample(condition, 2.0, other))
    for i in range(5):  # every one of them is used
        changed = noise.clone()
        changed[i] += 1
        assert not torch.equal(made.sample(condition, 2.0, changed), made.sample(condition, 2.0, noise))


def test_inputs_are_left_alone():
    made = tiny()
    condition, noise = request(made)
    copies = condition.clone(), noise.clone()
    made.sample(condition, 2.0, noise)
    assert torch.equal(condition, copies[0])
    assert torch.equal(noise, copies[1])


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_noise_that_does_not_fit(guidance: float | None):
    made = tiny()
    condition, noise = request(made)
    condition = condition if guidance else condition[:3]
    for wrong in (noise[:4], noise[:, :2], noise[..., :2], noise[:, :, :5]):
        with pytest.raises(InvalidArgumentError, match=r"take noise \(5, 3, 7, 3\), got"):
            made.sample(condition, guidance, wrong)


def test_half_precision_weights():
    made = tiny().to(torch.bfloat16)
    condition, noise = request(made)
    found = made.sample(condition.to(torch.bfloat16), 1.5, noise)
    assert found.dtype == torch.float32
    assert bool(found.isfinite().all())


def test_nothing_is_stored_but_parameters():
    with torch.device("meta"):
        made = ResidualDiffusion(32, 1536, 1024, 6)
    assert set(made.state_dict()) == {name for name, _ in made.named_parameters()}
    assert sum(p.numel() for p in made.parameters()) == 36_585_536
    assert made.process.timesteps.tolist() == kept_steps("8")  # its tables are real all the same


class GaussianData(torch.nn.Module):
    """The best noise prediction there is for data of mean ``condition`` and a standard deviation."""

    def __init__(self, process: DiffusionProcess, deviation: float) -> None:
        super().__init__()
        self.shares = torch.from_numpy(process.alphas_cumprod)
        self.deviation = deviation

    def forward(self, x: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        share = self.shares[timesteps]
        spread = share * self.deviation**2 + 1 - share
        eps = (1 - share).sqrt() * (x.double() - share.sqrt() * condition) / spread
        return torch.cat([eps, torch.zeros_like(eps)], -1).float()


@pytest.mark.parametrize("deviation", [0.0, 0.2])
def test_many_steps_draw_from_the_distribution_of_the_data(deviation: float):
    made = ResidualDiffusion(2, 2, 8, 1, "200")
    made.net = GaussianData(made.training_process, deviation)
    mean = torch.tensor([0.4, -0.1])
    noise = torch.randn(200, 3000, 2, generator=torch.Generator().manual_seed(0))
    drawn = made.sample(mean.expand(3000, 2), None, noise) / LATENT_SCALE
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.std(0), torch.full((2,), deviation), rtol=0, atol=0.02)


# ------------------------------------------------------------------ the loss, by other means


def gaussians(
    made: ResidualDiffusion, target: Tensor, condition: Tensor, t: Tensor, noise: Tensor
) -> tuple[Normal, Normal]:
    """The true and the predicted distribution of the previous step, in float64."""
    process = made.training_process
    at = {
        n: torch.from_numpy(getattr(process, n))[t][:, None]
        for n in [*TABLES, "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"]
    }
    start = target.double() / 0.6
    x = at["alphas_cumprod"].sqrt() * start + (1 - at["alphas_cumprod"]).sqrt() * noise
    eps, v = made.net(x.float(), t, condition).double().chunk(2, dim=-1)
    low, high = at["posterior_log_variance_clipped"], at["betas"].log()
    logvar = low + (v + 1) / 2 * (high - low)
    predicted = at["sqrt_recip_alphas_cumprod"] * x - at["sqrt_recipm1_alphas_cumprod"] * eps
    c1, c2 = at["posterior_mean_coef1"], at["posterior_mean_coef2"]
    true = Normal(c1 * start + c2 * x, (low / 2).exp())
    return true, Normal(c1 * predicted + c2 * x, (logvar / 2).exp())


def rows(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    target = torch.randn(count, 3, generator=g) * 0.4
    return target, torch.randn(count, 6, generator=g), torch.randn(count, 3, generator=g)


def test_the_variational_term_is_a_divergence():
    made, (target, condition, noise) = tiny(), rows(40, 3)
    t = torch.arange(1, 961, 24)
    true, predicted = gaussians(made, target, condition, t, noise)
    expected = kl_divergence(true, predicted).mean(1) / math.log(2)
    found = made.loss(target, condition, t, noise)
    torch.testing.assert_close(found.vb.double(), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.total, found.mse + found.vb)


def test_at_the_first_step_it_is_the_likelihood_of_a_bin():
    made, (target, condition, noise) = tiny(), rows(60, 4)
    target[0] = torch.tensor([0.7, -0.7, 0.6])  # the open-ended bins
    t = torch.zeros(60, dtype=torch.long)
    _, predicted = gaussians(made, target, condition, t, noise)
    x = target.double() / 0.6
    below = torch.where(x < -0.999, torch.zeros(()), predicted.cdf(x - 1 / 255))
    above = torch.where(x > 0.999, torch.ones(()), predicted.cdf(x + 1 / 255))
    likely = (above - below).amin(1) > 1e-2  # the tanh formula is good in the middle only
    assert likely.sum() >= 5
    expected = -(above - below).log2().mean(1)
    found = made.loss(target, condition, t, noise).vb.double()
    torch.testing.assert_close(found[likely], expected[likely], rtol=0.02, atol=0.02)
    assert found.max() <= -math.log2(1e-12) + 1e-3


def test_each_term_trains_its_own_output():
    made, (target, condition, noise) = tiny(), rows(8, 5)
    weight = made.net.final_layer.linear.weight.requires_grad_(True)
    loss = made.loss(target, condition, torch.arange(8) * 100, noise)
    (of_vb,) = torch.autograd.grad(loss.vb.sum(), weight, retain_graph=True)
    (of_mse,) = torch.autograd.grad(loss.mse.sum(), weight)
    assert bool((of_vb[:3] == 0).all()) and bool(of_vb[3:].any())
    assert bool((of_mse[3:] == 0).all()) and bool(of_mse[:3].any())
