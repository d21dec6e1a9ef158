"""The models that tools/train_demo.py trains: RWKV-7 (x070) and RWKV-6 (x060), by BlinkDL's equations, with his names.

Their recurrences are computed CHUNK tokens at a time in closed form, which is what makes two CPU cores enough.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, HEAD_SIZE, FFN, VOCAB = 256, 64, 1024, 4096
LAYERS = 6
RANK_W, RANK_A, RANK_V, RANK_G = 32, 32, 16, 64
RANK_MIX, RANK_DECAY = 32, 64  # RWKV-6
CHUNK = 16
_MOST_DECAY = 5.0  # RWKV-6: a weight of e^-5 a token; over a chunk its inverse still fits F32


def model_of(version: int) -> torch.nn.Module:
    """[batch, time] token ids -> [batch, time, VOCAB] logits, untrained."""
    return Rwkv7() if version == 7 else Rwkv6()


def vector(values: Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(values.reshape(1, 1, WIDTH).clone())


def shifted(x: Tensor) -> Tensor:
    """x one token later, zeros first: what token shift mixes with."""
    return F.pad(x, (0, 0, 1, -1))


def heads_of(x: Tensor) -> Tensor:
    """[batch, time, WIDTH] -> [batch, head, time, HEAD_SIZE]."""
    return x.view(*x.shape[:2], -1, HEAD_SIZE).transpose(1, 2)


def linear_of(gain: float, width: int = WIDTH, out: int = WIDTH) -> torch.nn.Linear:
    linear = torch.nn.Linear(width, out, bias=False)
    torch.nn.init.uniform_(linear.weight, -gain / WIDTH**0.5, gain / WIDTH**0.5)
    return linear


class Block(torch.nn.Module):
    """Time mixing (`att`), then channel mixing (`ffn`), which its heirs bring."""

    def __init__(self, layer: int):
        super().__init__()
        self.layer = layer
        if layer == 0:
            self.ln0 = torch.nn.LayerNorm(WIDTH)
        self.ln1, self.ln2 = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)


class Model(torch.nn.Module):
    """Embedding, blocks and head; how a token goes through the blocks is its heirs'."""

    def __init__(self, block: type[Block]):
        super().__init__()
        self.emb = torch.nn.Embedding(VOCAB, WIDTH)
        self.blocks = torch.nn.ModuleList(block(i) for i in range(LAYERS))
        self.ln_out = torch.nn.LayerNorm(WIDTH)
        self.head = torch.nn.Linear(WIDTH, VOCAB, bias=False)
        torch.nn.init.uniform_(self.emb.weight, -1e-4, 1e-4)
        torch.nn.init.orthogonal_(self.head.weight, 0.5 * math.sqrt(VOCAB / WIDTH))


# ---- RWKV-7


def wkv7(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """RWKV-7's state recurrence, CHUNK tokens at a time; every argument and the result are [batch, head, time, N].

    Token by token it is  S = S·diag(w) + (S·a)·bᵀ + v·kᵀ,  y = S·r  with S [N value, N key], S = 0 at first.
    Inside a chunk, with P_i = w_1…w_i, the rows u_i = S_{i-1}·a_i solve a unit lower triangular system.
    """
    with torch.autocast("cpu", enabled=False):
        return _wkv7(*(x.float() for x in (r, log_w, k, v, a, b)))


def _wkv7(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    batch, heads, time_steps, n = r.shape
    shape = (batch, heads, time_steps // CHUNK, CHUNK, n)
    r, log_w, k, v, a, b = (x.reshape(shape) for x in (r, log_w, k, v, a, b))
    log_p = log_w.cumsum(dim=3)
    p, p_before, p_inv = log_p.exp(), (log_p - log_w).exp(), (-log_p).exp()
    r_, a_, k_, b_ = r * p, a * p_before, k * p_inv, b * p_inv
    strict = torch.tril(torch.ones(CHUNK, CHUNK), -1)
    full = torch.tril(torch.ones(CHUNK, CHUNK))
    ab = (a_ @ b_.mT) * strict
    ak = (a_ @ k_.mT) * strict
    eye = torch.eye(CHUNK)
    inverse = eye + ab  # (I - ab)^-1 = (I + ab)(I + ab²)(I + ab⁴)(I + ab⁸), as ab¹⁶ = 0
    power = ab
    for _ in range(3):
        power = power @ power
        inverse = inverse @ (eye + power)
    u_state, u_value = inverse @ a_, inverse @ (ak @ v)
    rb, rk = (r_ @ b_.mT) * full, (r_ @ k_.mT) * full
    y_state, y_value = r_ + rb @ u_state, rb @ u_value + rk @ v
    last = p[:, :, :, -1:, :]
    kv = (v.mT @ k_ + u_value.mT @ b_) * last
    keep = (torch.eye(n) + u_state.mT @ b_) * last
    state = torch.zeros(batch, heads, n, n)
    states = []
    for c in range(shape[2]):
        states.append(state)
        state = state @ keep[:, :, c] + kv[:, :, c]
    y = y_value + y_state @ torch.stack(states, dim=2).mT
    return y.reshape(batch, heads, time_steps, n)


class Block7(Block):
    """RWKV-7's."""

    def __init__(self, layer: int):
        super().__init__(layer)
        self.att, self.ffn = TimeMix(layer), ChannelMix(layer)

    def forward(self, x: Tensor, v_first: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.layer == 0:
            x = self.ln0(x)
        mixed, v_first = self.att(self.ln1(x), v_first)
        x = x + mixed
        return x + self.ffn(self.ln2(x)), v_first


class TimeMix(torch.nn.Module):
    def __init__(self, layer: int):
        super().__init__()
        self.layer = layer
        depth = layer / max(1, LAYERS - 1)
        rest = 1 - layer / LAYERS
        position = torch.arange(WIDTH) / WIDTH

        for name, power in {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}.items():
            setattr(self, f"x_{name}", vector(1 - position ** (power * rest)))

        def low_rank(name: str, rank: int) -> None:
            setattr(self, name + "1", torch.nn.Parameter(torch.zeros(WIDTH, rank)))
            down = torch.empty(rank, WIDTH)
            torch.nn.init.orthogonal_(down, 0.1)
            setattr(self, name + "2", torch.nn.Parameter(down))

        ramp = torch.arange(WIDTH) / (WIDTH - 1)
        self.w0 = vector(-6.5 + 5 * ramp ** (0.85 + depth**0.5))
        self.a0 = vector(torch.zeros(WIDTH))
        low_rank("w", RANK_W)
        low_rank("a", RANK_A)
        low_rank("g", RANK_G)
        if layer > 0:
            self.v0 = vector(torch.ones(WIDTH))
            low_rank("v", RANK_V)
        self.k_k, self.k_a = vector(torch.full((WIDTH,), 0.85)), vector(torch.ones(WIDTH))
        self.r_k = torch.nn.Parameter(torch.zeros(WIDTH // HEAD_SIZE, HEAD_SIZE))
        for name, gain in {"receptance": 0.5, "key": 0.05, "value": 0.5, "output": 0.0}.items():
            setattr(self, name, linear_of(gain))
        self.ln_x = torch.nn.GroupNorm(WIDTH // HEAD_SIZE, WIDTH, eps=64e-5)
        torch.nn.init.constant_(self.ln_x.weight, ((1 + layer) / LAYERS) ** 0.7)

    def forward(self, x: Tensor, v_first: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, steps, _ = x.shape
        delta = shifted(x) - x
        xr, xw, xk, xv, xa, xg = (x + delta * getattr(self, f"x_{name}") for name in "rwkvag")
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        log_w = -torch.exp(-F.softplus(-(self.w0 + torch.tanh(xw @ self.w1) @ self.w2)) - 0.5)
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(self.v0 + (xv @ self.v1) @ self.v2)
        a = torch.sigmoid(self.a0 + (xa @ self.a1) @ self.a2)
        g = torch.sigmoid(xg @ self.g1) @ self.g2

        kk = F.normalize(heads_of(k * self.k_k), dim=-1)
        k = k * (1 + (a - 1) * self.k_a)
        y = wkv7(heads_of(r), heads_of(log_w), heads_of(k), heads_of(v), -kk, kk * heads_of(a))
        y = y.transpose(1, 2).reshape(batch * steps, WIDTH)
        y = self.ln_x(y).view(batch, steps, WIDTH)
        bonus = (heads_of(r) * heads_of(k) * self.r_k[None, :, None, :]).sum(-1, keepdim=True) * heads_of(v)
        y = y + bonus.transpose(1, 2).reshape(batch, steps, WIDTH)
        return self.output(y * g), v_first


class ChannelMix(torch.nn.Module):
    def __init__(self, layer: int):
        super().__init__()
        position = torch.arange(WIDTH) / WIDTH
        self.x_k = torch.nn.Parameter((1 - position ** ((1 - layer / LAYERS) ** 4)).reshape(1, 1, WIDTH))
        self.key, self.value = linear_of(0.5, out=FFN), linear_of(0.0, width=FFN)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(torch.relu(self.key(x + (shifted(x) - x) * self.x_k)) ** 2)


class Rwkv7(Model):
    def __init__(self) -> None:
        super().__init__(Block7)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, time] token ids -> [batch, time, VOCAB] logits."""
        x, v_first = self.emb(tokens), None
        for block in self.blocks:
            x, v_first = block(x, v_first)
        return self.head(self.ln_out(x))


# ---- RWKV-6


def wkv6(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, bonus: Tensor) -> Tensor:
    """RWKV-6's state recurrence, CHUNK tokens at a time; [batch, head, time, N] each, `bonus` (u) [head, N].

    Token by token it is  y = r·(S + diag(u)·kᵀ·v),  S = diag(w)·S + kᵀ·v  with S [N key, N value], S = 0 at first.
    """
    with torch.autocast("cpu", enabled=False):
        return _wkv6(r.float(), log_w.float().clamp(min=-_MOST_DECAY), k.float(), v.float(), bonus.float())


def _wkv6(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, bonus: Tensor) -> Tensor:
    batch, heads, time_steps, n = r.shape
    shape = (batch, heads, time_steps // CHUNK, CHUNK, n)
    r, log_w, k, v = (x.reshape(shape) for x in (r, log_w, k, v))
    log_p = log_w.cumsum(dim=3)
    r_, k_ = r * (log_p - log_w).exp(), k * (-log_p).exp()
    before = (r_ @ k_.mT) * torch.tril(torch.ones(CHUNK, CHUNK), -1)
    now = (r * bonus[:, None, None] * k).sum(-1, keepdim=True)
    last = log_p[:, :, :, -1:, :].exp()
    added = (k_ * last).mT @ v
    state = torch.zeros(batch, heads, n, n)
    states = []
    for c in range(shape[2]):
        states.append(state)
        state = last[:, :, c].mT * state + added[:, :, c]
    y = before @ v + now * v + r_ @ torch.stack(states, dim=2)
    return y.reshape(batch, heads, time_steps, n)


class Block6(Block):
    """RWKV-6's."""

    def __init__(self, layer: int):
        super().__init__(layer)
        self.att, self.ffn = TimeMix6(layer), ChannelMix6(layer)

    def forward(self, x: Tensor) -> Tensor:
        if self.layer == 0:
            x = self.ln0(x)
        x = x + self.att(self.ln1(x))
        return x + self.ffn(self.ln2(x))


class TimeMix6(torch.nn.Module):
    def __init__(self, layer: int):
        super().__init__()
        depth = layer / max(1, LAYERS - 1)
        rest = 1 - layer / LAYERS
        position = torch.arange(WIDTH) / WIDTH
        ramp = torch.arange(WIDTH) / (WIDTH - 1)
        for name, power in {"x": 1.0, "w": 1.0, "k": 1.0, "v": 1.0, "r": 0.5, "g": 0.5}.items():
            later = 0.3 * depth if name == "v" else 0.0
            setattr(self, f"time_maa_{name}", vector(1 - position ** (power * rest) - later))
        self.time_maa_w1 = torch.nn.Parameter(torch.zeros(WIDTH, 5 * RANK_MIX))
        self.time_maa_w2 = torch.nn.Parameter(torch.empty(5, RANK_MIX, WIDTH).uniform_(-0.01, 0.01))
        self.time_decay = vector(-6 + 5 * ramp ** (0.7 + 1.3 * depth))
        self.time_decay_w1 = torch.nn.Parameter(torch.zeros(WIDTH, RANK_DECAY))
        self.time_decay_w2 = torch.nn.Parameter(torch.empty(RANK_DECAY, WIDTH).uniform_(-0.01, 0.01))
        zigzag = ((torch.arange(WIDTH) + 1) % 3 - 1) * 0.1
        self.time_faaaa = torch.nn.Parameter((depth * (1 - ramp) + zigzag).reshape(-1, HEAD_SIZE))
        for name, gain in {"receptance": 0.5, "key": 0.05, "value": 0.5, "gate": 0.5, "output": 0.0}.items():
            setattr(self, name, linear_of(gain))
        self.ln_x = torch.nn.GroupNorm(WIDTH // HEAD_SIZE, WIDTH, eps=64e-5)
        torch.nn.init.constant_(self.ln_x.weight, ((1 + layer) / LAYERS) ** 0.7)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _ = x.shape
        delta = shifted(x) - x
        low = torch.tanh((x + delta * self.time_maa_x) @ self.time_maa_w1).view(batch, steps, 5, RANK_MIX)
        shares = torch.einsum("btfr,frc->fbtc", low, self.time_maa_w2)
        xw, xk, xv, xr, xg = (
            x + delta * (getattr(self, f"time_maa_{name}") + share)
            for name, share in zip("wkvrg", shares, strict=True)
        )
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        log_w = -torch.exp((self.time_decay + torch.tanh(xw @ self.time_decay_w1) @ self.time_decay_w2).float())
        y = wkv6(heads_of(r), heads_of(log_w), heads_of(k), heads_of(v), self.time_faaaa)
        y = self.ln_x(y.transpose(1, 2).reshape(batch * steps, WIDTH)).view(batch, steps, WIDTH)
        return self.output(y * F.silu(self.gate(xg)))


class ChannelMix6(torch.nn.Module):
    def __init__(self, layer: int):
        super().__init__()
        position = (torch.arange(WIDTH) / WIDTH) ** (1 - layer / LAYERS)
        self.time_maa_k, self.time_maa_r = vector(1 - position), vector(1 - position)
        self.key, self.value = linear_of(0.5, out=FFN), linear_of(0.0, width=FFN)
        self.receptance = linear_of(0.0)

    def forward(self, x: Tensor) -> Tensor:
        delta = shifted(x) - x
        k = torch.relu(self.key(x + delta * self.time_maa_k)) ** 2
        return torch.sigmoid(self.receptance(x + delta * self.time_maa_r)) * self.value(k)


class Rwkv6(Model):
    def __init__(self) -> None:
        super().__init__(Block6)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.emb(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_out(x))
