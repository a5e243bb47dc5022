"""What to draw: the options of a command laid over the settings of an earlier picture, if one is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

from nextscale.cli import options
from nextscale.cli.checks import MAX_PICTURES, shown
from nextscale.cli.progress import note
from nextscale.cli.subjects import Subjects, Typed, shorten
from nextscale.cli.values import flag, read_numbers, read_seeds
from nextscale.errors import InvalidArgumentError, is_out_of_memory

if TYPE_CHECKING:
    from nextscale.generation.loop import StepInfo
    from nextscale.generation.request import GenerationOutput
    from nextscale.guidance.ssg import ScaledSpatialGuidance
    from nextscale.scales import ScaleSchedule

OFF, DEFAULT = ("off", "none"), "default"


@dataclass(frozen=True)
class SSGOptions:
    """The options about Scaled Spatial Guidance besides its strength; ``None`` is not given."""

    ssg_schedule: options.SSGSchedule = None
    prior: options.Prior = None
    norm: options.Norm = None
    remember: options.Remember = None
    ssg_start: options.Start = None
    ssg_stop: options.Stop = None

    def given(self) -> dict[str, Any]:
        """By the names that :class:`~nextscale.guidance.ssg.ScaledSpatialGuidance` has for them."""
        return {k.removeprefix("ssg_"): v for k, v in vars(self).items() if v is not None}

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
        earlier = {} if strength == DEFAULT else stored or {}
        settings = {**earlier, **given}
        if strength is not None:
            settings["beta"] = None if strength == DEFAULT else read_numbers(strength, "--ssg")
            if isinstance(settings["beta"], list) and "schedule" not in given:
                settings["schedule"] = "constant"
        return ScaledSpatialGuidance.from_dict(settings)


def _flag(name: str) -> str:
    return f"--ssg-{name}" if name in ("schedule", "start", "stop") else f"--{name}"


@dataclass(frozen=True)
class DrawingOptions:
    """The options that shape pictures besides SSG; ``None`` is not given.

    The fields are named as the arguments of the pipelines' calls.
    """

    guidance_scale: options.GuidanceScale = None
    top_k: options.TopK = None
    top_p: options.TopP = None
    min_p: options.MinP = None
    temperature: options.Temperature = None
    sampler: options.Sampler = None
    more_smooth: options.MoreSmooth = None
    negative_prompt: options.NegativePrompt = None
    aspect_ratio: options.AspectRatio = None
    pixels: options.Pixels = None
    height: options.Height = None
    width: options.Width = None
    guidance_layer: options.GuidanceLayer = None
    residual: options.Residual = None
    mask_iterations: options.MaskIterations = None
    tile: options.Tile = None

    def given(self) -> dict[str, Any]:
        """What was given, as keyword arguments. Raises InvalidArgumentError for texts that are no numbers."""
        found = {k: v for k, v in vars(self).items() if v is not None}
        for name in ("temperature", "guidance_scale"):
            if name in found:
                found[name] = read_numbers(found[name], flag(name))
        return found


# Arguments that say how large pictures are. Who says a part of it anew says it all.
SIZE = ("aspect_ratio", "pixels", "height", "width", "schedule")
# Arguments that are not replayed from a picture: what the command line gives itself, and tensors.
_OWN = ("seed", "ssg", "batch_size", "on_step", "output_type", "given_tokens")

_WHY = {
    **dict.fromkeys(SIZE, "pictures of this model have one size"),
    "negative_prompt": "this model takes no negative prompt",
}


def call_arguments(pipe: Any, given: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for a pipeline's call: what is given, else what an earlier picture was made with.

    Which there are is read off the call itself. Raises InvalidArgumentError for an option this model has not.
    """
    from nextscale.families import family_of
    from nextscale.guidance.cfg import ClassifierFreeGuidance

    _, *known = inspect.signature(pipe).parameters
    for name in given:
        if name not in known:
            why = _WHY.get(name, f"models of the family {family_of(pipe)} have no such option")
            raise InvalidArgumentError(f"{flag(name)}: {why}")
    replaced = {*_OWN, *(SIZE if set(SIZE) & set(given) else ())}
    arguments = {name: stored[name] for name in known if name in stored and name not in replaced}
    if "guidance_scale" in arguments:
        arguments["guidance_scale"] = ClassifierFreeGuidance.from_dict(arguments["guidance_scale"])
    if isinstance(arguments.get("negative_prompt"), list):  # one text, however many pictures there were
        arguments["negative_prompt"] = arguments["negative_prompt"][0]
    return {**arguments, **given}


def schedule_of(pipe: Any, arguments: Mapping[str, Any]) -> ScaleSchedule:
    """The grids of a call, for pipelines that have several schedules and for those that have one."""
    choose = getattr(pipe, "schedule_for", None)
    if choose is None:
        return cast("ScaleSchedule", pipe.schedule)
    return cast("ScaleSchedule", choose(**{k: v for k, v in arguments.items() if k in SIZE}))


def size_of(pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, int]:
    """``(height, width)`` in pixels of the pictures of a call."""
    choose = getattr(pipe, "size_of", None)
    size = pipe.image_size if choose is None else choose(schedule_of(pipe, arguments))
    return cast("tuple[int, int]", size)


@dataclass(frozen=True)
class Pictures:
    """Which pictures to make: what each shows, and its seed."""

    subjects: list[Any]
    seeds: list[int]

    def __len__(self) -> int:
        return len(self.subjects)


def choose_pictures(
    subjects: Subjects,
    typed: Typed,
    count: int | None,
    seed: str | None,
    stored: Mapping[str, Any],
    *,
    default_seed: int | None = None,
    default_count: int = 1,
) -> Pictures:
    """Subjects and seeds from the options, from an earlier picture for what they leave open, or by default.

    typed: each is drawn ``count`` times. seed: as typed.
    Raises InvalidArgumentError for subjects the model does not know, and seeds that do not fit.
    """
    from nextscale.generation.request import resolve_seeds

    before = stored.get(subjects.key, [])
    chosen = subjects.read(typed)
    if not chosen and before:
        chosen = before if count is None else list(dict.fromkeys(before))
    elif not chosen and stored:
        raise InvalidArgumentError(
            f"the picture of --from shows no {subjects.nouns[1]}, which is what this model draws; say which"
        )
    elif not chosen:
        chosen = subjects.default()
    repeat = count if count is not None else 1 if before and not typed else default_count
    check_sheet(repeat * len(chosen))
    wanted = [subject for subject in chosen for _ in range(repeat)]
    if seed is not None:
        numbers = read_seeds(seed)
        seeds = resolve_seeds(numbers if len(numbers) > 1 else numbers[0], len(wanted))
    elif stored.get("seeds"):
        old = stored["seeds"]
        seeds = list(old) if len(old) == len(wanted) else resolve_seeds(old[0], len(wanted))
    else:
        seeds = resolve_seeds(default_seed, len(wanted))
    return Pictures(wanted, seeds)


def check_sheet(count: int) -> None:
    """Raises InvalidArgumentError for more pictures than one file holds."""
    if count > MAX_PICTURES:
        raise InvalidArgumentError(
            f"{shown(count)} pictures are more than the {MAX_PICTURES:,} of one sheet; with --out DIR, "
            f"nextscale generate makes any number, in shards"
        )


def default_batch(pipe: Any) -> int:
    """How many pictures a pipeline makes at once if it is not told."""
    return int(inspect.signature(pipe).parameters["batch_size"].default)


def draw(
    pipe: Any,
    pictures: Pictures,
    arguments: Mapping[str, Any],
    ssg: ScaledSpatialGuidance | None,
    batch_size: int,
    advance: Callable[[int], None],
) -> GenerationOutput:
    """Make the pictures; ``advance`` hears how many tokens were drawn.

    Where memory is short, half as many are drawn at once, with a note; the settings that come back name the
    ``batch_size`` that was used. Raises InvalidArgumentError if not even one picture fits, or if pictures
    depend on the batch.
    """
    from nextscale.sampling.drawing import halved

    size = batch_size
    while True:
        count = TokenCount(advance)
        try:
            out = pipe(
                pictures.subjects,
                seed=pictures.seeds,
                ssg=ssg,
                batch_size=size,
                on_step=count,
                **arguments,
            )
            return replace(out, settings={**out.settings, "batch_size": size})
        except (RuntimeError, MemoryError) as error:
            at_once = min(size, len(pictures))
            if is_out_of_memory(error) and arguments.get("sampler") == "multinomial":
                raise InvalidArgumentError(
                    f"{pipe.device} has too little memory for {at_once} pictures at once, and those of the "
                    f"multinomial sampler depend on how many are; use a smaller --batch-size"
                ) from None
            size = halved(error, at_once, pipe.device, lambda text: note(f"note: {text}"))
        advance(-count.total)


class TokenCount:
    """A step callback that says how many tokens a step has added, also where a grid comes in parts."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance, self.index, self.before, self.total = advance, -1, 0, 0

    def __call__(self, info: StepInfo) -> None:
        cells = info.tokens.flatten(0, 2)  # (B h w), or (B h w, bits)
        drawn = int(((cells if cells.ndim == 1 else cells[:, 0]) >= 0).sum())
        if info.index != self.index or drawn <= self.before:
            self.index, self.before = info.index, 0
        self.advance(drawn - self.before)
        self.total += drawn - self.before
        self.before = drawn


def with_model_default(pipe: Any, ssg: ScaledSpatialGuidance | None) -> ScaledSpatialGuidance | None:
    """SSG with all settings spelled out: the model's, or the library's where the model names none."""
    from nextscale.generation.request import resolve_ssg

    return resolve_ssg(ssg, pipe.defaults)


def describe(settings: Mapping[str, Any], *, ssg: bool = True) -> str:
    """A picture's settings in one line, for captions and listings."""
    parts = [str(settings["model"]), _cfg(settings["guidance_scale"])]
    layers = settings.get("guidance_layer") or [0]
    parts += [f"at layers {short(layers)}"] if list(layers) != [0] else []
    parts += [f"not {shorten(_one(settings['negative_prompt']))}"] if settings.get("negative_prompt") else []
    parts += [f"top-k {short(settings['top_k'])}"] if settings.get("top_k") else []
    parts += [f"top-p {settings['top_p']:g}"] if 0 < (settings.get("top_p") or 0) < 1 else []
    parts += [f"min-p {settings['min_p']:g}"] if settings.get("min_p") else []
    parts.append(f"temperature {short(settings['temperature'])}")
    parts += [settings["sampler"]] if settings["sampler"] != "paired" else []
    parts += ["more smooth"] if settings.get("more_smooth") else []
    parts += ["no residual"] if settings.get("residual") is False else []
    if ssg:
        parts.append(arm_name(settings["ssg"]))
    return " · ".join(parts)


def _cfg(settings: Mapping[str, Any]) -> str:
    """Classifier-free guidance; the strength that is none is 1 for models that interpolate."""
    scale, off = settings["scale"], 1.0 if settings.get("convention") == "interpolate" else 0.0
    return "no CFG" if scale == off else f"CFG {short(scale)}"


def _one(value: Any) -> str:
    """A text, or the first of a list of them."""
    return str(value if isinstance(value, str) else value[0])


def arm_name(ssg: Mapping[str, Any] | None) -> str:
    """``"no SSG"`` or ``"SSG 0.6"``."""
    if ssg is None or ssg["beta"] == 0:
        return "no SSG"
    return "SSG" if ssg["beta"] is None else f"SSG {short(ssg['beta'])}"


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


def short(value: float | Sequence[float]) -> str:
    """A number, or several, ``"600 x 7, 300 x 7"`` where they repeat; lists of them are a picture's each."""
    if isinstance(value, (int, float)):
        return f"{value:g}"
    if value and isinstance(value[0], list):
        return "one a picture"
    runs = [(f"{v:g}", len(list(same))) for v, same in groupby(value)]
    return ", ".join(text if times == 1 else f"{text} x {times}" for text, times in runs)
