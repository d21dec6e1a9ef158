"""Prints the fingerprint of a tokenizer.json's pre-tokenizer: a script that hf_config.py runs.

A library that is compiled reads a stranger's file here, so it runs within limits (see system/isolated.py). A
fingerprint is the SHA-256 of the tokens of one text, as get_vocab_base_pre of llama.cpp's converter computes it.
"""

from __future__ import annotations

import hashlib
import json
import sys

CHECKED = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ "
    "🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ "
    "------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you "
    "sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)


if __name__ == "__main__":
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_file(sys.argv[1]).encode(CHECKED).ids
    print(json.dumps(hashlib.sha256(str(tokens).encode()).hexdigest()))  # noqa: T201
