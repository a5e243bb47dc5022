"""Messages name options, whatever the library calls its arguments."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nextscale.cli.main import main
from nextscale.cli.wording import speak_of, worded

GENERATE = {
    "top_k": "--top-k",
    "ssg": "--ssg",
    "ssg_start": "--ssg-start",
    "temperature": "--temperature",
    "sampler": "--sampler",
    "model": "--model",
    "variant": "--variant",
    "patch_nums": "--patch-nums",
    "text_encoder": "--text-encoder",
    "system_prompt": "--system-prompt",
    "words": "LABELS",
    "guidance_scale": "--guidance-scale",
    "height": "--height",
    "width": "--width",
}
SAID = [
    ("top_k must be a whole number; got 'top_k'", "--top-k must be a whole number; got 'top_k'"),
    ("beta must be finite; got -1.0", "--ssg must be finite; got -1.0"),
    ("beta[2] must be finite; got -1.0", "--ssg[2] must be finite; got -1.0"),
    ("start must be a step counted from 0; got -1", "--ssg-start must be a step counted from 0; got -1"),
    ("the start must be soon", "the start must be soon"),
    ("scale must be at most 1,000,000; got 1e9", "--guidance-scale must be at most 1,000,000; got 1e9"),
    ("every scale must be made", "every scale must be made"),
    ("temperature has 2 values, but the model", "--temperature has 2 values, but the model"),
    (
        "temperature must be positive, got 0; for the likeliest token use sampler='greedy'",
        "--temperature must be positive, got 0; for the likeliest token use --sampler greedy",
    ),
    ("say which with model=, one of 2b", "say which with --variant, one of 2b"),
    ("pass patch_nums=[...], the side", "pass --patch-nums 1,2,…, the side"),
    ("for no guidance use guidance_scale=1", "for no guidance use --guidance-scale 1"),
    ("give it one with text_encoder=, or pass TextFeatures", "give it one with --text-encoder"),
    (
        "class 77 is out of range, and None or -1 is no class",
        "class 77 is out of range, and none is no class",
    ),
    ("Pass system_prompt=: a file of it, or x", "Give --system-prompt FILE, a file of it, or x"),
    (
        "config.json beside it has no such value; give a positive whole number with settings={'heads': ...}",
        "config.json beside it has no such value; write 'heads' there, a positive whole number",
    ),
    ("'my/top_k.png' and runs/top_k/x have none", "'my/top_k.png' and runs/top_k/x have none"),
    ("a model's top_k, and 'top_k' too", "a model's --top-k, and 'top_k' too"),
    ("x=1 and min_p must be", "x=1 and min_p must be"),  # no options of this command
    ("the settings in 'a.png' are damaged: top_k is -1", "the settings in 'a.png' are damaged: top_k is -1"),
]


@pytest.mark.parametrize(("message", "expected"), SAID)
def test_words(message: str, expected: str):
    speak_of(GENERATE)
    assert worded(message) == expected
    speak_of({})


PYTHON = re.compile(r"\b(top_k|top_p|min_p|beta|guidance_scale|batch_size|mask_iterations|guidance_layer)\b")
BAD = [
    ("model", ("--ssg", "-1"), "--ssg must be finite and at least 0; got -1.0"),
    ("model", ("--ssg", "0.1,0.2"), "--ssg has 2 values, but the generation has 6 steps"),
    ("model", ("--ssg", "1", "--ssg-start", "-3"), "--ssg-start must be a step counted from 0; got -3"),
    (
        "model",
        ("--ssg", "1", "--ssg-start", "3", "--ssg-stop", "2"),
        "--ssg-stop (2) must not be below --ssg",
    ),
    ("model", ("--top-p", "3"), "--top-p must be between 0 and 1 (0 = off), got 3.0"),
    ("model", ("--min-p", "-1"), "--min-p must be between 0 and 1"),
    ("model", ("--top-k", "900"), "--top-k is 900, but the vocabulary has 64 tokens"),
    ("model", ("--top-k", "-1"), "--top-k must be a whole number, 0 for no limit; got -1"),
    ("model", ("--temperature", "0"), "for the likeliest token use --sampler greedy"),
    ("model", ("--temperature", "1,2"), "--temperature has 2 values, but the model takes 6 steps"),
    ("model", ("--guidance-scale", "-1"), "--guidance-scale must be"),
    ("model", ("--guidance-scale", "1e308"), "--guidance-scale must be at most"),
    ("wide_model", ("-p", "x", "--guidance-scale", "1e308"), "--guidance-scale must be at most"),
    ("model", ("--sampler", "lucky"), "paired, greedy"),
    ("model", ("--prior", "cubic", "--ssg", "1"), "bilinear, dct, dse"),
    ("model", ("--ssg-schedule", "odd", "--ssg", "1"), "constant, linear"),
    ("model", ("zebra",), "unknown class 'zebra'; this model's classes are airplane, automobile, bird, cat"),
    ("model", ("77",), "class 77 is out of range: this model's classes are 0 to 9, and none is no class"),
    (
        "wide_model",
        ("-p", "x", "--guidance-layer", "1"),
        "use 0 for the logits, or --guidance-scale 1 for no",
    ),
    ("wide_model", ("-p", "x", "--guidance-layer", "-9"), "--guidance-layer must be 0 (the logits) or -1"),
    (
        "wide_model",
        ("-p", "x", "--pixels", "1M", "--height", "9"),
        "--aspect-ratio and --pixels, or --height",
    ),
    ("wide_model", ("-p", "x", "--height", "9"), "give both --height and --width"),
    ("wide_model", ("-p", "x", "--aspect-ratio", "9"), "16:9"),
    ("wide_model", ("-p", "x", "--tile", "0"), "--tile must be a whole number"),
    (
        "hart_model",
        ("-p", "a red fox", "--mask-iterations", "99"),
        "--mask-iterations must be a whole number",
    ),
]


@pytest.mark.parametrize(
    ("kind", "arguments", "expected"), BAD, ids=lambda v: " ".join(v) if isinstance(v, tuple) else ""
)
def test_no_message_names_a_python_argument(
    kind, arguments, expected, request, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    folder: Path = request.getfixturevalue(kind)
    with pytest.raises(SystemExit) as ended:
        main(["generate", *arguments, "-m", str(folder)])
    *_, last = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and last.startswith("error: ")
    assert expected in last and not PYTHON.search(last), last
    assert list(tmp_path.iterdir()) == []
