"""What to draw: the options of a command laid over the settings of an earlier picture, if one is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nextscale.cli.options import read_numbers, read_whole_numbers
from nextscale.errors import InvalidArgumentError

if TYPE_CHECKING:
    from nextscale.families.var.pipeline import VARPipeline
    from nextscale.generation.loop import StepInfo
    from nextscale.generation.request import GenerationOutput
    from nextscale.guidance.ssg import ScaledSpatialGuidance

# Classes of ImageNet that look different from each other, for a first picture without labels.
IMAGENET_SAMPLE = (22, 207, 387, 437, 562, 933, 970, 980)
DEFAULT_BATCH = 16
OFF, DEFAULT = ("off", "none"), "default"

_PLAIN = ("top_k", "top_p", "min_p", "temperature", "sampler", "more_smooth")


@dataclass(frozen=True)
class SSGOptions:
    """The options about Scaled Spatial Guidance besides its strength; ``None`` is not given."""

    schedule: str | None = None
    prior: str | None = None
    norm: str | None = None
    remember: str | None = None
    start: int | None = None
    stop: int | None = None

    def given(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if v is not None}

    def build(
        self, strength: str | None, stored: Mapping[str, Any] | None = None
    ) -> ScaledSpatialGuidance | None:
        """The guidance that ``--ssg`` and its companions ask for; ``None`` is off.

        strength: a number, one per step with commas, ``"default"``, ``"off"``, or ``None`` where not given.
        stored: the settings in an earlier picture, used for what is not given.
        Raises InvalidArgumentError for values out of range, or companions without a strength.
        """
        from nextscale.guidance.ssg import ScaledSpatialGuidance

        given = self.given()
        if strength in OFF or (strength is None and stored is None):
            if given:
                name = next(iter(given))
                raise InvalidArgumentError(f"{_flag(name)} shapes SSG, which is off; add --ssg 0.6, say")
            return None
        settings = {**(stored or {}), **given}
        if strength is not None:
            settings["beta"] = None if strength == DEFAULT else read_numbers(strength, "--ssg")
            if isinstance(settings["beta"], list) and "schedule" not in given:
                settings["schedule"] = "constant"
        return ScaledSpatialGuidance.from_dict(settings)


def _flag(name: str) -> str:
    return f"--ssg-{name}" if name in ("schedule", "start", "stop") else f"--{name}"


@dataclass(frozen=True)
class DrawingOptions:
    """The options about classifier-free guidance and the drawing of tokens; ``None`` is not given."""

    guidance_scale: str | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    temperature: str | None = None
    sampler: str | None = None
    more_smooth: bool | None = None

    def arguments(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments for a pipeline's call: what is given, else what is stored, else nothing."""
        from nextscale.guidance.cfg import ClassifierFreeGuidance

        arguments = {k: stored[k] for k in _PLAIN if k in stored}
        given = {k: getattr(self, k) for k in _PLAIN if getattr(self, k) is not None}
        if self.temperature is not None:
            given["temperature"] = read_numbers(self.temperature, "--temperature")
        if self.guidance_scale is not None:
            given["guidance_scale"] = read_numbers(self.guidance_scale, "--guidance-scale")
        elif "guidance_scale" in stored:
            arguments["guidance_scale"] = ClassifierFreeGuidance.from_dict(stored["guidance_scale"])
        return arguments | given


@dataclass(frozen=True)
class Pictures:
    """Which pictures to make: a class and a seed each."""

    labels: list[int]
    seeds: list[int]

    def __len__(self) -> int:
        return len(self.labels)


def choose_pictures(
    pipe: VARPipeline,
    labels: Sequence[str] | None,
    count: int | None,
    seed: str | None,
    stored: Mapping[str, Any],
    *,
    default_seed: int | None = None,
    default_count: int = 1,
) -> Pictures:
    """Labels and seeds from the options, from an earlier picture for what they leave open, or by default.

    labels: as typed; each is drawn ``count`` times. seed: as typed.
    Raises InvalidArgumentError for unknown classes and seeds that do not fit.
    """
    from nextscale.generation.request import resolve_seeds

    before = [int(n) for n in stored.get("labels", [])]
    if labels:
        chosen = resolved_labels(pipe, labels)
    elif before:
        chosen = before if count is None else list(dict.fromkeys(before))
    else:
        chosen = default_labels(pipe)
    repeat = count if count is not None else 1 if before and not labels else default_count
    wanted = [label for label in chosen for _ in range(repeat)]
    if seed is not None:
        numbers = read_whole_numbers(seed, "--seed")
        seeds = resolve_seeds(numbers if len(numbers) > 1 else numbers[0], len(wanted))
    elif stored.get("seeds"):
        old = stored["seeds"]
        seeds = list(old) if len(old) == len(wanted) else resolve_seeds(old[0], len(wanted))
    else:
        seeds = resolve_seeds(default_seed, len(wanted))
    return Pictures(wanted, seeds)


def draw(
    pipe: VARPipeline,
    pictures: Pictures,
    arguments: Mapping[str, Any],
    ssg: ScaledSpatialGuidance | None,
    batch_size: int,
    advance: Callable[[int], None],
) -> GenerationOutput:
    """Make the pictures; ``advance`` hears how many tokens were drawn.

    Raises InvalidArgumentError if memory is short.
    """
    import torch

    def on_step(info: StepInfo) -> None:
        advance(info.tokens.numel())

    try:
        return pipe(
            pictures.labels, seed=pictures.seeds, ssg=ssg, batch_size=batch_size, on_step=on_step, **arguments
        )
    except torch.cuda.OutOfMemoryError:
        raise InvalidArgumentError(
            f"{pipe.device} has too little memory for {min(batch_size, len(pictures))} pictures at once; "
            f"use a smaller --batch-size"
        ) from None


def with_model_default(pipe: VARPipeline, ssg: ScaledSpatialGuidance | None) -> ScaledSpatialGuidance | None:
    """SSG with its strength spelled out: the model's, or the library's where the model names none."""
    from nextscale.guidance.ssg import DEFAULT_BETA

    if ssg is None:
        return None
    return ssg.with_defaults((pipe.defaults.get("ssg") or {}).get("beta", DEFAULT_BETA))


def resolved_labels(pipe: VARPipeline, labels: Sequence[str]) -> list[int]:
    """Class numbers; -1 is no class, as in a pipeline's settings."""
    from nextscale.families.var.classes import resolve_labels

    classes = pipe.transformer.config.num_classes
    numbers = resolve_labels([None if text in OFF else text for text in labels], pipe.class_names, classes)
    return [-1 if n == classes else n for n in numbers]


def default_labels(pipe: VARPipeline) -> list[int]:
    """All classes of a model with few, a varied handful of ImageNet's, evenly spread ones otherwise."""
    classes = pipe.transformer.config.num_classes
    if classes <= 12:
        return list(range(classes))
    if classes == 1000 and pipe.class_names:
        return list(IMAGENET_SAMPLE)
    return [i * classes // 10 for i in range(10)]


def label_name(pipe: VARPipeline, label: int) -> str:
    """The name of a class; its number where it has none."""
    if label < 0:
        return "no class"
    return pipe.class_names[label] if pipe.class_names else f"class {label}"


def describe(settings: Mapping[str, Any], *, ssg: bool = True) -> str:
    """A picture's settings in one line, for captions and listings."""
    cfg = settings["guidance_scale"]["scale"]
    parts = [str(settings["model"]), f"CFG {_short(cfg)}" if cfg else "no CFG"]
    parts += [f"top-k {settings['top_k']}"] if settings["top_k"] else []
    parts += [f"top-p {settings['top_p']:g}"] if 0 < settings["top_p"] < 1 else []
    parts += [f"min-p {settings['min_p']:g}"] if settings["min_p"] else []
    parts.append(f"temperature {_short(settings['temperature'])}")
    parts += [settings["sampler"]] if settings["sampler"] != "paired" else []
    parts += ["more smooth"] if settings["more_smooth"] else []
    if ssg:
        parts.append(arm_name(settings["ssg"]))
    return " · ".join(parts)


def arm_name(ssg: Mapping[str, Any] | None) -> str:
    """``"no SSG"`` or ``"SSG 0.6"``."""
    if ssg is None or ssg["beta"] == 0:
        return "no SSG"
    return "SSG" if ssg["beta"] is None else f"SSG {_short(ssg['beta'])}"


def ssg_details(ssg: Mapping[str, Any] | None) -> str:
    """What of SSG's settings is not the default, for captions: ``"bandwidth schedule, dct prior"``."""
    if ssg is None:
        return ""
    usual = {"schedule": "constant", "prior": "dse", "norm": "ortho", "remember": "unguided"}
    unusual = [k for k, v in usual.items() if ssg.get(k, v) != v]
    words = ["remembers guided" if k == "remember" else f"{ssg[k]} {k}" for k in unusual]
    start, stop = ssg.get("start", 1), ssg.get("stop")
    if start != 1 or stop is not None:
        words.append(f"steps {start} to {'the last' if stop is None else stop - 1}")
    return ", ".join(words)


def seed_range(seeds: Sequence[int]) -> str:
    """``"seed 7"``, ``"seeds 0 to 39"``, or a shortened list."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    shown = ", ".join(str(s) for s in seeds[:6])
    return f"seeds {shown}{', …' if len(seeds) > 6 else ''}"


def _short(value: float | Sequence[float]) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else ", ".join(f"{v:g}" for v in value)
