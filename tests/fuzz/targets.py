"""What is fuzzed: files that people load from elsewhere, and how they are loaded."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.fuzz import damage

from nextscale.data.opening import open_pictures
from nextscale.evaluation.images import NpzImages
from nextscale.evaluation.samples import open_samples
from nextscale.families import load_pretrained, recognise
from nextscale.families.infinity.pipeline import InfinityPipeline
from nextscale.families.infinity.tokenizer import InfinityTokenizer, InfinityTokenizerConfig
from nextscale.families.infinity.transformer import InfinityTransformer, InfinityTransformerConfig
from nextscale.families.var.pipeline import VARPipeline
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.families.words import WordEncoder
from nextscale.sampling.drawing import RunPictures, settle_group
from nextscale.sampling.plan import RunPlan, read_manifest, write_manifest
from nextscale.sampling.reading import verify
from nextscale.sampling.worker import Worker
from nextscale.training.transformer import init_transformer
from nextscale.weights.official import read_official


@dataclass(frozen=True)
class Target:
    """Files in a folder, which of them are spoilt and how, and what reads them."""

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], object]
    spoilt: Sequence[tuple[str, Sequence[damage.Damage]]]

    def case(self, seed: int, pristine: Path, folder: Path) -> str:
        """Copy the files and spoil one of them; what was done, in words."""
        chance = random.Random(f"{self.name} {seed}")
        shutil.copytree(pristine, folder)
        name, ways = chance.choice(list(self.spoilt))
        way = chance.choice(list(ways))
        way(chance, folder / name)
        return f"{self.name}: {way.__name__} of {name}, seed {seed}"


def var(ch: int = 4) -> VARPipeline:
    torch.manual_seed(0)
    shared = {"vocab_size": 16, "z_channels": 4, "patch_nums": (1, 2, 3, 4)}
    transformer = VARTransformer(
        VARTransformerConfig(**shared, num_classes=3, depth=2, embed_dim=16, num_heads=2)
    )
    tokenizer = VARTokenizer(
        VARTokenizerConfig(**shared, ch=ch, ch_mult=(1, 1, 1, 1, 1), num_res_blocks=1, norm_groups=ch)
    )
    init_transformer(transformer)
    return VARPipeline(transformer.eval(), tokenizer.eval(), class_names=("a", "b", "c"), name="tiny")


def infinity() -> InfinityPipeline:
    torch.manual_seed(0)
    sizes = {"depth": 1, "embed_dim": 16, "num_heads": 2, "ffn_dim": 32, "text_dim": 8, "pool_heads": 2}
    transformer = InfinityTransformer(InfinityTransformerConfig(bits=4, text_length=16, **sizes))
    config = InfinityTokenizerConfig(
        bits=4, ch=24, encoder_ch_mult=(1, 1), decoder_ch_mult=(1, 1), num_res_blocks=1, patch_nums=(1, 2)
    )
    return InfinityPipeline(transformer, InfinityTokenizer(config), text_encoder=WordEncoder(8), name="tiny")


def make_official(folder: Path) -> None:
    pipe = var(ch=32)  # what tensors cannot tell has the published value, 32 groups
    torch.save(pipe.transformer.state_dict(), folder / "var_d2.pth")
    torch.save(pipe.tokenizer.state_dict(), folder / "vae_ch160v4096z32.pth")


def read_official_var(folder: Path) -> object:
    return VARPipeline.from_official(folder, depth=2, patch_nums=(1, 2, 3, 4), device="cpu")


def make_sharded(folder: Path) -> None:
    state = {k: v.contiguous() for k, v in var().transformer.state_dict().items()}
    names, files = sorted(state), ("model-1.safetensors", "model-2.safetensors")
    where = {name: files[i % 2] for i, name in enumerate(names)}
    for file in files:
        save_file({n: state[n] for n in names if where[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def make_run(format: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        pipe = var()
        pictures = RunPictures(pipe, "labels", [0, 1, 2], 0, {})
        asked: dict[str, Any] = {"count": 6, "seed": 0, "key": "labels", "subjects": 3, "subjects_digest": ""}
        asked |= {"model": {}, "sampling": {}, "size": pipe.image_size, "device": "cpu", "shard_size": 6}
        plan = RunPlan(**asked, format=format, image_format="png", nextscale="0")  # type: ignore[arg-type]
        plan = write_manifest(folder, settle_group(plan, pictures, 2, print))
        Worker(folder, plan, pictures, 2).run()

    return make


KINDS = ("png", "jpg", "gif", "tiff", "webp", "bmp", "jp2", "avif", "ppm", "tga")


def make_pictures(folder: Path) -> None:
    """One file of every common kind, with the orientation and the transparency that it can have."""
    image = Image.linear_gradient("L").resize((16, 12)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in KINDS:
        can_turn = kind in ("png", "jpg", "tiff", "webp", "avif")
        image.save(folder / f"0.{kind}", **({"exif": exif} if can_turn else {}))
    Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)).save(folder / "16.png")
    image.quantize(8).save(folder / "palette.png", transparency=3)


def read_pictures(folder: Path) -> object:
    found = open_pictures(folder)
    found.broken(full=False)
    return [found.read(row) for row in range(len(found))]


LAYOUT = [
    ("config.json", damage.JSON),
    ("transformer/config.json", damage.JSON),
    ("transformer/config.json", [damage.odd_values]),
    ("tokenizer/config.json", [damage.odd_values]),
    ("transformer/model.safetensors", damage.WEIGHTS),
    ("tokenizer/model.safetensors", damage.WEIGHTS),
]
OFFICIAL = [("var_d2.pth", damage.TORCH), ("vae_ch160v4096z32.pth", damage.TORCH)]
TARGETS = [
    Target(
        "var folder", lambda f: var().save_pretrained(f), lambda f: load_pretrained(f, device="cpu"), LAYOUT
    ),
    Target(
        "infinity folder",
        lambda f: infinity().save_pretrained(f),
        lambda f: load_pretrained(f, device="cpu"),
        LAYOUT,
    ),
    Target("official files", make_official, read_official_var, OFFICIAL),
    Target(
        "sharded weights",
        make_sharded,
        lambda f: (read_official(f), recognise(f)),
        [
            ("model.safetensors.index.json", [damage.odd_paths, damage.odd_paths, *damage.JSON]),
            ("model-1.safetensors", damage.WEIGHTS),
        ],
    ),
    Target("manifest", make_run("tar"), read_manifest, [("manifest.json", damage.JSON)]),
    Target("tar shard", make_run("tar"), verify, [("shard-000000.tar", damage.ANY)]),
    Target("parquet shard", make_run("parquet"), verify, [("train-000000-of-000001.parquet", damage.ANY)]),
    Target(
        "folder shard",
        make_run("folder"),
        verify,
        [("shard-000000/metadata.jsonl", damage.ANY), ("shard-000000/000000003.png", damage.ANY)],
    ),
    Target("npz", make_run("npz"), verify, [("samples.npz", damage.ANY)]),
    Target(
        "pictures",
        make_pictures,
        read_pictures,
        [*((f"0.{kind}", damage.ANY) for kind in KINDS), ("16.png", damage.ANY), ("palette.png", damage.ANY)],
    ),
    Target(
        "run as samples",
        make_run("folder"),
        open_samples,
        [("shard-000000/metadata.jsonl", damage.ANY), ("manifest.json", damage.JSON)],
    ),
    Target("tar as samples", make_run("tar"), open_samples, [("shard-000000.tar", damage.ANY)]),
    Target(
        "parquet as samples",
        make_run("parquet"),
        open_samples,
        [("train-000000-of-000001.parquet", damage.ANY)],
    ),
    Target(
        "samples",
        make_run("npz"),
        lambda f: NpzImages(f / "samples.npz").read(0, 6),
        [("samples.npz", damage.ANY)],
    ),
]
