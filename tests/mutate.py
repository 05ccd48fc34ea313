"""Breaks the engine in known ways, one at a time, and shows that a test notices each.

Run by hand: `python tests/mutate.py`. Not part of the test run: it takes minutes. Exit code 1 if a mutant survives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = ("exact", "engine", "proposers", "sampling", "draft_length", "cost", "model")  # wherever they lie


@dataclass(frozen=True, slots=True)
class Mutant:
    """A change that must not survive."""

    what: str
    file: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "a sampled draft is accepted by p alone",
        "runtime/sampling/speculative_sampling.py",
        "if rng.random() * q.prob(token) < p.prob(token):",
        "if rng.random() < p.prob(token):",
    ),
    Mutant(
        "the residual forgets to subtract q",
        "runtime/sampling/speculative_sampling.py",
        "        p = left\n",
        "        pass\n",
    ),
    Mutant(
        "acceptance reuses the bonus row of the parent",
        "runtime/sampling/speculative_sampling.py",
        "p = distribution_at(row, path)",
        "p = distribution_at(max(row - 1, 0), path)",
    ),
    Mutant(
        "a chain reuses the row before",
        "runtime/sampling/speculative_sampling.py",
        "token = distribution_at(accepted, tokens[:accepted])",
        "token = distribution_at(max(accepted - 1, 0), tokens[:accepted])",
    ),
    Mutant(
        "a greedy chain reuses the row before",
        "runtime/sampling/speculative_sampling.py",
        "token = best_at(accepted)",
        "token = best_at(max(accepted - 1, 0))",
    ),
    Mutant(
        "greedy penalties do not see the drafted path",
        "runtime/decoding/loop.py",
        "committed[: n + row], n_prompt)",
        "committed[:n], n_prompt)",
    ),
    Mutant(
        "a run of accepted tokens counts as one",
        "runtime/speculation/acceptance_rate.py",
        "chance = self._learn(confidence, hit, n)",
        "chance = self._learn(confidence, hit, 1)",
    ),
    Mutant(
        "penalties do not see the drafted path",
        "runtime/decoding/loop.py",
        "sampling.distribution(logits[row], committed[:end], n_prompt)",
        "sampling.distribution(logits[row], committed[:n], n_prompt)",
    ),
    Mutant(
        "a rejected draft stays in the cache",
        "runtime/decoding/loop.py",
        "target.truncate(n - 1)  # forgets",
        "target.truncate(n)  # forgets",
    ),
    Mutant(
        "tokens behind a stop id stay",
        "runtime/decoding/loop.py",
        'return tokens[:end], "stop"',
        'return tokens, "stop"',
    ),
    Mutant(
        "a path in a tree keeps the wrong entries",
        "runtime/decoding/loop.py",
        "target.accept(np.array([0, *verdict.rows], dtype=np.int64), width)",
        "target.accept(np.arange(len(verdict.rows) + 1), width)",
    ),
    Mutant(
        "a step is not padded to its class",
        "runtime/decoding/loop.py",
        "width = target.rows.fit(n_rows)",
        "width = n_rows",
    ),
    Mutant(
        "drafts go on where plain decoding takes a narrow step",
        "runtime/speculation/repeats.py",
        "                return k\n",
        "                return len(tokens)\n",
    ),
    Mutant(
        "a pair of tokens repeats itself at once",
        "runtime/speculation/repeats.py",
        "pairwise(known[:-1])",
        "pairwise(known)",
    ),
    Mutant(
        "prefix reuse is one token too generous",
        "runtime/cache/sequence.py",
        "return int(differ[0]) if len(differ) else n",
        "return min(int(differ[0]) + 1, n) if len(differ) else n",
    ),
    Mutant(
        "a draft model computes accepted tokens again",
        "runtime/speculation/proposers/draft_model.py",
        "lacking = len(context) - min(self._sequence.reusable(context), len(context) - 1)",
        "lacking = min(len(context), 8)",
    ),
    Mutant(
        "a draft model keeps its rejected tokens",
        "runtime/speculation/proposers/draft_model.py",
        "        self._sequence.truncate(len(context) - lacking)\n",
        "",
    ),
    Mutant(
        "sampled drafts lose their distributions",
        "runtime/speculation/proposers/draft_model.py",
        "drawn = None if self._sampling.greedy else tuple(distributions)",
        "drawn = None",
    ),
    Mutant(
        "a sampled draft is cut by its own confidence",
        "runtime/speculation/controller.py",
        "        k = self.policy.choose(forecast) if draft.distributions is None else len(draft)\n"
        "        record.asked(forecast, k)\n"
        "        kept = draft.head(self.rows.fit(k + 1) - 1) if draft.distributions is None else draft\n",
        "        k = self.policy.choose(forecast)\n"
        "        record.asked(forecast, k)\n"
        "        kept = draft.head(self.rows.fit(k + 1) - 1)\n",
    ),
    Mutant(
        "drafts are accounted by a curve that may be wrong",
        "runtime/speculation/controller.py",
        "            spent = min(max(verify_s, spent / _HICCUP), spent * _HICCUP)\n",
        "            pass\n",
    ),
    Mutant(
        "small errors of one width are left out",
        "runtime/profiling/cost_curve.py",
        "self._pending[width] += rate * error",
        "self._pending[width] += rate * error * (abs(error) > 0.1)",
    ),
    Mutant(
        "a width that always follows another is never corrected",
        "runtime/profiling/cost_curve.py",
        "if switched and (self._well_known(width) or not self._well_known(before)):",
        "if switched:",
    ),
    Mutant(
        "a proposer that brings nothing never rests",
        "runtime/speculation/proposer_record.py",
        "            self.rests_until = round_ + 1 + self.rest\n",
        "            self.rests_until = 0\n",
    ),
    Mutant(
        "an answer after one that gained waits like any other",
        "runtime/speculation/proposer_record.py",
        "            if not self.paid:\n",
        "            if True:\n",
    ),
    Mutant(
        "one row counts as alike where it only looks so",
        "runtime/profiling/row_classes.py",
        "if members[0] >= alike_from",
        "if True",
    ),
    Mutant(
        "a promise counts for what it said",
        "runtime/speculation/controller.py",
        "            record.observe_saved(max(n_tokens * plain_s - spent, 0.0))\n",
        "            record.observe_saved(4.0 * plain_s)\n",
    ),
    Mutant(
        "the rejected tail counts as rejected",
        "runtime/speculation/acceptance_rate.py",
        "self._learn_chain(draft.expected[: len(rows) + 1].tolist(), len(rows))",
        "self._learn_chain(draft.expected.tolist(), len(rows))",
    ),
    Mutant(
        "no draft is no choice",
        "runtime/speculation/draft_length.py",
        "seconds, least = forecast.accepted, forecast.seconds, _MARGIN",
        "seconds, least = forecast.accepted, forecast.seconds, 0.0",
    ),
    Mutant(
        "drafts are allowed whatever they may lose",
        "runtime/speculation/draft_length.py",
        " and seconds[k] <= affordable",
        "",
    ),
    Mutant(
        "plain steps are never measured again",
        "runtime/speculation/draft_length.py",
        "plain_every: int | None = 64",
        "plain_every: int | None = None",
    ),
    Mutant(
        "the shortest match wins",
        "runtime/speculation/proposers/suffix.py",
        "levels = _occurrences(context)[::-1]",
        "levels = _occurrences(context)[:1]",
    ),
    Mutant(
        "top-p keeps one token too few",
        "runtime/sampling/sampling.py",
        "n = int(np.searchsorted(np.cumsum(probs[order]), mass)) + 1",
        "n = max(int(np.searchsorted(np.cumsum(probs[order]), mass)), 1)",
    ),
    Mutant(
        "a stop string that spans two pieces is shown",
        "runtime/text/text_assembler.py",
        "pieces.append(self._release(self._certain()))",
        "pieces.append(self._release(len(self._held)))",
    ),
)


def copy_of_the_project(folder: Path) -> None:
    """Everything the tests need, links included."""
    for name in ("runtime", "backends", "exporters", "apps", "pilotfish", "tests"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def survives(mutant: Mutant, folder: Path) -> bool:
    """Whether all tests pass although the engine is broken."""
    path = folder / mutant.file
    whole = path.read_text("utf-8")
    if whole.count(mutant.old) != 1:
        raise SystemExit(
            f"{mutant.file} does not hold the text of mutant {mutant.what!r} exactly once; bring it up to date"
        )
    path.write_text(whole.replace(mutant.old, mutant.new), "utf-8")
    files = [str(found.relative_to(ROOT)) for name in TESTS for found in (ROOT / "tests").rglob(f"test_{name}.py")]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    path.write_text(whole, "utf-8")
    killer = next((line for line in done.stdout.splitlines() if line.startswith("FAILED")), "")
    print(f"{'SURVIVES' if done.returncode == 0 else 'dies    '}  {mutant.what:<48} {killer[:110]}", flush=True)
    return done.returncode == 0


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_of_the_project(folder)
        survivors = [m for m in MUTANTS if survives(m, folder)]
    print(f"{len(MUTANTS) - len(survivors)} of {len(MUTANTS)} mutants die")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
