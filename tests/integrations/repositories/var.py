"""A small model with the call structure of FoundationVision/VAR, written for these tests."""

import torch
from torch import nn


def sample_with_top_k_top_p_(logits, top_k=0, top_p=0.0, rng=None, num_samples=1):
    if top_k > 0:
        logits.masked_fill_(logits < logits.topk(top_k, dim=-1).values.amin(-1, keepdim=True), -torch.inf)
    if top_p > 0:
        ordered, order = logits.sort(dim=-1)
        drop = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
        drop[..., -1:] = False
        logits.masked_fill_(drop.scatter(-1, order, drop), -torch.inf)
    rows = logits.float().softmax(-1).flatten(0, 1)
    drawn = torch.multinomial(rows, num_samples, replacement=True, generator=rng)
    return drawn.view(*logits.shape[:2], num_samples)


class VAR(nn.Module):
    def __init__(self, patch_nums=(1, 2, 3, 5), num_classes=10, V=13, C=6, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.patch_nums = patch_nums
        self.num_classes = num_classes
        self.rng = torch.Generator()
        self.class_emb = nn.Embedding(num_classes + 1, C)
        self.codes = nn.Embedding(V, C)
        self.head = nn.Linear(C, V)
        self.dtype = torch.float32
        self.caching = False

    def get_logits(self, features, condition):
        return 3 * self.head(features + condition[:, None]).to(self.dtype)

    @torch.no_grad()
    def autoregressive_infer_cfg(
        self, B, label_B, g_seed=None, cfg=1.5, top_k=0, top_p=0.0, more_smooth=False, fail_at=None
    ):
        rng = None if g_seed is None else self.rng.manual_seed(g_seed)
        nobody = torch.full_like(label_B, self.num_classes)
        condition = self.class_emb(torch.cat([label_B, nobody]))
        final = self.patch_nums[-1]
        f_hat = torch.zeros(B, self.codes.embedding_dim, final, final)
        self.caching = True
        for si, pn in enumerate(self.patch_nums):
            ratio = si / max(len(self.patch_nums) - 1, 1)
            features = nn.functional.adaptive_avg_pool2d(f_hat, pn).flatten(2).transpose(1, 2)
            both = self.get_logits(features.repeat(2, 1, 1), condition)
            t = cfg * ratio
            logits_BlV = (1 + t) * both[:B] - t * both[B:]
            if si == fail_at:
                raise RuntimeError("out of memory")
            idx_Bl = sample_with_top_k_top_p_(logits_BlV, rng=rng, top_k=top_k, top_p=top_p)[:, :, 0]
            h = self.codes(idx_Bl)
            if more_smooth:
                noise = -torch.empty_like(logits_BlV).exponential_(generator=rng).log()
                h = (logits_BlV.mul(1 + ratio) + noise).float().softmax(-1) @ self.codes.weight
            h = h.transpose(1, 2).reshape(B, -1, pn, pn)
            f_hat = f_hat + nn.functional.interpolate(h, size=(final, final), mode="bicubic")
        self.caching = False
        return f_hat
