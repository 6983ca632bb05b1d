"""What the text task reads: tokens to train on and tokens to validate with."""

from dataclasses import dataclass
from pathlib import Path

from keepstep.data.prepared import map_tokens, read_index
from keepstep.data.token_run import TokenRun
from keepstep.data.tokens import TRAIN_PERCENT, open_tokens, prepare_stdlib


@dataclass(frozen=True, slots=True)
class TextTokens:
    """Both parts, mapped read-only."""

    train: TokenRun
    validation: TokenRun
    vocabulary: int
    """Tokens are less than this."""
    digest: str
    """Names the tokens by content."""


def open_stdlib(directory: Path) -> TextTokens:
    """The Python standard library's own source, byte by byte; prepared here if it is not yet."""
    tokens = open_tokens(prepare_stdlib(directory))
    return TextTokens(
        train=TokenRun([tokens.train]),
        validation=TokenRun([tokens.validation]),
        vocabulary=tokens.info.vocabulary,
        digest=f"sha256:{tokens.info.sha256}",
    )


def open_prepared(directory: Path) -> TextTokens:
    """What ``keepstep data prepare`` made; the last twentieth is for validation."""
    index = read_index(directory)
    tokens = TokenRun(map_tokens(directory, index))
    split = len(tokens) * TRAIN_PERCENT // 100
    return TextTokens(
        train=tokens.part(0, split),
        validation=tokens.part(split, len(tokens)),
        vocabulary=index.vocabulary,
        digest=index.digest,
    )
