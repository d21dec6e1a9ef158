"""Prints the fingerprint of a pre-tokenizer: `python hf_fingerprint.py tokenizer.json`.

A program of its own, since a library that is compiled reads a stranger's file here: what that takes in time and memory
is bounded by who runs it. A fingerprint is the SHA-256 of the tokens of one text, as get_vocab_base_pre of llama.cpp's
converter computes it.
"""

from __future__ import annotations

import hashlib
import resource
import signal
import sys

CHECKED = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ "
    "🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ "
    "------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you "
    "sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)
MOST_SECONDS = 20  # until the kernel ends it
MOST_MEMORY = 4 << 30  # bytes of address space; a vocabulary of 262 thousand tokens takes some 0.5 GB


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    signal.alarm(MOST_SECONDS)
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_file(sys.argv[1]).encode(CHECKED).ids
    sys.stdout.write(hashlib.sha256(str(tokens).encode()).hexdigest())
