"""Reading what Triton says."""

import re

# Triton's words for a full queue and for a request that waited in it for too long.
BUSY = re.compile(r"queue size|timeout expired|too many", re.IGNORECASE)

# What Triton puts before the words of a model.
FRAME = re.compile(
    r"^(in ensemble '[^']*', )?"
    r"(Failed to process the request\(s\) for model (instance )?'[^']*',? ?(message: )?)?"
    r"(TritonModelException: |Triton(Error|Model)[^:]*: )?"
)


def one_line(text: str) -> str:
    """The text without line breaks and without the addresses of code that Python's backend adds."""
    return " ".join(text.split("\n\nAt:")[0].split())


def words_of_model(text: str) -> str:
    """The text without the names of the models that passed it on."""
    return FRAME.sub("", text)
