"""A served teacher's requests: what a server takes is learnt first, faults are counted.

Of faults that pass, requests are tried again (`serving.http`). One that fails each time is named;
too many in a row end the run.
"""

import threading
from collections.abc import Sequence
from dataclasses import replace

from cdcca_cli.errors import BadData, Unavailable
from cdcca_cli.serving.address import Address
from cdcca_cli.serving.http import Transient
from cdcca_cli.serving.openai import ChatServer, Dialect, NoLogprobs, Reply
from cdcca_cli.teachers import chat
from cdcca_cli.teachers.chat import Ask
from cdcca_cli.teachers.settings import ServerSettings

_MOST_IN_A_ROW = 16


class Server:
    """A server that answers one request after another, from any number of threads."""

    def __init__(self, address: Address, settings: ServerSettings) -> None:
        """Raises: SettingError for a key that is not there."""
        self.address, self.settings = address, settings
        self._server = ChatServer(address, settings.connection, chat.first_dialect(settings))
        self.close = self._server.close
        self._lock = threading.Lock()
        self._num_in_a_row = 0

    @property
    def dialect(self) -> Dialect:
        """What the server takes, as far as is known."""
        return self._server.dialect

    @property
    def num_sent(self) -> int:
        """Requests, tries included."""
        return self._server.num_sent

    def settle(self, asks: Sequence[Ask]) -> Reply:
        """Ask a first question, to learn what the server takes; another one if it refuses that.

        Raises: Unavailable if it answers none.
        """
        refused: BadData | None = None
        for ask in asks:
            try:
                return self._settle(ask)
            except BadData as error:
                refused = error
        raise Unavailable(f"{self.address}: answers nothing: {refused}")

    def _settle(self, ask: Ask) -> Reply:
        try:
            return self._complete(ask)
        except NoLogprobs:
            less = replace(self.dialect, top=None)
            self._server.concede(less, "no log-probabilities", "gives none")
        except Transient as error:
            raise Unavailable(f"{self.address}: {error}") from None
        return self._settle(ask)

    def ask(self, ask: Ask) -> Reply:
        """The answer to one request.

        Raises: BadData if this request is refused, or fails each time it is tried; Unavailable if
            nothing can be had any more.
        """
        try:
            reply = self._complete(ask)
        except NoLogprobs:
            self._count_failure("answers without log-probabilities")
            raise BadData("an answer without log-probabilities") from None
        except Transient as error:
            self._count_failure(str(error))
            raise BadData(f"failed {self.settings.attempts} times: {error}") from None
        except BadData as error:
            self._count_failure(str(error))
            raise
        self._num_in_a_row = 0
        return reply

    def _count_failure(self, words: str) -> None:
        with self._lock:
            self._num_in_a_row += 1
            number = self._num_in_a_row
        if number >= _MOST_IN_A_ROW:
            raise Unavailable(
                f"{self.address}: {number} requests in a row failed: {words}: what was answered is "
                "kept, so the same command goes on from there"
            )

    def _complete(self, ask: Ask) -> Reply:
        return self._server.complete(ask.text, ask.picture, ask.max_tokens)
