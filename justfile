# The project's commands, in an environment with `pip install -e '.[dev]'`. `just` itself: pip install rust-just

set positional-arguments

# This list
[private]
default:
    @just --list

# The tests; options go to pytest: just test -m slow
test *options:
    pytest "$@"

# Everything that .ci/run checks besides the tests
lint:
    ruff check .
    ruff format --check .
    mypy
    lint-imports

# Format, and mend what ruff can mend
fix:
    ruff format .
    ruff check --fix .

# Run what the pages and examples say
docs *options:
    pytest tests/docs/test_docs.py tests/docs/test_examples.py "$@"

# Drafts against plain decoding on this machine: just bench smollm2-135m --sets edit
bench model="smollm2-135m" *options:
    pilotfish bench run "$@"

# The project's own check, in an environment of its own
ci:
    bash .ci/run
