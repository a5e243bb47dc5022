"""The runs of transformers: what they have in common, whatever the family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextscale.errors import CheckpointError
from nextscale.families.infinity.tokenizer import InfinityTokenizer
from nextscale.families.infinity.transformer import InfinityTransformer
from nextscale.families.var.tokenizer import VARTokenizer
from nextscale.families.var.transformer import VARTransformer
from nextscale.families.words import WordEncoder
from nextscale.nn.placement import Placement
from nextscale.scales import ScaleSchedule
from nextscale.training.bit_transformer import BitTransformerTask, init_bit_transformer, latents
from nextscale.training.cache import AnyTokenizer, Encode, cached
from nextscale.training.checkpoint import CHECKPOINT, Origin, check_resumable
from nextscale.training.data import Check, ImageSource, check_classes, open_splits
from nextscale.training.initial import Initial
from nextscale.training.next_scale import Transformer
from nextscale.training.origin import run_origin
from nextscale.training.presets import (
    BitTransformerRecipe,
    TransformerRecipe,
)
from nextscale.training.settings import TrainSettings
from nextscale.training.task import Reporter
from nextscale.training.tokenizers import stride_of
from nextscale.training.transformer import TransformerTask, init_transformer, token_maps

HELD_OUT_IMAGES = 1000  # that the transformer's held-out loss is measured on


@dataclass(frozen=True)
class TransformerRun:
    """Set up the run of a transformer: pictures, first weights, encoded pictures, and its task."""

    data: str | Path
    held_out: str | Path | None
    check: Check
    skip_broken: bool
    output: Path
    recipe: object
    resume: bool
    report: Reporter
    where: Placement

    def task(
        self, chosen: TransformerRecipe, vae: VARTokenizer, first: Initial[VARTransformer] | None
    ) -> tuple[TransformerTask, Origin]:
        sizes = chosen.config
        if first is not None:
            theirs = first.model.config
            codes = (theirs.vocab_size, theirs.z_channels), (vae.config.vocab_size, vae.config.z_channels)
            if codes[0] != codes[1]:
                raise CheckpointError(
                    f"{first.source!r} predicts {codes[0][0]} codes of {codes[0][1]} channels, and the "
                    f"tokenizer has {codes[1][0]} of {codes[1][1]}; they do not belong together"
                )
            if isinstance(self.recipe, str):
                sizes = replace(theirs, drop_path=chosen.config.drop_path)
        training, held = self.pictures(vae)
        origin = self.origin(chosen.settings, vae, first, training)
        config = replace(
            sizes,
            vocab_size=vae.config.vocab_size,
            z_channels=vae.config.z_channels,
            patch_nums=vae.config.patch_nums,
            num_classes=training.num_classes,
        )
        model = VARTransformer(config)
        init_transformer(model, seed=chosen.settings.seed)
        self.start(model, first)
        views = {"flip": chosen.flip, "turn": chosen.turn}
        tokens = self.encoded(vae, partial(token_maps, vae), (training, held), "tokens", **views)
        return TransformerTask(
            model.to(self.where.device),
            vae,
            tokens[0],
            training.labels,
            tokens[1],
            held.labels,
            class_names=_class_names(training, chosen.class_names),
            defaults=chosen.defaults,
            label_dropout=chosen.label_dropout,
            stages=_stages(chosen.stages, model.schedule),
        ), origin

    def bit_task(
        self, chosen: BitTransformerRecipe, vae: InfinityTokenizer, first: Initial[InfinityTransformer] | None
    ) -> tuple[BitTransformerTask, Origin]:
        sizes = chosen.config
        schedule = ScaleSchedule.from_sides(vae.config.patch_nums or ())
        if first is not None and first.model.config.bits != vae.config.token_bits:
            raise CheckpointError(
                f"{first.source!r} predicts {first.model.config.bits} bits per token, and the tokenizer has "
                f"{vae.config.token_bits}; they do not belong together"
            )
        if first is not None and isinstance(self.recipe, str):
            sizes = replace(first.model.config, drop_path=chosen.config.drop_path)
        elif first is None:
            sizes = replace(sizes, levels=max(sizes.levels, schedule.num_steps))
        model = InfinityTransformer(replace(sizes, bits=vae.config.token_bits))
        model.check_schedule(schedule)
        training, held = self.pictures(vae)
        origin = self.origin(chosen.settings, vae, first, training)
        init_bit_transformer(model, seed=chosen.settings.seed)
        self.start(model, first)
        features = self.encoded(vae, partial(latents, vae), (training, held), "features", flip=chosen.flip)
        names = _class_names(training, chosen.class_names)
        return BitTransformerTask(
            model.to(self.where.device),
            vae,
            features[0],
            training.labels,
            features[1],
            held.labels,
            class_names=names or [f"class {i}" for i in range(training.num_classes)],
            text_encoder=WordEncoder(model.config.text_dim),
            templates=chosen.templates,
            defaults=chosen.defaults,
            text_dropout=chosen.text_dropout,
            max_flips=chosen.max_flips,
            reweight=chosen.reweight,
            stages=_stages(chosen.stages, schedule),
        ), origin

    def pictures(self, vae: AnyTokenizer) -> tuple[ImageSource, ImageSource]:
        """Pictures to train on and held-out ones, of the tokenizer's size."""
        h, w = ScaleSchedule.from_sides(vae.config.patch_nums or ()).final
        stride = stride_of(vae)
        training, held = open_splits(
            self.data,
            size=(h * stride, w * stride),
            held_out=self.held_out,
            check=self.check,
            skip_broken=self.skip_broken,
        )
        check_classes(training, held)
        return training, held.subset(torch.arange(min(HELD_OUT_IMAGES, len(held))))  # encoding costs time too

    def origin(
        self, settings: TrainSettings, vae: AnyTokenizer, first: Initial[Any] | None, training: ImageSource
    ) -> Origin:
        """Say what the run is made of; a checkpoint of another is refused, before pictures are encoded."""
        weights = {"tokenizer": vae, "initial": None if first is None else first.model}
        origin = run_origin("transformer", self.recipe, training, vae.config.patch_nums or (), **weights)
        if self.resume:
            check_resumable(self.output, origin, asdict(settings))
        self.output.mkdir(parents=True, exist_ok=True)
        return origin

    def start(self, model: Transformer, first: Initial[Transformer] | None) -> None:
        """Take over first weights, if there are any, and say so where they are not a checkpoint's."""
        if first is not None:
            done = first.fill(model, "Does the recipe have its sizes?")
            if not (self.resume and (self.output / CHECKPOINT).exists()):
                self.report({"note": done}, 0, 0)

    def encoded(
        self,
        vae: AnyTokenizer,
        encode: Encode,
        pictures: tuple[ImageSource, ImageSource],
        name: str,
        *,
        flip: bool,
        turn: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Encode both sets of pictures by the tokenizer; kept in files of that name."""
        training, held = pictures
        path = self.output / f"{name}.pt"
        first = cached(vae, encode, training, path, flip=flip, turn=turn, report=self.report)
        return first, cached(vae, encode, held, self.output / f"{name}-held-out.pt", flip=False)


def _stages(stages: Sequence[tuple[float, int]], schedule: ScaleSchedule) -> list[tuple[float, int]]:
    """A recipe's stages on a list of scales that may be shorter than those it was made for."""
    return [(share, min(scales, schedule.num_steps)) for share, scales in stages if schedule.num_steps > 1]


def _class_names(data: ImageSource, known: Sequence[str]) -> Sequence[str]:
    """The data's own names, or the known ones if there are as many classes, or none."""
    return data.class_names or (known if len(known) == data.num_classes else ())
