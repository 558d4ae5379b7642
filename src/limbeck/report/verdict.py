"""What the numbers allow to be said, in one sentence and its details."""

import statistics
from dataclasses import dataclass

from limbeck.report.folder import Arm, Difference, Loaded
from limbeck.report.numbers import metric, paired_interval, primary, signed, spread

WORDS = {"better": "better", "worse": "worse", "undecided": "no difference can be claimed"}


@dataclass(frozen=True)
class Headline:
    """The sentence at the top, and the sentences under it."""

    sentence: str
    details: tuple[str, ...]


def verdict(difference: Difference) -> str:
    """Whether the whole 95% interval lies on the "better" or "worse" side of zero; else "undecided"."""
    low, high = difference.low, difference.high
    if low is None or high is None or low <= 0 <= high:
        return "undecided"
    return "better" if (low > 0) == (difference.better == "higher") else "worse"


def headline(loaded: Loaded) -> Headline:
    """The honest summary of a run or a comparison."""
    return _of_comparison(loaded) if loaded.differences else _of_arms(loaded)


def _of_comparison(loaded: Loaded) -> Headline:
    name = primary([d.metric for d in loaded.differences])
    main = [d for d in loaded.differences if d.metric == name]
    assert name is not None
    label = _test(name)
    order = {"better": 0, "worse": 1, "undecided": 2}
    ranked = sorted(main, key=lambda d: (order[verdict(d)], -abs(d.mean)))
    if len(main) > 1 and verdict(ranked[0]) == "undecided":
        sentence, told = _none(main, label), main
    else:
        sentence, told = _one(ranked[0], label), ranked[1:]
    details = [_one(d, label) for d in told]
    for arm, baseline in dict.fromkeys((d.arm, d.baseline) for d in loaded.differences):
        rest = [d for d in loaded.differences if (d.arm, d.baseline) == (arm, baseline) and d.metric != name]
        said = [
            f"{word} in {_list([metric(d.metric).label for d in rest if verdict(d) == word])}"
            for word in ("better", "worse", "undecided")
            if any(verdict(d) == word for d in rest)
        ]
        if said:
            text = "; ".join(said).replace("undecided in", "not to be told apart in")
            details.append(f"Beyond {metric(name).label.lower()}, {arm} against {baseline}: {text}.")
    teachers = {spread(name, arm.teacher[name]) for arm in loaded.arms if arm.teacher.get(name)}
    if len(teachers) == 1:
        details.append(f"The teacher stands at {teachers.pop()}.")
    return Headline(sentence, tuple(details))


def _one(difference: Difference, label: str) -> str:
    d, outcome = difference, verdict(difference)
    seeds = f"{d.seeds} seed{'s' * (d.seeds != 1)}"
    if d.low is None or d.high is None:
        return (
            f"No difference between {d.arm} and {d.baseline} in {label} can be claimed: "
            f"{signed(d.metric, d.mean)}, and {seeds} give no interval."
        ).replace("1 seed give", "1 seed gives")
    low, high = (signed(d.metric, value, unit=False) for value in (d.low, d.high))
    measured = f"{signed(d.metric, d.mean)} (95% interval {low} to {high}, {seeds})"
    if outcome == "undecided":
        return f"No difference between {d.arm} and {d.baseline} in {label} can be claimed: {measured}."
    return f"{d.arm} is {outcome} than {d.baseline} in {label}: {measured}."


def _none(differences: list[Difference], label: str) -> str:
    arms = _list(list(dict.fromkeys(d.arm for d in differences)), "or")
    baselines = _list(list(dict.fromkeys(d.baseline for d in differences)), "or")
    return f"No difference from {baselines} in {label} can be claimed for {arms}."


def _of_arms(loaded: Loaded) -> Headline:
    arm = loaded.arms[0]
    name = primary(list(arm.metrics))
    if name is None:
        return Headline(f"{arm.name} has finished; it reports no metrics.", ())
    seeds = len(arm.metrics[name])
    if len(loaded.arms) > 1:
        ranking = _list([f"{a.name} {spread(name, a.metrics[name])}" for a in loaded.arms if a.metrics.get(name)])
        sentence = f"In {_test(name)}: {ranking}. Nothing was tested for a difference, so none can be claimed."
        return Headline(sentence, ())
    over = f"over {seeds} seeds" if seeds > 1 else "with one seed, so its spread is not known"
    sentence = f"{arm.name} reaches {spread(name, arm.metrics[name])} {_test(name)} {over}."
    details = [*_against_teacher(arm, name), *_size(arm)]
    details.append("One method alone: for a claim against a baseline run limbeck compare.")
    return Headline(sentence, tuple(details))


def _against_teacher(arm: Arm, name: str) -> list[str]:
    student, teacher = arm.metrics[name], arm.teacher.get(name, [])
    if len(student) != len(teacher):
        return []
    pairs = [s - t for s, t in zip(student, teacher, strict=True)]
    mean, known = statistics.fmean(pairs), paired_interval(pairs)
    text = f"Its teacher stands at {spread(name, teacher)}"
    if known is None:
        return [f"{text}: the student differs by {signed(name, mean)}; without several seeds that is no claim."]
    better = verdict(Difference("", "", name, metric(name).better, mean, *known, len(pairs)))
    low, high = (signed(name, value, unit=False) for value in known)
    outcome = "no difference can be claimed" if better == "undecided" else f"the student is {better}"
    return [f"{text}: {outcome} ({signed(name, mean)}, 95% interval {low} to {high} over seeds)."]


def _size(arm: Arm) -> list[str]:
    said = []
    for name, word in (("parameters", "parameters"), ("macs", "multiply-accumulates")):
        if arm.metrics.get(name) and arm.teacher.get(name):
            student, teacher = statistics.fmean(arm.metrics[name]), statistics.fmean(arm.teacher[name])
            if student > 0 and teacher / student >= 1.05:
                said.append(f"{teacher / student:.{1 if teacher < 10 * student else 0}f} times fewer {word}")
            elif student > 0 and teacher > 0 and student / teacher >= 1.05:
                said.append(f"{student / teacher:.{1 if student < 10 * teacher else 0}f} times more {word}")
    return [f"The student has {_list(said)} than the teacher."] if said else []


def _test(name: str) -> str:
    label = metric(name).label
    return f"test {label.lower() if name == 'accuracy' else label}"


def _list(words: list[str], last: str = "and") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}" if words else ""
