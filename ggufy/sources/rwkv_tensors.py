"""What sources whose tensors become an RWKV's base GGUF have in common: telling what they are, and converting them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ggufy.core.errors import CheckpointError, SourceError
from ggufy.core.outputs import RWKVCPP, names_of_output
from ggufy.core.words import brief
from ggufy.formats.gguf import type_of_most
from ggufy.models import registry
from ggufy.models.architecture import Hyperparameters, Shapes, block_numbers
from ggufy.models.layouts import recognize
from ggufy.models.names.config import check_config, other_architecture
from ggufy.models.origin import Origins, shapes_of
from ggufy.models.vocab import WORLD_FILE, vocab_for
from ggufy.sources.format import ConvertTask, Report, SkeletonTask
from ggufy.system.user_paths import user_file

if TYPE_CHECKING:
    from ggufy.formats.tensor_file import MappedTensors, StreamedTensors

_NO_CONFIG: Mapping[str, Any] = {}


class ListedTensor(Protocol):
    """A tensor as the list of a file describes it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...

    @property
    def elements(self) -> int: ...


def describe_rwkv(
    tensors: Mapping[str, ListedTensor],
    found: dict[str, Any],
    vocab: str | None,
    *,
    config: Mapping[str, Any] = _NO_CONFIG,
    own: bytes = b"",
) -> None:
    """Puts what the tensors of an RWKV say into `found`, the fields of a Report.

    `vocab` is the file that the user gave, `own` the content of the model's own vocabulary file; without both, World's
    has to fit. Raises SourceError for what cannot be converted, with what is known by then in `found`.
    """
    found["dtype"] = type_of_most((tensor.dtype, tensor.elements) for tensor in tensors.values())
    found["parameters"] = sum(tensor.elements for tensor in tensors.values())
    layout = recognize({name: tensor.shape for name, tensor in tensors.items()})
    shapes = shapes_of(layout.origins)
    found |= _sizes(shapes) | {"shapes": shapes, "own_vocab": own, "layout": layout.title}
    if found.get("output") == RWKVCPP:
        found |= _for_rwkvcpp(shapes)  # such files hold no vocabulary
        return
    found |= {"instead": RWKVCPP} if found["version"] in registry.OLDER else {}
    model = model_of(layout.origins, config)
    found |= {"architecture": model.architecture.name, "parameters": model.parameters}
    found |= {"head_size": model.sizes.get("N", 0), "heads": model.sizes["H"] if "N" in model.sizes else 0}
    given = user_file(vocab) if vocab else None
    if vocab and given is None:
        raise SourceError(
            "the vocabulary {path} does not exist: check the path given with {VOCAB}.", path=brief(vocab)
        )
    with vocab_file(given, own) as path:
        vocab_for(model.vocab_size, path)


def _for_rwkvcpp(shapes: Shapes) -> dict[str, Any]:
    """Fields of a Report on a model that becomes files of rwkv.cpp. Raises CheckpointError for one that cannot."""
    from ggufy.rwkvcpp.tensors import measure  # noqa: PLC0415 - only these files need it

    sizes = measure(shapes).sizes
    return {"heads": sizes.get("H", 0), "head_size": sizes.get("N", 0)}


def model_of(origins: Origins, config: Mapping[str, Any]) -> Hyperparameters:
    """What tensors with these origins are. Raises CheckpointError for what cannot be converted, or if the config.json
    beside them says so."""
    try:
        model = registry.detect(shapes_of(origins))
    except CheckpointError as error:
        if other := other_architecture(config):
            raise CheckpointError(
                "this is {name}, not an RWKV: convert it with llama.cpp's convert_hf_to_gguf.py, and give the GGUF.",
                name=other,
            ) from error
        raise
    check_config(config, model)
    return model


@contextlib.contextmanager
def vocab_file(given: Path | None, own: bytes) -> Iterator[Path | None]:
    """The user's vocabulary, or a file with that of the model itself; None: World's."""
    if given is not None or not own:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="ggufy-") as folder:
        path = Path(folder) / WORLD_FILE
        path.write_bytes(own)
        yield path


def convert_rwkv(
    task: ConvertTask,
    target: Path,
    *,
    vocab: Path | None,
    origins: Callable[[Shapes], Origins],
    local: Callable[[], AbstractContextManager[MappedTensors]],
    remote: Callable[[], StreamedTensors],
) -> str:
    """Writes the base GGUF of tensors that are here or, if the task is to be streamed, where they are, with the task's
    adapters merged into them; gives its SHA-256. `origins` tells from the shapes what a tensor is made from."""
    if task.output == RWKVCPP:
        return _convert_to_rwkvcpp(task, target, origins=origins, local=local, remote=remote)
    from ggufy.models.convert import convert_tensors  # noqa: PLC0415 - loads torch, seconds that only a due one pays
    from ggufy.models.convert_streamed import convert_streamed  # noqa: PLC0415
    from ggufy.models.merge import merge_adapters  # noqa: PLC0415

    options: dict[str, Any] = {"outtype": task.outtype, "vocab": vocab, "name": task.name}
    options |= {"chat_format": task.chat_format, "progress": task.progress}
    if task.streamed:
        there, mark = remote(), ",".join(one.key for one in task.adapters)
        return convert_streamed(
            there, merge_adapters(origins(there.shapes), task.adapters), target, mark=mark, **options
        )
    with local() as here:
        return convert_tensors(here, merge_adapters(origins(here.shapes), task.adapters), target, **options)


def _convert_to_rwkvcpp(
    task: ConvertTask,
    target: Path,
    *,
    origins: Callable[[Shapes], Origins],
    local: Callable[[], AbstractContextManager[MappedTensors]],
    remote: Callable[[], StreamedTensors],
) -> str:
    from ggufy.models.merge import merge_adapters  # noqa: PLC0415 - loads torch, as above
    from ggufy.rwkvcpp.convert import convert_streamed, convert_tensors  # noqa: PLC0415

    mark = ",".join(one.key for one in task.adapters)
    options: dict[str, Any] = {"type_name": rwkvcpp_type(task.outtype), "progress": task.progress}
    if task.streamed:
        there = remote()
        return convert_streamed(
            there, merge_adapters(origins(there.shapes), task.adapters), target, mark=mark, **options
        )
    with local() as here:
        merged = merge_adapters(origins(here.shapes), task.adapters)
        return convert_tensors(here, merged, target, key=task.source.key and task.source.key + mark, **options)


def write_rwkv_skeleton(report: Report, target: Path, task: SkeletonTask) -> None:
    """The skeleton of a described RWKV's base: see SourceFormat.write_described."""
    if report.output == RWKVCPP:
        from ggufy.rwkvcpp.convert import write_skeleton as write_rwkvcpp  # noqa: PLC0415 - only these files need it

        write_rwkvcpp(report.shapes, target, type_name=rwkvcpp_type(task.outtype))
        return
    from ggufy.models.convert import write_skeleton  # noqa: PLC0415 - loads torch

    options: dict[str, Any] = {"outtype": task.outtype, "vocab": task.vocab, "chat_format": report.chat_format}
    write_skeleton(report.shapes, target, name=task.name, **options)


def rwkvcpp_type(outtype: str) -> str:
    """What rwkv.cpp calls the type of a base."""
    return names_of_output(RWKVCPP).outtypes.get(outtype, outtype)


def _sizes(shapes: Shapes) -> dict[str, Any]:
    """What can be said of any RWKV, also of one that cannot be converted."""
    embedding = shapes.get("emb.weight", ())
    vocab_size, width = embedding if len(embedding) == 2 else (0, 0)
    layers = max(block_numbers(shapes), default=-1) + 1
    return {"version": registry.version_of(shapes), "layers": layers, "width": width, "vocab_size": vocab_size}
