"""T5TextEncoder with a real T5, tiny and random, and a real tokenizer, trained here on a few sentences."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from nextscale import InfinityPipeline
from nextscale.errors import (
    InvalidArgumentError,
    MissingDependencyError,
    ModelNotFoundError,
    NextscaleWarning,
)
from nextscale.families.infinity.text import MAX_TOKENS, PUBLISHED, T5TextEncoder
from nextscale.families.infinity.tokenizer import InfinityTokenizer, InfinityTokenizerConfig
from nextscale.families.infinity.transformer import InfinityTransformer, InfinityTransformerConfig

PROMPTS = ["a cat", "two ships sail by the sea, and a dog looks on", "", "horse"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A unigram tokenizer that closes every text with an end token, as T5's."""
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    unigram.train_from_iterator([*PROMPTS, "a dog on a horse", "cats and boats"], trainer)
    unigram.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=unigram, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> T5EncoderModel:
    torch.manual_seed(0)
    sizes = dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu")
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(model: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("t5")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_features_are_those_of_the_padded_batch(model: Any, tokenizer: Any):
    """The official way: pad, run with the mask, keep the rows of real tokens."""
    encoder = T5TextEncoder.from_models(model, tokenizer)
    assert encoder.width == 32
    text = encoder(PROMPTS)
    padded = tokenizer(PROMPTS, padding="max_length", max_length=40, return_tensors="pt")
    hidden = model(input_ids=padded.input_ids, attention_mask=padded.attention_mask).last_hidden_state
    assert text.features.dtype == torch.float32
    assert text.lengths == padded.attention_mask.sum(1).tolist()
    for row, (length, expected) in enumerate(zip(text.lengths, hidden, strict=True)):
        torch.testing.assert_close(text.features[row, :length], expected[:length], rtol=0, atol=1e-5)
        assert text.mask[row].tolist() == [True] * length + [False] * (max(text.lengths) - length)


def test_features_do_not_depend_on_neighbours(model: Any, tokenizer: Any):
    encoder = T5TextEncoder.from_models(model, tokenizer)
    together = encoder(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        alone = encoder([prompt])
        assert torch.equal(alone.features[0], together.features[row, : together.lengths[row]])


def test_the_end_token_counts(model: Any, tokenizer: Any):
    text = T5TextEncoder.from_models(model, tokenizer)(["", "a cat"])
    assert text.lengths == [1, len(tokenizer("a cat").input_ids)]


def test_a_long_prompt_is_cut_and_the_warning_says_what_is_lost(model: Any, tokenizer: Any):
    prompt = "a cat and a dog and the sea"
    words = tokenizer(prompt, add_special_tokens=False).input_ids
    encoder = T5TextEncoder.from_models(model, tokenizer, max_length=5)
    with pytest.warns(NextscaleWarning, match=f"prompt 1 is too long: of its {len(words)} tokens") as caught:
        text = encoder(["a cat", prompt])
    assert tokenizer.decode(words[4:]) in str(caught[0].message)
    assert caught[0].filename == __file__  # it points at the caller, not into the library
    assert text.lengths == [len(tokenizer("a cat").input_ids), 5]
    kept = [*tokenizer(prompt).input_ids[:4], tokenizer.eos_token_id]
    expected = model(input_ids=torch.tensor([kept])).last_hidden_state[0]
    assert torch.equal(text.features[1], expected)


def test_a_prompt_that_just_fits_is_not_cut(model: Any, tokenizer: Any):
    fits = len(tokenizer("a cat").input_ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        T5TextEncoder.from_models(model, tokenizer, max_length=fits)(["a cat"])


def test_loading_by_name_when_first_called(folder: Path, model: Any, tokenizer: Any):
    encoder = T5TextEncoder(folder, device="cpu")
    assert encoder.name == str(folder)
    assert encoder.width == 32  # known from the configuration alone
    assert torch.equal(
        encoder(PROMPTS).features, T5TextEncoder.from_models(model, tokenizer)(PROMPTS).features
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str, folder: Path):
    exact, half = (T5TextEncoder(folder, device="cpu", dtype=d)(PROMPTS) for d in ("float32", dtype))
    assert half.features.dtype == torch.float32
    torch.testing.assert_close(half.features, exact.features, rtol=0, atol=0.05)
    assert not torch.equal(half.features, exact.features)


def test_released_weights_are_loaded_again(folder: Path):
    encoder = T5TextEncoder(folder, device="cpu")
    before = encoder(["a cat"])
    encoder.release()
    assert encoder._model is None
    assert torch.equal(encoder(["a cat"]).features, before.features)


def test_released_models_cannot_come_back(model: Any, tokenizer: Any):
    encoder = T5TextEncoder.from_models(model, tokenizer)
    encoder.release()
    with pytest.raises(InvalidArgumentError, match="released; make a new one"):
        encoder(["a cat"])


def test_nothing_is_loaded_before_it_is_needed():
    encoder = T5TextEncoder(device="cpu")
    assert (encoder.name, encoder.max_length) == (PUBLISHED, MAX_TOKENS) == ("google/flan-t5-xl", 512)


def test_a_model_that_is_not_there(tmp_path: Path):
    with pytest.raises(ModelNotFoundError, match="cannot load the text encoder"):
        T5TextEncoder(tmp_path / "none", device="cpu")(["a cat"])
    with pytest.raises(ModelNotFoundError, match="nobody/nothing"):  # the tests have no network
        _ = T5TextEncoder("nobody/nothing", device="cpu").width


def test_without_transformers_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "nextscale\[text\]"'):
        T5TextEncoder(device="cpu")(["a cat"])


@pytest.mark.parametrize("length", [1, 0, 2.5, True, None])
def test_bad_lengths(length: Any):
    with pytest.raises(InvalidArgumentError, match="max_length must be a whole number of at least 2"):
        T5TextEncoder(max_length=length, device="cpu")


def test_prompts_through_a_pipeline(model: Any, tokenizer: Any):
    """Strings and their features make the same pictures; the encoder can be dropped in between."""
    torch.manual_seed(0)
    sizes = InfinityTransformerConfig(
        bits=4, depth=2, embed_dim=16, num_heads=2, ffn_dim=32, text_dim=32, pool_heads=2
    )
    channels: dict[str, Any] = dict(ch=24, encoder_ch_mult=(1, 1), decoder_ch_mult=(1, 1), num_res_blocks=1)
    pipe = InfinityPipeline(
        InfinityTransformer(sizes).eval(),
        InfinityTokenizer(InfinityTokenizerConfig(bits=4, patch_nums=(1, 2, 3), **channels)).eval(),
        text_encoder=T5TextEncoder.from_models(model, tokenizer),
    )
    expected = pipe(PROMPTS, negative_prompt="horse", seed=0, output_type="pt")
    text, negative = pipe.encode_prompts(PROMPTS), pipe.encode_prompts("horse")
    assert pipe.text_encoder is not None
    pipe.text_encoder.release()
    found = pipe(text, negative_prompt=negative, seed=0, output_type="pt")
    assert torch.equal(found.images, expected.images)
    with pytest.raises(InvalidArgumentError, match="released"):
        pipe(PROMPTS)
