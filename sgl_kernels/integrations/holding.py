"""Something of another library that stays exchanged as long as anybody needs it: an installation, an applied model."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable


class Exchange:
    """Who needs an exchange, and when it is made and undone.

    put     makes it, and changes nothing where it is made already
    take    undoes it; called when neither `install` nor a hold needs it any more
    """

    def __init__(self, put: Callable[[], None], take: Callable[[], None]) -> None:
        self.lock = threading.RLock()
        self.everywhere = False  # installed for the whole process
        self.holders = 0  # applied models, and scopes
        self._put = put
        self._take = take

    def install(self) -> None:
        """Make it for the whole process. Calling it again changes nothing."""
        with self.lock:
            self._put()
            self.everywhere = True

    def uninstall(self) -> None:
        """Give it back, but for those who hold it. Calling it again changes nothing."""
        with self.lock:
            self.everywhere = False
            self.settle()

    def hold(self) -> Hold:
        """Keep it until the hold is released or gone."""
        return Hold(self)

    def settle(self) -> None:
        """Undo it where nobody needs it."""
        if not self.everywhere and self.holders == 0:
            self._take()

    def _drop(self) -> None:
        with self.lock:
            self.holders -= 1
            self.settle()


class Hold:
    """Keeps an exchange made for as long as it is alive and not released."""

    def __init__(self, exchange: Exchange) -> None:
        with exchange.lock:
            exchange._put()
            exchange.holders += 1
        self._finalizer = weakref.finalize(self, exchange._drop)

    def release(self) -> None:
        """Let go. Calling it again changes nothing."""
        self._finalizer()
