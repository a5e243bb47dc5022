"""Small models with random weights in folders, and a way to call the command line as users do."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.forkserver import run_command
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2Model, T5Config, T5EncoderModel

from nextscale.families.hart.pipeline import HARTPipeline
from nextscale.families.hart.text import HARTTextEncoder
from nextscale.families.hart.tokenizer import HARTTokenizer, HARTTokenizerConfig
from nextscale.families.hart.transformer import HARTTransformer, HARTTransformerConfig
from nextscale.families.infinity.pipeline import InfinityPipeline
from nextscale.families.infinity.tokenizer import InfinityTokenizer, InfinityTokenizerConfig
from nextscale.families.infinity.transformer import InfinityTransformer, InfinityTransformerConfig
from nextscale.families.var.pipeline import VARPipeline
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.families.words import WordEncoder
from nextscale.training.transformer import init_transformer

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SIDES = (1, 2, 3, 4, 6, 8)

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the library's layout: 32 x 32 pixels, CIFAR-10's classes, random weights."""
    shared = {"vocab_size": 64, "z_channels": 8, "patch_nums": SIDES}
    transformer = VARTransformer(
        VARTransformerConfig(**shared, num_classes=10, depth=2, embed_dim=32, num_heads=2)
    )
    # Everything larger than a training run would start from, so that classes and guidance make a difference.
    init_transformer(transformer, gate=1.0, modulation=1.0, head=2.0)
    tokenizer = VARTokenizer(
        VARTokenizerConfig(**shared, ch=8, ch_mult=(1, 2, 4), num_res_blocks=1, norm_groups=8)
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    VARPipeline(transformer, tokenizer, class_names=CIFAR10, name="tiny").save_pretrained(folder)
    return folder


def infinity(**tokenizer: object) -> InfinityPipeline:
    """Four bits a token, words for text, 4 pixels a cell."""
    torch.manual_seed(0)
    transformer = InfinityTransformer(
        InfinityTransformerConfig(
            bits=4, depth=2, embed_dim=32, num_heads=2, ffn_dim=64, text_dim=16, text_length=64, pool_heads=2
        )
    )
    with torch.no_grad():
        transformer.head.weight.mul_(4)  # so that text, guidance and seeds make a difference
    sizes = {"ch": 24, "encoder_ch_mult": (1, 1, 1), "decoder_ch_mult": (1, 1, 1), "num_res_blocks": 1}
    return InfinityPipeline(
        transformer,
        InfinityTokenizer(InfinityTokenizerConfig(bits=4, **sizes, **tokenizer)),
        text_encoder=WordEncoder(16),
        defaults={"pixels": "0.06M", "temperature": 1.0, "top_p": 0.0},
        name="tiny",
    )


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-to-image model of one size, 32 x 32 pixels, whose text encoder is made of words."""
    folder = tmp_path_factory.mktemp("models") / "one-size"
    infinity(patch_nums=(1, 2, 4, 8)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the published sizes, at a quarter of their pixels a side: 64 x 64 for 0.06M."""
    folder = tmp_path_factory.mktemp("models") / "all-sizes"
    infinity().save_pretrained(folder)
    return folder


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A token per word, for ten of them."""
    words = ["<pad>", "<unk>", "a", "red", "fox", "blue", "bird", "in", "the", "sky"]
    table = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    table.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=table, pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of the kind that Infinity reads prompts with, and its tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("text") / "t5"
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 10}
    T5EncoderModel(T5Config(**sizes)).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for HART."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("text") / "qwen"
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 10}
    Qwen2Model(Qwen2Config(**sizes, num_attention_heads=2, num_key_value_heads=1)).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def hart_model(tmp_path_factory: pytest.TempPathFactory, language_model: Path) -> Path:
    """HART with random weights: 16 x 16 pixels, 24 codes, and that language model."""
    torch.manual_seed(0)
    common = {"vocab_size": 24, "z_channels": 8, "patch_nums": (1, 2, 3, 4)}
    text = {"context_token": 6, "context_dim": 16}
    residual = {"diff_width": 16, "diff_depth": 1, "num_sampling_steps": "4"}
    sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_hidden": 64}
    transformer = HARTTransformer(HARTTransformerConfig(**common, **text, **sizes, **residual))
    tokenizer = HARTTokenizer(
        HARTTokenizerConfig(**common, ch=8, ch_mult=(1, 1, 1), num_res_blocks=1, norm_groups=8)
    )
    with torch.no_grad():
        for weight in (*transformer.parameters(), *tokenizer.parameters()):
            if weight.ndim > 1:  # none of them is zero, as some are where training starts
                weight.copy_(torch.randn(weight.shape) / math.prod(weight.shape[1:]) ** 0.5)
    folder = tmp_path_factory.mktemp("models") / "hart"
    encoder = HARTTextEncoder(language_model, context_token=6)
    HARTPipeline(transformer, tokenizer, text_encoder=encoder, name="tiny").save_pretrained(folder)
    return folder


@pytest.fixture
def nextscale(tmp_path: Path) -> Command:
    """Runs ``nextscale ARGUMENTS`` in an empty folder, see ``tests/forkserver.py``.

    It fails the test unless the exit code is as expected.
    """

    def run(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = run_command(arguments, tmp_path)
        assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done

    return run
