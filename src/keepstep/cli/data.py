"""``keepstep data prepare``: text and JSONL files to token files."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from keepstep.cli.output import Flag, bytes_in_words, print_json
from keepstep.cli.progress import ProgressLine
from keepstep.data.documents import find_inputs
from keepstep.data.prepare import Prepared, prepare_tokens
from keepstep.data.tokenizers import BYTES, open_tokenizer

Token = Annotated[str | None, Parameter(show_default=False)]


def prepare(
    *inputs: str,
    output: str,
    tokenizer: str = BYTES,
    text_field: str = "text",
    end_of_document: Token = None,
    json: Flag = False,
) -> None:
    """Turn text into token files that any number of processes map into memory.

    A line of a .jsonl, .ndjson or .json file is a document, any other file is one as a whole; both
    may be packed (.gz, .bz2, .xz). A command that was cut off goes on when it is given again; one
    that had come to its end reads the files back and checks them.

    Parameters
    ----------
    inputs
        Files, patterns such as 'corpus/*.jsonl.gz', directories, or URLs of them that fsspec knows.
    output
        Directory of the token files.
    tokenizer
        `bytes`, or a Hugging Face tokenizer file (tokenizer.json).
    text_field
        What holds the text in a JSON object.
    end_of_document
        The token of a tokenizer file that follows each document; the usual one if left out.
    json
        Print JSON.
    """
    files = find_inputs(inputs)
    with ProgressLine("prepare", sum(file.size_bytes for file in files)) as line:
        prepared = prepare_tokens(
            files,
            Path(output),
            open_tokenizer(tokenizer, end_of_document),
            text_field=text_field,
            on_read=line.add,
        )
    if json:
        print_json(_document(prepared, output))
    else:
        print(_in_words(prepared, output))


def _in_words(prepared: Prepared, output: str) -> str:
    index = prepared.index
    size_bytes = index.tokens * index.numpy_dtype.itemsize
    before = f", {prepared.shards_before} there already" if prepared.shards_before else ""
    return (
        f"{output}: {index.tokens} tokens of {index.vocabulary}, {index.documents} documents "
        f"({index.dtype}, {bytes_in_words(size_bytes)}, {len(index.shards)} shards{before})"
    )


def _document(prepared: Prepared, output: str) -> dict[str, object]:
    index = prepared.index
    return {
        "output": output,
        "tokens": index.tokens,
        "documents": index.documents,
        "vocabulary": index.vocabulary,
        "dtype": index.dtype,
        "tokenizer": index.tokenizer,
        "shards": len(index.shards),
        "shards_before": prepared.shards_before,
        "digest": index.digest,
    }
