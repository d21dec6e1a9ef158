"""Which llama.cpp is built, and how.

A build is named after everything that stands here (`Pin.choices`), so that a change of it is another build beside the
old one.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pin:
    """Which source is built, how, and what of it stays."""

    package: str
    version: str
    sha256: str  # of the source package
    inside: str  # folder of llama.cpp in it
    commit: str  # of llama.cpp
    flags: tuple[str, ...]  # for cmake
    tools: tuple[str, ...]  # programs, each a target of the same name
    first: tuple[str, ...]  # those of them that a job begins with
    kept: tuple[str, ...]  # files and folders of the source that are installed too
    patches: tuple[tuple[str, str, str], ...] = ()  # (file, text that stands in it once, what it is replaced by)

    @property
    def choices(self) -> tuple[str, ...]:
        """Everything besides the version that makes one build differ from another."""
        return (*self.flags, *(word for patch in self.patches for word in patch))


# Most of a compiler's time goes into headers that the next file needs again. So several files are compiled as one (but
# for those that name the same things differently), and what computes nothing of a model's is optimized less: reading
# options, chat formats, HTTP, images. ggml and libllama, and the tools that count, keep llama.cpp's own -O3.
_BEFORE_THE_APP = "if (LLAMA_BUILD_APP)\n    add_subdirectory(app)\n"
_FASTER = """\
set(ggufy_around llama-common mtmd server-context llama-server-impl llama-cli-impl)
set_target_properties(${ggufy_around} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
set_source_files_properties(${PROJECT_SOURCE_DIR}/common/json.cpp
    TARGET_DIRECTORY llama-common PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
set_source_files_properties(
    ${PROJECT_SOURCE_DIR}/tools/mtmd/mtmd-helper.cpp ${PROJECT_SOURCE_DIR}/tools/mtmd/mtmd-helper-gen.cpp
    TARGET_DIRECTORY mtmd PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
foreach(ggufy_target ${ggufy_around} cpp-httplib)
    target_compile_options(${ggufy_target} PRIVATE -O1)
endforeach()
"""
CONVERTER = "convert_hf_to_gguf.py"
LORA_CONVERTER = "convert_lora_to_gguf.py"
PINNED = Pin(
    package="llama-cpp-python",
    version="0.3.36",
    sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    inside="vendor/llama.cpp",
    commit="0c1e57098",
    flags=(
        "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",  # a build RPATH ends in an empty entry: the working folder
        f"-DCMAKE_INSTALL_RPATH={'@loader_path' if sys.platform == 'darwin' else '$ORIGIN'}",
        "-DBUILD_SHARED_LIBS=ON",
        "-DLLAMA_BUILD_TESTS=OFF",
        "-DLLAMA_BUILD_EXAMPLES=OFF",
        "-DLLAMA_BUILD_APP=OFF",
        "-DLLAMA_USE_PREBUILT_UI=OFF",
        "-DLLAMA_OPENSSL=OFF",
        "-DLLAMA_BUILD_COMMIT=0c1e57098",
        "-DLLAMA_BUILD_NUMBER=1",
        "-DGGML_CCACHE=OFF",
    ),
    tools=(
        "llama-quantize",
        "llama-imatrix",
        "llama-perplexity",
        "llama-completion",
        "llama-cli",
        "llama-bench",
        "llama-gguf-split",
        "llama-export-lora",
    ),
    first=("llama-quantize", "llama-imatrix", "llama-perplexity"),
    kept=(
        "LICENSE",
        CONVERTER,
        LORA_CONVERTER,
        "conversion",
        "gguf-py",
        "models/templates/llama-cpp-rwkv-world.jinja",
    ),
    patches=(
        # The tools end without waiting for the thread that prints: on a busy machine the last lines, which are
        # llama-perplexity's figures, were lost with exit code 0. Here the thread is waited for.
        (
            "common/log.cpp",
            "        log = new common_log;\n",
            "        log = new common_log;\n        std::atexit([]() { common_log_main()->pause(); });\n",
        ),
        # libllama's models are compiled 16 at a time; so is the rest of it here.
        ("src/CMakeLists.txt", "UNITY_BUILD_BATCH_SIZE 16", "UNITY_BUILD_BATCH_SIZE 12"),
        ("src/CMakeLists.txt", "SKIP_UNITY_BUILD_INCLUSION ON", "SKIP_UNITY_BUILD_INCLUSION OFF"),
        ("CMakeLists.txt", _BEFORE_THE_APP, _FASTER + _BEFORE_THE_APP),
    ),
)
NOT_IN_RELEASES = {"llama-export-lora"}  # the project's own downloads lack it; only LoRA work needs it
# One library with ggml's CPU code for each generation of CPUs, from the oldest on; a program loads the best that its
# CPU can run. llama.cpp builds its own downloads so, and like them without what is not in releases.
PORTABLE = dataclasses.replace(
    PINNED,
    flags=(*PINNED.flags, "-DGGML_NATIVE=OFF", "-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON"),
    tools=tuple(tool for tool in PINNED.tools if tool not in NOT_IN_RELEASES),
)
