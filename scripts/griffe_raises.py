"""An extension of griffe: render the lines ``Raises: …`` of the docstrings as text.

Google's style, which the site uses for the rest, has one line for each error.
"""

import re
from typing import Any

from griffe import Extension, Object


class InlineRaises(Extension):
    """Turns the label of such a line into bold text."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of an object that was loaded."""
        if obj.docstring:
            text = re.sub(r"^Raises: (?=\S)", "\n**Raises:** ", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = text.replace("``", "`")
