"""Runs a program, llama.cpp's converter of Hugging Face models, with two doors closed: `python converter_child.py
[--no-weights] FOLDER PROGRAM
ARGUMENTS`.

What its Python would run of files in FOLDER, where the model and all that is worked with lie, is refused, and so is
every connection. Nothing there is called .py, and no configuration names a program (see ggufy/sources/hf_folder.py);
this holds also if one of those were wrong. It imports nothing but the standard library.

With --no-weights, the GGUF has a hole where its values would be, which takes no disk: what a file will be is known
when the heads of a model's files are, since the converter reads values when it writes them.
"""

from __future__ import annotations

import os
import resource
import runpy
import sys
from pathlib import Path
from typing import Any

FOREIGN_CODE = "ggufy does not run programs of a model"
NO_NETWORK = "ggufy converts without a network"
NO_WEIGHTS = "--no-weights"
_MOST_MEMORY = 6 << 30  # bytes that may be written to, without weights: what a configuration asks for is anybody's
_CONNECTIONS = frozenset({"socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.sendmsg"})


def close_doors(folder: str) -> None:
    """From now on this process runs no Python that lies in `folder`, and reaches no other machine."""
    inside = os.path.realpath(folder) + os.sep

    def guard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CONNECTIONS:
            raise PermissionError(NO_NETWORK)
        if event == "exec":
            path = str(getattr(arguments[0], "co_filename", ""))
            if path.startswith(os.sep) and os.path.realpath(path).startswith(inside):
                raise PermissionError(FOREIGN_CODE)

    sys.addaudithook(guard)


def leave_weights_out(program: Path) -> None:
    """From now on llama.cpp's writer of GGUFs makes files as long as they would be, with all but values in them."""
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_MEMORY, _MOST_MEMORY))
    sys.path.insert(1, str(program.parent / "gguf-py"))
    import gguf  # noqa: PLC0415 - the program's own

    def write_hole(writer: Any, *, progress: bool = False) -> None:
        writer.write_ti_data_to_file()
        for file, tensors in zip(writer.fout, writer.tensors, strict=True):
            writer.write_padding(file, file.tell())
            held = sum(writer.ggml_pad(one.nbytes, writer.data_alignment) for one in tensors.values())
            file.truncate(file.tell() + held)

    gguf.GGUFWriter.write_tensors_to_file = write_hole


if __name__ == "__main__":
    weights = sys.argv[1] != NO_WEIGHTS
    folder, program, *_ = words = sys.argv[1 if weights else 2 :]
    close_doors(folder)
    sys.argv = words[1:]
    sys.path[0] = str(Path(program).parent)  # as if Python had been given the program itself
    if not weights:
        leave_weights_out(Path(program))
    runpy.run_path(program, run_name="__main__")
