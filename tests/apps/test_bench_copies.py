"""The benchmark's tasks for encoder-decoder models: how much of an answer is copied, and answers that are given."""

from __future__ import annotations

import pytest

from pilotfish.apps.bench.copies import SETS, copied, copied_share, copy_tasks, forced
from pilotfish.apps.bench.run import read_prompts
from pilotfish.runtime.sampling.sampling import Sampling
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.testing.toy_model import toy_model, toy_weights

TEXTS = [text for _, text in read_prompts(None)]


def test_tasks_copy_what_they_say() -> None:
    tasks = copy_tasks(TEXTS, 3)
    assert tasks == copy_tasks(TEXTS, 3)
    with toy_model(toy_weights()) as model:
        for name, share in SETS.items():
            group = [task for task in tasks if task.set == name]
            assert len(group) == 3
            for task in group:
                found = copied_share(model, task)
                assert share - 0.12 <= found <= share + 0.01 if share else found < 0.6
                assert found == pytest.approx(copied(task.source, task.answer), abs=0.02)


def test_a_given_answer_is_given_whatever_the_model_says() -> None:
    for name in SETS:
        task = next(task for task in copy_tasks(TEXTS, 1) if task.set == name)
        answers = []
        for plain in (True, False):
            with toy_model(toy_weights(copying=0.0), Fixed(6), plain=plain) as model:
                sampling = Sampling(processors=(forced(model, task.answer),))
                result = model.generate(task.source, max_new_tokens=500, sampling=sampling)
                assert result.text == task.answer and result.finish_reason == "stop"
                answers.append(result)
        assert name == "unrelated" or answers[1].stats.n_rounds < 0.7 * answers[0].stats.n_rounds
