"""What comes back for a request."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from loadtest.cases import Case
from loadtest.workload import Request


class Fault(NamedTuple):
    """Why a request was not answered rightly: the failure's name, and what was said."""

    name: str
    detail: str = ""


Answer = Sequence[str] | Fault  # the classes, each as Triton's `value:index:label`
Done = Callable[[Request, Answer], None]
TIMEOUT = "timeout"
WRONG = "wrong answer"


def find_fault(cases: Sequence[Case], answer: Answer) -> Fault | None:
    """What is wrong with an answer: nothing, when each image has the class that it should have."""
    if isinstance(answer, Fault):
        return answer
    if len(answer) != len(cases):
        return Fault("unreadable answer", f"{len(answer)} classes for {len(cases)} images")
    for case, text in zip(cases, answer, strict=True):
        try:
            index = int(text.split(":", 2)[1])
        except (IndexError, ValueError):
            return Fault("unreadable answer", f"{text!r} is no class")
        if index not in case.right:
            right = " or ".join(map(str, sorted(case.right)))
            return Fault(WRONG, f"{case.name} is class {right}, the answer {text}")
    return None
