"""A training that stands still after each round, so that others lead it on."""

from __future__ import annotations

from queue import SimpleQueue
from threading import Thread

from .scene import Scene, ServerKilled, Stage, play, set_up


class Curtain(Exception):
    """Ends a training that stands still."""


class Stepwise:
    """Plays a scene round by round.

    The strategy's ``start`` returns only at the end of a training, so it runs in a
    thread of its own; of that and its owner only one runs at any time.

    Parameters
    ----------
    scene : Scene
        Without quiet rounds; its number of rounds is the largest possible one.
    stage : Stage
        Of that scene.
    """

    def __init__(self, scene: Scene, stage: Stage | None = None) -> None:
        self.stage = set_up(scene) if stage is None else stage
        self._orders: SimpleQueue[Exception | None] = SimpleQueue()
        self._stops: SimpleQueue[BaseException | None] = SimpleQueue()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()
        self._wait()

    def go_on(self, *, older: int | None = None) -> None:
        """Play to the end of the next round, whatever is broken.

        Parameters
        ----------
        older : int, optional
            Before that the server is killed, and goes on from a checkpoint that is by
            so many rounds older than the newest.
        """
        self._orders.put(None if older is None else ServerKilled(older))
        self._wait()

    def close(self) -> None:
        """End the training where it stands."""
        self._orders.put(Curtain())
        self._thread.join()

    def _wait(self) -> None:
        error = self._stops.get()
        if error is not None:
            raise error

    def _run(self) -> None:
        try:
            play(self.stage.scene, self._stand_still, self.stage, to_the_end=True)
        except Curtain:
            return
        except BaseException as error:
            self._stops.put(error)

    def _stand_still(self, stage: Stage, round_: int) -> None:
        self._stops.put(None)
        order = self._orders.get()
        if order is not None:
            raise order
