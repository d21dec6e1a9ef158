"""Tokenizers of models in rwkv.cpp's files, which hold none: the Pile's, World's, or one of a file.

    auto         by the size of the model's vocabulary: 50277 tokens are the Pile's, 65536 are World's, and for any
                 other size a file beside the model
    20B          EleutherAI's GPT-NeoX-20B tokenizer, in which the Pile and Raven models of RWKV-4 read: a JSON file of
                 the package `tokenizers`, which is not part of ggufy
    world        the vocabulary of every released World model
    FILE         a tokenizers JSON whose tokens are bytes (ByteLevel), or a vocabulary in RWKV's text format

Ids below a model's number of tokens are all that it can be given, so a tokenizer with more is refused at once.
"""

from __future__ import annotations

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from ggufy.core.errors import SourceError, VocabError
from ggufy.core.messages import Message
from ggufy.models.vocab import load_vocab, most_padding, world_vocab_path

AUTO, PILE, WORLD = "auto", "20B", "world"
PILE_ROWS, WORLD_ROWS = 50277, 65536  # of the embeddings of all models that have these tokenizers
END_OF_TEXT = 0  # id, in both
PILE_NAMES = ("20B_tokenizer.json", "tokenizer.json")  # as RWKV's and other repos call the file
_VOCABULARIES = "*vocab*.txt"
_MOST_BYTES = 64 << 20  # of a JSON file; the Pile's has 2.4 MB


class Tokenizer(ABC):
    """Text to ids and back."""

    def __init__(self, name: str, tokens: Sequence[bytes]):
        self.name = name  # for people
        self.tokens = tokens  # by id; empty where there is none

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises SourceError for a text that the vocabulary cannot write."""

    def prompt(self, text: str) -> list[int]:
        """The ids of a text that a model is to go on with."""
        return self.encode(text)

    def single(self, text: str) -> int | None:
        """The id of the one token that is this text; None if it takes several."""
        ids = self.encode(text)
        return ids[0] if len(ids) == 1 else None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids; what is no UTF-8 becomes U+FFFD."""
        return b"".join(map(self._bytes, ids)).decode("utf-8", errors="replace")

    def stream(self) -> Stream:
        return Stream(self)

    def _bytes(self, token: int) -> bytes:
        return self.tokens[token] if token != END_OF_TEXT and token < len(self.tokens) else b""


class Stream:
    """A text whose tokens come one by one: letters of several tokens wait until they are whole."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """What can be read now, with this token."""
        return self._decoder.decode(self._tokenizer._bytes(token))

    def rest(self) -> str:
        """What a letter that is not whole becomes at the end."""
        return self._decoder.decode(b"", final=True)


class TrieTokenizer(Tokenizer):
    """RWKV's own: the longest token that fits, from left to right."""

    def __init__(self, name: str, tokens: Sequence[bytes]):
        super().__init__(name, tokens)
        self._ids = {token: number for number, token in enumerate(tokens) if number != END_OF_TEXT}
        lengths: dict[bytes, set[int]] = {}
        for token in self._ids:
            lengths.setdefault(token[:2], set()).add(len(token))
        # By how a text goes on: a token of one byte is found under that byte, a longer one under its first two.
        self._lengths = {start: sorted(found, reverse=True) for start, found in lengths.items()}

    def encode(self, text: str) -> list[int]:
        data, place, ids = text.encode("utf-8"), 0, []
        while place < len(data):
            token = self._longest(data, place)
            if token is None:
                raise SourceError(
                    "the vocabulary {name} has no token for the byte {byte} of this text: give the tokenizer of this "
                    "model with --tokenizer.",
                    name=self.name,
                    byte=data[place],
                )
            ids.append(self._ids[token])
            place += len(token)
        return ids

    def _longest(self, data: bytes, place: int) -> bytes | None:
        for start in (data[place : place + 2], data[place : place + 1]):
            for length in self._lengths.get(start, ()):
                if (token := data[place : place + length]) in self._ids:
                    return token
        return None


class JsonTokenizer(Tokenizer):
    """A file of the package `tokenizers` whose tokens are bytes, such as the Pile's."""

    def __init__(self, path: Path):
        from tokenizers import Tokenizer as Loaded  # noqa: PLC0415 - only these models need it
        from tokenizers import pre_tokenizers  # noqa: PLC0415

        text = _json_text(path)
        try:
            self._loaded = Loaded.from_str(text)
        except Exception as error:  # the package raises nothing narrower
            raise _unreadable(path, error) from error
        alphabet = {letter: byte for byte, letter in _byte_letters().items()}
        assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
        vocab = self._loaded.get_vocab(with_added_tokens=True)
        tokens = [b""] * (max(vocab.values(), default=-1) + 1)
        for token, number in vocab.items():
            known = all(letter in alphabet for letter in token)  # others were added, and stand for themselves
            tokens[number] = bytes(alphabet[letter] for letter in token) if known else token.encode("utf-8")
        super().__init__(path.name, tokens)
        self._newline, self._empty_line = self.single("\n"), self.single("\n\n")

    def encode(self, text: str) -> list[int]:
        return list(self._loaded.encode(text, add_special_tokens=False).ids)

    def prompt(self, text: str) -> list[int]:
        """A blank line at its end is two tokens: in what the Pile's models have read, the token of the blank line
        never came before text (BlinkDL/ChatRWKV, pull request 110)."""
        ids = self.encode(text)
        if ids and ids[-1] == self._empty_line and self._newline is not None:
            ids[-1:] = [self._newline, self._newline]
        return ids


def tokenizer_of(model: Path, rows: int, wish: str = AUTO) -> Tokenizer:
    """The tokenizer for a model of `rows` tokens: `wish` is auto, 20B, world, or the path of a file.

    Raises VocabError if there is none, or if it does not fit the model.
    """
    tokenizer = _opened(model, rows, wish)
    count = len(tokenizer.tokens)
    if not count <= rows <= count + most_padding(count):
        raise VocabError(
            "{model} has {rows} tokens, but the tokenizer {name} has {count}: give the one that it was trained with, "
            "with --tokenizer.",
            model=model.name,
            rows=rows,
            name=tokenizer.name,
            count=count,
        )
    return tokenizer


def _opened(model: Path, rows: int, wish: str) -> Tokenizer:
    if wish == WORLD or (wish == AUTO and rows == WORLD_ROWS):
        return TrieTokenizer(WORLD, load_vocab(world_vocab_path()))
    if wish == PILE or (wish == AUTO and rows == PILE_ROWS):
        beside = (model.parent / name for name in PILE_NAMES)
        if (found := next((path for path in beside if path.is_file()), None)) is None:
            raise VocabError(
                "{model} needs the tokenizer of the Pile, which ggufy does not bring: put 20B_tokenizer.json of "
                "github.com/BlinkDL/ChatRWKV beside it, or give its path with --tokenizer.",
                model=model.name,
            )
        return JsonTokenizer(found)
    if wish != AUTO:
        return _of_file(Path(wish))
    names = [*PILE_NAMES, *sorted(path.name for path in model.parent.glob(_VOCABULARIES))]
    if (found := next((path for name in names if (path := model.parent / name).is_file()), None)) is None:
        raise VocabError(
            "{model} has {rows} tokens, neither the Pile's nor World's: give its tokenizer with --tokenizer.",
            model=model.name,
            rows=rows,
        )
    return _of_file(found)


def _of_file(path: Path) -> Tokenizer:
    if not path.is_file():
        raise VocabError("the tokenizer {path} does not exist: check the path given with --tokenizer.", path=path)
    return JsonTokenizer(path) if path.suffix == ".json" else TrieTokenizer(path.name, load_vocab(path))


def _json_text(path: Path) -> str:
    """The text of a JSON whose tokens are bytes. Raises VocabError for any other."""
    if path.stat().st_size > _MOST_BYTES:
        raise _unreadable(path, Message("it is too large"))
    try:
        text = path.read_text(encoding="utf-8")
        decoder = (json.loads(text).get("decoder") or {}).get("type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if decoder != "ByteLevel":
        raise VocabError(
            "the tokens of {name} are not bytes: give a tokenizers JSON with ByteLevel, or an RWKV vocabulary.",
            name=path.name,
        )
    return text


def _unreadable(path: Path, why: object) -> VocabError:
    return VocabError(
        "{name} cannot be read as a tokenizer ({why}): give a tokenizers JSON or an RWKV vocabulary with --tokenizer.",
        name=path.name,
        why=why,
    )


def _byte_letters() -> dict[int, str]:
    """How byte-level tokenizers write a byte as a letter (GPT-2's `bytes_to_unicode`): printable ones of Latin-1 as
    they are, the others as the letters from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(0x100 + place) for place, byte in enumerate(others)}
