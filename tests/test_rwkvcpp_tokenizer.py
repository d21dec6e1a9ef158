"""Tokenizers of rwkv.cpp's models: against the packages that others read with, and what does not fit is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import tokenizers
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER
from tokenizers import decoders, models, pre_tokenizers, trainers

from ggufy.core.errors import SourceError, VocabError
from ggufy.models.vocab import world_vocab_path
from ggufy.rwkvcpp.tokenizer import PILE_ROWS, WORLD_ROWS, JsonTokenizer, Tokenizer, TrieTokenizer, tokenizer_of
from tests import tiny
from tests.reference import reference_file

pytestmark = pytest.mark.fast

TEXTS = (
    "In the morning the old man walked down to the river.\n\nUser: hi\n\nAssistant:",
    "你好，世界。\n\n🎉👩‍👩‍👧 e\u0301 \x00\x01\t  two   three    blanks\r\n",
    "".join(map(chr, range(1, 0x250))),
)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer like the Pile's, with an added token of blanks."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([*TEXTS, *["a\n\n"] * 50], trainer)
    made.add_tokens(["    "])
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    made.save(str(path))
    return path


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*map(stream.feed, ids), stream.rest()]


@pytest.mark.parametrize("which", ["made", "20B"])
def test_a_json_reads_as_its_package_does(bpe: Path, which: str) -> None:
    path = bpe if which == "made" else reference_file("rwkvcpp/upstream/20B_tokenizer.json")
    ours, theirs = JsonTokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    assert len(ours.tokens) == theirs.get_vocab_size()
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text).ids
        assert ours.decode(ids) == "".join(pieces(ours, ids)) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids) == text or which == "20B"  # which makes one letter of a letter and its accent
    if which == "20B":
        assert (ours.single("\n"), ours.single("\n\n"), ours.single("<|endoftext|>")) == (187, 535, 0)
        assert ours.prompt("Hi\n\n") == [12764, 187, 187] and ours.encode("Hi\n\n") == [12764, 535]


def test_a_blank_line_at_the_end_of_a_prompt_is_two_tokens(bpe: Path) -> None:
    tokenizer = JsonTokenizer(bpe)
    line, empty = tokenizer.single("\n"), tokenizer.single("\n\n")
    assert line is not None and empty is not None
    assert tokenizer.prompt("a\n\n")[-2:] == [line, line] and tokenizer.encode("a\n\n")[-1] == empty
    assert tokenizer.prompt("a\n\nb") == tokenizer.encode("a\n\nb")


def test_world_reads_as_its_package_does() -> None:
    ours, theirs = tokenizer_of(Path("any.bin"), WORLD_ROWS), TRIE_TOKENIZER(str(world_vocab_path()))
    for text in (*TEXTS, Path(__file__).read_text(encoding="utf-8")):
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == "".join(pieces(ours, ids)) == text
    assert (ours.single("\n"), ours.single("\n\n")) == (11, 261)
    assert ours.prompt("a\n\n")[-1] == 261


def test_the_longest_token_comes_first(tmp_path: Path) -> None:
    tokens = [bytes([byte]) for byte in range(256)] + [b"aab", b"aabab", b"ba"]
    tokenizer = tokenizer_of(tmp_path / "m.bin", 260, str(tiny.write_vocab(tmp_path / "v.txt", tokens)))
    random.seed(1)
    for _ in range(200):
        text = "".join(random.choices("ab", k=12))
        ids, place = tokenizer.encode(text), 0
        for token in (tokenizer.tokens[number] for number in ids):
            longest = max((t for t in tokens if text.encode()[place:].startswith(t)), key=len)
            assert token == longest
            place += len(token)
        assert place == len(text)


def test_half_a_letter_waits_for_its_other_half(tmp_path: Path) -> None:
    tokens = ["中".encode()[:1], "中".encode()[1:], b"a"]
    tokenizer = TrieTokenizer("made", [b"", *tokens])
    assert pieces(tokenizer, [1, 2, 3, 1]) == ["", "中", "a", "", "\ufffd"]
    assert pieces(tokenizer, [1, 3]) == ["", "\ufffda", ""]
    with pytest.raises(SourceError, match=r"no token for the byte 98 of this text: give"):
        tokenizer.encode("ab")


def test_auto_goes_by_the_size_of_the_vocabulary(tmp_path: Path, bpe: Path) -> None:
    model = tmp_path / "m.bin"
    with pytest.raises(VocabError, match=r"put 20B_tokenizer.json of github.com/BlinkDL/ChatRWKV beside it"):
        tokenizer_of(model, PILE_ROWS)
    with pytest.raises(VocabError, match=r"m.bin has 321 tokens, neither .* with --tokenizer"):
        tokenizer_of(model, 321)
    tiny.write_vocab(tmp_path / "own.vocab.txt")
    assert tokenizer_of(model, 321).name == "own.vocab.txt"
    rows = len(JsonTokenizer(bpe).tokens)
    (tmp_path / "tokenizer.json").write_bytes(bpe.read_bytes())
    assert tokenizer_of(model, rows).name == "tokenizer.json"
    with pytest.raises(VocabError, match=rf"has 50277 tokens, but the tokenizer tokenizer.json has {rows}: give"):
        tokenizer_of(model, PILE_ROWS)
    (tmp_path / "20B_tokenizer.json").write_bytes(reference_file("rwkvcpp/upstream/20B_tokenizer.json").read_bytes())
    assert tokenizer_of(model, PILE_ROWS).name == "20B_tokenizer.json"


@pytest.mark.parametrize("wish", ["world", "20B", "FILE"])
def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, bpe: Path, wish: str) -> None:
    (tmp_path / "20B_tokenizer.json").write_bytes(bpe.read_bytes())
    with pytest.raises(VocabError, match=r"m.bin has 256 tokens, but the tokenizer .* has \d+: give the one"):
        tokenizer_of(tmp_path / "m.bin", 256, str(bpe) if wish == "FILE" else wish)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "cannot be read as a tokenizer"),
        ("[]", "cannot be read as a tokenizer"),
        ('{"decoder": null}', "are not bytes"),
        ('{"decoder": {"type": "WordPiece"}}', "are not bytes"),
        ('{"decoder": {"type": "ByteLevel"}}', "cannot be read as a tokenizer"),
        ("[" * 100_000, "cannot be read as a tokenizer"),
    ],
)
def test_a_broken_json_is_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "t.json").write_text(content, encoding="utf-8")
    with pytest.raises(VocabError, match=says):
        tokenizer_of(tmp_path / "m.bin", 300, str(tmp_path / "t.json"))
    with pytest.raises(VocabError, match="does not exist: check"):
        tokenizer_of(tmp_path / "m.bin", 300, str(tmp_path / "none.json"))


def test_another_kind_of_json_is_refused(tmp_path: Path, bpe: Path) -> None:
    record = json.loads(bpe.read_text(encoding="utf-8"))
    record["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    (tmp_path / "t.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(VocabError, match="are not bytes: give"):
        JsonTokenizer(tmp_path / "t.json")
