"""Progress bars on stderr, silent where stderr is no terminal."""

from typing import Any

from tqdm import tqdm


def progress(title: str, total: int, unit: str = "it", initial: int = 0, shown: bool = True) -> Any:
    """A bar with ``update(n)`` and ``set_postfix(...)``, used as a context manager."""
    hidden = None if shown else True  # None: where stderr is no terminal
    return tqdm(total=total, initial=initial, desc=title, unit=unit, disable=hidden, leave=False, dynamic_ncols=True)
