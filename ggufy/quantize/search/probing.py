"""Sensitivities from measurements: which recipes to measure, and what follows from their KL divergences.

The KL divergence of a recipe from the base is taken to be the sum over groups of tensors (`roles.groups`) of

    c_g × x_g,   x_g = sum over the group's tensors of weights × error (`Analysis.noise`)

A probe is one recipe, the anchor, with one group a rung lower; c_g is the difference of the two KL divergences over
that of x_g. The two are measured over the same tokens, so the difference is known far better than either. The law is
good near the anchor only: isolated losses add up to more than they do together, and large ones saturate. So `refit`
moves the sensitivities, as little as possible, until they agree with what was measured near the target.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ggufy.quantize.recipe import Recipe
from ggufy.quantize.search.analysis import LOW_RANK_PROBE, Analysis

ANCHOR, LOWER = ("Q4_K", "Q5_0"), ("Q3_K", "Q4_0")  # of rows that are a multiple of 256, and of others
_LEAST = 1e-3  # of the median; what noise has made smaller, or negative, is taken to be that
_TRUST = 0.7  # how far, in the logarithm, a sensitivity is thought to be off; a measured KL divergence is off by:
_PRECISION = 0.03
_STEPS = 25

Groups = Mapping[str, Sequence[str]]  # group -> tensors


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A recipe and its mean KL divergence from the base, in nats."""

    recipe: Recipe
    kld: float


def anchor(analysis: Analysis) -> tuple[dict[str, str], dict[str, str]]:
    """(the recipe around which is probed, whatever the target: so one analysis serves every size; every tensor's
    lower rung in it). Anchors nearer to small targets (IQ3_S and IQ2_S) led to no better files."""
    recipe, lower = {}, {}
    for name, losses in analysis.losses.items():
        source = analysis.head.tensors[name].type
        if name in analysis.probes:
            recipe[name], lower[name] = ("F16" if "F16" in losses else source), LOW_RANK_PROBE
        elif len(losses) < 2:
            recipe[name] = lower[name] = next(iter(losses))
        else:
            recipe[name] = _nearest(losses, ANCHOR)
            lower[name] = _nearest(losses, LOWER)
    return recipe, lower


def _nearest(losses: Mapping[str, float], wanted: Sequence[str]) -> str:
    for kind in wanted:
        if math.isfinite(losses.get(kind, math.inf)):
            return kind
    finite = [kind for kind, loss in losses.items() if math.isfinite(loss) and loss > 0]
    return max(finite, key=lambda kind: losses[kind]) if finite else next(iter(losses))


def probe(recipe: Recipe, lower: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """The anchor with one group a rung lower."""
    return {**recipe, **{name: lower[name] for name in names}}


def sensitivities(
    analysis: Analysis, groups: Groups, at: Measured, probes: Mapping[str, Measured], prior: Mapping[str, float]
) -> dict[str, float]:
    """c of every group, in nats; `probes` by group. A group without a probe gets its prior, on the others' scale."""
    found = {}
    for group, probed in probes.items():
        noise = analysis.noise(probed.recipe, groups[group]) - analysis.noise(at.recipe, groups[group])
        if noise > 0:
            found[group] = (probed.kld - at.kld) / noise
    positive = [value for value in found.values() if value > 0]
    if not positive:
        return group_priors(analysis, groups, prior)
    floor = float(np.median(positive)) * _LEAST
    found = {group: max(value, floor) for group, value in found.items()}
    priors = group_priors(analysis, groups, prior)
    scale = math.exp(float(np.mean([math.log(value / priors[group]) for group, value in found.items()])))
    return {group: found.get(group, priors[group] * scale) for group in groups}


def group_priors(analysis: Analysis, groups: Groups, prior: Mapping[str, float]) -> dict[str, float]:
    """The mean of the tensors' priors, each counted by its number of weights."""
    weights = analysis.weights
    return {
        group: math.fsum(prior[name] * weights[name] for name in names) / sum(weights[name] for name in names)
        for group, names in groups.items()
    }


def by_tensor(groups: Groups, values: Mapping[str, float]) -> dict[str, float]:
    """Every tensor's sensitivity: its group's."""
    return {name: values[group] for group, names in groups.items() for name in names}


def predicted(analysis: Analysis, groups: Groups, values: Mapping[str, float], recipe: Recipe) -> float:
    """The KL divergence that the sensitivities expect of a recipe, in nats."""
    return math.fsum(values[group] * analysis.noise(recipe, names) for group, names in groups.items())


def refit(
    analysis: Analysis, groups: Groups, values: Mapping[str, float], measured: Sequence[Measured]
) -> dict[str, float]:
    """The sensitivities nearest to `values` that explain what was measured, both weighed by how far they may be off.

    Least squares over the logarithms, by Gauss-Newton steps: (ln c - ln c0) / 0.7 for each group, and
    ln(predicted / measured) / 0.03 for each recipe.
    """
    names = list(groups)
    noise = np.array([[analysis.noise(one.recipe, groups[group]) for group in names] for one in measured])
    klds = np.array([max(one.kld, 1e-9) for one in measured])
    start = np.log([values[group] for group in names])
    theta = start.copy()
    for _ in range(_STEPS):
        parts = noise * np.exp(theta)
        total = np.maximum(parts.sum(axis=1), 1e-30)
        jacobian = np.vstack([np.eye(len(names)) / _TRUST, parts / total[:, None] / _PRECISION])
        residual = np.concatenate([(theta - start) / _TRUST, np.log(total / klds) / _PRECISION])
        step = np.linalg.lstsq(jacobian, residual, rcond=None)[0]
        theta = theta - np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-6:
            break
    return dict(zip(names, np.exp(theta).tolist(), strict=True))
