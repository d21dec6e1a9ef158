"""A miniature of llama.cpp's source package, to build with the real pip, cmake, ninja and compiler in a second or two.

It has programs of the same names, a shared library they need, and two build steps that leave a note each time they
run; the second one waits until a file named `gate` exists. Fetching it leaves a note too.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

from ggufy.llama import build, install
from ggufy.llama.pin import PINNED, Pin
from ggufy.system import files

REPO = Path(__file__).parent.parent
COMMIT = "abcdef0123"
TYPES = ("Q4_K_M", "IQ1_S")

CMAKE = """
cmake_minimum_required(VERSION 3.20)
project(mini C)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_custom_command(OUTPUT first COMMAND echo first >> ${NOTES} COMMAND touch first)
add_custom_command(OUTPUT second DEPENDS first COMMAND sh ${CMAKE_SOURCE_DIR}/wait.sh ${NOTES} ${GATE}
                   COMMAND touch second)
add_custom_target(steps DEPENDS second)
add_library(mini SHARED mini.c)
add_dependencies(mini steps)
foreach(tool llama-imatrix llama-quantize llama-export-lora)
    add_executable(${tool} tool.c)
    target_link_libraries(${tool} mini)
endforeach()
install(TARGETS mini llama-imatrix)
"""
TOOL = """
int said(const char *option);
int main(int count, char **words) { return said(count > 1 ? words[1] : ""); }
"""
LIBRARY = """
#include <stdio.h>
#include <string.h>
int said(const char *option) {
    if (!strcmp(option, "--version")) fprintf(stderr, "version: 0.5.0-dev (build 1, commit abcdef0123)\\n");
    else printf("  15  or  Q4_K_M  :  4.58G\\n  24  or  IQ1_S   :  1.56 bpw quantization\\n");
    return strcmp(option, "--version") ? 1 : 0;
}
"""
WAIT = 'echo second >> "$1"; while [ ! -e "$2" ]; do sleep 0.05; done'
BACKEND = """
import os, pathlib
NOTES = pathlib.Path({notes!r})
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    with NOTES.open("a") as notes:
        notes.write("fetched with " + " ".join(sorted(os.environ)) + chr(10))
    info = pathlib.Path(folder) / "mini-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: mini\\nVersion: 1.0\\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\\nGenerator: mini\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    return info.name
def build_wheel(folder, config_settings=None, metadata_directory=None):
    raise RuntimeError("nobody needs the wheel")
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


@dataclasses.dataclass(frozen=True)
class Mini:
    """A folder with the miniature's package, its pin, and a cache to build it in."""

    root: Path
    pin: Pin

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def gate(self) -> Path:
        return self.root / "gate"

    @property
    def folder(self) -> Path:
        return install.installed_folder(self.cache, self.pin)

    @property
    def building(self) -> Path:
        return self.folder.with_name(self.folder.name + ".building")

    @property
    def pip_environment(self) -> dict[str, str]:
        return {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.root),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_CACHE_DIR": "1",
            "https_proxy": "http://127.0.0.1:9",
            "HF_TOKEN": "hf_secret",
            "LLAMA_ARG_THREADS": "99",
        }

    def notes(self) -> list[str]:
        path = self.root / "notes"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    def place_source(self) -> None:
        """Spares a test the fetching."""
        build.unpack(self.root / "mini-1.0.tar.gz", self.pin.inside, self.building / "source")

    def ensure(self, progress: build.Progress | None = None, *, first: bool = False) -> install.Llama:
        return install.ensure(
            self.cache,
            threads=2,
            pip_environment=self.pip_environment,
            progress=progress,
            pin=self.pin,
            first=first,
        )

    def start(self) -> subprocess.Popen[bytes]:
        """The same in a process of its own."""
        code = (
            "import json, sys; from pathlib import Path; from ggufy.llama import install, pin as pins\n"
            "cache, pin, env = json.loads(sys.argv[1])\n"
            "install.ensure(Path(cache), threads=2, pip_environment=env, pin=pins.Pin(**pin))"
        )
        pin = dataclasses.asdict(self.pin)
        words = json.dumps([str(self.cache), pin, self.pip_environment])
        return subprocess.Popen([sys.executable, "-c", code, words], cwd=REPO)


def make_mini(root: Path, **changes: str) -> Mini:
    """Packs the miniature; `changes` replaces files of llama.cpp's folder (CMakeLists_txt="...")."""
    llama = {"CMakeLists.txt": CMAKE, "tool.c": TOOL, "mini.c": LIBRARY, "wait.sh": WAIT, "LICENSE": "free"}
    llama |= {"convert_hf_to_gguf.py": "", "conversion/rwkv.py": "", "src/unused.c": ""}
    llama |= {name.replace("_", "."): text for name, text in changes.items()}
    contents = {f"vendor/llama.cpp/{name}": text for name, text in llama.items()}
    contents |= {"pyproject.toml": PYPROJECT, "backend.py": BACKEND.format(notes=str(root / "notes"))}
    contents |= {"PKG-INFO": "Metadata-Version: 2.1\nName: mini\nVersion: 1.0\n", "other/big.bin": "not wanted"}
    package = root / "mini-1.0.tar.gz"
    with tarfile.open(package, "w:gz") as archive:
        for name, text in contents.items():
            member = tarfile.TarInfo(f"mini-1.0/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    rpath = [flag for flag in PINNED.flags if "RPATH" in flag]
    pin = Pin(
        package="mini",
        version="1.0",
        sha256=files.sha256(package),
        inside="vendor/llama.cpp",
        commit=COMMIT,
        flags=(*rpath, f"-DNOTES={root / 'notes'}", f"-DGATE={root / 'gate'}"),
        tools=("llama-quantize", "llama-imatrix", "llama-export-lora"),
        first=("llama-quantize", "llama-imatrix"),
        kept=("LICENSE", "convert_hf_to_gguf.py", "conversion"),
    )
    return Mini(root, pin)
