"""Somebody's own librwkv as an engine: rwkv.cpp's library of any age, in a child process, since it ends its process
when an assertion fails. The child gets no token and nothing else of our environment."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ggufy.core.errors import ToolError, UsageError
from ggufy.formats.rwkvcpp import read_head
from ggufy.llama.ggml import F32Array
from ggufy.rwkvcpp.evaluator import Evaluator
from ggufy.rwkvcpp.library_child import receive, send
from ggufy.system import child_process
from ggufy.system.resources import child_environment, tool_threads

_MOST_REASON = 300  # characters of what a library printed


class LibraryEngine(Evaluator):
    """A model in a library's process, which dies with the thread that made this object."""

    def __init__(self, library: Path, path: Path, *, threads: int | None = None, gpu_layers: int = 0):
        """Loads both. Raises UsageError without such a library, SourceError for a file that is no sound model,
        ToolError for what the library cannot load."""
        super().__init__(path, read_head(path))
        self._library, count = library.absolute(), tool_threads(threads)
        if not library.is_file():
            raise UsageError("{path} does not exist: give the path of a librwkv, such as librwkv.so.", path=library)
        script = str(Path(__file__).absolute().with_name("library_child.py"))
        numbers = [str(count), str(gpu_layers)]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = child_process.start(
            [sys.executable, "-I", "-S", script, str(self._library), str(path.absolute()), *numbers],
            cwd=self._library.parent,
            env=child_environment(threads=count, home=self._library.parent),
            stdin=child_process.PIPE,
            stdout=child_process.PIPE,
            stderr=self._errors,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        try:
            sizes, _ = self._answer()
            self.state_len = sizes["state"]
            if sizes["logits"] != self.n_vocab:
                raise self._failed(f"it has {sizes['logits']} logits for {self.n_vocab} tokens")
        except BaseException:
            self.close()
            raise

    def _eval(self, tokens: Sequence[int], state: F32Array | None, *, every: bool) -> tuple[F32Array, F32Array]:
        values = b"" if state is None else np.ascontiguousarray(state, dtype=np.float32).tobytes()
        message = {"tokens": [int(token) for token in tokens], "every": every, "values": len(values) // 4}
        try:
            send(self._in, message, values)
        except OSError as error:
            raise self._ended() from error
        _, made = self._answer()
        results = np.frombuffer(made, dtype=np.float32).copy()
        count = len(tokens) if every else 1
        logits, new = np.split(results, [count * self.n_vocab])
        return (logits.reshape(count, -1) if every else logits), new

    def close(self) -> None:
        """Ends the process; a second call does nothing."""
        child_process.stop(self._process)
        for file in (self._in, self._out, self._errors):
            with suppress(BrokenPipeError):  # what it was not there to read
                file.close()

    def _answer(self) -> tuple[dict[str, Any], bytes]:
        received = receive(self._out)
        if received is None:
            raise self._ended()
        if "error" in received[0]:
            raise self._failed(received[0]["error"])
        return received

    def _ended(self) -> ToolError:
        """For a process that is gone."""
        return self._failed(f"exit code {self._process.wait()}")

    def _failed(self, reason: str) -> ToolError:
        """With the last thing that the library printed."""
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode("utf-8", errors="replace").splitlines()]
        said = next((f": {line}" for line in reversed(lines) if line), "")
        return ToolError(
            "{library} failed ({reason}): use another build of rwkv.cpp, or ggufy's own engine.",
            library=self._library,
            reason=f"{reason}{said}"[:_MOST_REASON],
        )
