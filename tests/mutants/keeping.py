"""Faults in what a training keeps, and in what it starts from."""

from __future__ import annotations

from tests.mutants.job import Fault

FAULTS = (
    Fault(
        "figures come before the checkpoint",
        "training/trainer.py",
        "if run.stopped or last or measured or run.due(",
        "if run.stopped or (last and not measured) or run.due(",
        ("training/test_trainer.py",),
    ),
    Fault(
        "a failing evaluation ends a training",
        "training/measuring.py",
        "except Exception as error:",
        "except OSError as error:",
        ("training/test_trainer.py",),
    ),
    Fault(
        "a failing iteration saves nothing",
        "training/trainer.py",
        "if self.is_main and self.whole and self.step not in (0, self.saved_step):",
        "if self.saved_step == -1:",
        ("training/test_trainer.py",),
    ),
    Fault(
        "what a failed iteration saw counts twice",
        "training/trainer.py",
        "tensor.copy_(value)\n                with",
        "value.copy_(tensor)\n                with",
        ("training/test_trainer.py",),
    ),
    Fault(
        "weights that are none replace a checkpoint",
        "training/trainer.py",
        "if not (all_finite(self.task.model) and all_finite(self.averaged)):",
        "if self.step < 0:",
        ("training/test_trainer.py",),
    ),
    Fault(
        "a damaged record ends a log",
        "training/log.py",
        "except (ValueError, RecursionError):",
        "except KeyError:",
        ("training/test_log.py",),
    ),
    Fault(
        "some pictures in memory count for all",
        "training/digest.py",
        "digest.update(_bytes(pictures.cache))",
        "digest.update(_bytes(pictures.cache[:16]))",
        ("training/test_digest.py",),
    ),
    Fault(
        "the end of a picture file does not count",
        "training/digest.py",
        "while part := file.read(1 << 20):",
        "if part := file.read(64):",
        ("training/test_digest.py",),
    ),
    Fault(
        "a square in other words is another",
        "training/digest.py",
        "size = height_width(pictures.size)",
        "size = pictures.size",
        ("training/test_digest.py",),
    ),
    Fault(
        "the row for no class is new",
        "training/initial.py",
        "theirs[CLASS_TABLE][-1:] = null",
        "null",
        ("training/test_initial.py",),
    ),
    Fault(
        "all scales get the row of the first",
        "training/initial.py",
        'weights["lvl_embed.weight"][like]',
        'weights["lvl_embed.weight"][[0] * len(like)]',
        ("training/test_initial.py",),
    ),
    Fault(
        "idle codes are drawn by numbers that are none",
        "training/tokenizer.py",
        "if not torch.isfinite(weights.sum()):",
        "if weights is None:",
        ("cli/test_train.py",),
    ),
    Fault(
        "the entropy of bits raises for numbers that are none",
        "families/infinity/bits.py",
        "(torch.special.entr(mean) + torch.special.entr(1 - mean)).mean()",
        "F.binary_cross_entropy(mean, mean)",
        ("cli/test_train.py",),
    ),
    Fault(
        "checksums of a checkpoint are not compared",
        "training/checkpoint.py",
        "damaged = archive.testzip()",
        "damaged = None",
        ("cli/test_train.py",),
    ),
    Fault(
        "runs go on with other data",
        "training/checkpoint.py",
        "if old != new:",
        'if old != new and name != "data":',
        ("cli/test_train.py",),
    ),
)
