"""What a job knows of its model: whether it speaks RWKV's World format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ggufy import demo
from ggufy.core.job import Request
from ggufy.core.source import Source
from ggufy.formats.gguf import read_head
from ggufy.hub.protocol import RemoteFile, git_sha1
from ggufy.models.chat_format import CHAT_TEMPLATE, WORLD, ollama_files
from ggufy.models.convert import convert
from ggufy.models.vocab import load_vocab, world_vocab_path
from ggufy.publish.card_facts import speaks_world
from tests import chatty, tiny

OLLAMA_FILES = ollama_files(WORLD)
MUSIC = [one for one in tiny.vocab_tokens() if one not in (b"User", b"Assistant")]
THEIRS = {"template": "{{ .Prompt }}", "system": OLLAMA_FILES["system"], "params": "{}"}


def request(kind: str, vocab: str = "") -> Request:
    source = Source(kind=kind, path=f"/m.{kind}", size=1, sha256="ab" * 32)
    return Request(name="m", source=source, quant_types=("Q8_0",), outtype="f16", vocab_path=vocab)


def holding(files: dict[str, str]) -> Callable[[str], RemoteFile | None]:
    """A repo with these small files, as the Hub tells of them."""
    there = {
        name: RemoteFile(size=len(text.encode()), git_sha1=git_sha1(text.encode())) for name, text in files.items()
    }
    return there.get


@pytest.mark.parametrize(
    ("asked", "files", "expected"),
    [
        (request("checkpoint"), {}, True),
        (request("checkpoint"), THEIRS, True),
        (request("checkpoint", "/own.txt"), {}, False),
        (request("checkpoint", "/own.txt"), OLLAMA_FILES, True),  # as when the base was here
        (request("gguf"), OLLAMA_FILES, True),
        (request("gguf"), {**OLLAMA_FILES, "template": "{{ .Prompt }}"}, True),  # one was changed
        (request("gguf"), THEIRS, False),  # a transformer's
        (request("gguf"), {}, False),
    ],
)
def test_without_a_base(asked: Request, files: dict[str, str], expected: bool) -> None:
    assert speaks_world(asked, None, holding(files)) is expected


def test_the_base_tells(tmp_path: Path) -> None:
    source, vocab = tiny.checkpoint(tmp_path, "7")
    made = {}
    for name, tokens in (("talk", tiny.vocab_tokens()), ("music", MUSIC)):
        made[name] = tmp_path / f"{name}.gguf"
        convert(source, made[name], vocab=tiny.write_vocab(vocab, tokens))
    assert tiny.fields(made["talk"])["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert "tokenizer.chat_template" not in tiny.fields(made["music"])
    for kind in ("checkpoint", "gguf"):
        assert speaks_world(request(kind, "/own.txt"), read_head(made["talk"]), holding({}))
        assert not speaks_world(request(kind, "/own.txt"), read_head(made["music"]), holding(OLLAMA_FILES))
    other = read_head(chatty.write(tmp_path / "other.gguf"))
    assert not speaks_world(request("gguf"), other, holding(OLLAMA_FILES))
    old = read_head(made["music"])
    old.metadata["tokenizer.ggml.tokens"] = 65536  # World's, by a converter that wrote no template yet
    assert speaks_world(request("gguf"), old, holding({}))


def test_whose_vocabulary_has_the_words() -> None:
    assert WORLD.has_words(load_vocab(world_vocab_path()))
    assert WORLD.has_words(load_vocab(demo.VOCAB))
    assert WORLD.has_words([b"User:", b" Assistant"])
    assert not WORLD.has_words(MUSIC) and not WORLD.has_words([b"Users", b"Assistant"])
