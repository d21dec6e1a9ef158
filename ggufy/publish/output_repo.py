"""One output repo of a run: what it holds, its uploads, its card."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from ggufy.core.errors import UsageError
from ggufy.core.hosts import MODELSCOPE, RepoName
from ggufy.core.job import Artifact, Job
from ggufy.core.job_sharing import was_at_work
from ggufy.core.names import check_card
from ggufy.hub.protocol import OutputHub, RemoteFile
from ggufy.publish import modelscope_card
from ggufy.publish.card import CARD, CardFacts, pages
from ggufy.publish.readme import check_readme
from ggufy.publish.uploader import Uploader
from ggufy.records.patience import Patience


class OutputRepo:
    """A repo that one run of a job fills. `name` is as core/hosts.py has it."""

    def __init__(
        self,
        hub: OutputHub,
        name: str,
        latest: Callable[[], Job],
        *,
        card: Callable[[Job, OutputRepo, Mapping[str, int]], tuple[Job, CardFacts]] | None,
        patience: Patience,
        held_up: Callable[[], str],
        uploaded: Callable[[list[Artifact]], None],
        fraction: Callable[[Artifact, float], None],
    ):
        """`latest` gives the job's record; `card` the job as a card shows it with what it says besides, for files
        (name -> bytes) that the repo holds; None: no card is written."""
        self.hub, self.name, self.repo_id = hub, name, RepoName.of(name).repo_id
        self._latest, self._card, self._patience = latest, card, patience
        self._ending: Job | None = None
        self.uploader = Uploader(
            hub,
            self.repo_id,
            private=latest().request.private,
            pages=self._pages,
            patience=patience,
            held_up=held_up,
            uploaded=uploaded,
            fraction=fraction,
        )

    def start(self, jobs: Iterable[Job], names: Collection[str], *, resumed: bool) -> None:
        """Looks at what is there. Raises UsageError if it is not the job's, going by what the records of all `jobs`
        say; `names` are those of the files that it would bring."""
        self.uploader.start(self._patience)
        self._patience(lambda: self.hub.count_past_commits(self.repo_id, kind="model"))
        request = self._latest().request
        if not request.keep_card and (readme := self._patience(self._readme)):
            check_readme(readme, self.repo_id)
            check_card(readme, repo_id=self.repo_id, name=request.name, output=request.output)
        there = [name for name in names if self.file(name)]
        owners = [job for job in jobs if self.name in job.request.repos and was_at_work(job)]
        owner = max(owners, key=lambda job: job.updated, default=None)
        if there and not resumed and (owner is None or owner.request.inputs() != request.inputs()):
            raise UsageError(
                "{repo} already holds {file}, made from something else or with other options: give this run "
                "another {REPO} or {NAME}.",
                repo=self.repo_id,
                file=there[0],
            )

    def file(self, name: str) -> RemoteFile | None:
        """What the repo holds under this name."""
        return self.uploader.file(name)

    def holds(self, artifact: Artifact) -> bool:
        there = self.file(artifact.name)
        return there is not None and there.sha256 in (None, artifact.sha256)

    def last_card(self, ending: Job) -> None:
        """Says how the job ended."""
        self._ending = ending
        self.uploader.last_card()

    def _pages(self, uploaded: Mapping[str, int]) -> dict[str, str]:
        if self._card is None:
            return {}
        job, facts = self._card(self._ending or self._latest(), self, uploaded)
        return pages(job, facts, repo=self.name, readme=None if job.request.keep_card else self._readme())

    def _readme(self) -> str | None:
        """What the repo's README.md says now: somebody may have written into it since the last commit."""
        data = self.hub.read(self.repo_id, CARD, kind="model")
        text = None if data is None else data.decode("utf-8", errors="replace")
        if text and RepoName.of(self.name).host == MODELSCOPE and modelscope_card.is_default(text):
            return None
        return text
