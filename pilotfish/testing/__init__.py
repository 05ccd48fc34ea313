"""What every engine promises, as functions that take one Subject. Yours can pass them too:

    from pilotfish.testing import CHECKS, Subject

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_engine(check):
        check(Subject(open=lambda: my_weights(), noise=1e-5))

Only the public types of pilotfish.runtime.interfaces and pilotfish.runtime.errors are used. What an engine does not
list among its abilities it must refuse with an AbilityError that names an engine which has it. docs/adding-an-engine.md
has the whole story; `toy` is an engine to look at, `tiny_models` writes weights to try one with.
"""

from __future__ import annotations

from collections.abc import Callable

from ..runtime.install import install_command

try:
    import pytest
except ImportError as error:
    raise ImportError(f"pilotfish.testing needs pytest. Add it with: {install_command('testing')}") from error

_PARTS = (
    *("answer_contract", "cache_contract", "copy_contract", "source_contract"),
    *("step_contract", "subject", "tree_contract"),
)
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in _PARTS))  # so that a failure shows its values

from ..runtime.files.gguf_model import GgufModel  # noqa: E402
from ..runtime.speculation.draft_weights import Shared  # noqa: E402
from . import answer_contract, cache_contract, copy_contract, source_contract, step_contract, tree_contract  # noqa: E402 - after the line above
from .subject import Subject  # noqa: E402
from .tiny_models import tiny_gguf  # noqa: E402
from .toy import ToyWeights  # noqa: E402
from .toy_model import toy_model, toy_weights  # noqa: E402

__all__ = ["CHECKS", "GgufModel", "Shared", "Subject", "ToyWeights", "tiny_gguf", "toy_model", "toy_weights"]

CHECKS: tuple[Callable[[Subject], None], ...] = (
    *step_contract.CHECKS,
    *tree_contract.CHECKS,
    *cache_contract.CHECKS,
    *copy_contract.CHECKS,
    *answer_contract.CHECKS,
    *source_contract.CHECKS,
)
