"""The test Hub against the real client: what part of the program that uploads will lean on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_fixture import ALICE, running_hub

# Runs in a process of its own, since the client reads HF_ENDPOINT when it is imported.
CLIENT = f"""
import hashlib, os, random, sys
from pathlib import Path
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

api = HfApi(token="{ALICE}")
folder = Path(sys.argv[1])
assert api.whoami()["name"] == "alice"
repo = api.create_repo("alice/up", private=True).repo_id
assert api.create_repo("alice/up", private=True, exist_ok=True).repo_id == repo == "alice/up"

large = folder / "model.gguf"
large.write_bytes(random.Random(1).randbytes(5_000_000))
digest = hashlib.sha256(large.read_bytes()).hexdigest()
first = api.upload_file(repo_id=repo, path_or_fileobj=large, path_in_repo="quants/model.gguf")
api.upload_file(repo_id=repo, path_or_fileobj=b"# Card", path_in_repo="README.md")

tree = {{entry.path: entry for entry in api.list_repo_tree(repo, recursive=True)}}
assert sorted(tree) == ["README.md", "quants", "quants/model.gguf"], sorted(tree)
assert tree["quants/model.gguf"].lfs.sha256 == digest and tree["README.md"].lfs is None
assert (tree["quants/model.gguf"].xet_hash is not None) == (sys.argv[2] == "xet")
assert api.get_paths_info(repo, ["quants/model.gguf"])[0].size == 5_000_000
back = api.hf_hub_download(repo, "quants/model.gguf", local_dir=folder / "back")
assert Path(back).read_bytes() == large.read_bytes()
assert Path(api.hf_hub_download(repo, "README.md")).read_bytes() == b"# Card"

head = api.repo_info(repo).sha
add = lambda text: [CommitOperationAdd("state.json", text.encode())]
second = api.create_commit(repo, add("1"), commit_message="one", parent_commit=head).oid
try:
    api.create_commit(repo, add("2"), commit_message="two", parent_commit=head)
except HfHubHTTPError as error:
    assert error.response.status_code == 412, error
else:
    raise SystemExit("a stale parent was accepted")
assert api.repo_info(repo).sha == second
again = api.upload_file(repo_id=repo, path_or_fileobj=large, path_in_repo="quants/model.gguf")
assert again.oid == second, "an unchanged file made a commit"
api.create_commit(repo, [CommitOperationDelete("quants/")], commit_message="delete")
assert not api.file_exists(repo, "quants/model.gguf") and api.file_exists(repo, "README.md")
assert len(api.list_repo_commits(repo)) == 5
api.super_squash_history(repo)
assert len(api.list_repo_commits(repo)) == 1
(folder / "set").mkdir()
(folder / "set" / "a.txt").write_text("a")
(folder / "set" / "b.gguf").write_bytes(large.read_bytes()[::-1])
api.create_repo("acme/set", repo_type="dataset")
api.upload_folder(repo_id="acme/set", repo_type="dataset", folder_path=folder / "set")
assert sorted(api.list_repo_files("acme/set", repo_type="dataset")) == ["a.txt", "b.gguf"]
assert [model.id for model in api.list_models(search="up")] == ["alice/up"]
stranger = HfApi(token=False)
try:
    stranger.repo_info(repo)
except RepositoryNotFoundError:
    pass
else:
    raise SystemExit("a private repo was shown to a stranger")
api.delete_repo(repo)
assert not api.repo_exists(repo)
"""


@pytest.mark.parametrize("way", ["lfs", "parts", "xet"])
def test_the_real_client_uploads_lists_and_downloads(tmp_path: Path, way: str) -> None:
    with running_hub(*(["--part-size", "2000000"] if way == "parts" else [])) as hub:
        environment = hub.environment(tmp_path) | ({} if way == "xet" else {"HF_HUB_DISABLE_XET": "1"})
        command = [sys.executable, "-c", CLIENT, str(tmp_path), way]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        puts = [line for line in hub.log("/__lfs/") if line["method"] == "PUT"]
        assert len(puts) == {"lfs": 2, "parts": 6, "xet": 0}[way]
