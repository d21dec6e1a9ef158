"""How much the output of a model suffers from quantizing each role, where nothing was measured of that very model.

A sensitivity c weighs a tensor's relative quantization error: the KL divergence that quantizing adds is taken to be
the sum over all tensors of c × number of weights × relative error (see `loss.py`). Only ratios matter to the solver.
A key is a role, or `role@depth` (see `roles.py`); values are 1e-9 nats.

`rwkv6` was measured on a trained RWKV-6 of 8.8M weights (8 blocks, 2k tokens): an all-Q4_K file, 26 probes that each
put one group one rung lower (to Q3_K), c = change of the mean KLD / sum of weights × change of error. Of last blocks
only the range 1 to 16 is known; 4 is its middle on a logarithmic scale.

`rwkv7` is derived from published figures of RWKV-7 1.5B and 2.9B (github.com/RafaelUI/rwkv-quant, KLD per megabyte by
role; geometric mean of both models). Their first block carries 1.6 and 14 times the KLD of another one: 5 times, as in
the table of RWKV-6. On the embedding the sources differ: 0.76 times `time_mix_output` as published, 16 times in
RWKV-6; the geometric mean is taken. The head was published at 8 bits only; its ratio to the embedding is RWKV-6's.

`transformer` follows what the mixes of llama.cpp protect, and was not measured here.

`REFERENCE` has the number of weights of a tensor of each role where c was measured. What a unit of relative error in a
whole tensor costs (c × its number of weights) is taken to be the same in models of other sizes: an embedding with more
rows, or a matrix of a wider model, adds no more noise to a token than a small one does. So c falls as tensors grow.
`transformer` has none: its c are for a weight, whatever the size.

A script that measures these figures again may write the table anew: nothing else is in this file.
"""

from __future__ import annotations

PRIORS: dict[str, dict[str, float]] = {
    "rwkv6": {
        "embedding": 779.0,
        "head": 309.0,
        "time_mix_value@first": 412.0,
        "time_mix_value": 157.0,
        "time_mix_value@last": 4.0,
        "time_mix_output@first": 273.0,
        "time_mix_output": 49.0,
        "time_mix_output@last": 4.0,
        "time_mix_gate@first": 226.0,
        "time_mix_gate": 37.0,
        "time_mix_gate@last": 4.0,
        "time_mix_receptance@first": 144.0,
        "time_mix_receptance": 27.0,
        "time_mix_receptance@last": 4.0,
        "time_mix_key@first": 121.0,
        "time_mix_key": 18.0,
        "time_mix_key@last": 4.0,
        "channel_mix_key@first": 46.0,
        "channel_mix_key": 11.0,
        "channel_mix_key@last": 4.0,
        "channel_mix_value@first": 25.0,
        "channel_mix_value": 5.0,
        "channel_mix_value@last": 4.0,
        "channel_mix_receptance": 0.9,
    },
    "rwkv7": {
        "embedding": 390.0,
        "head": 155.0,
        "time_mix_value@first": 365.0,
        "time_mix_value": 73.0,
        "time_mix_output@first": 560.0,
        "time_mix_output": 112.0,
        "time_mix_receptance@first": 235.0,
        "time_mix_receptance": 47.0,
        "time_mix_key@first": 220.0,
        "time_mix_key": 44.0,
        "channel_mix_key@first": 125.0,
        "channel_mix_key": 25.0,
        "channel_mix_value@first": 120.0,
        "channel_mix_value": 24.0,
    },
    "transformer": {
        "embedding": 20.0,
        "tied_embedding": 60.0,
        "head": 60.0,
        "attn_v": 40.0,
        "attn_qkv": 30.0,
        "attn_output": 30.0,
        "attn_k": 20.0,
        "attn_q": 15.0,
        "ffn_down": 40.0,
        "ffn_up": 20.0,
        "ffn_gate": 15.0,
    },
}

_SQUARE_6, _WIDE_6 = 256 * 256, 256 * 896
_SQUARE_7, _WIDE_7 = 2290 * 2290, 2290 * 9160  # between 1.5B and 2.9B

REFERENCE: dict[str, dict[str, int]] = {
    "rwkv6": {
        "embedding": 2048 * 256,
        "head": 2048 * 256,
        "time_mix_value": _SQUARE_6,
        "time_mix_output": _SQUARE_6,
        "time_mix_gate": _SQUARE_6,
        "time_mix_receptance": _SQUARE_6,
        "time_mix_key": _SQUARE_6,
        "channel_mix_key": _WIDE_6,
        "channel_mix_value": _WIDE_6,
        "channel_mix_receptance": _SQUARE_6,
    },
    "rwkv7": {
        "embedding": 65536 * 2290,
        "head": 65536 * 2290,
        "time_mix_value": _SQUARE_7,
        "time_mix_output": _SQUARE_7,
        "time_mix_receptance": _SQUARE_7,
        "time_mix_key": _SQUARE_7,
        "channel_mix_key": _WIDE_7,
        "channel_mix_value": _WIDE_7,
    },
    "transformer": {},
}
