"""Distillation with the real images in plain loops."""

import torch
from torch.optim import SGD

from dfkd.engine.core import Task
from dfkd.engine.plan import Plan
from dfkd.losses.divergence import cross_entropy, knowledge_distillation
from dfkd.methods.vanilla import VanillaKD
from dfkd.ops.augment import crop_flip
from dfkd.ops.pixels import as_images


def train(task: Task, method: VanillaKD, plan: Plan) -> None:
    T, S, rng = task.teacher.freeze(), task.student.train(), task.runtime.generator
    if task.real is None:
        raise ValueError("this page needs real images")
    images, labels = task.real
    optimizer = SGD(S.net.parameters(), lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay, fused=True)
    for epoch in range(plan.rounds):
        optimizer.param_groups[0]["lr"] = plan.rate(epoch)
        for _ in range(plan.steps):
            rows = torch.randint(len(images), (plan.batch_size,), generator=rng)
            x = as_images(crop_flip(images[rows], rng, method.pad, method.flip))
            with torch.no_grad():
                target = T(x).logits
            s = S(x).logits
            loss = method.alpha * knowledge_distillation(target, s, method.temperature)
            loss = loss + method.beta * cross_entropy(s, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
