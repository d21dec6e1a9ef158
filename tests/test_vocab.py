"""RWKV's vocabulary format, the World vocabulary, and the fit to a checkpoint."""

from __future__ import annotations

import ast
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import TokenType

from ggufy.core.errors import VocabError
from ggufy.models.vocab import gguf_tokens, load_vocab, most_padding, vocab_for, world_vocab_path
from tests import tiny


def test_world_vocabulary_is_found_without_importing_its_package() -> None:
    tokens = load_vocab(world_vocab_path())
    assert len(tokens) == 65530
    assert tokens[0] == b"<s>"
    assert tokens[1] == b"\x00"
    assert tokens[256] == b"\xff"
    assert tokens[261] == b"\n\n"
    look = (
        "import sys; from ggufy.models.vocab import world_vocab_path; world_vocab_path(); print('rwkv' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"  # in a process of its own: other tests import the package


def test_own_vocabulary_comes_back_whole(tmp_path: Path) -> None:
    tokens = load_vocab(tiny.write_vocab(tmp_path / "vocab.txt"))
    assert list(tokens[1:]) == tiny.vocab_tokens()


def test_raw_line_separators_inside_a_token_do_not_split_it(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("1 'a\u2028b' 5\n2 'c\x0cd' 3\n3 '\x85' 2\n", encoding="utf-8")
    assert load_vocab(path)[1:] == ("a\u2028b".encode(), b"c\x0cd", "\x85".encode())


def test_gguf_texts_are_escaped_and_padded() -> None:
    tokens = (b"<s>", b"'", b'"', b"'\"", b"\\", b"\n\n", b"\xff\x00", "é".encode())
    texts, types = gguf_tokens(tokens, 10)
    assert texts == [
        b"<s>",
        b"'",
        b'"',
        b"\\'\"",
        b"\\\\",
        b"\\n\\n",
        b"\\xff\\x00",
        b"\\xc3\\xa9",
        b"[PAD8]",
        b"[PAD9]",
    ]
    # Either kind of quote leads back to the token.
    assert [ast.literal_eval(f"b'''{text.decode()} '''")[:-1] for text in texts[1:8]] == list(tokens[1:])
    assert types == [TokenType.CONTROL] + [TokenType.NORMAL] * 7 + [TokenType.UNUSED] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 of vocab.txt is not `id repr"),
        ("1 'a' 1\n2 'b'\n", "line 2 of vocab.txt is not `id repr"),
        ("1 'a' 1\n\n", "line 2 of vocab.txt is not `id repr"),
        ("0 'a' 1\n", "line 1 of vocab.txt has the id 0 instead of 1"),
        ("1 'a' 1\n3 'b' 1\n", "line 2 of vocab.txt has the id 3 instead of 2"),
        ("1 'é' 1\n", "line 1 of vocab.txt announces 1 bytes, but its token has 2"),
        ("1 'a 1\n", "holds no Python string"),
        ("1 '\\ud800' 3\n", "holds no Python string"),
        ("1 __import__('os') 1\n", "holds no Python string"),
        ("1 12 1\n", "holds no token"),
        ("1 '' 0\n", "holds no token"),
        ("1 'a' 1\n2 b'a' 1\n", "line 2 of vocab.txt repeats the token of id 1"),
        ("1 '<s>' 3\n", "repeats the token of id 0"),
        ('{"a": 1}', "is not `id repr"),
    ],
)
def test_bad_files_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(VocabError, match=message):
        load_vocab(path)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(VocabError, match="does not exist.*--vocab"):
        load_vocab(tmp_path / "none.txt")
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VocabError, match="cannot be read as a vocabulary"):
        load_vocab(tmp_path / "x.txt")


def test_size_must_fit_the_checkpoint(tmp_path: Path) -> None:
    path = tiny.write_vocab(tmp_path / "vocab.txt")
    size = len(tiny.vocab_tokens()) + 1
    for rows in (size, size + most_padding(size)):
        assert len(vocab_for(rows, path)) == size
    for rows in (size - 1, size + most_padding(size) + 1):
        with pytest.raises(VocabError, match=rf"has {rows} rows.*vocab.txt has {size} tokens.*--vocab"):
            vocab_for(rows, path)


def test_world_is_the_default_and_a_small_checkpoint_is_told_about_the_option() -> None:
    assert len(vocab_for(65536, None)) == 65530
    with pytest.raises(VocabError, match="has 2048 rows, but the World vocabulary has 65530 tokens.*--vocab"):
        vocab_for(2048, None)


def test_a_vocabulary_without_some_bytes_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tiny.write_vocab(tmp_path / "vocab.txt", [b"a", b"b", b"ab"])
    with caplog.at_level(logging.WARNING):
        vocab_for(4, path)
    assert "lacks 254 of the 256 single bytes" in caplog.text
