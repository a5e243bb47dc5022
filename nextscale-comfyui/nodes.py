"""Three nodes: load a model, describe Scaled Spatial Guidance, and generate.

ComfyUI finds them through the two mappings at the end. Its own modules (``folder_paths``, ``comfy``) are
imported where they are used, and a node's settings are the library's, under its names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

EMBEDDED = "cifar10"
CATEGORY = "nextscale"
OWN = -1  # in a number's field: whatever the model has as its own
SEEDS = 2**64 - 1
MAX_PICTURES = 64
AUTO = "auto"
SIZES = (AUTO, "0.06M", "0.25M", "0.60M", "1M")
RATIOS = (AUTO, "1:1", "4:3", "3:4", "3:2", "2:3", "16:9", "9:16", "2:1", "1:2")

Inputs = dict[str, dict[str, Any]]


def models() -> list[str]:
    """The embedded model, and every folder in ComfyUI's ``models/nextscale`` that holds one."""
    import folder_paths

    root = Path(folder_paths.models_dir) / "nextscale"
    found = (
        [path.name for path in root.iterdir() if (path / "config.json").is_file()] if root.is_dir() else []
    )
    return [EMBEDDED, *sorted(found)]


class NextscaleLoad:
    """A model in the library's layout: the embedded one, a folder of ComfyUI's, or any folder or hub id."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = ("NEXTSCALE_MODEL",), ("model",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802, the name that ComfyUI calls
        return {
            "required": {
                "model": (models(),),
                "dtype": ([AUTO, "float32", "bfloat16", "float16"],),
            },
            "optional": {
                "other": (
                    "STRING",
                    {"default": "", "tooltip": "A folder or hub id, instead of the choice above"},
                ),
            },
        }

    def load(self, model: str, dtype: str = AUTO, other: str = "") -> tuple[Any]:
        """The pipeline, of whichever family.

        Raises ModelNotFoundError or CheckpointError, saying what is wrong.
        """
        import folder_paths

        from nextscale.errors import InvalidArgumentError
        from nextscale.families import load_pretrained

        if other.strip():
            return (load_pretrained(other.strip(), dtype=dtype),)
        if model not in models():
            raise InvalidArgumentError(f"unknown model {model!r}; there are {', '.join(models())}")
        place = EMBEDDED if model == EMBEDDED else Path(folder_paths.models_dir) / "nextscale" / model
        return (load_pretrained(place, dtype=dtype),)


class NextscaleGuidance:
    """Scaled Spatial Guidance as a setting, to be plugged into the generating node."""

    CATEGORY, FUNCTION = CATEGORY, "describe"
    RETURN_TYPES, RETURN_NAMES = ("NEXTSCALE_SSG",), ("ssg",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        beta = {
            "default": 0.6,
            "min": 0.0,
            "max": 20.0,
            "step": 0.05,
            "tooltip": "Strength; 0 is no guidance",
        }
        per_step = "Strengths, one per step with commas between, instead of beta and schedule"
        return {
            "required": {
                "beta": ("FLOAT", beta),
                "schedule": (["constant", "linear", "cosine", "bandwidth"],),
                "prior": (["dse", "dct", "bilinear", "nearest"],),
                "norm": (["ortho", "forward", "backward"],),
                "remember": (["unguided", "guided"],),
            },
            "optional": {"per_step": ("STRING", {"default": "", "tooltip": per_step})},
        }

    def describe(
        self, beta: float, schedule: str, prior: str, norm: str, remember: str, per_step: str = ""
    ) -> tuple[Any]:
        """Raises InvalidArgumentError for values out of range, and for strengths that are no numbers."""
        from nextscale import ScaledSpatialGuidance
        from nextscale.errors import InvalidArgumentError

        given: Any = beta
        if per_step.strip():
            schedule = "constant"  # which only a single strength could have otherwise
            try:
                given = [float(part) for part in per_step.split(",")]
            except ValueError:
                raise InvalidArgumentError(
                    f"per_step takes numbers with commas between, got {per_step!r}"
                ) from None
        shape: Any = {"schedule": schedule, "prior": prior, "norm": norm, "remember": remember}
        return (ScaledSpatialGuidance(given, **shape),)


class NextscaleGenerate:
    """Pictures of classes or prompts. Fields at -1 and ``auto`` are the model's own."""

    CATEGORY, FUNCTION = CATEGORY, "generate"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE",), ("images",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        own = {"default": float(OWN), "min": float(OWN), "step": 0.05}
        seed = {"default": 0, "min": 0, "max": SEEDS, "control_after_generate": True}
        return {
            "required": {
                "model": ("NEXTSCALE_MODEL",),
                "subjects": (
                    "STRING",
                    {"default": "horse", "multiline": True, "tooltip": "Classes or prompts, one a line"},
                ),
                "pictures": ("INT", {"default": 1, "min": 1, "max": MAX_PICTURES, "tooltip": "Of each"}),
                "seed": ("INT", seed),
                "guidance_scale": ("FLOAT", {**own, "max": 50.0}),
                "temperature": ("FLOAT", {**own, "max": 20.0}),
                "top_k": ("INT", {"default": OWN, "min": OWN, "max": 1_000_000}),
                "top_p": ("FLOAT", {**own, "max": 1.0}),
            },
            "optional": {
                "ssg": ("NEXTSCALE_SSG",),
                "negative_prompt": ("STRING", {"default": "", "multiline": True}),
                "aspect_ratio": (list(RATIOS),),
                "pixels": (list(SIZES),),
            },
        }

    def generate(
        self,
        model: Any,
        subjects: str,
        pictures: int,
        seed: int,
        guidance_scale: float = OWN,
        temperature: float = OWN,
        top_k: int = OWN,
        top_p: float = OWN,
        ssg: Any = None,
        negative_prompt: str = "",
        aspect_ratio: str = AUTO,
        pixels: str = AUTO,
    ) -> tuple[Tensor]:
        """Float32 pictures ``(B, H, W, 3)`` in [0, 1], as ComfyUI has them.

        The same seed gives the same pictures with any guidance as without, but for what guidance changes.
        Raises InvalidArgumentError for what the model does not know, and ComfyUI's own exception when it is
        interrupted, which takes effect after the step that is being made.
        """
        from nextscale.errors import InvalidArgumentError

        lines = [line.strip() for line in subjects.splitlines() if line.strip()]
        wanted = [line for line in lines for _ in range(pictures)]
        if not 1 <= len(wanted) <= MAX_PICTURES:
            raise InvalidArgumentError(
                f"a node makes 1 to {MAX_PICTURES} pictures at a time, not {len(wanted)}"
            )
        numbers = {
            "guidance_scale": guidance_scale,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }
        given: dict[str, Any] = {name: value for name, value in numbers.items() if value != OWN}
        texts = {
            "aspect_ratio": aspect_ratio,
            "pixels": pixels,
            "negative_prompt": negative_prompt.strip() or AUTO,
        }
        given |= {name: text for name, text in texts.items() if text != AUTO}
        refuse_unknown(model, given)
        out = model(
            wanted, seed=seed, ssg=ssg, on_step=watcher(model, len(wanted)), output_type="pt", **given
        )
        images: Tensor = out.images.permute(0, 2, 3, 1).contiguous()  # (B, 3, H, W) -> (B, H, W, 3)
        return (images,)


def refuse_unknown(model: Any, given: dict[str, Any]) -> None:
    """Raises InvalidArgumentError, by name, for a field that this model has no use for."""
    import inspect

    from nextscale.errors import InvalidArgumentError

    for name in given:
        if name not in inspect.signature(model).parameters:
            raise InvalidArgumentError(f"this model has no {name}; leave the field as it is at first")


def watcher(model: Any, count: int) -> Callable[[Any], None]:
    """A callback for every step: moves ComfyUI's progress bar, and stops where its user has asked for it."""
    import inspect

    import comfy.model_management
    import comfy.utils

    batches = -(-count // inspect.signature(model).parameters["batch_size"].default)
    bar = comfy.utils.ProgressBar(batches * model.schedule.num_steps)

    def on_step(info: Any) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update(1)

    return on_step


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "NextscaleLoad": NextscaleLoad,
    "NextscaleGuidance": NextscaleGuidance,
    "NextscaleGenerate": NextscaleGenerate,
}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    "NextscaleLoad": "Load next-scale model",
    "NextscaleGuidance": "Scaled Spatial Guidance",
    "NextscaleGenerate": "Generate with next-scale model",
}
