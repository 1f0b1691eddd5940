"""What goes up: the compressor, the feedback around it, and whether they fit."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import ArrayRecord

from fl_lowrank import feedback as feedbacks
from fl_lowrank.compressors.wrappers import parts
from fl_lowrank.feedback import Feedback
from fl_lowrank.model import ModelCodec
from fl_lowrank.scheduled import Scheduled
from fl_lowrank.types import Additive, weakest
from fl_lowrank.updates import split_layout

from .replies import layout_of


@dataclass(frozen=True)
class Uplink:
    """What clients are told about the way up, as texts.

    Of a codec with schedules they are told what it is in the round.
    """

    codec: Scheduled
    feedback: str
    weight_key: str
    exact: tuple[str, ...]

    @property
    def sums_undecoded(self) -> bool:
        """Whether clients may send sketches, which are summed before decoding."""
        return any(
            isinstance(part, Additive)
            for text in self.codec.texts
            for compressor in ModelCodec(text).compressors
            for part in parts(compressor)
        )

    def fitted(self, feedback: Feedback, arrays: ArrayRecord) -> Feedback:
        """Hold a feedback against what will be sent, and complete its settings.

        Raises
        ------
        SettingError
            If a compressor cannot be used with it.
        """
        lossy, _ = split_layout(layout_of(arrays), self.exact)
        codecs = [ModelCodec(text) for text in self.codec.texts]
        for group in (group for codec in codecs for group in codec.groups(lossy)):
            found = group.compressor.guarantee(group.layout.shape)
            what = f"{group.compressor}, which {group.names[0]!r} would use"
            feedbacks.check_pair(feedback, found, what)
        # Its settings are the same in all rounds, so the weakest one decides.
        return feedback.fitted(weakest([codec.guarantee(lossy) for codec in codecs]))
