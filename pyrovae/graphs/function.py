"""A function of tensors as a graph: captured once, run by torch's own functions or by compiled code."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyrovae.graphs.capture import capture, trace
from pyrovae.graphs.fewer import fewer_instructions
from pyrovae.graphs.half import half_graph
from pyrovae.graphs.inductor import compile_graph
from pyrovae.graphs.keeping import cuda_devices, kept
from pyrovae.graphs.nodes import copied
from pyrovae.graphs.running import biases_apart, exact_expm1, matrix_first, noise_first, reuse
from pyrovae.graphs.simplify import prepare

__all__ = ["Function"]

Then = Callable[[list[Tensor], Tensor | None, list[Tensor]], list[Tensor]]


class Function:
    """The same results as a function's on the same noise: bit for bit, until its graph is rounded or compiled.

    Args:
        function: of data; further tensors it may reach by other ways.
        tensors: those it reaches that are the same objects at every call, such as parameters; all others stand in the
            graph by reference as well.
        data: an example; shapes and types are fixed.
        half: whether :meth:`__call__` does matrix products in bfloat16.

    Raises:
        Refused: if the function cannot be captured.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[Tensor]],
        tensors: Sequence[Tensor],
        data: Sequence[Tensor],
        *,
        half: bool = False,
    ) -> None:
        self.devices = cuda_devices([*tensors, *data])
        # distinct objects, although one tensor may be given twice
        example = [d.detach().contiguous() for d in data]
        graph = capture(lambda *inputs: function(*inputs[len(tensors) :]), [*tensors, *example])
        graph, self.tensors, self.written, self.decides = prepare(graph, tensors)
        self._kinds = [_kind(tensor) for tensor in self.tensors]
        self._exact = self._run = reuse(copied(graph)).forward
        self._graph = graph
        self._places: list[int | None] = []
        self._more: list[Tensor] = []
        if half:
            with kept(self.written, self.devices):
                self._graph = half_graph(graph, self._inputs(example))
            self._run = reuse(copied(self._graph)).forward

    def compile(self, data: Sequence[Tensor], then: Then | None = None, further: Sequence[Tensor] = ()) -> None:
        """Let calls run compiled code from now on.

        Args:
            data: an example.
            then: with what the code goes on: called with the results, with a boolean scalar that is false where a
                branch on data comes out differently (None where nothing branches), and with the further tensors, which
                it may write into. What it returns are the results of a call from then on.
            further: tensors for that, the same objects at every call unless :meth:`exchange` says otherwise.

        Raises:
            CompilerFailed: in the compiler's words.
        """
        graph, inputs = copied(self._graph), self._inputs(data)
        if then is not None:
            place = {id(tensor): i for i, tensor in enumerate(self.tensors)}
            self._places = [place.get(id(tensor)) for tensor in further]
            self.exchange(further)
            inputs += self._more
            with kept((), self.devices):
                graph = self._continued(graph, then, [t.detach().clone() for t in inputs])
        graph = fewer_instructions(exact_expm1(matrix_first(biases_apart(graph))))
        draws = noise_first(graph)
        with kept(self.written, self.devices):
            run = compile_graph(graph, [*inputs, *(draw() for draw in draws)])
        self._run = (lambda *inputs: run(*inputs, *[draw() for draw in draws])) if draws else run

    def exchange(self, further: Sequence[Tensor]) -> None:
        """Other tensors of the same kinds in the place of :meth:`compile`'s further ones."""
        self._more = [tensor for tensor, place in zip(further, self._places, strict=True) if place is None]

    def _continued(self, graph: GraphModule, then: Then, inputs: Sequence[Tensor]) -> GraphModule:
        """The graph and what follows it, as one."""
        own = len(inputs) - len(self._more)

        def program(*inputs: Tensor) -> list[Tensor]:
            results, more = graph(*inputs[:own]), iter(inputs[own:])
            given = [next(more) if place is None else inputs[place] for place in self._places]
            if not self.decides:
                return then(results, None, given)
            *results, decision = results
            return [*then(results, decision, given), decision]

        return trace(program, inputs)

    def __call__(self, *data: Tensor, exact: bool = False) -> list[Tensor] | None:
        """The function's results without gradients.

        Args:
            *data: of the example's shapes and types.
            exact: by the graph as it was captured, whatever is run otherwise.

        Returns:
            The results, or None where a branch on data comes out differently than when it was captured; noise is then
            not drawn, and nothing is written.
        """
        before = self._state() if self.decides else None
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            inputs = self._inputs(data)
            outputs = self._exact(*inputs) if exact else self._run(*inputs, *self._more)
        if before is None:
            return outputs
        *results, decision = outputs
        if decision:
            return results
        self._restore(*before)
        return None

    def unchanged(self) -> bool:
        """Whether tensors are as the graph was made for them: types, shapes, strides, frozen or not."""
        return all(_kind(tensor) == kind for tensor, kind in zip(self.tensors, self._kinds, strict=True))

    def _inputs(self, data: Sequence[Tensor]) -> list[Tensor]:
        return [*self.tensors, *(d.contiguous() for d in data)]

    def _state(self) -> tuple[list[Tensor], list[Tensor]]:
        generators = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self.devices)]
        return generators, [w.detach().clone() for w in self.written]

    def _restore(self, generators: list[Tensor], written: list[Tensor]) -> None:
        torch.set_rng_state(generators[0])
        for device, state in zip(self.devices, generators[1:], strict=True):
            torch.cuda.set_rng_state(state, device)
        for tensor, before in zip(self.written, written, strict=True):
            tensor.detach().copy_(before)


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.requires_grad
