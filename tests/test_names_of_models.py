"""What models, files and repos are called: valid everywhere, told apart, and without meaning to the tools."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import pytest
from huggingface_hub.utils import validate_repo_id

from ggufy.core.catalog import BY_NAME, OUTTYPES
from ggufy.core.errors import UsageError
from ggufy.core.names import MOST_BYTES, check_card, is_repo_id, model_name, repo_name

pytestmark = pytest.mark.fast

PLAIN = ["RWKV7-G1-1.5B", "rwkv_x060", "a", "M.v2", "Rwkv-1.6B-3.275bpw", "m" * 91]
LOSSY = [
    "模型",
    "小说",
    "RWKV7-小说-0.4B",
    "RWKV7-模型-0.4B",
    "RWKV-x070-Eng99%-Other1%",
    "RWKV-x070-Eng99-Other1-",
    "RWKV-x070-Eng99--Other1",
    "a..b",
    "a.-b",
    "_a",
    "a+b",
    "a b",
    "m" * 92,
    "m" * 93,
    "m" * 300,
    "模" * 100,
    "模" * 101,
    "a-Q8_0-b",
    "imatrix",
]
MEANT = [
    "imatrix-tuned",
    "my.imatrix",
    "mmproj-rwkv",
    "mtp-rwkv7",
    "rwkv7-mtp",
    "eagle3-x",
    "x.dflash",
    "dspark-dspark-x",
    "imaimatrixtrix",
    "RWKV-Q8_0-tuned",
    "RWKV-q4_k_m",
    "x-F16-tuned",
    "Q8_0-IQ3_XXS_FIT-x",
    "xQ8_-Q8_00-y",
    "Q6_Q6_K.K-z",
    "a" * 112 + "-imatrix",
    "a" * 116 + "-mtpx",
]
LABELS = [*BY_NAME, *(outtype.upper() for outtype in OUTTYPES)]


@pytest.mark.parametrize("stem", [*PLAIN, *LOSSY, *MEANT])
def test_a_repos_name_is_one_for_the_hub(stem: str) -> None:
    repo = f"alice/{repo_name(stem)}"
    validate_repo_id(repo)  # the client's own rule
    assert is_repo_id(repo)
    assert repo.endswith("-GGUF")


def test_no_two_models_share_a_repo() -> None:
    assert [repo_name(stem) for stem in PLAIN] == [f"{stem}-GGUF" for stem in PLAIN]
    repos = [repo_name(stem).lower() for stem in [*PLAIN, *LOSSY, *MEANT]]
    assert len(set(repos)) == len(repos)
    assert repo_name("RWKV7-小说-0.4B").startswith("RWKV7-0.4B-")
    assert repo_name("模型").startswith("model-")
    assert repo_name("x-BF16") == repo_name("x") == "x-GGUF"  # the same model


@pytest.mark.parametrize("stem", [*PLAIN, *LOSSY, *MEANT])
def test_a_models_name_fits_every_disk(stem: str) -> None:
    name = model_name(stem)
    assert 0 < len(name.encode()) <= MOST_BYTES
    assert name == model_name(name)  # so it can be given with --name
    assert len(f"{name}-999.999999GiB-IQ3_XXS_FIT.gguf.journal.part".encode()) < 255


def test_the_same_name_in_two_writings() -> None:
    assert model_name("cafe\u0301") == model_name("caf\u00e9") == "caf\u00e9"


@pytest.mark.parametrize("stem", ["", "-.", "%%%", "/", "-F16", "Q8_0", "BF16", "\udce9"])
def test_nothing_is_left_for_a_name(stem: str) -> None:
    with pytest.raises(UsageError, match=r"no name can be made from .*: give one with --name\."):
        model_name(stem)


def found_by_llama(files: Sequence[str], tag: str) -> str:
    """What `-hf repo:tag` fetches: find_best_model of llama.cpp's common/download.cpp."""
    others = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
    models = [file for file in files if not any(word in file for word in others)]
    return next((file for file in models if re.search(f"{tag}[.-]", file, re.IGNORECASE)), "")


@pytest.mark.parametrize("stem", [*PLAIN, *LOSSY, *MEANT])
def test_every_label_finds_its_file(stem: str) -> None:
    name = model_name(stem)
    for outtype in OUTTYPES:
        labels = [*BY_NAME, outtype.upper(), "1.2GB-IQ3_XXS_FIT"]
        files = [f"{name}-{label}.gguf" for label in [*labels, "imatrix"]]
        for order in (sorted(files), sorted(files, reverse=True)):
            for label in labels:
                assert found_by_llama(order, label.rpartition("-")[2]) == f"{name}-{label}.gguf"


@pytest.mark.parametrize(
    ("repo_id", "valid"),
    [
        ("alice/m", True),
        ("alice/M_1.x-y", True),
        ("a/" + "m" * 96, True),
        ("a/" + "m" * 97, False),
        ("alice/a--b", False),
        ("alice/a..b", False),
        ("alice/-a", False),
        ("alice/a-", False),
        ("alice/a.", False),
        ("alice/m.git", False),
        ("alice/模型", False),
        ("alice", False),
        ("a/b/c", False),
        ("../b", False),
        ("", False),
        ("alice/m\n", False),
    ],
)
def test_names_of_repos(repo_id: str, *, valid: bool) -> None:
    assert is_repo_id(repo_id) is valid


CARD = "---\nlicense: mit\nquantized_by: ggufy\ntags:\n- gguf\n---\n\n# {}-GGUF\n\nGGUF files of it.\n"


@pytest.mark.parametrize("other", ["小说", "x", "mm", "M", "m-GGUF", "x" * 500])
def test_a_card_of_another_model_is_seen(other: str) -> None:
    with pytest.raises(UsageError, match=r"^alice/x holds the files of another model, '.*: give this run another"):
        check_card(CARD.format(other), repo_id="alice/x", name="m")
    check_card(CARD.format(other), repo_id="alice/x", name=other)


@pytest.mark.parametrize(
    "card", ["", "# other-GGUF", CARD.replace("ggufy", "somebody").format("x"), CARD.split("#")[0]]
)
def test_cards_of_others_are_not_this_checks_business(card: str) -> None:
    check_card(card, repo_id="alice/x", name="m")


def test_no_label_is_found_in_another() -> None:
    for one, other in itertools.permutations(BY_NAME, 2):
        assert not one.endswith(other)
