"""Prepared tokens as a map-style data set of windows."""

from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keepstep.data.packing import pack_documents
from keepstep.data.prepared import document_starts, map_tokens, read_index
from keepstep.data.token_run import TokenRun
from keepstep.errors import ConfigError


class TokenDataset:
    """Windows of the token files that ``keepstep data prepare`` made.

    Sample ``i`` has ``context + 1`` tokens as int64: inputs but for the last, targets but for the
    first. By default documents follow each other, each with its end-of-document token, and are cut
    where a window ends: sample ``i`` is ``tokens[i * context : (i + 1) * context + 1]``.

    With ``whole_documents`` no document is cut that fits into a window: a sample is a dict of
    ``tokens``, as many whole documents as fit and then padding, and ``documents``, which numbers
    the document of each token from 1 and is 0 in the padding, for masks of attention and loss.

    Args:
        paths: Directories, read one after the other; prepared with the same tokenizer.
        context: Tokens of input per sample.
        whole_documents: Whether to pack whole documents.

    *Raises:* ``ConfigError`` naming a directory that cannot be used.
    """

    def __init__(
        self,
        *paths: str | Path,
        context: int,
        whole_documents: bool = False,
    ) -> None:
        if not paths or context < 1:
            raise ConfigError("a token data set needs a directory, and a context of at least 1")
        directories = [Path(path) for path in paths]
        indexes = [read_index(directory) for directory in directories]
        for directory, index in zip(directories, indexes, strict=True):
            if index.tokenizer != indexes[0].tokenizer:
                raise ConfigError(
                    f"{directory} was prepared with the tokenizer {index.tokenizer}, "
                    f"{directories[0]} with {indexes[0].tokenizer}: prepare them alike"
                )
        opened = list(zip(directories, indexes, strict=True))
        self.vocabulary = indexes[0].vocabulary
        """Tokens are less than this."""
        self._context = context
        self._end = indexes[0].end_of_document
        self._digests = [index.digest for index in indexes]
        self._run = TokenRun([part for one in opened for part in map_tokens(*one)])
        self._cuts: NDArray[np.uint64] | None = None
        if whole_documents:
            befores = np.cumsum([0, *(index.tokens for index in indexes)], dtype=np.uint64)
            starts = [
                document_starts(*one) + before for one, before in zip(opened, befores, strict=False)
            ]
            self._starts = np.concatenate(starts)
            self._cuts = pack_documents(self._starts, len(self._run), context + 1)

    @property
    def data_digest(self) -> str:
        """Changes with the tokens and the way they are cut."""
        packing = "whole" if self._cuts is not None else "cut"
        content = f"{self._context} {packing} {' '.join(self._digests)}"
        return f"sha256:{sha256(content.encode()).hexdigest()}"

    def __len__(self) -> int:
        if self._cuts is not None:
            return len(self._cuts) - 1
        return self._run.num_windows(self._context)

    def __getitem__(self, index: int) -> NDArray[np.int64] | dict[str, NDArray[np.int64]]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        if self._cuts is None:
            start = index * self._context
            return self._run.read(start, start + self._context + 1)
        return self._packed(int(self._cuts[index]), int(self._cuts[index + 1]))

    def _packed(self, start: int, stop: int) -> dict[str, NDArray[np.int64]]:
        tokens = np.full(self._context + 1, self._end, dtype=np.int64)
        documents = np.zeros(self._context + 1, dtype=np.int64)
        tokens[: stop - start] = self._run.read(start, stop)
        places = np.arange(start, stop, dtype=np.uint64)
        numbers = np.searchsorted(self._starts, places, side="right").astype(np.int64)
        documents[: stop - start] = numbers - numbers[0] + 1
        return {"tokens": tokens, "documents": documents}
