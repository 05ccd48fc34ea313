"""What can be said against a request before there is a model to ask."""

from __future__ import annotations

from ..checks import check_seed, whole
from ..errors import OptionError
from ..several import several
from ..text.text_assembler import Stop


def check_request(*, max_new_tokens: int | None, seed: int | None = None, stop: Stop = ()) -> None:
    """Raise OptionError for a number of new tokens, a seed or a stop that no answer can be made with."""
    if max_new_tokens is not None:
        whole("max_new_tokens", max_new_tokens, 1)
    check_seed(seed)
    wanted: tuple[object, ...] = several(stop)
    for one in wanted:
        if one == "":
            raise OptionError("a stop string is empty, so nothing could ever be generated; leave it out.")
        if not isinstance(one, str):
            whole("a stop token", one, 0)
