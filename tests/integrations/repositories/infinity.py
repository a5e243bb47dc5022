"""A small model with the call structure of FoundationVision/Infinity, written for these tests."""

import torch
from torch import nn


def sample_with_top_k_top_p_also_inplace_modifying_logits_(
    logits, top_k=0, top_p=0.0, rng=None, num_samples=1
):
    if top_p > 0:
        ordered, order = logits.sort(dim=-1)
        drop = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
        drop[..., -1:] = False
        logits.masked_fill_(drop.scatter(-1, order, drop), -torch.inf)
    rows = logits.softmax(-1).flatten(0, 1)
    drawn = torch.multinomial(rows, num_samples, replacement=True, generator=rng)
    return drawn.view(*logits.shape[:2], num_samples)


class Infinity(nn.Module):
    def __init__(self, bits=3, apply_spatial_patchify=False, C=6, depth=3, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.apply_spatial_patchify = apply_spatial_patchify
        self.bits = bits
        self.d_vae = 4 * bits if apply_spatial_patchify else bits
        self.rng = torch.Generator()
        self.word_embed = nn.Linear(self.d_vae, C)
        self.unregistered_blocks = [nn.Linear(C, C) for _ in range(depth)]
        self.head = nn.Linear(C, 2 * self.d_vae)

    def get_logits(self, hidden, condition):
        return self.head(hidden + condition[:, None]).float()

    @torch.no_grad()
    def autoregressive_infer_cfg(
        self,
        scale_schedule=None,
        label_B_or_BLT=None,
        B=1,
        g_seed=None,
        cfg_list=(),
        tau_list=(),
        top_k=0,
        top_p=0.0,
        cfg_insertion_layer=(0,),
        trunk_scale=1000,
        gt_leak=0,
        gt_ls_Bl=None,
    ):
        rng = None if g_seed is None else self.rng.manual_seed(g_seed)
        factor = 2 if self.apply_spatial_patchify else 1
        vae_scale_schedule = [(pt, factor * ph, factor * pw) for pt, ph, pw in scale_schedule]
        condition = torch.cat([label_B_or_BLT, torch.zeros_like(label_B_or_BLT)])
        layers = [len(self.unregistered_blocks) + n for n in cfg_insertion_layer if n < 0]
        last_stage, summed_codes = condition[:, None], 0
        for si, (_, height, width) in enumerate(scale_schedule):
            if si >= trunk_scale:
                break
            cfg = cfg_list[si]
            for layer, block in enumerate(self.unregistered_blocks):
                last_stage = torch.tanh(block(last_stage) + condition[:, None])
                if cfg != 1 and layer in layers:
                    mixed = cfg * last_stage[:B] + (1 - cfg) * last_stage[B:]
                    last_stage = torch.cat([mixed, mixed])
            if cfg != 1 and 0 in cfg_insertion_layer:
                both = self.get_logits(last_stage, condition).mul(1 / tau_list[si])
                logits_BlV = cfg * both[:B] + (1 - cfg) * both[B:]
            else:
                logits_BlV = self.get_logits(last_stage[:B], condition[:B]).mul(1 / tau_list[si])
            logits_BlV = logits_BlV.reshape(B, -1, 2)
            idx = sample_with_top_k_top_p_also_inplace_modifying_logits_(
                logits_BlV, rng=rng, top_k=top_k, top_p=top_p, num_samples=1
            )[:, :, 0]
            idx = idx.reshape(B, height, width, -1).permute(0, 3, 1, 2).float()
            if self.apply_spatial_patchify:
                idx = nn.functional.pixel_shuffle(idx, 2)
            if si < gt_leak:
                idx = gt_ls_Bl[si]
            size = vae_scale_schedule[-1][1:]
            summed_codes = summed_codes + nn.functional.interpolate(2 * idx - 1, size=size)
            if si + 1 < len(scale_schedule):
                following = nn.functional.adaptive_avg_pool2d(summed_codes, vae_scale_schedule[si + 1][1:])
                if self.apply_spatial_patchify:
                    following = nn.functional.pixel_unshuffle(following, 2)
                last_stage = self.word_embed(following.flatten(2).transpose(1, 2)).repeat(2, 1, 1)
        return summed_codes
