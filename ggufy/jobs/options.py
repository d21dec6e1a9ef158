"""The options of a job, in one table: `OPTIONS`.

It makes the arguments of `quantize`, the parameters of `start_job`, what the form sends, what visitors of a Space may
choose, and the table in docs/using.md. What any of them got is read in values.py.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from enum import Enum
from typing import Any

from ggufy.core.catalog import OUTTYPES
from ggufy.core.job import COMPENSATED, DEFAULT_CHUNKS, EVALUATION_CHUNKS, MIX_KINDS, PLAIN, RWKV_MIX
from ggufy.core.outputs import GGUF, OUTPUT_NAMES
from ggufy.models.chat_format import AUTO, FORMATS
from ggufy.quantize.search.target import MODES

MTP = ("base", "file", "none")

ROUNDINGS = ("auto", COMPENSATED, PLAIN)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What the user asked for, before anything is looked at."""

    source: str
    quant_types: tuple[str, ...]
    output: str = GGUF  # format of base and quants, one of core/outputs.py
    outtype: str | None = None  # None: the format's own, or what a source that is a base already is
    imatrix: str = "auto"  # auto, none, or a file
    calibration: str = "bundled"
    chunks: int = DEFAULT_CHUNKS
    awq: bool = False  # activation-aware scales where they lower the KL divergence, which is measured then
    evaluate: bool | None = None  # None: the demo, and with AWQ
    evaluation: str = "bundled"
    evaluation_chunks: int = EVALUATION_CHUNKS
    vocab: str | None = None
    name: str | None = None
    chat_format: str = AUTO  # or one of FORMATS; of models other than RWKV none is
    rounding: str = "auto"  # one of ROUNDINGS; which one that is says output_fit.py
    mix: str = RWKV_MIX  # or STOCK_MIX; other models than RWKV-6 and RWKV-7 always get the latter
    targets: tuple[str, ...] = ()  # sizes to order: 1.2GB, 900MiB, 3.275bpw, mem4GB
    mode: str = ""  # fast, standard or thorough; empty: standard if there are targets
    owner: str = ""  # account that the results go to, `ms:name` on ModelScope; empty: a folder here
    copy_owner: str = ""  # account that they go to besides
    repo_id: str | None = None  # None: <owner>/<Model>-GGUF
    private: bool = False
    keep_card: bool = False  # publish the model files only; the repo has a README.md of its own
    mmproj: str = "auto"  # or none
    mtp: str = "base"  # where heads for several tokens at once go, one of MTP
    lora: tuple[str, ...] = ()  # adapters to merge into the model, in this order: FILE[:SCALE]
    lora_alpha: float | None = None  # of those that say neither alpha nor a scale
    lora_init: str | None = None  # the file that the only one, a PiSSA, began with
    lora_as_file: bool = False  # adapters become GGUFs of their own, and are not merged
    by_stranger: bool = False  # made for a Space's visitor, see strangers.py


class Kind(Enum):
    """What an option's value is."""

    TEXT = "text"
    FLAG = "true or false"
    NUMBER = "whole number"
    REAL = "number"
    WORDS = "list"  # or its words in one text, with commas
    PLACES = "list of files"  # or names on a hub


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option."""

    name: str  # of its field in JobOptions, and of the parameter of `start_job`
    flag: str  # on the command line
    help: str
    kind: Kind = Kind.TEXT
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    page: str = ""  # key of what the page calls it; empty: it is not there
    visitors: bool = False  # visitors of a Space may choose it
    repeats: bool = False  # on the command line: given again, it adds to what was given
    bytes: bool = False  # it decides the bytes of base, imatrix or a quant: another value is another file

    @property
    def default(self) -> Any:
        """The field's; empty for one that must be given."""
        found = next(item.default for item in fields(JobOptions) if item.name == self.name)
        return () if found is MISSING else found


OPTIONS = (
    Option(
        name="output",
        flag="--format",
        choices=tuple(OUTPUT_NAMES),
        help="format of the files (%(default)s); rwkv.cpp's are FP32, FP16, Q4_0 and so on",
        page="output",
        visitors=True,
        bytes=True,
    ),
    Option(
        name="quant_types",
        flag="--types",
        kind=Kind.WORDS,
        help="all, recommended, none, or Q4_K_M,Q6_K,… (recommended; with sizes to order: none)",
        page="types",
        visitors=True,
    ),
    Option(
        name="targets",
        flag="--target",
        kind=Kind.WORDS,
        metavar="SIZE",
        help="a size to order: 1.2GB, 900MiB, 3.275bpw or mem4GB; several",
        repeats=True,
        page="targets",
        visitors=True,
    ),
    Option(
        name="mode",
        flag="--mode",
        choices=MODES,
        help="how much is measured for these (standard); without any: which sizes there are",
        page="mode",
        visitors=True,
    ),
    Option(
        name="outtype",
        flag="--outtype",
        choices=OUTTYPES,
        help="type of the base (f16; for rwkv.cpp f32)",
        page="outtype",
        visitors=True,
        bytes=True,
    ),
    Option(
        name="vocab",
        flag="--vocab",
        metavar="FILE",
        help="vocabulary of a checkpoint that is not a World model",
        page="vocab",
        bytes=True,
    ),
    Option(
        name="name",
        flag="--name",
        help="name of the model in file names and metadata (the source's file name)",
        page="name",
        bytes=True,
    ),
    Option(
        name="chat_format",
        flag="--chat-format",
        choices=(AUTO, *FORMATS),
        help="how an RWKV is talked to, of its generation (%(default)s: by its name)",
        page="chat_format",
        visitors=True,
        bytes=True,
    ),
    Option(
        name="lora",
        flag="--lora",
        kind=Kind.PLACES,
        metavar="FILE[:SCALE]",
        help="an adapter to merge: a .pth, a PEFT folder or owner/repo[:file]; SCALE is alpha / r; several, in order",
        repeats=True,
        page="lora",
        visitors=True,
        bytes=True,
    ),
    Option(
        name="lora_alpha",
        flag="--lora-alpha",
        kind=Kind.REAL,
        metavar="ALPHA",
        help="alpha of adapters that do not say it",
        page="lora_alpha",
        visitors=True,
        bytes=True,
    ),
    Option(
        name="lora_init",
        flag="--lora-init",
        metavar="FILE",
        help="what a PiSSA began with (init_pissa.pth beside it)",
        page="lora_init",
        bytes=True,
    ),
    Option(
        name="lora_as_file",
        flag="--lora-as-file",
        kind=Kind.FLAG,
        help="make LoRAs of PEFT GGUFs of their own, which llama.cpp takes with --lora, instead of merging them",
        page="lora_as_file",
        visitors=True,
        bytes=True,
    ),
    Option(
        name="mmproj",
        flag="--mmproj",
        choices=("auto", "none"),
        help="files of what sees or hears, F16 and Q8_0 (%(default)s: if there is such a part)",
        page="mmproj",
        visitors=True,
    ),
    Option(
        name="mtp",
        flag="--mtp",
        choices=MTP,
        help="heads for several tokens: in the base, in files of their own (F16, Q8_0), or left out (%(default)s)",
        page="mtp",
        visitors=True,
        bytes=True,
    ),
    Option(
        name="mix",
        flag="--mix",
        choices=MIX_KINDS,
        help="recipes: made for RWKV, or stock as of llama-quantize (%(default)s)",
        page="mix",
        visitors=True,
        bytes=True,
    ),
    Option(
        name="rounding",
        flag="--round",
        choices=ROUNDINGS,
        help="codes: compensated for each other's errors, or plain as ggml's (%(default)s: compensated if it can be)",
        page="rounding",
        visitors=True,
        bytes=True,
    ),
    Option(
        name="imatrix",
        flag="--imatrix",
        metavar="auto|none|FILE",
        help="importance matrix (%(default)s)",
        page="imatrix",
        visitors=True,
        bytes=True,
    ),
    Option(
        name="calibration",
        flag="--calibration",
        metavar="TEXT",
        help="text for the imatrix: a file, URL, Hub dataset, wikitext, calibration_datav3 or bundled (%(default)s)",
        page="imatrix_path",
        visitors=True,
        bytes=True,
    ),
    Option(
        name="chunks",
        flag="--chunks",
        kind=Kind.NUMBER,
        help="chunks of 512 tokens to read of it, 0 = all (%(default)s)",
        page="chunks",
        bytes=True,
    ),
    Option(
        name="awq",
        flag="--awq",
        kind=Kind.FLAG,
        help="activation-aware scales, kept for a quant if they lower its KL divergence",
        page="awq",
        visitors=True,
        bytes=True,
    ),
    Option(
        name="evaluate",
        flag="--evaluate",
        kind=Kind.FLAG,
        help="measure every quant against the base (the demo: yes, others: no)",
        page="evaluate",
        visitors=True,
    ),
    Option(
        name="evaluation",
        flag="--evaluation",
        metavar="TEXT",
        help="text for that, or several (wikitext,zh.txt), named as the one for the imatrix (%(default)s)",
        page="evaluation",
        visitors=True,
    ),
    Option(
        name="evaluation_chunks",
        flag="--evaluation-chunks",
        kind=Kind.NUMBER,
        help="chunks of 512 tokens of it (%(default)s)",
        page="evaluation_chunks",
    ),
    Option(
        name="repo_id",
        flag="--repo",
        metavar="OWNER/NAME",
        help="output repo on the Hub (your account, <Model>-GGUF)",
        page="repo",
    ),
    Option(
        name="private",
        flag="--private",
        kind=Kind.FLAG,
        help="make that repo private, if it has to be made",
        page="private",
    ),
    Option(
        name="keep_card",
        flag="--keep-card",
        kind=Kind.FLAG,
        help="publish the model files only, beside a README.md of the repo's own",
        page="keep_card",
    ),
)
#: What `convert` has of them.
CONVERTING = ("output", "outtype", "vocab", "name", "chat_format", "lora", "lora_alpha", "lora_init")
BY_NAME = {option.name: option for option in OPTIONS}
