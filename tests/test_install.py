"""llama.cpp's build and how it is found, on a miniature of it: the same steps, and a source that takes a second."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import signal
import sys
import tarfile
import time
from pathlib import Path

import pytest

from ggufy.core.errors import BusyError, Cancelled, ToolError
from ggufy.llama import build, cpu_name, install, toolchain
from ggufy.llama.pin import PINNED
from ggufy.system import child_process, locks
from tests.miniature import COMMIT, TYPES, Mini, make_mini


@pytest.fixture
def mini(tmp_path: Path) -> Mini:
    return make_mini(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mini, install.Llama, list[tuple[int, int, str]]]:
    """A miniature that is built, what `ensure` returned, and the progress it reported.

    An earlier try was cut in the middle of fetching and unpacking, which must not matter.
    """
    mini = make_mini(tmp_path_factory.mktemp("mini"))
    mini.gate.touch()
    (mini.building / "source.part/mini-1.0/vendor").mkdir(parents=True)
    (mini.building / "package").mkdir()
    (mini.building / "package/mini-1.0.tar.gz").write_bytes(b"half of it")
    seen: list[tuple[int, int, str]] = []
    llama = mini.ensure(lambda done, total, text: seen.append((done, total, text)))
    return mini, llama, seen


def wait_until_noted(mini: Mini, note: str) -> None:
    deadline = time.monotonic() + 120
    while note not in mini.notes():
        assert time.monotonic() < deadline, f"the build never came to {note}"
        time.sleep(0.05)


def test_build_is_whole(built: tuple[Mini, install.Llama, list[tuple[int, int, str]]]) -> None:
    mini, llama, seen = built
    assert llama == install.Llama(mini.folder / "bin", mini.folder / "source", "0.5.0-dev", COMMIT)
    assert {path.name for path in mini.folder.parent.iterdir()} == {
        mini.folder.name,
        mini.folder.name + ".lock",
        mini.folder.name + ".log",
    }
    installed = {str(path.relative_to(mini.folder)) for path in mini.folder.rglob("*") if path.is_file()}
    library = "bin/libmini.dylib" if sys.platform == "darwin" else "bin/libmini.so"
    assert installed == {
        "version.json",
        "bin/llama-quantize",
        "bin/llama-imatrix",
        "bin/llama-export-lora",
        library,
        "source/LICENSE",
        "source/convert_hf_to_gguf.py",
        "source/conversion/rwkv.py",
    }
    record = json.loads((mini.folder / "version.json").read_text())
    assert record["sha256"] == mini.pin.sha256
    assert record["commit"] == COMMIT
    assert record["choices"] == list(mini.pin.choices)
    assert record["compiler"]
    steps = [(done, total) for done, total, _ in seen if total]
    assert steps[-1][0] == steps[-1][1] == len(steps)
    assert steps == sorted(steps)


def test_libraries_are_found_beside_the_program_and_nowhere_else(
    built: tuple[Mini, install.Llama, object], tmp_path: Path
) -> None:
    moved = shutil.copytree(built[1].bin, tmp_path / "moved", symlinks=True)
    command, environment = [str(moved / "llama-imatrix"), "--version"], {"LANG": "C.UTF-8"}
    hidden = built[1].bin.rename(built[1].bin.with_name("hidden"))
    try:
        assert child_process.run(command, cwd=tmp_path, env=environment).returncode == 0
        (library,) = moved.glob("libmini.*")
        library.rename(tmp_path / library.name)  # now in the working folder, which is not to be trusted
        assert child_process.run(command, cwd=tmp_path, env=environment).returncode != 0
    finally:
        hidden.rename(built[1].bin)


def test_second_call_does_nothing(built: tuple[Mini, install.Llama, object]) -> None:
    mini, llama, _ = built
    before = mini.notes()
    calls: list[str] = []
    again = install.ensure(
        mini.cache,
        threads=1,
        pip_environment={},
        progress=lambda done, total, text: calls.append(text),
        pin=mini.pin,
        path="",  # not even a compiler is needed
    )
    assert (again, calls, mini.notes()) == (llama, [], before)
    assert before == ["fetched", "first", "second"]


def test_only_pip_gets_pip_settings_and_nobody_a_token(built: tuple[Mini, install.Llama, object]) -> None:
    names = (built[0].root / "notes").read_text().splitlines()[0].split()[2:]
    assert {"PIP_NO_INDEX", "PIP_FIND_LINKS", "https_proxy", "HOME"} <= set(names)
    assert not {"HF_TOKEN", "LLAMA_ARG_THREADS"} & set(names)


def test_pip_variables() -> None:
    wanted = {"PIP_CERT": "1", "HTTPS_PROXY": "2", "no_proxy": "3", "SSL_CERT_FILE": "4", "HOME": "5"}
    others = {
        "HF_TOKEN": "1",
        "GITHUB_TOKEN": "2",
        "PATH": "3",
        "LD_PRELOAD": "4",
        "PYTHONPATH": "5",
        "PIPX_HOME": "6",
    }
    assert build.pip_variables(wanted | others) == wanted


def test_damaged_installation_is_not_found(built: tuple[Mini, install.Llama, object], tmp_path: Path) -> None:
    mini = Mini(tmp_path, built[0].pin)
    assert install.find(mini.cache, pin=mini.pin) is None
    shutil.copytree(built[0].cache, mini.cache, symlinks=True)
    assert install.find(mini.cache, pin=mini.pin) is not None
    record = (mini.folder / "version.json").read_text()
    for text in ("", "{}", record.replace(mini.pin.sha256, "0" * 64)):
        (mini.folder / "version.json").write_text(text)
        assert install.find(mini.cache, pin=mini.pin) is None
    (mini.folder / "version.json").write_text(record)
    (mini.folder / "bin/llama-imatrix").unlink()
    assert install.find(mini.cache, pin=mini.pin) is None


def test_what_a_job_begins_with_is_in_place_before_the_rest(mini: Mini, tmp_path: Path) -> None:
    """Nothing is compiled twice, what is in place is not touched, and a killed check is no hindrance."""
    mini.gate.touch()
    llama = mini.ensure(first=True)
    assert {path.name for path in llama.bin.iterdir() if path.name.startswith("llama-")} == set(mini.pin.first)
    assert install.version_of(llama.bin) == ("0.5.0-dev", COMMIT)
    assert install.find(mini.cache, pin=mini.pin) is None
    assert mini.building.is_dir()
    before = {path.name: path.stat(follow_symlinks=False).st_ino for path in llama.bin.iterdir()}
    (mini.building / "objects/hidden").mkdir()
    seen: list[str] = []
    assert mini.ensure(lambda done, total, text: seen.append(text)) == llama
    after = {path.name: path.stat(follow_symlinks=False).st_ino for path in llama.bin.iterdir()}
    assert after == before | {"llama-export-lora": after["llama-export-lora"]}
    assert mini.notes() == ["fetched", "first", "second"]
    assert not [text for text in seen if "libmini" in text or "imatrix" in text]
    assert not mini.building.exists()


def test_the_rest_is_built_beside_a_job(mini: Mini) -> None:
    mini.gate.touch()
    mini.ensure(first=True)
    with locks.lock(mini.folder.with_name(mini.folder.name + ".lock")):
        llama = install.begin(mini.cache, threads=1, pip_environment={}, pin=mini.pin)
        assert llama.tool("llama-imatrix").is_file()
        with pytest.raises(ToolError, match=r"still being built \(0 of 0 steps\): try again"):
            llama.tool("llama-export-lora")
        said: list[str] = []
        with pytest.raises(Cancelled):
            llama.tool("llama-export-lora", lambda: True, said.append)
        assert said == ["the other programs of llama.cpp are being built, nothing is measured beside that.", ""]
    assert llama.tool("llama-export-lora", lambda: False).is_file()
    assert install.begin(mini.cache, threads=1, pip_environment={}, pin=mini.pin, progress=never).rest is None


def test_a_rest_that_failed_is_tried_again_by_who_needs_it(mini: Mini) -> None:
    mini.gate.touch()
    mini.ensure(first=True)
    kept = mini.building / "source/tool.c"
    kept.write_text("#error no such luck\n")
    (mini.root / "mini-1.0.tar.gz").rename(mini.root / "aside")
    llama = install.begin(mini.cache, threads=1, pip_environment=mini.pip_environment, pin=mini.pin)
    with pytest.raises(ToolError, match="fetching mini failed"):  # what does not work is thrown away
        llama.tool("llama-export-lora", lambda: False)
    (mini.root / "aside").rename(mini.root / "mini-1.0.tar.gz")
    assert llama.tool("llama-export-lora", lambda: False).is_file()


def never(done: int, total: int, text: str) -> None:
    raise AssertionError(text)


def test_killed_build_goes_on_where_it_stopped(mini: Mini) -> None:
    """Its orphaned build step keeps the lock; what was finished is not made again; the cut step is."""
    builder = mini.start()
    try:
        wait_until_noted(mini, "second")
        builder.send_signal(signal.SIGKILL)
        builder.wait()
        assert not mini.folder.exists()
        with pytest.raises(BusyError), locks.lock(mini.folder.with_name(mini.folder.name + ".lock")):
            pass
        waited: list[str] = []

        def progress(done: int, total: int, text: str) -> None:
            if text.startswith("waiting"):
                waited.append(text)
                mini.gate.touch()  # lets the orphan end

        llama = mini.ensure(progress)
    finally:
        mini.gate.touch()
        builder.kill()
        builder.wait()
    assert waited
    assert mini.notes() == ["fetched", "first", "second", "second"]
    assert install.version_of(llama.bin) == ("0.5.0-dev", COMMIT)
    assert not mini.building.exists()


def test_two_starts_build_once(mini: Mini, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    builder = mini.start()
    try:
        wait_until_noted(mini, "second")
        llama = mini.ensure(lambda done, total, text: mini.gate.touch())
        assert builder.wait(timeout=60) == 0
    finally:
        mini.gate.touch()
        builder.kill()
        builder.wait()
    assert mini.notes() == ["fetched", "first", "second"]
    assert llama.tool("llama-quantize").is_file()
    assert caplog.text.count("another process is building llama.cpp") == 1


def test_progress_may_stop_the_build(mini: Mini) -> None:
    mini.place_source()

    class Stop(Exception):
        pass

    def progress(done: int, total: int, text: str) -> None:
        if done:
            mini.gate.touch()
            raise Stop

    with pytest.raises(Stop):
        mini.ensure(progress)
    assert not mini.folder.exists()
    with locks.lock(mini.folder.with_name(mini.folder.name + ".lock"), wait_s=60):
        pass


def test_broken_leftovers_are_thrown_away(mini: Mini, caplog: pytest.LogCaptureFixture) -> None:
    mini.gate.touch()
    (mini.building / "objects").mkdir(parents=True)
    (mini.building / "source").mkdir()
    (mini.building / "source/CMakeLists.txt").write_text("project(")
    assert mini.ensure().commit == COMMIT
    assert mini.notes() == ["fetched", "first", "second"]
    assert "building from nothing" in caplog.text


def test_wrong_hash(mini: Mini) -> None:
    mini = Mini(mini.root, dataclasses.replace(mini.pin, sha256="0" * 64))
    with pytest.raises(ToolError, match="fetching mini failed.*HASHES.*run the same command again"):
        mini.ensure()
    assert not mini.folder.exists()
    assert not (mini.building / "source").exists()


def test_unknown_package(mini: Mini) -> None:
    mini = Mini(mini.root, dataclasses.replace(mini.pin, version="2.0"))
    with pytest.raises(ToolError, match=r"fetching mini failed: .*2\.0.*check the network"):
        mini.ensure()


def test_compiler_error_is_quoted(tmp_path: Path) -> None:
    mini = make_mini(tmp_path, mini_c="#error no such luck\n")
    mini.place_source()
    mini.gate.touch()
    with pytest.raises(ToolError, match=r"compiling llama\.cpp failed: .*error: .*no such luck.*\.log\)\.") as caught:
        mini.ensure()
    assert "\n" not in str(caught.value)
    assert "no such luck" in mini.folder.with_name(mini.folder.name + ".log").read_text()
    assert not mini.folder.exists()


def test_result_that_is_another_commit_gets_no_name(mini: Mini) -> None:
    mini.gate.touch()
    mini.place_source()
    other = Mini(mini.root, dataclasses.replace(mini.pin, commit="1234567"))
    with pytest.raises(ToolError, match="calls itself abcdef0123 and not 1234567"):
        other.ensure()
    assert not other.folder.exists()


def compilers(tmp_path: Path, script: str | None = None) -> str:
    """A PATH with nothing but two compilers: the real ones, or a script."""
    place = tmp_path / "compilers"
    place.mkdir()
    for name in ("cc", "c++"):
        real = shutil.which(name)
        assert real
        if script is None:
            (place / name).symlink_to(real)
        else:
            (place / name).write_text(script)
            (place / name).chmod(0o755)
    return str(place)


@pytest.mark.parametrize("script", [None, "#!/bin/sh\necho no tools installed >&2; exit 1\n"])
def test_no_compiler(mini: Mini, tmp_path: Path, script: str | None) -> None:
    path = compilers(tmp_path, script) if script else ""
    with pytest.raises(ToolError, match="no C\\+\\+ compiler: .*apt-get install build-essential.*xcode-select"):
        install.ensure(mini.cache, threads=1, pip_environment=mini.pip_environment, pin=mini.pin, path=path)
    assert not mini.cache.exists()
    assert mini.notes() == []


def test_no_cmake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ToolError, match="pip install cmake ninja"):
        toolchain.find_toolchain({"PATH": compilers(tmp_path)})


def test_override_is_used_as_it_is(
    built: tuple[Mini, install.Llama, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mini, llama, _ = built
    for override in (mini.folder, mini.folder / "bin"):
        found = install.find(tmp_path, override, types=TYPES, pin=mini.pin)
        assert found == dataclasses.replace(llama, source=mini.folder / "source")
    assert install.ensure(tmp_path, threads=1, pip_environment={}, override=mini.folder, pin=mini.pin) == llama
    assert list(tmp_path.iterdir()) == []
    assert caplog.text == ""


def test_override_of_another_version_warns(
    built: tuple[Mini, install.Llama, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pin = dataclasses.replace(built[0].pin, commit="1234567")
    found = install.find(tmp_path, built[1].bin, pin=pin)
    assert found is not None
    assert found.commit == COMMIT
    assert "llama.cpp abcdef0123; ggufy is tested with 1234567, and results may differ" in caplog.text


def test_override_that_cannot_be_used(built: tuple[Mini, install.Llama, object], tmp_path: Path) -> None:
    pin = built[0].pin

    def complaint(folder: Path, *types: str) -> str:
        with pytest.raises(ToolError) as caught:
            install.find(tmp_path, folder, types=types, pin=pin)
        return str(caught.value)

    assert "has no llama-quantize" in complaint(tmp_path / "nowhere")
    assert "does not know Q9_Z: use a newer" in complaint(built[1].bin, "Q4_K_M", "Q9_Z")
    own = shutil.copytree(built[1].bin, tmp_path / "own", symlinks=True)
    (own / "llama-export-lora").unlink()  # the project's own downloads lack it
    found = install.find(tmp_path, own, pin=pin)
    assert found is not None
    with pytest.raises(ToolError, match="has no llama-export-lora"):
        found.tool("llama-export-lora")
    imatrix = own / "llama-imatrix"
    imatrix.write_text("#!/bin/sh\necho version: 4567\n")
    assert "names no commit" in complaint(own)
    imatrix.write_bytes(b"not a program")
    assert "llama-imatrix does not start on this machine (" in complaint(own)
    imatrix.unlink()
    assert "has no llama-imatrix" in complaint(own)


def test_version_line_of_older_releases(tmp_path: Path) -> None:
    program = tmp_path / "llama-imatrix"
    program.write_text("#!/bin/sh\necho 'version: 4567 (0c1e5709)' >&2\n")
    program.chmod(0o755)
    assert install.version_of(tmp_path) == ("4567", "0c1e5709")
    assert build.same_commit("0c1e5709", PINNED.commit)
    assert not build.same_commit("0c1e5708", PINNED.commit)


def test_cpu_name_tells_cpus_apart(tmp_path: Path) -> None:
    def named(text: str, *flags: str) -> str:
        (tmp_path / "proc").mkdir(exist_ok=True)
        (tmp_path / "proc/cpuinfo").write_text(text)
        return cpu_name.cpu_name(flags, root=tmp_path)

    one = named("processor\t: 0\nmodel name\t: A\ncpu MHz\t\t: 2000\nflags\t\t: avx2 fma\n")
    assert one == named("processor\t: 1\nmodel name\t: A\ncpu MHz\t\t: 3111\nflags\t\t: fma avx2\n")
    others = {
        named("model name\t: B\nflags\t\t: avx2 fma\n"),
        named("model name\t: A\nflags\t\t: avx2\n"),
        named("model name\t: A\nflags\t\t: avx2 fma\n", "-DX=1"),
    }
    assert one not in others
    assert len(others) == 3


def test_package_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    package = tmp_path / "evil.tar.gz"
    with tarfile.open(package, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("evil/vendor/llama.cpp/../../../../../escaped"))
    with pytest.raises(ToolError, match="holds no usable"):
        build.unpack(package, "vendor/llama.cpp", tmp_path / "work/source")
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path / "work/source").exists()


def test_first_error_of_a_log() -> None:
    log = (
        "[1/2] Building\nFAILED: x.o\nx.c:1:10: fatal error: y.h: No such file\nx.c:2: error: later\nninja: stopped.\n"
    )
    assert build.first_error(log) == "x.c:1:10: fatal error: y.h: No such file"
    cmake = "-- checking\nCMake Error at CMakeLists.txt:3 (message):\n  no OpenMP\n\n\n-- Configuring incomplete\n"
    assert build.first_error(cmake) == "CMake Error at CMakeLists.txt:3 (message): no OpenMP"
    assert build.first_error("ERROR: no such package.\n") == "no such package"
    assert build.first_error("one\ntwo\n") == ""
