"""What the mods have in common: they do what a message's request asks for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from logging import WARNING
from typing import ClassVar, Literal

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.common import log
from flwr.common.constant import ErrorCode

import fl_lowrank
from fl_lowrank.envelope import HELLO, REQUEST_KEY, Request
from fl_lowrank.errors import CompressionError

from .homes import Home, client_key


class RequestMod(ABC):
    """Serves messages with a request; others pass untouched.

    A request that cannot be served is answered with an error that says why.

    Parameters
    ----------
    memory : Home or "auto"
        Where memories live.
    """

    #: Of the request in a message's config, and of a record that holds it alone.
    key: ClassVar[str]

    def __init__(self, memory: Home | Literal["auto"] = "auto") -> None:
        self.memory = memory

    def __call__(
        self, message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        """Answer a message; Flower calls this."""
        data = self._take_request(message)
        if data is None:
            return call_next(message, context)
        try:
            request = Request.unpack(data)
            if request.purpose == HELLO:
                return _introduce(message, context)
            return self._serve(message, context, call_next, request)
        except CompressionError as error:
            reason = f"{type(self).__name__}: {error}"
            log(WARNING, "%s", reason)
            code = ErrorCode.MOD_FAILED_PRECONDITION
            return Message(Error(code, reason), reply_to=message)

    @abstractmethod
    def _serve(
        self,
        message: Message,
        context: Context,
        call_next: ClientAppCallable,
        request: Request,
    ) -> Message:
        """Do what a request asks for."""

    def _take_request(self, message: Message) -> bytes | None:
        """Remove and give the request's bytes, so that the user's code sees none."""
        for name, record in list(message.content.config_records.items()):
            if self.key in record:
                data = record.pop(self.key)
                if name == self.key and not record:
                    del message.content[name]  # the server added the record for us
                return data if isinstance(data, bytes) else b""
        return None


def _introduce(message: Message, context: Context) -> Message:
    """Tell the server who this client is."""
    about = ConfigRecord(
        {"client-key": client_key(context), "version": fl_lowrank.__version__}
    )
    return Message(RecordDict({REQUEST_KEY: about}), reply_to=message)
