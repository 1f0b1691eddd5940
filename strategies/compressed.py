"""`Compressed`: any strategy of Flower, with compressed replies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from logging import INFO, WARNING
from math import prod
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fl_lowrank import feedback as feedbacks
from fl_lowrank.envelope import EVALUATE, TRAIN
from fl_lowrank.errors import ProtocolError
from fl_lowrank.model import ModelCodec
from fl_lowrank.scheduled import parse_scheduled
from fl_lowrank.updates import patterns_of

from . import downlink_text, sampling
from . import inner as inners
from . import replies as reading
from .aggregation import Round
from .books import MemoryMode, memory_folder, new_book
from .conversation import Conversation
from .downlink import Downlink
from .inner_state import InnerState
from .ledger import Ledger, Purpose
from .loop import EvaluateFn, Plan, Progress, run_rounds
from .norms import ExactLimit, NormLimit
from .patience import Patience
from .training import Training
from .uplink import Uplink


class Compressed(Strategy):
    """Wraps a strategy so that clients send compressed updates.

    ::

        strategy = Compressed(FedAvg(), uplink="topk(fraction=0.05) >> natural()")
        result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=20)

    and, in the ClientApp, ``mods=[CompressionMod()]``. It is the outermost wrapper:
    ``Compressed(DifferentialPrivacyServerSideFixedClipping(FedAvg(), ...))``.

    Strategies that are linear in the updates (FedAvg, FedAvgM, FedProx, FedAdam,
    FedYogi, FedAdagrad) get one reply with the mean update of the round; all others
    get every reply decoded, which needs ``feedback="plain"``, or ``memory="per-node"``
    and a feedback with a sum of memories.

    Parameters
    ----------
    inner : Strategy
        Does the averaging, sampling and evaluation.
    uplink : str, optional
        A compressor or rules, see `fl_lowrank.ModelCodec`; settings may be schedules,
        as in ``"topk(fraction=cosine(0.5, 0.01, rounds=100))"``, see
        `fl_lowrank.schedules`. ``None`` leaves all messages untouched and only counts
        their bytes.
    feedback : str
        ``"ef"`` (default), ``"ef21"`` (for full participation), ``"plain"``, or one
        of `fl_lowrank.feedback` with its settings, as ``"ef21sgdm(momentum=0.1)"``.
        ``"diana"`` and ``"dasha"`` need unbiased compressors.
    downlink : str, optional
        A compressor or rules for the models that clients are sent, schedules too, as
        in ``"ecsq(nmse=0.1)"``: clients follow a common model by its compressed
        changes, see `Downlink`. ``None`` or ``"identity()"`` sends models as they are.
    exact : sequence of str
        Patterns of arrays that travel exactly, besides integer arrays and running
        statistics.
    scale_key : str
        The number under this key in the train config is the local step: updates are
        remembered in its units, so that it may change from round to round.
    linear : bool, optional
        Says whether ``inner`` only uses the weighted mean of the replies. By default
        known of Flower's own strategies and assumed false for others.
    seed : int
        Of sampling and of all random draws of compressors.
    node_timeout : float
        Seconds to wait for enough nodes before the training ends with an error.
    checkpoint : str or Path, optional
        A file that is replaced after every round, from which ``start(resume=...)``
        goes on. Its size is that of the model, the inner strategy's arrays, and twice
        the model for feedbacks with a sum of memories, or for a downlink.
    memory : str
        What the server keeps of feedbacks with a sum of memories: ``"sum"`` (default)
        that alone, whatever the number of clients, or ``"per-node"`` also every
        client's vectors, on disk. Then the mean is over those who answered, which suits
        sampled clients better; a lost memory costs its client alone; and strategies
        that look at single replies may be paired with such a feedback.
    memory_dir : str or Path, optional
        Where those files lie; beside the checkpoint, or a temporary folder.
    evict_after : int, optional
        A client that was not heard of for so many rounds is taken out of the sum. In
        mode ``"sum"`` all memories start anew then.
    max_norm : float, optional
        Replies whose norm for each example is more than so many times the median of the
        last ones are left out, logged and counted in the ledger; so are those whose
        exact arrays have changed by so much more than others'. Where the uplink has
        sketches, these tell their norm only after they are summed, and are not judged.
        ``None`` leaves out only what is absurd by itself.

    Raises
    ------
    SpecError, SettingError
        If ``uplink``, ``feedback`` or ``downlink`` cannot be understood, or do not go
        with ``inner``; from ``start``, if they do not go with each other or the model.
    """

    def __init__(
        self,
        inner: Strategy,
        uplink: str | None = "topk(fraction=0.05) >> natural()",
        feedback: str = "ef",
        *,
        downlink: str | None = None,
        exact: Sequence[str] = (),
        scale_key: str = "lr",
        linear: bool | None = None,
        seed: int = 0,
        node_timeout: float = 600.0,
        checkpoint: str | Path | None = None,
        memory: MemoryMode = "sum",
        memory_dir: str | Path | None = None,
        evict_after: int | None = None,
        max_norm: float | None = 1000.0,
    ) -> None:
        self.inner = inner
        self.feedback = feedbacks.named(feedback)
        self.memory = memory
        self.memory_dir = memory_folder(memory, memory_dir, checkpoint)
        self.evict_after = evict_after
        self.max_norm = max_norm
        self._limit = NormLimit(max_norm)
        self._exact_limit = ExactLimit(max_norm)
        self.scale_key = scale_key
        self.seed = seed
        self.node_timeout = node_timeout
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.linear = inners.is_linear(inner) if linear is None else linear
        self.uplink: Uplink | None = None
        if uplink is not None:
            codec = parse_scheduled(uplink)
            patterns = patterns_of("Compressed", exact)
            for text in codec.texts:
                inners.check_clipping(inner, self.feedback, ModelCodec(text))
            per_node = memory == "per-node"
            inners.check(inner, self.feedback, linear=self.linear, per_node=per_node)
            key = inners.weight_key(inner)
            self.uplink = Uplink(codec, str(self.feedback), key, patterns)
        self.downlink = downlink_text.read(downlink, has_uplink=uplink is not None)
        self._talk: Conversation | None = None
        self._save: Callable[[], None] | None = None
        self._initial = ArrayRecord()
        self._arrays = ArrayRecord()
        self._scale = 1.0
        self._patience = Patience()

    @property
    def ledger(self) -> Ledger:
        """Bytes and times of the training that was started last."""
        return Ledger() if self._talk is None else self._talk.ledger

    def summary(self) -> None:
        """Log what is sent, then the inner strategy's settings."""
        codec = "as the clients send it" if self.uplink is None else self.uplink.codec
        log(INFO, "\t├──> Uplink: %s", codec)
        log(INFO, "\t├──> Feedback: %s", self.feedback)
        log(INFO, "\t├──> Downlink: %s", self.downlink or "whole models")
        self.inner.summary()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        resume: str | Path | None = None,
        evict: Sequence[str] = (),
    ) -> Result:
        """Train; see ``flwr.serverapp.strategy.Strategy.start``.

        Every start is a training of its own, with empty memories and ledger, unless it
        resumes one. The metrics of each round also hold its bytes, see `Ledger.round`.

        Parameters
        ----------
        grid : Grid
            To the nodes.
        initial_arrays : ArrayRecord
            The model; when resuming, only its names, shapes and dtypes are used.
        num_rounds : int
            Number of the last round, those before a restart included.
        timeout : float
            Seconds to wait for the replies of a round.
        train_config, evaluate_config : ConfigRecord, optional
            Sent to the nodes.
        evaluate_fn : callable, optional
            Evaluates the model of a round on the server.
        resume : str or Path, optional
            A checkpoint to go on from: with the model, the clients' memories, the inner
            strategy's state and all metrics of the rounds before.
        evict : sequence of str
            Client keys to take out of the checkpoint's memories, as `evict` does.

        Raises
        ------
        ProtocolError
            If no client answers, three rounds in a row have no usable reply, or the
            checkpoint cannot be read.
        SettingError
            If the checkpoint is of another model, strategy or feedback.
        """
        feedback = self.feedback
        if self.uplink is not None:
            feedback = self.uplink.fitted(feedback, initial_arrays)
            self.uplink = replace(self.uplink, feedback=str(feedback))
        downlink = None
        if self.uplink is not None and self.downlink is not None:
            downlink_text.check(self.downlink, initial_arrays, self.uplink.exact)
            downlink = Downlink(self.downlink, self.uplink.exact, self.seed)
        dense_bytes = 4 * sum(prod(a.shape) for a in initial_arrays.values())
        self._initial = initial_arrays
        self._patience = Patience()
        self._limit = NormLimit(self.max_norm)
        self._exact_limit = ExactLimit(self.max_norm)
        path = None if resume is None else Path(resume)
        inner = InnerState(self.inner) if path or self.checkpoint else None
        if path is None or inner is None:
            book = new_book(feedback, self.memory_dir)
            training = Training(book, Progress(initial_arrays), downlink=downlink)
        else:
            training = Training.resumed(
                path, feedback, initial_arrays, inner, self.memory_dir, downlink
            )
        self._talk = Conversation(
            training.book,
            self.seed,
            timeout,
            dense_bytes,
            ledger=training.ledger,
            downlink=downlink,
        )
        plan = Plan(
            grid,
            num_rounds,
            timeout,
            train_config or ConfigRecord(),
            evaluate_config or ConfigRecord(),
            evaluate_fn,
        )
        log(INFO, "Compressed: starting with round %s", training.progress.round + 1)
        self.summary()

        def save() -> None:
            if self.checkpoint and inner:
                training.save(self.checkpoint, inner)
            training.book.settled()

        self._save = save
        self._take_out(evict)
        save()  # no ticket may ever be given twice
        return run_rounds(self, plan, training.progress, save)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the inner strategy choose nodes, and add the round's numbers."""
        self._arrays = arrays
        return self._configure(
            "train", self.inner.configure_train, server_round, arrays, config, grid
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the inner strategy choose nodes; memories are settled on the way."""
        configure = self.inner.configure_evaluate
        return self._configure(
            "evaluate", configure, server_round, arrays, config, grid
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Decode the replies and let the inner strategy average them.

        The round is a transaction: turns count as applied only if the inner strategy
        gives arrays.
        """
        talk = self._started()
        asked = talk.num_sent
        replies = list(replies)
        valid, errors = talk.match(server_round, replies, "train")
        if self.uplink is None:
            arrays, metrics = self.inner.aggregate_train(server_round, replies)
            return arrays, self._with_bytes(server_round, metrics)
        this = Round(
            server_round,
            self._arrays,
            self.uplink,
            self._scale,
            self._limit,
            self._exact_limit,
        )
        accepted = this.collect(talk.book, talk.ledger, valid, singly=not self.linear)
        private = inners.has_layer(self.inner, inners.PRIVATE)
        for error in errors if private else []:
            log(WARNING, "Compressed: a reply is an error: %s", error.error.reason)
        told = [] if private else errors
        if accepted and self.linear:
            arrays, metrics = this.average(self.inner, talk.book, accepted, told)
        elif accepted:
            arrays, metrics = this.pass_on(self.inner, accepted, told)
        elif private:
            arrays, metrics = None, None
        else:
            arrays, metrics = self.inner.aggregate_train(server_round, told)
        if arrays is None:
            talk.book.roll_back()
        else:
            talk.book.commit(server_round)
            if self.evict_after is not None and talk.book.feedback.has_share:
                oldest = server_round - self.evict_after
                self._take_out(talk.book.silent_since(oldest))
            arrays = reading.conformed(arrays, self._initial)
        # After a restart a whole round may have to be sent the whole model again.
        if asked and (accepted or not talk.num_behind):
            self._patience.count(
                usable=bool(accepted), answered=bool(valid), errors=errors
            )
        return arrays, self._with_bytes(server_round, metrics)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Leave out replies that would end the run, and delegate."""
        replies = list(replies)
        valid, errors = self._started().match(server_round, replies, "evaluate")
        if self.uplink is None:
            return self.inner.aggregate_evaluate(server_round, replies)
        messages = reading.usable_metrics(valid, self.uplink.weight_key)
        return self.inner.aggregate_evaluate(server_round, messages + errors)

    def evict(self, *clients: str) -> None:
        """Take clients out of the memories, for instance after a poisoned reply.

        To be called between two rounds, as in ``evaluate_fn``. They begin anew when
        they answer again. A checkpoint is written at once.

        Parameters
        ----------
        *clients : str
            Client keys, as in the ledger and the log.
        """
        self._take_out(clients)
        if clients and self._save is not None:
            self._save()

    def _take_out(self, clients: Sequence[str]) -> None:
        for client in clients:
            log(WARNING, "Compressed: the memory of %s is taken out", client)
        self._started().book.evict(clients)

    def _started(self) -> Conversation:
        if self._talk is None:
            msg = (
                "Compressed: its own start() was not called; it must be the outermost "
                "wrapper, as in Compressed(DifferentialPrivacy...(FedAvg()))"
            )
            raise ProtocolError(msg)
        return self._talk

    def _configure(
        self,
        purpose: Purpose,
        configure: Callable[..., Iterable[Message]],
        round_: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> list[Message]:
        talk = self._started()
        if self.uplink is None:
            messages = list(configure(round_, arrays, config, grid))
            return talk.sent(round_, messages, purpose)
        seen = sampling.OrderedGrid(
            grid, talk.directory, talk.book.fid, self.node_timeout
        )
        with sampling.seeded(self.seed, purpose, round_):
            messages = list(configure(round_, arrays, config, seen))
        code = TRAIN if purpose == "train" else EVALUATE
        if messages and code == TRAIN:
            self._scale = inners.scale_of(messages[0], self.scale_key)
        for message in messages:
            talk.attach(message, round_, code, self.uplink, self._scale)
        number = round_ - 1 if code == TRAIN else round_
        talk.compress(messages, number, arrays, seen.num_nodes)
        return talk.sent(round_, messages, purpose)

    def _with_bytes(
        self, round_: int, metrics: MetricRecord | None
    ) -> MetricRecord | None:
        """Add the ledger's numbers of the round to its metrics."""
        if metrics is None:
            return None
        totals = self._started().ledger.round(round_)
        return MetricRecord(dict(metrics.items()) | totals)
