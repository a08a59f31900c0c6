"""What is trained: leaves in the model's number format, their float32 masters, and AdamW in pieces."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class Parameters:
    """Trainable tensors by name, in groups that are updated one after the other (a group is a slice of work).

    The forward uses `leaves`; their gradients are added up in float32 as soon as autograd has them. The update runs on
    the float32 masters and is rounded into the leaves. All of it lies where the initial values do.
    """

    def __init__(self, groups: Mapping[str, Mapping[str, Tensor]], dtype: torch.dtype, weight_decay: float):
        """`groups`: group -> name -> initial value. A tensor that already has `dtype` becomes the leaf itself."""
        self.groups = {group: list(named) for group, named in groups.items()}
        initial = {name: value for named in groups.values() for name, value in named.items()}
        self.masters = {name: value.detach().float().clone() for name, value in initial.items()}
        self.leaves = {name: value.to(dtype) for name, value in initial.items()}
        self.grads = {name: torch.zeros_like(master) for name, master in self.masters.items()}
        self._optimizers = {
            group: torch.optim.AdamW([self.masters[name] for name in names], weight_decay=weight_decay, fused=True)
            for group, names in self.groups.items()
        }
        for name, leaf in self.leaves.items():
            leaf.requires_grad_(True)
            leaf.register_post_accumulate_grad_hook(lambda leaf, name=name: self._collect(name, leaf))

    def _collect(self, name: str, leaf: Tensor) -> None:
        if leaf.grad is not None:
            self.grads[name] += leaf.grad
        leaf.grad = None

    @property
    def count(self) -> int:
        return sum(master.numel() for master in self.masters.values())

    @property
    def device(self) -> torch.device:
        return next(iter(self.masters.values())).device

    def grad_norm(self) -> Tensor:
        """The 2-norm of all gradients together: float64 [], on their device, so that nobody waits for it."""
        return torch.stack(torch._foreach_norm(list(self.grads.values()))).double().norm()

    def update(self, group: str, learning_rate: float, clip: Tensor) -> None:
        """AdamW on one group, with its gradients scaled by `clip` (float32 []); then they are zero."""
        optimizer, names = self._optimizers[group], self.groups[group]
        masters, grads = ([named[name] for name in names] for named in (self.masters, self.grads))
        optimizer.param_groups[0]["lr"] = learning_rate
        torch._foreach_mul_(grads, clip)
        for master, grad in zip(masters, grads, strict=True):
            master.grad = grad
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_([self.leaves[name] for name in names], masters)
            torch._foreach_zero_(grads)

    def state(self, device: torch.device | None = None) -> dict[str, Tensor]:
        """A copy of masters and moments, for a checkpoint; where they lie, or on another device."""
        out = {f"master.{name}": _copy(master, device) for name, master in self.masters.items()}
        for group, names in self.groups.items():
            optimizer = self._optimizers[group]
            for name in names:
                for key, value in optimizer.state.get(self.masters[name], {}).items():
                    out[f"{key}.{name}"] = _copy(value, device)
        return out

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue exactly where `state` was taken, on whichever device."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(state[f"master.{name}"])
                self.leaves[name].copy_(master)
        for group, names in self.groups.items():
            for name in names:
                moments = {
                    key: _copy(state[f"{key}.{name}"], self.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"{key}.{name}" in state
                }
                if moments:
                    self._optimizers[group].state[self.masters[name]] = moments


def _copy(tensor: Tensor, device: torch.device | None) -> Tensor:
    return tensor.to(device or tensor.device, copy=True)


def learning_rate_at(step: int, total: int, kind: str, warmup_ratio: float, peak: float) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then cosine or linear to zero, or constant.

    As `transformers.get_scheduler` gives it, with the warm-up rounded up to whole steps.
    """
    warmup = math.ceil(total * warmup_ratio)
    if step < warmup:
        return peak * step / max(1, warmup)
    progress = (step - warmup) / max(1, total - warmup)
    if kind == "cosine":
        return peak * max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
    return peak * max(0.0, 1 - progress) if kind == "linear" else peak
