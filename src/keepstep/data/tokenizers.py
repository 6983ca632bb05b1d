"""What turns text into tokens."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from keepstep.errors import ConfigError

BYTES = "bytes"
_USUAL_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


class Tokenizer(Protocol):
    """Encodes text piece by piece."""

    name: str
    """Stands for everything that determines the tokens."""
    vocabulary: int
    """Tokens are less than this."""
    end_of_document: int
    """The token that comes after each document."""

    def encode(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """The tokens of each text, without any that mark its beginning or end."""


def open_tokenizer(name: str, end_of_document: str | None = None) -> Tokenizer:
    """The tokenizer of a name: ``bytes``, or a path to a Hugging Face ``tokenizer.json``.

    Args:
        end_of_document: The token to put after each document; by default the usual one that the
            tokenizer has.

    *Raises:* ``ConfigError`` if the file is not one, its package is missing, or no token is fit.
    """
    if name != BYTES:
        return _FileTokenizer(Path(name), end_of_document)
    if end_of_document is not None:
        raise ConfigError("--end-of-document has no effect with bytes, where it is the zero byte")
    return _Bytes()


class _Bytes:
    name = BYTES
    vocabulary = 256
    end_of_document = 0

    def encode(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]


class _FileTokenizer:
    def __init__(self, path: Path, end_of_document: str | None) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise ConfigError(
                f"{path}: tokenizer files need a package: pip install 'keepstep[data]'"
            ) from error
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"tokenizer {path}: {error.strerror}") from error
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # tokenizers raises nothing narrower
            raise ConfigError(f"{path}: not a Hugging Face tokenizer file ({error})") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        end = _end_token(vocabulary, end_of_document, path)
        self.vocabulary = max(vocabulary.values()) + 1
        self.end_of_document = vocabulary[end]
        self.name = f"sha256:{sha256(content).hexdigest()} {end}"

    def encode(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=np.uint32) for one in encoded]


def _end_token(vocabulary: dict[str, int], wanted: str | None, path: Path) -> str:
    candidates = _USUAL_ENDS if wanted is None else (wanted,)
    end = next((token for token in candidates if token in vocabulary), None)
    if end is None:
        raise ConfigError(
            f"{path}: no token {' or '.join(candidates)}: name the one that is to follow each "
            "document by --end-of-document"
        )
    return end
