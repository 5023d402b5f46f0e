"""Mean ranks: which recipe of a search over settings is best on several tasks.

A recipe is a kind of embedder with its settings, whatever the task and the seed. On each task, the
recipes of a kind are ranked by accuracy on the validation split; the ranks are averaged, because
accuracies of different tasks cannot be compared with one another (Demšar 2006, Statistical
comparisons of classifiers over multiple data sets, JMLR 7, sections 3.1.1 and 3.2.2).
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from embedder_helpers.results.data_sets import data_key, data_labels, short_fingerprint
from embedder_helpers.results.formats import escape_markdown, to_markdown
from embedder_helpers.results.intervals import LEVEL
from embedder_helpers.results.naming import (
    KIND_NAMES,
    MODEL_NAMES,
    differing_settings,
    is_validation_score,
    relevant_settings,
)
from embedder_helpers.results.result import Result

MIN_RECIPES = 3  # of a kind, on MIN_TASKS tasks; otherwise there is nothing to rank
MIN_TASKS = 2
DECIMALS = 9  # of an accuracy; differences beyond them are rounding errors
MAX_NOTE = 1000  # letters

Recipe = dict[str, Any]  # settings by name


class Ranking(NamedTuple):
    """The recipes of a kind.

    Attributes:
        kind: name of the kind.
        base: the recipe that is most like the others, as far as they differ from it.
        scores: accuracies (recipes, tasks), means over seeds; NaN for a missing task. Names of
            recipes say what differs from the base.
    """

    kind: str
    base: Recipe
    scores: pd.DataFrame

    @property
    def complete(self) -> pd.DataFrame:
        """The scores of the recipes that lack no task, which alone are ranked."""
        return self.scores.dropna()

    def table(self) -> pd.DataFrame:
        """A row per recipe, the lowest mean rank first, those without a rank last."""
        columns = {
            "mean rank": self.complete.rank(ascending=False).mean(axis=1),  # ties share a rank
            "mean score": self.complete.mean(axis=1),
            "tasks": self.scores.count(axis=1),
        }
        table = pd.DataFrame(columns, index=self.scores.index)
        table = table.join(self.scores.add_suffix(" accuracy"))
        order = ["mean rank", "tasks", "mean score"]
        return table.sort_values(order, ascending=[True, False, False])

    def describe(self) -> str:
        """The settings that names leave out, and how sure the choice of the first recipe is."""
        facts = []
        if self.base:
            settings = ", ".join(f"{name} {value}" for name, value in self.base.items())
            facts.append(f"unless its name says otherwise, a recipe has {settings}")
        recipes, tasks = self.complete.shape
        if recipes >= MIN_RECIPES and tasks >= MIN_TASKS:
            ranks = self.table()["mean rank"]
            distance = critical_difference(recipes, tasks)
            closer = (ranks - ranks.min() < distance).sum() - 1
            facts.append(
                f"by {tasks} tasks the critical difference of {recipes} recipes is {distance:.1f}: "
                f"{closer} of the other {recipes - 1} are closer to the first"
            )
        return f"{self.kind}: {'; '.join(facts)}." if facts else ""


def critical_difference(num_recipes: int, num_tasks: int) -> float:
    """The difference between two mean ranks from which it is significant, by the Nemenyi test.

    Demšar 2006, section 3.2.2; it takes account of all pairs that could be compared.
    """
    quantile = stats.studentized_range.ppf(LEVEL, num_recipes, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(num_recipes * (num_recipes + 1) / (6 * num_tasks)))


def rankings(results: Sequence[Result]) -> list[Ranking]:
    """The recipes of each kind; none if the results are not those of a search over settings.

    A search has validation scores only, of one protocol for each task, and at least three recipes
    of a kind on at least two tasks.
    """
    protocols = {(data_key(one), one.task.get("samples_per_label")) for one in results}
    if not all(map(is_validation_score, results)):
        return []
    if len(protocols) > len({data for data, _ in protocols}):
        return []
    rows: dict[str, list[tuple[Result, str, Recipe]]] = {}
    for row in zip(results, data_labels(results), _recipes(results), strict=True):
        rows.setdefault(row[0].experiment["kind"], []).append(row)
    found = [_rank_kind(KIND_NAMES[kind], group) for kind, group in rows.items()]
    shapes = [ranking.scores.shape for ranking in found]
    is_search = any(recipes >= MIN_RECIPES and tasks >= MIN_TASKS for recipes, tasks in shapes)
    return found if is_search else []


def _rank_kind(kind: str, rows: Sequence[tuple[Result, str, Recipe]]) -> Ranking:
    """The ranking of one kind, of which there are results, labels of their data and recipes."""
    recipes = [dict(items) for items in dict.fromkeys(tuple(one.items()) for *_, one in rows)]
    counts = Counter(item for recipe in recipes for item in recipe.items())
    # Not simply the first one, as the order of result files says nothing.
    base = max(recipes, key=lambda recipe: sum(counts[item] for item in recipe.items()))
    scores = pd.DataFrame(
        {
            "recipe": ", ".join([kind, *_changes(recipe, base)]),
            "task": label,
            "seed": result.experiment["seed"],
            "accuracy": result.scores["accuracy"],
        }
        for result, label, recipe in rows
    )
    copies = ["recipe", "task", "seed"]  # of which the last one counts
    scores = scores.drop_duplicates(copies, keep="last").pivot_table(
        "accuracy", "recipe", "task", sort=False
    )
    base = {name: value for name, value in base.items() if counts[name, value] < len(recipes)}
    return Ranking(kind, base, scores.round(DECIMALS))


def _changes(recipe: Recipe, base: Recipe) -> list[str]:
    return [f"{name} {value}" for name, value in recipe.items() if base.get(name, ...) != value]


def _recipes(results: Sequence[Result]) -> list[Recipe]:
    """The settings and origin of each result that may distinguish it on one task, but the seed."""
    relevant = [relevant_settings(result) for result in results]
    names = {"llm_layers", *differing_settings(results)} - {"seed"}
    if any(values.get("epochs") == 0 for values in relevant):
        names.add("epochs")
    recipes = []
    for result, values in zip(results, relevant, strict=True):
        recipe = {name: value for name, value in values.items() if name in names}
        if "llm_layers" in recipe and not result.selects_layer():  # 10 and -9 of 18 are the same
            cutoffs = result.cutoffs
            recipe["llm_layers"] = str(cutoffs if len(cutoffs) > 1 else cutoffs[0])
        recipe["version"] = result.versions.get("embedder_helpers", "unknown")
        recipe |= {
            MODEL_NAMES[name]: short_fingerprint(value)
            for name, value in result.inputs.items()
            if name in MODEL_NAMES
        }
        recipes.append(recipe)
    return recipes


def rank_table(results: Sequence[Result]) -> pd.DataFrame:
    """A row per recipe, kind by kind, the lowest mean rank first; empty without a search.

    Recipes are ranked on each task by the protocol's accuracy on the validation split, 1 being the
    best; equal ones share the mean of their ranks. Several seeds are averaged before. A recipe that
    lacks a task has neither a mean rank nor a mean score, follows the others, and the others are
    ranked as if it did not exist.

    Args:
        results: results of any tasks; a search is what `rankings` says.
    """
    tables = [ranking.table() for ranking in rankings(results)]
    return pd.concat(tables).rename_axis("recipe").reset_index() if tables else pd.DataFrame()


def rank_notes(results: Sequence[Result]) -> list[str]:
    """What a reader of the mean ranks should know, as plain text; nothing without a search."""
    if not (found := rankings(results)):
        return []
    errors = [f"{error:.3f} on {label}" for label, error in _standard_errors(results).items()]
    return [
        "mean rank: each recipe's rank among those of its kind by accuracy on the validation "
        "split, averaged over the tasks, 1 being the best; a recipe that lacks a task has no rank "
        "and takes none from the others.",
        "critical difference: two mean ranks that are closer may differ by chance (Nemenyi test at "
        "the 5 % level, Demšar 2006).",
        *filter(None, (ranking.describe() for ranking in found)),
        "The choice of the validation texts alone gives an accuracy a standard error of up to "
        f"{', '.join(errors)}; the seed adds to it.",
    ]


def _standard_errors(results: Sequence[Result]) -> dict[str, float]:
    """The standard error of a typical accuracy `p` on each data set's `n` texts, √(p (1 - p) / n).

    It is an upper bound for the mean accuracy of runs that share the texts.
    """
    rows = pd.DataFrame(
        {
            "task": label,
            "accuracy": result.scores["accuracy"],
            "texts": result.task["texts"].get("scored", np.nan),
        }
        for result, label in zip(results, data_labels(results), strict=True)
    )
    means = rows.groupby("task", sort=False).mean()
    chance = (means["accuracy"] * (1 - means["accuracy"])).clip(lower=0)
    return np.sqrt(chance / means["texts"]).dropna().to_dict()


def format_ranking(results: Sequence[Result]) -> str:
    """The table in Markdown, followed by its notes; empty without a search."""
    notes = "".join(f"* {escape_markdown(note, MAX_NOTE)}\n" for note in rank_notes(results))
    return f"{to_markdown(rank_table(results))}\n{notes}\n" if notes else ""
