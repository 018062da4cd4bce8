"""The noise yardstick in plain loops."""

import torch
from torch.optim import SGD

from dfkd.engine.core import Task
from dfkd.engine.plan import Plan
from dfkd.losses.divergence import knowledge_distillation
from dfkd.methods.noise import NoiseInput


def train(task: Task, method: NoiseInput, plan: Plan) -> None:
    T, S, rng = task.teacher.freeze(), task.student.train(), task.runtime.generator
    optimizer = SGD(S.net.parameters(), lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay, fused=True)
    for epoch in range(plan.rounds):
        optimizer.param_groups[0]["lr"] = plan.rate(epoch)
        for _ in range(plan.steps):
            noise = torch.randn(plan.batch_size, *task.image_shape, generator=rng)
            x = T.denormalise(noise).clamp(0, 1)
            with torch.no_grad():
                target = T(x).logits
            optimizer.zero_grad()
            knowledge_distillation(target, S(x).logits, method.temperature).backward()
            optimizer.step()
