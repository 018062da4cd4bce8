"""Device, precision, processes, compilation, random streams, and the one way to take an optimiser step."""

import copy
import hashlib
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import torch.utils._pytree as trees
from torch import Tensor, nn
from torch.optim import Optimizer

from dfkd.engine.joint import join
from dfkd.engine.work import wait
from dfkd.errors import UserError
from dfkd.imports import first_line
from dfkd.types import Scalar

__all__ = ["Runtime", "gradients_on"]

P = ParamSpec("P")
R = TypeVar("R")

MEETING = 300.0  # seconds, at most, until all processes are there
PEERS = ("gloo", "peer", "NCCL", "ProcessGroup", "Timed out", "timed out")  # of errors that come of another process
MODES = ("default", "reduce-overhead", "max-autotune")


@contextmanager
def gradients_on() -> Iterator[None]:
    """Gradients are computed here, whatever the caller has switched off (``no_grad``, ``inference_mode``)."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


class Runtime:
    """Where and how a run computes: plain torch in one process, Lightning Fabric for several.

    Two random streams, both checkpointed. ``generator`` is this process's own (noise, labels, augmentation, draws from
    the pool). Torch's default stream is the same in every process: modules initialised from it are equal everywhere.

    Args:
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        devices: processes on this machine; more than one needs a launcher (``torchrun``) or :meth:`launch`. Under a
            launcher, 1 stands for as many as it started.
        precision: ``"fp32"`` or ``"bf16"`` (networks under autocast; statistics, losses and weights stay float32).
        compile: compile objectives, losses and generators with ``torch.compile``.
        channels_last: channels-last convolutions.
        seed: of both streams.
        backend: of ``torch.compile``.
        compile_mode: of ``torch.compile``; ``"reduce-overhead"`` replays CUDA graphs.
        sync_bn: BatchNorm layers in train mode, and the losses on BatchNorm statistics, see the joint batch of all
            processes instead of each its own.
        timeout: seconds, with several processes, that one waits for the others before the run ends; None: what
            ``DFKD_TIMEOUT`` says, or 1,800. All have to be there within 300 seconds, or ``timeout`` if that is less.

    Raises:
        UserError: a value that cannot be, a device that is not there, several processes without Lightning Fabric.
    """

    def __init__(
        self,
        device: str = "auto",
        devices: int = 1,
        precision: str = "fp32",
        compile: bool = False,
        channels_last: bool = True,
        seed: int = 0,
        backend: str = "inductor",
        compile_mode: str = "default",
        sync_bn: bool = False,
        timeout: float | None = None,
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise UserError(f"runtime needs precision fp32 or bf16, got {precision!r}; choose one of them")
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(f"runtime needs device to be one of auto, cpu, cuda, got {device!r}; choose one of them")
        if devices < 1:
            raise UserError(f"runtime needs at least 1 process, got devices={devices}; raise devices")
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "runtime needs a CUDA device, got a machine (or a torch build) without one; use device=cpu or run "
                "`dfkd doctor`"
            )
        if compile_mode not in MODES:
            raise UserError(
                f"runtime needs compile_mode to be one of {', '.join(MODES)}, got {compile_mode!r}; choose one of them"
            )
        if sync_bn and compile and _many(devices):
            raise UserError(
                "runtime needs sync_bn or compile, got both with several processes; switch one of them off (a "
                "compiled objective cannot wait for other processes)"
            )
        accelerator = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.timeout = _timeout(timeout)
        self.fabric = _fabric(accelerator, devices, min(self.timeout, MEETING)) if _many(devices) else None
        self.device = torch.device("cuda", 0) if accelerator == "cuda" else torch.device("cpu")
        if self.fabric is not None:
            self.device = self.fabric.device
        self.precision, self.compiled, self.channels_last = precision, compile, channels_last
        self.backend, self.compile_mode, self.seed, self.sync_bn = backend, compile_mode, _whole_seed(seed), sync_bn
        self._compiled: dict[Any, Any] = {}
        self._joined = False
        self._graphs_before = _graphs() if compile else 0

    def launch(self) -> "Runtime":
        """Start or join the other processes, if any, and seed both streams. Call once, before anything is drawn."""
        if self.fabric is not None and not self._joined:
            self._meet()
            self._joined, self.device = True, self.fabric.device
        self.generator = torch.Generator(self.device).manual_seed(
            (self.seed * 1_000_003 + 7919 * self.rank + 1) % 2**63
        )
        torch.manual_seed(self.seed)
        return self

    def _meet(self) -> None:
        """Start or find the other processes; from then on they may take ``timeout`` seconds between two answers."""
        fabric: Any = self.fabric
        try:
            fabric.launch()
        except RuntimeError as error:
            if not self.comes_of_lost_process(error):
                raise
            raise UserError(
                f"runtime needs {self.world} processes to meet within {min(self.timeout, MEETING):g} seconds, got "
                f"{first_line(error)[:200]!r}; start all of them, and check MASTER_ADDR and MASTER_PORT"
            ) from error
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=self.timeout))

    def comes_of_lost_process(self, error: BaseException) -> bool:
        """Does ``error`` come of another process, which is gone or did not answer in time?"""
        if self.world == 1 or not isinstance(error, RuntimeError):
            return False
        return isinstance(error, torch.distributed.DistError) or any(word in str(error) for word in PEERS)

    def explain(self, error: BaseException, folder: Path | None) -> UserError:
        """The sentence for an error that :meth:`comes_of_lost_process` knows."""
        again = "start all of them again" if folder is None else f"go on with `dfkd distill --resume {folder}`"
        return UserError(
            f"the run needs all of its {self.world} processes, got no answer from another one "
            f"({first_line(error)[:200]}); {again} in as many processes"
        )

    @property
    def rank(self) -> int:
        """This process's number."""
        return 0 if self.fabric is None else self.fabric.global_rank

    @property
    def world(self) -> int:
        """How many processes work together."""
        return 1 if self.fabric is None else self.fabric.world_size

    @property
    def joint(self) -> bool:
        """BatchNorm statistics are those of all processes' batches together."""
        return self.sync_bn and self.world > 1

    @property
    def graphs(self) -> int:
        """Graphs compiled in this program since this runtime was made: it should not grow after the first rounds."""
        return _graphs() - self._graphs_before if self.compiled else 0

    def place(self, module: nn.Module) -> nn.Module:
        """``module`` on the device, convolutions in the chosen memory format."""
        module = join(module.to(self.device)) if self.joint else module.to(self.device)
        return module.to(memory_format=torch.channels_last) if self.channels_last else module  # type: ignore[call-overload]

    def autocast(self) -> torch.autocast:
        """Precision of networks that no probe wraps (generators)."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def compile(self, function: Callable[P, R]) -> Callable[P, R]:
        """``function`` compiled as one graph, or as it is where compilation is off."""
        if not self.compiled:
            return function
        if function in self._compiled:
            return self._compiled[function]
        mode = None if self.compile_mode == "default" else self.compile_mode
        compiled: Any = torch.compile(function, fullgraph=True, dynamic=False, backend=self.backend, mode=mode)
        # Every run in a program adds its graphs to those of the same function; the usual limit is 8, then an error.
        changes: dict[str, Any] = {"recompile_limit": 64}
        if hasattr(torch._dynamo.config, "trace_autograd_ops"):
            # Grad-CAM differentiates inside an objective: without this it would end the graph there.
            changes["trace_autograd_ops"] = True
        compiled = torch._dynamo.config.patch(**changes)(compiled)
        if mode is not None and self.device.type == "cuda":
            compiled = _copying_outputs(compiled)
        if getattr(function, "__closure__", None) is None:  # a closure would keep a finished run's pool alive
            self._compiled[function] = compiled
        return compiled

    def without_compiler(self) -> "Runtime":
        """The same device, processes and random streams, and nothing is compiled."""
        copied = copy.copy(self)
        copied.compiled = False
        return copied

    def step(
        self, loss: Scalar, *optimizers: Optimizer, private: Sequence[Optimizer] = (), clip: float | None = None
    ) -> None:
        """One step of every optimiser on ``loss``.

        Only the parameters these optimisers own are differentiated, so nothing leaks into teacher or student; one
        that ``loss`` does not depend on gets no gradient and stays. Gradients of ``optimizers`` are averaged over
        processes in one collective; those of ``private`` (pixels, latent codes) stay local. ``clip`` bounds the joint
        norm of the shared gradients.
        """
        shared = [p for optimizer in optimizers for p in _parameters(optimizer)]
        local = [p for optimizer in private for p in _parameters(optimizer)]
        grads = torch.autograd.grad(loss, [*shared, *local], allow_unused=True)
        common = self.average([grad for grad in grads[: len(shared)] if grad is not None])
        if clip is not None:
            common = _clip(common, clip)
        queue = iter(common)
        for i, (parameter, grad) in enumerate(zip([*shared, *local], grads, strict=True)):
            if grad is not None:
                parameter.grad = _laid_out(next(queue) if i < len(shared) else grad, parameter)
        for optimizer in (*optimizers, *private):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def average(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Mean over processes of every tensor, in one collective."""
        if self.world == 1 or not tensors:
            return list(tensors)
        flat = torch.cat([t.reshape(-1) for t in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.world
        parts = flat.split([t.numel() for t in tensors])
        return [part.view(t.shape).to(t.dtype) for part, t in zip(parts, tensors, strict=True)]

    @torch.no_grad()
    def share(self, module: nn.Module) -> None:
        """Give every process the weights and buffers process 0 has."""
        if self.world == 1:
            return
        for tensor in (*module.parameters(), *module.buffers()):
            flat = tensor.detach().contiguous().clone()
            torch.distributed.broadcast(flat, src=0)
            tensor.copy_(flat)

    @torch.no_grad()
    def level(self, module: nn.Module) -> None:
        """Replace floating-point buffers (running statistics) by their mean over processes: each saw other images."""
        buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        for buffer, mean in zip(buffers, self.average(buffers), strict=True):
            if mean is not buffer:
                buffer.copy_(mean)

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over processes."""
        if self.world > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait for the other processes."""
        if self.fabric is not None and self.world > 1:
            self.fabric.barrier()

    def wait(self) -> None:
        """Wait until the device has done all it was asked to: before a clock is read, never in an inner loop."""
        wait(self.device)

    def streams(self) -> dict[str, Any]:
        """The state of every random stream, for a checkpoint."""
        state: dict[str, Any] = {"own": self.generator.get_state(), "default": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def restore_streams(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`streams`.

        The state of a stream says nothing to another kind of device: where that has changed, the streams of the device
        are seeded from what was saved, which tells seeds, ranks and rounds apart.
        """
        torch.set_rng_state(state["default"])
        if ("cuda" in state) != (self.device.type == "cuda"):
            self.generator.manual_seed(_seed_from(state["own"]))
            if self.device.type == "cuda":
                with torch.cuda.device(self.device):
                    torch.cuda.manual_seed(_seed_from(state["default"]))
            return
        self.generator.set_state(state["own"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)


def _seed_from(state: Tensor) -> int:
    """A seed made of a stream's state: the same for the same state, another for another."""
    return int.from_bytes(hashlib.sha256(state.numpy().tobytes()).digest()[:8], "big") % 2**63


def _whole_seed(seed: object) -> int:
    """A seed as Python's own integer, whose products do not overflow."""
    try:
        return operator.index(seed)  # type: ignore[arg-type]
    except TypeError as error:
        raise UserError(f"runtime needs seed to be a whole number, got {seed!r}; change seed") from error


def _many(devices: int) -> bool:
    return devices > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1


def _timeout(configured: float | None) -> float:
    value = os.environ.get("DFKD_TIMEOUT", "1800") if configured is None else configured
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 10**8:
        raise UserError(f"runtime needs a timeout of more than 0 seconds, got {value!r}; set DFKD_TIMEOUT, or unset it")
    return seconds


def _fabric(accelerator: str, devices: int, timeout: float) -> Any:
    """Lightning Fabric, which only several processes need. A launcher knows best how many there are, and where."""
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy
    except ImportError as error:
        raise UserError(
            "runtime needs Lightning Fabric for several processes, got a Python without it; run `pip install "
            "lightning-fabric`, or use one process"
        ) from error
    world = int(os.environ.get("WORLD_SIZE", devices))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", devices))
    if devices not in (1, local_world):
        raise UserError(
            f"runtime needs as many processes as the launcher started on this machine ({local_world}), got "
            f"devices={devices}; give both the same number"
        )
    strategy = DDPStrategy(timeout=timedelta(seconds=timeout))
    return Fabric(
        accelerator=accelerator, devices=local_world, num_nodes=max(1, world // local_world), strategy=strategy
    )


def _graphs() -> int:
    """Graphs that torch.compile has made in this program. Loads the compiler."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _copying_outputs(function: Callable[P, R]) -> Callable[P, R]:
    """Outputs of a CUDA graph are overwritten by its next replay: return copies, which stay what they are."""

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        outputs: R = trees.tree_map_only(Tensor, torch.clone, function(*args, **kwargs))
        return outputs

    return call


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _clip(grads: Sequence[Tensor], clip: float) -> list[Tensor]:
    # Not in place: autograd may return one tensor as the gradient of two parameters.
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads]))
    scale = (clip / (norm + 1e-6)).clamp(max=1.0)
    return [grad * scale for grad in grads]


def _laid_out(grad: Tensor, parameter: Tensor) -> Tensor:
    # Fused optimisers read both as flat memory: with other strides they would update the wrong weights, silently.
    return grad if grad.stride() == parameter.stride() else torch.empty_like(parameter).copy_(grad)
