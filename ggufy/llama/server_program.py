"""The program llama-server of a build.

The build has everything of llama-server in a library, since llama-cli needs it, and not the program: its `main` is
linked when it is first wanted, in a second, so that nobody builds llama.cpp anew for it. The image carries it, and
llama.cpp's own downloads have it, too.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ggufy.llama.install import Llama
from ggufy.llama.toolchain import find_toolchain
from ggufy.llama.tools import ToolRun, run_tool
from ggufy.system.files import partial

NAME = "llama-server"
_MAIN = "int llama_server(int, char **);\nint main(int count, char ** words) { return llama_server(count, words); }\n"


def server_program(llama: Llama, environment: Mapping[str, str]) -> Path:
    """The llama-server of a build, linked if it is not there yet. Raises ToolError."""
    program, library = llama.bin / NAME, llama.bin / f"libllama-server-impl.{_library_ending()}"
    if program.is_file() or not library.is_file():
        return llama.tool(NAME)
    compiler = find_toolchain(environment).cxx
    with partial(program) as part, tempfile.TemporaryDirectory(prefix="ggufy-server-") as folder:
        source = Path(folder) / "main.cpp"
        source.write_text(_MAIN, encoding="utf-8")
        found = "@loader_path" if sys.platform == "darwin" else "$ORIGIN"
        command = [compiler, str(source), "-o", str(part), str(library), f"-Wl,-rpath,{found}"]
        command += [] if sys.platform == "darwin" else ["-Wl,--allow-shlib-undefined"]
        run_tool(command, ToolRun(environment=environment, cwd=Path(folder)))
    return program


def _library_ending() -> str:
    return "dylib" if sys.platform == "darwin" else "so"
