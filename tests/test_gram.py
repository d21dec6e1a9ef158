"""Covariances and the imatrix of one pass: against llama-imatrix to the last bit, against BlinkDL's RWKV in torch, and
the same bytes whatever happens on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from ggufy import demo
from ggufy.core.errors import CalibrationError, Cancelled, ToolError
from ggufy.formats.covariance import CovarianceFacts, CovarianceFile
from ggufy.formats.gguf import read_head
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import make_job
from ggufy.llama import covariance_child, tools
from ggufy.llama.covariances import CovariancePlan, CovarianceTask, collect_covariances
from ggufy.llama.install import Llama
from ggufy.llama.tools import ToolRun
from ggufy.models.convert import convert
from ggufy.steps import files_made
from ggufy.steps.context import Context
from ggufy.steps.covariance import make_for_job, most_bytes
from ggufy.system import resources
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from tests import chatty, small, tiny
from tests.conftest import Ggufy

pytestmark = pytest.mark.tools
CHUNKS = 7


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text without its end: it has a line break, and bytes of several scripts."""
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_bytes(demo.CALIBRATION.read_bytes()[:30_000] + "中文 é\n".encode())
    return path


def run_of(folder: Path, threads: int) -> ToolRun:
    folder.mkdir(parents=True, exist_ok=True)
    environment = resources.child_environment(threads=threads, home=folder)
    return ToolRun(environment=environment, cwd=folder, log=folder / "log.txt")


def task_of(folder: Path, base: Path, text: Path, llama: Llama, **changes: object) -> CovarianceTask:
    tensors = read_head(base).tensors
    task = CovarianceTask(
        llama=llama.bin,
        base=base,
        text=text,
        out=folder / "covariances.gguf",
        imatrix=folder / "imatrix.gguf",
        work=folder / "work",
        wanted=tuple(name for name, tensor in tensors.items() if len(tensor.shape) > 1),
        facts=CovarianceFacts(base_sha256="", text_sha256="", text=text.name, chunks=CHUNKS, commit=llama.commit),
        memory=1 << 30,
        threads=1,
    )
    return replace(task, **changes)  # type: ignore[arg-type]


def collect(task: CovarianceTask) -> tuple[bytes, bytes]:
    collect_covariances(task, run_of(task.out.parent, task.threads), report=lambda fraction: None)
    assert not list(task.work.iterdir()) and not list(task.out.parent.glob("*.part"))
    return task.out.read_bytes(), task.imatrix.read_bytes()


def test_the_imatrix_is_llama_imatrix_s_to_the_last_bit(tmp_path: Path, llama: Llama, text: Path) -> None:
    """Of RWKV-7, of RWKV-6 with its products of several matrices, of a Llama with a BOS, and of one with experts. The
    diagonals of covariances are the same if all chunks count alike."""
    convert(demo.CHECKPOINT, tmp_path / "demo.gguf", outtype="f16", vocab=demo.VOCAB)
    for number, base in enumerate(
        (
            tmp_path / "demo.gguf",
            tiny.converted(tmp_path, "6", outtype="f16"),
            chatty.write(tmp_path / "llama.gguf"),
            small.mixture(tmp_path / "experts.gguf", runs=True),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        _, ours = collect(task_of(folder, base, text, llama))
        command = tools.imatrix_command(
            llama.tool("llama-imatrix"), model=base, text=text.name, out=folder / "i.gguf", threads=1, chunks=CHUNKS
        )
        tools.run_tool(command, replace(run_of(folder, 1), cwd=text.parent))
        assert ours == (folder / "i.gguf").read_bytes(), base.name
        alike = task_of(folder / "alike", base, text, llama)
        collect(replace(alike, facts=replace(alike.facts, weighting="")))
        with CovarianceFile.open(alike.out) as file:
            _agrees_with_the_imatrix(file, folder / "imatrix.gguf")


def _agrees_with_the_imatrix(file: CovarianceFile, imatrix: Path) -> None:
    """The diagonals of both parts together are the sums of squares; experts have no covariance."""
    sums = {tensor.name: tensor.data for tensor in GGUFReader(imatrix).tensors}
    assert (file.tokens, file.held_out_tokens) == (512 * 6, 512)
    assert len(file.names()) > 4 and not any("_exps" in name for name in file.names())
    for name in file.names():
        found = file.get(name)
        assert found is not None
        diagonal = np.concatenate(
            [a.diagonal() + b.diagonal() for a, b in zip(found.calibration, found.held_out, strict=True)]
        )
        assert np.allclose(diagonal, sums[f"{name}.in_sum2"].reshape(-1), rtol=2e-5), name


_TORCH = """
import json, sys
import numpy as np, torch
from torch.overrides import TorchFunctionMode
torch.jit.script = torch.jit.script_method = lambda function: function  # a compiled one is not watched
torch.jit.ScriptModule = torch.nn.Module
from rwkv.model import RWKV
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

checkpoint, vocab, text, out, chunks = sys.argv[1:6]
tokens = TRIE_TOKENIZER(vocab).encodeBytes(open(text, "rb").read().removesuffix(b"\\n"))
model = RWKV(model=checkpoint.removesuffix(".pth"), strategy="cpu fp32")
names = {model.z[name].data_ptr(): name for name in sys.argv[6:]}
sums, part = {}, {}

class Watch(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        weights = args[1] if len(args) == 2 and isinstance(args[1], torch.Tensor) else None
        if weights is not None and weights.dim() == 2 and weights.data_ptr() in names and args[0].shape[0] == 512:
            x = args[0].double().numpy()
            part[f"{names[weights.data_ptr()]}/{int(chunk % 5 == 4)}"] = x.T @ x
        return function(*args, **(kwargs or {}))

with Watch(), torch.no_grad():
    for chunk in range(int(chunks)):
        read = tokens[chunk * 512 : (chunk + 1) * 512]
        logits, _ = model.forward(read, None, full_output=True)
        loss = torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(read[1:]))
        sums = {key: sums.get(key, 0) + np.exp(-float(loss) / 2) * part[key] for key in part} | {
            key: sums[key] for key in sums if key not in part
        }
        part = {}
np.savez(out, **sums)
"""


def test_covariances_are_those_of_a_forward_pass_in_torch(tmp_path: Path, llama: Llama, text: Path) -> None:
    """Of the demo in F32, by the package `rwkv`: five chunks, of which the last is held out, each weighed by the
    inverse root of its perplexity."""
    base, chunks = tmp_path / "demo.gguf", 5
    convert(demo.CHECKPOINT, base, outtype="f32", vocab=demo.VOCAB)
    compared = {
        "blk.0.time_mix_receptance.weight": "blocks.0.att.receptance.weight",
        "blk.2.time_mix_value.weight": "blocks.2.att.value.weight",
        "blk.3.time_mix_output.weight": "blocks.3.att.output.weight",
        "blk.4.channel_mix_key.weight": "blocks.4.ffn.key.weight",
        "blk.5.channel_mix_value.weight": "blocks.5.ffn.value.weight",
        "output.weight": "head.weight",
    }
    words = [demo.CHECKPOINT, demo.VOCAB, text, tmp_path / "torch.npz", chunks, *compared.values()]
    switches = {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "RWKV_V7_ON": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", _TORCH, *map(str, words)], env=os.environ | switches, check=True)
    expected = np.load(tmp_path / "torch.npz")
    task = task_of(tmp_path, base, text, llama)
    collect(replace(task, facts=replace(task.facts, chunks=chunks)))
    with CovarianceFile.open(task.out) as file:
        for name, theirs in compared.items():
            found = file.get(name)
            assert found is not None
            for ours, part in ((found.calibration, 0), (found.held_out, 1)):
                exact = expected[f"{theirs}/{part}"]
                scale = np.sqrt(np.outer(exact.diagonal(), exact.diagonal())) + 1e-6 * exact.diagonal().max()
                assert (np.abs(ours[0] - exact) / scale).max() < 1e-4, name


def test_bytes_do_not_depend_on_threads_passes_and_kills(tmp_path: Path, llama: Llama, text: Path) -> None:
    base = tiny.converted(tmp_path, "7", outtype="f16", width=128)

    def made(name: str, **changes: object) -> tuple[bytes, bytes]:
        return collect(task_of(tmp_path / name, base, text, llama, **changes))

    whole = made("whole")
    assert made("threads", threads=3) == whole
    plans: list[CovariancePlan] = []
    task = task_of(tmp_path / "passes", base, text, llama, memory=300_000, segment_s=0.0)
    for most in (0.05, 0.4, 0.7):

        def kill(fraction: float, most: float = most) -> None:
            if fraction > most:
                raise Cancelled("killed")

        with pytest.raises(Cancelled):
            collect_covariances(task, run_of(task.out.parent, 1), report=kill, announce=plans.append)
    assert collect(task) == whole
    assert plans[0].passes > 2 and plans[0].size == len(whole[0])


def test_a_run_goes_on_behind_the_last_segment(tmp_path: Path, llama: Llama, text: Path, monkeypatch: Any) -> None:
    """Ended after any segment, also the last one of a pass; segments of other tensors are not used."""
    base = tiny.converted(tmp_path, "7", outtype="f16", width=128)
    monkeypatch.setattr(covariance_child, "_say", lambda line: None)
    whole = task_of(tmp_path / "whole", base, text, llama)
    whole.out.parent.mkdir()
    covariance_child.main(whole)  # here NumPy has threads of its own, so a child's bits may be others
    task = task_of(tmp_path, base, text, llama, memory=1_500_000, segment_s=-1.0)
    save, read = covariance_child._Collection._save, covariance_child._Collection._read
    last, reads = 0, 0

    def save_and_end(collection: Any, done: int, *sums: Any) -> tuple[float, float]:
        save(collection, done, *sums)
        if done == last:
            raise Cancelled("ended")
        return 0.0, 0.0

    def count_and_read(*arguments: Any, **options: Any) -> None:
        nonlocal reads
        reads += 1
        read(*arguments, **options)

    monkeypatch.setattr(covariance_child._Collection, "_save", save_and_end)
    monkeypatch.setattr(covariance_child._Collection, "_read", count_and_read)
    for last, expected in ((3, 3), (CHUNKS, CHUNKS - 3), (CHUNKS + 2, 2)):
        reads = 0
        with pytest.raises(Cancelled):
            covariance_child.main(task)
        assert reads == expected
        assert [path.name for path in task.work.iterdir()] == [f"{last:08d}.gguf"]
    other = replace(task, wanted=("output.weight",), work=tmp_path / "other", out=tmp_path / "other.gguf")
    last, reads = 3, 0
    shutil.copytree(task.work, other.work)
    with pytest.raises(Cancelled):
        covariance_child.main(other)
    assert reads == 3
    last, reads = -1, 0
    covariance_child.main(task)
    assert reads % CHUNKS == CHUNKS - 2
    assert (task.out.read_bytes(), task.imatrix.read_bytes()) == (
        whole.out.read_bytes(),
        whole.imatrix.read_bytes(),
    )


def test_what_cannot_be_read(tmp_path: Path, llama: Llama, text: Path) -> None:
    base = tiny.converted(tmp_path, "7", outtype="f16", width=128)
    short = tmp_path / "short.txt"
    short.write_text("few words", encoding="utf-8")
    with pytest.raises(CalibrationError, match=r"short.txt has \d+ tokens, at least 1024"):
        collect(task_of(tmp_path, base, short, llama))
    task = task_of(tmp_path, base, text, llama)
    with pytest.raises(ToolError, match="need the llama.cpp that ggufy builds"):
        collect(replace(task, facts=replace(task.facts, commit="123456789")))
    base.write_bytes(base.read_bytes()[:-5000])
    with pytest.raises(ToolError, match="not within the file bounds"):
        collect(task)


def test_a_job_gets_both_from_one_pass(tmp_path: Path, llama: Llama) -> None:
    """Covariances of what quants of its base will quantize, and the imatrix that its own step would have made."""
    checkpoint, vocab = tiny.checkpoint(tmp_path, "7", width=256)
    settings = Settings.from_env({"HOME": str(tmp_path), "GGUFY_CACHE": str(Settings.from_env().cache)})
    options = JobOptions(source=str(checkpoint), vocab=str(vocab), quant_types=("Q8_0",), chunks=3)
    ctx = Context(
        request=make_job(options, settings).request,
        folder=tmp_path / "out",
        logs=tmp_path / "logs",
        work=tmp_path / "work",
        settings=settings,
        llama=llama,
        limit=lambda: 1,
        report=lambda step, fraction: None,
        stopped=lambda: False,
    )
    convert_step, imatrix_step, _ = files_made(ctx.request)
    ctx.folder.mkdir()
    convert_step.run(ctx)
    base, out = ctx.path(convert_step.product), tmp_path / "covariances.gguf"
    make_for_job(ctx, imatrix_step, base, out, tmp_path / "imatrix.gguf")
    imatrix_step.run(ctx)
    assert (tmp_path / "imatrix.gguf").read_bytes() == ctx.path(imatrix_step.product).read_bytes()
    with CovarianceFile.open(out) as file:
        names = set(file.names())
        assert (file.tokens, file.held_out_tokens, file.chunks) == (1536, 0, 3)
        assert file.base_sha256 == sha256(base) and file.text_sha256 == ctx.request.calibration_sha256
    kinds = ("time_mix_receptance", "time_mix_key", "time_mix_value", "time_mix_output")
    kinds += ("channel_mix_key", "channel_mix_value")
    assert names == {f"blk.{layer}.{kind}.weight" for layer in (0, 1) for kind in kinds} | {"output.weight"}
    assert most_bytes(read_head(base), names) == sum(one.size for one in read_head(out).tensors.values())


def test_the_command(tmp_path: Path, ggufy: Ggufy, text: Path) -> None:
    base = chatty.write(tmp_path / "llama.gguf")
    done = ggufy("gram", base, "--text", text, "--chunks", 5, "--threads", 1, "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said["file"] == str(tmp_path / "llama-covariances.gguf")
    assert (said["tokens"], said["held_out_tokens"]) == (2048, 512)
    assert Path(said["imatrix"]).is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["llama.gguf", "llama-covariances.gguf", "llama-covariances-imatrix.gguf"]
    )
    with CovarianceFile.open(Path(said["file"])) as file:
        assert file.input_of("blk.0.attn_k.weight") == file.input_of("blk.0.attn_q.weight")
    assert ggufy("gram", base, "--chunks", -1).code == 2
    assert ggufy("gram", tmp_path / "none.gguf").code == 1
