"""Text as Kubernetes and people write it."""

import re
from collections.abc import Mapping

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 worker", "2 workers", "2 classes"."""
    return f"{number} {plural(noun, number)}"


def plural(noun: str, number: int = 2) -> str:
    """Return the form of a regular noun that goes with a number."""
    return noun if number == 1 else f"{noun}es" if noun.endswith("s") else f"{noun}s"


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace $(NAME) by the variable as Kubernetes does it: $$ is a dollar sign, an unknown name stays as it is."""

    def replaced(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])

    return _REFERENCE.sub(replaced, text)
