"""Runs a program, llama.cpp's converter of Hugging Face models, with two doors closed: `python converter_child.py
FOLDER PROGRAM ARGUMENTS`.

What its Python would run of files in FOLDER, where the model and all that is worked with lie, is refused, and so is
every connection. Nothing there is called .py, and no configuration names a program (see ggufy/sources/hf_folder.py);
this holds also if one of those were wrong. It imports nothing but the standard library.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

FOREIGN_CODE = "ggufy does not run programs of a model"
NO_NETWORK = "ggufy converts without a network"
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


if __name__ == "__main__":
    close_doors(sys.argv[1])
    program = sys.argv[2]
    sys.argv = sys.argv[2:]
    sys.path[0] = str(Path(program).parent)  # as if Python had been given the program itself
    runpy.run_path(program, run_name="__main__")
