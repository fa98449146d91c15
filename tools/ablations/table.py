"""Scores of all runs -> a table with the spread over seeds, and the differences of arms for each seed."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from demo_world.language import Pair
from demo_world.scene import Scene

from ablations.plan import ARMS, COMPARED

Scores = Mapping[str, Mapping[str, float]]  # topic -> {"right": percent, ...}

#: Media kinds, in the order of the table.
KINDS = ("clip", "image")


def topics(scores: Scores, kind: str) -> dict[str, float]:
    """Return the percentage of correct answers by topic, without captions."""
    found = {t.removeprefix(f"{kind} "): s["right"] for t, s in scores.items() if t.startswith(f"{kind} ")}
    return {t: right for t, right in found.items() if not t.startswith("caption")}


def figures(scores: Scores) -> dict[str, float]:
    """Return the rows of the table for one run."""
    out: dict[str, float] = {}
    for kind in KINDS:
        by_topic = topics(scores, kind)
        out[f"{kind} questions, mean of topics"] = statistics.mean(by_topic.values())
        out[f"{kind} caption"] = scores[f"{kind} caption"]["right"]
        out |= {f"{kind} {topic}": right for topic, right in by_topic.items()}
    return out


def most_frequent(scenes: Mapping[str, Scene], asked: Mapping[str, Sequence[Pair]]) -> Scores:
    """Return the score of always giving the most frequent answer of each topic: the baseline of a blind model.

    Args:
        scenes: file name -> scene.
        asked: file name -> its questions with their answers.
    """
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for name, pairs in asked.items():
        for pair in pairs:
            answers[f"{'image' if scenes[name].still else 'clip'} {pair.topic}"][pair.answer] += 1
    return {topic: {"right": 100 * max(n.values()) / n.total()} for topic, n in answers.items()}


def table(runs: Mapping[str, Sequence[Scores]], guess: Scores | None = None) -> str:
    """Format the scores as Markdown.

    Args:
        runs: arm -> scores by seed.
        guess: the baseline of `most_frequent`, as a last column.
    """
    guessed = figures(guess) if guess else {}
    last = ["most frequent answer"] if guessed else []
    rows = {arm: [figures(scores) for scores in seeds] for arm, seeds in runs.items()}
    names = [arm.name for arm in ARMS if rows.get(arm.name)]
    lines = [_row("right answers, %", *names, *last), _row("---", *("---" for _ in (*names, *last)))]
    for topic in rows[names[0]][0]:
        cells = [_spread([seed[topic] for seed in rows[name]]) for name in names]
        lines.append(_row(topic, *cells, *([f"{guessed[topic]:.1f}"] if guessed else [])))
    lines += ["", _row("difference, points", "clip questions", "clip caption", "image questions", "image caption")]
    lines.append(_row("---", "---", "---", "---", "---"))
    heads = [f"{kind} {what}" for kind in KINDS for what in ("questions, mean of topics", "caption")]
    for title, one, other in COMPARED:
        if not rows.get(one) or not rows.get(other):
            continue
        pairs = list(zip(rows[one], rows[other], strict=False))
        by_seed = [[a[topic] - b[topic] for a, b in pairs] for topic in heads]
        lines.append(
            _row(title, *(f"{_spread(each, '+')} ({', '.join(f'{d:+.1f}' for d in each)})" for each in by_seed))
        )
    return "\n".join(lines)


def _spread(values: Sequence[float], sign: str = "") -> str:
    """Format mean and standard deviation over the seeds."""
    off = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{off}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
