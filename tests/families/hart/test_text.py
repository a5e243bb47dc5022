"""HARTTextEncoder with real Qwen2 models, tiny and random, and real tokenizers, trained here."""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2Model, Qwen2VLConfig, Qwen2VLModel

from nextscale import HARTPipeline
from nextscale.errors import (
    InvalidArgumentError,
    MissingDependencyError,
    ModelNotFoundError,
    NextscaleWarning,
)
from nextscale.families.hart import text as module
from nextscale.families.hart.text import HARTTextEncoder, read_system_prompt

PROMPTS = ["a cat", "two ships sail by the sea", "horse"]
PREFIX = "describe the picture in many words\n"
SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
SIZES |= dict(num_key_value_heads=2, vocab_size=300, max_position_embeddings=512)
SIZES |= dict(rms_norm_eps=1e-6, bos_token_id=None, eos_token_id=None)


@pytest.fixture(autouse=True)
def _warned():
    """The warning about the system prompt comes once per process; here, once per test."""
    module._warn_without_system_prompt.cache_clear()
    yield
    module._warn_without_system_prompt.cache_clear()


def make_tokenizer(side: str = "left") -> PreTrainedTokenizerFast:
    """Byte pairs without special tokens around a text, as Qwen2's."""
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer, pairs.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    pairs.train_from_iterator([*PROMPTS, PREFIX], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=pairs, pad_token="<|endoftext|>", padding_side=side)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="module")
def model() -> Qwen2Model:
    torch.manual_seed(0)
    return Qwen2Model._from_config(Qwen2Config(**SIZES), attn_implementation="eager").requires_grad_(False)


@pytest.fixture(scope="module")
def folder(model: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen2")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def encoder(model: Any, tokenizer: Any, prefix: str | None = PREFIX, length: int = 24) -> HARTTextEncoder:
    return HARTTextEncoder.from_models(
        model, tokenizer, context_token=length, system_prompt=prefix, verify=False
    )


def by_hand(model: Any, tokenizer: Any, prompt: str, prefix: str, length: int) -> Tensor:
    """Prefix and padded prompt through the model, and the prefix cut off."""
    ahead, own = tokenizer(prefix).input_ids[:length], tokenizer(prompt).input_ids
    padding = [tokenizer.pad_token_id] * (length - len(own))
    both = ahead + (padding + own if tokenizer.padding_side == "left" else own + padding)
    empty = [0] * len(padding)
    seen = [1] * len(ahead) + (
        empty + [1] * len(own) if tokenizer.padding_side == "left" else [1] * len(own) + empty
    )
    out = model(
        input_ids=torch.tensor([both]),
        attention_mask=torch.tensor([seen]),
        position_ids=torch.arange(len(both))[None],
        output_hidden_states=True,
    )
    return out.hidden_states[-1][:, len(ahead) :]


# ---------------------------------------------------------------------- features


@pytest.mark.parametrize("side", ["left", "right"])
def test_features_are_what_the_model_says_after_the_prefix(side: str, model: Any):
    tokenizer = make_tokenizer(side)
    text = encoder(model, tokenizer)(PROMPTS)
    assert text.features.shape == (3, 24, 32)
    assert text.features.dtype == torch.float32
    for row, prompt in enumerate(PROMPTS):
        expected = by_hand(model, tokenizer, prompt, PREFIX, 24)
        torch.testing.assert_close(text.features[row : row + 1], expected, rtol=0, atol=1e-5)
        count = len(tokenizer(prompt).input_ids)
        own = range(24 - count, 24) if side == "left" else range(count)
        assert text.mask[row].nonzero().flatten().tolist() == list(own)


@pytest.mark.parametrize("prefix", [PREFIX, None])
@pytest.mark.filterwarnings("ignore:HART's weights were trained")
def test_features_do_not_depend_on_neighbours(prefix: str | None, model: Any, tokenizer: Any):
    make = encoder(model, tokenizer, prefix)
    together = make(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        assert torch.equal(make([prompt]).features[0], together.features[row])


@pytest.mark.filterwarnings("ignore:HART's weights were trained")
def test_the_prefix_colours_the_features(model: Any, tokenizer: Any):
    with_prefix, without = (encoder(model, tokenizer, p)(PROMPTS) for p in (PREFIX, None))
    assert torch.equal(with_prefix.mask, without.mask)
    own = with_prefix.mask
    assert float((with_prefix.features - without.features)[own].abs().mean()) > 1e-2


@pytest.mark.filterwarnings("ignore:HART's weights were trained")
def test_without_prefix_words_do_not_see_the_padding_before_them(model: Any, tokenizer: Any):
    """Padding that has nothing to attend to has features all the same, and they are finite."""
    text = encoder(model, tokenizer, None)(["a cat"])
    assert text.features.isfinite().all()
    ids = torch.tensor([tokenizer("a cat").input_ids])
    positions = torch.arange(24 - ids.shape[1], 24)[None]
    alone = model(input_ids=ids, position_ids=positions).last_hidden_state
    torch.testing.assert_close(text.features[text.mask][None], alone, rtol=0, atol=1e-5)


def test_a_model_of_text_and_pictures_gives_the_same(model: Any, tokenizer: Any):
    """Qwen2-VL turns rows, columns and time alike for text, so its language model is that of Qwen2."""
    vision = dict(depth=1, embed_dim=16, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=14)
    rope = dict(type="mrope", mrope_section=[2, 1, 1], rope_type="default", rope_theta=10000.0)
    sizes = {**SIZES, "rope_parameters": rope, "rope_scaling": rope}
    both = Qwen2VLModel._from_config(
        Qwen2VLConfig(text_config=sizes, vision_config=vision), attn_implementation="eager"
    )
    both.language_model.load_state_dict(model.state_dict())
    found = encoder(both.requires_grad_(False), tokenizer)
    assert found.width == 32
    expected = encoder(model, tokenizer)(PROMPTS)
    assert torch.equal(found(PROMPTS).mask, expected.mask)
    torch.testing.assert_close(found(PROMPTS).features, expected.features, rtol=0, atol=1e-5)
    assert found.model is both.language_model


def test_a_long_prompt_is_cut_and_the_warning_says_what_is_lost(model: Any, tokenizer: Any):
    prompt = "two ships sail by the sea and a horse"
    ids = tokenizer(prompt).input_ids
    make = encoder(model, tokenizer, length=6)
    with pytest.warns(NextscaleWarning, match=f"prompt 1 is too long: of its {len(ids)} tokens the first 6"):
        text = make(["a cat", prompt])
    assert text.mask[1].all()
    expected = by_hand(model, tokenizer, tokenizer.decode(ids[:6]), PREFIX, 6)
    torch.testing.assert_close(text.features[1:], expected, rtol=0, atol=1e-5)


def test_an_empty_prompt(model: Any, tokenizer: Any):
    with pytest.raises(InvalidArgumentError, match="prompt 1 has no text: ''"):
        encoder(model, tokenizer)(["a cat", ""])


def test_a_tokenizer_that_cannot_pad(model: Any):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(InvalidArgumentError, match="has no padding token; set its pad_token"):
        encoder(model, tokenizer)(["a cat"])


# ---------------------------------------------------------------------- the system prompt


def test_the_published_system_prompt_is_told_by_its_digest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The text itself is not ours; another one plays its part."""
    text = "Write down what the picture shows:\n- a\n- b\n"
    monkeypatch.setattr(module, "SYSTEM_PROMPT_LENGTH", len(text))
    monkeypatch.setattr(module, "SYSTEM_PROMPT_SHA256", hashlib.sha256(text.encode()).hexdigest())
    file = tmp_path / "prompt.txt"
    file.write_text(text, encoding="utf-8")
    for given in (text, file, str(file)):
        assert read_system_prompt(given) == text
        assert HARTTextEncoder(system_prompt=given, device="cpu").system_prompt == text
    file.write_bytes(text.replace("\n", "\r\n").encode())
    assert read_system_prompt(file) == text
    with pytest.raises(
        InvalidArgumentError, match=f"it has {len(text) - 1} characters instead of {len(text)}"
    ):
        read_system_prompt(text.rstrip("\n"))


def test_another_system_prompt_is_refused_unless_it_is_meant(tmp_path: Path):
    other = "x" * module.SYSTEM_PROMPT_LENGTH
    with pytest.raises(
        InvalidArgumentError, match=r"705 characters instead of 705 and the SHA-256 .* 424f7aa7"
    ):
        HARTTextEncoder(system_prompt=other, device="cpu")
    assert HARTTextEncoder(system_prompt=other, verify=False, device="cpu").system_prompt == other
    with pytest.raises(InvalidArgumentError, match="cannot read the system prompt"):
        read_system_prompt(tmp_path / "none.txt")
    with pytest.raises(InvalidArgumentError, match=r"hart/utils/constants\.py"):
        read_system_prompt("no such file")


def test_one_warning_without_system_prompt(model: Any, tokenizer: Any):
    make = encoder(model, tokenizer, None)
    with pytest.warns(NextscaleWarning, match="trained with a system prompt .* llm_system_prompt") as caught:
        make(["a cat"])
    assert len(caught) == 1
    assert caught[0].filename == __file__  # it points at the caller, not into the library
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(["horse"])
        encoder(model, tokenizer, None)(["horse"])


def test_no_warning_with_one(model: Any, tokenizer: Any):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(model, tokenizer)(["a cat"])


# ---------------------------------------------------------------------- loading and letting go


def test_loading_by_name_when_first_called(folder: Path, model: Any, tokenizer: Any):
    found = HARTTextEncoder(folder, context_token=24, system_prompt=PREFIX, verify=False, device="cpu")
    assert found.name == str(folder)
    assert found.width == 32  # known from the configuration alone
    assert found._model is None
    assert torch.equal(found(PROMPTS).features, encoder(model, tokenizer)(PROMPTS).features)
    assert found.model.config._attn_implementation == "eager"


def test_released_weights_are_loaded_again(folder: Path):
    found = HARTTextEncoder(folder, context_token=24, system_prompt=PREFIX, verify=False, device="cpu")
    before = found(["a cat"])
    found.release()
    assert found._model is None
    assert torch.equal(found(["a cat"]).features, before.features)


def test_released_models_cannot_come_back(model: Any, tokenizer: Any):
    found = encoder(model, tokenizer)
    found.release()
    with pytest.raises(InvalidArgumentError, match="released; make a new one"):
        found(["a cat"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str, folder: Path):
    options = dict(context_token=24, system_prompt=PREFIX, verify=False, device="cpu")
    exact, half = (HARTTextEncoder(folder, dtype=d, **options)(PROMPTS) for d in ("float32", dtype))
    assert half.features.dtype == torch.float32
    torch.testing.assert_close(half.features, exact.features, rtol=0, atol=0.1)
    assert not torch.equal(half.features, exact.features)


def test_nothing_is_loaded_before_it_is_needed():
    found = HARTTextEncoder(device="cpu")
    assert (found.name, found.context_token) == ("mit-han-lab/Qwen2-VL-1.5B-Instruct", 300)


def test_a_model_that_is_not_there(tmp_path: Path):
    with pytest.raises(ModelNotFoundError, match="cannot load the text encoder"):
        HARTTextEncoder(tmp_path / "none", system_prompt=PREFIX, verify=False, device="cpu")(["a cat"])


def test_without_transformers_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "nextscale\[text\]"'):
        HARTTextEncoder(system_prompt=PREFIX, verify=False, device="cpu")(["a cat"])


@pytest.mark.parametrize("length", [0, -1, 2.5, True, None])
def test_bad_lengths(length: Any):
    with pytest.raises(InvalidArgumentError, match="context_token must be a positive whole number"):
        HARTTextEncoder(context_token=length, device="cpu")


# ---------------------------------------------------------------------- pictures


@pytest.mark.filterwarnings("ignore:HART's weights were trained")
def test_from_prompts_to_pictures(folder: Path, model: Any, tokenizer: Any, tiny: Callable, tmp_path: Path):
    """The whole way, with the encoder loaded by name, let go, and loaded again."""
    made = tiny(context_token=24, context_dim=32)
    made.save_pretrained(tmp_path)
    pipe = HARTPipeline.from_pretrained(tmp_path, text_encoder=folder, device="cpu")
    out = pipe(PROMPTS, seed=0, output_type="pt")
    assert out.settings["prompts"] == PROMPTS
    features = pipe.encode_prompts(PROMPTS)
    assert torch.equal(features.features, encoder(model, tokenizer, None)(PROMPTS).features)
    pipe.text_encoder.release()
    assert torch.equal(pipe(features, seed=0, output_type="pt").images, out.images)
    assert pipe.text_encoder._model is None  # features need no encoder
    assert torch.equal(pipe(PROMPTS, seed=0, output_type="pt").images, out.images)
    prefixed = HARTPipeline(made.transformer, made.tokenizer, text_encoder=encoder(model, tokenizer))
    other = prefixed(PROMPTS, seed=0, output_type="pt")
    assert other.settings["system_prompt_sha256"] == hashlib.sha256(PREFIX.encode()).hexdigest()
    assert not torch.allclose(other.images, out.images, atol=1e-2)
