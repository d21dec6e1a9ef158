"""Covariance files: what is written comes back, q, k and v share a matrix, wide ones are blocks, and anything else is
refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from ggufy.core.errors import CalibrationError
from ggufy.formats import covariance
from ggufy.formats.covariance import Covariance, CovarianceFacts, CovarianceFile, block_widths, write_covariances
from ggufy.formats.gguf_writer import F32Array, write_gguf

pytestmark = pytest.mark.fast
FACTS = CovarianceFacts(base_sha256="ab" * 32, text_sha256="cd" * 32, text="words.txt", chunks=7, commit="0c1e57098")
Q, K, DOWN = (f"blk.0.{name}.weight" for name in ("attn_q", "attn_k", "ffn_down"))


def measured(*widths: int, seed: int = 0) -> Covariance:
    """Sums over random inputs, each block its own."""
    random = np.random.default_rng(seed)

    def sums(tokens: int) -> tuple[F32Array, ...]:
        inputs = [random.standard_normal((tokens, width), dtype=np.float32) for width in widths]
        return tuple(x.T @ x for x in inputs)

    return Covariance(calibration=sums(60), held_out=sums(20), tokens=60, held_out_tokens=20)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    first, other = measured(96), measured(32, seed=1)
    write_covariances(tmp_path / "c.gguf", {Q: first, DOWN: other}, facts=FACTS, inputs={K: Q})
    with CovarianceFile.open(tmp_path / "c.gguf") as file:
        assert file.names() == [Q, DOWN, K]
        assert file.facts == FACTS
        assert (file.chunks, file.base_sha256, file.text_sha256) == (7, "ab" * 32, "cd" * 32)
        for name, expected in ((Q, first), (K, first), (DOWN, other)):
            found = file.get(name)
            assert found is not None
            assert (found.tokens, found.held_out_tokens, found.columns) == (60, 20, expected.columns)
            for ours, theirs in zip(
                found.calibration + found.held_out, expected.calibration + expected.held_out, strict=True
            ):
                assert np.array_equal(ours, theirs) and np.array_equal(ours, ours.T)
                assert ours.flags.c_contiguous and ours.flags.writeable
        assert file.get("output.weight") is None
        assert [file.input_of(name) for name in (Q, K, DOWN, "output.weight")] == [Q, Q, DOWN, None]


def test_wide_matrices_are_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covariance, "WIDEST", 512)
    wide = measured(512, 512, 276)
    write_covariances(tmp_path / "c.gguf", {DOWN: wide}, facts=FACTS)
    found = CovarianceFile(tmp_path / "c.gguf").get(DOWN)
    assert found is not None and found.widths == (512, 512, 276)
    assert all(map(np.array_equal, found.calibration, wide.calibration))
    assert all(map(np.array_equal, found.held_out, wide.held_out))


@pytest.mark.parametrize(
    ("columns", "widths"),
    [
        (1, (1,)),
        (576, (576,)),
        (4096, (4096,)),
        (8192, (4096, 4096)),
        (11008, (3840, 3840, 3328)),
        (4100, (2304, 1796)),
    ],
)
def test_blocks_are_few_and_end_where_blocks_of_types_do(columns: int, widths: tuple[int, ...]) -> None:
    assert block_widths(columns) == widths


def test_the_digest_tells_what_the_values_follow_from(tmp_path: Path) -> None:
    def digest(seed: int, inputs: dict[str, str], facts: CovarianceFacts = FACTS) -> str:
        write_covariances(tmp_path / "c.gguf", {Q: measured(32, seed=seed)}, facts=facts, inputs=inputs)
        return CovarianceFile(tmp_path / "c.gguf").digest

    other = CovarianceFacts(base_sha256="ef" * 32, text_sha256="cd" * 32, text="words.txt", chunks=7, commit="x")
    assert len(digest(0, {})) == 64
    assert digest(0, {}) == digest(1, {})  # no value is read for it
    assert len({digest(0, {}), digest(0, {K: Q}), digest(0, {}, other)}) == 3


def test_gguf_py_reads_it(tmp_path: Path) -> None:
    """Both sums in one tensor: the first in the upper triangle, the other in the lower one a row further down."""
    one = measured(32)
    write_covariances(tmp_path / "c.gguf", {Q: one}, facts=FACTS)
    reader = GGUFReader(tmp_path / "c.gguf")
    (tensor,) = reader.tensors
    assert tensor.name == f"{Q}.covariance.0" and tensor.data.shape == (33, 32)
    assert np.array_equal(np.triu(tensor.data[:32]), np.triu(one.calibration[0]))
    assert np.array_equal(np.tril(tensor.data[1:]), np.tril(one.held_out[0]))
    assert reader.fields["covariance.tokens"].contents() == 60


def test_different_tokens_or_blocks_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same tokens"):
        write_covariances(tmp_path / "c.gguf", {Q: measured(32, 32)}, facts=FACTS)
    assert not list(tmp_path.iterdir())


def test_what_is_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.gguf"
    about = covariance._metadata({Q: Q}, FACTS, 60, 20)
    square, sound = np.ones((32, 32), dtype=np.float32), np.ones((33, 32), dtype=np.float32)

    def refused(metadata: dict[str, str | int | list[str]], tensors: dict[str, F32Array], words: str) -> None:
        write_gguf(path, metadata, tensors)
        with pytest.raises(CalibrationError, match=words):
            CovarianceFile(path).get(Q)

    refused(about, {f"{Q}.covariance.0": square}, "damaged")
    refused(about, {f"{Q}.covariance.1": sound}, "damaged")
    refused(about | {"covariance.inputs": []}, {f"{Q}.covariance.0": sound}, "damaged")
    refused(about | {"covariance.tokens": "many"}, {f"{Q}.covariance.0": sound}, "damaged")
    refused(about | {"covariance.commit": 3}, {f"{Q}.covariance.0": sound}, "damaged")
    refused(about | {"general.type": "imatrix"}, {f"{Q}.covariance.0": sound}, "no covariances")
    sound[3, 9] = np.nan
    refused(about, {f"{Q}.covariance.0": sound}, "not finite")
