"""`ggufy verify`: a quant is what its base, its imatrix and its metadata say; any other byte is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hub_fixture import ALICE, LocalHub

from ggufy.cli.verify import beside, quants_among
from ggufy.core.errors import UsageError
from ggufy.core.job import DEFAULT_CHUNKS
from ggufy.formats.gguf import read_head
from ggufy.quantize.layout import PIECE
from ggufy.quantize.verify import SAMPLES
from ggufy.system.settings import Settings
from ggufy.texts.calibration import ensure_texts
from tests.conftest import Finished, Ggufy

pytestmark = pytest.mark.tools

QUANTS = ("Q4_K_M", "IQ3_XXS", "Q2_K", "TQ1_0", "Q8_0")


@pytest.fixture(scope="module")
def plain_run(ggufy: Ggufy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the demo's quants with plain codes."""
    out = tmp_path_factory.mktemp("plain")
    words = ["--types", ",".join(QUANTS), "--round", "plain", "--no-evaluate", "--json", "--out", out]
    done = ggufy("quantize", "demo", *words)
    assert done.code == 0, done.err
    return Path(json.loads(done.out)["folder"])


@pytest.fixture
def verified(plain_run: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """(a copy of a quant of the demo, its base, its imatrix)"""
    folder = plain_run
    [quant] = folder.glob("*-Q4_K_M.gguf")
    [base], [imatrix] = folder.glob("*-F16.gguf"), folder.glob("*-imatrix.gguf")
    return Path(shutil.copy(quant, tmp_path / quant.name)), base, imatrix


def asked(ggufy: Ggufy, quant: Path, base: Path, imatrix: Path, *more: object) -> Finished:
    return ggufy("verify", quant, "--base", base, "--imatrix", imatrix, *more)


def test_quants_of_a_job_are_the_same_from_what_lies_beside_them(plain_run: Path, ggufy: Ggufy) -> None:
    paths = [next(plain_run.glob(f"*-{kind}.gguf")) for kind in QUANTS]
    done = ggufy("verify", *paths, "--json")
    assert done.code == 0, done.err
    for one, path in zip(json.loads(done.out), paths, strict=True):
        assert one["file"] == str(path) and one["holds"] and not one["whole"]
        assert one["same"] == len(read_head(path).tensors) and not one["different"] and not one["metadata"]


def test_one_changed_bit_is_found_where_every_row_is_compared(verified: tuple[Path, Path, Path], ggufy: Ggufy) -> None:
    quant, base, imatrix = verified
    head = read_head(quant)
    name = "output.weight"
    tensor = head.tensors[name]
    assert tensor.elements == 16 * PIECE > SAMPLES * PIECE, "a tensor of which samples are not all"
    data = np.memmap(quant, np.uint8, "r+")
    data[head.data_start + tensor.offset + tensor.size * 15 // 32] ^= 1  # in the eighth of sixteen parts
    data.flush()
    assert asked(ggufy, quant, base, imatrix).code == 0
    done = asked(ggufy, quant, base, imatrix, "--whole")
    assert done.code == 1 and f"NOT what its base and imatrix make: {name} of" in done.out


def test_other_weights_and_other_metadata_are_found_in_samples(
    verified: tuple[Path, Path, Path], plain_run: Path, ggufy: Ggufy
) -> None:
    quant, base, imatrix = verified
    raw = bytearray(quant.read_bytes())
    at = raw.index(b"general.name") + len(b"general.name") + 12
    raw[at] ^= 1
    quant.write_bytes(raw)
    done = asked(ggufy, quant, base, imatrix)
    assert done.code == 1 and "NOT what its base and imatrix make: general.name of" in done.out
    head = read_head(quant)
    tensor = head.tensors["output.weight"]
    raw[head.data_start + tensor.offset] ^= 1
    quant.write_bytes(raw)
    assert "general.name, output.weight of" in asked(ggufy, quant, base, imatrix).out
    [other] = plain_run.glob("*-Q8_0.gguf")
    done = asked(ggufy, other, base, imatrix, "--json")
    assert done.code == 0 and json.loads(done.out)[0]["holds"]


def test_what_cannot_be_compared_is_said(verified: tuple[Path, Path, Path], ggufy: Ggufy, tmp_path: Path) -> None:
    quant, base, imatrix = verified
    assert "has no base beside it: give the unquantized file with --base" in ggufy("verify", quant).err
    alone = shutil.copy(base, tmp_path / "base.gguf")
    assert "was made with an imatrix" in ggufy("verify", quant, "--base", alone).err
    assert "have not the same tensors" in asked(ggufy, quant, imatrix, imatrix).err
    assert "is no file" in ggufy("verify", tmp_path / "none.gguf").err


def test_compensated_quants_are_the_same_under_the_covariances_that_gram_collects_again(
    ggufy: Ggufy, tmp_path: Path
) -> None:
    words = ["--types", "Q4_K_M", "--round", "compensated", "--no-evaluate", "--json", "--out", tmp_path]
    done = ggufy("quantize", "demo", *words)
    assert done.code == 0, done.err
    folder = Path(json.loads(done.out)["folder"])
    [quant], [base] = folder.glob("*-Q4_K_M.gguf"), folder.glob("*-F16.gguf")
    done = ggufy("verify", quant, "--json")
    assert done.code == 0 and json.loads(done.out)[0]["compensated"], done.err
    texts = ensure_texts(Settings.from_env().cache)
    text = shutil.copy(texts.calibration, tmp_path / "ggufy-calibration.txt")  # as a job calls it
    sums = tmp_path / "sums.gguf"
    assert ggufy("gram", base, "--text", text, "--chunks", DEFAULT_CHUNKS, "--out", sums).code == 0
    done = ggufy("verify", quant, "--covariances", sums, "--whole", "--json")
    [found] = json.loads(done.out)
    assert done.code == 0 and found["holds"] and found["whole"], done.out
    assert found["same"] == len(read_head(quant).tensors) and not found["compensated"]
    head = read_head(quant)
    data = np.memmap(quant, np.uint8, "r+")
    data[head.data_start + head.tensors["blk.1.channel_mix_value.weight"].offset + 7] ^= 1
    data.flush()
    done = ggufy("verify", quant, "--covariances", sums, "--whole", "--json")
    assert done.code == 1 and json.loads(done.out)[0]["different"] == ["blk.1.channel_mix_value.weight"]


def test_a_repo_is_fetched_and_compared(plain_run: Path, ggufy: Ggufy, hub: LocalHub, tmp_path: Path) -> None:
    """One file of it, or all quants that have a base; a private one with the token; nothing of it stays here."""
    for path in plain_run.glob("*.gguf"):
        if path.stem.endswith(("-F16", "-imatrix", "-Q4_K_M", "-Q8_0")):
            hub.put("alice/secret-GGUF", path.name, path.read_bytes(), private=1)
    hub.put("alice/secret-GGUF", "README.md", b"# quants", lfs=0)
    cache = tmp_path / "cache"
    there = hub.environment(tmp_path) | {"HF_TOKEN": ALICE, "GGUFY_CACHE": str(cache)}
    done = ggufy("verify", "alice/secret-GGUF", "--json", **there)
    assert done.code == 0, done.err
    assert [Path(one["file"]).name for one in json.loads(done.out)] == [
        "RWKV-x070-Demo-7M-Q4_K_M.gguf",
        "RWKV-x070-Demo-7M-Q8_0.gguf",
    ]
    assert all(one["holds"] for one in json.loads(done.out))
    done = ggufy("verify", "alice/secret-GGUF:RWKV-x070-Demo-7M-Q8_0.gguf", **there)
    assert done.code == 0 and done.out.count("the same in all") == 1, done.err
    assert not list((cache / "verify").rglob("*.gguf"))
    raw = bytearray((plain_run / "RWKV-x070-Demo-7M-Q8_0.gguf").read_bytes())
    raw[-1] ^= 1
    hub.put("alice/secret-GGUF", "RWKV-x070-Demo-7M-Q8_0.gguf", bytes(raw), private=1)
    done = ggufy("verify", "alice/secret-GGUF", **there)
    assert done.code == 1 and done.out.count("NOT what its base") == 1
    for text, says in {
        "alice/secret-GGUF:no.gguf": "has no file no.gguf: it holds RWKV-x070-Demo-7M-F16.gguf, ",
        "alice/nothing": "alice/nothing",
        "no/such.gguf": "is no file",
    }.items():
        done = ggufy("verify", text, **there)
        assert done.code in (1, 2) and says in done.err and ALICE not in done.err, done.err


def test_what_lies_beside_a_quant() -> None:
    names = ["a-F16.gguf", "a-b-BF16.gguf", "a-b-imatrix.gguf", "a-b-Q2_K.gguf", "a-Q2_K.gguf", "c-Q2_K.gguf"]
    assert beside("a-b-Q2_K.gguf", names) == ("a-b-BF16.gguf", "a-b-imatrix.gguf")
    assert beside("a-Q2_K.gguf", names) == ("a-F16.gguf", None)
    assert quants_among(names) == ["a-Q2_K.gguf", "a-b-Q2_K.gguf"]
    with pytest.raises(UsageError, match=r"^c-Q2_K\.gguf has no base"):
        quants_among(["c-Q2_K.gguf", "d-F16.gguf"])
