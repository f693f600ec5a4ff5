"""Run the playground page and keep its pictures in docs/pictures: `make pictures`."""

import os
import re
from pathlib import Path

HERE = Path(__file__).parent

if __name__ == "__main__":
    page = (HERE / "tutorials" / "playground.md").read_text(encoding="utf-8")
    os.chdir(HERE / "pictures")
    scope: dict[str, object] = {"__name__": "playground"}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(compile(block, "playground.md", "exec"), scope)
