"""Ctrl-C and a scheduler's SIGTERM, heard only when a run can be saved."""

import contextlib
import signal


class Interrupts(contextlib.AbstractContextManager):
    """Holds an interrupt back until state and history agree, as they do between dispatches.

    Attributes:
      pending: Whether one came.
    """

    def __enter__(self):
        self.pending = False
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            # Elsewhere than in the main thread no signal arrives; one that is ignored stays so.
            with contextlib.suppress(ValueError):
                if callable(handler):
                    signal.signal(number, self._hold)
                    self._before[number] = handler
        return self

    def _hold(self, number, frame):
        self.pending = True
        self._let_go()

    def _let_go(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, kind, *_):
        self._let_go()
        if self.pending and kind is None:
            raise KeyboardInterrupt
