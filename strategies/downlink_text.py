"""Which texts a downlink may have."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import ArrayRecord

from fl_lowrank import feedback as feedbacks
from fl_lowrank.compressors import Identity
from fl_lowrank.errors import SettingError
from fl_lowrank.model import ModelCodec
from fl_lowrank.scheduled import Scheduled, parse_scheduled
from fl_lowrank.updates import split_layout

from .replies import layout_of


def read(text: str | None, *, has_uplink: bool) -> Scheduled | None:
    """Read the text of a downlink; None if it sends models as they are.

    Raises
    ------
    SettingError
        If there is no uplink: then clients get no requests, which name the reference.
    """
    codec = None if text is None else parse_scheduled(text)
    if codec is None or all(map(_sends_as_it_is, codec.texts)):
        return None
    if not has_uplink:
        msg = (
            f'Compressed: downlink="{codec}" needs an uplink, since uplink=None leaves '
            'all messages untouched; use uplink="identity()"'
        )
        raise SettingError(msg)
    return codec


def check(codec: Scheduled, arrays: ArrayRecord, exact: Sequence[str]) -> None:
    """Refuse compressors with which clients could not follow a model.

    Raises
    ------
    SettingError
        If the distance to the reference could grow, or importance weights are asked
        for, which only clients can find.
    """
    lossy, _ = split_layout(layout_of(arrays), exact)
    for text in codec.texts:
        model_codec = ModelCodec(text)
        for group in model_codec.groups(lossy):
            what = f"{group.compressor}, which {group.names[0]!r} would use"
            found = group.compressor.guarantee(group.layout.shape)
            reason = feedbacks.EF21().refusal(found)
            if reason is not None:
                msg = f"Compressed: the downlink cannot use {what}: {reason}"
                raise SettingError(msg)
        if model_codec.importance(lossy):
            msg = (
                f"Compressed: the downlink cannot use {text}: the server has no "
                "samples to find importance weights with; use topk"
            )
            raise SettingError(msg)


def _sends_as_it_is(text: str) -> bool:
    return all(isinstance(c, Identity) for c in ModelCodec(text).compressors)
