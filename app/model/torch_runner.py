"""The runner in torch: for CUDA, and for a CPU where the kernel cannot be built.

Knows rows, pages and how a step is launched; the arithmetic is the model's. One thread calls it.

On CUDA a step always has the same shapes: `num_slots` rows, those not in use parked on a page of their own, and the
context rounded up to one of a few lengths. So the step is captured once for each length in a CUDA graph, sampling
included, and costs one launch. On a CPU it runs eagerly, with the rows in use and the pages they have.

The part for CUDA has not run on a GPU yet: all but the capture is tested on a CPU with `fixed_shapes`;
`benchmarks/cuda.py` checks and measures it where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from app.model.draws import uniforms
from app.model.torch_codec import CandleCodec
from app.model.torch_model import STEP_INTEGERS, STEP_REALS, Step, StepInputs, TorchModel
from app.model.weights import Checkpoint
from app.pages import pages_for
from app.scheduler import Scheduler
from app.work import Float32, Float64, Int16, Int32, Row

SHORTEST_BUCKET = 4
"""Pages of the shortest context with a graph of its own; each further one is twice as long."""
WARM_UP_STEPS = 3
"""Steps before the capture of a graph, in which libraries choose kernels and take their workspaces."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TorchRunner:
    """See `app.work.Runner` for the promises of each method.

    `dtype` stores the model's matrices and cache; the tokenizer is float32 always. A row's logits can differ in the
    last bits with the rows beside it, since libraries choose their order of additions by shape.
    """

    @torch.inference_mode()
    def __init__(
        self, checkpoint: Checkpoint, *, num_slots: int, device: torch.device, dtype: str = "float32",
        fixed_shapes: bool = False,
    ) -> None:  # fmt: skip
        self.num_slots = num_slots
        self.max_context = checkpoint.max_context
        self.device = device.type
        self._device = device
        num_pages, full = Scheduler.pages_needed(num_slots, self.max_context), pages_for(self.max_context)
        self._scratch = np.arange(num_pages, num_pages + full, dtype=np.int32)  # of rolled windows and embeddings
        self._parked = num_pages + full  # the page that rows not in use write to
        self._codec = CandleCodec(checkpoint.tokenizer, self.max_context, device)
        self._model = TorchModel(checkpoint.model, self._parked + 1, num_slots * full, device, DTYPES[dtype])
        self._host, self._inputs = self._make_inputs(full)
        self._buckets = context_buckets(full)
        self._fixed = fixed_shapes or device.type == "cuda"
        self._graphs = self._capture_all() if device.type == "cuda" else {}

    @torch.inference_mode()
    def encode(self, history: Float32) -> Int32:
        return self._codec.encode(history)

    @torch.inference_mode()
    def detokenise(self, history: Int32, generated: Int32) -> Float32:
        return self._codec.decode(history, generated)

    @torch.inference_mode()
    def prefill(self, tokens: Int32, stamps: Int16, pages: Sequence[int]) -> None:
        if len(tokens):
            self._prefill(tokens, stamps, np.asarray(pages))

    @torch.inference_mode()
    def embed(self, history: Float32, stamps: Int16) -> Float32:
        tokens = self._codec.encode(history)[-self.max_context :]
        context = self._prefill(tokens, stamps[len(stamps) - len(tokens) :], self._scratch)
        vector: Float32 = context.mean(0).cpu().numpy()
        return vector

    @torch.inference_mode()
    def decode(self, rows: Sequence[Row], positions: Sequence[int], logits: Float32 | None = None) -> None:
        """As promised; `logits`, if given, is filled with the s1 logits of all rows, then their s2 logits."""
        self._fill(rows, positions)
        made = self._step(len(rows), pages_for(max(positions) + 1))
        drawn = made.tokens[: len(rows)].cpu().numpy()
        for row, position, tokens in zip(rows, positions, drawn, strict=True):
            row.tokens[position + 1] = tokens
        if logits is not None:
            parts = [part[: len(rows)].flatten() for part in (made.s1_logits, made.s2_logits)]
            logits[:] = torch.cat(parts).cpu().numpy()

    def roll(self, row: Row, position: int) -> None:
        start = position - self.max_context + 1
        window = Row(row.tokens[start:], row.stamps[start:], row.draws, self._scratch, row.first - start, row.sampling)
        last = self.max_context - 1
        self.prefill(window.tokens[:last], window.stamps[:last], self._scratch.tolist())
        self.decode([window], [last])

    @torch.inference_mode()
    def copy_page(self, source: int, target: int) -> None:
        self._model.copy_page(source, target)

    def draws(self, seed: int, path: int, steps: int) -> Float64:
        return uniforms(seed, path, steps)

    def _prefill(self, tokens: Int32, stamps: Int16, pages: Int32) -> Tensor:
        arrays = (tokens, stamps, pages)
        return self._model.prefill(*(torch.tensor(each, dtype=torch.int64, device=self._device) for each in arrays))

    def _make_inputs(self, num_pages: int) -> tuple[StepInputs, StepInputs]:
        """The step's inputs as the host writes them and as the device reads them: on a CPU the same memory."""
        cuda = self._device.type == "cuda"
        integers = torch.full((self.num_slots, STEP_INTEGERS + num_pages), self._parked, pin_memory=cuda)
        reals = torch.ones(self.num_slots, STEP_REALS, dtype=torch.float64, pin_memory=cuda)
        host = StepInputs(integers, reals)
        self._park(host)
        return host, StepInputs(*(part.to(self._device) for part in host))

    def _park(self, host: StepInputs) -> None:
        """Make every row one that reads and writes nobody's page."""
        host.integers[:, :STEP_INTEGERS] = 0
        host.integers[:, STEP_INTEGERS:] = self._parked
        host.reals[:, :2] = 1.0
        host.reals[:, 2:] = 0.0

    def _fill(self, rows: Sequence[Row], positions: Sequence[int]) -> None:
        self._park(self._host)
        integers, reals = self._host.integers.numpy(), self._host.reals.numpy()
        for into, real, row, position in zip(integers, reals, rows, positions, strict=False):
            into[:2] = row.tokens[position]
            into[2 : STEP_INTEGERS - 2] = row.stamps[position]
            into[STEP_INTEGERS - 2] = position
            into[STEP_INTEGERS - 1] = row.sampling.top_k
            into[STEP_INTEGERS : STEP_INTEGERS + len(row.pages)] = row.pages
            real[0], real[1] = row.sampling.temperature, row.sampling.top_p
            real[2:] = row.draws[position - row.first]

    def _step(self, num_rows: int, num_pages: int) -> Step:
        """One step of the rows that `_fill` wrote, the longest of which has `num_pages` pages of context."""
        for device, host in zip(self._inputs, self._host, strict=True):
            device.copy_(host, non_blocking=True)
        if not self._fixed:
            return self._model.step(self._inputs.cut(num_rows, num_pages))
        bucket = next(pages for pages in self._buckets if pages >= num_pages)
        if bucket in self._graphs:
            return self._graphs[bucket]()
        return self._model.step(self._inputs.cut(self.num_slots, bucket))

    def _capture_all(self) -> dict[int, Callable[[], Step]]:
        """A graph of the step for each length of context; to call one replays it. All rows are parked meanwhile.

        The longest comes first, since the others then find room in its memory.
        """
        graphs: dict[int, Callable[[], Step]] = {}
        pool = torch.cuda.graph_pool_handle()
        for num_pages in reversed(self._buckets):
            step = partial(self._model.step, self._inputs.cut(self.num_slots, num_pages))
            _warm_up(step, self._device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                made = step()
            graphs[num_pages] = partial(_replay, graph, made)
        return graphs


def _warm_up(step: Callable[[], Step], device: torch.device) -> None:
    """Run the step on a stream of its own, as capture wants it."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_STEPS):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)


def _replay(graph: torch.cuda.CUDAGraph, made: Step) -> Step:
    graph.replay()
    return made


def context_buckets(num_pages: int) -> list[int]:
    """Lengths of context, in pages, that get a graph each: doubling, up to all."""
    buckets = []
    pages = SHORTEST_BUCKET
    while pages < num_pages:
        buckets.append(pages)
        pages *= 2
    return [*buckets, num_pages]
