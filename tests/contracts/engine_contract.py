"""What every engine promises, as functions that take one Subject. Yours can pass them too:

    from engine_contract import CHECKS, Subject

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_engine(check):
        check(Subject(open=lambda: my_weights(), noise=1e-5))

Only the public types of pilotfish.runtime.interfaces and pilotfish.runtime.errors are used. What an engine does not
list among its abilities it must refuse with an AbilityError that names an engine which has it.
"""

from __future__ import annotations

from collections.abc import Callable

import answer_contract
import cache_contract
import step_contract
import tree_contract
from subject import Subject

__all__ = ["CHECKS", "Subject"]

CHECKS: tuple[Callable[[Subject], None], ...] = (
    *step_contract.CHECKS,
    *tree_contract.CHECKS,
    *cache_contract.CHECKS,
    *answer_contract.CHECKS,
)
