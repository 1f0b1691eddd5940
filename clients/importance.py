"""Importance weights on a client: when they are due, solve for them.

The weights of a tensor are part of its compressor's state, which is kept with the
memory: they start from the last solution, and are lost and restored with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from flwr.app import Context, Message
from torch import Tensor

from fl_lowrank.errors import SettingError
from fl_lowrank.importance import solve
from fl_lowrank.types import Importance, State

#: The user's function: parameters, the request and the context, in; gradients, out.
GradientFn: TypeAlias = Callable[
    [dict[str, Tensor], Message, Context], Mapping[str, Tensor]
]


@dataclass
class Weighing:
    """Renews the importance weights of one turn.

    Attributes
    ----------
    needs : Mapping
        Tensors that need weights, and where the state holds them.
    gradient : callable, optional
        The user's.
    message, context
        Of the request, for the user's function.
    num_gradients : int
        How many were taken.

    Raises
    ------
    SettingError
        If weights are needed and there is no function to solve for them.
    """

    needs: Mapping[str, Importance]
    gradient: GradientFn | None
    message: Message
    context: Context
    num_gradients: int = 0

    def __post_init__(self) -> None:
        if self.needs and self.gradient is None:
            msg = (
                f"{next(iter(self.needs))!r} is to be compressed by importance "
                "weights, which need the gradient of the local loss; write "
                "CompressionMod(gradient=fn) in the ClientApp's mods, with "
                "fn(parameters, message, context) giving the gradients by name"
            )
            raise SettingError(msg)

    def _gradient_at(self, parameters: dict[str, Tensor]) -> Mapping[str, Tensor]:
        assert self.gradient is not None
        return self.gradient(parameters, self.message, self.context)

    def renew(
        self,
        model: Mapping[str, Tensor],
        factor: float,
        state: State,
        to_send: Mapping[str, Tensor],
        known: Mapping[str, Tensor],
    ) -> State:
        """Give the state with weights that are not due.

        They minimise the loss after the step that will be taken: ``known`` and what
        is decoded from ``to_send``. All tensors that are due share the gradients;
        those that need no weights, or have them, take the whole step.

        Parameters
        ----------
        model : Mapping
            As received what is compressed, as trained the rest.
        factor : float
            Weighted units in one unit of the model.
        state : dict
            Of the compressors.
        to_send, known : Mapping
            What is compressed now, and what the server has of the update already, in
            weighted units.

        Raises
        ------
        InputError
            If the function gives no usable gradients.
        """
        due = {n: w for n, w in self.needs.items() if _is_due(state, w, to_send[n])}
        if not due:
            return state
        at = dict(model)
        for name, value in to_send.items():
            at[name] = at[name] + known.get(name, 0.0) / factor
            if name not in due:
                at[name] = at[name] + value / factor
        start = {
            name: state[where.weights].reshape(to_send[name].shape)
            for name, where in due.items()
            if where.weights in state
            and state[where.weights].numel() == to_send[name].numel()
        }
        found = solve(
            at,
            {name: to_send[name] / factor for name in due},
            self._gradient_at,
            start=start,
            num_gradients=max(where.steps for where in due.values()),
        )
        self.num_gradients += found.num_gradients
        after = dict(state)
        for name, where in due.items():
            after[where.weights] = found.weights[name].reshape(-1).to(torch.float32)
            after[where.age] = torch.zeros(1)
        return after


def _is_due(state: State, where: Importance, x: Tensor) -> bool:
    """Whether there are no weights for this tensor, or their time is over."""
    weights, age = state.get(where.weights), state.get(where.age)
    fits = weights is not None and weights.numel() == x.numel()
    return not fits or age is None or not bool(age.any())
