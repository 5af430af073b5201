"""How long work says how far it has come, and how it is cancelled."""

from collections.abc import Callable

from circuitsae.errors import CancelledError

Progress = Callable[[int, int, str], object]
"""Called with work done, work in all (0 where that is not known) and a word for it; returning `False` cancels."""


def report(progress: Progress | None, done: int, total: int, what: str) -> None:
    """Reports progress to whoever asked for it.

    Raises:
        CancelledError: The callback said `False`.
    """
    if progress is not None and progress(done, total, what) is False:
        raise CancelledError(f"Cancelled after {done} of {total} {what}." if total else f"Cancelled: {what}.")


def part_of(progress: Progress | None, done: int, size: int, total: int, what: str) -> Callable[[float], None]:
    """Returns what is called with the share of a block of work that is done, where blocks take their time.

    Args:
        progress: Who asked.
        done: Work done before the block.
        size: The block's own.
        total: Work in all.
        what: A word for it.
    """

    def of_block(share: float) -> None:
        if int(share * size) < size:
            report(progress, done + int(share * size), total, what)

    return of_block
