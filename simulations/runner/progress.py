"""What the user sees while runs go on."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..results import Round

OnRound = Callable[[Round], None]

_LINES_WITHOUT_TERMINAL = 10


class Display:
    """A progress bar in a terminal, a few lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("round {task.completed}/{task.total}"),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def track(self, name: str, num_rounds: int) -> RunDisplay:
        """Show one more run.

        Parameters
        ----------
        name : str
            The run's name.
        num_rounds : int
            How many rounds it has.

        Returns
        -------
        RunDisplay
            To be called with each round.
        """
        return RunDisplay(self._console, self._progress, name, num_rounds)


class RunDisplay:
    """Shows the rounds of one run; call it with each."""

    def __init__(
        self, console: Console, progress: Progress, name: str, num_rounds: int
    ) -> None:
        self._console = console
        self._progress = progress
        self._name = name
        self._num_rounds = num_rounds
        self._bytes_up = 0
        self._accuracy = 0.0
        self._task = progress.add_task(name, total=num_rounds, numbers="starting")

    def __call__(self, entry: Round) -> None:
        """Show a round.

        Parameters
        ----------
        entry : Round
            A line of rounds.jsonl.
        """
        number = entry["round"]
        self._bytes_up += entry["bytes_up"]
        self._accuracy = entry.get("accuracy", self._accuracy)  # not in every round
        numbers = (
            f"accuracy {self._accuracy:.3f}  sent up {self._bytes_up / 1e6:.2f} MB"
        )
        self._progress.update(self._task, completed=number, numbers=numbers)
        every = max(1, self._num_rounds // _LINES_WITHOUT_TERMINAL)
        if not self._console.is_terminal and number % every == 0:
            self._console.print(
                f"{self._name}: round {number}/{self._num_rounds}  {numbers}",
                soft_wrap=True,
            )
