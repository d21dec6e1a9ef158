"""RWKV vocabularies: read from RWKV's own text format, written as GGUF tokens.

A vocabulary file has one token a line, `id repr(token) length`: ids count from 1 without gaps, the middle is a Python
string or bytes literal, the length is in bytes and proves that nothing was lost on the way. Id 0 is reserved (end of
text). Checkpoints round the number of rows of their embedding up; rows without a token become `[PADn]`.

The World vocabulary, which every released World model uses, comes with BlinkDL's PyPI package `rwkv`.
"""

from __future__ import annotations

import ast
import importlib.util
import logging
import re
from pathlib import Path

from gguf import TokenType

from ggufy.core.errors import VocabError
from ggufy.core.messages import Message

WORLD_FILE = "rwkv_vocab_v20230424.txt"
WORLD_SHA256 = (  # of BlinkDL's file, and of the same with CRLF
    "e6dee3d4e31b4d5c40ac99508ac6c701ceef4bed681bf2167ce9a908552bca89",
    "8324476023347dec2964625ccb2075c864d250a9c6d9a74f36daba628de8c008",
)
# World models have 6 rows more than tokens; trainers round up to multiples of 128, some of as much as 1,024. More
# rows than `most_padding` mean another vocabulary, such as that of a model that speaks.
_LEAST_PADDING, _MOST_PADDING = 128, 1024
END_OF_TEXT = b"<s>"
# A string literal without escapes, which holds what it shows.
_PLAIN = re.compile(r"'([^'\\\r\n\0]+)'")

logger = logging.getLogger(__name__)


def world_vocab_path() -> Path:
    """The World vocabulary inside the installed package `rwkv`, found without importing it, as that runs code."""
    spec = importlib.util.find_spec("rwkv")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / WORLD_FILE
        if path.is_file():
            return path
    raise VocabError("the World vocabulary {file} was not found: install it with `pip install rwkv`.", file=WORLD_FILE)


def load_vocab(path: Path) -> tuple[bytes, ...]:
    """The tokens of a vocabulary file, index = id; index 0 is END_OF_TEXT.

    Raises VocabError, with the number of the line, for anything that is not in the format, and for tokens that are
    empty or there twice: llama.cpp aborts on those.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise VocabError(
            "the vocabulary {path} does not exist: check the path given with {VOCAB}.", path=path
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise VocabError(
            "{name} cannot be read as a vocabulary: give RWKV's text format with {VOCAB}.", name=path.name
        ) from error
    tokens = [END_OF_TEXT]
    seen = {END_OF_TEXT: 0}
    # Not splitlines(): a token may hold one of the other characters that it would split at.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        try:
            token = _token(line, number)
        except ValueError as error:
            raise VocabError(
                "line {number} of {name} {wrong}: give a file in RWKV's vocabulary format with {VOCAB}.",
                number=number,
                name=path.name,
                wrong=error,
            ) from error
        if token in seen:
            raise VocabError(
                "line {number} of {name} repeats the token of id {id} ({token}): every token must be there once.",
                number=number,
                name=path.name,
                id=seen[token],
                token=repr(token),
            )
        seen[token] = number
        tokens.append(token)
    return tuple(tokens)


def most_padding(tokens: int) -> int:
    """How many rows more a model with so many tokens may have: a sixteenth of them, and between 128 and 1,024."""
    return min(_MOST_PADDING, max(_LEAST_PADDING, tokens // 16))


def vocab_for(rows: int, path: Path | None) -> tuple[bytes, ...]:
    """The vocabulary of a checkpoint with `rows` rows in emb.weight: of `path`, or World's if that is None.

    Raises VocabError if the sizes do not fit.
    """
    tokens = load_vocab(path if path is not None else world_vocab_path())
    if len(tokens) <= rows <= len(tokens) + most_padding(len(tokens)):
        missing = 256 - sum(len(token) == 1 for token in tokens)
        if missing:
            logger.warning("the vocabulary lacks %d of the 256 single bytes: text with those cannot be read", missing)
        return tokens
    if path is None and rows > len(tokens):
        raise VocabError(
            "emb.weight has {rows} rows, {more} more than the World vocabulary has tokens: this model has others, for "
            "speech perhaps; give its own vocabulary file with {VOCAB}.",
            rows=rows,
            more=rows - len(tokens),
        )
    if path is None:
        raise VocabError(
            "emb.weight has {rows} rows, but the World vocabulary has {count} tokens (with id 0): give the "
            "checkpoint's own vocabulary file with {VOCAB}.",
            rows=rows,
            count=len(tokens),
        )
    raise VocabError(
        "emb.weight has {rows} rows, but the vocabulary {name} has {count} tokens (with id 0): give the "
        "checkpoint's own vocabulary file with {VOCAB}.",
        rows=rows,
        name=path.name,
        count=len(tokens),
    )


def gguf_tokens(tokens: tuple[bytes, ...], rows: int) -> tuple[list[bytes], list[int]]:
    """Texts and types of all `rows` tokens for llama.cpp's tokenizer "rwkv": escaped as in a bytes literal."""
    texts = [END_OF_TEXT] + [repr(token)[2:-1].encode("ascii") for token in tokens[1:]]
    texts += [f"[PAD{number}]".encode("ascii") for number in range(len(tokens), rows)]
    types = [int(TokenType.CONTROL)] + [int(TokenType.NORMAL)] * (len(tokens) - 1)
    return texts, types + [int(TokenType.UNUSED)] * (rows - len(tokens))


def _token(line: str, number: int) -> bytes:
    """The token of one line; raises ValueError with what is wrong with the line."""
    identifier, _, rest = line.partition(" ")
    literal, _, length = rest.rpartition(" ")
    if not (identifier.isdecimal() and length.isdecimal() and literal):
        raise ValueError(Message("is not `id repr(token) length`"))
    try:
        # Most of the 65,529 tokens of World are plain words, which need no parser.
        plain = _PLAIN.fullmatch(literal)
        token = plain[1] if plain else ast.literal_eval(literal.strip())
        if isinstance(token, str):
            token = token.encode("utf-8")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(Message("holds no Python string or bytes literal")) from None
    if not isinstance(token, bytes) or not token:
        raise ValueError(Message("holds no token"))
    if int(identifier) != number:
        raise ValueError(Message("has the id {found} instead of {expected}", found=identifier, expected=number))
    if len(token) != int(length):
        raise ValueError(
            Message("announces {announced} bytes, but its token has {found}", announced=length, found=len(token))
        )
    return token
