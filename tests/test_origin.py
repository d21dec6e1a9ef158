"""Tensors that are made from others of the file on the way, mapped and streamed: the same bytes as of a plain file."""

# ruff: noqa: F811 - fixtures are imported

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ggufy.formats.checkpoint import open_checkpoint
from ggufy.formats.streamed_checkpoint import open_streamed
from ggufy.models.convert import convert, convert_tensors
from ggufy.models.convert_streamed import convert_streamed
from ggufy.models.origin import Origin, identity, shapes_of
from ggufy.sources import hub
from tests import tiny
from tests.hub_fixture import LocalHub, local_hub  # noqa: F401 - a fixture

pytestmark = pytest.mark.fast


def another(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Origin]]:
    """The same model in a layout that nobody has, and its origins: the six mixes of a block in one tensor, low-rank
    matrices turned, matrices in two halves, and biases that are not in the file."""
    other, origins = dict(state), identity({name: tuple(tensor.shape) for name, tensor in state.items()})
    for name, tensor in state.items():
        block, _, stem = name.rpartition("att.")
        shape = tuple(tensor.shape)
        if stem == "x_r":
            other[f"{block}mixes"] = torch.stack([other.pop(f"{block}att.x_{letter}") for letter in "rwkvag"])
            for number, letter in enumerate("rwkvag"):
                origins[f"{block}att.x_{letter}"] = Origin((f"{block}mixes",), shape, _row(number))
        elif stem in ("w1", "g2"):
            other[f"{name}.turned"] = other.pop(name).t().contiguous()
            origins[name] = Origin((f"{name}.turned",), shape, torch.t)
        elif stem == "key.weight":
            other[f"{name}.0"], other[f"{name}.1"] = other.pop(name).chunk(2)
            origins[name] = Origin((f"{name}.0", f"{name}.1"), shape, lambda *halves: torch.cat(halves))
        elif stem == "ln_x.bias":
            del other[name]
            origins[name] = Origin((), shape, lambda size=shape: torch.zeros(size))
    return other, origins


def _row(number: int):  # type: ignore[no-untyped-def]
    return lambda mixes: mixes[number]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A plain model, the same in another layout, and the GGUF of the plain one."""
    folder = tmp_path_factory.mktemp("origin")
    state = tiny.weights("7", layers=3, width=256)
    for name, tensor in state.items():
        if name.endswith("att.ln_x.bias"):
            tensor.zero_()
    vocab = tiny.write_vocab(folder / "vocab.txt")
    convert(tiny.save(folder / "plain.pth", state), folder / "plain.gguf", vocab=vocab, name="x")
    tiny.save(folder / "other.pth", another(state)[0])
    yield folder


def test_mapped(folder: Path, tmp_path: Path) -> None:
    state = tiny.weights("7", layers=3, width=256)
    origins = another(state)[1]
    assert shapes_of(origins) == {name: tuple(tensor.shape) for name, tensor in state.items()}
    with open_checkpoint(folder / "other.pth") as file:
        convert_tensors(file, origins, tmp_path / "x.gguf", vocab=folder / "vocab.txt", name="x")
    assert (tmp_path / "x.gguf").read_bytes() == (folder / "plain.gguf").read_bytes()


def test_streamed_and_taken_up_again(folder: Path, tmp_path: Path, local_hub: LocalHub) -> None:
    origins = another(tiny.weights("7", layers=3, width=256))[1]
    local_hub.put("alice/other", "other.pth", (folder / "other.pth").read_bytes())
    source = hub.resolve("alice/other", endpoint=local_hub.endpoint)
    target = tmp_path / "x.gguf"

    def run(limit: float, mark: str = "") -> int:
        def stop(done: int, total: int) -> None:
            if done > limit * total:
                raise KeyboardInterrupt

        file = open_streamed(source, endpoint=local_hub.endpoint)
        vocab = folder / "vocab.txt"
        convert_streamed(file, origins, target, vocab=vocab, name="x", mark=mark, progress=stop)
        return file.received

    with pytest.raises(KeyboardInterrupt):
        run(0.6)
    assert run(1) < 0.7 * source.size
    assert target.read_bytes() == (folder / "plain.gguf").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        run(0.6)
    assert run(1, mark="another adapter") > 0.9 * source.size, "what was made with something else is not kept"
    assert target.read_bytes() == (folder / "plain.gguf").read_bytes()


def test_what_several_tensors_are_made_from_is_fetched_once(folder: Path, tmp_path: Path, local_hub: LocalHub) -> None:
    origins = another(tiny.weights("7", layers=3, width=256))[1]
    local_hub.put("alice/once", "other.pth", (folder / "other.pth").read_bytes())
    file = open_streamed(hub.resolve("alice/once", endpoint=local_hub.endpoint), endpoint=local_hub.endpoint)
    wanted: list[str] = []
    stream = file.stream

    class Noting:
        name, source, shapes, dtypes = file.name, file.source, file.shapes, file.dtypes

        def stream(self, wants):  # type: ignore[no-untyped-def]
            return stream(wanted.append(want.name) or want for want in wants)

    convert_streamed(Noting(), origins, tmp_path / "x.gguf", vocab=folder / "vocab.txt", name="x")
    assert [name for name in wanted if name.endswith("mixes")] == [f"blocks.{block}.mixes" for block in range(3)]
