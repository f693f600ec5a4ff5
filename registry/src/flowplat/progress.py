"""Progress bars on stderr, silent where stderr is no terminal."""

from typing import Any

from tqdm import tqdm


def progress(title: str, total: int, unit: str = "it") -> Any:
    """A bar with ``update(n)`` and ``set_postfix(...)``, used as a context manager."""
    return tqdm(total=total, desc=title, unit=unit, disable=None, leave=False, dynamic_ncols=True)
