"""The verdict's sentence, and the notes below it: findings in plain words.

Differences are in points, of accuracy in percent; brackets hold their 95 % intervals.
"""

import math
from collections.abc import Sequence

import numpy as np

from embedder_helpers.results.contenders import CONTROL_NAMES, KIND_NAMES
from embedder_helpers.results.findings import HEAD, Findings
from embedder_helpers.results.formats import one_line
from embedder_helpers.results.intervals import Interval
from embedder_helpers.results.paired import MOST_SEEDS, MOST_TIMES_TEXTS

MINUS = "\N{MINUS SIGN}"
MAX_NAME = 80  # letters of the name of a task or an encoder
CONTROLS = {  # as subjects of "gives"
    "random_weights": "a Gemma with random weights",
    "shuffled": "a Gemma that reads other texts",
    "noise": "noise in place of Gemma",
}
assert CONTROLS.keys() == CONTROL_NAMES.keys()


# === The sentence ===


def sentence(findings: Findings) -> str:
    """The verdict in one sentence; what is not known has no clause in it."""
    clauses = [
        _answer(findings),
        _layer(findings),
        _knowledge(findings),
        _cost(findings),
    ]
    text = "; ".join(clause for clause in clauses if clause)
    return f"{text[0].upper()}{text[1:]}."


def _answer(findings: Findings) -> str:
    where = f"on {one_line(findings.task, MAX_NAME)}"
    if findings.texts:
        where += f", with {count(findings.texts, 'training text')}"
    by = "" if findings.score == HEAD else " by MTEB's protocol"
    difference = findings.difference
    if findings.answer == "not settled":
        return f"{where}, {_not_settled(findings)}"
    word = "better" if difference.low > 0 else "worse"
    text = f"{where}, the hybrid is {word} than RoBERTa alone{by} by "
    text += _amount(difference if difference.low > 0 else negative(difference))
    return text if word == "better" else f"{text}: the LLM does not help here"


def _not_settled(findings: Findings) -> str:
    difference, seeds = findings.difference, count(findings.seeds, "seed")
    by = "" if findings.score == HEAD else " by MTEB's protocol"
    text = f"it is not settled by {seeds} whether the hybrid is better than RoBERTa alone{by}: "
    if math.isnan(difference.low):
        text += f"the difference is {points(difference.mean, signed=True)}"
        return f"{text}, and how it varies from seed to seed is not known (run at least 3)"
    if difference.low == difference.high:
        return f"{text}there is no difference in these {findings.scored_texts:,} texts"
    text += f"the difference is {_amount(difference, signed=True)}"
    return f"{text}, {_what_settles(findings)}"


def _what_settles(findings: Findings) -> str:
    """What would settle it, after "the difference is +0.3 points [−1.2, 1.8],"."""
    if findings.needed is None:
        return f"so that it helps by at most {points(findings.difference.high)}"
    seeds, texts = findings.needed.seeds, findings.needed.texts
    ways = [f"about {seeds} seeds"] if seeds else []
    ways += [f"{'' if ways else 'about '}{_rounded(texts):,} test texts"] if texts else []
    if ways:
        return f"and {' or '.join(ways)} would settle one of that size"
    return (
        f"too small for {MOST_SEEDS} seeds or {MOST_TIMES_TEXTS} times the test texts to settle; "
        f"these seeds and texts settle differences from {points(findings.needed.smallest)} on"
    )


def _layer(findings: Findings) -> str | None:
    if findings.cheapest is None:
        return None
    of = f" of {findings.num_layers}" if findings.num_layers else ""
    by = "a linear probe of Gemma" if findings.layers_by == "linear probe" else "validation"
    text = f"the cheapest cutoff that cannot be told from the best by {by} is layer "
    text += f"{findings.cheapest}{of}"
    if findings.cutoffs != [findings.cheapest]:
        text += f" (the hybrid's is {' or '.join(map(str, findings.cutoffs))})"
    return text


def _knowledge(findings: Findings) -> str | None:
    if findings.knowledge is None:
        return None
    gains = {name: control.gain.mean for name, control in findings.controls.items()}
    most = max(gains, key=gains.get)
    of = f"of the {number(findings.difference.mean)}"
    if findings.knowledge == "capacity":
        better = [name for name in gains if findings.controls[name].gain.low > 0]
        name = max(better, key=gains.get)  # another may give more, but not surely
        return f"the gain is mostly capacity: {CONTROLS[name]} gives {number(gains[name])} {of}"
    if findings.knowledge == "knowledge":
        text = f"{CONTROLS['random_weights']} gives {number(gains['random_weights'])}"
        if most != "random_weights":
            text += f", {CONTROLS[most]} {number(gains[most])}"
        return f"the gain is knowledge: {text}"
    if findings.half_controls:
        gain = _amount(findings.controls[most].gain)
        return f"whether the gain is knowledge is not settled: {CONTROLS[most]} gives {gain} {of}"
    behind = min(findings.controls, key=lambda name: findings.controls[name].ahead.low)
    ahead = findings.controls[behind].ahead
    text = f"the hybrid minus {CONTROLS[behind]} is {_amount(ahead, signed=True)}"
    if "random_weights" not in findings.controls:
        text += ", and no Gemma with random weights was run"
    return f"whether the gain is knowledge is not settled: {text}"


def _cost(findings: Findings) -> str | None:
    cost = findings.cost
    if cost is None:
        return None
    times = f"{milliseconds(cost.hybrid)} ms a text beside {milliseconds(cost.roberta)}"
    if findings.answer == "costs more than it gives":
        price = number(findings.points_per_doubling / 100)
        return (
            f"but it costs more than it gives: {times}, which is {cost.times:.1f} times as long, "
            f"for less than {price} points for each doubling"
        )
    text = f"it costs {times}"
    if findings.answer == "better" and not findings.is_worth_for_every_text:
        cascade = findings.cascade  # without which it would cost more than it gives
        text += (
            f", which pays as a cascade: {percent(cascade.share)} of the texts reach Gemma, for "
            f"{_amount(cascade.gain)} and {milliseconds(cascade.milliseconds)} ms"
        )
    return text


# === The notes ===


def notes(findings: Findings) -> list[str]:
    """Sentences of plain text on what the verdict's sentence has no room for."""
    found = [
        _how_scored(findings),
        _unlike(findings),
        _few_texts(findings),
        _gemma(findings),
        _disagreement(findings),
        _cascade(findings),
        _encoder(findings),
        _measured(findings),
    ]
    return [note for note in found if note]


def _how_scored(findings: Findings) -> str:
    if findings.score == HEAD:
        return (
            "Points are percentage points of the accuracy of the head, the classifier that was "
            "trained on the training texts; brackets are 95 % intervals over seeds and over the "
            f"{findings.scored_texts:,} scored texts."
        )
    return (
        "There are no predictions of a trained classifier for both, so the score is the protocol's "
        "accuracy; brackets are 95 % intervals over seeds and runs of the protocol, and leave out "
        "the choice of the test texts."
    )


def _unlike(findings: Findings) -> str | None:
    if not findings.unlike:
        return None
    names = ", ".join(findings.unlike)
    return f"What is compared was not trained alike, which may explain a difference: see {names}."


def _few_texts(findings: Findings) -> str | None:
    """With which numbers of training texts the hybrid is better, and by how much."""
    curve = findings.learning_curve
    hybrids = curve[(curve["kind"] == "hybrid") & curve["difference"].notna()]
    if len(hybrids) < 2:
        return None
    columns = ["texts per label", "difference", "low", "high"]
    settled = hybrids[hybrids["low"] > 0]
    if settled.empty:
        return "With no number of training texts is it settled that the hybrid is better."
    better = [
        f"{size} ({_amount(Interval(*interval))})"
        for size, *interval in settled[columns].itertuples(index=False)
    ]
    others = hybrids.loc[~(hybrids["low"] > 0), "texts per label"].map(str).tolist()
    text = "By training texts per label, it is settled that the hybrid is better with "
    text += _list(better)
    return f"{text}, and not with {_list(others)}." if others else f"{text}."


def _list(parts: Sequence[str]) -> str:
    """`8`, `8 and 32`, `8, 32 and all`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _gemma(findings: Findings) -> str | None:
    """Gemma alone beside RoBERTa alone, on as many training texts as the sentence is of."""
    curve, size = findings.learning_curve, findings.contenders[0].texts_per_label or "all"
    rows = curve[(curve["kind"] == KIND_NAMES["gemma_only"]) & (curve["texts per label"] == size)]
    rows = rows[rows["difference"].notna()]
    if rows.empty:
        return None
    row = rows.iloc[0]
    interval = Interval(row["difference"], row["low"], row["high"])
    return (
        "Gemma alone, frozen and with a linear classifier, minus RoBERTa alone is "
        f"{_amount(interval, signed=True)}."
    )


def _disagreement(findings: Findings) -> str | None:
    found = findings.disagreement
    if found is None:
        return None
    ours, theirs = int(found.only_first.sum()), int(found.only_second.sum())
    p_value = f"p = {found.p_value:.2g}" if found.p_value >= 0.001 else "p < 0.001"
    by = "" if findings.seeds == 1 else " by most seeds"
    return (
        f"Of {len(found.only_first):,} texts, the hybrid alone gets {ours:,} right{by}, and "
        f"RoBERTa alone {theirs:,} (McNemar's exact test: {p_value})."
    )


def _cascade(findings: Findings) -> str | None:
    cascade = findings.cascade
    if cascade is None or not findings.difference.low > 0:  # RoBERTa alone is as good
        return None
    if cascade.share == 1:
        return "A cascade saves nothing here: by validation, all texts should reach Gemma."
    text = (
        f"In a cascade that validation finds as good as the hybrid, {percent(cascade.share)} of "
        f"the texts reach Gemma; on the scored texts its accuracy minus the hybrid's is "
        f"{_amount(cascade.ahead, signed=True)}"
    )
    if cascade.milliseconds:
        text += f", at {milliseconds(cascade.milliseconds)} ms a text"
    return f"{text}. Its threshold is {cascade.threshold:.6g}."


def _encoder(findings: Findings) -> str | None:
    difference = findings.encoder_difference
    if difference is None:
        return None
    name = one_line(findings.encoder, MAX_NAME)
    return (
        f"The hybrid minus the ready encoder ({name}, frozen, with a linear classifier) is "
        f"{_amount(difference, signed=True)}."
    )


def _measured(findings: Findings) -> str | None:
    cost = findings.cost
    if cost is None:
        return None
    device = f" on {one_line(cost.device, MAX_NAME)}" if cost.device else ""
    return (
        f"Times were measured{device}, {count(cost.batch, 'text')} at once. A hybrid costs more "
        f"than it gives if a doubling of the time gives less than "
        f"{number(findings.points_per_doubling / 100)} points, for the hybrid and for the cascade."
    )


# === Numbers ===


def negative(interval: Interval) -> Interval:
    """The interval of the other difference, second minus first."""
    return Interval(-interval.mean, -interval.high, -interval.low)


def number(fraction: float, signed: bool = False, decimals: int = 1) -> str:
    """A fraction as points of percent: `1.3`, `+1.3`, `−0.2`."""
    value = round(100 * fraction, decimals) + 0.0  # no negative zero
    sign = MINUS if value < 0 else "+" if signed and value > 0 else ""
    return f"{sign}{abs(value):.{decimals}f}"


def points(fraction: float, signed: bool = False) -> str:
    """A fraction as points with their unit: `1.3 points`."""
    return f"{number(fraction, signed)} points"


def _amount(interval: Interval, signed: bool = False) -> str:
    """`1.3 points [0.5, 2.1]`, with as many decimals as show on which side of 0 an end is."""
    ends = [value for value in interval if not math.isnan(value) and value]
    decimals = 1
    while decimals < 4 and any(round(100 * end, decimals) == 0 for end in ends[1:]):
        decimals += 1
    mean, low, high = (number(value, False, decimals) for value in np.nan_to_num(interval))
    if signed:
        mean = number(interval.mean, True, decimals)
    return f"{mean} points" + ("" if math.isnan(interval.low) else f" [{low}, {high}]")


def count(amount: int, unit: str) -> str:
    """`1 seed`, `4,018 training texts`."""
    return f"{amount:,} {unit}{'' if amount == 1 else 's'}"


def percent(share: float) -> str:
    """A share in percent: `31 %`."""
    return "less than 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def milliseconds(value: float) -> str:
    """Milliseconds as short as is precise enough: `0.08`, `0.9`, `3.1`, `27`."""
    decimals = 0 if value >= 10 else 1 if value >= 0.1 else 2
    return f"{value:.{decimals}f}"


def _rounded(amount: int) -> int:
    """A number with two digits: 4,000 instead of 4,018."""
    scale = 10 ** max(len(str(amount)) - 2, 0)
    return math.ceil(amount / scale) * scale
