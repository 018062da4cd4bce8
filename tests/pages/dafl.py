"""DAFL in plain loops: one generator step, then the student's on the very images of that step."""

import torch
from torch.optim import SGD, Adam

from dfkd.engine.core import Task
from dfkd.engine.plan import Plan
from dfkd.losses.divergence import cross_entropy, knowledge_distillation
from dfkd.losses.priors import class_balance
from dfkd.methods.dafl import DAFL
from dfkd.nets.generators import TanhGenerator


def train(task: Task, method: DAFL, plan: Plan) -> None:
    T, S, rng = task.teacher.freeze(), task.student, task.runtime.generator
    G = TanhGenerator(method.width, task.image_shape, method.channels).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    generator = Adam(G.parameters(), lr=method.lr, betas=method.betas, fused=True)
    student = SGD(S.net.parameters(), lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay, fused=True)
    for epoch in range(plan.rounds):
        student.param_groups[0]["lr"] = plan.rate(epoch)
        for _ in range(plan.turns):
            x = G(torch.randn(plan.batch_size, method.width, generator=rng))
            t = T.read_normalised(x)
            loss = method.alpha_cls * cross_entropy(t.logits, t.logits.argmax(dim=1))
            loss = loss + method.alpha_act * -t.features.abs().mean()
            loss = loss + method.alpha_ie * class_balance(t.logits, 10.0)
            generator.zero_grad()
            loss.backward()
            generator.step()
            x = x.detach()
            S.train()
            for _ in range(plan.steps // plan.turns):
                with torch.no_grad():
                    target = T.read_normalised(x).logits
                student.zero_grad()
                knowledge_distillation(target, S.read_normalised(x).logits, method.temperature).backward()
                student.step()
        S.eval()
