"""States that a model begins a text with: what fits which model, and session files that llama.cpp takes.

The layout of a session file is read from one that the installed llama-completion writes for that very model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufy.core.errors import SourceError, ToolError
from ggufy.core.messages import Message
from ggufy.formats.gguf import read_head
from ggufy.formats.session import Session, read_session, write_session
from ggufy.llama.install import Llama
from ggufy.llama.tools import ToolRun, run_tool
from ggufy.models.registry import named
from ggufy.system import resources

if TYPE_CHECKING:
    from ggufy.models.tuned_state import TunedState

_FEW_TOKENS = "1 2 3 4 5 6 7 8"  # more than one token of any vocabulary: for a single one no session is written
_WIDTH = 4  # bytes of a value


@dataclass(frozen=True)
class StateShape:
    """What the state of a model is like."""

    architecture: str
    layers: int
    heads: int
    head_size: int

    @property
    def description(self) -> str:
        return Message(
            "{architecture} with {layers} blocks, {heads} heads in each, {size} wide",
            architecture=self.architecture,
            layers=self.layers,
            heads=self.heads,
            size=self.head_size,
        )

    def holds(self, session: Session) -> bool:
        """Whether a session is one of such a model."""
        width = self.heads * self.head_size
        return (
            session.architecture == self.architecture
            and len(session.states) == self.layers
            and set(session.shifts) == {2 * width * _WIDTH}
            and set(session.states) == {width * self.head_size * _WIDTH}
        )


def shape_of(model: Path) -> StateShape:
    """The state's shape of a GGUF. Raises SourceError if it is none, or its architecture has no such state."""
    metadata = read_head(model).metadata
    architecture = named(metadata.get("general.architecture"))
    if architecture is None:
        raise SourceError(
            "{name} is no RWKV-6 or RWKV-7, and no other model begins with a tuned state: choose the model that the "
            "state was made for.",
            name=model.name,
        )
    layers, width, size = (
        _number(metadata, f"{architecture.name}.{key}", model.name)
        for key in ("block_count", "embedding_length", "wkv.head_size")
    )
    return StateShape(architecture.name, layers, width // size, size)


def check_state(path: Path, model: Path) -> None:
    """Raises SourceError unless `path` is a session file that `model` can begin a text with."""
    shape, session = shape_of(model), read_session(path)
    if not shape.holds(session):
        raise _of_another(path.name, model.name, shape)
    if session.tokens:
        raise SourceError(
            "{name} stands behind a text of {count} tokens, and goes on with that text alone: give a state without "
            "one.",
            name=path.name,
            count=session.tokens,
        )


def save_state(state: TunedState, name: str, model: Path, out: Path, llama: Llama) -> None:
    """Writes the tuned state called `name` as the session file `out`, which `model` can begin a text with.

    Raises SourceError if it is not one for this model, ToolError if llama.cpp cannot load the model or writes
    sessions in an unknown layout, DiskError. `out` appears whole or not at all.
    """
    shape = shape_of(model)
    if state.shape != (shape.layers, shape.heads, shape.head_size):
        raise _of_another(name, model.name, shape)
    architecture = named(shape.architecture)
    assert architecture is not None
    keyed = architecture.keyed_state
    layout = read_layout(model, shape, llama)
    write_session(out, layout, (block.swapaxes(1, 2) if keyed else block for block in state.blocks))


def read_layout(model: Path, shape: StateShape, llama: Llama) -> Session:
    """How the installed llama.cpp writes a session of this model."""
    with tempfile.TemporaryDirectory(prefix="ggufy-state-") as name:
        folder = Path(name)
        text, out = folder / "prompt.txt", folder / "session.bin"
        text.write_text(_FEW_TOKENS, encoding="utf-8")
        run = ToolRun(environment=resources.child_environment(threads=1, home=folder), cwd=folder)
        run_tool(session_command(llama.tool("llama-completion"), model=model, text=text, out=out), run)
        try:
            layout = read_session(out)
        except SourceError as error:
            raise _unknown_layout(error) from error
    if not shape.holds(layout):
        raise _unknown_layout(Message("it is not of {shape}", shape=shape.description))
    return layout


def session_command(tool: Path, *, model: Path, text: Path, out: Path) -> list[str]:
    """llama-completion that reads a text and leaves its session."""
    command = [str(tool), "-m", str(model.absolute()), "-f", str(text), "--prompt-cache", str(out), "-n", "1"]
    return [*command, "-t", "1", "-no-cnv", "--no-warmup", "--no-escape", "--simple-io"]


def _number(metadata: Mapping[str, Any], key: str, name: str) -> int:
    value = metadata.get(key)
    if not isinstance(value, int) or value < 1:
        raise SourceError("{name} does not say its {key}: fetch or convert it again.", name=name, key=key)
    return value


def _of_another(name: str, model: str, shape: StateShape) -> SourceError:
    return SourceError(
        "{name} is the state of another model than {model}, which is {shape}: choose the model that the state was "
        "made for.",
        name=name,
        model=model,
        shape=shape.description,
    )


def _unknown_layout(why: object) -> ToolError:
    return ToolError(
        "the installed llama.cpp writes session files in a layout that ggufy does not know ({why}): unset "
        "GGUFY_LLAMA_DIR to use the one that ggufy builds.",
        why=why,
    )
