"""A small model with the call structure of mit-han-lab/hart, written for these tests."""

import math

import torch
from torch import nn


def sample_with_top_k_top_p_(logits, top_k=0, top_p=0.0, rng=None, num_samples=1):
    kept = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values.amin(-1, keepdim=True)
    logits.masked_fill_(logits < kept, -torch.inf)
    rows = logits.float().softmax(-1).flatten(0, 1)
    drawn = torch.multinomial(rows, num_samples, replacement=True, generator=rng)
    return drawn.view(*logits.shape[:2], num_samples)


class HARTForT2I(nn.Module):
    def __init__(self, patch_nums=(1, 2, 3, 4, 6), context_token=5, V=17, C=6, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.patch_nums = patch_nums
        self.context_token = context_token
        self.rng = torch.Generator()
        self.codes = nn.Embedding(V, C)
        self.head = nn.Linear(C, V)
        self.masks = []  # what every masked draw predicts, for the tests to look at

    def get_logits(self, features, context):
        return 3 * self.head(features + context[:, -1:]).float()

    @torch.no_grad()
    def autoregressive_infer_cfg(
        self, B, label_B, g_seed=None, cfg=1.5, top_k=0, top_p=0.0, more_smooth=False, num_maskgit_iters=1
    ):
        assert label_B.shape[1] == self.context_token
        rng = None if g_seed is None else self.rng.manual_seed(g_seed)
        context = torch.cat([label_B, torch.zeros_like(label_B)])
        final = self.patch_nums[-1]
        f_hat = torch.zeros(B, self.codes.embedding_dim, final, final)
        next_token_map = context
        for si, pn in enumerate(self.patch_nums[:-1]):
            ratio = si / (len(self.patch_nums) - 1)
            both = self.get_logits(next_token_map, context)
            t = cfg * ratio
            logits_BlV = (1 + t) * both[:B] - t * both[B:]
            if si == 0:
                logits_BlV = logits_BlV[:, [-1], :]
            idx_Bl = sample_with_top_k_top_p_(logits_BlV, rng=rng, top_k=11, top_p=top_p)[:, :, 0]
            h = self.codes(idx_Bl)
            if more_smooth:
                noise = -torch.empty_like(logits_BlV).exponential_(generator=rng).log()
                h = (logits_BlV.mul(1 + ratio) + noise).softmax(-1) @ self.codes.weight
            h = h.transpose(1, 2).reshape(B, -1, pn, pn)
            f_hat = f_hat + nn.functional.interpolate(h, size=(final, final), mode="bicubic")
            following = nn.functional.adaptive_avg_pool2d(f_hat, self.patch_nums[si + 1])
            next_token_map = following.flatten(2).transpose(1, 2).repeat(2, 1, 1)

        self.masks.clear()
        area = final**2
        mask = torch.ones(B, area)
        tokens = torch.zeros(B, area, self.codes.embedding_dim)
        order = torch.stack([torch.randperm(area) for _ in range(B)])
        for step in range(num_maskgit_iters):
            share = math.cos(math.pi / 2 * (step + 1) / num_maskgit_iters)
            left = max(1, min(int(mask[0].sum()) - 1, int(area * share)))
            mask_next = torch.zeros(B, area).scatter(1, order[:, :left], 1.0).bool()
            if step == num_maskgit_iters - 1:
                mask_to_pred = mask.bool()
            else:
                mask_to_pred = torch.logical_xor(mask.bool(), mask_next)
            mask = mask_next
            self.masks.append(mask_to_pred)
            cur_mask = torch.cat([mask_to_pred, mask_to_pred]).nonzero(as_tuple=True)
            both = self.get_logits(next_token_map[cur_mask].reshape(2 * B, -1, f_hat.shape[1]), context)
            logits_BlV = (1 + t) * both[:B] - t * both[B:]
            idx_Bl = sample_with_top_k_top_p_(logits_BlV, rng=rng, top_k=11, top_p=top_p)[:, :, 0]
            tokens[mask_to_pred] = self.codes(idx_Bl).flatten(0, 1)
        return f_hat + tokens.transpose(1, 2).reshape(f_hat.shape)

    def forward(self, context, following):
        logits = self.get_logits(following, context)
        return sample_with_top_k_top_p_(logits.detach().clone(), rng=self.rng, top_k=11), logits
