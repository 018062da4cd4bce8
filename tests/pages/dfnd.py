"""DFND in plain loops: one selection by the teacher, then imitation and noisy labels with a trained matrix."""

import torch
from torch import Tensor
from torch.optim import SGD, Adam

from dfkd.engine.core import Task
from dfkd.engine.plan import Plan
from dfkd.losses.divergence import knowledge_distillation
from dfkd.methods.dfnd import DFND
from dfkd.ops.augment import crop_flip
from dfkd.ops.pixels import as_images


def train(task: Task, method: DFND, plan: Plan) -> None:
    T, S, rng, K = task.teacher.freeze(), task.student, task.runtime.generator, task.classes
    if task.web is None:
        raise ValueError("this page needs web images")
    web = torch.cat([images for _, images in task.web.blocks(64)])
    with torch.no_grad():
        blocks = [T(as_images(web[i : i + method.block])).logits for i in range(0, len(web), method.block)]
    surprise = -torch.cat(blocks).log_softmax(dim=1).amax(dim=1)  # CE with its own class
    chosen = torch.tensor(sorted(sorted(range(len(web)), key=lambda i: float(surprise[i]))[: method.selected]))
    free = torch.zeros(K, K, requires_grad=True)
    noise = Adam([free], lr=method.lr, fused=True)
    student = SGD(S.net.parameters(), lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay, fused=True)
    for epoch in range(plan.rounds):
        student.param_groups[0]["lr"] = plan.rate(epoch)
        S.train()
        for _ in range(plan.steps):
            rows = chosen[torch.randint(len(chosen), (plan.batch_size,), generator=rng)]
            x = as_images(crop_flip(web[rows], rng, method.pad, method.flip))
            with torch.no_grad():
                t = T(x).logits
            s = S(x).logits
            called = _matrix(free, method.teacher_accuracy).T[t.argmax(dim=1)]
            labels = -(s.log_softmax(dim=1) + called.log()).logsumexp(dim=1).mean()
            loss = knowledge_distillation(t, s, method.temperature) + method.label_weight * labels
            student.zero_grad()
            noise.zero_grad()
            loss.backward()
            student.step()
            noise.step()
        S.eval()


def _matrix(free: Tensor, accuracy: float) -> Tensor:
    """Row by row: the accuracy at its place, the rest by a softmax over the other places."""
    own = torch.eye(len(free), dtype=torch.bool)
    return torch.where(own, accuracy, (1 - accuracy) * free.masked_fill(own, -torch.inf).softmax(dim=1))
