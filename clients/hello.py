"""The first message to a client asks who it is."""

from __future__ import annotations

from flwr.app import ConfigRecord, Context, Message, RecordDict

import fl_lowrank
from fl_lowrank.envelope import REQUEST_KEY

from .homes import client_key


def introduce(message: Message, context: Context) -> Message:
    """Tell the server who this client is."""
    about = ConfigRecord(
        {"client-key": client_key(context), "version": fl_lowrank.__version__}
    )
    return Message(RecordDict({REQUEST_KEY: about}), reply_to=message)
